"""What the loop does, in which order: nothing that was learned is lost, whatever happens."""

import os
import signal
import types

import jax
import numpy as np
import pytest

from transformer.training import loop as module
from transformer.training.loop import _Loop
from transformer.training.signals import SIGNALS, Signals, Stopped


class Recorder:
  """A run without arrays: it notes what the loop asks of its parts."""

  def __init__(self, monkeypatch, *, steps=6, save=2, every=2, average=1, nonfinite='halt'):
    self.done, self.deleted = [], False
    self.best = None
    self.failure, self.bad = {}, ()
    self.signals = types.SimpleNamespace(received=0, listening=False, listen=self.listen)
    self.signals.interrupting = lambda: Signals.interrupting(self.signals)
    train = types.SimpleNamespace(
      **dict(steps=steps, save_every_steps=save, steps_per_call=1, log_every_steps=100),
      average_checkpoints=average,
      **dict(nonfinite=nonfinite, max_nonfinite=2, max_compiles=0),
    )
    evaluation = types.SimpleNamespace(
      **dict(every_steps=every, metrics=(), limit=0, samples=0, attention=0, best='nll')
    )
    batch = {'targets_segments': np.ones((1, 1))}
    monkeypatch.setattr(module.pipeline, 'prefetch', lambda _, start, stop: iter([batch] * stop))
    monkeypatch.setattr(module.sharding, 'shard_batch', lambda *_, **__: None)
    monkeypatch.setattr(module.sharding, 'place_batches', lambda *_: None)
    monkeypatch.setattr(module, 'evaluate', self.evaluate)
    programs = types.SimpleNamespace(update=self.update, like=None)
    report = types.SimpleNamespace(
      evaluated=False, start=lambda: None, advance=lambda *_: None, evaluation=self.write
    )
    state = types.SimpleNamespace(step=0, average=None, model='model')
    experiment = types.SimpleNamespace(
      settings=types.SimpleNamespace(seed=0),
      task=types.SimpleNamespace(metrics={'nll': False}),
      mesh=jax.sharding.Mesh(jax.devices()[:1], 'data'),
    )
    self.loop = object.__new__(_Loop)
    vars(self.loop).update(
      **dict(experiment=experiment, programs=programs, checkpoints=self, report=report),
      **dict(signals=self.signals, state=state, train=train, eval=evaluation),
      **dict(
        workdir=types.SimpleNamespace(has_config=lambda: not self.deleted),
        validation='val',
        source=[],
        batches=None,
        shares=1,
        skipped=0,
        _plan=lambda group: None,
      ),
    )
    self.run = lambda: self.loop.run(object.__new__(module.pipeline.Batches))

  def listen(self):
    self.signals.listening = True

  def update(self, state, *_):
    state.step += 1
    return state, {'finite': np.array([state.step not in self.bad])}

  def evaluate(self, *_, **__):
    step = self.loop.state.step
    self.done.append(f'evaluate {step}')
    if step in self.failure:
      raise self.failure[step]
    return types.SimpleNamespace(metrics={'nll': 1 / step}, samples=[])

  def write(self, step, *_):
    self.done.append(f'write {step}')

  def wait(self):
    self.done.append('wait')

  def stored(self):
    state = types.SimpleNamespace(step=0, average=None, model='stored')
    state._replace = lambda step: vars(state).update(step=step) or state
    return state

  def save(self, state, step, *, extra, scores):
    self.done.append(f'save {step}' + ' extra' * extra)

  def save_best(self, model, step, metrics):
    self.done.append(f'best {step}')
    self.best = step, metrics


def test_a_step_is_saved_before_it_is_evaluated(monkeypatch):
  """And what the evaluation found is written when the best model is safe."""
  run = Recorder(monkeypatch, steps=4)
  run.run()
  expected = [f'{what} {step}' for step in (2, 4) for what in ('save', 'evaluate', 'best', 'write')]
  assert run.done == expected


@pytest.mark.parametrize('save, saved', [(2, 'save 2'), (5, 'save 2 extra')])
@pytest.mark.parametrize('error', [MemoryError(), FloatingPointError('NaN'), ValueError('x')])
def test_an_error_in_evaluation_loses_no_step(monkeypatch, error, save, saved):
  run = Recorder(monkeypatch, save=save)
  run.failure = {2: error}
  with pytest.raises(type(error)):
    run.run()
  assert saved in run.done and not any(done.startswith('write') for done in run.done)


