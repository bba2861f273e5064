"""Memory, steps per CPU second and compilations of one long run with many evaluations and saves.

  python -m experiments.benchmarks.soak [--minutes=60] [--every=15] [--save]

The tiny run of chaos.py trains without end, is evaluated and saved every 400 steps, and is sampled
every `--every` seconds. The result has the medians of the samples of each quarter, which are to be
the same; the first quarter is warm-up.
"""

import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

from absl import app, flags

from experiments.benchmarks import harness
from experiments.benchmarks.chaos import Commands, Lab

_MINUTES = flags.DEFINE_float('minutes', 60, 'How long.')
_EVERY = flags.DEFINE_float('every', 15, 'Seconds between samples.')
STEPS = 10_000_000
FLAGS = (f'--config.train.steps={STEPS}', '--config.train.save_every_steps=400')
FLAGS += ('--config.train.log_every_steps=50', '--config.eval.every_steps=400')


def sample(pid: int, workdir: pathlib.Path) -> dict[str, float]:
  """Return memory in MiB, CPU seconds, steps, evaluations and compilations of a run so far."""
  pages = int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
  words = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  ticks = int(words[11]) + int(words[12])
  lines = (workdir / 'metrics.jsonl').read_bytes().splitlines()
  return {
    'mib': pages * os.sysconf('SC_PAGE_SIZE') / 2**20,
    'cpu_s': ticks / os.sysconf('SC_CLK_TCK'),
    'steps': 50 * sum(b'"split": "train"' in line for line in lines),
    'evaluations': sum(b'"split": "val"' in line for line in lines),
    'compilations': (workdir / 'compilations.jsonl').read_bytes().count(b'\n'),
  }


def quarters(samples: list[dict[str, float]]) -> list[dict[str, float]]:
  """Return of each quarter the median memory, the steps per CPU second and the compilations."""
  size, found = len(samples) // 4, []
  for i in range(4):
    part = samples[i * size : (i + 1) * size + 1]
    first, last = part[0], part[-1]
    found.append(
      {
        'mib': statistics.median(x['mib'] for x in part),
        'steps_per_cpu_s': (last['steps'] - first['steps']) / (last['cpu_s'] - first['cpu_s']),
        'evaluations': last['evaluations'] - first['evaluations'],
        'compilations': last['compilations'] - first['compilations'],
      }
    )
  return found


def main(argv):
  del argv
  with tempfile.TemporaryDirectory() as folder, Commands(pathlib.Path(folder, 'cache')) as commands:
    lab = Lab(pathlib.Path(folder), commands, random.Random(0))
    workdir = lab.folder / 'run'
    process, samples = lab.start('plain', workdir, *FLAGS), []
    while process.poll() is None and not (workdir / 'metrics.jsonl').exists():
      time.sleep(1)
    end = time.monotonic() + 60 * _MINUTES.value
    while process.poll() is None and time.monotonic() < end:
      time.sleep(_EVERY.value)
      samples.append(sample(process.pid, workdir))
      print(samples[-1], file=sys.stderr, flush=True)
    process.send_signal(15)
    _, err = process.communicate(600)
  print(err.decode()[-200:], file=sys.stderr)
  result = {'case': 'soak', 'minutes': _MINUTES.value, 'quarters': quarters(samples)}
  result |= {'status': process.returncode, 'last': samples[-1], **harness.machine('soak')}
  harness.write(result, save=harness.SAVE.value)


if __name__ == '__main__':
  app.run(main)
