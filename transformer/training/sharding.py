"""The mesh of devices, and a table from parameter paths to PartitionSpecs."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.data.pipeline import Batches
from transformer.training.optimizers import first_match

AXES = ('data', 'fsdp', 'tensor', 'sequence')

# The first pattern that a path matches decides; the paths of optimizer states contain those of
# their parameters. Parameters of blocks have a leading layer axis. An axis is not split if its size
# is no multiple of the mesh axis.
RULES = (
  (r'blocks/.*(query|key|value|hidden|gate)/kernel$', P(None, 'fsdp', 'tensor')),
  (r'blocks/.*(query|key|value|hidden|gate)/bias$', P(None, 'tensor')),
  (r'blocks/.*out/kernel$', P(None, 'tensor', 'fsdp')),
  (r'(embed|output)/table$', P('tensor', 'fsdp')),
  (r'.*', P()),
)


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  sequence: int = 1,
  over: Any = None,
) -> Mesh:
  """Return a mesh of devices.

  Args:
    data: number of replicas of the model, which get different examples; -1 for as many as the
      devices allow.
    fsdp: the same, but each holds only a part of the parameters (fully sharded data parallel).
    tensor: number of parts of every matrix product.
    sequence: number of parts of every sequence.
    over: list of devices; None for all.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.device_count() if over is None else len(over)
  for name, size in dict(fsdp=fsdp, tensor=tensor, sequence=sequence).items():
    if size < 1:
      raise ValueError(f'mesh.{name}={size} must be at least 1')
  rest = fsdp * tensor * sequence
  if data == -1 and devices % rest == 0:
    data = devices // rest
  if data * rest != devices:
    raise ValueError(
      f'mesh data={data} x fsdp={fsdp} x tensor={tensor} x sequence={sequence} is not {devices}, '
      'the number of devices: use --config.mesh.data=-1 and sizes that divide it'
    )
  return jax.make_mesh(
    (data, fsdp, tensor, sequence), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=over
  )


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Return a tree with the NamedSharding of every leaf of a model or training state, by RULES."""

  def of_leaf(path, leaf):
    spec = first_match(path, RULES)
    if len(spec) > len(leaf.shape):  # a factored or scalar statistic of the parameter
      return NamedSharding(mesh, P())
    axes = zip(spec, leaf.shape, strict=False)
    return NamedSharding(mesh, P(*(a if a and n % mesh.shape[a] == 0 else None for a, n in axes)))

  return jax.tree.map_with_path(of_leaf, tree)


def whole_tables(vocab: int, mesh: Mesh) -> str:
  """Return a warning if mesh.tensor does not divide the vocabulary; '' if it does."""
  if vocab % mesh.shape['tensor'] == 0:
    return ''
  return (
    f'mesh.tensor={mesh.shape["tensor"]} does not divide the {vocab} tokens of the vocabulary: '
    'each device of that axis holds whole tables and computes all logits'
  )


def shard_batch(
  batch: dict[str, np.ndarray], mesh: Mesh, *, stacked: bool = False
) -> dict[str, jax.Array]:
  """Return the batch as global arrays: rows sharded over data x fsdp, time over sequence.

  Args:
    batch: the rows of this process.
    mesh: of all devices.
    stacked: whether arrays have a first axis of steps, which is not split.
  """
  count = share(mesh)[1]

  def on_devices(rows):
    shape = [*rows.shape]
    shape[int(stacked)] *= count
    place = _of_rows(mesh, rows.ndim, stacked)
    return jax.make_array_from_process_local_data(place, rows, tuple(shape))

  return {name: on_devices(rows) for name, rows in batch.items()}


def shapes_of_batch(
  batch: dict[str, np.ndarray], mesh: Mesh, steps: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
  """Return ShapeDtypeStructs of a stack of batches.

  Args:
    batch: of all processes, without the axis of steps.
    mesh: of all devices.
    steps: the number of batches in the stack.
  """
  return {
    name: jax.ShapeDtypeStruct(
      (steps, *rows.shape), rows.dtype, sharding=_of_rows(mesh, rows.ndim + 1, True)
    )
    for name, rows in batch.items()
  }


def _of_rows(mesh: Mesh, ndim: int, stacked: bool) -> NamedSharding:
  axes = [None] * stacked + [('data', 'fsdp'), 'sequence']
  return NamedSharding(mesh, P(*axes[:ndim]))


def place_batches(batches: Batches, mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
  """Yield the batches of one epoch as arrays on the devices."""
  for i in range(len(batches)):
    yield shard_batch(batches[i], mesh)


def batch_parts(mesh: Mesh) -> int:
  """Return the number of parts that the rows of a batch are divided into."""
  return mesh.shape['data'] * mesh.shape['fsdp']


@functools.cache
def share(
  mesh: Mesh, process: int | None = None, process_of: Callable = lambda device: device.process_index
) -> tuple[int, int]:
  """Return (index, count): a process makes the index-th of count equal parts of every batch.

  Processes that share rows, because of mesh.tensor or mesh.sequence, make the same part.

  Args:
    mesh: of all devices.
    process: the index of a process; None for this one.
    process_of: (device) to the index of its process.

  Raises:
    ValueError: the rows of the process are not contiguous, or no equal share.
  """
  process, parts = jax.process_index() if process is None else process, batch_parts(mesh)
  rows = NamedSharding(mesh, P(('data', 'fsdp'))).devices_indices_map((parts,))
  mine = sorted({row.indices(parts)[0] for d, (row,) in rows.items() if process_of(d) == process})
  first, size = mine[0], len(mine)
  if mine != [*range(first, first + size)] or first % size or parts % size:
    raise ValueError(
      f'process {process} would compute the parts {mine} of {parts} of each batch, which are no '
      'equal share: let the devices of a process divide mesh.tensor x mesh.sequence, or be divided '
      'by it'
    )
  return first // size, parts // size
