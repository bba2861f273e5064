"""The mesh of devices, and one table from parameter paths to partitions."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.data.pipeline import Batches
from transformer.training.optimizers import first_match

AXES = ('data', 'fsdp', 'tensor', 'sequence')

# The first pattern that fits a path decides; optimizer states carry the paths of their parameters.
# Parameters of blocks have a leading layer axis. An axis that its mesh axis does not
# divide is not split.
RULES = (
  (r'blocks/.*(query|key|value|hidden|gate)/kernel$', P(None, 'fsdp', 'tensor')),
  (r'blocks/.*(query|key|value|hidden|gate)/bias$', P(None, 'tensor')),
  (r'blocks/.*out/kernel$', P(None, 'tensor', 'fsdp')),
  (r'(embed|output)/table$', P('tensor', 'fsdp')),
  (r'.*', P()),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1) -> Mesh:
  """Return a mesh of all devices.

  Args:
    data: replicas of the model, which get different examples; -1 for all devices that are left.
    fsdp: the same, but each holds a part of the parameters.
    tensor: parts of every matrix product.
    sequence: parts of every sequence.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.device_count()
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
    (data, fsdp, tensor, sequence), AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Return the sharding of every leaf of a model, optimizer or training state, by RULES."""

  def of_leaf(path, leaf):
    spec = first_match(path, RULES)
    if len(spec) > len(leaf.shape):  # a factored or scalar statistic of the parameter
      return NamedSharding(mesh, P())
    axes = zip(spec, leaf.shape, strict=False)
    return NamedSharding(mesh, P(*(a if a and n % mesh.shape[a] == 0 else None for a, n in axes)))

  return jax.tree.map_with_path(of_leaf, tree)


def shard_batch(
  batch: dict[str, np.ndarray], mesh: Mesh, *, stacked: bool = False
) -> dict[str, jax.Array]:
  """Return the batch on the devices: rows over data x fsdp, time over sequence.

  Args:
    batch: the rows of this process.
    mesh: of all devices.
    stacked: whether an axis of steps comes first, which is not split.
  """
  axes = [None] * stacked + [('data', 'fsdp'), 'sequence']
  return {
    name: jax.make_array_from_process_local_data(NamedSharding(mesh, P(*axes[: rows.ndim])), rows)
    for name, rows in batch.items()
  }


def placed(batches: Batches, mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
  """Yield the batches of one epoch as arrays on the devices."""
  for i in range(len(batches)):
    yield shard_batch(batches[i], mesh)


def batch_parts(mesh: Mesh) -> int:
  """Return what the number of rows of a batch must be a multiple of."""
  return mesh.shape['data'] * mesh.shape['fsdp']
