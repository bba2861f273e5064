"""Training and decoding on one NVIDIA GPU, with this codebase and PyTorch, and the MFU.

  python -m experiments.benchmarks.gpu [--peer_python=PATH] [--cases=gpt2,xl] [--save] [--smoke]

It takes under ten minutes, in this order: the peak of matrix products (8192 x 8192, random bfloat16
numbers) and the error of fused attention; GPT-2 (124 M); greedy decoding of 64 lines; a GPT of the
size of GPT-2 XL (1.5 B); and the base encoder-decoder. A case is skipped, with a message, if too
little time is left. Training has bfloat16 products, float32 weights, AdamW, and no dropout except
0.1 in the base model.

The peer is compiled PyTorch with fused attention and autocast; of the 1.5 B model each block is
compiled separately, because compiling the whole model takes minutes. The peer of decoding is
Hugging Face's generate, not compiled. Without torch only our side runs. The sides alternate, except
for 1.5 B, where they run one after the other because both together exceed the memory of a GPU.

MFU is (6 N + 6 L T D) operations per token, divided by time and peak. N is the number of weights in
matrix products (with the output layer, without embeddings). Of the 12 L T D of attention only the
causal half is counted, because only that is computed; `mfu_full_attention` counts all, as nanoGPT
and PaLM do. Recomputation is never counted. The peak is that of the datasheet, and also the one
measured in the same run. `--smoke` runs the same code with small sizes on any machine, as a test of
the script.
"""

import dataclasses
import logging
import math
import os
import sys
import time

from absl import app, flags

from experiments.benchmarks import harness
from experiments.benchmarks.ours import BASE

DATASHEET = 989e12  # dense bfloat16 operations per second of an H100 SXM and an H200
GPT2 = dict(
  vocab=50304, width=768, heads=12, depth=12, feedforward=3072, dropout=0.0, max_length=1024
)
XL = dict(GPT2, width=1600, heads=25, depth=48, feedforward=6400)
PRODUCTS, DECODED = 10, 48  # matrix products in a call; tokens of an output
# to compute norms and activations again is not slower than to read them from memory
LEAN, STORED = dict(unroll=1, remat='products'), dict(unroll=1, remat='none')


@dataclasses.dataclass(frozen=True)
class Case:
  """A case of the benchmark.

  Attributes:
    rows: of a batch.
    shape: sizes of the model.
    peer: name of the peer, and how it is compiled.
    ours: {our variant: further arguments of the model}.
    seconds: approximate duration of the case.
    apart: whether the sides run one after the other, because both together exceed the memory.
  """

  rows: int
  shape: dict
  peer: str
  ours: dict[str, dict] = dataclasses.field(default_factory=lambda: {'ours': {}})
  seconds: int = 120
  apart: bool = False


CASES = {
  'peak': Case(8192, {}, 'torch', seconds=40),
  'gpt2': Case(16, GPT2, 'gpt-compiled', {'ours': LEAN, 'ours-stored': STORED}, seconds=170),
  'decode': Case(64, BASE, 'hf', seconds=60),
  'xl': Case(8, XL, 'gpt-blocks', {'ours': LEAN}, seconds=190, apart=True),
  'base': Case(256, dict(BASE, max_length=64), 'torch-compiled', {'ours': STORED}, seconds=120),
}
SMALL = dict(vocab=256, width=64, heads=2, depth=2, feedforward=128, dropout=0.0, max_length=32)
_CASES = flags.DEFINE_list('cases', list(CASES), 'which to run; the peak is always measured')
_MINUTES = flags.DEFINE_float('minutes', 9.5, 'time for everything')
_SMOKE = flags.DEFINE_bool('smoke', False, 'small sizes, to test the script')


def case_of(name: str) -> Case:
  """Return a case; with --smoke a small version of it."""
  case = CASES[name]
  if not _SMOKE.value:
    return case
  return dataclasses.replace(case, rows=128 if name == 'peak' else 2, shape=case.shape and SMALL)


