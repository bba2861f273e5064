"""Predictions of a task: requests are encoded, batched, answered and checked here for all tasks."""

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
  """The use of a trained model: one request in, one answer out.

  `processor` encodes requests, as a data.processors.Processor does: it has `max_length`,
  `encode_example(line, truncate=)`, and `labels(row)` for the encoder's positions.
  """

  @property
  def decoding(self) -> Any:
    """Return the settings of inference: a Batching."""

  @property
  def processor(self) -> Any:
    """Return the processor of requests."""

  def example(self, example: dict[str, Any]) -> tuple[Any, Any]:
    """Return an example of the corpus as a request and its reference answer."""

  def answer(self, model: Model, requests: Sequence[Any]) -> list[Any]:
    """Return the answer to each encoded request, a text or the bytes of a wav file."""

  def attention(self, model: Model, request: Any) -> Probe:
    """Return the attention weights of an encoded request."""


P = TypeVar('P', bound=Any)


def predict(task: Predictor, model: Model, lines: Iterable[Any], *, truncate: bool = False) -> list:
  """Return the answer to each line, in order; it does not depend on the other lines.

  Args:
    task: what encodes and answers requests.
    model: of that task.
    lines: requests: texts, or for images and sounds their paths, contents or arrays.
    truncate: shorten lines that are too long and accept empty ones, so that a whole split can be
      scored, instead of raising.

  Raises:
    ValueError: a line cannot be answered; says which, why, and what to do.
    FloatingPointError: the model computes NaN.
  """
  if isinstance(lines, str):
    raise ValueError('predict takes many lines: pass a list, [line] for a single one')
  requests, cut = [], 0
  for number, line in enumerate(lines, start=1):
    try:
      try:
        requests.append(task.processor.encode_example(line))
      except ValueError:
        if not truncate:
          raise
        requests.append(task.processor.encode_example(line, truncate=True))
        cut += 1
    except ValueError as error:
      raise ValueError(f'line {number}: {error}') from error
  if cut:
    log.warning('%d of %d inputs are empty or too long, and read in part', cut, len(requests))
  return task.answer(model, requests) if requests else []


def predict_each(
  task: Predictor,
  model: Model,
  lines: Iterable[Any],
  answer: Callable[[Model, Sequence[Any]], list[Any]] | None = None,
) -> list[Any]:
  """Return for each line its answer, or the ValueError or OSError that says why it has none.

  Args:
    task, model: as in `predict`.
    lines: as there; an error in place of a line is returned as it is.
    answer: the method of the task that answers requests; None: task.answer.

  Raises:
    FloatingPointError: as `predict`.
  """

  def answers(requests: list[Any]) -> list[Any]:
    try:
      return (answer or task.answer)(model, requests) if requests else []
    except (ValueError, OSError) as error:  # of one of them
      if len(requests) == 1:
        return [error]
      return [one for request in requests for one in answers([request])]

  found: list[Any] = []
  for line in lines:
    try:
      found.append(line if isinstance(line, Exception) else task.processor.encode_example(line))
    except (ValueError, OSError) as error:
      found.append(error)
  good = [i for i, request in enumerate(found) if not isinstance(request, Exception)]
  for i, one in zip(good, answers([found[i] for i in good]), strict=True):
    found[i] = one
  return found


def with_fast_decoding(task: P) -> P:
  """Return the task with the cheaper settings of inference, for validation during training."""
  return dataclasses.replace(task, decoding=task.decoding.fast())


def run_batches(task: Any, model: Model, rows: Rows, *args: Any) -> list[Any]:
  """Return `task.forward(model, rows, *args)` of each row; see `map_batches`."""
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
  """Return the result of each row, in order.

  All batches have `decoding.batch_size` rows, padded to few lengths, each by its own length alone.

  Args:
    task: its settings give the rows of a batch and their longest length.
    model: whose vocabulary and positions the rows must keep to.
    forward: padded rows to a tree of arrays with one entry for each row; a compiled function.
    rows: tokens, frames or images.
    left: whether to pad on the left.

  Raises:
    ValueError: a row has a token or a length that the model does not know.
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
      # an incomplete batch repeats its last row: an empty one would never end
      filled = [*members, *members[-1:] * (task.decoding.batch_size - len(members))]
      padded = jax.device_put(pad_rows([rows[i] for i in filled], length, left=left))
      batch = jax.device_get(forward(padded))
      check_finite(batch)
      for place, i in enumerate(members):
        results[i] = jax.tree.map(lambda x, place=place: x[place], batch)
  return results
