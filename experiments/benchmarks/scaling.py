"""Seconds of a training step and of its compilation, for several lengths, depths and widths.

  python -m experiments.benchmarks.scaling [--save]

An encoder-decoder of width 128 and depth 2 on 2,048 tokens, with one size varied at a time. With
unroll=1 the scan over layers is a loop, and compilation must not take longer for a deeper model.
"""

import functools
import statistics
import sys
import time

from absl import app

from experiments.benchmarks import harness

PLAIN = dict(vocab=1024, width=128, heads=4, depth=2, feedforward=512, dropout=0.1, max_length=64)
TOKENS = 2048
VARIANTS = {
  'length': [dict(max_length=n) for n in (32, 64, 128, 256, 512)],
  'width': [dict(width=n, feedforward=4 * n) for n in (64, 128, 256, 512)],
  'depth': [dict(depth=n) for n in (1, 2, 4, 8)],
  'depth, rolled': [dict(depth=n, unroll=1) for n in (1, 2, 4, 8)],
}


def measure(sizes: dict) -> dict[str, float]:
  """Return the median seconds of a step, and those of compiling it."""
  import jax

  from experiments.benchmarks.ours import encoder_decoder

  state, update, batch = encoder_decoder(
    dict(PLAIN, **sizes), rows=TOKENS // dict(PLAIN, **sizes)['max_length'], dtype='bfloat16'
  )
  update = functools.partial(update, key=jax.random.key(1))
  began = time.perf_counter()
  state, _ = jax.block_until_ready(update(state, batch))
  compiling, seconds = time.perf_counter() - began, []
  for _ in range(harness.ROUNDS.value):
    began = time.perf_counter()
    state, _ = jax.block_until_ready(update(state, batch))
    seconds.append(time.perf_counter() - began)
  return {'step_s': statistics.median(seconds), 'compile_s': compiling - statistics.median(seconds)}


def main(argv):
  del argv
  points: dict[str, list[dict]] = {}
  for name, variants in VARIANTS.items():
    for sizes in variants:
      points.setdefault(name, []).append({**sizes, **measure(sizes)})
      print(name, points[name][-1], file=sys.stderr)
  result = {'case': 'scaling', 'unit': 's', 'by': points, **harness.machine('scaling')}
  harness.write(result, save=harness.SAVE.value)


if __name__ == '__main__':
  app.run(main)
