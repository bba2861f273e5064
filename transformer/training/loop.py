"""The host's side of training: feeds batches, saves, evaluates, and never makes the device wait."""

import collections
import functools
import operator
import signal
from typing import Any

import jax
import numpy as np
from absl import logging

from transformer.data import pipeline
from transformer.evaluation.evaluate import Evaluation, evaluate
from transformer.evaluation.metrics import is_better
from transformer.training import optimizers, reporting, sharding
from transformer.training.checkpoints import Checkpoints
from transformer.training.diagnosis import first_not_finite
from transformer.training.experiment import Experiment, with_shardings
from transformer.training.step import Model, State, init_state, train_steps
from transformer.training.warm_start import warm_start
from transformer.training.workdir import Workdir, line_of, write


class Stopped(Exception):
  """A signal asked the run to stop; the state was saved."""

  def __init__(self, number: int, step: int):
    super().__init__(
      f'{signal.Signals(number).name}: saved step {step}; the same command goes on from there'
    )
    self.number = number


def fit(experiment: Experiment, workdir: Workdir) -> State:
  """Trains to the last step from wherever the workdir is, and keeps the best model by val.

  Returns:
    The state after the last step.

  Raises:
    Stopped: SIGTERM or SIGINT came; the same command goes on from there.
    FloatingPointError: a loss or gradient is not finite; names the step, the batch and the layer.
  """
  task, train, config = experiment.task, experiment.settings.train, experiment.settings
  optimizer, learning_rate = optimizers.build(
    **dict(config.optimizer, lr_multipliers=experiment.lr_multipliers),
    steps=train.steps,
    width=experiment.model.width,
  )

  def fresh(key):
    return init_state(experiment.init(key), optimizer, ema=train.ema)

  def loss(model, batch, key):
    return task.loss(optimizers.frozen(model, experiment.lr_multipliers), batch, key)

  key = jax.random.key(config.seed)
  like = with_shardings(jax.eval_shape(fresh, key), experiment.mesh)
  placed = jax.tree.map(lambda x: x.sharding, like)
  steps_of = functools.partial(
    train_steps,
    loss=loss,
    optimizer=optimizer,
    microbatches=train.microbatches,
    ema=train.ema,
  )
  update = jax.jit(steps_of, donate_argnums=0, out_shardings=(placed, None))
  learning_rate = jax.jit(learning_rate)  # one program, not one for each of its operations
  batches = experiment.batches(config.data.train)
  validate = _validation(experiment)

  kept = dict(keep=train.keep_checkpoints, every=train.save_every_steps)
  with Checkpoints(workdir.path, **kept) as checkpoints, _Signals() as signals:
    if checkpoints.last_step is None:
      state = jax.jit(fresh, out_shardings=placed)(key)
      if config.warm_start:
        state = init_state(warm_start(state.model, experiment), optimizer, ema=train.ema)
    else:
      state = checkpoints.restore(like)
      logging.info('going on from step %d of %s', checkpoints.last_step, workdir)
    start = int(state.step)
    _describe(experiment, state, batches)

    with reporting.Report(workdir.path, step=start, steps=train.steps) as report:

      def validated(step: int, model: Model):
        found = validate(model)
        report.evaluation(step, config.data.val, found.metrics, found.samples)
        name, best = config.eval.best, checkpoints.best
        before = None if best is None else best[1].get(name)  # it may have been chosen by another
        if before is None or is_better(name, found.metrics[name], before, task.metrics):
          checkpoints.save_best(model, step, found.metrics)

      def settle(last: int, group: list[pipeline.Batch], metrics: dict[str, Any]):
        metrics = jax.device_get(metrics)
        for i, batch in enumerate(group):
          step, found = last - len(group) + 1 + i, jax.tree.map(operator.itemgetter(i), metrics)
          if not found.pop('finite'):
            _explain(experiment, state.model, batch, step, workdir)
          report.advance(_tokens(batch))
          if step % train.log_every_steps == 0:
            values = {name: float(getattr(v, 'value', v)) for name, v in found.items()}
            report.train(step, dict(values, learning_rate=float(learning_rate(step - 1))))

      def due(step: int) -> bool:
        return step % config.eval.every_steps == 0 and 0 < step < train.steps

      if due(start) and not report.evaluated:
        validated(start, state.average or state.model)  # stopped by a signal before it was
      waiting: collections.deque = collections.deque()
      stream = pipeline.prefetch(batches, start, train.steps)
      for step, group in pipeline.group_steps(stream, start, train.steps_per_call):
        stacked = {name: np.stack([batch[name] for batch in group]) for name in group[0]}
        placed_batches = sharding.shard_batch(stacked, experiment.mesh, stacked=True)
        state, metrics = update(state, placed_batches, key)
        waiting.append((step, group, metrics))
        stop = signals.received  # read once: it may come at any time
        save = stop or step % train.save_every_steps == 0 or step == train.steps
        # one call late: reading a result waits for it, and the device is busy with the next by then
        while len(waiting) > (0 if save or due(step) else 1):
          settle(*waiting.popleft())
        if due(step) and not stop:
          validated(step, state.average or state.model)
        if save:
          checkpoints.save(state, step)
        if stop:
          raise Stopped(stop, step)

      final = state.average or state.model
      if train.average_checkpoints > 1:
        final = checkpoints.average(like, train.average_checkpoints).model
      validated(train.steps, final)
      if signals.received:
        raise Stopped(signals.received, train.steps)
  return state


