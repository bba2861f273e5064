"""Rows of a family's table: our parameters, the published tensor, and the conversions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Row(NamedTuple):
  """Our parameters that are stored in one published tensor.

  Attributes:
    ours: paths; stacked layers are converted one by one.
    theirs: name of the tensor, with {} for the number of the layer; None if it is 0 and not stored.
    read: the tensor to our arrays, one for each path.
    write: our arrays to the tensor.
  """

  ours: tuple[str, ...]
  theirs: str | None
  read: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda x: (x,)
  write: Callable[..., np.ndarray] = lambda x: x


def plain(names: Mapping[str, str | None]) -> list[Row]:
  """Return rows of parameters that are stored unchanged."""
  return [Row((ours,), theirs) for ours, theirs in names.items()]


def layers(names: Mapping[str, str], ours='', theirs='', *, transposed=True) -> list[Row]:
  """Return rows of linear layers, convolutions, norms and tables.

  Each layer gives a row for every parameter that it may have; PyTorch calls them weight and bias
  and stores kernels as [outputs, inputs, ...].

  Args:
    names: our layers to theirs.
    ours, theirs: prefixes of these names.
    transposed: whether kernels are stored as in PyTorch.
  """
  convert = (lambda x: (x.T,), np.transpose) if transposed else ()
  rows = []
  for one, other in names.items():
    one, other = ours + one, theirs + other
    rows += [
      Row((f'{one}/kernel',), f'{other}.weight', *convert),
      *plain({f'{one}/{weight}': f'{other}.weight' for weight in ('scale', 'table')}),
      *plain({f'{one}/bias': f'{other}.bias'}),
    ]
  return rows


def fused(ours: Sequence[str], theirs: str) -> Row:
  """Return a row of parameters that are concatenated in one tensor."""
  return Row(
    tuple(ours),
    theirs,
    lambda x: np.split(x, len(ours), axis=-1),
    lambda *parts: np.concatenate(parts, axis=-1),
  )


def shifted(ours: str, theirs: str) -> Row:
  """Return a row of a table of positions that begins with two unused rows for padding."""
  return Row((ours,), theirs, lambda x: (x[2:],), lambda x: np.pad(x, ((2, 0), (0, 0))))


def wrapped(ours: str, theirs: str, axes: int = 1) -> Row:
  """Return a row of a tensor with leading axes of size 1."""
  return Row((ours,), theirs, lambda x: (x.reshape(x.shape[axes:]),), lambda x: x[(None,) * axes])


def leaves(model: Any) -> dict[str, Any]:
  """Return a model's parameters by their paths, such as 'stack/blocks/attention/query/kernel'."""
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
