"""Train the tiny run in golden_run/ again; only when its format is meant to change.

  python tests/training/make_golden_run.py

The run that is there was trained by an earlier version of this code, and `test_golden_run.py`
checks that this version opens, evaluates and resumes it. So do not make it again to make that test
pass: instead, let `config.upgrade` or `Checkpoints` read it.
"""

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


if __name__ == '__main__':
  main()
