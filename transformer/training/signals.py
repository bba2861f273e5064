"""Signals that ask a run to stop, which then saves its state first."""

import contextlib
import signal
from collections.abc import Iterator

from absl import logging

from transformer.training import processes

# What asks a run to stop: schedulers announce their end by SIGTERM or SIGUSR1, a terminal that is
# closed by SIGHUP, and Ctrl-C is SIGINT. Windows has not all of them.
SIGNALS = [
  getattr(signal, name)
  for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
  if hasattr(signal, name)
]


class Stopped(Exception):
  """A signal asked the run to stop; the state was saved."""

  def __init__(self, number: int, step: int, then: str = 'resumes from there'):
    super().__init__(f'{signal.Signals(number).name}: saved step {step}; the same command {then}')
    self.number = number


class Signals:
  """Notes SIGNALS, which then do not end the process; a second SIGINT does.

  Before `listen` is called, while nothing could be lost, they end it at once, even a compilation.
  One that the process ignored before, such as SIGHUP under nohup, stays ignored.

  Attributes:
    received: the number of the last one, or 0.
    listening: whether they are noted.
  """

  received, listening, _interrupting = 0, False, False

  def __enter__(self):
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    self._before = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in self._before:  # Python's handler of SIGINT waits for the end of a compilation
      signal.signal(number, signal.SIG_DFL)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def listen(self):
    """Note the signals from now on."""
    self.listening = True
    for number in self._before:
      signal.signal(number, self._receive)

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """Let a signal raise KeyboardInterrupt."""
    self._interrupting = True
    try:
      if self.received:
        raise KeyboardInterrupt
      yield
    finally:
      self._interrupting = False

  @contextlib.contextmanager
  def stopping(self, step: int, then: str) -> Iterator[None]:
    """Raise Stopped at a signal while nothing is left to save; says what the command does again."""
    self.listen()
    try:
      with self.interrupting():
        yield
    except KeyboardInterrupt:
      stopped = Stopped(self.received or signal.SIGINT, step, then)
      processes.stop_all(stopped.number, str(stopped))
      raise stopped from None

  def _receive(self, number, _):
    self.received = number
    if signal.SIGINT in self._before:
      signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.info('%s: stopping', signal.Signals(number).name)
    if self._interrupting:
      raise KeyboardInterrupt
