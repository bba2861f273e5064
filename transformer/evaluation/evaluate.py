"""How good a model is on a split: teacher-forced measures, and the text it writes."""

import functools
import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from transformer.data.corpora import Source
from transformer.evaluation import distortion
from transformer.evaluation import metrics as text_metrics
from transformer.functional.losses import Mean
from transformer.inference.predict import Model, Predictor

METRICS: dict[str, Callable] = {**text_metrics.METRICS, **distortion.METRICS}  # of texts, of sounds
LOWER_IS_BETTER = ('nll', 'perplexity', 'bits', 'wer', 'cer', 'mel', 'stop_nll')  # begins so


class Judgement(NamedTuple):
  """What was found.

  Attributes:
    metrics: figures by name; text metrics in percent.
    signatures: of the text metrics, what makes them comparable.
    samples: the first examples, each with its 'prediction'.
    references, predictions: of all lines that were decoded.
  """

  metrics: dict[str, float]
  signatures: dict[str, str]
  samples: list[dict[str, Any]]
  references: list[Any]
  predictions: list[Any]


def measure(
  compiled: Callable[[Model, Any], dict[str, Mean]],
  model: Model,
  batches: Iterable[dict[str, jax.Array]],
) -> dict[str, Mean]:
  """What a task measures, added up over all batches.

  Args:
    compiled: a task's `measure`, jitted.
    model: what is measured.
    batches: one epoch of a split, on the devices.
  """
  found = (compiled(model, batch) for batch in batches)
  return functools.reduce(functools.partial(jax.tree.map, operator.add), found)


def judge(
  task: Predictor,
  model: Model,
  source: Source,
  *,
  metrics: Sequence[str],
  limit: int = 0,
  samples: int = 0,
  by: str = '',
) -> Judgement:
  """Decodes a split and compares.

  Args:
    task: how to decode.
    model: what decodes.
    source: examples.
    metrics: names of METRICS; without any, only samples are decoded.
    limit: decode only the first so many; 0 means all. What has several 'references' is decoded
      once for all of them.
    samples: keep so many examples to show.
    by: also report exact match for each value of this field of the examples.
  """
  wanted = (limit or len(source)) if metrics or by else samples
  examples = list(itertools.islice(_to_answer(source), wanted))
  inputs, references = zip(*map(task.example, examples), strict=True) if examples else ((), ())
  predictions = task.predict(model, inputs, cut=True)
  found, signatures = {}, {}
  for name in metrics:
    found[name], signatures[name] = METRICS[name](predictions, references)
  if by:
    groups = defaultdict(list)
    for example, reference, prediction in zip(examples, references, predictions, strict=True):
      groups[example[by]].append(100.0 * (prediction == reference))
    found |= {f'exact_match/{k}': sum(v) / len(v) for k, v in sorted(groups.items())}
  shown = [
    {'inputs': example.get('name', line), 'targets': reference, 'prediction': prediction}
    for example, line, reference, prediction in zip(
      examples, inputs, references, predictions, strict=True
    )
  ]
  return Judgement(found, signatures, shown[:samples], list(references), predictions)


def _to_answer(source: Source) -> Iterator[dict[str, Any]]:
  """The examples; of neighbours with the same references, such as captions of an image, one."""
  last = None
  for i in range(len(source)):
    example = source[i]
    if (references := example.get('references')) is None or references is not last:
      yield example
    last = references


def better(name: str, score: float, than: float) -> bool:
  """Whether a score of the named metric is an improvement."""
  return score < than if name.startswith(LOWER_IS_BETTER) else score > than
