"""Positions of tokens, and the functions of them that schemes of positions use.

Every function takes the positions themselves, not the columns of a padded or packed batch.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def from_segments(segments: Int[Array, 'B T']) -> Int[Array, 'B T']:
  """Return positions 0, 1, 2, ... from the start of every segment; padding (0) is counted, too.

  >>> from_segments(jnp.array([[0, 1, 1, 2, 2, 2, 0]]))
  Array([[0, 0, 1, 0, 1, 2, 0]], dtype=int32)
  """
  index = jnp.arange(segments.shape[1])[None]
  previous = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  start = jnp.where(segments != previous, index, 0)
  return (index - jax.lax.cummax(start, axis=1)).astype(jnp.int32)


def sinusoidal(
  positions: Int[Array, '*B T'], width: int, *, halves: bool = False
) -> Float[Array, '*B T D']:
  """Return sinusoids: PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(p / 10000^(2i/D)).

  Args:
    positions: p.
    width: D.
    halves: put all sines before all cosines, as tensor2tensor and Marian do: the same up to a
      permutation of D.

  Vaswani et al. 2017, section 3.5.

  >>> sinusoidal(jnp.array([0]), 4)
  Array([[0., 1., 0., 1.]], dtype=float32)
  """
  if width % 2:
    raise ValueError(f'sinusoidal positions are pairs: width {width} must be even')
  frequencies = _frequencies(width, 10_000.0).reshape((1,) * positions.ndim + (-1,))
  angle = positions[..., None] * frequencies
  axis = -2 if halves else -1
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=axis).reshape(*positions.shape, width)


def rotary(
  x: Float[Array, 'B T H K'], positions: Int[Array, 'B T'], base: float = 10_000.0
) -> Float[Array, 'B T H K']:
  """Rotate (x[i], x[i + K/2]) by p / base^(2i/K), so that q k depends on the distance only.

  The halves are paired as in GPT-NeoX and Llama (Su et al. 2021 pair neighbours, which is the same
  up to a permutation of K). Computed in float32, returned in x's dtype.

  Su et al. 2021, https://arxiv.org/abs/2104.09864, equation 34.

  >>> rotary(jnp.ones((1, 1, 1, 2)), jnp.array([[0]])).ravel()
  Array([1., 1.], dtype=float32)
  """
  if x.shape[-1] % 2:
    raise ValueError(f'rotary positions rotate pairs: head size {x.shape[-1]} must be even')
  angle = positions[:, :, None, None] * _frequencies(x.shape[-1], base)[None, None, None]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
  return rotated.astype(x.dtype)


def relative_buckets(
  targets: Int[Array, 'B T'],
  sources: Int[Array, 'B S'],
  *,
  causal: bool,
  buckets: int = 32,
  max_distance: int = 128,
) -> Int[Array, 'B T S']:
  """Return the bucket of each distance s - t: exact if near, logarithmic if far.

  Args:
    targets, sources: positions.
    causal: all buckets are for the past; otherwise half of them for each direction.
    buckets: their number.
    max_distance: all distances from here on share the last bucket.

  Raffel et al. 2020, section 2.1.

  >>> at = jnp.arange(4)[None]
  >>> relative_buckets(at, at, causal=True, buckets=4, max_distance=8)[0, 3]
  Array([2, 2, 1, 0], dtype=int32)
  """
  distance = sources[:, None, :] - targets[:, :, None]
  if causal:
    first, distance = jnp.zeros_like(distance), jnp.maximum(-distance, 0)
  else:
    buckets //= 2
    first, distance = jnp.where(distance > 0, buckets, 0), jnp.abs(distance)
  exact = buckets // 2
  ratio = jnp.log(jnp.maximum(distance, exact).astype(jnp.float32) / exact)
  far = exact + (ratio / math.log(max_distance / exact) * (buckets - exact)).astype(jnp.int32)
  return first + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


def alibi_bias(
  targets: Int[Array, 'B T'], sources: Int[Array, 'B S'], heads: int
) -> Float[Array, 'B H T S']:
  """Return the ALiBi bias -slope |t - s|, with slope 2^(-8h/H) for heads h = 1 ... H.

  If the number of heads is not a power of two, the slopes of the next smaller power are followed
  by every other slope of the next larger one. Press et al. 2022, https://arxiv.org/abs/2108.12409.

  >>> alibi_bias(jnp.array([[1]]), jnp.array([[0, 1]]), 2).ravel()
  Array([-0.0625    , -0.        , -0.00390625, -0.        ], dtype=float32)
  """
  power = 2 ** int(math.log2(heads))
  slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
  slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)][: heads - power]
  distance = jnp.abs(targets[:, :, None] - sources[:, None, :])
  slope = jnp.asarray(slopes, jnp.float32)[None, :, None, None]
  return -slope * distance[:, None].astype(jnp.float32)


def _frequencies(width: int, base: float) -> np.ndarray:
  return (base ** (-np.arange(0, width, 2) / width)).astype(np.float32)
