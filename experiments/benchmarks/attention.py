"""Time and memory of attention and its gradient on long sequences: blockwise and reference.

  python -m experiments.benchmarks.attention [--save]

Two heads of size 64 in float32, one example; causal, and causal with a window of 512.
"""

import functools
import sys

from absl import app, flags

from experiments.benchmarks import harness

LENGTHS = flags.DEFINE_multi_integer('length', [2048, 8192], 'T = S')
WINDOWS = flags.DEFINE_multi_integer('window', [0, 512], '0 is causal attention without a window')
BLOCK = flags.DEFINE_integer('block', 0, 'targets and sources of a block; 0: as in the code')


def work(implementation: str, length: int, window: int):
  """Run a worker that computes the gradient with respect to queries, keys and values."""
  import jax
  import numpy as np

  from transformer.functional import blockwise, masks
  from transformer.functional.kernels import dot_product_attention

  blockwise.BLOCK = BLOCK.value or blockwise.BLOCK
  mask = masks.causal() & masks.sliding_window(window) if window else masks.causal()
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=(1, length, 2, 64)).astype('float32') for _ in range(3)]

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1, 2))
  def gradient(q, k, v):
    return (dot_product_attention(q, k, v, mask, implementation=implementation) ** 2).sum()

  harness.serve(lambda: jax.block_until_ready(gradient(*arrays)))


def main(argv):
  if harness.WORKER.value:
    return work(harness.WORKER.value, LENGTHS.value[0], WINDOWS.value[0])
  for length in LENGTHS.value:
    for window in WINDOWS.value:
      settings = [f'--length={length}', f'--window={window}', f'--block={BLOCK.value}']
      commands = {
        name: [sys.executable, '-m', 'experiments.benchmarks.attention', *settings, worker]
        for name, worker in (
          ('ours-blockwise', '--worker=blockwise'),
          ('plain', '--worker=reference'),
        )
      }
      case = f'attention_{length}_window{window}' if window else f'attention_{length}_causal'
      results = harness.compare(commands, rounds=harness.ROUNDS.value)
      kwargs = dict(work=length, unit='tokens/s', module='attention', save=harness.SAVE.value)
      harness.report(case, results, **kwargs)


if __name__ == '__main__':
  app.run(main)
