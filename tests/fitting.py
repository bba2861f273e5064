"""The training loop of the tests that train a model on one batch."""

import functools

import jax
import optax


def fit(task, model, batch, *, steps, learning_rate, seed):
  """Train with Adam on one batch; return (the model, the loss of every step [steps]).

  Args:
    task: its `loss` is minimized.
    model: where to start.
    batch: of the task.
    steps: how many updates.
    learning_rate: of Adam.
    seed: of the noise in the loss, if it has any.
  """
  return _fit(task, model, batch, jax.random.key(seed), steps, learning_rate)


@functools.partial(jax.jit, static_argnums=(0, 1))
def initialized(task, config, key):
  """Return a new model of a task; compiled once for each config."""
  return task.init(config, key)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _fit(task, model, batch, key, steps, learning_rate):
  optimizer = optax.adam(learning_rate)

  def step(carry, key):
    model, state = carry

    def loss(model):
      return task.loss(model, batch, key)[0].value

    value, gradient = jax.value_and_grad(loss)(model)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(model, updates), state), value

  start = model, optimizer.init(model)
  (model, _), losses = jax.lax.scan(step, start, jax.random.split(key, steps))
  return model, losses
