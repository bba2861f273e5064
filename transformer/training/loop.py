"""The training loop on the host: runs the steps, logs, evaluates and saves."""

import collections
import contextlib
import functools
import json
import operator
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from transformer.data import pipeline
from transformer.evaluation.evaluate import evaluate
from transformer.evaluation.metrics import is_better
from transformer.inference.attention_maps import attend
from transformer.inspection import compiled, heatmap
from transformer.inspection.compilations import Compilation, Ledger
from transformer.training import plan, processes, reporting, sharding
from transformer.training.checkpoints import Checkpoints, Damaged
from transformer.training.diagnosis import raise_not_finite
from transformer.training.experiment import Experiment, fingerprint_of
from transformer.training.profile import step_operations
from transformer.training.programs import Programs, argument_names, entered, make_programs
from transformer.training.signals import Signals, Stopped
from transformer.training.step import Model, State, init_state
from transformer.training.warm_start import warm_start
from transformer.training.workdir import Workdir
from transformer.zoo.families.rows import leaves
from transformer.zoo.pretrained.writing import family_of


def fit(experiment: Experiment, workdir: Workdir, signals: Signals | None = None) -> State:
  """Train to the last step from the newest checkpoint, and keep the best model by validation.

  Args:
    experiment: the run to train.
    workdir: the folder of its files.
    signals: the handler of signals, if it has to stay after training; None for one of its own.

  Returns:
    The state after the last step.

  Raises:
    Stopped: the process received one of SIGNALS; the same command resumes.
    ValueError: the data differ from those that the run was trained on so far.
    FloatingPointError: a loss or gradient is not finite; names the step, the batch and the layer.
  """
  train, data = experiment.settings.train, experiment.settings.data
  programs = make_programs(experiment)
  batches = experiment.batches(data.train)
  fingerprint = fingerprint_of(batches)
  about = {
    **{'config': workdir.stored('config.json'), 'tokenizer': workdir.stored('tokenizer.json')},
    'data': {'split': data.train, 'batches': len(batches), 'fingerprint': fingerprint},
  }
  with (
    contextlib.nullcontext(signals) if signals else Signals() as signals,
    Checkpoints(workdir.checkpoint_dir(), keep=train.keep_checkpoints, about=about) as checkpoints,
    Ledger(functools.partial(_note, workdir.path / 'compilations.jsonl')) as ledger,
  ):
    state = _first_state(experiment, programs, checkpoints)
    _describe(experiment, state, batches, workdir)
    report: Any = _Silent()
    if processes.is_first():
      logged = int(checkpoints.scores.get('step', 0))
      report = reporting.Report(
        workdir.path, step=int(state.step), steps=train.steps, logged=logged
      )
    with report:
      loop = _Loop(experiment, workdir, programs, checkpoints, report, signals, ledger, state)
      fingerprints = {
        f'the split {data.train}': fingerprint,
        f'the split {data.val}': fingerprint_of(loop.batches),
      }
      for name, value in fingerprints.items():
        processes.same_everywhere(name, value)
      workdir.check_fingerprints(fingerprints)
      loop.run(batches)
      if stop := processes.agreed(signals.received):
        raise Stopped(stop, train.steps)
      return loop.state


def _first_state(experiment: Experiment, programs: Programs, checkpoints: Checkpoints) -> State:
  """Return the state of the newest checkpoint, or the initial state if there is none."""
  settings = experiment.settings
  while checkpoints.last_step is not None:
    logging.info('resuming from step %d of %s', checkpoints.last_step, checkpoints.folder.parent)
    try:
      return checkpoints.restore(programs.like)
    except Damaged as error:
      if settings.train.damaged_checkpoint == 'halt' or processes.several():
        raise
      if not checkpoints.set_aside():
        raise Damaged(f'{error}: but there is no other, so train in another --workdir') from error
      logging.warning('%s', error)
  state = programs.start(jax.random.key(settings.seed))
  if not settings.warm_start:
    return state
  model = warm_start(state.model, experiment)
  state = init_state(model, programs.optimizer, ema=settings.train.ema)
  return jax.device_put(state, jax.tree.map(lambda x: x.sharding, programs.like))


