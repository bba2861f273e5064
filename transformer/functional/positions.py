"""Positions of tokens: sinusoids, rotary embeddings, relative buckets, ALiBi.

Functions take positions, which in a padded or packed batch differ from column numbers; see
`from_segments`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def from_segments(segments: Int[Array, 'B T']) -> Int[Array, 'B T']:
  """Return the position of each token in its segment, counted from 0; padding (0) is skipped.

  A run of padding counts its own positions.

  >>> from_segments(jnp.array([[0, 1, 0, 1, 2, 2, 2, 0]]))
  Array([[0, 0, 0, 1, 0, 1, 2, 0]], dtype=int32)
  """
  index, real = jnp.arange(segments.shape[1])[None], segments != 0
  # the segment of the previous token, padding skipped; for padding, of the previous column
  last = jax.lax.cummax(jnp.where(real, index, -1), axis=1)
  last = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  before = jnp.where(last < 0, -1, jnp.take_along_axis(segments, jnp.maximum(last, 0), axis=1))
  column_before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  starts = segments != jnp.where(real, before, column_before)
  count = jnp.where(real, jnp.cumsum(real, axis=1) - 1, index)

  def since_start(which):
    return count - jax.lax.cummax(jnp.where(starts & which, count, 0), axis=1)

  return jnp.where(real, since_start(real), since_start(~real)).astype(jnp.int32)


def sinusoidal(
  positions: Int[Array, '*B T'], width: int, *, halves: bool = False, inclusive: bool = False
) -> Float[Array, '*B T D']:
  """Return sinusoids: PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(p / 10000^(2i/D)).

  Args:
    positions: p.
    width: D.
    halves: put all sines before all cosines, as tensor2tensor and Marian do; this is a permutation
      of D.
    inclusive: the last factor of the D / 2 is 10000 itself, as in tensor2tensor and fairseq: the
      exponent is 2i / (D - 2) instead of 2i / D.

  Raises:
    ValueError: width is odd.

  Vaswani et al. 2017, section 3.5.

  >>> sinusoidal(jnp.array([0]), 4)
  Array([[0., 1., 0., 1.]], dtype=float32)
  """
  if width % 2:
    raise ValueError(f'sinusoidal positions are pairs: width {width} must be even')
  frequencies = _frequencies(width, 10_000.0, width - 2 * inclusive)
  frequencies = frequencies.reshape((1,) * positions.ndim + (-1,))
  angle = positions[..., None].astype(jnp.float32) * frequencies
  axis = -2 if halves else -1
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=axis).reshape(*positions.shape, width)


def rotary(
  x: Float[Array, 'B T H K'],
  positions: Int[Array, 'B T'],
  base: float = 10_000.0,
  *,
  size: int = 0,
  scaling: Mapping[str, Any] | None = None,
) -> Float[Array, 'B T H K']:
  """Rotate the pairs (x[i], x[i + K/2]) by the angle p / base^(2i/K) (rotary embeddings).

  The product of a query and a key then depends on positions only through their distance. The halves
  are paired as in GPT-NeoX and Llama; Su et al. 2021 pair neighbors, which is a permutation of K.
  Computed in float32, returned in x's dtype.

  Args:
    x: queries or keys.
    positions: p.
    base: base of the wavelengths.
    size: rotate only the first `size` elements of each head, with K = size; 0 for all.
    scaling: for texts longer than the model was trained on: `kind`, a name of SCALINGS, and the
      arguments of that function.

  Raises:
    ValueError: size is odd or larger than K.

  Su et al. 2021, https://arxiv.org/abs/2104.09864, equation 34.

  >>> rotary(jnp.ones((1, 1, 1, 2)), jnp.array([[0]])).ravel()
  Array([1., 1.], dtype=float32)
  """
  size = size or x.shape[-1]
  if size % 2 or size > x.shape[-1]:
    raise ValueError(
      f'rotary positions rotate pairs: the size {size} must be even, and at most {x.shape[-1]}'
    )
  kwargs = dict(scaling or {})
  scale = SCALINGS[kwargs.pop('kind', 'none')]
  frequencies, stretch = scale(size, base, jnp.max(positions, axis=1) + 1, **kwargs)
  angle = positions[:, :, None, None].astype(jnp.float32) * frequencies[:, None, None]
  cos, sin = (f(angle) if stretch == 1 else f(angle) * stretch for f in (jnp.cos, jnp.sin))
  left, right, rest = jnp.split(x.astype(jnp.float32), [size // 2, size], axis=-1)
  rotated = [left * cos - right * sin, right * cos + left * sin, rest]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


Scaled = tuple[Float[Array | np.ndarray, '#B F'], float]


def no_scaling(size: int, base: float, lengths: Int[Array, ' B']) -> Scaled:
  """Return the frequencies base^(-2i/size), and 1.

  Every scaling takes the number of rotated elements, the base, and the length of each row. It
  returns the frequencies [B or 1, size / 2], and a factor for queries and keys.
  """
  return _frequencies(size, base)[None], 1.0


def linear_scaling(size: int, base: float, lengths: Int[Array, ' B'], *, factor: float) -> Scaled:
  """Return frequencies divided by `factor` (position interpolation), and 1.

  Chen et al. 2023, https://arxiv.org/abs/2306.15595, equation 4.

  >>> linear_scaling(4, 100.0, jnp.array([9]), factor=2.0)[0]
  array([[0.5 , 0.05]], dtype=float32)
  """
  return _frequencies(size, base)[None] / np.float32(factor), 1.0


def dynamic_scaling(
  size: int, base: float, lengths: Int[Array, ' B'], *, factor: float, original_length: int
) -> Scaled:
  """Return frequencies of a larger base in rows longer than the original length (NTK), and 1.

  The base is base (factor n / original - factor + 1)^(size / (size - 2)) for n tokens, as in
  `transformers`; Peng et al. 2023, https://arxiv.org/abs/2309.00071, section 3.3.
  """
  longer = jnp.maximum(lengths, original_length)[:, None].astype(jnp.float32)
  grown = base * (factor * longer / original_length - factor + 1) ** (size / (size - 2))
  return grown ** (-np.arange(0, size, 2, dtype=np.float32) / size)[None], 1.0


def llama3_scaling(
  size: int,
  base: float,
  lengths: Int[Array, ' B'],
  *,
  factor: float,
  original_length: int,
  low: float = 1.0,
  high: float = 4.0,
) -> Scaled:
  """Return frequencies with the low ones divided by `factor` (Llama 3), and 1.

  Frequencies below `low` turns in the original length are divided, those above `high` turns are
  kept, and between them the two are mixed linearly in the number of turns. Grattafiori et al. 2024,
  https://arxiv.org/abs/2407.21783, and its published code.
  """
  frequencies = _frequencies(size, base)[None]
  turns = original_length * frequencies / (2 * math.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return (frequencies * (kept + (1 - kept) / factor)).astype(np.float32), 1.0


def yarn_scaling(
  size: int,
  base: float,
  lengths: Int[Array, ' B'],
  *,
  factor: float,
  original_length: int,
  fast: float = 32.0,
  slow: float = 1.0,
  whole: bool = True,
  stretch: float | None = None,
) -> Scaled:
  """Return frequencies with the low ones divided by `factor` (YaRN), and the factor `stretch`.

  Frequencies below `slow` turns in the original length are divided, those above `fast` turns are
  kept, and between them the two are mixed linearly in the index of the frequency. Peng et al. 2023,
  https://arxiv.org/abs/2309.00071, definitions 2 and 3.

  Args:
    size, base, lengths, factor, original_length: as in the other scalings.
    fast, slow: numbers of turns; beta and alpha of the paper.
    whole: round the ends of the ramp to whole indices, as in the published code.
    stretch: factor of queries and keys; None for 0.1 log(factor) + 1.
  """
  frequencies = _frequencies(size, base)[None]
  first, last = (
    size * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(base))
    for turns in (fast, slow)
  )
  if whole:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  ramp = (np.arange(size // 2) - first) / (last - first or 0.001)
  kept = 1 - np.clip(ramp, 0, 1)
  if stretch is None:
    stretch = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
  return (frequencies * (kept + (1 - kept) / factor)).astype(np.float32), stretch


SCALINGS: dict[str, Callable[..., Scaled]] = {
  'none': no_scaling,
  'linear': linear_scaling,
  'dynamic': dynamic_scaling,
  'llama3': llama3_scaling,
  'yarn': yarn_scaling,
}


def relative_buckets(
  targets: Int[Array, 'B T'],
  sources: Int[Array, 'B S'],
  *,
  causal: bool,
  buckets: int = 32,
  max_distance: int = 128,
) -> Int[Array, 'B T S']:
  """Return the bucket of each distance s - t: near distances have their own, far ones share.

  Args:
    targets, sources: positions.
    causal: all buckets are for the past; otherwise half of them for each direction.
    buckets: number of buckets; half of those of a direction are exact, the others logarithmic.
    max_distance: all distances from here on are in the last bucket.

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


def _frequencies(width: int, base: float, divisor: int = 0) -> np.ndarray:
  return (base ** (-np.arange(0, width, 2) / (divisor or width))).astype(np.float32)
