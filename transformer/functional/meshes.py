"""The axes of meshes; code on explicit axes; the checks of `jax.shard_map`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

ROWS, HEADS = ('data', 'fsdp'), 'tensor'  # axes of a mesh that divide the examples and the heads


def free_axes() -> dict[str, int]:
  """Return the axes of the mesh of `jax.set_mesh` and their sizes.

  Axes of an enclosing `jax.shard_map` are left out, since they are divided already.
  """
  mesh = jax.sharding.get_abstract_mesh()
  divided = getattr(mesh, 'manual_axes', ())
  return {name: size for name, size in mesh.shape.items() if name not in divided}


def axes_of_attention(B: int, H: int, G: int) -> tuple[tuple[str, ...] | None, str | None]:
  """Return the axes that divide B examples and the axis that divides H and G heads, or None."""
  axes = free_axes()
  rows = tuple(name for name in ROWS if name in axes)
  divides_rows = rows and B % math.prod(axes[name] for name in rows) == 0
  divides_heads = HEADS in axes and H % axes[HEADS] == 0 == G % axes[HEADS]
  return rows if divides_rows else None, HEADS if divides_heads else None


def with_auto_axes(f: Callable) -> Callable:
  """Return f with the explicit mesh axes of its arguments made automatic inside it.

  With explicit axes JAX refuses operations such as a table lookup at sharded tokens, unless each
  names the sharding of its result; with automatic axes the compiler chooses. Results with as many
  rows as the first array that is sharded over rows are sharded like it, all others are replicated.
  Without explicit axes f runs unchanged.
  """

  @functools.wraps(f)
  def wrapped(*args, **kwargs):
    leaves, tree = jax.tree.flatten((args, kwargs))
    array_indices = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
    mesh, rows, axes = _layout([jax.typeof(leaves[i]) for i in array_indices])
    if mesh is None:
      return f(*args, **kwargs)

    def on_arrays(*arrays):
      for i, array in zip(array_indices, arrays, strict=True):
        leaves[i] = array
      args, kwargs = jax.tree.unflatten(tree, leaves)
      return f(*args, **kwargs)

    def spec(shape: Any) -> P:
      return P(axes) if shape.ndim and shape.shape[0] == rows else P()

    arrays = [leaves[i] for i in array_indices]
    with jax.sharding.use_abstract_mesh(mesh):
      replicated = jax.sharding.auto_axes(on_arrays, out_sharding=P())
      specs = jax.tree.map(spec, jax.eval_shape(replicated, *arrays))
      return jax.sharding.auto_axes(on_arrays, out_sharding=specs)(*arrays)

  return wrapped


def vary_alike(*arrays: Array) -> list[Array]:
  """Return the arrays, cast so that all vary over the same axes of a `jax.shard_map`.

  `jax.shard_map` requires this of the operands of a custom derivative and of the carry of a scan.
  """
  axes = [_varying(jax.typeof(x)) for x in arrays]
  missing = [tuple(frozenset().union(*axes) - own) for own in axes]
  if hasattr(jax.lax, 'pcast'):
    cast = functools.partial(jax.lax.pcast, to='varying')
  else:
    cast = jax.lax.pvary  # type: ignore[attr-defined]  # before JAX 0.9
  return [cast(x, names) if names else x for x, names in zip(arrays, missing, strict=True)]


def _varying(array_type):
  if hasattr(array_type, 'vma'):  # before JAX 0.10
    return array_type.vma
  return array_type.manual_axis_type.varying


def _layout(types):
  """Return (a mesh with explicit axes or None, the number of sharded rows, their mesh axes)."""
  types = [x for x in types if AxisType.Explicit in x.sharding.mesh.axis_types]
  for x in types:
    if x.ndim and x.sharding.spec[0] is not None:
      return x.sharding.mesh, x.shape[0], x.sharding.spec[0]
  return (types[0].sharding.mesh, 0, None) if types else (None, 0, None)
