"""Signals that stop a run after it has saved its state."""

import contextlib
import signal
from collections.abc import Iterator

from absl import logging

from transformer.training import processes

# Schedulers send SIGTERM or SIGUSR1 before they end a job, a closed terminal sends SIGHUP, and
# Ctrl-C SIGINT. Windows does not have all of them.
SIGNALS = [
  getattr(signal, name)
  for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
  if hasattr(signal, name)
]


class Stopped(Exception):
  """Raised after a signal, when the state has been saved.

  Args:
    number: of the signal.
    step: that was saved.
    then: what the same command does when it is given again.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number: int, step: int, then: str = 'resumes from there'):
    super().__init__(f'{signal.Signals(number).name}: saved step {step}; the same command {then}')
    self.number = number


class Signals:
  """Handlers that record SIGNALS instead of ending the process; a second SIGINT still ends it.

  Before `listen` is called there is nothing to save, and a signal ends the process at once, even
  during a compilation, by the handler of SIGTERM that was there; that of run.py writes a line. A
  signal that the process ignored before, such as SIGHUP with nohup, stays ignored. A context
  manager: at its end the handlers before it are set again.

  Attributes:
    received: the number of the last signal, or 0.
    listening: whether signals are recorded.
  """

  received, listening, _interrupting = 0, False, False

  def __enter__(self):
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    self._before = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}
    at_once = self._before.get(signal.SIGTERM, signal.SIG_DFL)
    for number in self._before:  # Python's own handler of SIGINT would wait for a compilation
      signal.signal(number, at_once)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def listen(self):
    """Record signals from now on."""
    self.listening = True
    for number in self._before:
      signal.signal(number, self._receive)

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block at a signal, also for one that was received before."""
    self._interrupting = True
    try:
      if self.received:
        raise KeyboardInterrupt
      yield
    finally:
      self._interrupting = False

  @contextlib.contextmanager
  def stopping(self, step: int, then: str) -> Iterator[None]:
    """Raise Stopped in the block at a signal; for work after the last save.

    Args:
      step: that was saved.
      then: what the same command does when it is given again.
    """
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
      # not run.py's handler: its thread may read this signal late, and would end the process for it
      signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.info('%s: stopping', signal.Signals(number).name)
    if self._interrupting:
      raise KeyboardInterrupt
