"""Rows of a family's table: our parameters, the published tensor, and the conversions."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Row(NamedTuple):
  """Our parameters that are stored in one published tensor.

  Attributes:
    ours: paths; stacked layers are converted one by one.
    theirs: name of the tensor, with {} for the number of the layer, and a second one for that of
      the expert; None if it is 0 and not stored.
    read: the tensor to our arrays, one for each path.
    write: our arrays to the tensor.
    without: layers that have no such tensor; ours is 1 there.
  """

  ours: tuple[str, ...]
  theirs: str | None
  read: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda x: (x,)
  write: Callable[..., np.ndarray] = lambda x: x
  without: tuple[int, ...] = ()


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


def fused(ours: Sequence[str], theirs: str, sizes: Sequence[int] = (), *, transposed=True):
  """Return rows of linear layers of one input whose outputs are concatenated in one.

  Args:
    ours: the layers.
    theirs: the one layer.
    sizes: the outputs of each; all the same if not given.
    transposed: whether the kernel is stored as in PyTorch.
  """
  parts = list(itertools.accumulate(sizes))[:-1] or len(ours)

  def row(parameter, name, turn):
    paths = tuple(f'{path}/{parameter}' for path in ours)
    read = lambda x: np.split(turn(x), parts, axis=-1)  # noqa: E731
    return Row(paths, f'{theirs}.{name}', read, lambda *x: turn(np.concatenate(x, axis=-1)))

  return [row('kernel', 'weight', np.transpose if transposed else np.asarray)] + [
    row('bias', 'bias', np.asarray)
  ]


def shifted(ours: str, theirs: str) -> Row:
  """Return a row of a table of positions that begins with two unused rows for padding."""
  return Row((ours,), theirs, lambda x: (x[2:],), lambda x: np.pad(x, ((2, 0), (0, 0))))


def wrapped(ours: str, theirs: str, axes: int = 1) -> Row:
  """Return a row of a tensor with leading axes of size 1."""
  return Row((ours,), theirs, lambda x: (x.reshape(x.shape[axes:]),), lambda x: x[(None,) * axes])


def around_one(rows: Sequence[Row]) -> list[Row]:
  """Return the rows where the scale of a norm is stored as what it is more than 1."""
  read, write = lambda x: (x + np.float32(1),), lambda x: x - 1  # noqa: E731
  return [
    row._replace(read=read, write=write) if row.ours[0].endswith('/scale') else row for row in rows
  ]


def leaves(model: Any) -> dict[str, Any]:
  """Return a model's parameters by their paths, such as 'stack/blocks/attention/query/kernel'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(model)
  }


def named(row: Row, parameters: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
  """The names of a row's tensors, with the layer, and the expert, that each is of."""
  if row.theirs is not None:
    stacked = parameters[row.ours[0]].shape[: row.theirs.count('{}')]
    for index in np.ndindex(stacked):
      if not set(index[:1]) & set(row.without):
        yield row.theirs.format(*index), index


def some(names) -> str:
  """The first of the names, in order, and how many there are more."""
  names = sorted(names)
  return ', '.join(names[:8]) + f' and {len(names) - 8} more' * (len(names) > 8)
