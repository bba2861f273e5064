"""Who may attend to whom: boolean masks, True = may attend, composed with `&`.

A mask broadcasts to [T, S], or to [B, H, T, S] once it depends on the example.

>>> print(describe(causal(4) & sliding_window(4, size=2)))
  0123
0 █···
1 ██··
2 ·██·
3 ··██
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


def causal(targets: int, sources: int | None = None) -> Bool[Array, 'T S']:
  """t may attend to s <= t: no position sees its future.

  With more sources than targets the last target is the last source, as when the first
  `sources - targets` positions are already in a cache (aligned at the lower right corner).

  >>> print(describe(causal(2, 4)))
    0123
  0 ███·
  1 ████
  """
  sources = targets if sources is None else sources
  return jnp.arange(sources) <= jnp.arange(sources - targets, sources)[:, None]


def prefix(length: int, prefix_length: int) -> Bool[Array, 'T T']:
  """Causal, except that the first `prefix_length` positions all see each other (prefix LM).

  Raffel et al. 2020, figure 4.

  >>> print(describe(prefix(4, 2)))
    0123
  0 ██··
  1 ██··
  2 ███·
  3 ████
  """
  return causal(length) | (jnp.arange(length) < prefix_length)


def sliding_window(targets: int, sources: int | None = None, *, size: int) -> Bool[Array, 'T S']:
  """t may attend to positions fewer than `size` away; `& causal(...)` for those of the past only.

  Aligned at the lower right corner like `causal`. Beltagy et al. 2020, figure 2b.
  """
  sources = targets if sources is None else sources
  return near(jnp.arange(sources - targets, sources)[None], jnp.arange(sources)[None], size=size)[
    0, 0
  ]


def padding(tokens: Int[Array, 'B S'], pad: int = 0) -> Bool[Array, 'B 1 1 S']:
  """Everyone may attend to every token that is not padding.

  >>> padding(jnp.array([[5, 3, 0]]))
  Array([[[[ True,  True, False]]]], dtype=bool)
  """
  return (tokens != pad)[:, None, None, :]


def segments(targets: Int[Array, 'B T'], sources: Int[Array, 'B S']) -> Bool[Array, 'B 1 T S']:
  """t may attend to s where both belong to the same segment; segment 0 is padding and sees nothing.

  Packed examples of a row are segments 1, 2, ...; a row of one padded example is segment 1.

  >>> print(describe(segments(jnp.array([[1, 1, 2, 0]]), jnp.array([[1, 1, 2, 0]]))))
    0123
  0 ██··
  1 ██··
  2 ··█·
  3 ····
  """
  same = targets[:, :, None] == sources[:, None, :]
  return (same & (sources != 0)[:, None, :])[:, None]


def before(targets: Int[Array, 'B T'], sources: Int[Array, 'B S']) -> Bool[Array, 'B 1 T S']:
  """`causal` by the positions of the tokens themselves, wherever they stand in a row or a cache."""
  return (sources[:, None, :] <= targets[:, :, None])[:, None]


def near(
  targets: Int[Array, 'B T'], sources: Int[Array, 'B S'], *, size: int
) -> Bool[Array, 'B 1 T S']:
  """`sliding_window` by the positions of the tokens themselves."""
  if size < 1:
    raise ValueError(f'a sliding window of {size} sees nothing, not even itself: size must be >= 1')
  return (jnp.abs(targets[:, :, None] - sources[:, None, :]) < size)[:, None]


def describe(mask: Bool[Array, '*B T S']) -> str:
  """A picture of a mask as text, one row per target: █ may attend, · may not (first example)."""
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