def operations_per_token(
  *, vocab: int, width: int, depth: int, feedforward: int, max_length: int, causal: bool = True, **_
) -> int:
  """Return 6 N + 12 L T D (or + 6 L T D), the operations per token of a GPT's training step.

  Args:
    vocab, width, depth, feedforward, max_length: sizes of the model.
    causal: whether to count only the causal half of the scores.

  Chowdhery et al. 2022, appendix B, with N without embeddings but with the output layer.

  >>> operations_per_token(**GPT2) / 1e9, operations_per_token(**GPT2, causal=False) / 1e9
  (0.798031872, 0.854654976)
  """
  N = depth * (4 * width**2 + 2 * width * feedforward) + vocab * width
  return 6 * N + 12 * depth * max_length * width // (2 if causal else 1)


def ours(name: str, variant: str = 'ours'):
  """Return the arguments (call, memory, about) of harness.serve for our side."""
  case = case_of(name)
  # set before jax is imported; two processes share the memory unless they run apart
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'true' if case.apart else 'false')
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
  os.environ.setdefault('JAX_TRACEBACK_FILTERING', 'off')  # its note hides the error's last line
  import jax
  import jax.numpy as jnp

  from experiments.benchmarks import decoding
  from experiments.benchmarks.ours import decoder, encoder_decoder

  log = LogLines()
  logging.getLogger('transformer').addHandler(log)
  logging.getLogger('transformer').setLevel(logging.INFO)
  device = jax.devices()[0]
  about = dict(device=device.device_kind, jax=jax.__version__, log=log.lines)

  def memory():
    return (device.memory_stats() or {}).get('peak_bytes_in_use', 0) / 1e6

  if name == 'peak':
    a, b = (jax.random.normal(key, (case.rows,) * 2) for key in jax.random.split(jax.random.key(0)))
    a, b = a.astype(jnp.bfloat16), (b * case.rows**-0.5).astype(jnp.bfloat16)
    chain = jax.jit(lambda a: jax.lax.fori_loop(0, PRODUCTS, lambda _, a: a @ b, a))
    return lambda: chain(a).block_until_ready(), memory, about | {'fused_error': fused_error()}
  if name == 'decode':
    return decoding.ours(case.shape, case.rows, 1, DECODED, 'bfloat16'), memory, about
  make, settings = encoder_decoder if name == 'base' else decoder, case.ours[variant]
  state, update, batches = make(case.shape | settings, rows=case.rows, dtype='bfloat16')

  def call():
    nonlocal state
    state, metrics = update(state, batches, jax.random.key(1))
    return jax.block_until_ready(metrics)

  return call, memory, about | settings


def fused_error() -> dict[str, float]:
  """Return the largest errors of cuDNN's attention and its gradients, relative to the reference.

  For comparison: two roundings of a number to bfloat16 differ by less than 0.008 of it.
  """
  import jax
  import jax.numpy as jnp

  from transformer.functional import kernels, masks

  shape = (2, 64, 4, 16) if _SMOKE.value else (4, 1024, 12, 64)
  q, k, v, g = (
    jax.random.normal(key, shape, 'bfloat16') for key in jax.random.split(jax.random.key(0), 4)
  )
  name = 'reference' if _SMOKE.value else 'cudnn'

  @jax.jit
  def run(q, k, v):
    def attend(implementation):
      return lambda *x: kernels.dot_product_attention(
        *x, masks.causal(), implementation=implementation
      )

    y, pullback = jax.vjp(attend(name), q, k, v)
    want, want_pullback = jax.vjp(attend('reference'), q, k, v)
    pairs = zip((y, *pullback(g)), (want, *want_pullback(g)), strict=True)
    wide = [[x.astype(jnp.float32) for x in pair] for pair in pairs]
    return [jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)) for a, b in wide]

  return dict(zip(('y', 'dq', 'dk', 'dv'), map(float, run(q, k, v)), strict=True))


class LogLines(logging.Handler):
  """Log handler that keeps the messages, which name the implementation of attention."""

  def __init__(self):
    super().__init__()
    self.lines: list[str] = []

  def emit(self, record):
    self.lines.append(record.getMessage())


