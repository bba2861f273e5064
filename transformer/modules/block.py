"""The layer of every encoder and decoder: attention and feed-forward as residual sublayers."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from transformer.functional.dropout import dropout
from transformer.modules.attention import Attention, View
from transformer.modules.cache import LayerCache
from transformer.modules.config import ModelConfig
from transformer.modules.experts import Experts
from transformer.modules.layers import FeedForward, Norm, along_last, split_key
from transformer.modules.sites import site


class BlockOutput(NamedTuple):
  """The result of a layer.

  Attributes:
    x: the residual stream after the layer.
    cache: the cache with the keys and values of the new tokens; None without a cache.
    aux: auxiliary losses by name, such as the balance of a router.
  """

  x: Float[Array, 'B T D']
  cache: LayerCache | None
  aux: dict[str, Array]


class Block(nnx.Module):
  """A layer of an encoder or decoder, pre- or post-norm.

  Residual sublayers: self-attention, cross-attention if `cross`, feed-forward. Vaswani et al. 2017,
  figure 1; Xiong et al. 2020, https://arxiv.org/abs/2002.04745, for pre-norm.

  Args:
    config: of the stack.
    rngs: for fresh parameters.
    cross: whether the layer cross-attends to a memory.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, cross: bool):
    self.config = config
    before, after = config.sublayer_norm != 'output', config.sublayer_norm != 'input'
    self.attention = Attention(config, rngs)
    self.attention_norm = Norm(config) if before else None
    self.attention_output_norm = Norm(config) if after else None
    self.cross = Attention(config, rngs, name='cross') if cross else None
    self.cross_norm = Norm(config) if cross and before else None
    self.cross_output_norm = Norm(config) if cross and after else None
    self.feedforward = (Experts if config.experts else FeedForward)(config, rngs)
    shared = config.parallel == 'one_norm'
    self.feedforward_norm = Norm(config) if before and not shared else None
    self.feedforward_output_norm = Norm(config) if after else None
    sublayers = {'attention': True, 'cross': cross, 'feedforward': True}
    for name, exists in sublayers.items():
      scale = nnx.Param(jnp.ones(config.width)) if config.layer_scale and exists else None
      setattr(self, f'{name}_layer_scale', scale)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    view: View,
    memory: tuple[Any, View] | None = None,
    cache: LayerCache | None = None,
    *,
    key: Key[Array, ''] | None = None,
  ) -> BlockOutput:
    """Run the layer.

    Args:
      x: the residual stream.
      view: mask and positions of self-attention.
      memory: (the sources of cross-attention, see `Attention`; their view), or None.
      cache: keys and values of earlier tokens, for self-attention.
      key: turns dropout on.
    """
    keys = split_key(key, 6)

    def attend(h):
      return self.attention(h, view, cache=cache, key=keys[0])

    def attend_to_memory(h):
      states, memory_view = memory
      return self.cross(h, memory_view, memory=states, key=keys[1])

    def feed_forward(h):
      if isinstance(self.feedforward, Experts):
        return self.feedforward(h, keys[4], view.real)
      return self.feedforward(h, keys[4]), {}

    source = None if self.config.parallel == 'none' else x  # the x that attention reads
    x, cache = self._residual(x, 'attention', attend, keys[2], normalized=view.normalized)
    if memory is not None:
      x, _ = self._residual(x, 'cross', attend_to_memory, keys[3])
    x, aux = self._residual(x, 'feedforward', feed_forward, keys[5], source)
    return BlockOutput(site('output', x), cache, aux)

  def _residual(self, x, name, sublayer, key, source=None, normalized=True):
    """Return (x + dropout(f(norm(x))), or post-norm norm(x + dropout(f(x))); f's second result).

    f is the sublayer. It reads `source` in place of x if that is given, and no norm is applied to
    its input unless `normalized`.
    """
    norm, output_norm = getattr(self, f'{name}_norm'), getattr(self, f'{name}_output_norm')
    if name == 'feedforward' and self.config.parallel == 'one_norm':
      norm = self.attention_norm
    h = x if source is None else source
    normalized = normalized and norm is not None and self.config.prenorm
    y, extra = sublayer(norm(h) if normalized else h)
    y = y if output_norm is None else output_norm(y)
    scale = getattr(self, f'{name}_layer_scale')
    y = y if scale is None else y * along_last(scale[...], y)
    x = x + dropout(site(f'{name}.output', y), self.config.dropout, key)
    return x if self.config.prenorm else norm(x), extra
