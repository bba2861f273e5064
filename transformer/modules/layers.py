"""Parameters + equations: Linear, Norm, FeedForward, Attention, and the one Block of every family.

A module holds `nnx.Param`s and its config, nothing else. Dropout is on exactly when a key is given.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional.attention import weighted_values
from transformer.functional.dropout import dropout
from transformer.functional.kernels import attention_weights_of, dot_product_attention
from transformer.functional.masks import AttentionMask
from transformer.functional.matmul import matmul
from transformer.functional.normalization import normalize
from transformer.functional.positions import rotary
from transformer.modules.cache import LayerCache
from transformer.modules.config import ModelConfig

ACTIVATIONS = {
  'relu': jax.nn.relu,
  'gelu_erf': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'silu': jax.nn.silu,
}


def split_key(key: Key[Array, ''] | None, n: int) -> Key[Array, ' n'] | list[None]:
  """`jax.random.split` where there is a key, else n times None."""
  return [None] * n if key is None else jax.random.split(key, n)


class Linear(nnx.Module):
  """x W + b, the product in the config's dtype, the result in float32."""

  def __init__(
    self,
    config: ModelConfig,
    inputs: int,
    outputs: int,
    rngs: nnx.Rngs,
    *,
    bias: bool | None = None,
  ):
    self.dtype = config.dtype
    initial = jax.nn.initializers.glorot_uniform()(rngs.params(), (inputs, outputs))
    self.kernel = nnx.Param(initial)
    has_bias = config.bias if bias is None else bias
    self.bias = nnx.Param(jnp.zeros(outputs)) if has_bias else None
    self.adapter: Any = nnx.data(None)  # see modules.adapters

  def __call__(self, x: Float[Array, '*B I']) -> Float[Array, '*B O']:
    y = matmul(x, self.weight, self.dtype).astype(jnp.float32)
    return y if self.bias is None else y + self.bias[...]

  @property
  def weight(self) -> Float[Array, '*L I O']:
    """W, and what an adapter adds to it."""
    kernel = self.kernel[...]
    return kernel if self.adapter is None else kernel + self.adapter()


def together(x: Float[Array, '*B I'], *layers: Linear) -> list[Float[Array, '*B _']]:
  """[layer(x) for layer in layers] as one product: a wide one is faster than many narrow ones."""
  dtype, sizes = layers[0].dtype, [layer.kernel.shape[1] for layer in layers]
  kernel = jnp.concatenate([layer.weight for layer in layers], axis=1)
  y = matmul(x, kernel, dtype).astype(jnp.float32)
  parts = jnp.split(y, list(itertools.accumulate(sizes[:-1])), axis=-1)
  return [
    part if layer.bias is None else part + layer.bias[...]
    for part, layer in zip(parts, layers, strict=True)
  ]


class Norm(nnx.Module):
  """LayerNorm (x - mean) / sqrt(var + e) scale + bias, or RMSNorm x / sqrt(mean x^2 + e) scale.

  Ba et al. 2016; Zhang & Sennrich 2019. In float32.
  """

  def __init__(self, config: ModelConfig, width: int = 0):
    self.kind, self.epsilon = config.norm, config.norm_epsilon
    self.scale = nnx.Param(jnp.ones(width or config.width))
    has_bias = config.bias and config.norm == 'layer'
    self.bias = nnx.Param(jnp.zeros(width or config.width)) if has_bias else None

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    y = normalize(x, self.epsilon, centred=self.kind == 'layer') * self.scale[...]
    return y if self.bias is None else y + self.bias[...]


