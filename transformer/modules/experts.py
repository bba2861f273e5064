"""Mixture of experts: several feed-forward layers, of which each token uses a few."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from transformer.functional.dropout import dropout
from transformer.modules.config import ModelConfig
from transformer.modules.layers import FeedForward, Linear, activate
from transformer.modules.sites import site


class Experts(nnx.Module):
  """sum_e p_e FeedForward_e(x) over the experts of the largest p = softmax(x W), for each token.

  No token is dropped: tokens are sorted by expert and multiplied group by group. The kernels of all
  experts are one array [E, D, F].

  Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; Gale et al. 2022,
  https://arxiv.org/abs/2211.15841, section 4. A shared expert is added for every token, times a
  gate sigmoid(x w): Qwen Team 2024, https://qwenlm.github.io/blog/qwen-moe.

  Args:
    config: of the stack.
    rngs: for fresh parameters.
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
    """Return the output for each token, and the balance loss of the router.

    Args:
      x: the residual stream.
      key: turns dropout on.
      real: which tokens are not padding; only these count in the balance loss. None for all.
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
    """Return the outputs of the k experts of each token, [R k, D]."""
    order = jnp.argsort(chosen)  # stable: the tokens of an expert stay in order
    sizes = jnp.bincount(chosen, length=self.config.experts).astype(jnp.int32)
    dtype, experts = self.config.dtype, self.experts

    def multiply(x, layer):
      kernel = layer.weight.astype(dtype)
      return jax.lax.ragged_dot(x.astype(dtype), kernel, sizes, preferred_element_type=jnp.float32)

    x = x[order // self.config.experts_per_token]
    hidden = multiply(x, experts.hidden)
    gate = None if experts.gate is None else multiply(x, experts.gate)
    hidden = activate(self.config, hidden, gate)
    y = multiply(dropout(hidden, self.config.dropout, key), experts.out)
    return y[jnp.argsort(order)]


def balance(
  p: Float[Array, 'B T E'], chosen: Int[Array, 'B T k'], real: Bool[Array, 'B T'] | None = None
) -> Float[Array, '']:
  """Return the balance loss E sum_e f_e P_e: 1 if all experts are used equally, else more.

  f_e is the share of the choices that are expert e, without a gradient; P_e is its mean
  probability. Fedus et al. 2022, https://arxiv.org/abs/2101.03961, equations 4 to 6.

  Args:
    p: probabilities of the router.
    chosen: the k experts of each token.
    real: which tokens are not padding; None for all.

  >>> balance(jnp.full((1, 2, 4), 0.25), jnp.array([[[0], [1]]]))
  Array(1., dtype=float32)
  """
  E = p.shape[-1]
  real = jnp.ones(p.shape[:2], bool) if real is None else real
  count = jnp.maximum(jnp.sum(real), 1)
  used = jnp.sum(jax.nn.one_hot(chosen, E) * real[..., None, None].astype(p.dtype), axis=(0, 1, 2))
  share = used / (count * chosen.shape[-1]).astype(p.dtype)
  mean = jnp.sum(jnp.where(real[..., None], p, 0), axis=(0, 1)) / count.astype(p.dtype)
  return E * jnp.sum(share * mean)
