"""Attention over rows that are divided between devices, each of which computes its own targets.

The keys and values of a row are gathered for the layer at hand, and again in the backward pass, so
that between the two a device holds its share of everything. The part of a device is computed by
blocks, without the scores. Li et al. 2021, https://arxiv.org/abs/2105.13120, is the same by a ring.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from transformer.functional.blockwise import KEPT, blockwise_attention
from transformer.functional.masks import AttentionMask

# axes of a mesh that divide the examples, the heads, and the positions of a row
ROWS, HEADS, POSITIONS = ('data', 'fsdp'), 'tensor', 'sequence'


def shards() -> int:
  """Return between how many devices the mesh of `jax.set_mesh` divides a row."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or POSITIONS in getattr(mesh, 'manual_axes', ()):
    return 1
  return dict(mesh.shape).get(POSITIONS, 1)


def sequence_attention(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  v: Float[Array, 'B S G V'],
  mask: AttentionMask,
  *,
  scale: float | None = None,
  soft_cap: float = 0.0,
  sinks: Float[Array, 'H'] | None = None,
) -> Float[Array, 'B T H V']:
  """Return `multi_head_attention` of rows whose positions are divided between devices.

  Args:
    q, k, v, scale, soft_cap, sinks: as in `multi_head_attention`; `shards` divides T and S.
    mask: which sources a target may attend to.
  """
  (B, T, H, _), (_, S, G, _) = q.shape, k.shape
  axes = dict(jax.sharding.get_abstract_mesh().shape)
  names = tuple(name for name in ROWS if name in axes)
  rows = names if names and B % math.prod(axes[name] for name in names) == 0 else None
  heads = HEADS if HEADS in axes and H % axes[HEADS] == 0 == G % axes[HEADS] else None
  mask = dataclasses.replace(mask, array=None)  # of the whole row

  def place(x, *names):
    """The parts of an array whose axes of size 1 are not divided."""
    return P(*(None if n == 1 else name for n, name in zip(x.shape, names, strict=True)))

  def places(mask):
    of_positions = jax.tree.map(
      lambda x: place(x, rows, POSITIONS), (mask.segments, mask.positions)
    )
    explicit = mask.explicit
    if explicit is not None:
      explicit = place(explicit, *(rows, heads, POSITIONS, None)[4 - explicit.ndim :])
    segments, positions = of_positions
    return dataclasses.replace(mask, segments=segments, positions=positions, explicit=explicit)

  def own(q, k, v, mask, sinks):
    k, v = _gathered((k, v))
    part = _of_own_targets(mask, q.shape[1], S - T)
    return blockwise_attention(q, k, v, part, scale=scale, soft_cap=soft_cap, sinks=sinks)

  # kept is what the backward pass needs, but for the keys and values of other devices
  kept = jax.checkpoint_policies.save_only_these_names(KEPT)
  array = P(rows, POSITIONS, heads)
  return jax.shard_map(
    jax.checkpoint(own, policy=kept),
    in_specs=(array, array, array, places(mask), None if sinks is None else P(heads)),
    out_specs=array,
  )(q, k, v, mask, sinks)


def _gathered(arrays):
  """The arrays of all devices that share a row, joined along their positions."""
  return jax.tree.map(lambda x: lax.all_gather(x, POSITIONS, axis=1, tiled=True), arrays)


def _of_own_targets(mask: AttentionMask, T: int, offset: int) -> AttentionMask:
  """The mask of the T targets of this device over all sources.

  Args:
    mask: with this device's parts of its arrays.
    T: targets of a device.
    offset: sources of a row less its targets.
  """

  def pair(arrays):
    return arrays and (arrays[0], None if arrays[1] is None else _gathered(arrays[1]))

  positions = pair(mask.positions)
  if mask.ordered and positions is None:
    first = lax.axis_index(POSITIONS) * T
    sources = offset + T * lax.axis_size(POSITIONS)
    positions = ((offset + first + jnp.arange(T))[None], jnp.arange(sources)[None])
  return dataclasses.replace(mask, segments=pair(mask.segments), positions=positions)
