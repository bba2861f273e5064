"""Attention masks that keep their structure: causal, window, segments.

The functions of this file build an `AttentionMask`, `&` combines two, and `dense` computes the
boolean array that `attention` takes (True = may attend). Kernels read the structure instead of the
array, so that they can skip the parts that it rules out.

>>> print(describe(causal() & sliding_window(2), 4))
  0123
0 █···
1 ██··
2 ·██·
3 ··██
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

Size = Any  # the size of an axis: an int, or a symbolic size of `jax.export`


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('segments', 'positions', 'explicit', 'array'),
  meta_fields=('causal', 'window', 'prefix'),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMask:
  """A mask as conditions; a target may attend to the sources that every condition allows.

  A pytree. The first three attributes are static, the others are arrays.

  Attributes:
    causal: a target attends to no later position.
    window: n: only positions fewer than n away; (left, right): only positions up to `left` before
      and up to `right` after the target.
    prefix: with `causal`, every target may attend to the first `prefix` positions.
    segments: (of the targets [B, T], of the sources [B, S]); a target attends only to sources of
      its own segment. No target attends to segment 0, which is padding. If the first is None, a
      target may attend to every source that is not padding.
    positions: (of the targets [B, T], of the sources [B, S]), for the first three attributes. None:
      positions are column numbers, and the last target is at the last source, as when earlier
      positions are in a cache.
    explicit: any other condition, a boolean array broadcast to [B, H, T, S].
    array: the dense array, if it is already computed; see `with_array`.
  """

  causal: bool = False
  window: int | tuple[int, int] | None = None
  prefix: int = 0
  segments: tuple[Any, Any] | None = None
  positions: tuple[Any, Any] | None = None
  explicit: Any = None
  array: Any = None

  @property
  def reach(self) -> tuple[int, int] | None:
    """The window as (left, right): positions before and after the target; None without a window."""
    return (self.window - 1,) * 2 if isinstance(self.window, int) else self.window

  @property
  def ordered(self) -> bool:
    """Whether a condition depends on the order of positions."""
    return self.causal or self.window is not None

  @property
  def is_static(self) -> bool:
    """Whether the mask depends on no array, so that it is known at compile time."""
    return self.segments is None and self.positions is None and self.explicit is None

  def __and__(self, other: 'AttentionMask') -> 'AttentionMask':
    """Return the mask that allows what both masks allow.

    Raises:
      ValueError: the masks have different positions.
    """
    positions = self.positions if self.ordered or other.positions is None else other.positions
    for mask in (self, other):
      if mask.ordered and mask.positions is not positions:
        raise ValueError(
          'the two masks have different positions: give both the same arrays, or combine their '
          'dense arrays, dense(T, S)'
        )
    reaches = [mask.reach for mask in (self, other) if mask.reach is not None]
    explicit = [mask.explicit for mask in (self, other) if mask.explicit is not None]
    segments, rest = _both(self.segments, other.segments)
    return AttentionMask(
      causal=self.causal or other.causal,
      window=(min(r[0] for r in reaches), min(r[1] for r in reaches)) if reaches else None,
      prefix=min((mask.prefix for mask in (self, other) if mask.causal), default=0),
      segments=segments,
      positions=positions,
      explicit=functools.reduce(jnp.logical_and, explicit + rest) if explicit + rest else None,
    )

  def dense(self, targets: Size, sources: Size | None = None) -> Bool[Array, '... T S']:
    """Return the mask as an array: [T, S], or [B, H, T, S] if it differs between examples or heads.

    B and H may be 1.

    Args:
      targets: T.
      sources: S; T if None.

    >>> causal().dense(2)
    Array([[ True, False],
           [ True,  True]], dtype=bool)
    """
    if self.array is not None:
      return self.array
    T, S = targets, targets if sources is None else sources
    allowed = jnp.ones((T, S), bool)
    if self.ordered:
      q, k = self.positions or (jnp.arange(S - T, S), jnp.arange(S))
      allowed = self._order(q[..., :, None], k[..., None, :])
      allowed = allowed[:, None] if self.positions else allowed
    others = [] if self.segments is None else [_same_segment(*self.segments)]
    others += [] if self.explicit is None else [self.explicit]
    for other in others:
      allowed = (allowed if allowed.ndim == 4 else allowed[None, None]) & other
    return allowed

  def _order(self, q, k):
    """Return which positions k the conditions on the order allow to positions q."""
    allowed = True
    if self.causal:
      allowed = (k <= q) | (k < self.prefix) if self.prefix else k <= q
    if (reach := self.reach) is not None:
      allowed &= (k >= q - reach[0]) & (k <= q + reach[1])
    return allowed

  def with_array(self, targets: Size, sources: Size | None = None) -> 'AttentionMask':
    """Return the mask with its dense array, computed once for all layers; sizes as in `dense`.

    The array is computed through a logarithm, because XLA does not repeat those: otherwise it would
    compute the array again in every layer and head, and a training step of a GPT would take 1.3
    times as long on a CPU. XLA removes the array if no kernel reads it.
    """
    array = jnp.log(self.dense(targets, sources).astype(jnp.float32)) == 0
    return dataclasses.replace(self, array=array)


def causal(*, positions: tuple[Any, Any] | None = None) -> AttentionMask:
  """Return the causal mask: a target may attend to sources up to its own position.

  With more sources than targets the last target is at the last source, as when the first positions
  are already in a cache.

  Args:
    positions: of targets [B, T] and sources [B, S], if they are not the column numbers, as for
      tokens in a cache.

  >>> print(describe(causal(), 2, 4))
    0123
  0 ███·
  1 ████
  """
  return AttentionMask(causal=True, positions=positions)


def prefix(length: int) -> AttentionMask:
  """Return a causal mask where every target may attend to the first `length` positions (prefix LM).

  Raffel et al. 2020, figure 4.

  >>> print(describe(prefix(2), 4))
    0123
  0 ██··
  1 ██··
  2 ███·
  3 ████
  """
  return AttentionMask(causal=True, prefix=length)


def sliding_window(
  size: int | tuple[int, int], *, positions: tuple[Any, Any] | None = None
) -> AttentionMask:
  """Return a mask that allows near positions; with `& causal()` only near past ones.

  Args:
    size: n for positions fewer than n away, or (left, right) for up to so many on each side.
    positions: as in `causal`.

  Raises:
    ValueError: the window is empty.

  Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, figure 2b.
  """
  if (size < 1) if isinstance(size, int) else min(size) < 0:
    raise ValueError(f'a sliding window of {size} is empty: size must be >= 1')
  return AttentionMask(window=size, positions=positions)


def padding(tokens: Int[Array, 'B S'], pad: int = 0) -> AttentionMask:
  """Return a mask in which every target may attend to every token that is not padding.

  >>> print(describe(padding(jnp.array([[5, 3, 0]])), 1, 3))
    012
  0 ██·
  """
  return AttentionMask(segments=(None, (tokens != pad).astype(jnp.int32)))


def segments(targets: Int[Array, 'B T'], sources: Int[Array, 'B S']) -> AttentionMask:
  """Return a mask that allows the sources of the target's own segment.

  Examples packed into a row are segments 1, 2, ...; the example of an unpacked row is segment 1.
  Segment 0 is padding: it attends to nothing, and nothing attends to it.

  >>> row = jnp.array([[1, 1, 2, 0]])
  >>> print(describe(segments(row, row), 4))
    0123
  0 ██··
  1 ██··
  2 ··█·
  3 ····
  """
  return AttentionMask(segments=(targets, sources))


def describe(
  mask: AttentionMask | Bool[Array | np.ndarray, '*B T S'],
  targets: int | None = None,
  sources: int | None = None,
) -> str:
  """Return a mask drawn as text, one row for each target: █ may attend, · may not.

  Of a mask that differs between examples or heads the first is drawn.

  Args:
    mask: a mask or its dense array.
    targets, sources: T and S, required for an `AttentionMask`; S = T if `sources` is None.

  Raises:
    TypeError: an `AttentionMask` without `targets`, or an array that is not boolean.
  """
  if isinstance(mask, AttentionMask):
    if targets is None:
      raise TypeError('an AttentionMask has no size: call describe(mask, targets, sources)')
    mask = mask.dense(targets, sources)
  picture = np.asarray(mask)
  if picture.dtype != np.bool_ or picture.ndim < 2:
    raise TypeError(
      f'a mask is a boolean array [..., T, S]; this is {picture.dtype}{picture.shape}'
    )
  picture = picture.reshape(-1, *picture.shape[-2:])[0]
  margin = len(str(len(picture) - 1))
  header = ' ' * (margin + 1) + ''.join(str(s % 10) for s in range(picture.shape[1]))
  rows = (f'{t:>{margin}} ' + ''.join('·█'[int(x)] for x in row) for t, row in enumerate(picture))
  return '\n'.join([header, *rows])


def _same_segment(targets, sources):
  real = (sources != 0)[:, None, None, :]
  if targets is None:
    return real
  return (targets[:, None, :, None] == sources[:, None, None, :]) & real


def _both(a, b):
  """Return (the segments of two masks combined, [the rest of the condition, as an array])."""
  if a is None or b is None or a is b:
    return b if a is None else a, []
  if a[0] is None or b[0] is None:  # one mask is only of padding, which hides sources
    targets = b[0] if a[0] is None else a[0]
    kept, other = (b[1], a[1]) if a[0] is None else (a[1], b[1])
    return (targets, jnp.where(other != 0, kept, 0)), []
  return a, [_same_segment(*b)]
