"""The cache of keys and values of earlier tokens, an argument and a result of a decoder."""

import functools
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from transformer.functional import platforms
from transformer.functional.masks import Size
from transformer.modules.config import ModelConfig


class Cache(NamedTuple):
  """Keys and values of self-attention, in slots filled from the left.

  The W beams of a sentence share its slots, of which each token position takes W; each beam attends
  only to the slots of its own past. Reordering beams therefore changes `segments` and `positions`
  and moves no key or value.

  Attributes:
    k, v: keys and values of every layer, C = B / W. One array for each layer, because XLA's CPU
      backend would copy a layer out of a stacked array at every step, a tenth of its time.
    segments: 0 where a beam does not attend to a slot: it is empty, padding or another beam's.
    positions: of the token in each slot, counted without padding.
    length: number of used slots.
  """

  k: tuple[Float[Array, 'C G K S'], ...]
  v: tuple[Float[Array, 'C G S K'], ...]
  segments: Int[Array, 'B S']
  positions: Int[Array, 'B S']
  length: Int[Array, '']

  @classmethod
  def empty(cls, config: ModelConfig, rows: Size, capacity: Size, beams: int = 1) -> 'Cache':
    """Return an empty cache for `rows` sequences of at most `capacity` tokens, padding included.

    Raises:
      ValueError: beams does not divide rows.
    """
    if rows % beams:
      raise ValueError(
        f'{rows} rows are not a multiple of {beams} beams: pass rows = texts * beams'
      )
    slots = capacity * beams
    v = jnp.zeros((rows // beams, config.groups, slots, config.key_size), dtype_of(config))
    zeros = jnp.zeros((rows, slots), jnp.int32)
    return cls((v.mT,) * config.depth, (v,) * config.depth, zeros, zeros, jnp.zeros((), jnp.int32))

  @property
  def beams(self) -> Size:
    """W, the number of rows that share slots."""
    return self.segments.shape[0] // self.k[0].shape[0]

  @property
  def capacity(self) -> Size:
    """The number of tokens for which a row has room."""
    return self.segments.shape[1] // self.beams

  def next_positions(self, segments: Int[Array, 'B T']) -> Int[Array, 'B T']:
    """Return the positions of the next tokens, counted without padding."""
    count = jnp.sum(self.segments != 0, axis=1, keepdims=True)
    return (count + jnp.maximum(jnp.cumsum(segments != 0, axis=1) - 1, 0)).astype(jnp.int32)

  def extend(self, segments: Int[Array, 'B T'], positions: Int[Array, 'B T']) -> 'Cache':
    """Return the cache with slots for T new tokens; the layers write their keys and values.

    Raises:
      ValueError: they do not fit. In a compiled loop, where the length is traced, `overflows` is
        True instead, and the decoder returns NaN.
    """
    (B, T), W = segments.shape, self.beams
    used = 0 if isinstance(self.length, jax.core.Tracer) else int(self.length) // W
    if isinstance(self.capacity, int) and used + T > self.capacity:
      raise ValueError(
        f'{T} more tokens do not fit a cache of {self.capacity} of which {used} are used: '
        'make it with a larger capacity'
      )
    own = jnp.arange(B)[:, None] % W == jnp.arange(W)[None]
    own_segments = jnp.where(own[:, :, None], segments[:, None], 0)
    own_segments = own_segments.reshape(B, W * T).astype(jnp.int32)
    positions = jnp.tile(positions, (1, W)).astype(jnp.int32)
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.length, axis=1)
    return self._replace(
      segments=write(self.segments, own_segments),
      positions=write(self.positions, positions),
      length=self.length + W * T,
    )

  def keep(self, kept: Bool[Array, 'B T']) -> 'Cache':
    """Return the cache with only some of the last T tokens, as in speculative decoding.

    Slots after the last one that any row keeps are free again; other removed ones stay empty.

    Args:
      kept: which tokens to keep; those of a row must come before those it removes.
    """
    start = self.length - kept.shape[1]
    last = jax.lax.dynamic_slice_in_dim(self.segments, start, kept.shape[1], axis=1)
    segments = jax.lax.dynamic_update_slice_in_dim(
      self.segments, jnp.where(kept, last, 0), start, axis=1
    )
    return self._replace(segments=segments, length=start + jnp.max(jnp.sum(kept, axis=1)))

  @property
  def overflows(self) -> Array:
    """Whether more tokens were added than there are slots."""
    return self.length > self.segments.shape[1]

  def take(self, rows: Int[Array, ' R']) -> 'Cache':
    """Return the cache with old row rows[r] as new row r; beams stay with their sentence."""
    cache = self._replace(segments=self.segments[rows], positions=self.positions[rows])
    if self.beams > 1:
      return cache
    return cache._replace(k=tuple(k[rows] for k in self.k), v=tuple(v[rows] for v in self.v))


jax.export.register_namedtuple_serialization(Cache, serialized_name='transformer.Cache')


def dtype_of(config: ModelConfig) -> DTypeLike:
  """Return the dtype of cached keys and values: float32 on a CPU, elsewhere the config's.

  On a CPU XLA would convert a whole 16-bit cache to float32 and back to write one token. The values
  are the same, because they are rounded to the config's dtype first.
  """
  return jnp.float32 if platforms.resolve(config.platform) == 'cpu' else config.dtype


class LayerCache(NamedTuple):
  """The keys and values of one layer.

  Attributes:
    k, v: keys and values of all slots.
    start: the slot of the first new token.
    real: which new tokens are not padding; those of padding are written as 0.
  """

  k: Float[Array, 'C G K S']
  v: Float[Array, 'C G S K']
  start: Int[Array, '']
  real: Bool[Array, 'B T']

  def write(self, k: Float[Array, 'B T G K'], v: Float[Array, 'B T G K']) -> 'LayerCache':
    """Return the cache with the keys and values of the new tokens."""

    def slots(new):
      new = jnp.where(self.real[:, :, None, None], new, 0).astype(self.v.dtype)
      return new.reshape(self.v.shape[0], -1, *new.shape[2:]).swapaxes(1, 2)

    return self._replace(
      k=jax.lax.dynamic_update_slice_in_dim(self.k, slots(k).mT, self.start, axis=3),
      v=jax.lax.dynamic_update_slice_in_dim(self.v, slots(v), self.start, axis=2),
    )
