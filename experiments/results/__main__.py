"""What was measured, one JSON file a run, and the README's table made of it.

python -m experiments.results record WORKDIR METRIC PUBLISHED    # of a run that has ended
python -m experiments.results table                              # writes it into README.md
"""

import json
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
README = HERE.parents[1] / 'README.md'
BEGIN, END = '<!-- results: python -m experiments.results table -->\n', '<!-- end of results -->\n'


def record(workdir: str, metric: str, published: str):
  """Keeps the result of a run, with the commit of this checkout.

  Args:
    workdir: of a run whose train.json is there; where evaluate.json is there too, its metrics count
      (decoding was chosen on val after training).
    metric: the one to print, such as test/exact_match.
    published: what it is to be compared with, in words.

  Raises:
    ValueError: evaluate.json was made before the training ended, or no such metric was measured.
  """
  folder = pathlib.Path(workdir)
  result, config = (json.loads((folder / f'{n}.json').read_text()) for n in ('train', 'config'))
  if (folder / 'evaluate.json').exists():
    later = json.loads((folder / 'evaluate.json').read_text())
    if later['step'] != result['best_step']:
      raise ValueError(
        f'{folder}/evaluate.json is of step {later["step"]}, the best one is now '
        f'{result["best_step"]}: evaluate again with --mode=evaluate'
      )
    result |= {key: later[key] for key in ('metrics', 'signatures')}
  if metric not in result['metrics']:
    raise ValueError(f'{folder} has no {metric}, but {", ".join(result["metrics"])}')
  result |= {
    'metric': metric,
    'published': published,
    'seed': config['seed'],
    'steps': config['train']['steps'],
    'date': time.strftime('%Y-%m-%d'),
    'commit': subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=HERE, text=True).strip(),
  }
  del result['workdir']
  text = json.dumps(result, indent=1, ensure_ascii=False) + '\n'
  (HERE / f'{result["experiment"]}.json').write_text(text, encoding='utf-8')


def _hardware(result) -> str:
  """Its cores where a run had no accelerator."""
  device, cores = result['device'], result['cores']
  return device.replace('1 x cpu', f'{cores} CPU core' + ('s' if cores > 1 else ''))


def table() -> str:
  """The recorded results as a Markdown table."""
  lines = [
    '| experiment | device | minutes | metric | score | published |',
    '|---|---|---|---|---|---|',
  ]
  for file in sorted(HERE.glob('*.json')):
    r = json.loads(file.read_text(encoding='utf-8'))
    score = f'{r["metrics"][r["metric"]]:.2f}'
    lines.append(
      f'| {r["experiment"]} | {_hardware(r)} | {r["seconds"] / 60:.0f} | {r["metric"]} '
      f'| {score} | {r["published"]} |'
    )
  return '\n'.join(lines) + '\n'


def written(readme: str) -> str:
  """The README with the table in its place."""
  before, rest = readme.split(BEGIN)
  return before + BEGIN + table() + END + rest.split(END)[1]


def main(command: str = '', *arguments: str):
  """Does what the command line says."""
  if command not in ('record', 'table'):
    raise SystemExit(f'{command!r} is unknown: give record or table')
  if command == 'record':
    record(*arguments)
  README.write_text(written(README.read_text(encoding='utf-8')), encoding='utf-8')


if __name__ == '__main__':
  main(*sys.argv[1:])