def test_the_attention_of_the_first_examples_is_drawn(monkeypatch, caplog):
  def attend(task, model, line):
    if line == 'long':
      raise ValueError('too long')
    return np.ones((1, 1, 1, 2)) / 2, ['a'], ['b', 'c']

  loop = Recorder(monkeypatch).loop
  monkeypatch.setattr(module, 'attend', attend)
  loop.experiment.task.example = lambda example: (example, None)
  loop.source, loop.eval.attention = ['short', 'long', 'third'], 2
  assert [*loop._pictures('model')] == ['attention/1']
  assert 'example 2 of val is not drawn: too long' in caplog.text
  loop.eval.attention = 0
  assert not loop._pictures('model')


def test_a_deleted_workdir_is_not_made_again(monkeypatch):
  recorder = Recorder(monkeypatch)
  recorder.deleted = True
  with pytest.raises(OSError, match='was deleted or moved .*: step 2 is not saved'):
    recorder.run()
  assert not [done for done in recorder.done if done.startswith('save')]


def test_a_signal_in_evaluation_stops_it_and_saves(monkeypatch):
  run = Recorder(monkeypatch, save=5)
  run.failure, run.signals.received = {2: KeyboardInterrupt()}, 0
  with pytest.raises(Stopped, match='saved step 2'):
    run.run()
  assert run.done == ['evaluate 2', 'save 2 extra']


def test_the_averaged_steps_are_logged(monkeypatch):
  run, said = Recorder(monkeypatch, average=3), []
  monkeypatch.setattr(module.logging, 'info', lambda text, *args: said.append(text % args))
  run.averaged_steps = lambda n: [4, 6]
  run.average = lambda like, n: types.SimpleNamespace(model='mean')
  run.run()
  (text,) = [text for text in said if 'mean' in text]
  assert 'mean of 2 checkpoints, of steps 4, 6; train.average_checkpoints=3' in text


# of a resumed run: the best checkpoint so far, whether that of step 2, of nll 1/2, replaces it, and
# whether the log says why
BEST = {
  'better': ((1, {'nll': 0.9}), True, False),
  'worse': ((9, {'nll': 0.1}), False, False),
  'equal': ((1, {'nll': 0.5}), False, False),
  'of a later step, to which the run has not come again': ((99, {'nll': 0.9}), True, False),
  'chosen by another metric': ((1, {'bleu': 30.0}), True, True),
  'measured by this metric and others': ((1, {'bleu': 30.0, 'nll': 0.1}), False, False),
}


@pytest.mark.parametrize('name', BEST)
def test_the_best_checkpoint_of_a_resumed_run_is_replaced_by_a_better_one(name, monkeypatch):
  run, said = Recorder(monkeypatch, steps=2), []
  monkeypatch.setattr(module.logging, 'warning', lambda text, *args: said.append(text % args))
  run.best, replaced, why = BEST[name]
  run.run()
  assert ('best 2' in run.done) == replaced
  assert [text for text in said if 'has no score of eval.best=nll: step 2' in text] == said
  assert len(said) == why


@pytest.fixture
def handlers():
  """The handlers of this process, put back afterward."""
  before = {number: signal.getsignal(number) for number in SIGNALS}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS)
def test_signals_are_noted_and_end_an_evaluation(handlers, number):
  before = signal.getsignal(number)
  with Signals() as signals:
    assert signal.getsignal(number) == signal.SIG_DFL  # ends even a compilation
    signals.listen()
    os.kill(os.getpid(), number)
    assert signals.received == number
    with pytest.raises(KeyboardInterrupt), signals.interrupting():
      raise AssertionError('it came before')
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # a second Ctrl-C ends it
  assert signal.getsignal(number) == before
  with Signals() as signals, pytest.raises(KeyboardInterrupt):
    signals.listen()
    with signals.interrupting():
      os.kill(os.getpid(), number)
      raise AssertionError('it was not heard')


def test_a_signal_during_the_final_report_says_what_the_command_does_again(handlers):
  with pytest.raises(Stopped, match='SIGTERM: saved step 9; the same command makes the') as end:
    with Signals() as signals, signals.stopping(9, 'makes the final report'):
      os.kill(os.getpid(), signal.SIGTERM)
      raise AssertionError('it was not heard')
  assert end.value.number == signal.SIGTERM


def test_a_signal_that_was_ignored_stays_so(handlers):
  """As SIGHUP of a run under nohup."""
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with Signals() as signals:
    signals.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not signals.received
