"""Attention with the positions of a row divided between devices (sequence parallelism).

Each device computes its own targets, by blocks. It gathers the keys and values of the whole row in
the forward pass and again in the backward pass, and stores only its own share between the two. Li
et al. 2021, https://arxiv.org/abs/2105.13120, pass them around a ring instead.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from transformer.functional.blockwise import KEPT, blockwise_attention
from transformer.functional.masks import AttentionMask
from transformer.functional.meshes import axes_of_attention, free_axes

POSITIONS = 'sequence'  # the axis of a mesh that divides the positions of a row


def shards() -> int:
  """Return the number of devices between which the mesh of `jax.set_mesh` divides a row."""
  return free_axes().get(POSITIONS, 1)


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
  """Return `multi_head_attention`, with the positions of each row divided between devices.

  Args:
    q, k, v, scale, soft_cap, sinks: as in `multi_head_attention`; T and S must be multiples of
      `shards()`.
    mask: which sources a target may attend to.
  """
  (B, T, H, _), (_, S, G, _) = q.shape, k.shape
  rows, heads = axes_of_attention(B, H, G)
  mask = dataclasses.replace(mask, array=None)  # it is of the whole row

  def spec(x, *names):  # axes of size 1 are not divided
    return P(*(None if n == 1 else name for n, name in zip(x.shape, names, strict=True)))

  def mask_specs(mask):
    segments, positions = jax.tree.map(
      lambda x: spec(x, rows, POSITIONS), (mask.segments, mask.positions)
    )
    explicit = mask.explicit
    if explicit is not None:
      explicit = spec(explicit, *(rows, heads, POSITIONS, None)[4 - explicit.ndim :])
    return dataclasses.replace(mask, segments=segments, positions=positions, explicit=explicit)

  def attend(q, k, v, mask, sinks):
    k, v = _gathered((k, v))
    own_mask = _mask_of_own_targets(mask, q.shape[1], S - T)
    return blockwise_attention(q, k, v, own_mask, scale=scale, soft_cap=soft_cap, sinks=sinks)

  # the backward pass gathers the keys and values again; all else that it needs is stored
  policy = jax.checkpoint_policies.save_only_these_names(KEPT)
  array = P(rows, POSITIONS, heads)
  return jax.shard_map(
    jax.checkpoint(attend, policy=policy),
    in_specs=(array, array, array, mask_specs(mask), None if sinks is None else P(heads)),
    out_specs=array,
  )(q, k, v, mask, sinks)


def _gathered(arrays):
  """Return the parts of all devices that share a row, joined along the positions."""
  return jax.tree.map(lambda x: lax.all_gather(x, POSITIONS, axis=1, tiled=True), arrays)


def _mask_of_own_targets(mask: AttentionMask, T: int, offset: int) -> AttentionMask:
  """Return the mask of this device's targets over all sources.

  Args:
    mask: with this device's parts of its arrays.
    T: number of targets of a device.
    offset: number of sources of a row minus its number of targets.
  """

  def pair(arrays):
    return arrays and (arrays[0], None if arrays[1] is None else _gathered(arrays[1]))

  positions = pair(mask.positions)
  if mask.ordered and positions is None:
    first = lax.axis_index(POSITIONS) * T
    sources = offset + T * lax.axis_size(POSITIONS)
    positions = ((offset + first + jnp.arange(T))[None], jnp.arange(sources)[None])
  return dataclasses.replace(mask, segments=pair(mask.segments), positions=positions)