class _Loop:
  """The loop over the remaining steps of a run, with evaluation, saving and reports.

  Attributes:
    state: the state after the last step that was started.
    skipped: the number of steps in this process whose loss or gradient was not finite.
    logged: the last training metrics that were logged, with their step.
  """

  logged: Mapping[str, float] = {}

  def __init__(
    self,
    experiment: Experiment,
    workdir: Workdir,
    programs: Programs,
    checkpoints: Checkpoints,
    report: Any,
    signals: Signals,
    ledger: Ledger,
    state: State,
  ):
    self.experiment, self.workdir, self.programs = experiment, workdir, programs
    self.checkpoints, self.report, self.signals = checkpoints, report, signals
    self.ledger = ledger
    self.skipped = 0
    self._operations: dict[str, int] = {}
    self.state, self.shares = state, sharding.share(experiment.mesh)[1]
    self.train, self.eval = experiment.settings.train, experiment.settings.eval
    self.validation = experiment.settings.data.val
    self.source = experiment.source(self.validation)
    self.batches = experiment.batches(self.validation)

  def run(self, batches: pipeline.Batches):
    """Run the remaining steps and the final evaluation; raise Stopped after a signal."""
    start, train = int(self.state.step), self.train
    key = jax.random.key(self.experiment.settings.seed)
    if self._is_evaluated_after(start) and not processes.agreed(self.report.evaluated):
      self._validate(start, self._model())  # a signal had stopped the run before this evaluation
    waiting: collections.deque = collections.deque()
    if start < train.steps:
      logging.info('compiling the training step')
    stream = pipeline.prefetch(batches, start, train.steps)
    for step, group in pipeline.group_steps(stream, start, train.steps_per_call):
      stacked = {name: np.stack([batch[name] for batch in group]) for name in group[0]}
      on_devices = sharding.shard_batch(stacked, self.experiment.mesh, stacked=True)
      if not self.signals.listening:
        self._plan(group)
      with entered(self.experiment.mesh):
        self.state, metrics = self.programs.update(self.state, on_devices, key)
      if train.max_compiles:
        names = argument_names(self.state, on_devices, key)
        self.ledger.check('train_steps', train.max_compiles, names)
      if not self.signals.listening:  # the first call is compiled now
        self.signals.listen()
        self.report.start()
      stop = self.signals.received  # read once: a signal may arrive at any time
      agreed_stop = None
      if processes.several():  # a signal to one of them stops all, after the same step
        agreed_stop, stop = processes.largest(stop), 0
      waiting.append((step, group, metrics, agreed_stop))
      saved, evaluated = self._is_saved_after(step), self._is_evaluated_after(step)
      # Metrics are read one call late, when the device already has the next call to run.
      while waiting and (stop or saved or evaluated or len(waiting) > 1):
        *reported, agreed_stop = waiting.popleft()
        self._report(*reported)
        stop = stop or int(agreed_stop or 0)
      # several processes save before they evaluate, because a signal then ends all at once
      if stop or saved or (evaluated and processes.several()):
        self._save(step)
      if stop:
        raise Stopped(stop, step)
      if evaluated:
        self._validate(step, self._model())
    self._validate(train.steps, self._final_model())

  def _plan(self, group: list[pipeline.Batch]):
    """Log the memory that a call needs on each device, before the first call.

    This compiles the step; the first call does not compile it again.
    """
    global_batch = {
      name: np.broadcast_to(rows[:1], (len(rows) * self.shares, *rows.shape[1:]))
      for name, rows in group[0].items()
    }
    memory = plan.of_step(self.programs, global_batch, steps=len(group), traffic=False)
    logging.info('%s', memory)
    if not memory.fits:
      changes = '; '.join(flags for flags, _ in plan.changes(self.experiment, global_batch))
      text = f'{memory}, more than there is. Try in this order, or let --mode=plan try: {changes}'
      if memory.refused:
        raise ValueError(text)
      logging.warning('%s', text)

  def _final_model(self) -> Model:
    if self.train.average_checkpoints == 1:
      return self._model()
    steps = self.checkpoints.averaged_steps(self.train.average_checkpoints)
    logging.info(
      'the final model is the mean of %d checkpoints, of steps %s; train.average_checkpoints=%d',
      len(steps),
      ', '.join(map(str, steps)),
      self.train.average_checkpoints,
    )
    return self.checkpoints.average(self.programs.like, self.train.average_checkpoints).model

  def _is_saved_after(self, step: int) -> bool:
    return step % self.train.save_every_steps == 0 or step == self.train.steps

  def _save(self, step: int):
    extra = not self._is_saved_after(step)
    if not self.workdir.has_config():  # Orbax would create the folder again, without a config
      raise OSError(
        f'{self.workdir} was deleted or moved while the run was writing to it: step {step} is not '
        'saved. The same command resumes from the remaining files, or starts again'
      )
    self.checkpoints.save(self.state, step, extra=extra, scores=self.logged)

  def _model(self) -> Model:
    return self.state.average or self.state.model

  def _is_evaluated_after(self, step: int) -> bool:
    return step % self.eval.every_steps == 0 and 0 < step < self.train.steps

  def _validate(self, step: int, model: Model):
    """Evaluate a model on the validation split, and save it if it is the best one so far.

    If the evaluation fails, for example for lack of memory, the state is saved before the error is
    raised.
    """
    if processes.several():
      self.checkpoints.wait()
    try:
      with self.signals.interrupting(), entered(self.experiment.mesh):
        result = evaluate(
          self.experiment.task,
          model,
          self.source,
          sharding.place_batches(self.batches, self.experiment.mesh),
          metrics=self.eval.metrics,
          limit=self.eval.limit,
          samples=self.eval.samples,
          fast=True,
        )
        pictures = self._pictures(model)
    except BaseException as error:
      if isinstance(error, KeyboardInterrupt):
        stopped = Stopped(self.signals.received or signal.SIGINT, step)
        processes.stop_all(stopped.number, str(stopped))  # where several have saved it already
        self._save(step)
        raise stopped from None
      self._save(step)
      raise
    name, best = self.eval.best, self.checkpoints.best
    before = None if best is None else best[1].get(name)  # None if another metric chose it
    if best is not None and before is None:
      text = 'the best checkpoint, of step %d, has no score of eval.best=%s: step %d replaces it'
      logging.warning(text, best[0], name, step)
    if before is None or is_better(
      name, result.metrics[name], before, self.experiment.task.metrics
    ):
      self.checkpoints.save_best(model, step, result.metrics)
    # last, because a run that is killed before this line is written repeats the evaluation
    self.report.evaluation(step, self.validation, result.metrics, result.samples, pictures)

  def _pictures(self, model: Model) -> dict[str, bytes]:
    """Return the attention weights of the first `eval.attention` examples as PNG, by name."""
    task, pictures = self.experiment.task, {}
    for i in range(min(self.eval.attention, len(self.source))):
      line, _ = task.example(self.source[i])
      try:
        pictures[f'attention/{i + 1}'] = heatmap.png(*attend(task, model, line))
      except ValueError as error:  # too long, for example
        text = 'eval.attention: example %d of %s is not drawn: %s'
        logging.warning(text, i + 1, self.validation, error)
    return pictures

  def _report(self, last: int, group: list[pipeline.Batch], metrics: dict[str, Any]):
    """Log the metrics of the steps of one call; `last` is the number of its last step."""
    metrics = jax.device_get(metrics)
    for i, batch in enumerate(group):
      step, of_step = last - len(group) + 1 + i, jax.tree.map(operator.itemgetter(i), metrics)
      if not of_step.pop('finite'):
        self._skip(step, batch)
      self.report.advance(_count_tokens(batch) * self.shares, self._seconds_at_peak(batch))
      if step % self.train.log_every_steps == 0:
        values = {name: float(getattr(v, 'value', v)) for name, v in of_step.items()}
        rate = float(self.programs.learning_rate(step - 1))
        self.logged = {'step': step} | values
        self.report.train(step, dict(values, learning_rate=rate))

  def _seconds_at_peak(self, batch: pipeline.Batch) -> float:
    """Return the seconds of a step at the datasheet's peak; 0 if the peak is unknown."""
    mesh = self.experiment.mesh
    if not (peak := compiled.peak(mesh.devices.flat[0])):
      return 0.0
    shapes = str([x.shape for x in batch.values()])
    if shapes not in self._operations:
      self._operations[shapes] = self.shares * step_operations(self.experiment, batch)
    return self._operations[shapes] / (peak * mesh.size)

  def _skip(self, step: int, batch: pipeline.Batch):
    """Continue after a step without update, because it was not finite; raise after too many."""
    self.skipped += 1
    train = self.train
    if train.nonfinite == 'halt' or self.skipped > train.max_nonfinite:
      raise_not_finite(self.experiment.task, self.state.model, batch, step, self.workdir.path)
    logging.warning(
      'step %d: the loss or its gradient is not finite: train.nonfinite=%s, %d of at most %d',
      *(step, train.nonfinite, self.skipped, train.max_nonfinite),
    )
    if train.nonfinite == 'rollback':
      self.checkpoints.wait()
      stored = _first_state(self.experiment, self.programs, self.checkpoints)
      self.state = stored._replace(step=self.state.step)  # do not repeat the data


