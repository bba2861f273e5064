"""Pooling of a sequence into one vector by the attention of a learned query."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from transformer.functional import masks
from transformer.modules.attention import Attention, View
from transformer.modules.config import ModelConfig
from transformer.modules.layers import FeedForward, Norm


class Probe(nnx.Module):
  """y + FeedForward(norm(y)), where y is the attention of one learned query to all states.

  Lee et al. 2019, https://arxiv.org/abs/1810.00825, section 3.2; as in SigLIP.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.query = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.width,)))
    self.attention = Attention(config, rngs, name='probe')
    self.norm = Norm(config)
    self.feedforward = FeedForward(config, rngs)

  def __call__(
    self, states: Float[Array, 'B T D'], real: Bool[Array, 'B T']
  ) -> Float[Array, 'B D']:
    """Return one vector for the real states of each row."""
    B, T, D = states.shape
    ones = jnp.ones((B, 1), jnp.int32)
    mask = masks.segments(ones, real.astype(jnp.int32)).with_array(1, T)
    query = jnp.broadcast_to(self.query[...], (B, 1, D))
    y, _ = self.attention(query, View(ones, mask), memory=states)
    return (y + self.feedforward(self.norm(y)))[:, 0]
