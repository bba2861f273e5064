"""Rows of a family's table: which parameters are stored in which tensor, and conversions."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Row(NamedTuple):
  """Parameters of ours that are stored in one published tensor (one for each layer).

  Attributes:
    ours: paths of the parameters.
    theirs: name of the tensor, with {} for the index of the layer, and a second {} for that of the
      expert; None if the parameter is 0 and not stored.
    read: (tensor) to our arrays of one layer, one for each path.
    write: (our arrays of one layer) to the tensor.
    without: layers that have no such tensor; our parameter is 1 there.
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

  There is a row for every parameter that a layer may have. PyTorch calls them weight and bias, and
  stores kernels as [outputs, inputs, ...].

  Args:
    names: {our layer: theirs}.
    ours, theirs: prefixes of these names.
    transposed: whether kernels are stored as in PyTorch.
  """
  convert = (lambda x: (x.T,), np.transpose) if transposed else ()
  rows = []
  for our_layer, their_layer in names.items():
    path, name = ours + our_layer, theirs + their_layer
    rows += [
      Row((f'{path}/kernel',), f'{name}.weight', *convert),
      *plain({f'{path}/{weight}': f'{name}.weight' for weight in ('scale', 'table')}),
      *plain({f'{path}/bias': f'{name}.bias'}),
    ]
  return rows


def fused(ours: Sequence[str], theirs: str, sizes: Sequence[int] = (), *, transposed=True):
  """Return rows of linear layers with the same input that are stored as one layer.

  Args:
    ours: paths of the layers, in the order in which their outputs are concatenated.
    theirs: name of the stored layer.
    sizes: number of outputs of each layer; () if all are equal.
    transposed: whether the kernel is stored as in PyTorch.
  """
  parts = list(itertools.accumulate(sizes))[:-1] or len(ours)

  def row(parameter, name, convert):
    paths = tuple(f'{path}/{parameter}' for path in ours)
    read = lambda x: np.split(convert(x), parts, axis=-1)  # noqa: E731
    return Row(paths, f'{theirs}.{name}', read, lambda *x: convert(np.concatenate(x, axis=-1)))

  return [row('kernel', 'weight', np.transpose if transposed else np.asarray)] + [
    row('bias', 'bias', np.asarray)
  ]


def shifted(ours: str, theirs: str) -> Row:
  """Return the row of a table of positions that is stored with two unused rows in front."""
  return Row((ours,), theirs, lambda x: (x[2:],), lambda x: np.pad(x, ((2, 0), (0, 0))))


def wrapped(ours: str, theirs: str, axes: int = 1) -> Row:
  """Return the row of a parameter that is stored with leading axes of size 1."""
  return Row((ours,), theirs, lambda x: (x.reshape(x.shape[axes:]),), lambda x: x[(None,) * axes])


def around_one(rows: Sequence[Row]) -> list[Row]:
  """Return the rows, changed for scales of norms that are stored as scale - 1."""
  read, write = lambda x: (x + np.float32(1),), lambda x: x - 1  # noqa: E731
  return [
    row._replace(read=read, write=write) if row.ours[0].endswith('/scale') else row for row in rows
  ]


def leaves(model: Any) -> dict[str, Any]:
  """Return {path: parameter} of a model, with paths such as stack/blocks/attention/query/kernel."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(model)
  }


def named(row: Row, parameters: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yield (name, index) of a row's tensors; the index is (), (layer,) or (layer, expert)."""
  if row.theirs is not None:
    stacked = parameters[row.ours[0]].shape[: row.theirs.count('{}')]
    for index in np.ndindex(stacked):
      if not set(index[:1]) & set(row.without):
        yield row.theirs.format(*index), index


def some(names) -> str:
  """Return the first 8 of the names, sorted, as text, and the number of the others."""
  names = sorted(names)
  return ', '.join(names[:8]) + f' and {len(names) - 8} more' * (len(names) > 8)
