"""Time and memory of attention and its gradient on long sequences: blockwise, reference and
PyTorch.

  python -m experiments.benchmarks.attention [--peer_python=PATH] [--save]

Two heads of size 64 in float32, one example; causal, and causal with a window of 512. PyTorch's
scaled_dot_product_attention is given `is_causal`, and for a window the mask as an array.
The peer needs `pip install torch absl-py`.
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


def work_in_torch(length: int, window: int):
  """Serve the same of PyTorch."""
  import torch
  from torch.nn.functional import scaled_dot_product_attention

  from experiments.benchmarks import peers

  torch.set_num_threads(peers.THREADS)
  torch.manual_seed(0)
  arrays = [torch.randn(1, 2, length, 64, requires_grad=True) for _ in range(3)]
  kwargs = dict(is_causal=True)
  if window:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    kwargs = dict(attn_mask=(distance >= 0) & (distance < window))

  def gradient():
    return torch.autograd.grad((scaled_dot_product_attention(*arrays, **kwargs) ** 2).sum(), arrays)

  harness.serve(gradient)


def main(argv):
  if harness.WORKER.value == 'sdpa':
    return work_in_torch(LENGTHS.value[0], WINDOWS.value[0])
  if harness.WORKER.value:
    return work(harness.WORKER.value, LENGTHS.value[0], WINDOWS.value[0])
  for length in LENGTHS.value:
    for window in WINDOWS.value:
      settings = [f'--length={length}', f'--window={window}', f'--block={BLOCK.value}']
      commands = {
        name: [python, '-m', 'experiments.benchmarks.attention', *settings, f'--worker={worker}']
        for name, python, worker in (
          ('ours-blockwise', sys.executable, 'blockwise'),
          ('plain', sys.executable, 'reference'),
          ('sdpa', harness.PEER_PYTHON.value, 'sdpa'),
        )
      }
      case = f'attention_{length}_window{window}' if window else f'attention_{length}_causal'
      results = harness.compare(commands, rounds=harness.ROUNDS.value)
      kwargs = dict(work=length, unit='tokens/s', module='attention', save=harness.SAVE.value)
      harness.report(case, results, **kwargs)


if __name__ == '__main__':
  app.run(main)
