"""Seconds from `python run.py` to the first step, with an empty and a full compilation cache.

python -m experiments.benchmarks.startup [--rounds=3] [--save]
"""

import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app

from experiments.benchmarks import harness

ROOT = pathlib.Path(__file__).parents[2]


def start(workdir: str, cache: str) -> float:
  """Return the seconds until the first step of the default experiment, in a new workdir."""
  environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache)
  environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
  command = [sys.executable, 'run.py', f'--workdir={workdir}', '--config.train.log_every_steps=1']
  began = time.perf_counter()
  process = subprocess.Popen(
    command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
  )
  assert process.stderr is not None
  for line in process.stderr:
    if ' step 1: ' in line:
      took = time.perf_counter() - began
      process.send_signal(signal.SIGKILL)
      process.wait()
      return took
  raise RuntimeError(f'{" ".join(command)} ended before its first step')


def main(argv):
  del argv
  seconds: dict[str, list[float]] = {'cold': [], 'warm': []}
  for _ in range(harness.ROUNDS.value):
    with tempfile.TemporaryDirectory() as folder:
      for kind, times in seconds.items():
        times.append(start(f'{folder}/{kind}', f'{folder}/cache'))
        print(f'{kind}: {times[-1]:.1f} s', file=sys.stderr)
  result = {
    'case': 'startup',
    'unit': 's',
    **{f'{kind}_s': statistics.median(times) for kind, times in seconds.items()},
    'all': seconds,
    **harness.machine('startup'),
  }
  harness.write(result, save=harness.SAVE.value)


if __name__ == '__main__':
  app.run(main)
