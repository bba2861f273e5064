"""Attention by blocks of queries and keys, in plain JAX, which never stores the scores [T, S].

A scan over the pairs of blocks that a causal mask or a window allows keeps the running maximum and
sum of each target; the backward pass computes the scores of a block again. Milakov & Gimelshein
2018, https://arxiv.org/abs/1805.02867; Rabe & Staats 2021, https://arxiv.org/abs/2112.05682; Dao et
al. 2022, https://arxiv.org/abs/2205.14135, algorithms 1 and 4.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from transformer.functional.masks import AttentionMask, padding
from transformer.functional.meshes import vary_alike, with_auto_axes

BLOCK = 512  # targets and sources of a block: its scores take 1 MB for each head
KEPT = 'attention by blocks'  # a name for `jax.checkpoint`: the results of the forward pass


class _Settings(NamedTuple):
  """The static arguments."""

  scale: float
  soft_cap: float
  block: tuple[int, int]  # targets and sources of a block
  size: tuple[int, int]  # T and S, before padding to whole blocks


@with_auto_axes
def blockwise_attention(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  v: Float[Array, 'B S G V'],
  mask: AttentionMask,
  *,
  scale: float | None = None,
  soft_cap: float = 0.0,
  sinks: Float[Array, 'H'] | None = None,
  block: int = 0,
) -> Float[Array, 'B T H V']:
  """Return `multi_head_attention` computed by blocks, with an `AttentionMask`.

  As there, a row that may attend to nothing is exactly 0, and a masked NaN reaches no result.

  Args:
    q, k, v, scale, soft_cap, sinks: as in `multi_head_attention`.
    mask: which sources a target may attend to.
    block: number of targets and of sources in a block; 0 for BLOCK.
  """
  (B, T, H, K), (_, S, G, V) = q.shape, v.shape
  block_size = (min(block or BLOCK, T), min(block or BLOCK, S))
  settings = _Settings(1 / math.sqrt(K) if scale is None else scale, soft_cap, block_size, (T, S))
  bad = ~(jnp.all(jnp.isfinite(k), axis=-1) & jnp.all(jnp.isfinite(v), axis=-1))
  k, v = (jnp.where(bad[..., None], 0, x) for x in (k, v))
  if S % block_size[1]:
    mask &= padding(jnp.ones((B, S), jnp.int32))
  t, s = ((0, -n % size) for n, size in zip((T, S), block_size, strict=True))
  q = jnp.pad(q, ((0, 0), t, (0, 0), (0, 0)))
  k, v = (jnp.pad(x, ((0, 0), s, (0, 0), (0, 0))) for x in (k, v))
  q = q.reshape(B, -1, G, H // G, K).transpose(0, 2, 3, 1, 4)
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  bad = jnp.pad(bad, ((0, 0), s, (0, 0))).swapaxes(1, 2)
  y, log_z = _attend(*vary_alike(q, k, v), (_padded(mask, t, s), bad), settings)
  if sinks is not None:
    y *= jax.nn.sigmoid(log_z - sinks.reshape(G, H // G, 1))[..., None]
  return y.transpose(0, 3, 1, 2, 4)[:, :T].reshape(B, T, H, V).astype(v.dtype)


def _padded(mask, t, s):
  """Return the mask without its dense array, padded to whole blocks by t targets and s sources."""

  def pair(arrays):
    return arrays and tuple(
      None if x is None else jnp.pad(x, ((0, 0), n)) for x, n in zip(arrays, (t, s), strict=True)
    )

  explicit = mask.explicit
  if explicit is not None:
    explicit = explicit.reshape((1,) * (4 - explicit.ndim) + explicit.shape)
    ends = [(0, 0) if n == 1 else end for n, end in zip(explicit.shape[2:], (t, s), strict=True)]
    explicit = jnp.pad(explicit, ((0, 0), (0, 0), *ends))
  arrays = dict(segments=pair(mask.segments), positions=pair(mask.positions), explicit=explicit)
  return dataclasses.replace(mask, array=None, **arrays)


def _pairs(mask: AttentionMask, settings: _Settings) -> np.ndarray:
  """Return the pairs (block of targets, block of sources) that the mask does not rule out."""
  (T, S), (t, s) = settings.size, settings.block
  i, j = np.mgrid[: -(-T // t), : -(-S // s)]
  if not mask.ordered or mask.positions is not None:  # the order is unknown at compile time
    return np.stack([i.ravel(), j.ravel()], axis=1).astype(np.int32)
  first_q, last_q = S - T + i * t, S - T + np.minimum((i + 1) * t, T) - 1
  first_k, last_k = j * s, np.minimum((j + 1) * s, S) - 1
  allowed = np.ones(i.shape, bool)
  if mask.causal:
    allowed &= (first_k <= last_q) | (first_k < mask.prefix)
  if (reach := mask.reach) is not None:
    allowed &= (last_k >= first_q - reach[0]) & (first_k <= last_q + reach[1])
  return np.stack([i[allowed], j[allowed]], axis=1).astype(np.int32)


def _block_of(x, start, size, axis):
  """Return a block of an axis; an axis of size 1 is left whole, for broadcasting."""
  return x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, start, size, axis)


def _allowed(mask: AttentionMask, row, column, settings: _Settings) -> Bool[Array, '...']:
  """Return the mask of one block, broadcastable to [B, H, t, s]."""
  (T, S), (t, s) = settings.size, settings.block

  def pair(arrays):
    return arrays and tuple(
      None if x is None else lax.dynamic_slice_in_dim(x, start, size, 1)
      for x, start, size in zip(arrays, (row, column), (t, s), strict=True)
    )

  columns = ((S - T + row + jnp.arange(t))[None], (column + jnp.arange(s))[None])
  explicit = mask.explicit
  if explicit is not None:
    explicit = _block_of(_block_of(explicit, row, t, 2), column, s, 3)
  part = dataclasses.replace(
    mask,
    segments=pair(mask.segments),
    positions=pair(mask.positions) or (columns if mask.ordered else None),
    explicit=explicit,
  ).dense(t, s)
  return part.reshape((1,) * (4 - part.ndim) + part.shape)


def _scores(q, k, row, column, masks, settings):
  """Return (the scores of a block, -inf where masked; the derivative of the soft cap)."""
  mask, bad = masks
  (B, G, R, t, K), s = q.shape, k.shape[2]
  scores = _product(q.reshape(B, G, R * t, K), k, (3, 3)).reshape(B, G, R, t, s) * settings.scale
  slope = 1.0
  if settings.soft_cap:
    tanh = jnp.tanh(scores / settings.soft_cap)
    scores, slope = settings.soft_cap * tanh, 1 - tanh**2
  scores = jnp.where(_block_of(bad, column, s, 2)[:, :, None, None], jnp.nan, scores)
  allowed = _allowed(mask, row, column, settings)
  heads = (G, R) if allowed.shape[1] > 1 else (1, 1)
  allowed = allowed.reshape(len(allowed), *heads, *allowed.shape[2:])
  return jnp.where(allowed, scores, -jnp.inf), slope


def _product(a, b, axes):
  """Return a b in float32, summed over one axis of each, for every example and group."""
  dimensions = (((axes[0],), (axes[1],)), ((0, 1), (0, 1)))
  return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _rows(x):
  """Reshape [B, G, H / G, t, K] to [B, G, H / G t, K]."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _add(total, part, start, axis):
  """Return the total with the part of one block added at `start` of the axis."""
  old = lax.dynamic_slice_in_dim(total, start, part.shape[axis], axis)
  return lax.dynamic_update_slice_in_dim(total, old + part, start, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, masks, settings):
  return _forward(q, k, v, masks, settings)[0]


