"""Keys and values of the tokens seen so far: an argument and a result of the decoder."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from transformer.modules.config import ModelConfig


class Cache(NamedTuple):
  """What self-attention remembers, for every layer, in slots filled from the left.

  Attributes:
    k, v: keys and values.
    segments: 0 where a slot is empty or holds padding, so that it is never attended to.
    positions: of the token in each slot, counted without padding.
    length: slots used so far.
  """

  k: Float[Array, 'L B G S K']
  v: Float[Array, 'L B G S K']
  segments: Int[Array, 'B S']
  positions: Int[Array, 'B S']
  length: Int[Array, '']

  @classmethod
  def empty(cls, config: ModelConfig, depth: int, rows: int, capacity: int) -> 'Cache':
    """A cache for `rows` sequences of at most `capacity` tokens each, padding included."""
    shape = (depth, rows, config.groups, capacity, config.key_size)
    zeros = jnp.zeros((rows, capacity), jnp.int32)
    k, v = jnp.zeros(shape, dtype_of(config)), jnp.zeros(shape, dtype_of(config))
    return cls(k, v, zeros, zeros, jnp.zeros((), jnp.int32))

  @property
  def capacity(self) -> int:
    """S, how many slots there are."""
    return self.segments.shape[1]

  def next_positions(self, segments: Int[Array, 'B T']) -> Int[Array, 'B T']:
    """The positions of tokens that come next: padding does not count, on whichever side it is."""
    seen = jnp.sum(self.segments != 0, axis=1, keepdims=True)
    return (seen + jnp.maximum(jnp.cumsum(segments != 0, axis=1) - 1, 0)).astype(jnp.int32)

  def extend(self, segments: Int[Array, 'B T'], positions: Int[Array, 'B T']) -> 'Cache':
    """Takes the next T slots for these tokens; their keys and values follow layer by layer.

    Raises:
      ValueError: they do not fit. Where the length is traced (inside a compiled loop) that cannot
        be known, and `overflows` tells; the decoder then answers NaN, never a wrong token.
    """
    T = segments.shape[1]
    known = None if isinstance(self.length, jax.core.Tracer) else int(self.length)
    if (known or 0) + T > self.capacity:
      raise ValueError(
        f'{T} more tokens do not fit a cache of {self.capacity} of which {known or 0} are used: '
        'make it with a larger capacity'
      )
    at = (0, self.length)
    return self._replace(
      segments=jax.lax.dynamic_update_slice(self.segments, segments.astype(jnp.int32), at),
      positions=jax.lax.dynamic_update_slice(self.positions, positions.astype(jnp.int32), at),
      length=self.length + T,
    )

  @property
  def overflows(self) -> Array:
    """Whether more was written than fits."""
    return self.length > self.capacity

  def take(self, rows: Int[Array, ' R']) -> 'Cache':
    """The cache of these rows, in this order: what beam search does after every step."""
    return self._replace(
      k=self.k[:, rows],
      v=self.v[:, rows],
      segments=self.segments[rows],
      positions=self.positions[rows],
    )


def dtype_of(config: ModelConfig) -> DTypeLike:
  """What keys and values are kept in between steps: the config's dtype, but float32 on a CPU.

  There XLA would widen a whole 16-bit cache and narrow it again to write one token. The numbers are
  the same: they were rounded when they were made.
  """
  return jnp.float32 if jax.default_backend() == 'cpu' else config.dtype


class LayerCache(NamedTuple):
  """All layers' keys and values as one layer sees them, so that it can write its own in place.

  Attributes:
    k, v: of all layers.
    layer: this one.
    start: the slot of the first new token.
    real: which new tokens are no padding; the others are written as 0, whatever they hold.
  """

  k: Float[Array, 'L B G S K']
  v: Float[Array, 'L B G S K']
  layer: Int[Array, '']
  start: Int[Array, '']
  real: Bool[Array, 'B T']

  def write(self, k: Float[Array, 'B T G K'], v: Float[Array, 'B T G K']):
    """This layer's keys and values with the new ones added: (cache, [B, S, G, K], [B, S, G, K])."""
    at = (self.layer, 0, 0, self.start, 0)
    real = self.real[:, None, :, None]
    all_k, all_v = (
      jax.lax.dynamic_update_slice(
        old, jnp.where(real, new.swapaxes(1, 2), 0)[None].astype(old.dtype), at
      )
      for old, new in ((self.k, k), (self.v, v))
    )
    layer = functools.partial(jax.lax.dynamic_index_in_dim, index=self.layer, keepdims=False)
    k, v = (layer(x).swapaxes(1, 2) for x in (all_k, all_v))
    return self._replace(k=all_k, v=all_v), k, v
