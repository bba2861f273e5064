"""Rows of a family's table: our parameters, their tensor, and how one becomes the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Row(NamedTuple):
  """Parameters of ours that are one tensor of theirs.

  Attributes:
    ours: paths; in a stack of layers, what follows is done for each layer.
    theirs: name, with {} for the number of the layer; None if their files leave it out as 0.
    read: their array -> ours, one for each path.
    write: ours -> their array.
  """

  ours: tuple[str, ...]
  theirs: str | None
  read: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda x: (x,)
  write: Callable[..., np.ndarray] = lambda x: x


def plain(names: Mapping[str, str | None]) -> list[Row]:
  """Parameters that are tensors as they stand."""
  return [Row((ours,), theirs) for ours, theirs in names.items()]


def layers(names: Mapping[str, str], ours='', theirs='', *, transposed=True) -> list[Row]:
  """Linear layers, convolutions, norms and tables, whose names begin with `ours` and `theirs`.

  Each gives a row for all that our layers may have: what theirs is called is weight or bias.
  PyTorch has its kernels as [outputs, inputs, ...].
  """
  turn = (lambda x: (x.T,), np.transpose) if transposed else ()
  rows = []
  for one, other in names.items():
    one, other = ours + one, theirs + other
    rows += [
      Row((f'{one}/kernel',), f'{other}.weight', *turn),
      *plain({f'{one}/{weight}': f'{other}.weight' for weight in ('scale', 'table')}),
      *plain({f'{one}/bias': f'{other}.bias'}),
    ]
  return rows


def fused(ours: Sequence[str], theirs: str) -> Row:
  """Parameters side by side in one tensor."""
  return Row(
    tuple(ours),
    theirs,
    lambda x: np.split(x, len(ours), axis=-1),
    lambda *parts: np.concatenate(parts, axis=-1),
  )


def shifted(ours: str, theirs: str) -> Row:
  """A table of positions that begins with two rows for padding, which are never read here."""
  return Row((ours,), theirs, lambda x: (x[2:],), lambda x: np.pad(x, ((2, 0), (0, 0))))


def wrapped(ours: str, theirs: str, axes: int = 1) -> Row:
  """A tensor with leading axes of size 1."""
  return Row((ours,), theirs, lambda x: (x.reshape(x.shape[axes:]),), lambda x: x[(None,) * axes])


def leaves(model: Any) -> dict[str, Any]:
  """A model's parameters by their paths, such as 'stack/blocks/attention/query/kernel'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(model)
  }


def named(row: Row, parameters: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
  """The names of a row's tensors, with the number of the layer in stacked ones."""
  if row.theirs is not None and '{}' in row.theirs:
    yield from ((row.theirs.format(i), i) for i in range(parameters[row.ours[0]].shape[0]))
  elif row.theirs is not None:
    yield row.theirs, None


def some(names) -> str:
  """The first of the names, in order, and how many there are more."""
  names = sorted(names)
  return ', '.join(names[:8]) + f' and {len(names) - 8} more' * (len(names) > 8)
