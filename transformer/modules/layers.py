"""Linear, Norm and FeedForward, of which layers consist.

A module holds `nnx.Param`s and its config, nothing else. Dropout is on if and only if a key is
given.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from transformer.functional import platforms
from transformer.functional.activations import ACTIVATIONS
from transformer.functional.dropout import dropout
from transformer.functional.matmul import matmul
from transformer.functional.normalization import normalize
from transformer.modules.config import ModelConfig
from transformer.modules.sites import site


def split_key(key: Key[Array, ''] | None, n: int) -> Key[Array, ' n'] | list[None]:
  """Return n keys split from a key, or n times None if it is None."""
  return [None] * n if key is None else jax.random.split(key, n)


def along_last(parameter: Float[Array, ' D'], x: Float[Array, '*B D']) -> Float[Array, '*_ D']:
  """Return a parameter with as many axes as x, for `jax_numpy_rank_promotion='raise'`."""
  return parameter.reshape((1,) * (x.ndim - 1) + parameter.shape)


class Linear(nnx.Module):
  """x W + b, with operands in the config's dtype and the result in float32.

  The kernel W is [inputs, outputs]; stacked layers have a leading layer axis.

  Args:
    config: of the model.
    inputs: I, size of x.
    outputs: O, size of the result.
    rngs: for fresh parameters.
    bias: whether there is a b; None for `config.bias`.
  """

  def __init__(
    self,
    config: ModelConfig,
    inputs: int,
    outputs: int,
    rngs: nnx.Rngs,
    *,
    bias: bool | None = None,
  ):
    self.dtype, self.platform = config.dtype, config.platform
    initial = jax.nn.initializers.glorot_uniform()(rngs.params(), (inputs, outputs))
    self.kernel = nnx.Param(initial)
    has_bias = config.bias if bias is None else bias
    self.bias = nnx.Param(jnp.zeros(outputs)) if has_bias else None
    self.adapter: Any = nnx.data(None)  # see modules.adapters

  def __call__(self, x: Float[Array, '*B I']) -> Float[Array, '*B O']:
    y = matmul(x, self.weight, self.dtype, platform=self.platform).astype(jnp.float32)
    return y if self.bias is None else y + along_last(self.bias[...], y)

  @property
  def weight(self) -> Float[Array, '*L I O']:
    """W, with its adapter added, if any."""
    kernel = self.kernel[...]
    return kernel if self.adapter is None else kernel + self.adapter()


def fused_linear(x: Float[Array, '*B I'], *layers: Linear) -> list[Float[Array, '*B _']]:
  """Return [layer(x) for layer in layers], computed as one wide product, which is faster."""
  dtype, platform = layers[0].dtype, layers[0].platform
  kernel = jnp.concatenate([layer.weight for layer in layers], axis=1)
  y = matmul(x, kernel, dtype, platform=platform).astype(jnp.float32)
  ends = list(itertools.accumulate(layer.kernel.shape[1] for layer in layers))
  return [
    part if layer.bias is None else part + along_last(layer.bias[...], part)
    for part, layer in zip(jnp.split(y, ends[:-1], axis=-1), layers, strict=True)
  ]


class Norm(nnx.Module):
  """LayerNorm (x - mean) / sqrt(var + e) scale + bias, or RMSNorm x / sqrt(mean x^2 + e) scale.

  Computed in float32. Ba et al. 2016, https://arxiv.org/abs/1607.06450; Zhang & Sennrich 2019,
  https://arxiv.org/abs/1910.07467.

  Args:
    config: of the model; `config.norm` chooses.
    width: size of x; 0 for `config.width`.
  """

  def __init__(self, config: ModelConfig, width: int = 0):
    self.kind, self.epsilon = config.norm, config.norm_epsilon
    self.scale = nnx.Param(jnp.ones(width or config.width))
    has_bias = (config.bias or config.bias_norm) and config.norm == 'layer'
    self.bias = nnx.Param(jnp.zeros(width or config.width)) if has_bias else None

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    y = normalize(x, self.epsilon, centered=self.kind == 'layer')
    y = y * along_last(self.scale[...], y)
    return y if self.bias is None else y + along_last(self.bias[...], y)


class FeedForward(nnx.Module):
  """activation(x W) O, or gated: (activation(x W) * x G) O.

  Vaswani et al. 2017, equation 2; Shazeer 2020, https://arxiv.org/abs/2002.05202.

  Args:
    config: of the model.
    rngs: for fresh parameters.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config, D, F = config, config.width, config.feedforward
    bias = config.bias or config.bias_feedforward
    self.hidden = Linear(config, D, F, rngs, bias=bias)
    self.gate = Linear(config, D, F, rngs, bias=bias) if config.gated else None
    self.out = Linear(config, F, D, rngs, bias=bias)

  def __call__(
    self, x: Float[Array, 'B T D'], key: Key[Array, ''] | None = None
  ) -> Float[Array, 'B T D']:
    hidden, gate = self.hidden(x), None if self.gate is None else self.gate(x)
    hidden = activate(self.config, hidden, gate)
    hidden = site('feedforward.hidden', hidden)
    return self.out(dropout(hidden, self.config.dropout, key))


def activate(
  config: ModelConfig, x: Float[Array, '*B F'], gate: Float[Array, '*B F'] | None = None
) -> Float[Array, '*B F']:
  """Return config.activation(x), multiplied by the gate if there is one.

  The gradient computes the activation again from x instead of storing its intermediate values: of
  gelu_tanh one array in float32 is stored instead of five. On a CPU they are stored, because
  computing takes longer there.
  """

  def compute(x, gate):
    y = ACTIVATIONS[config.activation](x)
    return y if gate is None else y * gate

  on_cpu = platforms.resolve(config.platform) == 'cpu'
  return compute(x, gate) if on_cpu else jax.checkpoint(compute)(x, gate)
