"""The data pipeline without training, which must never wait for it.

  python -m experiments.benchmarks.pipeline [--save]

Sentences of random tokens with the lengths of a translation corpus, bucketed and packed, made by
`pipeline.prefetch` in its thread while the main thread does nothing else.
"""

import statistics
import time

from absl import app

from experiments.benchmarks import harness

EXAMPLES, BATCHES, TOKENS = 100_000, 300, 4096


def main(argv):
  del argv
  import numpy as np

  from transformer.data import pipeline

  random = np.random.default_rng(0)
  sizes = np.clip(random.gamma(6, 3, (EXAMPLES, 2)).astype(int), 2, 64)
  fields = {}
  for name, column in (('inputs', sizes[:, 0]), ('targets', sizes[:, 1])):
    tokens = random.integers(1, 10_000, column.sum(), np.int32)
    fields[name] = pipeline.Ragged(tokens, np.concatenate([[0], np.cumsum(column)]))
  variants = {
    'bucketed': pipeline.bucket(sizes, buckets=8),
    'packed': pipeline.pack(sizes, length=128),
  }
  seconds: dict[str, list[float]] = {name: [] for name in variants}
  tokens = {}
  for _ in range(harness.ROUNDS.value):
    for name, rows in variants.items():
      batches = pipeline.Batches(fields, rows, tokens=TOKENS)
      began, tokens[name] = time.perf_counter(), 0
      for batch in pipeline.prefetch(batches, 0, BATCHES):
        tokens[name] += int(np.count_nonzero(batch['targets_segments']))
      seconds[name].append(time.perf_counter() - began)
  result = {
    'case': 'pipeline',
    'unit': 'target tokens/s',
    **{f'{name}_per_s': tokens[name] / statistics.median(seconds[name]) for name in variants},
    **harness.machine('pipeline'),
  }
  harness.write(result, save=harness.SAVE.value)


if __name__ == '__main__':
  app.run(main)