def _forward(q, k, v, masks, settings):
  """Return ((the weighted values, log sum exp(scores)), the residuals of the backward pass)."""
  t, s = settings.block

  def step(state, pair):
    row, column = pair[0] * t, pair[1] * s
    q_, peak, total, y = (lax.dynamic_slice_in_dim(x, row, t, 3) for x in (q, *state))
    k_, v_ = (lax.dynamic_slice_in_dim(x, column, s, 2) for x in (k, v))
    scores, _ = _scores(q_, k_, row, column, masks, settings)
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
    safe = jnp.where(new_peak == -jnp.inf, 0, new_peak)  # -inf: no source so far
    e, shrink = jnp.exp(scores - safe[..., None]), jnp.exp(peak - safe)
    added = _product(_rows(e.astype(v.dtype)), v_, (3, 2)).reshape(y.shape)
    new = (new_peak, total * shrink + jnp.sum(e, axis=-1), y * shrink[..., None] + added)
    return tuple(
      lax.dynamic_update_slice_in_dim(old, x, row, 3) for old, x in zip(state, new, strict=True)
    ), None

  shape = q.shape[:-1]
  start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, v.shape[-1])))
  start = tuple(vary_alike(*start, q, k, v)[:3])
  (peak, total, y), _ = lax.scan(step, start, _pairs(masks[0], settings))
  y = y / jnp.where(total == 0, 1, total)[..., None]
  y, log_z = checkpoint_name((y, peak + jnp.log(total)), KEPT)
  return (y, log_z), (q, k, v, masks, y, log_z)


def _backward(settings, residuals, cotangents):
  """Dao et al. 2022, algorithm 4; the cotangent of log Z adds to that of every score."""
  (q, k, v, masks, y, log_z), (g, log_z_g) = residuals, cotangents
  t, s = settings.block
  # subtracted from the cotangents of all scores of a row: sum_s p_s (g v_s) - d log Z
  offset = jnp.sum(g * y, axis=-1) - log_z_g
  safe = jnp.where(log_z == -jnp.inf, 0, log_z)

  def step(gradients, pair):
    row, column = pair[0] * t, pair[1] * s
    q_, g_, offset_, safe_ = (lax.dynamic_slice_in_dim(x, row, t, 3) for x in (q, g, offset, safe))
    k_, v_ = (lax.dynamic_slice_in_dim(x, column, s, 2) for x in (k, v))
    scores, slope = _scores(q_, k_, row, column, masks, settings)
    hidden = scores == -jnp.inf
    p = jnp.where(hidden, 0, jnp.exp(scores - safe_[..., None]))
    g_ = g_.astype(v.dtype)
    p_slope = _product(_rows(g_), v_, (3, 3)).reshape(p.shape) - offset_[..., None]
    score_slope = jnp.where(hidden, 0, p * p_slope * slope * settings.scale).astype(q.dtype)
    dq, dk, dv = gradients
    dq = _add(dq, _product(_rows(score_slope), k_, (3, 2)).reshape(q_.shape), row, 3)
    dk = _add(dk, _product(_rows(score_slope), _rows(q_), (2, 2)), column, 2)
    dv = _add(dv, _product(_rows(p.astype(v.dtype)), _rows(g_), (2, 2)), column, 2)
    return (dq, dk, dv), None

  zeros = (jnp.zeros(x.shape) for x in (q, k, v))
  start = tuple(vary_alike(*zeros, q, k, v)[:3])
  gradients, _ = lax.scan(step, start, _pairs(masks[0], settings))
  return *(d.astype(x.dtype) for d, x in zip(gradients, (q, k, v), strict=True)), None


_attend.defvjp(_forward, _backward)
