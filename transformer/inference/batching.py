"""Lines of any length through a compiled function, always in batches of the same few shapes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from transformer.data.pipeline import Ragged

PAD = -1  # where any id may be a token; where any number may be a feature, NaN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
  """How lines are answered where there is nothing to search.

  Attributes:
    rows: lines at once. Always so many: the same shape for every batch keeps a line's answer
      independent of its neighbours to the last bit.
  """

  rows: int = 32

  def __post_init__(self):
    if self.rows < 1:
      raise ValueError(f'decode.rows={self.rows} must be at least 1')


def in_batches(
  find: Callable[[Shaped[np.ndarray, 'B S ...']], Any],
  lines: Ragged | Sequence[Sequence[int] | np.ndarray],
  *,
  rows: int,
  longest: int,
  left: bool = False,
  pad: int = PAD,
) -> list[Any]:
  """What `find` makes of each line, in order.

  Args:
    find: padded lines to a tree of arrays, one row for each.
    lines: tokens or frames, of any lengths; each is padded by its own length alone.
    rows: of every batch.
    longest: no line is padded beyond it.
    left: pad on the left.
    pad: with what.
  """
  found: list[Any] = [None] * len(lines)
  shapes = np.array([bucket(len(lines[i]), longest) for i in range(len(lines))])
  for shape in np.unique(shapes).tolist():
    of_shape = np.flatnonzero(shapes == shape)
    for start in range(0, len(of_shape), rows):
      members = of_shape[start : start + rows]
      # the rows left over repeat a line: an empty one would never end
      filled = np.pad(members, (0, rows - len(members)), mode='edge')
      batch = find(padded([lines[i] for i in filled], shape, left=left, pad=pad))
      batch = jax.tree.map(np.asarray, batch)
      for row, i in enumerate(members):
        found[i] = jax.tree.map(lambda x, row=row: x[row], batch)
  return found


def padded(
  lines: Sequence[Sequence[int] | np.ndarray], length: int, *, left: bool = False, pad: int = PAD
) -> Shaped[np.ndarray, 'B length ...']:
  """The lines below each other, filled up on one side: tokens with `pad`, frames with NaN."""
  first = np.asarray(lines[0])
  if first.ndim == 1:
    array = np.full((len(lines), length), pad, np.int32)
  else:
    fill = np.nan if first.dtype.kind == 'f' else 0
    array = np.full((len(lines), length, *first.shape[1:]), fill, first.dtype)
  for row, tokens in zip(array, lines, strict=True):
    row[slice(length - len(tokens), None) if left else slice(len(tokens))] = tokens
  return array


def separated(
  rows: Shaped[Array, 'B S ...'],
) -> tuple[Shaped[Array, 'B S ...'], Int[Array, 'B ...']]:
  """What `padded` made, with 0 for padding, and as in training what is real: 1, or else 0."""
  if rows.dtype == jnp.uint8:  # images are never padded
    return rows, jnp.ones(len(rows), jnp.int32)
  tokens = jnp.issubdtype(rows.dtype, jnp.integer)
  real = rows != PAD if tokens else ~jnp.isnan(rows[..., 0])
  rows = jnp.where(real, rows, 0) if tokens else jnp.where(real[..., None], rows, 0)
  return rows, real.astype(jnp.int32)


def bucket(length: int, longest: int) -> int:
  """The padded length of a line, from its own length alone: 8, 16, 32, ... up to the longest."""
  return min(max(8, 1 << (length - 1).bit_length()), max(longest, length))


def self_attention(
  capture: Callable[[Shaped[np.ndarray, 'B T ...']], dict[str, Any]],
  tokens: Sequence[int] | np.ndarray,
  pieces: list[str],
  longest: int,
) -> tuple[np.ndarray, list[str], list[str]]:
  """How positions attend to each other: (weights [L, H, T, T], their pieces, the same again).

  Args:
    capture: padded tokens to `Output.layers`.
    tokens: of one line, or patches or frames.
    pieces: what each position stands for.
    longest: no line is padded beyond it.
  """
  n = len(pieces)
  weights = capture(padded([tokens], bucket(len(tokens), longest)))['self']
  return np.asarray(weights)[:, 0, :, :n, :n], pieces, pieces
