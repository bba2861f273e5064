"""The table of metrics that compare predictions with references."""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from transformer.data.lookup import lookup
from transformer.evaluation import classes, distortion, text
from transformer.evaluation.ranking import RANKING, ranking_metric
from transformer.evaluation.text import Score


class Metric(NamedTuple):
  """A metric.

  Attributes:
    function: f(predictions, references) returns a Score.
    higher_is_better: whether a higher score is an improvement.
    requirement: name of the optional library that it needs, or ''.
  """

  function: Callable[[Sequence[Any], Sequence[Any]], Score]
  higher_is_better: bool = True
  requirement: str = ''


METRICS: dict[str, Metric] = {
  'accuracy': Metric(text.accuracy),
  'exact_match': Metric(text.exact_match),
  'matthews_correlation': Metric(classes.matthews_correlation),
  'pearson_correlation': Metric(classes.pearson_correlation),
  'spearman_correlation': Metric(classes.spearman_correlation),
  'entity_f1': Metric(classes.entity_f1),
  'bleu': Metric(text.bleu),
  'chrf': Metric(text.chrf),
  'bleu_lowercase_moses': Metric(text.bleu_lowercase_moses),
  'bleu1_lowercase_words': Metric(text.bleu1_lowercase_words),
  'bleu4_lowercase_words': Metric(text.bleu4_lowercase_words),
  'wer': Metric(text.wer, higher_is_better=False, requirement='jiwer'),
  'cer': Metric(text.cer, higher_is_better=False, requirement='jiwer'),
  'squad_exact_match': Metric(text.squad_exact_match),
  'squad_f1': Metric(text.squad_f1),
  **{
    name: Metric(ranking_metric(name, measure), requirement='pytrec_eval')
    for name, measure in RANKING.items()
  },
  'mel_cepstral_distortion': Metric(distortion.mel_cepstral_distortion, higher_is_better=False),
  'length_ratio': Metric(distortion.length_ratio),
}


def get_metric(name: str) -> Metric:
  """Return the metric with a name of METRICS, or 'module:name' of a Metric or its function."""
  metric = lookup('eval.metrics', name, METRICS)
  return metric if isinstance(metric, Metric) else Metric(metric)


def require(name: str):
  """Import the library of a metric, so that a missing one raises before training.

  Raises:
    ValueError: there is no such metric.
    ModuleNotFoundError: its library is not installed.
  """
  if requirement := get_metric(name).requirement:
    importlib.import_module(requirement)


def try_metric(name: str, reference: Any):
  """Check that a metric can be computed, with a reference as the prediction.

  Args:
    name: as in `get_metric`.
    reference: of several references, separated by tabs, the first is the prediction.

  Raises:
    ValueError: the metric raises an error, or does not return a Score.
  """
  first = reference.split('\t')[0] if isinstance(reference, str) else reference
  try:
    value, signature = get_metric(name).function([first], [reference])
    json.dumps([float(value), signature])
  except Exception as error:
    raise ValueError(
      f'eval.metrics={name} fails for the prediction {first!r:.99} of the reference '
      f'{reference!r:.99}: {type(error).__name__}: {error}'
    ) from error


def is_better(name: str, score: float, than: float, task_metrics: Mapping[str, bool]) -> bool:
  """Return whether a score of a metric is better than another.

  Args:
    name: a name of `task_metrics`, or as in `get_metric`.
    score, than: the new and the old value.
    task_metrics: {name: whether higher is better} of the task's own metrics.
  """
  higher = task_metrics[name] if name in task_metrics else get_metric(name).higher_is_better
  return score > than if higher else score < than
