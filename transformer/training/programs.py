"""The compiled functions of a run."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from transformer.training import optimizers, sharding
from transformer.training.experiment import Experiment, with_shardings
from transformer.training.step import State, init_state, train_steps


class Programs(NamedTuple):
  """The compiled functions of a run.

  Attributes:
    optimizer: of Optax.
    start: (key) to the state before the first step.
    update: (state, stacked batches, key) to (the state after these steps, their metrics).
    learning_rate: (step, from 0) to the learning rate.
    like: the state with ShapeDtypeStructs, which have shardings, in place of arrays.
    mesh: of the devices.
  """

  optimizer: optax.GradientTransformation
  start: Callable[[jax.Array], State]
  update: Any
  learning_rate: Callable[[int], jax.Array]
  like: State
  mesh: Mesh

  def compile_update(self, batch: dict[str, np.ndarray], steps: int = 1) -> Any:
    """Return `update` compiled for batches of these shapes; a later call does not compile again.

    Args:
      batch: of all processes; only its shapes matter.
      steps: the number of steps in a call.
    """
    key = jax.eval_shape(jax.random.key, 0)
    stacked = sharding.shapes_of_batch(batch, self.mesh, steps)
    with entered(self.mesh):
      return self.update.lower(self.like, stacked, key).compile()


def entered(mesh: Mesh) -> contextlib.AbstractContextManager:
  """Return a context that sets JAX's current mesh, which kernels need on several devices."""
  return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def argument_names(*arguments: Any) -> list[str]:
  """Return the names of the arrays among the arguments (state, batch, key) of an update."""
  names = ('state', 'batch', 'key')
  return [
    f'{name}/{optimizers.parameter_path(path)}'
    for name, argument in zip(names, arguments, strict=True)
    for path, _ in jax.tree_util.tree_leaves_with_path(argument)
  ]


def make_programs(experiment: Experiment) -> Programs:
  """Return the functions of a run; each is compiled at its first call."""
  settings, train, task = experiment.settings, experiment.settings.train, experiment.task
  optimizer, learning_rate = optimizers.build(
    **dict(settings.optimizer, lr_multipliers=experiment.lr_multipliers),
    steps=train.steps,
    width=experiment.model.width,
  )

  def start(key):
    return init_state(experiment.init(key), optimizer, ema=train.ema)

  def loss(model, batch, key):
    return task.loss(optimizers.freeze(model, experiment.lr_multipliers), batch, key)

  like = with_shardings(jax.eval_shape(start, jax.random.key(settings.seed)), experiment.mesh)
  shardings = jax.tree.map(lambda x: x.sharding, like)
  update = functools.partial(
    train_steps, loss=loss, optimizer=optimizer, microbatches=train.microbatches, ema=train.ema
  )
  return Programs(
    optimizer=optimizer,
    start=jax.jit(start, out_shardings=shardings),
    update=jax.jit(update, donate_argnums=0, out_shardings=(shardings, None)),
    learning_rate=jax.jit(learning_rate),  # one program, not one for each of its operations
    like=like,
    mesh=experiment.mesh,
  )
