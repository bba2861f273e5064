"""From a batch to float32[B, T, D]: tokens, patches of an image, frames of a sound; and places."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer.functional import positions
from transformer.functional.losses import Mean, linear_cross_entropy
from transformer.functional.products import product, product_nt
from transformer.modules.config import ModelConfig
from transformer.modules.layers import ACTIVATIONS, Linear


class Tokens(nnx.Module):
  """A table of one vector per token type, read forwards (embed) and backwards (attend)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, reads: bool = False):
    self.config = config
    self.table = _table(config.vocab, config.width, rngs)
    # of the logits, where this is the table that they are read with
    self.bias = nnx.Param(jnp.zeros(config.vocab)) if reads and config.bias_output else None

  def __call__(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """The tokens' vectors, times sqrt D if the config says so (Vaswani et al. 2017, 3.4)."""
    scale = math.sqrt(self.config.width) if self.config.scale_embedding else 1.0
    return self.table[...][tokens] * scale

  def attend(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T N']:
    """x tableT + b: the logits, where x tableT may be divided by sqrt D (T5)."""
    logits = product_nt(self._scaled(x), self.table[...], self.config.dtype)
    return logits if self.bias is None else logits + self.bias[...]

  def cross_entropy(self, x: Float[Array, 'B T D'], targets, weights, **how) -> tuple[Mean, Mean]:
    """`losses.linear_cross_entropy` of what `attend` would give, without its memory."""
    x, table, dtype = self._scaled(x), self.table[...], self.config.dtype
    if self.bias is not None:  # the weight of one more input, which is always 1
      x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
      table = jnp.concatenate([table, self.bias[...][:, None]], axis=1)
    return linear_cross_entropy(x, table, targets, weights, dtype=dtype, **how)

  def _scaled(self, x):
    return x / math.sqrt(self.config.width) if self.config.scale_logits else x


class Types(nnx.Module):
  """A vector for each kind of token, such as BERT's sentences A and B (Devlin et al. 2019)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.table = _table(config.types, config.width, rngs)

  def __call__(self, types: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """The vector of each token's type."""
    return self.table[...][types]


class Patches(nnx.Module):
  """Squares of an image, each made a vector, after one learned vector that will sum them up.

  Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, equation 1.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.projection = Linear(config, config.features, config.width, rngs)
    self.first = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.width,)))

  def __call__(
    self, patches: Float[Array, 'B S X'], segments: Int[Array, 'B S']
  ) -> tuple[Float[Array, 'B S+1 D'], Int[Array, 'B S+1']]:
    """The vectors and their segments: one more than there are patches."""
    x = self.projection(patches)
    first = jnp.broadcast_to(self.first[...], (len(x), 1, x.shape[-1]))
    return jnp.concatenate([first, x], axis=1), jnp.pad(segments, ((0, 0), (1, 0)), mode='edge')


class Frames(nnx.Module):
  """Two convolutions over time, the second of which halves it.

  Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 2.2.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.activation = ACTIVATIONS[config.activation]
    self.conv1 = Convolution(config, config.features, rngs, stride=1)
    self.conv2 = Convolution(config, config.width, rngs, stride=2)

  def __call__(
    self, frames: Float[Array, 'B S X'], segments: Int[Array, 'B S']
  ) -> tuple[Float[Array, 'B (S+1)//2 D'], Int[Array, 'B (S+1)//2']]:
    """The vectors and their segments: one for every two frames. Padding is read as silence, 0."""
    real = (segments != 0)[..., None]
    x = self.activation(self.conv1(jnp.where(real, frames, 0)))
    return self.activation(self.conv2(jnp.where(real, x, 0))), segments[:, ::2]


class Convolution(nnx.Module):
  """y_t = x_{t-1} W_0 + x_t W_1 + x_{t+1} W_2 + b, at every stride-th t."""

  def __init__(self, config: ModelConfig, inputs: int, rngs: nnx.Rngs, *, stride: int):
    self.dtype, self.stride = config.dtype, stride
    shape = (3, inputs, config.width)
    self.kernel = nnx.Param(jax.nn.initializers.glorot_uniform()(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(config.width)) if config.bias else None

  def __call__(self, x: Float[Array, 'B S I']) -> Float[Array, 'B _ D']:
    S, padded = x.shape[1], jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    near = jnp.concatenate([padded[:, i : i + S : self.stride] for i in range(3)], axis=-1)
    kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1])
    y = product(near, kernel, self.dtype).astype(jnp.float32)
    return y if self.bias is None else y + self.bias[...]


class Positions(nnx.Module):
  """What is added to an embedding for where it stands; nothing for rotary, relative and alibi."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, length: int):
    self.config = config
    if config.position == 'learned':
      self.table = _table(length, config.width, rngs)

  def __call__(
    self, x: Float[Array, 'B T D'], positions_: Int[Array, 'B T']
  ) -> Float[Array, 'B T D']:
    """x plus the vectors of its positions."""
    scheme = self.config.position
    if scheme.startswith('sinusoidal'):
      halves = scheme == 'sinusoidal_halves'
      return x + positions.sinusoidal(positions_, self.config.width, halves=halves)
    if scheme == 'learned':
      # beyond the table there is no answer; jax would clamp to the last row without a word
      return x + jnp.take(self.table[...], positions_, axis=0, mode='fill', fill_value=jnp.nan)
    return x


def _table(rows, width, rngs):
  # with scale_embedding a token enters the residual stream at scale 1
  return nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (rows, width)))
