"""Keys and values of the tokens seen so far: an argument and a result of the decoder."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from transformer.functional import platforms
from transformer.modules.config import ModelConfig


class Cache(NamedTuple):
  """What self-attention remembers, in slots filled from the left.

  The W beams of a sentence share its slots, W of them a token, and each sees those of its own past
  only: to reorder beams is to change what they see, and no key or value is ever moved.

  Attributes:
    k, v: keys and values of every layer, C = B / W. Arrays of their own, because XLA's CPU backend
      would copy a layer out of a stack at every step: a tenth of its time.
    segments: 0 where a slot is empty, holds padding or another beam's token, so that it is never
      attended to.
    positions: of the token in each slot, counted without padding.
    length: slots used so far.
  """

  k: tuple[Float[Array, 'C G K S'], ...]
  v: tuple[Float[Array, 'C G S K'], ...]
  segments: Int[Array, 'B S']
  positions: Int[Array, 'B S']
  length: Int[Array, '']

  @classmethod
  def empty(
    cls, config: ModelConfig, depth: int, rows: int, capacity: int, beams: int = 1
  ) -> 'Cache':
    """A cache for `rows` sequences of at most `capacity` tokens each, padding included.

    Raises:
      ValueError: the rows are not whole sentences.
    """
    if rows % beams:
      raise ValueError(f'{rows} rows are not sentences of {beams} beams: pass a multiple')
    slots = capacity * beams
    v = jnp.zeros((rows // beams, config.groups, slots, config.key_size), dtype_of(config))
    zeros = jnp.zeros((rows, slots), jnp.int32)
    return cls((v.mT,) * depth, (v,) * depth, zeros, zeros, jnp.zeros((), jnp.int32))

  @property
  def beams(self) -> int:
    """W, how many rows share their slots."""
    return len(self.segments) // len(self.k[0])

  @property
  def capacity(self) -> int:
    """How many tokens a row has room for."""
    return self.segments.shape[1] // self.beams

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
    (B, T), W = segments.shape, self.beams
    known = None if isinstance(self.length, jax.core.Tracer) else int(self.length) // W
    if (known or 0) + T > self.capacity:
      raise ValueError(
        f'{T} more tokens do not fit a cache of {self.capacity} of which {known or 0} are used: '
        'make it with a larger capacity'
      )
    own = jnp.arange(B)[:, None] % W == jnp.arange(W)
    seen = jnp.where(own[:, :, None], segments[:, None], 0).reshape(B, W * T).astype(jnp.int32)
    at = (0, self.length)
    return self._replace(
      segments=jax.lax.dynamic_update_slice(self.segments, seen, at),
      positions=jax.lax.dynamic_update_slice(self.positions, jnp.tile(positions, (1, W)), at),
      length=self.length + W * T,
    )

  @property
  def overflows(self) -> Array:
    """Whether more was written than fits."""
    return self.length > self.segments.shape[1]

  def take(self, rows: Int[Array, ' R']) -> 'Cache':
    """The cache in which row r continues row rows[r]: a beam of the same sentence, if any share."""
    cache = self._replace(segments=self.segments[rows], positions=self.positions[rows])
    if self.beams > 1:
      return cache
    return cache._replace(k=tuple(k[rows] for k in self.k), v=tuple(v[rows] for v in self.v))


def dtype_of(config: ModelConfig) -> DTypeLike:
  """What keys and values are kept in between steps: the config's dtype, but float32 on a CPU.

  There XLA would widen a whole 16-bit cache and narrow it again to write one token. The numbers are
  the same: they were rounded when they were made.
  """
  return jnp.float32 if platforms.resolve(config.platform) == 'cpu' else config.dtype


class LayerCache(NamedTuple):
  """One layer's keys and values.

  Attributes:
    k, v: of the slots.
    start: the slot of the first new token.
    real: which new tokens are no padding; the others are written as 0, whatever they hold.
  """

  k: Float[Array, 'C G K S']
  v: Float[Array, 'C G S K']
  start: Int[Array, '']
  real: Bool[Array, 'B T']

  def write(self, k: Float[Array, 'B T G K'], v: Float[Array, 'B T G K']) -> 'LayerCache':
    """With those of the new tokens."""

    def slots(new):
      new = jnp.where(self.real[:, :, None, None], new, 0).astype(self.v.dtype)
      return new.reshape(len(self.v), -1, *new.shape[2:]).swapaxes(1, 2)

    return self._replace(
      k=jax.lax.dynamic_update_slice(self.k, slots(k).mT, (0, 0, 0, self.start)),
      v=jax.lax.dynamic_update_slice(self.v, slots(v), (0, 0, self.start, 0)),
    )
