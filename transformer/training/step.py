"""The training step: a pure function of (state, batch, key)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from transformer.functional.losses import Mean

Model = Any  # a Flax module
Loss = Callable[[Model, dict[str, jax.Array], jax.Array | None], tuple[Mean, dict[str, Mean]]]


class State(NamedTuple):
  """Everything that training changes.

  Attributes:
    step: number of steps so far; also the position in the data.
    model: the parameters.
    optimizer: Optax's state.
    average: exponential moving average of the parameters; None without one.
  """

  step: jax.Array
  model: Model
  optimizer: optax.OptState
  average: Model | None


def init_state(model: Model, optimizer: optax.GradientTransformation, *, ema: float = 0.0) -> State:
  """Return the state before the first step, with an average of the parameters unless ema is 0."""
  average = jax.tree.map(jnp.copy, model) if ema else None
  return State(jnp.zeros((), jnp.int32), model, optimizer.init(model), average)


def train_step(
  state: State,
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  microbatches: int = 1,
  ema: float = 0.0,
) -> tuple[State, dict[str, Any]]:
  """Return the state after one update, and metrics to log.

  The gradient of the summed loss of the batch is divided once, by the summed weight. Therefore it
  is the same for every division into microbatches and devices, except for random numbers of the
  loss (dropout, masked tokens). If the loss or gradient is not finite, only the step changes.

  Args:
    state: before the update; may be donated.
    batch: arrays [B, ...]; `microbatches` divides B.
    key: of the whole run; the step is folded in.
    loss: (model, batch, key) to (Mean of the loss, metrics).
    optimizer: turns gradients into updates.
    microbatches: number of parts that the batch is divided into, to save memory.
    ema: decay of the moving average of parameters, 0 for none; it starts as a plain mean.

  Returns:
    The new state and {'loss': Mean, ..., 'gradient_norm': scalar, 'finite': bool}.
  """
  key = jax.random.fold_in(key, state.step)
  gradient, metrics = _summed_gradient(state.model, batch, key, loss, microbatches)
  weight = jnp.maximum(metrics['loss'].weight, 1)
  gradient = jax.tree.map(lambda g: g / weight, gradient)
  norm = optax.global_norm(gradient)
  finite = jnp.isfinite(norm) & jnp.isfinite(metrics['loss'].sum)

  updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.model)
  model = optax.apply_updates(state.model, updates)
  average = state.average
  if average is not None:
    decay = jnp.minimum(ema, state.step / (state.step + 1.0))
    average = optax.incremental_update(model, average, 1 - decay)
  new = State(state.step, model, optimizer_state, average)
  new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
  metrics = dict(metrics, gradient_norm=norm, finite=finite)
  return new._replace(step=state.step + 1), metrics


def _summed_gradient(model, batch, key, loss: Loss, microbatches: int):
  """Return the gradient of the summed loss of a batch and its metrics, summed over microbatches."""

  def summed(model, part, key):
    mean, metrics = loss(model, part, key)
    return mean.sum, dict(metrics, loss=mean)

  # jitted, so that it is traced once for both of its uses
  differentiate = jax.jit(jax.grad(summed, has_aux=True))

  def add(total, part):
    index, part = part
    gradient_and_metrics = differentiate(model, part, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, gradient_and_metrics), None

  # every microbatches-th row, so that every microbatch has rows on every device
  split = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
  first = jax.tree.map(lambda x: x[0], split)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(differentiate, model, first, key)
  )
  parts = (jnp.arange(microbatches), split)
  return jax.lax.scan(add, zeros, parts, unroll=microbatches == 1)[0]


def train_steps(
  state: State, batches: dict[str, jax.Array], key: jax.Array, **kwargs: Any
) -> tuple[State, dict[str, Any]]:
  """Return the state after several steps in one call, which saves the time between calls.

  Args:
    state, key, kwargs: as for `train_step`.
    batches: stacked batches of one shape, arrays [steps, B, ...].

  Returns:
    The state after the last step, and the metrics of `train_step` with an axis of steps in front.
  """
  (steps,) = {len(array) for array in batches.values()}

  def one(state, batch):
    return train_step(state, batch, key, **kwargs)

  return jax.lax.scan(one, state, batches, unroll=steps == 1)
