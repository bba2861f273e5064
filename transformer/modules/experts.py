"""A mixture of experts: several feed-forward layers, of which each token takes a few."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from transformer.functional.activations import ACTIVATIONS
from transformer.functional.dropout import dropout
from transformer.modules.config import ModelConfig
from transformer.modules.layers import FeedForward, Linear
from transformer.modules.sites import site


class Experts(nnx.Module):
  """sum_e p_e FeedForward_e(x) over the experts of the largest p = softmax(x W), for each token.

  Every token is computed by all its experts, however many others chose them: tokens are sorted by
  expert and multiplied group by group. The kernels of all experts are one array [E, D, F].

  Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; Gale et al. 2022,
  https://arxiv.org/abs/2211.15841, section 4 (no token is dropped). With a shared expert, which
  each token takes by its own gate: Qwen Team 2024, https://qwenlm.github.io/blog/qwen-moe.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.router = Linear(config, config.width, config.experts, rngs, bias=False)
    self.experts = jax.vmap(lambda key: FeedForward(config, nnx.Rngs(key)))(
      jax.random.split(rngs.params(), config.experts)
    )
    self.shared: Any = None
    if config.shared_expert:
      shared = dataclasses.replace(config, feedforward=config.shared_expert)
      self.shared = FeedForward(shared, rngs)
      self.shared_gate = Linear(config, config.width, 1, rngs, bias=False)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    key: Key[Array, ''] | None = None,
    real: Bool[Array, 'B T'] | None = None,
  ) -> tuple[Float[Array, 'B T D'], dict[str, Array]]:
    """Return what the experts of each token add, and the balance loss of the router.

    Args:
      x: tokens.
      key: turns dropout on.
      real: which tokens are not padding, whose experts do not count; None: all.
    """
    p = jax.nn.softmax(site('feedforward.router', self.router(x)), axis=-1)
    weights, chosen = jax.lax.top_k(p, self.config.experts_per_token)
    if self.config.normalize_experts:
      weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    y = self._experts(x.reshape(-1, x.shape[-1]), chosen.reshape(-1), key)
    y = jnp.einsum('btkd,btk->btd', y.reshape(*chosen.shape, -1), weights)
    if self.shared is not None:
      y += jax.nn.sigmoid(self.shared_gate(x)) * self.shared(x, key)
    return y, {'router_balance': balance(p, chosen, real)}

  def _experts(self, x: Float[Array, 'R D'], chosen: Int[Array, ' Rk'], key):
    """FeedForward of the k experts of each token, [R k, D]."""
    order = jnp.argsort(chosen)  # stable: the tokens of an expert stay in order
    sizes = jnp.bincount(chosen, length=self.config.experts).astype(jnp.int32)
    dtype, of = self.config.dtype, self.experts

    def multiply(x, layer):
      kernel = layer.weight.astype(dtype)
      return jax.lax.ragged_dot(x.astype(dtype), kernel, sizes, preferred_element_type=jnp.float32)

    x = x[order // self.config.experts_per_token]
    hidden = ACTIVATIONS[self.config.activation](multiply(x, of.hidden))
    if of.gate is not None:
      hidden = hidden * multiply(x, of.gate)
    y = multiply(dropout(hidden, self.config.dropout, key), of.out)
    return y[jnp.argsort(order)]


def balance(
  p: Float[Array, 'B T E'], chosen: Int[Array, 'B T k'], real: Bool[Array, 'B T'] | None = None
) -> Float[Array, '']:
  """Return E sum_e f_e P_e: 1 if all experts are used alike, more the fewer are used.

  f_e is the share of the choices that are expert e, and P_e its mean probability; f has no
  gradient. Fedus et al. 2022, https://arxiv.org/abs/2101.03961, equations 4 to 6.

  >>> balance(jnp.full((1, 2, 4), 0.25), jnp.array([[[0], [1]]]))
  Array(1., dtype=float32)
  """
  E = p.shape[-1]
  real = jnp.ones(p.shape[:2], bool) if real is None else real
  count = jnp.maximum(jnp.sum(real), 1)
  used = jnp.sum(jax.nn.one_hot(chosen, E) * real[..., None, None], axis=(0, 1, 2))
  share = used / (count * chosen.shape[-1])
  mean = jnp.sum(jnp.where(real[..., None], p, 0), axis=(0, 1)) / count
  return E * jnp.sum(share * mean)
