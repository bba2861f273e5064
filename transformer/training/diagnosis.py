"""Diagnosis of a training step whose loss or gradient is NaN or Inf: where it appears first."""

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
  """Return the name of the first array, in order of computation, that has a NaN or Inf.

  The order is: parameters, states of encoder layers, states of decoder layers, gradients.
  """
  if name := _first(model):
    return f'parameter {name}'
  arrays = {name: jnp.asarray(rows) for name, rows in batch.items()}
  layers_of = capture_layers(task, model, arrays)
  for stack in sorted(layers_of, reverse=True):  # the encoder before the decoder
    layers = layers_of[stack]
    bad = ~np.isfinite(np.asarray(layers['states'])).all(axis=(1, 2, 3))
    if bad.any():
      return f'the states of {stack} layer {np.argmax(bad)}'.replace('  ', ' ')
  gradient = jax.jit(jax.grad(lambda model: task.loss(model, arrays, None)[0].sum))(model)
  if name := _first(gradient):
    return f'the gradient of {name}'
  return 'a place that only dropout reaches'


def raise_not_finite(task: Task, model: Any, batch: Batch, step: int, folder: pathlib.Path):
  """Write the batch of a step to a file, and raise FloatingPointError that names the first NaN.

  Args:
    task: of the run.
    model: the parameters before the step.
    batch: the rows of this process.
    step: its number, from 1.
    folder: for the file.
  """
  part = '' if processes.is_first() else f'-process-{jax.process_index()}'
  file = folder / f'not-finite-step-{step}{part}.npz'
  np.savez(file, **batch)  # type: ignore[arg-type]  # no column is called allow_pickle
  if processes.several():  # each process checks its own rows
    model = jax.tree.map(processes.on_host, model)
  where = first_not_finite(task, model, batch)
  raise FloatingPointError(
    f'step {step}: the loss or its gradient is not finite, first in {where}. The update was not '
    f'made; its batch, number {step - 1}, is {file}. Lower optimizer.learning_rate, lengthen '
    'optimizer.warmup_steps or set optimizer.clip, and start again in another --workdir; '
    '--config.train.nonfinite=skip goes on here without such batches'
  )


def _first(tree: Any) -> str:
  """Return the path and layer of the first parameter with a NaN or Inf; '' if there is none."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    bad = ~np.isfinite(np.asarray(leaf))
    if bad.any():
      name = parameter_path(path)
      return f'{name}, layer {np.argwhere(bad)[0][0]}' if 'blocks/' in name else name
  return ''
