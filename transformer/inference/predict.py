"""Predictions of any task: encode requests, run them in batches, check and return the answers."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from jaxtyping import Shaped

from transformer.data.pipeline import Ragged
from transformer.inference.attention_maps import Probe
from transformer.inference.batching import Row, bucket_length, pad_rows
from transformer.inference.checks import check_finite, check_rows

Rows = Sequence[Row] | Ragged
log = logging.getLogger(__name__)
Model = Any  # a Flax module, of the class that the task makes


@runtime_checkable
class Predictor(Protocol):
  """A task's use of a trained model: one answer for each request.

  `processor` encodes requests like a data.processors.Processor: it has `max_length`,
  `encode_example(line, truncate=)`, and `labels(row)` for the positions of the encoder.
  """

  @property
  def decoding(self) -> Any:
    """Return the settings of inference: a Batching."""

  @property
  def processor(self) -> Any:
    """Return the processor of requests."""

  def example(self, example: dict[str, Any]) -> tuple[Any, Any]:
    """Return the request and the reference answer of an example of the corpus."""

  def answer(self, model: Model, requests: Sequence[Any]) -> list[Any]:
    """Return the answers to encoded requests, each a text or the bytes of a wav file."""

  def attention(self, model: Model, request: Any) -> Probe:
    """Return the Probe of an encoded request, which computes its attention weights."""


P = TypeVar('P', bound=Any)


def predict(task: Predictor, model: Model, lines: Iterable[Any], *, truncate: bool = False) -> list:
  """Return the answer to each line, in order; it does not depend on the other lines.

  Args:
    task: encodes and answers requests.
    model: a model of that task.
    lines: requests: texts, or for images and sounds their paths, contents or arrays.
    truncate: shorten lines that are too long and accept empty ones, instead of raising, so that a
      whole split can be scored.

  Raises:
    ValueError: a line cannot be answered; the message has its number and the cure.
    FloatingPointError: the model computes NaN.
  """
  if isinstance(lines, str):
    raise ValueError('predict takes many lines: pass a list, [line] for a single one')
  requests, truncated = [], 0
  for number, line in enumerate(lines, start=1):
    try:
      try:
        requests.append(task.processor.encode_example(line))
      except ValueError:
        if not truncate:
          raise
        requests.append(task.processor.encode_example(line, truncate=True))
        truncated += 1
    except ValueError as error:
      raise ValueError(f'line {number}: {error}') from error
  if truncated:
    log.warning('%d of %d inputs are empty or too long, and read in part', truncated, len(requests))
  return task.answer(model, requests) if requests else []


def predict_each(
  task: Predictor,
  model: Model,
  lines: Iterable[Any],
  answer: Callable[[Model, Sequence[Any]], list[Any]] | None = None,
) -> list[Any]:
  """Return for each line its answer, or the ValueError or OSError that it raised.

  Args:
    task, model: as in `predict`.
    lines: as there; an exception in place of a line is returned unchanged.
    answer: the method of the task that answers requests; task.answer if None.

  Raises:
    FloatingPointError: as `predict`.
  """

  def answers_or_errors(requests: list[Any]) -> list[Any]:
    try:
      return (answer or task.answer)(model, requests) if requests else []
    except (ValueError, OSError) as error:  # raised by one of them: answer each alone
      if len(requests) == 1:
        return [error]
      return [result for request in requests for result in answers_or_errors([request])]

  results: list[Any] = []  # first the encoded requests, or errors
  for line in lines:
    try:
      results.append(line if isinstance(line, Exception) else task.processor.encode_example(line))
    except (ValueError, OSError) as error:
      results.append(error)
  valid = [i for i, request in enumerate(results) if not isinstance(request, Exception)]
  for i, result in zip(valid, answers_or_errors([results[i] for i in valid]), strict=True):
    results[i] = result
  return results


def with_fast_decoding(task: P) -> P:
  """Return the task with cheaper settings of inference, for validation during training."""
  return dataclasses.replace(task, decoding=task.decoding.fast())


def run_batches(task: Any, model: Model, rows: Rows, *args: Any) -> list[Any]:
  """Return the result of `task.forward(model, rows, *args)` for each row; see `map_batches`."""
  return map_batches(task, model, lambda batch: _forward(task, model, batch, *args), rows)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _forward(task, model, rows, *args):
  return task.forward(model, rows, *args)


def map_batches(
  task: Predictor,
  model: Model,
  forward: Callable[[Shaped[jax.Array, 'B S ...']], Any],
  rows: Rows,
  *,
  left: bool = False,
) -> list[Any]:
  """Return the result of a compiled function for each row, in order.

  All batches have `task.decoding.batch_size` rows. The padded length of a row depends only on its
  own length.

  Args:
    task: has the batch size and the largest length.
    model: the rows are checked against its vocabulary and positions.
    forward: a compiled function of padded rows that returns a tree of arrays with leading axis B.
    rows: tokens, frames or images.
    left: whether to pad on the left.

  Raises:
    ValueError: a row has an id outside the vocabulary, or is longer than the learned positions.
    FloatingPointError: a result is NaN.
  """
  source = hasattr(model, 'decoder')
  check_rows(model.config, (rows[i] for i in range(len(rows))), source=source)
  results: list[Any] = [None] * len(rows)
  longest = task.processor.max_length
  lengths = [bucket_length(len(rows[i]), longest) for i in range(len(rows))]
  for length in sorted(set(lengths)):
    same = [i for i in range(len(rows)) if lengths[i] == length]
    for start in range(0, len(same), task.decoding.batch_size):
      members = same[start : start + task.decoding.batch_size]
      # a search of empty rows would never end, so the last row fills up an incomplete batch
      filled = [*members, *members[-1:] * (task.decoding.batch_size - len(members))]
      padded = jax.device_put(pad_rows([rows[i] for i in filled], length, left=left))
      batch = jax.device_get(forward(padded))
      check_finite(batch)
      for row, i in enumerate(members):
        results[i] = jax.tree.map(lambda x, row=row: x[row], batch)
  return results
