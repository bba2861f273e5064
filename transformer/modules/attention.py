"""Multi-head attention with its projections."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from transformer.functional.attention import weighted_values
from transformer.functional.dropout import dropout
from transformer.functional.kernels import attention_weights_of, dot_product_attention
from transformer.functional.masks import AttentionMask
from transformer.modules.cache import LayerCache
from transformer.modules.config import ModelConfig
from transformer.modules.layers import Linear, Norm, fused_linear
from transformer.modules.sites import edits, reads, site


class View(NamedTuple):
  """Mask and positions of an attention, for all heads of a layer.

  Attributes:
    positions: of the targets.
    mask: which sources a target may attend to.
    bias: added to the scores, broadcast to [B, H, T, S].
    rotate: f(queries or keys, positions) returns them rotated; None for no rotation.
    real: which targets are not padding; None if all are real.
    normalized: whether the input of the sublayer is normalized (with pre-norm).
  """

  positions: Int[Array, 'B T']
  mask: AttentionMask = AttentionMask()
  bias: Float[Array, '#B #H #T #S'] | None = None
  rotate: Callable[[Array, Array], Array] | None = None
  real: Bool[Array, 'B T'] | None = None
  normalized: bool = True


class Attention(nnx.Module):
  """Multi-head attention: Concat(head_1, ..., head_H) W_O.

  The kernels [D, heads K] of queries, keys and values have head h in columns h K to (h + 1) K, the
  kernel of the output [H K, D] has it in these rows. Query head h uses key/value head h // (H / G).

  Vaswani et al. 2017, section 3.2.2.

  Args:
    config: of the stack.
    rngs: for fresh parameters.
    name: prefix of its sites.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, name: str = 'attention'):
    self.config, self.name = config, name
    D, H, G, K = config.width, config.heads, config.groups, config.key_size
    bias = config.bias or config.bias_qkv
    self.query = Linear(config, D, H * K, rngs, bias=bias)
    self.key = Linear(config, D, G * K, rngs, bias=bias)
    self.value = Linear(config, D, G * K, rngs, bias=bias)
    self.out = Linear(config, H * K, D, rngs, bias=config.bias or config.bias_attention)
    self.query_norm, self.key_norm = (
      None if config.qk_norm == 'none' else Norm(config, heads * K)
      for heads in ((H, G) if config.qk_norm == 'all' else (1, 1))
    )
    self.sinks = nnx.Param(jnp.zeros(H)) if config.attention_sinks else None

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    view: View,
    *,
    memory: Any = None,
    cache: LayerCache | None = None,
    key: Key[Array, ''] | None = None,
  ) -> tuple[Float[Array, 'B T D'], LayerCache | None]:
    """Return (the output at each position, the cache with the keys and values of x or None).

    Args:
      x: the targets, and the sources of self-attention.
      view: mask and positions.
      memory: the sources of cross-attention: states [C, S, D], or their keys [C, G, K, S] and
        values [C, G, S, K]. B may be a multiple of C: neighboring rows of x (the beams of a
        sentence) then share a row of the memory, and the mask is over [C, H, B/C T, S].
      cache: keys and values of earlier tokens, for self-attention.
      key: turns dropout on.
    """
    assume_finite = False
    if memory is not None:
      assume_finite = isinstance(memory, tuple)
      q = self._heads(self.query(x), self.query_norm, view)
      k, v = _from_storage(*memory) if assume_finite else self.keys_values(memory)
    else:
      q, k, v = fused_linear(x, self.query, self.key, self.value)
      q, k = self._heads(q, self.query_norm, view), self._heads(k, self.key_norm, view)
      v = self._heads(v)
    if cache is not None:
      cache = cache.write(k, v)
      k, v = _from_storage(cache.k, cache.v)
      # with one new token no masked slot holds a NaN; of several new ones a later one may
      assume_finite = x.shape[1] == 1
    q, k, v = (site(f'{self.name}.{name}', x) for name, x in zip(_QKV, (q, k, v), strict=True))
    y = self._attend(q, k, v, view, assume_finite, key).reshape(q.shape)
    y = site(f'{self.name}.heads', y)
    return self.out(y.reshape(*x.shape[:2], y.shape[2] * y.shape[3])), cache

  def keys_values(
    self, memory: Float[Array, 'B S D']
  ) -> tuple[Float[Array, 'B S G K'], Float[Array, 'B S G K']]:
    """Return the keys and values of the states of a memory."""
    k, v = fused_linear(memory, self.key, self.value)
    return self._heads(k, self.key_norm), self._heads(v)

  def _heads(self, x, norm=None, view=None):
    """Reshape [B, T, heads K] to [B, T, heads, K], normalize, rotate, and cast to the dtype."""
    if norm is not None and self.config.qk_norm == 'all':
      x = norm(x)
    x = x.reshape(*x.shape[:2], x.shape[2] // self.config.key_size, self.config.key_size)
    if norm is not None and self.config.qk_norm == 'head':
      x = norm(x)
    if view is not None and view.rotate is not None:
      x = view.rotate(x, view.positions)
    return x.astype(self.config.dtype)

  def _attend(self, q, k, v, view, assume_finite, key):
    """Return the output of each head: [C, B/C T, H, K]."""
    config, weights = self.config, f'{self.name}.weights'
    (B, T, *of_heads), C = q.shape, k.shape[0]  # a cache may have a wider dtype
    q = q.astype(k.dtype).reshape(C, T * (B // max(C, 1) or 1), *of_heads)
    scale = config.attention_scale or (None if config.scale_attention else 1.0)
    kwargs: dict[str, Any] = dict(bias=view.bias, scale=scale, soft_cap=config.soft_cap_attention)
    kwargs['sinks'] = None if self.sinks is None else self.sinks[...]
    uses_dropout = key is not None and config.attention_dropout
    if uses_dropout or edits(weights):
      p = site(weights, attention_weights_of(q, k, view.mask, **kwargs))
      return weighted_values(dropout(p, config.attention_dropout, key), v)
    if reads(weights):
      site(weights, attention_weights_of(q, k, view.mask, **kwargs))
    kwargs |= dict(assume_finite=assume_finite, platform=config.platform)
    return dot_product_attention(q, k, v, view.mask, **kwargs)


_QKV = ('queries', 'keys', 'values')


def _from_storage(k, v):
  """Transpose keys [C, G, K, S] and values [C, G, S, K], as in a cache, to [C, S, G, K]."""
  return k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)