LONG = 5.0  # seconds: compilations that take longer are logged


class _Silent(contextlib.AbstractContextManager):
  """The report of the other processes: does nothing."""

  evaluated = False

  def __exit__(self, *_):
    pass

  def __getattr__(self, _):
    return lambda *_: None


def _note(file: pathlib.Path, entry: Compilation):
  """Append a compilation to a file of JSON lines, and log it if it took long."""
  if entry.seconds >= LONG:
    how = 'read from the cache' if entry.cached else 'compiled'
    logging.info('%s %s in %.1f s', how, entry.function, entry.seconds)
  if processes.is_first():
    with contextlib.suppress(OSError), file.open('a', encoding='utf-8') as lines:
      lines.write(json.dumps(entry._asdict()) + '\n')


def _count_tokens(batch: pipeline.Batch) -> int:
  """Return the number of tokens in the targets, or in the inputs if there are no targets."""
  name = next(f'{side}_segments' for side in ('targets', 'inputs') if f'{side}_segments' in batch)
  return int(np.count_nonzero(batch[name]))


def _describe(experiment: Experiment, state: State, batches: pipeline.Batches, workdir: Workdir):
  """Log the sizes of model and batches; warn if the batches of a resumed run differ."""
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
  try:
    family_of(state.model, leaves(state.model))
  except ValueError as error:
    logging.info('--mode=export will refuse this model: %s', error)
  if (before := workdir.remember('batches', shapes)) != shapes:
    logging.warning(
      'they were %s: with another train.microbatches, some examples of this epoch come twice and '
      'some not at all',
      before,
    )
