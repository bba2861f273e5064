"""Random augmentation of spectrograms: masks over time and frequency (SpecAugment), and tempo.

Park et al. 2019, https://arxiv.org/abs/1904.08779.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def masks(
  key: Key[Array, ''], lengths: Int[Array, ' B'], size: int, *, count: int, width: Int[Array, ' B']
) -> Bool[Array, 'B size']:
  """Return masks that are False in `count` random intervals of each row, which may overlap.

  The size of an interval, from 0 to `width`, and then its start are uniform (Park et al. 2019,
  section 2).

  Args:
    key: PRNG key.
    lengths: length of each row; intervals lie within it.
    size: padded length of the rows.
    count: number of intervals in each row.
    width: largest size of an interval in each row, at most its length.

  >>> masks(jax.random.key(0), jnp.array([6]), 6, count=1, width=jnp.array([6])).astype(int)
  Array([[1, 1, 0, 1, 1, 1]], dtype=int32)
  """
  size_key, start_key = jax.random.split(key)
  shape, width, lengths = (len(lengths), count), width[:, None], lengths[:, None]
  sizes = jax.random.randint(size_key, shape, 0, width + 1)
  starts = jax.random.randint(start_key, shape, 0, lengths - sizes + 1)
  positions = jnp.arange(size)[None, None]
  hidden = (positions >= starts[..., None]) & (positions < (starts + sizes)[..., None])
  return ~jnp.any(hidden, axis=1)


def mask_frames(
  key: Key[Array, ''],
  frames: Float[Array, 'B S X'],
  segments: Int[Array, 'B S'],
  *,
  time_masks: int,
  time_width: int,
  time_share: float,
  frequency_masks: int,
  frequency_width: int,
) -> Float[Array, 'B S X']:
  """Set random intervals of frames and of frequency bands to 0 (SpecAugment).

  Args:
    key: PRNG key.
    frames: normalized to mean 0; X bands, padding last.
    segments: 0 for padding.
    time_masks: m_T, number of intervals of frames.
    time_width: T, largest number of frames in an interval,
    time_share: p, and at most this share of the row's frames.
    frequency_masks: m_F, number of intervals of bands.
    frequency_width: F, largest number of bands in an interval.
  """
  time_key, frequency_key = jax.random.split(key)
  (B, S, X), lengths = frames.shape, jnp.sum(segments != 0, axis=1)
  width = jnp.minimum(time_width, (time_share * lengths.astype(float)).astype(int))
  times = masks(time_key, lengths, S, count=time_masks, width=width)
  width = jnp.full(B, min(frequency_width, X))
  bands = masks(frequency_key, jnp.full(B, X), X, count=frequency_masks, width=width)
  return frames * times[..., None].astype(frames.dtype) * bands[:, None].astype(frames.dtype)


def change_tempo(
  key: Key[Array, ''], frames: Float[Array, 'B S X'], segments: Int[Array, 'B S'], *, most: float
) -> tuple[Float[Array, 'B S X'], Int[Array, 'B S']]:
  """Change the tempo of each row by a factor from 1 - most to 1 + most.

  y_t = x_{t / factor}, interpolated linearly; the factor is reduced where the row would not fit in
  S. Similar to the speed perturbation of Ko et al. 2015
  (https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html), which also changes pitch.

  Args:
    key: PRNG key.
    frames: padding last.
    segments: 1, or 0 for padding.
    most: the largest change; 0 changes nothing.

  Returns:
    The frames and their segments.
  """
  B, S, _ = frames.shape
  factor = jax.random.uniform(key, (B,), minval=1 - most, maxval=1 + most)
  lengths, columns = (
    x.astype(factor.dtype) for x in (jnp.sum(segments != 0, axis=1), jnp.arange(S)[None])
  )
  new = jnp.minimum(jnp.round(lengths * factor), S)
  # the last frame stays the last one
  step = jnp.maximum(lengths - 1, 0) / jnp.maximum(new - 1, 1)
  position = jnp.minimum(columns * step[:, None], jnp.maximum(lengths - 1, 0)[:, None])
  before = jnp.floor(position).astype(int)
  after = jnp.minimum(before + 1, S - 1)
  fraction = (position - before.astype(position.dtype))[..., None]
  take = jax.vmap(lambda x, index: x[index])
  real = columns < new[:, None]
  changed = (1 - fraction) * take(frames, before) + fraction * take(frames, after)
  return jnp.where(real[..., None], changed, 0), real.astype(segments.dtype)
