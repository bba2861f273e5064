"""Random augmentation of sounds: masks over time and frequency (SpecAugment), and tempo.

Park et al. 2019, https://arxiv.org/abs/1904.08779. Pure functions of a key.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def masks(
  key: Key[Array, ''], lengths: Int[Array, ' B'], size: int, *, count: int, width: Int[Array, ' B']
) -> Bool[Array, 'B size']:
  """Return what to keep of each row: all but `count` intervals, which may overlap.

  Park et al. 2019, section 2: the size of an interval, 0 to `width`, and then its start are
  uniform.

  Args:
    key: for the random choice.
    lengths: of the rows; intervals lie within.
    size: of the result.
    count: of intervals in each row.
    width: the longest interval of each row, at most its length.

  >>> masks(jax.random.key(0), jnp.array([6]), 6, count=1, width=jnp.array([6])).astype(int)
  Array([[1, 1, 0, 1, 1, 1]], dtype=int32)
  """
  size_key, start_key = jax.random.split(key)
  shape, width, lengths = (len(lengths), count), width[:, None], lengths[:, None]
  sizes = jax.random.randint(size_key, shape, 0, width + 1)
  starts = jax.random.randint(start_key, shape, 0, lengths - sizes + 1)
  at = jnp.arange(size)
  hidden = (at >= starts[..., None]) & (at < (starts + sizes)[..., None])
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
  """Set intervals of time and of neighboring bands to 0, the mean of the frames.

  Args:
    key: for the random choice.
    frames: normalized; the first of S are real.
    segments: 0 is padding.
    time_masks, time_width: m_T intervals of 0 to T frames,
    time_share: each at most this share p of the sound.
    frequency_masks, frequency_width: m_F intervals of 0 to F bands.
  """
  time_key, frequency_key = jax.random.split(key)
  (B, S, X), lengths = frames.shape, jnp.sum(segments != 0, axis=1)
  width = jnp.minimum(time_width, (time_share * lengths).astype(int))
  times = masks(time_key, lengths, S, count=time_masks, width=width)
  width = jnp.full(B, min(frequency_width, X))
  bands = masks(frequency_key, jnp.full(B, X), X, count=frequency_masks, width=width)
  return frames * times[..., None] * bands[:, None]


def change_tempo(
  key: Key[Array, ''], frames: Float[Array, 'B S X'], segments: Int[Array, 'B S'], *, most: float
) -> tuple[Float[Array, 'B S X'], Int[Array, 'B S']]:
  """Change the tempo of each row by a factor from 1 - most to 1 + most.

  y_t = x_{t / factor}, interpolated linearly. Rows are never longer than S: their factor is smaller
  if they would be. After the speed perturbation of Ko et al. 2015
  (https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html), which also changes pitch.

  Args:
    key: for the random choice.
    frames: the first of S are real.
    segments: 0 is padding, of 0 and 1.
    most: 0 changes nothing.

  Returns:
    The frames and their segments.
  """
  B, S, _ = frames.shape
  lengths = jnp.sum(segments != 0, axis=1)
  factor = jax.random.uniform(key, (B,), minval=1 - most, maxval=1 + most)
  new = jnp.minimum(jnp.round(lengths * factor), S)
  # the last frame stays the last one
  step = jnp.maximum(lengths - 1, 0) / jnp.maximum(new - 1, 1)
  place = jnp.minimum(jnp.arange(S) * step[:, None], jnp.maximum(lengths - 1, 0)[:, None])
  before = jnp.floor(place).astype(int)
  after = jnp.minimum(before + 1, S - 1)
  part = (place - before)[..., None]
  take = jax.vmap(lambda x, at: x[at])
  real = jnp.arange(S) < new[:, None]
  changed = (1 - part) * take(frames, before) + part * take(frames, after)
  return jnp.where(real[..., None], changed, 0), real.astype(segments.dtype)
