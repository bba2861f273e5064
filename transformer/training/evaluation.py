"""How good a model is on a split: teacher-forced measures, and the text it writes."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from transformer.data.corpora import Source
from transformer.data.pipeline import Batches
from transformer.functional.losses import Mean
from transformer.tasks.metrics import METRICS
from transformer.tasks.sequence import SequenceToSequence
from transformer.training.settings import names
from transformer.training.sharding import shard_batch
from transformer.training.step import Model

LOWER_IS_BETTER = ('nll_per_token', 'perplexity_per_token')


class Judgement(NamedTuple):
  """What was found.

  Attributes:
    metrics: figures by name; text metrics in percent.
    signatures: of the text metrics, what makes them comparable.
    samples: the first examples, each with its 'prediction'.
    predictions: of all lines that were decoded.
  """

  metrics: dict[str, float]
  signatures: dict[str, str]
  samples: list[dict[str, Any]]
  predictions: list[str]


def measure(
  compiled: Callable[[Model, Any], dict[str, Mean]],
  model: Model,
  batches: Batches,
  mesh: Mesh,
) -> dict[str, float]:
  """Teacher-forced measures of all batches: means over tokens, and the perplexity per token.

  Args:
    compiled: a task's `measure`, jitted.
    model: what is measured.
    batches: one epoch of a split.
    mesh: where they go.
  """
  totals = None
  for i in range(len(batches)):
    found = compiled(model, shard_batch(batches[i], mesh))
    totals = found if totals is None else jax.tree.map(lambda a, b: a + b, totals, found)
  metrics = {name: float(mean.value) for name, mean in (totals or {}).items()}
  return dict(metrics, perplexity_per_token=math.exp(min(metrics['nll_per_token'], 700)))


def judge(
  task: SequenceToSequence,
  model: Model,
  source: Source,
  *,
  metrics: str,
  limit: int = 0,
  samples: int = 0,
  by: str = '',
) -> Judgement:
  """Decodes a split and compares.

  Args:
    task: how to decode.
    model: what decodes.
    source: examples with 'inputs' and 'targets'.
    metrics: names of tasks.metrics, separated by commas.
    limit: decode only the first so many; 0 means all.
    samples: keep so many examples to show.
    by: also report exact match for each value of this field of the examples.
  """
  examples = [source[i] for i in range(min(limit or len(source), len(source)))]
  predictions = list(task.predict(model, [example['inputs'] for example in examples], cut=True))
  references = [example['targets'] for example in examples]
  found, signatures = {}, {}
  for name in names(metrics):
    found[name], signatures[name] = METRICS[name](predictions, references)
  if by:
    groups = defaultdict(list)
    for example, prediction in zip(examples, predictions, strict=True):
      groups[example[by]].append(100.0 * (prediction == example['targets']))
    found |= {f'exact_match/{k}': sum(v) / len(v) for k, v in sorted(groups.items())}
  shown = [
    {**e, 'prediction': p} for e, p in zip(examples[:samples], predictions[:samples], strict=True)
  ]
  return Judgement(found, signatures, shown, predictions)


def better(name: str, score: float, than: float) -> bool:
  """Whether a score of the named metric is an improvement."""
  return score < than if name in LOWER_IS_BETTER else score > than
