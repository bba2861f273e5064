"""A ledger of compilations: function, shapes, seconds, and whether the program was in the cache.

JAX logs what it compiles at the level DEBUG, and reports the time to its monitoring listeners.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

_open: list['Ledger'] = []


class Compilation(NamedTuple):
  """A function that was compiled.

  Attributes:
    function: its name in JAX.
    shapes: of its arguments, such as float32[8,16].
    seconds: time to compile it or to read it from the cache.
    cached: whether the program was read from the cache on disk.
  """

  function: str
  shapes: tuple[str, ...]
  seconds: float
  cached: bool


class Ledger(contextlib.AbstractContextManager):
  """A context manager that records every compilation of this process.

  Args:
    note: called with each Compilation.

  Attributes:
    entries: all of them, in order.
  """

  def __init__(self, note: Callable[[Compilation], None] = lambda entry: None):
    self.entries: list[Compilation] = []
    self._note, self._begun, self._cached = note, ('', ()), False

  def __enter__(self):
    _listen()
    _open.append(self)
    names = [n for n in [*logging.Logger.manager.loggerDict] if n.endswith('rs.pxla')]
    self._loggers = list(map(logging.getLogger, names))
    self._levels = [logger.level for logger in self._loggers]
    for logger in self._loggers:
      logger.setLevel(logging.DEBUG)
      logger.addFilter(self._read)
    return self

  def __exit__(self, *_):
    _open.remove(self)
    for logger, level in zip(self._loggers, self._levels, strict=True):
      logger.removeFilter(self._read)
      logger.setLevel(level)

  def _read(self, record: logging.LogRecord) -> bool:
    """Record what JAX is about to compile; a log filter that lets only warnings pass."""
    if str(record.msg).startswith('Compiling %s with global shapes') and record.args:
      name, shapes, *_ = record.args
      arrays = re.findall(r'[\w<>]+\[[\w,]*\]', str(shapes))
      self._begun = re.sub(r'^jit\((.*)\)$', r'\1', str(name)), tuple(arrays)
    return record.levelno > logging.INFO

  def compiled(self, seconds: float, name: str):
    """Record the end of a compilation."""
    function, shapes = self._begun
    entry = Compilation(function or name, shapes, round(seconds, 3), self._cached)
    self._begun, self._cached = ('', ()), False
    self.entries.append(entry)
    self._note(entry)

  def found(self):
    """Record that the program is in the cache."""
    self._cached = True

  def check(self, function: str, most: int, arguments: Sequence[str]):
    """Raise ValueError, which names the changed arguments, after more than `most` compilations.

    Args:
      function: its name.
      most: 0 for no limit.
      arguments: names of its arguments, in the order of the shapes.
    """
    mine = [entry for entry in self.entries if entry.function == function]
    if not most or len(mine) <= most:
      return
    last = mine[-1].shapes
    near = max(mine[:-1], key=lambda entry: sum(map(str.__eq__, entry.shapes, last)))
    names = (
      arguments if len(arguments) == len(last) else [f'argument {i}' for i in range(len(last))]
    )
    pairs = zip(names, near.shapes, last, strict=False)
    changed = [f'{name} is {new}, before {old}' for name, old, new in pairs if old != new]
    raise ValueError(
      f'{function} was compiled {len(mine)} times, more than train.max_compiles={most}: '
      f'{"; ".join(changed[:5]) or "no shape changed, but the layout on devices or a type did"}. '
      'Give data.buckets as few shapes as that, or allow more'
    )


def _listen(listening=[]):  # noqa: B006, remembers that the listeners are registered
  if listening:
    return
  listening.append(True)

  def duration(event: str, seconds: float, **about):
    if event.endswith('backend_compile_duration'):
      for ledger in _open:
        ledger.compiled(seconds, about.get('fun_name', ''))

  def happened(event: str, **_):
    if event.endswith('compilation_cache/cache_hits'):
      for ledger in _open:
        ledger.found()

  jax.monitoring.register_event_duration_secs_listener(duration)
  jax.monitoring.register_event_listener(happened)
