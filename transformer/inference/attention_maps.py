"""Attention maps of a task: the weights of one request, with labels for its positions."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from transformer.inference.batching import Row, bucket_length, pad_rows, split_padding
from transformer.inference.checks import check_finite, check_rows
from transformer.modules import sites


class AttentionMap(NamedTuple):
  """The attention weights of one request, and the labels of its target and source positions."""

  weights: Float[np.ndarray, 'L H T S']
  rows: list[str]
  columns: list[str]


def attend(task: Any, model: Any, line: Any) -> AttentionMap:
  """Return how the positions of a request, or of its answer, attend to the request.

  Raises:
    ValueError: the line cannot be answered; says why, and what to do.
    FloatingPointError: a weight is NaN.
  """
  found = task.attention(model, task.processor.encode_example(line))
  check_finite(found.weights, 'the model computes NaN for this line')
  return found


def self_attention(task: Any, model: Any, row: Row) -> AttentionMap:
  """Return how the positions of an encoded request attend to each other in `task.forward`."""
  weights = _capture_forward(task, model, _padded(task, model, row))['']['self']
  labels = task.processor.labels(row)
  n = len(labels)
  return AttentionMap(np.asarray(weights)[:, 0, :, :n, :n], labels, labels)


def causal_attention(task: Any, model: Any, row: Row) -> AttentionMap:
  """Return how the positions of a prompt attend to those before them."""
  batch = _one_row(task, model, row)
  layers = captured_layers(task, model, batch | {'targets': batch['inputs']})['']
  labels, n = task.processor.labels(row), len(row)
  return AttentionMap(np.asarray(layers['self'])[:, 0, :, :n, :n], labels, labels)


def cross_attention(
  task: Any, model: Any, row: Row, outputs: Row, labels: list[str]
) -> AttentionMap:
  """Return how the positions of an answer attend to its encoded request.

  Args:
    task, model, row: as in `self_attention`.
    outputs: the answer, as targets in training: tokens or frames.
    labels: of the outputs.
  """
  # padded, so that few programs are compiled
  targets, segments = split_padding(jnp.asarray(pad_rows([outputs], task.decoding.max_new_tokens)))
  batch = _one_row(task, model, row) | {'targets': targets, 'targets_segments': segments}
  weights = np.asarray(captured_layers(task, model, batch)['decoder']['cross'])
  columns = task.processor.labels(row)
  return AttentionMap(weights[:, 0, :, : len(outputs), : len(columns)], labels, columns)


@functools.partial(jax.jit, static_argnums=0)
def captured_layers(task: Any, model: Any, batch: dict[str, Array]) -> dict[str, dict[str, Array]]:
  """Return the states and attention weights of all layers in `task.loss`; see sites.capture."""
  return sites.capture(task.loss)(model, batch, None)[1]


@functools.partial(jax.jit, static_argnums=0)
def _capture_forward(task, model, rows):
  return sites.capture(task.forward)(model, rows)[1]


def _one_row(task: Any, model: Any, row: Row) -> dict[str, Array]:
  """Return an encoded request as the inputs of a batch."""
  rows, segments = split_padding(jnp.asarray(_padded(task, model, row)))
  return {'inputs': rows, 'inputs_segments': segments}


def _padded(task: Any, model: Any, row: Row) -> Shaped[np.ndarray, '1 S ...']:
  check_rows(model.config, [row], source=hasattr(model, 'decoder'))
  return pad_rows([row], bucket_length(len(row), task.processor.max_length))
