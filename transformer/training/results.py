"""Evaluation of a run's model on whole splits: metrics, and predictions as files."""

from typing import Any

from absl import logging

from transformer.evaluation.evaluate import Evaluation, evaluate
from transformer.training import reporting, sharding
from transformer.training.experiment import Experiment
from transformer.training.step import Model
from transformer.training.workdir import Workdir, as_line, file_name, write

SHOWN = 3  # samples of each split that are logged


def evaluate_splits(experiment: Experiment, model: Model, workdir: Workdir) -> dict[str, Any]:
  """Evaluate the splits data.val and data.test, and write predictions and references as files.

  Returns:
    {'metrics': {SPLIT/NAME: value}, 'signatures': {SPLIT/NAME: how a metric was computed}}.
  """
  data = experiment.settings.data
  metrics: dict[str, float] = {}
  signatures: dict[str, str] = {}
  for split in [data.val, *data.test]:
    result = evaluate_split(experiment, model, split)
    metrics |= {f'{split}/{name}': value for name, value in result.metrics.items()}
    signatures |= {f'{split}/{name}': text for name, text in result.signatures.items()}
    folder = workdir.path / 'predictions'
    file = file_name(split)
    for name, outputs in ((file, result.predictions), (f'{file}.reference', result.references)):
      lines = (as_line(x, folder / name / f'{i}.wav') for i, x in enumerate(outputs, start=1))
      write(folder / f'{name}.txt', ''.join(f'{line}\n' for line in lines))
    samples = reporting.short_table(result.samples[:SHOWN])
    logging.info('first of %s, all are in %s/%s.txt:\n%s', split, folder, file, samples)
  return {'metrics': metrics, 'signatures': signatures}


def evaluate_split(experiment: Experiment, model: Model, split: str) -> Evaluation:
  """Return the metrics and predictions of a model on a whole split."""
  config, source = experiment.settings.eval, experiment.source(split)
  logging.info('evaluating all %s examples of %s', f'{len(source):,}', split)
  return evaluate(
    experiment.task,
    model,
    source,
    sharding.place_batches(experiment.batches(split), experiment.mesh),
    metrics=config.metrics,
    samples=config.samples,
    by=config.by if len(source) and config.by in source[0] else '',
  )
