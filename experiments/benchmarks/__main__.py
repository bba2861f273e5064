"""Runs the benchmarks against peers on a CPU, one after the other, in under 15 minutes.

python -m experiments.benchmarks [--peer_python=PATH] [--rounds=3] [--save]

The peers need `pip install torch transformers ctranslate2 absl-py`, here or in the environment of
--peer_python. The machine must be idle otherwise.
"""

import subprocess
import sys
import time

from absl import app

from experiments.benchmarks import harness

COMMANDS = (
  ('training', 'tiny'),
  ('training', 'nanogpt_cpu'),
  ('training', 'base'),
  ('decoding', 'tiny_1_greedy'),
  ('decoding', 'tiny_32_greedy'),
  ('decoding', 'tiny_8_beam4'),
  ('decoding', 'base_1_greedy'),
  ('decoding', 'base_8_beam4'),
)


def main(argv):
  flags = argv[1:] or ['--rounds=3']
  if not any(units in harness.processor() for units in ('amx', 'bf16')):
    print('no instructions for bfloat16 here: float32 and int8 alone are measured', file=sys.stderr)
    flags = [*flags, '--variants=float32,int8']
  for module, case in COMMANDS:
    began = time.perf_counter()
    command = [sys.executable, '-m', f'experiments.benchmarks.{module}', f'--case={case}', *flags]
    code = subprocess.call(command)
    print(f'{module} {case}: {time.perf_counter() - began:.0f} s, rc {code}', file=sys.stderr)


if __name__ == '__main__':
  app.run(main, argv=[sys.argv[0], '--', *sys.argv[1:]])
