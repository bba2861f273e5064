"""What is minimised, as (sum, weight): sums add over any split of a batch, and divide once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class Mean(NamedTuple):
  """A weighted mean that is not yet divided, so that it adds over microbatches and devices."""

  sum: Float[Array, '']
  weight: Float[Array, '']

  @property
  def value(self) -> Float[Array, '']:
    """sum / weight, and 0 where nothing had weight."""
    return self.sum / jnp.where(self.weight == 0, 1, self.weight)


def cross_entropy(
  logits: Float[Array, '*B N'],
  targets: Int[Array, '*B'],
  weights: Float[Array, '*B'],
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> Mean:
  """-sum_n p(n) log softmax(logits)(n), p = (1 - a) onehot(target) + a / N, a the label smoothing.

  Args:
    logits: of any dtype; computed in float32.
    targets: the true classes.
    weights: how much each position counts, 0 for padding.
    label_smoothing: a; 0 gives the plain negative log-likelihood, in nats.
    z_loss: adds z_loss log(Z)^2, which keeps the softmax's normaliser Z near 1.

  Returns:
    The weighted sum and the sum of weights.

  Szegedy et al. 2016, section 7 (smoothing over all N classes, the target included);
  Chowdhery et al. 2022, section 5 (z-loss).

  >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([1, 0]), jnp.array([1., 0.])).value.round(3)
  Array(1.386, dtype=float32)
  """
  # a position of weight 0 may hold anything, Inf and NaN too, and has no gradient
  logits = jnp.where((weights == 0)[..., None], 0, logits.astype(jnp.float32))
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  if label_smoothing or z_loss:
    log_z = jax.nn.logsumexp(logits, axis=-1)
    uniform = log_z - jnp.mean(logits, axis=-1)  # cross-entropy with 1/N on every class
    loss = (1 - label_smoothing) * loss + label_smoothing * uniform + z_loss * log_z**2
  return Mean(jnp.sum(loss * weights), jnp.sum(weights))


def accuracy(
  logits: Float[Array, '*B N'], targets: Int[Array, '*B'], weights: Float[Array, '*B']
) -> Mean:
  """How often the likeliest class is the target.

  >>> accuracy(jnp.eye(3), jnp.array([0, 1, 2]), jnp.ones(3)).value
  Array(1., dtype=float32)
  """
  return Mean(jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights), jnp.sum(weights))
