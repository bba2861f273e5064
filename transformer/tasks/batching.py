"""Lines of any length through a compiled function, always in batches of the same few shapes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from transformer.data.tokenizers import Tokenizer

PAD = -1  # where any id may be a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
  """How lines are answered where there is nothing to search.

  Attributes:
    rows: lines at once. Always so many: the same shape for every batch keeps a line's answer
      independent of its neighbours to the last bit.
  """

  rows: int

  def __post_init__(self):
    if self.rows < 1:
      raise ValueError(f'decode.rows={self.rows} must be at least 1')


def in_batches(
  find: Callable[[Int[np.ndarray, 'B S']], Any],
  lines: Sequence[Sequence[int]],
  *,
  rows: int,
  longest: int,
  left: bool = False,
  pad: int = PAD,
) -> list[Any]:
  """What `find` makes of each line, in order.

  Args:
    find: padded lines to a tree of arrays, one row for each.
    lines: tokens, of any lengths; each is padded by its own length alone.
    rows: of every batch.
    longest: no line is padded beyond it.
    left: pad on the left.
    pad: with what.
  """
  found: list[Any] = [None] * len(lines)
  shapes = np.array([bucket(len(line), longest) for line in lines])
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
  lines: Sequence[Sequence[int]], length: int, *, left: bool = False, pad: int = PAD
) -> Int[np.ndarray, 'B length']:
  """The lines below each other, filled up on one side."""
  array = np.full((len(lines), length), pad, np.int32)
  for row, tokens in zip(array, lines, strict=True):
    row[slice(length - len(tokens), None) if left else slice(len(tokens))] = tokens
  return array


def bucket(length: int, longest: int) -> int:
  """The padded length of a line, from its own length alone: 8, 16, 32, ... up to the longest."""
  return min(max(8, 1 << (length - 1).bit_length()), max(longest, length))


def self_attention(
  capture: Callable[[Int[np.ndarray, 'B T']], dict[str, Any]],
  tokens: Sequence[int],
  tokenizer: Tokenizer,
  longest: int,
) -> tuple[np.ndarray, list[str], list[str]]:
  """How tokens attend to each other: (weights [L, H, T, T], their pieces, the same again).

  Args:
    capture: padded tokens to `Output.layers`.
    tokens: of one line.
    tokenizer: says what they spell.
    longest: no line is padded beyond it.
  """
  n = len(tokens)
  weights = capture(padded([tokens], bucket(n, longest)))['self']
  pieces = tokenizer.pieces(tokens)
  return np.asarray(weights)[:, 0, :, :n, :n], pieces, pieces
