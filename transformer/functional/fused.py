"""Attention in one kernel that never writes the scores: cuDNN's, on NVIDIA GPUs, where it applies.

The equation is `attention`'s; only who computes it differs. The path is chosen while tracing, by
the default device, and not by `lax.platform_dependent`: that would trace cuDNN's call on every
machine, which fails without a GPU, and its derivative would store what both paths need.
"""

import functools
import logging
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.functional.attention import multi_head_attention

# What may be known of a mask while compiling: that it is all True, or `masks.causal`. The kernel
# takes these as a flag; it takes others as a bias, and then computes that bias's gradient, too.
Known = Literal['all', 'causal']


def fastest_attention(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  v: Float[Array, 'B S G V'],
  *,
  known: Known | None = None,
  mask: Any = None,
  bias: Any = None,
  scale: float | None = None,
  finite: bool = False,
) -> Float[Array, 'B T H V']:
  """`multi_head_attention`, by `fused_attention` where that can do it; the log says once why not.

  Args:
    q, k, v, mask, bias, scale, finite: as in `multi_head_attention`.
    known: what the mask is, if that is known while compiling.
  """
  reason = why_not_fused(q, k, v, bias, known, capability())
  if reason:
    _say_once(f'attention takes the plain path: {reason}')
    return multi_head_attention(q, k, v, mask=mask, bias=bias, scale=scale, finite=finite)
  _say_once('attention takes the fused path, cuDNN')
  return fused_attention(q, k, v, causal=known == 'causal', scale=scale)


def fused_attention(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  v: Float[Array, 'B S G K'],
  *,
  causal: bool,
  scale: float | None = None,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> Float[Array, 'B T H K']:
  """softmax(q kT / sqrt K) v for every head, in one kernel, forward and backward.

  Deviates from `attention` in one point: a NaN or Inf in k or v may reach earlier rows of its
  example and head, too. Every row may attend to something, so none is empty.

  Args:
    q, k, v: of 16 bits, all of one dtype; G divides H.
    causal: t may attend to s <= t only; needs T = S.
    scale: as in `attention`.
    implementation: 'xla' computes the same anywhere, for tests.

  Raises:
    ValueError: causal with T != S.

  Dao 2023, https://arxiv.org/abs/2307.08691.

  >>> x = jnp.ones((2, 5, 4, 8), jnp.bfloat16)
  >>> fused_attention(x, x[:, :, :2], x[:, :, :2], causal=True, implementation='xla').shape
  (2, 5, 4, 8)
  """
  if causal and q.shape[1] != k.shape[1]:
    # cuDNN counts from the upper left corner, `masks.causal` from the lower right
    raise ValueError(
      f'{q.shape[1]} causal targets of {k.shape[1]} sources: it takes as many of '
      'both; use multi_head_attention with mask=masks.causal(targets, sources)'
    )
  return jax.nn.dot_product_attention(
    q, k, v, scale=scale, is_causal=causal, implementation=implementation
  )


def why_not_fused(q, k, v, bias, known: Known | None, capability: float) -> str:
  """Why `fused_attention` cannot be used, or '' if it can; arguments as in `fastest_attention`."""
  if capability < 8:
    return 'the default device is no NVIDIA GPU of compute capability 8.0 or more'
  if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
    return f'cuDNN wants 16-bit numbers, not {q.dtype}: set model.dtype to bfloat16'
  K, V = q.shape[-1], v.shape[-1]
  if K != V or K > 128 or K % 8:
    return f'cuDNN wants heads of a multiple of 8 up to 128, not {K} and {V}'
  if bias is not None:
    return 'scores have a bias (relative or alibi positions)'
  if known is None:
    return 'the mask is known only when running: pass segments=1 if no row is packed or padded'
  if known == 'causal' and q.shape[1] != k.shape[1]:
    return 'causal, but not as many targets as sources'
  return ''


@functools.cache
def capability() -> float:
  """Compute capability of the default device if it is an NVIDIA GPU, 9.0 for an H100; else 0."""
  text = str(getattr(jax.devices()[0], 'compute_capability', ''))
  return float(text) if text.replace('.', '', 1).isdigit() else 0.0


@functools.cache
def _say_once(text):
  logging.getLogger(__name__).info(text)
