"""Train the tiny run in golden_run/ again; only when its format is meant to change.

  python tests/training/make_golden_run.py
  PYTHONPATH=. python tests/training/make_golden_run.py again

The second command keeps the run, and adds its last checkpoint as this version writes it.

The run that is there was trained by an earlier version of this code, and `test_golden_run.py`
checks that this version opens, evaluates and resumes it. So do not make it again to make that test
pass: instead, let `config.upgrade` or `Checkpoints` read it.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).parent / 'golden_run'
ROOT = pathlib.Path(__file__).parents[2]
WORDS = 'abc bca cab aab bba cca acb bac'.split()
FLAGS = (
  *('--config.experiment=golden', '--config.data.max_length=8', '--config.data.batch_tokens=32'),
  *('--config.data.test=', '--config.tokenizer.kind=characters', '--config.model.width=8'),
  *('--config.model.heads=2', '--config.model.depth=1', '--config.model.feedforward=8'),
  *('--config.model.max_length=8', '--config.train.steps=2', '--config.train.save_every_steps=2'),
  *('--config.train.log_every_steps=1', '--config.train.keep_checkpoints=1'),
  *('--config.eval.every_steps=2', '--config.eval.metrics=exact_match', '--config.decode.beams=1'),
  *('--config.eval.samples=1', '--config.decode.max_new_tokens=4', '--config.decode.batch_size=8'),
)


def main():
  """Train the run, and keep the files that a run is reopened from."""
  shutil.rmtree(FOLDER, ignore_errors=True)
  data = FOLDER / 'data'
  data.mkdir(parents=True)
  for split in ('train', 'val'):
    lines = ''.join(f'{word}\t{word[::-1]}\n' for word in WORDS)
    (data / f'{split}.tsv').write_text('inputs\ttargets\n' + lines)
  with tempfile.TemporaryDirectory() as workdir:
    config = f'--config={ROOT}/experiments/pairs.py'
    command = [sys.executable, str(ROOT / 'run.py'), config, *FLAGS]
    subprocess.run(
      [*command, '--config.data.dir=data', f'--workdir={workdir}'], cwd=FOLDER, check=True
    )
    for name in ('config.json', 'tokenizer.json', 'metrics.jsonl', 'train.json'):
      shutil.copy(pathlib.Path(workdir, name), FOLDER)
    shutil.make_archive(str(FOLDER / 'checkpoints'), 'xztar', workdir, 'checkpoints')


def save_again():
  """Write the checkpoint of the run as this version does, beside those of earlier ones."""
  from transformer.training import checkpoints

  run = {
    name: json.loads((FOLDER / f'{name}.json').read_text()) for name in ('config', 'tokenizer')
  }
  run['data'] = {'split': 'train', 'batches': 4, 'fingerprint': 'golden'}
  scores = json.loads((FOLDER / 'metrics.jsonl').read_text().splitlines()[1])
  with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
    shutil.unpack_archive(FOLDER / 'checkpoints.tar.xz', old, filter='data')
    with checkpoints.Checkpoints(old) as saved, checkpoints.Checkpoints(new, about=run) as again:
      arrays, about = saved.read()
      again.save(arrays, about['step'], scores={'step': 2, 'loss': scores['loss']})
    shutil.make_archive(str(FOLDER / f'checkpoints-{checkpoints.FORMAT}'), 'xztar', new)


if __name__ == '__main__':
  save_again() if sys.argv[1:] == ['again'] else main()
