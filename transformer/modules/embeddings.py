"""From a batch to float32[B, T, D]: tokens and where they stand."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer.functional import positions
from transformer.functional.losses import Mean, linear_cross_entropy
from transformer.functional.products import product_nt
from transformer.modules.config import ModelConfig


class Tokens(nnx.Module):
  """A table of one vector per token type, read forwards (embed) and backwards (attend)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    std = config.width**-0.5  # with scale_embedding a token enters the residual stream at scale 1
    self.table = nnx.Param(std * jax.random.normal(rngs.params(), (config.vocab, config.width)))

  def __call__(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """The tokens' vectors, times sqrt D if the config says so (Vaswani et al. 2017, 3.4)."""
    scale = math.sqrt(self.config.width) if self.config.scale_embedding else 1.0
    return self.table[...][tokens] * scale

  def attend(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T N']:
    """x tableT: the logits of a model whose output layer is tied to its embedding."""
    return product_nt(x, self.table[...], self.config.dtype)

  def cross_entropy(self, x: Float[Array, 'B T D'], targets, weights, **how) -> tuple[Mean, Mean]:
    """`losses.linear_cross_entropy` of what `attend` would give, without its memory."""
    table, dtype = self.table[...], self.config.dtype
    return linear_cross_entropy(x, table, targets, weights, dtype=dtype, **how)


class Positions(nnx.Module):
  """What is added to an embedding for where it stands; nothing for rotary, relative and alibi."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    if config.position == 'learned':
      shape = (config.length, config.width)
      self.table = nnx.Param(config.width**-0.5 * jax.random.normal(rngs.params(), shape))

  def __call__(
    self, x: Float[Array, 'B T D'], positions_: Int[Array, 'B T']
  ) -> Float[Array, 'B T D']:
    """x plus the vectors of its positions."""
    if self.config.position == 'sinusoidal':
      return x + positions.sinusoidal(positions_, self.config.width)
    if self.config.position == 'learned':
      # beyond the table there is no answer; jax would clamp to the last row without a word
      return x + jnp.take(self.table[...], positions_, axis=0, mode='fill', fill_value=jnp.nan)
    return x
