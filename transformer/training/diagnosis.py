"""Where a NaN or Inf comes first in a training step."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.pipeline import Batch
from transformer.inference.attention_maps import capture_layers
from transformer.tasks.task import Task
from transformer.training import processes
from transformer.training.optimizers import parameter_path


def first_not_finite(task: Task, model: Any, batch: Batch) -> str:
  """Return the first place, in the order of computation: a parameter, a layer or a gradient."""
  if place := _first(model):
    return f'parameter {place}'
  arrays = {name: jnp.asarray(rows) for name, rows in batch.items()}
  layers_of = capture_layers(task, model, arrays)
  for stack in sorted(layers_of, reverse=True):  # the encoder before the decoder
    layers = layers_of[stack]
    bad = ~np.isfinite(np.asarray(layers['states'])).all(axis=(1, 2, 3))
    if bad.any():
      return f'the states of {stack} layer {np.argmax(bad)}'.replace('  ', ' ')
  gradient = jax.jit(jax.grad(lambda model: task.loss(model, arrays, None)[0].sum))(model)
  if place := _first(gradient):
    return f'the gradient of {place}'
  return 'a place that only dropout reaches'


def raise_not_finite(task: Task, model: Any, batch: Batch, step: int, folder: pathlib.Path):
  """Write the batch of a step to a folder, and raise FloatingPointError with the first place."""
  part = '' if processes.is_first() else f'-process-{jax.process_index()}'
  file = folder / f'not-finite-step-{step}{part}.npz'
  np.savez(file, **batch)  # type: ignore[arg-type]  # no column is called allow_pickle
  if processes.several():  # each looks at its own rows
    model = jax.tree.map(processes.on_host, model)
  where = first_not_finite(task, model, batch)
  raise FloatingPointError(
    f'step {step}: the loss or its gradient is not finite, first in {where}. The update was not '
    f'made; its batch, number {step - 1}, is {file}. Lower optimizer.learning_rate, lengthen '
    'optimizer.warmup_steps or set optimizer.clip, and start again in another --workdir; '
    '--config.train.nonfinite=skip goes on here without such batches'
  )


def _first(tree: Any) -> str:
  """Return the first parameter that is not finite, and its layer; '' if there is none."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    bad = ~np.isfinite(np.asarray(leaf))
    if bad.any():
      name = parameter_path(path)
      return f'{name}, layer {np.argwhere(bad)[0][0]}' if 'blocks/' in name else name
  return ''
