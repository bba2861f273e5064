"""Loss curves of the default experiment in bfloat16 and float32.

python -m experiments.benchmarks.curves [--steps=500] [--save]

Three runs: float32, bfloat16 with the same seed, and float32 with another seed, to compare the
difference with that between seeds.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl import app, flags

from experiments.benchmarks import harness

ROOT = pathlib.Path(__file__).parents[2]
STEPS = flags.DEFINE_integer('steps', 500, 'how many steps', lower_bound=50)
WINDOW = 50  # steps that the loss is averaged over
RUNS = {
  'float32': ('float32', 0),
  'bfloat16': ('bfloat16', 0),
  'float32_other_seed': ('float32', 1),
}


def curve(folder: str, dtype: str, seed: int) -> np.ndarray:
  """Return the loss of every step."""
  steps = STEPS.value
  command = [sys.executable, 'run.py', f'--workdir={folder}', f'--config.model.dtype={dtype}']
  command += [f'--config.seed={seed}', f'--config.train.steps={steps}']
  command += ['--config.train.log_every_steps=1', f'--config.train.save_every_steps={steps}']
  command += [f'--config.eval.every_steps={steps}', '--config.data.test=', '--config.eval.by=']
  subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  written = [json.loads(line) for line in lines]
  return np.array([line['loss'] for line in written if line['split'] == 'train'])


def main(argv):
  del argv
  curves = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, (dtype, seed) in RUNS.items():
      curves[name] = curve(f'{folder}/{name}', dtype, seed)
  smooth = {
    name: values[: len(values) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)
    for name, values in curves.items()
  }
  plain = smooth['float32']
  result = {
    'case': 'curves',
    'unit': 'nats per token',
    'steps': STEPS.value,
    'window': WINDOW,
    'curves': {name: values.round(4).tolist() for name, values in smooth.items()},
    'mean_difference_16_bits': float(np.abs(smooth['bfloat16'] - plain).mean()),
    'mean_difference_seed': float(np.abs(smooth['float32_other_seed'] - plain).mean()),
    **harness.machine('curves'),
  }
  harness.write(result, save=harness.SAVE.value)


if __name__ == '__main__':
  app.run(main)