class FeedForward(nnx.Module):
  """activation(x W) O, or gated: (activation(x W) * x G) O.

  Vaswani et al. 2017, equation 2; Shazeer 2020, https://arxiv.org/abs/2002.05202.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.hidden = Linear(config, config.width, config.feedforward, rngs)
    self.gate = Linear(config, config.width, config.feedforward, rngs) if config.gated else None
    self.out = Linear(config, config.feedforward, config.width, rngs)

  def __call__(
    self, x: Float[Array, 'B T D'], key: Key[Array, ''] | None = None
  ) -> Float[Array, 'B T D']:
    hidden = ACTIVATIONS[self.config.activation](self.hidden(x))
    if self.gate is not None:
      hidden = hidden * self.gate(x)
    return self.out(dropout(hidden, self.config.dropout, key))


class View(NamedTuple):
  """What queries may see: their own positions, a mask, and a bias over [B, H, T, S]."""

  positions: Int[Array, 'B T']
  mask: AttentionMask = AttentionMask()
  bias: Float[Array, '#B #H #T #S'] | None = None


class Attention(nnx.Module):
  """Concat(head_1, ..., head_H) W_O: projections around `dot_product_attention`.

  Keys and values are made apart from their use, so that one path serves self-attention, a cache and
  cross-attention. Vaswani et al. 2017, section 3.2.2.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, turns: bool):
    self.config, self.turns = config, turns  # turns: by rotary positions
    D, H, G, K = config.width, config.heads, config.groups, config.key_size
    bias = config.bias or config.bias_qkv
    self.query = Linear(config, D, H * K, rngs, bias=bias)
    self.key = Linear(config, D, G * K, rngs, bias=bias)
    self.value = Linear(config, D, G * K, rngs, bias=bias)
    self.out = Linear(config, H * K, D, rngs)

  def queries(
    self, x: Float[Array, 'B T D'], positions: Int[Array, 'B T']
  ) -> Float[Array, 'B T H K']:
    """What is asked at each position of x."""
    return self._heads(self.query(x), positions)

  def keys_values(
    self, x: Float[Array, 'B S D'], positions: Int[Array, 'B S'] | None = None
  ) -> tuple[Float[Array, 'B S G K'], Float[Array, 'B S G K']]:
    """What can be attended to at each position of x."""
    k, v = together(x, self.key, self.value)
    return self._heads(k, positions), self._heads(v)

  def queries_keys_values(
    self, x: Float[Array, 'B T D'], positions: Int[Array, 'B T']
  ) -> tuple[Float[Array, 'B T H K'], Float[Array, 'B T G K'], Float[Array, 'B T G K']]:
    """All three of the same x."""
    q, k, v = together(x, self.query, self.key, self.value)
    return self._heads(q, positions), self._heads(k, positions), self._heads(v)

  def _heads(self, x, positions=None):
    """[B, T, heads K] by heads, turned by their positions, rounded to the config's dtype."""
    x = x.reshape(*x.shape[:2], -1, self.config.key_size)
    if self.turns and positions is not None:
      x = rotary(x, positions, self.config.rotary_base)
    return x.astype(self.config.dtype)

  def __call__(
    self,
    q: Float[Array, 'B T H K'],
    k: Float[Array, 'C S G K'],
    v: Float[Array, 'C S G K'],
    view: View,
    *,
    assume_finite: bool = False,
    key: Key[Array, ''] | None = None,
    weights: bool = False,
  ) -> tuple[Float[Array, 'B T D'], Float[Array, 'C H U S'] | None]:
    """What q's positions take from v; with `weights`, also the attention weights.

    B may be a multiple of C: neighbouring rows of q (the beams of a sentence) then share a row of k
    and v, which is not copied, and the view's mask is over [C, H, B/C T, S].
    """
    config, (B, T, H, K) = self.config, q.shape
    q = q.astype(k.dtype).reshape(len(k), -1, H, K)  # k may be kept wider
    kwargs: dict[str, Any] = dict(bias=view.bias, scale=None if config.scale_attention else 1.0)
    if key is not None and config.attention_dropout:
      p = attention_weights_of(q, k, view.mask, **kwargs)
      y = weighted_values(dropout(p, config.attention_dropout, key), v)
    else:
      y = dot_product_attention(
        *(q, k, v, view.mask), **kwargs, assume_finite=assume_finite, platform=config.platform
      )
    seen = attention_weights_of(q, k, view.mask, **kwargs) if weights else None
    return self.out(y.reshape(B, T, -1)), seen


class Block(nnx.Module):
  """Self-attention, cross-attention where there is a memory, feed-forward: residual sublayers.

  The same Block serves encoder, decoder and encoder-decoder, pre- and post-norm.
  Vaswani et al. 2017, figure 1; Xiong et al. 2020 for pre-norm.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, cross: bool):
    self.config = config
    self.attention = Attention(config, rngs, turns=config.position == 'rotary')
    self.attention_norm = Norm(config)
    self.cross = Attention(config, rngs, turns=False) if cross else None
    self.cross_norm = Norm(config) if cross else None
    self.feedforward = FeedForward(config, rngs)
    self.feedforward_norm = Norm(config)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    view: View,
    memory: tuple[Any, View] | None = None,
    cache: LayerCache | None = None,
    *,
    key: Key[Array, ''] | None = None,
    weights: bool = False,
  ):
    """One layer.

    Args:
      x: the residual stream.
      view: what self-attention may see.
      memory: what cross-attention may see: the encoder's states, or keys and values [B, G, S, K]
        made of them before, and the view of them.
      cache: where self-attention keeps its keys and values, if it does.
      key: turns dropout on.
      weights: also return the attention weights.

    Returns:
      (x after the layer, the cache, {'self': [B, H, T, S], 'cross': [C, H, B/C T, S]}).
    """
    keys = split_key(key, 6)
    maps = {}

    def self_attention(h):
      nonlocal cache
      q, k, v = self.attention.queries_keys_values(h, view.positions)
      if cache is not None:
        cache = cache.write(k, v)
        k, v = cache.k.transpose(0, 3, 1, 2), cache.v.swapaxes(1, 2)
      # a cache holds 0 where there is no token; of more new tokens each must not see the next
      one_by_one = cache is not None and x.shape[1] == 1
      how: dict[str, Any] = dict(assume_finite=one_by_one, key=keys[0], weights=weights)
      y, maps['self'] = self.attention(q, k, v, view, **how)
      return y

    def cross_attention(h):
      states, memory_view = memory
      prepared = isinstance(states, tuple)
      if prepared:
        k, v = states[0].transpose(0, 3, 1, 2), states[1].swapaxes(1, 2)
      else:
        k, v = self.cross.keys_values(states)
      q = self.cross.queries(h, view.positions)
      how: dict[str, Any] = dict(assume_finite=prepared, key=keys[1], weights=weights)
      y, maps['cross'] = self.cross(q, k, v, memory_view, **how)
      return y

    x = self._residual(x, self.attention_norm, self_attention, keys[2])
    if memory is not None:
      x = self._residual(x, self.cross_norm, cross_attention, keys[3])
    x = self._residual(x, self.feedforward_norm, lambda h: self.feedforward(h, keys[4]), keys[5])
    return x, cache, maps

  def _residual(self, x, norm, sublayer, key):
    """x + dropout(f(norm(x))), or the paper's norm(x + dropout(f(x)))."""
    if self.config.prenorm:
      return x + dropout(sublayer(norm(x)), self.config.dropout, key)
    return norm(x + dropout(sublayer(x), self.config.dropout, key))
