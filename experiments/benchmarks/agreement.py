"""Errors of the implementations of attention relative to float64: a table by mask and dtype.

  python -m experiments.benchmarks.agreement

Each cell has the largest error of the output and of the gradients (queries, keys, values), relative
to the largest expected magnitude; - if the implementation cannot compute the case. Without a
suitable GPU cuDNN is replaced by jax.nn's XLA implementation, and without a TPU splash attention
runs in Pallas' interpreter. jax.nn has no float16 on CPUs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from transformer.functional import kernels, masks, platforms
from transformer.functional.kernels import Call
from transformer.functional.masks import AttentionMask
from transformer.inspection import reference_float64

B, T, H, G, K = 2, 40, 4, 2, 8
DTYPES = ('float32', 'bfloat16', 'float16')


def masks_by_name() -> dict[str, AttentionMask]:
  """Return {name: mask} of the kinds of masks to test."""
  rng = np.random.default_rng(1)
  packed = jnp.asarray(np.sort(rng.integers(0, 4, (B, T)))[:, ::-1], jnp.int32)
  padded = jnp.minimum(packed, 1)
  causal, window = masks.causal(), masks.sliding_window(9)
  return {
    'none': AttentionMask(),
    'causal': causal,
    'causal, window': causal & window,
    'window': window,
    'padding': masks.segments(padded, padded),
    'packed, causal': masks.segments(packed, packed) & causal,
    'packed, causal, window': masks.segments(packed, packed) & causal & window,
    'prefix': masks.prefix(7),
    'array': AttentionMask(explicit=jnp.asarray(rng.random((B, 1, T, T)) < 0.5)),
  }


def implementations() -> dict[str, tuple]:
  """Return {name: (function of a Call, platform of the Call)}."""
  here = platforms.resolve(None)
  gpu, tpu = platforms.compute_capability(here) >= 8, here == 'tpu'
  stand_in = functools.partial(kernels.cudnn, backend='cudnn' if gpu else 'xla')
  return {
    'reference': (kernels.reference, here),
    'blockwise': (functools.partial(kernels.blockwise, block=16), here),
    'cudnn' if gpu else 'cudnn (jax.nn)': (stand_in, here if gpu else 'cuda:8.0'),
    'splash' if tpu else 'splash (interpreter)': (
      functools.partial(kernels.splash, interpret=not tpu),
      'tpu',
    ),
  }


def errors(compute, platform: str, mask: AttentionMask, dtype: str) -> str:
  """Return the errors of output and gradients as text; '-' if the mask is not supported."""
  rng = np.random.default_rng(0)
  shapes = [(B, T, H, K), (B, T, G, K), (B, T, G, K), (B, T, H, K)]
  *arrays, g = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
  call = Call(*arrays, mask, None, None, platform, assume_finite=True)
  name = getattr(compute, 'func', compute).__name__
  no_float16 = dtype == 'float16' and name == 'cudnn' and jax.default_backend() == 'cpu'
  if no_float16 or kernels.IMPLEMENTATIONS[name].why_not(call):
    return '-'

  @jax.jit
  def both_ways(arrays, g):
    replaced = lambda *x: compute(call._replace(**dict(zip('qkv', x, strict=True))))  # noqa: E731
    y, pullback = jax.vjp(replaced, *arrays)
    return y, *pullback(g)

  dense = np.asarray(mask.dense(T, T))
  dense = dense.reshape((1,) * (4 - dense.ndim) + dense.shape)
  wanted = reference_float64.multi_head_attention(
    *map(np.asarray, (*arrays, g)), mask=dense, bias=np.zeros((1, 1, 1, 1))
  )
  expected = (wanted.output, wanted.dq, wanted.dk, wanted.dv)
  each = [
    np.abs(np.asarray(x, np.float64) - want).max() / np.abs(want).max()
    for x, want in zip(both_ways(arrays, g), expected, strict=True)
  ]
  return f'{each[0]:.0e}, {max(each[1:]):.0e}'


def main(argv):
  del argv
  print('| kernel | mask | ' + ' | '.join(f'{d}: output, gradients' for d in DTYPES) + ' |')
  print('|---' * (2 + len(DTYPES)) + '|')
  for name, (compute, platform) in implementations().items():
    for about, mask in masks_by_name().items():
      found = [errors(compute, platform, mask, dtype) for dtype in DTYPES]
      print(f'| {name} | {about} | ' + ' | '.join(found) + ' |', flush=True)


if __name__ == '__main__':
  app.run(main)
