"""Attention on a TPU by splash attention, JAX's own kernel.

It skips the blocks that a causal mask or a window rules out, and never stores the scores.
https://github.com/jax-ml/jax/tree/main/jax/experimental/pallas/ops/tpu/splash_attention
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from transformer.functional.masks import AttentionMask
from transformer.functional.meshes import axes_of_attention, free_axes

LANES, BLOCK = 128, 512  # the width of a TPU's vector registers; the largest block, a multiple


def splash_attention(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  v: Float[Array, 'B S G V'],
  mask: AttentionMask,
  *,
  scale: float | None = None,
  soft_cap: float = 0.0,
  sinks: Float[Array, 'H'] | None = None,
  interpret: bool = False,
) -> Float[Array, 'B T H V']:
  """Return `multi_head_attention` computed by splash attention.

  On the mesh of `jax.set_mesh` every device computes its own examples and heads, because the
  compiler cannot divide a kernel.

  Args:
    q, k, v, scale, soft_cap, sinks: as in `multi_head_attention`.
    mask: of causal, window and segments only.
    interpret: run the kernel in Pallas' interpreter, which works on any platform.
  """
  (B, T, H, K), S = q.shape, k.shape[1]
  any_allowed = None
  if mask.segments is not None:
    any_allowed = jnp.any(mask.dense(T, S), axis=-1).swapaxes(1, 2)[..., None]  # [B, T, 1, 1]
  scale = 1 / math.sqrt(K) if scale is None else scale
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  (block_q, t), (block_kv, s) = _blocks(T), _blocks(S)
  segments = [
    jnp.pad(x, ((0, 0), (0, n - x.shape[1])))
    for x, n in zip(_segments(mask, B, T, S), (t, s), strict=True)
  ]
  q, k, v = (
    jnp.pad(x, ((0, 0), (0, n - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)
    for x, n in ((q, t), (k, s), (v, s))
  )
  attend = _kernel(mask, (t, s), S - T, (block_q, block_kv), soft_cap, interpret)
  y = _over_devices(attend, B, H, k.shape[1])(q, k, v, *segments, sinks)
  y = y[:, :, :T].swapaxes(1, 2)
  return y if any_allowed is None else jnp.where(any_allowed, y, 0)


def _blocks(length: int) -> tuple[int, int]:
  """Return (the size of a block, the length padded to whole blocks)."""
  count = -(-length // BLOCK)
  size = -(-length // (count * LANES)) * LANES
  return size, count * size


def _segments(mask, B, T, S) -> tuple[Int[Array, 'B T'], Int[Array, 'B S']]:
  """Return segments that are equal where a target may attend; padding to whole blocks gets 0."""
  if mask.segments is None:
    return jnp.ones((B, T), jnp.int32), jnp.ones((B, S), jnp.int32)
  targets, sources = mask.segments
  if targets is None:
    return jnp.ones((B, T), jnp.int32), (sources != 0).astype(jnp.int32)
  return targets, sources


def _kernel(mask: AttentionMask, shape, offset: int, block, soft_cap: float, interpret: bool):
  """Return f(q, k, v, q_segments, k_segments, sinks), which runs the kernel for every example."""
  # imported here, because it takes a second
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

  head_mask: splash_mask.Mask = splash_mask.FullMask(shape)
  if mask.causal or mask.reach is not None:
    left, right = mask.reach or (None, None)
    head_mask = splash_mask.LocalMask(shape, (left, 0 if mask.causal else right), offset)
  block_q, block_kv = block
  blocks = splash.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_q_dq=block_q,
    block_kv_dq=block_kv,
  )

  def attend(q, k, v, q_segments, k_segments, sinks):
    kernel = splash.make_splash_mha(
      splash_mask.MultiHeadMask([head_mask] * q.shape[1]),
      block_sizes=blocks,
      attn_logits_soft_cap=soft_cap or None,
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
    segments = splash.SegmentIds(q_segments, k_segments)
    return jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))(q, k, v, segments, sinks)

  return attend


def _over_devices(attend, B, H, G):
  """Return `attend` for each device's own examples and heads on the mesh of `jax.set_mesh`."""
  if math.prod(free_axes().values()) == 1:
    return attend
  rows, heads = axes_of_attention(B, H, G)
  array, segments = P(rows, heads), P(rows)
  return jax.shard_map(
    attend,
    in_specs=(array, array, array, segments, segments, P(heads)),
    out_specs=array,
    check_vma=False,  # the kernel has no rule for this check
  )