def report_result(experiment: Experiment, model: Model, workdir: Workdir) -> dict[str, Any]:
  """Decodes val and test whole, writes predictions and references, and returns all metrics."""
  config, data = experiment.settings.eval, experiment.settings.data
  metrics: dict[str, float] = {}
  signatures: dict[str, str] = {}
  for split in [data.val, *data.test]:
    source = experiment.source(split)
    found = evaluate(
      experiment.task,
      model,
      source,
      sharding.placed(experiment.batches(split), experiment.mesh),
      metrics=config.metrics,
      samples=config.samples,
      by=config.by if len(source) and config.by in source[0] else '',
    )
    metrics |= {f'{split}/{name}': value for name, value in found.metrics.items()}
    signatures |= {f'{split}/{name}': text for name, text in found.signatures.items()}
    folder = workdir.path / 'predictions'
    for name, answers in ((split, found.predictions), (f'{split}.reference', found.references)):
      lines = (line_of(x, folder / name / f'{i}.wav') for i, x in enumerate(answers, start=1))
      write(folder / f'{name}.txt', ''.join(f'{line}\n' for line in lines))
    logging.info('samples of %s:\n%s', split, reporting.table(found.samples))
  return {'metrics': metrics, 'signatures': signatures}


class _Signals:
  """Remembers SIGTERM and SIGINT instead of dying of them; a second SIGINT kills as usual."""

  received = 0

  def __enter__(self):
    self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number, _):
    self.received = number
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.info('%s: saving after this step', signal.Signals(number).name)


def _validation(experiment: Experiment):
  """Return a function of a model: its evaluation on the validation split, with fast decoding."""
  config = experiment.settings
  batches, source = experiment.batches(config.data.val), experiment.source(config.data.val)

  def validate(model: Model) -> Evaluation:
    return evaluate(
      experiment.task,
      model,
      source,
      sharding.placed(batches, experiment.mesh),
      metrics=config.eval.metrics,
      limit=config.eval.limit,
      samples=config.eval.samples,
      fast=True,
    )

  return validate


def _tokens(batch: pipeline.Batch) -> int:
  """How many positions are learnt from, of the field that says so."""
  name = next(f'{side}_segments' for side in ('targets', 'inputs') if f'{side}_segments' in batch)
  return int(np.count_nonzero(batch[name]))


def _describe(experiment: Experiment, state: State, batches: pipeline.Batches):
  """What is about to be trained, in the log."""
  parameters = sum(x.size for x in jax.tree.leaves(state.model))
  shapes = ', '.join(
    f'{size} x {"/".join(map(str, shape))} ({count})'
    for (shape, _, size), count in zip(batches.groups, batches.counts, strict=True)
  )
  logging.info(
    '%s parameters on %d %s device(s); %d batches an epoch, rows x lengths (count): %s',
    f'{parameters:,}',
    jax.device_count(),
    jax.default_backend(),
    len(batches),
    shapes,
  )


def _explain(experiment: Experiment, model: Model, batch, step: int, workdir: Workdir):
  """Raises FloatingPointError, saying where a step went wrong."""
  file = workdir.path / f'not-finite-step-{step}.npz'
  np.savez(file, **batch)
  where = first_not_finite(experiment.task, model, batch)
  raise FloatingPointError(
    f'step {step}: the loss or its gradient is not finite, first in {where}. The update was not '
    f'made; its batch, number {step - 1}, is {file}. Lower optimizer.learning_rate, lengthen '
    'optimizer.warmup_steps or set optimizer.clip, and start anew in another --workdir'
  )