def peer(name: str):
  """Return the arguments (call, memory, about) of harness.serve for PyTorch."""
  import torch

  from experiments.benchmarks import decoding, peers

  case, cuda = case_of(name), torch.cuda.is_available()
  device = 'cuda' if cuda else 'cpu'
  about = dict(device=torch.cuda.get_device_name() if cuda else 'cpu', torch=torch.__version__)

  def memory():
    return torch.cuda.max_memory_allocated() / 1e6 if cuda else 0.0

  if name == 'peak':
    a, b, out = (torch.randn(case.rows, case.rows, device=device).bfloat16() for _ in range(3))

    def call():
      for _ in range(PRODUCTS):
        torch.mm(a, b, out=out)
      if cuda:
        torch.cuda.synchronize()

    return call, memory, about
  if name == 'decode':
    call = decoding.hugging_face(case.shape, case.rows, 1, DECODED, 'bfloat16', device)
    return call, memory, about
  model, mode = case.peer.split('-')
  call = peers.training(
    model, 'bfloat16', mode=mode, sizes=case.shape, batch_size=case.rows, device=device
  )
  return call, memory, about


def measure(name: str) -> dict[str, dict]:
  """Time both sides of a case; the result is that of harness.compare."""
  case = case_of(name)
  commands = {
    worker: [
      sys.executable if worker in case.ours else harness.PEER_PYTHON.value,
      *('-m', 'experiments.benchmarks.gpu', f'--cases={name}', f'--worker={worker}'),
      f'--smoke={_SMOKE.value}',
    ]
    for worker in (*case.ours, case.peer)
  }
  if harness.VARIANTS.value:
    names = harness.VARIANTS.value
    commands = {n: c for n, c in commands.items() if any(part in n for part in names)}
  if not case.apart:
    return harness.compare(commands, rounds=harness.ROUNDS.value)
  results = {}
  for worker, command in commands.items():
    results |= harness.compare({worker: command}, rounds=harness.ROUNDS.value)
  return results


def main(argv):
  del argv
  began = time.perf_counter()
  if harness.WORKER.value:
    (name,) = _CASES.value
    worker = harness.WORKER.value
    call, memory, about = ours(name, worker) if worker in CASES[name].ours else peer(name)
    harness.serve(call, seconds=0.05 if _SMOKE.value else 2.0, memory=memory, **about)
    return
  if unknown := set(_CASES.value) - set(CASES):
    raise app.UsageError(f'--cases={",".join(sorted(unknown))}: choose from {",".join(CASES)}')
  peak = 0.0
  for name in ['peak', *(name for name in CASES if name in _CASES.value and name != 'peak')]:
    case = case_of(name)
    left = 60 * _MINUTES.value - (time.perf_counter() - began)
    if case.seconds > left and not _SMOKE.value:
      print(f'{name}: skipped, {left:.0f} s are too few: run --cases={name}', file=sys.stderr)
      continue
    try:
      results = measure(name)
    except RuntimeError as error:  # a worker failed; the other cases may still run
      print(f'{name}: {error}', file=sys.stderr)
      continue
    if not results:
      continue
    if name == 'peak':
      work, unit = PRODUCTS * 2 * case.rows**3 / 1e12, 'TFLOP/s'
      peak = max(work * 1e12 / values['median_s'] for values in results.values())
    elif name == 'decode':
      work, unit = case.rows * DECODED, 'tokens/s'
    else:
      work, unit = case.rows * case.shape['max_length'], 'tokens/s'
    for worker, values in results.items() if name in ('gpt2', 'xl') else ():
      rate = work / values['median_s'] * operations_per_token(**case.shape)
      values['mfu_datasheet'] = rate / DATASHEET
      values['mfu_measured'] = rate / peak if peak else None
      whole = work / values['median_s'] * operations_per_token(**case.shape, causal=False)
      values['mfu_full_attention'] = whole / DATASHEET
      for key in ('mfu_datasheet', 'mfu_measured', 'mfu_full_attention'):
        print(f'{worker}: {key} {values[key] or math.nan:.1%}', file=sys.stderr)
    about = dict(rows=case.rows, shape=case.shape, interleaved=not case.apart)
    harness.report(
      f'gpu_{name}', results, work=work, unit=unit, module='gpu', save=harness.SAVE.value, **about
    )


if __name__ == '__main__':
  app.run(main)
