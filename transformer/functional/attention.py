"""Scaled dot-product attention: the equation for one head, and for many heads by vmap.

This is the specification: the faster implementations of `kernels` are tested against it.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from transformer.functional.activations import soft_cap as soft_capped
from transformer.functional.matmul import matmul, matmul_nt


def attention(
  q: Float[Array, 'T K'],
  k: Float[Array, 'S K'],
  v: Float[Array, 'S V'],
  *,
  mask: Bool[Array, '#T #S'] | None = None,
  bias: Float[Array, '#T #S'] | None = None,
  scale: float | None = None,
  soft_cap: float = 0.0,
  sink: Float[Array, ''] | None = None,
  assume_finite: bool = False,
) -> Float[Array, 'T V']:
  """Scaled dot-product attention for one head: softmax(q k.T / sqrt(K)) v.

  With all arguments: softmax(soft_cap(scale * q @ k.T) + bias) @ v, over what the mask allows. Each
  row of the result is an average of the rows of v, weighted by how well that row's query matches
  each key. There is no batch or head axis: add them outside with `jax.vmap`, as
  `multi_head_attention` does.

  Args:
    q: queries, one per target position.
    k: keys, one per source position.
    v: values, one per source position.
    mask: True where the target may attend to the source. A row that may attend to nothing is
      exactly 0, and so is its gradient. A row that may attend to a NaN or Inf in k or v is NaN, and
      no other row is.
    bias: added to the scaled scores (T5's relative positions, ALiBi).
    scale: multiplies q @ k.T; 1 / sqrt(K) if None. T5 uses 1.
    soft_cap: bounds the scaled scores by cap tanh(score / cap) before the bias is added, see
      `activations.soft_cap`; 0 for no bound.
    sink: the score of one extra source whose value is 0, so that the weights of a row sum to less
      than 1 (Xiao et al. 2023, https://arxiv.org/abs/2309.17453, section 3.3; OpenAI's gpt-oss).
    assume_finite: a promise that no masked row of k or v has a NaN or Inf. Skipping the search for
      them saves a third of the time of a decoding step on a CPU.

  Returns:
    The weighted values, in v's dtype. Scores and softmax are always float32; the weights are then
    rounded to v's dtype, and 16-bit products are summed in float32.

  Raises:
    TypeError: the mask is not a boolean array.
    ValueError: q or k has a batch or head axis.

  Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1.

  >>> q = jnp.array([[0., 1.]]); k = jnp.array([[0., 9.], [9., 0.]])
  >>> attention(q, k, jnp.array([[1.], [5.]])).round(1)  # picks the first key's value
  Array([[1.]], dtype=float32)
  """
  _check_one_head(q, k)
  nonfinite = None
  if mask is not None and not assume_finite:
    v, nonfinite = _without_nonfinite_rows(v)
  weights = _weights(q, k, mask, bias, scale, soft_cap, sink, nonfinite, assume_finite)
  return matmul(weights.astype(v.dtype), v).astype(v.dtype)


def attention_weights(
  q: Float[Array, 'T K'],
  k: Float[Array, 'S K'],
  *,
  mask: Bool[Array, '#T #S'] | None = None,
  bias: Float[Array, '#T #S'] | None = None,
  scale: float | None = None,
  soft_cap: float = 0.0,
  sink: Float[Array, ''] | None = None,
) -> Float[Array, 'T S']:
  """Attention weights of one head: softmax(q k.T / sqrt(K)).

  The arguments are those of `attention`. The result is float32. Without a sink a row sums to 1; it
  is exactly 0 if the mask lets it attend to nothing, and NaN if it may attend to a key with NaN or
  Inf.

  >>> attention_weights(jnp.zeros((1, 2)), jnp.ones((3, 2)), mask=jnp.array([[True, True, False]]))
  Array([[0.5, 0.5, 0. ]], dtype=float32)
  """
  _check_one_head(q, k)
  return _weights(q, k, mask, bias, scale, soft_cap, sink)


def multi_head_attention(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  v: Float[Array, 'B S G V'],
  *,
  mask: Bool[Array, '#B #H #T #S'] | None = None,
  bias: Float[Array, '#B #H #T #S'] | None = None,
  scale: float | None = None,
  soft_cap: float = 0.0,
  sinks: Float[Array, 'H'] | None = None,
  assume_finite: bool = False,
) -> Float[Array, 'B T H V']:
  """Return `attention` for every head of every example, by vmap over examples, groups and heads.

  Head h uses the keys and values of group h // (H / G): G = H is multi-head attention, G = 1 is
  multi-query attention, anything between is grouped-query attention. k and v are not copied.

  Args:
    q, k, v: queries, keys and values; G must divide H.
    mask, bias: broadcast to [B, H, T, S]; otherwise as in `attention`.
    scale, soft_cap, assume_finite: as in `attention`.
    sinks: the sink of each head.

  Raises:
    ValueError: G does not divide H, or mask or bias does not broadcast to [B, H, T, S].
    TypeError: the mask is not a boolean array.

  Vaswani et al. 2017, section 3.2.2; Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.

  >>> x = jnp.ones((2, 5, 4, 8))
  >>> multi_head_attention(x, x[:, :, :2], x[:, :, :2]).shape
  (2, 5, 4, 8)
  """

  def one_head(q, kv, mask, bias, sink):
    kwargs = dict(scale=scale, soft_cap=soft_cap, assume_finite=assume_finite)
    return attention(q, *kv, mask=mask, bias=bias, sink=sink, **kwargs)

  return _over_heads(one_head, q, (k, v), mask, bias, sinks)


def multi_head_attention_weights(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  *,
  mask: Bool[Array, '#B #H #T #S'] | None = None,
  bias: Float[Array, '#B #H #T #S'] | None = None,
  scale: float | None = None,
  soft_cap: float = 0.0,
  sinks: Float[Array, 'H'] | None = None,
) -> Float[Array, 'B H T S']:
  """Return `attention_weights` for every head of every example, always float32.

  The arguments are those of `multi_head_attention`.

  >>> multi_head_attention_weights(jnp.ones((1, 2, 4, 8)), jnp.ones((1, 3, 2, 8))).shape
  (1, 4, 2, 3)
  """

  def one_head(q, kv, mask, bias, sink):
    kwargs = dict(scale=scale, soft_cap=soft_cap)
    return attention_weights(q, *kv, mask=mask, bias=bias, sink=sink, **kwargs)

  return _over_heads(one_head, q, (k,), mask, bias, sinks).transpose(0, 2, 1, 3)


def weighted_values(
  weights: Float[Array, 'B H T S'], v: Float[Array, 'B S G V']
) -> Float[Array, 'B T H V']:
  """Return weights @ v for every head, as after dropout of the weights; in v's dtype.

  A NaN or Inf in v reaches the rows whose weight of it is not 0, and no other row.

  >>> weighted_values(jnp.ones((1, 4, 2, 3)), jnp.ones((1, 3, 2, 8))).shape
  (1, 2, 4, 8)
  """

  def one_head(weights, v):
    v, nonfinite = _without_nonfinite_rows(v)
    return matmul(jnp.where(nonfinite & (weights != 0), jnp.nan, weights), v)

  (B, H, T, S), G = weights.shape, v.shape[2]
  in_group = jax.vmap(one_head, in_axes=(0, None), out_axes=1)
  in_example = jax.vmap(in_group, in_axes=(0, 1), out_axes=1)
  grouped = weights.astype(v.dtype).reshape(B, G, H // G, T, S)
  return jax.vmap(in_example)(grouped, v).reshape(B, T, H, v.shape[3]).astype(v.dtype)


def _check_one_head(q, k):
  if q.ndim != 2 or k.ndim != 2:
    raise ValueError(
      f'attention is for one head, q [T, K] and k [S, K], not {q.shape} and {k.shape}: use '
      'multi_head_attention or dot_product_attention of transformer for [B, T, H, K], or jax.vmap'
    )


def _weights(q, k, mask, bias, scale, soft_cap=0.0, sink=None, nonfinite=None, assume_finite=False):
  """softmax(q k.T / sqrt(K)), 0 where masked; NaN in rows that may attend to a nonfinite source."""
  if mask is not None:
    if getattr(mask, 'dtype', None) != jnp.bool_:
      raise TypeError(
        f'mask is {getattr(mask, "dtype", type(mask).__name__)}, but must be a boolean array (True '
        '= may attend): pass mask.dense(T, S) for an AttentionMask, mask != 0 for a mask of '
        'integers, or bias=mask for numbers to add to the scores'
      )
    if not assume_finite:
      k, nonfinite_keys = _without_nonfinite_rows(k)
      nonfinite = nonfinite_keys if nonfinite is None else nonfinite | nonfinite_keys
  scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
  scores = soft_capped(matmul_nt(q, k).astype(jnp.float32) * scale, soft_cap)
  scores = scores if bias is None else scores + bias
  scores = scores if nonfinite is None else jnp.where(nonfinite, jnp.nan, scores)
  if sink is not None:
    T, S = scores.shape
    scores = jnp.concatenate([scores, jnp.full((T, 1), sink, jnp.float32)], axis=1)
    if mask is not None:
      mask = jnp.pad(jnp.broadcast_to(mask, (T, S)), ((0, 0), (0, 1)), constant_values=True)
  weights = jax.nn.softmax(scores) if mask is None else _masked_softmax(scores, mask)
  return weights if sink is None else weights[:, :-1]


@jax.custom_jvp
def _masked_softmax(scores, mask):
  """Softmax over the allowed sources; exactly 0 for the others, and in rows that allow none."""
  scores = jnp.where(mask, scores, -jnp.inf)
  peak = jnp.max(scores, axis=-1, keepdims=True)
  e = jnp.exp(scores - jnp.where(peak == -jnp.inf, 0, peak))
  total = jnp.sum(e, axis=-1, keepdims=True)
  # masked again, so that a NaN row gives no NaN to a source that it may not attend to
  return jnp.where(mask, e / jnp.where(total == 0, 1, total), 0)


@_masked_softmax.defjvp
def _masked_softmax_derivative(primals, tangents):
  """dp = p (ds - sum(p ds)).

  JAX's own rule would let a masked NaN into the gradient of its row. The tangent is masked both
  before and after, because reverse mode transposes this rule.
  """
  (_, mask), (tangent, _) = primals, tangents
  weights = _masked_softmax(*primals)
  masked = jnp.where(mask, tangent, 0)
  out = weights * (masked - jnp.sum(weights * masked, axis=-1, keepdims=True))
  return weights, jnp.where(mask, out, 0)


def _without_nonfinite_rows(x):
  """Return (x with its rows that have NaN or Inf set to 0, which rows those are).

  A weight of 0 is not enough, because 0 * NaN is NaN.
  """
  nonfinite = ~jnp.all(jnp.isfinite(x), axis=-1)
  return jnp.where(nonfinite[:, None], 0, x), nonfinite


def _over_heads(head, q, kv, mask, bias, sinks):
  """Map head(q, kv, mask, bias, sink), a function of one head, over examples, groups and heads."""
  (B, T, H, K), (_, S, G, _) = q.shape, kv[0].shape
  if H % G:
    raise ValueError(f'{G} key/value heads do not divide {H} query heads: choose a divisor of {H}')

  def grouped(x, name):  # [#B, #H, #T, #S] -> [B, G, H/G, T, S]; XLA copies nothing
    if x is None:
      return None
    try:
      return jnp.broadcast_to(x, (B, H, T, S)).reshape(B, G, H // G, T, S)
    except ValueError as error:
      raise ValueError(
        f'{name} of shape {x.shape} does not broadcast to [B, H, T, S] = {(B, H, T, S)}: give it '
        'four axes, of size 1 where it is the same for all'
      ) from error

  in_group = jax.vmap(head, in_axes=(1, None, 0, 0, 0), out_axes=1)
  in_example = jax.vmap(in_group, in_axes=(1, 1, 0, 0, 0), out_axes=1)
  mask, bias = grouped(mask, 'mask'), grouped(bias, 'bias')
  sinks = None if sinks is None else sinks.reshape(G, H // G)
  in_batch = jax.vmap(in_example, in_axes=(0, 0, 0, 0, None))
  y = in_batch(q.reshape(B, T, G, H // G, K), kv, mask, bias, sinks)
  return y.reshape(B, T, H, y.shape[-1])
