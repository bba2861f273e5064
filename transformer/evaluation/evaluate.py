"""Evaluation of a model on a split: metrics with teacher forcing, and metrics of predictions."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

import jax
import numpy as np

from transformer.data.corpora import Source
from transformer.evaluation.likelihood import perplexity, text_metrics
from transformer.evaluation.metrics import get_metric
from transformer.functional.losses import Mean
from transformer.inference.checks import check_finite
from transformer.inference.predict import Model, predict, with_fast_decoding


class Evaluation(NamedTuple):
  """The result of an evaluation.

  Attributes:
    metrics: {name: value}; most metrics of predictions are in percent.
    signatures: {name: signature} of metrics of predictions; see text.Score.
    samples: the first examples, each with 'inputs', 'targets' and 'prediction'.
    references, predictions: of all predicted examples.
  """

  metrics: dict[str, float]
  signatures: dict[str, str]
  samples: list[dict[str, Any]]
  references: list[Any]
  predictions: list[Any]


def evaluate(
  task: Any,
  model: Model,
  source: Source,
  batches: Iterable[dict[str, jax.Array]] = (),
  *,
  metrics: Sequence[str] = (),
  limit: int = 0,
  samples: int = 0,
  by: str = '',
  fast: bool = False,
) -> Evaluation:
  """Return the metrics of a model on a split.

  Args:
    task: the task of the model; see tasks.task.Task.
    model: the model.
    source: the examples of the split.
    batches: all examples in batches on the devices, for metrics with teacher forcing; () for none.
    metrics: names of metrics of predictions; see metrics.get_metric. Without any, only `samples`
      examples are predicted.
    limit: largest number of examples to predict; 0 means all. Neighbors that share their
      'references' count as one.
    samples: number of examples to return in `Evaluation.samples`.
    by: a field of the examples; metrics are also computed for each of its values.
    fast: predict with cheaper settings; see predict.with_fast_decoding.
  """
  values = compute_metrics(task, model, batches, source)
  count = (limit or len(source)) if metrics or by else samples
  examples = list(itertools.islice(_without_repetitions(source), count))
  pairs = [task.example(example) for example in examples]
  inputs, references = [line for line, _ in pairs], [reference for _, reference in pairs]
  predictor = with_fast_decoding(task) if fast else task
  predictions = predict(predictor, model, inputs, truncate=True)
  signatures = {}
  # texts are compared in one form of Unicode; sounds stay as they are
  compared = [
    [normalize('NFC', x) if isinstance(p, str) else x for p, x in zip(predictions, xs, strict=True)]
    for xs in (predictions, references)
  ]
  for name in metrics:
    values[name], signatures[name] = get_metric(name).function(*compared)
  for value in sorted({example[by] for example in examples} if by else ()):
    chosen = [example[by] == value for example in examples]
    for name in metrics:
      parts = [list(itertools.compress(texts, chosen)) for texts in compared]
      values[f'{name}/{value}'] = get_metric(name).function(*parts).value
  shown = [
    {'inputs': example.get('name', line), 'targets': reference, 'prediction': prediction}
    for example, (line, reference), prediction in zip(examples, pairs, predictions, strict=True)
  ]
  return Evaluation(values, signatures, shown[:samples], references, predictions)


def compute_metrics(
  task: Any, model: Model, batches: Iterable[dict[str, jax.Array]], source: Source
) -> dict[str, float]:
  """Return the means of a task's metrics over all batches, and metrics derived from them.

  The derived ones are perplexity and bits per byte, if the task has them. Without batches the
  result is empty.
  """
  parts = jax.device_get([eval_step(task, model, batch) for batch in batches])
  if not parts:
    return {}
  # on the host in 64 bits, so that the means do not depend on the number of batches
  totals = jax.tree.map(lambda *sums: np.sum(np.asarray(sums, np.float64)), *parts)
  check_finite(totals, 'the model computes NaN for this split')
  values = {name: float(mean.sum / (mean.weight or 1)) for name, mean in totals.items()}
  if 'perplexity_per_token' in task.metrics:
    values['perplexity_per_token'] = perplexity(values['nll_per_token'])
  if 'bits_per_byte' in task.metrics:
    texts = (source[i]['targets'] for i in range(len(source)))
    values |= text_metrics(totals['nll_per_token'], texts)
  return values


@functools.partial(jax.jit, static_argnums=0)
def eval_step(task: Any, model: Model, batch: dict[str, jax.Array]) -> dict[str, Mean]:
  """Return the metrics of a batch; compiled once for equal tasks."""
  if hasattr(task, 'batch_metrics'):
    return task.batch_metrics(model, batch)
  return task.loss(model, batch, None)[1]


def _without_repetitions(source: Source) -> Iterator[dict[str, Any]]:
  """Yield the examples; of neighbors that share their references, as captions do, the first."""
  last = None
  for i in range(len(source)):
    example = source[i]
    if (references := example.get('references')) is None or references is not last:
      yield example
    last = references
