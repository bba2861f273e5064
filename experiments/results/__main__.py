"""Recorded results, one JSON file a run, and the README's table of them.

python -m experiments.results record WORKDIR METRIC PUBLISHED [WORKDIR ...]   # of runs that ended
python -m experiments.results table                                            # into README.md
"""

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

from transformer.evaluation.likelihood import TEXT_METRICS, TOKEN_METRICS
from transformer.evaluation.metrics import is_better

HERE = pathlib.Path(__file__).parent
README = HERE.parents[1] / 'README.md'
BEGIN, END = '<!-- results: python -m experiments.results table -->\n', '<!-- end of results -->\n'
LABELS = {  # of metrics in the table
  'accuracy': 'accuracy, %',
  'bleu': 'BLEU',
  'bleu4_lowercase_words': 'BLEU-4 of lower-cased words',
  'bleu_lowercase_moses': 'BLEU of lower-cased Moses tokens',
  'entity_f1': 'F1 of entities, %',
  'exact_match': 'exact match, %',
  'mean_average_precision': 'mean average precision, %',
  'mel_cepstral_distortion': 'mel-cepstral distortion, dB',
  'nll_per_token': 'loss, nats per token',
  'perplexity_per_word': 'perplexity per word',
  'recall_at_5': 'recall at 5, %',
  'squad_f1': 'F1, %',
  'wer': 'word error rate, %',
}


def record(workdir: str, metric: str, published: str, *others: str):
  """Store the result of a run, with the commit of this checkout.

  Args:
    workdir: has train.json; the metrics of evaluate.json, where it exists, replace those of
      train.json (settings of decoding were chosen on val after training).
    metric: the one for the table, such as test/accuracy.
    published: the strongest comparable published number, in words.
    others: workdirs of the same experiment with other seeds.

  Raises:
    ValueError: evaluate.json is older than the end of the training, or has no such metric; or a
      run with another seed differs in more than the seed.
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
    'chosen_on': config['data']['val'],
    'seed': config['seed'],
    'other_seeds': {},
    'steps': config['train']['steps'],
    'date': time.strftime('%Y-%m-%d'),
    'commit': subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=HERE, text=True).strip(),
  }
  for other in map(pathlib.Path, others):
    theirs, their_config = (
      json.loads((other / f'{n}.json').read_text()) for n in ('train', 'config')
    )
    if config | {'seed': None} != their_config | {'seed': None}:
      raise ValueError(f'{other} differs from {folder} in more than the seed: record it by itself')
    result['other_seeds'][str(their_config['seed'])] = theirs['metrics'][metric]
  del result['workdir']
  text = json.dumps(result, indent=1, ensure_ascii=False) + '\n'
  (HERE / f'{result["experiment"]}.json').write_text(text, encoding='utf-8')


def _device(result: dict[str, Any]) -> str:
  """Return the accelerators of a run, or its cores where it had none."""
  device, cores = result['device'], result['cores']
  return device.replace('1 x cpu', f'{cores} CPU core' + ('s' if cores > 1 else ''))


def _row(result: dict[str, Any]) -> str:
  split, name = result['metric'].rsplit('/', 1)
  direction = 'up' if is_better(name, 1.0, 0.0, {**TOKEN_METRICS, **TEXT_METRICS}) else 'down'
  ours = f'{result["metrics"][result["metric"]]:.2f}'
  if others := result.get('other_seeds', {}).values():
    ours += ' (other seeds ' + ', '.join(f'{value:.2f}' for value in others) + ')'
  return (
    f'| {result["experiment"]} | {LABELS.get(name, name)} ({direction}) | {split} '
    f'| {result["chosen_on"]} | {ours} | {result["published"]} '
    f'| {_device(result)}, {result["seconds"] / 60:.0f} min |'
  )


def table() -> str:
  """Return the recorded results as a Markdown table."""
  results = (json.loads(file.read_text(encoding='utf-8')) for file in sorted(HERE.glob('*.json')))
  header = [
    '| experiment | metric | split | checkpoint chosen on | ours | published | trained on |',
    '|---|---|---|---|---|---|---|',
  ]
  return '\n'.join([*header, *map(_row, results)]) + '\n'


def with_table(readme: str) -> str:
  """Return the README with the table between its markers."""
  before, rest = readme.split(BEGIN)
  return before + BEGIN + table() + END + rest.split(END)[1]


def main(command: str = '', *arguments: str):
  """Run a command: record or table."""
  if command not in ('record', 'table'):
    raise SystemExit(f'{command!r} is unknown: give record or table')
  if command == 'record':
    record(*arguments)
  README.write_text(with_table(README.read_text(encoding='utf-8')), encoding='utf-8')


if __name__ == '__main__':
  main(*sys.argv[1:])
