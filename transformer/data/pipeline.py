"""From examples to batches: lengths to few static shapes, every batch a function of its step.

Step n of a run always trains on the same batch, whatever happened before: the position of the data
is the step of the training state, and to resume is to start the stream at that step.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
  """Many sequences in one array, of tokens or frames: tokens[offsets[i]:offsets[i + 1]] is one."""

  tokens: np.ndarray
  offsets: np.ndarray

  @classmethod
  def of(cls, sequences: Sequence[Sequence[int] | np.ndarray]) -> 'Ragged':
    """The sequences joined; they may be empty. Frames are arrays [n, X]."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    if sequences and isinstance(sequences[0], np.ndarray):
      tokens = np.concatenate(sequences)
    else:
      tokens = np.fromiter((t for s in sequences for t in s), np.int32, int(lengths.sum()))
    return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]))

  @classmethod
  def join(cls, parts: Sequence['Ragged']) -> 'Ragged':
    """All sequences of all parts, in order."""
    lengths = np.concatenate([part.lengths for part in parts])
    tokens = np.concatenate([part.tokens for part in parts])
    return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]))

  @property
  def lengths(self) -> np.ndarray:
    """How long each sequence is."""
    return np.diff(self.offsets)

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, i: SupportsIndex) -> np.ndarray:
    i = range(len(self))[i]
    return self.tokens[self.offsets[i] : self.offsets[i + 1]]


Field = Ragged | np.ndarray  # an array has one entry for each example
Fields = dict[str, Field]


def joined(parts: Sequence[Fields]) -> Fields:
  """All examples of all parts, in order."""
  return {
    name: Ragged.join([part[name] for part in parts])  # type: ignore[misc]
    if isinstance(field, Ragged)
    else np.concatenate([part[name] for part in parts])  # type: ignore[misc]
    for name, field in parts[0].items()
  }


class Rows(NamedTuple):
  """Which examples share a row, and how long that row is.

  Attributes:
    members: for each row the numbers of its examples.
    shapes: for each row the padded length of each field, from few different ones.
  """

  members: list[np.ndarray]
  shapes: np.ndarray


def bucketed(lengths: np.ndarray, *, buckets: int, multiple: int = 8) -> Rows:
  """One example a row, padded to the longest of its bucket.

  Examples are sorted by their longest field and cut into groups of about equal work, so that a few
  shapes fit the data at hand.

  Args:
    lengths: int[examples, fields].
    buckets: at most so many different shapes.
    multiple: lengths are padded up to multiples of this.
  """
  lengths = np.maximum(lengths, 1)  # a model cannot read a row without any position
  order = np.lexsort((lengths.sum(axis=1), lengths.max(axis=1)))
  work = np.cumsum(lengths.max(axis=1)[order])
  group = work * buckets // (lengths.max(axis=1).sum() + 1)
  shapes = np.zeros_like(lengths)
  for bucket in np.unique(group):
    members = order[group == bucket]
    shapes[members] = -(-lengths[members].max(axis=0) // multiple) * multiple
  return Rows([np.array([i]) for i in range(len(lengths))], shapes)


def packed(lengths: np.ndarray, *, length: int, seed: int = 0) -> Rows:
  """Many examples a row: each into the fullest open row that has room, in random order.

  Args:
    lengths: int[examples, fields].
    length: of every row, in each field.
    seed: of the order.

  Raises:
    ValueError: an example is longer than a row.
  """
  if lengths.max(initial=0) > length:
    raise ValueError(
      f'an example of {lengths.max()} tokens does not fit a packed row of {length}: leave it '
      'out or make rows longer'
    )
  members: list[list[int]] = []
  # few rows are open at a time, so that the time grows with the examples and not with their square
  open_rows = np.zeros(64, np.int64)
  room = np.full((64, lengths.shape[1]), -1)
  for i in np.random.default_rng(seed).permutation(len(lengths)):
    total = room.sum(axis=1)
    fits = (room >= lengths[i]).all(axis=1)
    slot = np.argmin(np.where(fits, total, np.iinfo(total.dtype).max))
    if not fits[slot]:
      slot = np.argmin(total)
      open_rows[slot], room[slot] = len(members), length
      members.append([])
    members[open_rows[slot]].append(int(i))
    room[slot] -= lengths[i]
  shapes = np.full((len(members), lengths.shape[1]), length)
  return Rows([np.array(m) for m in members], shapes)


def alone(examples: int) -> Rows:
  """One example a row, of those that have no length: each counts as one token."""
  return Rows(list(np.arange(examples)[:, None]), np.ones((examples, 1), np.int64))


class Batches:
  """Batches by number: `batches[step]` is a pure function of (data, seed, step, process).

  Every epoch visits each row once, shuffled anew: rows within their shape, then the batches. A
  batch has as many rows of its shape as fit the token budget; the last one of a shape is filled up
  with empty rows, which weigh nothing.

  Args:
    fields: the sequences of each field, such as {'inputs': Ragged, 'targets': Ragged}; what an
      example has one of, such as its class or its image, is an array, and never packed.
    rows: from `bucketed`, `packed` or `alone`.
    tokens: budget of a batch, in positions of its longest field, padding included.
    multiple: the number of rows is a multiple of this (devices x microbatches), even where that
      exceeds the budget.
    seed: of the shuffling; None keeps the order.
    process: (index, count): this process makes the index-th of count equal parts of every batch.

  Raises:
    ValueError: there is no example, or processes cannot share a batch equally.
  """

  def __init__(
    self,
    fields: Fields,
    rows: Rows,
    *,
    tokens: int,
    multiple: int = 1,
    seed: int | None = 0,
    process: tuple[int, int] = (0, 1),
  ):
    if not len(rows.members):
      raise ValueError('there is no example to make a batch of: give at least one')
    if multiple % process[1]:
      raise ValueError(
        f'{process[1]} processes cannot share batches of {multiple} rows, or a multiple of that, '
        f'equally: make it a multiple of {process[1]}'
      )
    self.fields, self.rows, self.seed, self.process = fields, rows, seed, process
    self.groups: list[tuple[tuple[int, ...], np.ndarray, int]] = []  # (shape, rows, batch size)
    for shape in np.unique(rows.shapes, axis=0):
      size = max(tokens // int(shape.max()) // multiple, 1) * multiple
      of_shape = np.flatnonzero((rows.shapes == shape).all(axis=1))
      self.groups.append((tuple(map(int, shape)), of_shape, size))
    self.counts = [-(-len(members) // size) for _, members, size in self.groups]
    self._epoch: tuple[int, list] = (-1, [])

  def __len__(self) -> int:
    """Batches in an epoch."""
    return sum(self.counts)

  def __getitem__(self, step: int) -> Batch:
    """The batch of this step, counted over all epochs."""
    epoch, index = divmod(step, len(self))
    group, members = self._plan(epoch)[index]
    shape, _, size = self.groups[group]
    process, count = self.process
    share = size // count
    # side by side, so that the parts joined in the order of processes are the batch of one process
    members = members[process * share : (process + 1) * share]
    return self._fill([self.rows.members[i] for i in members], shape, share)

  def _plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
    planned, plan = self._epoch  # read once: another thread may be in another epoch
    if planned != epoch:
      random = np.random.default_rng((self.seed or 0, epoch))
      shuffle: Callable = np.asarray if self.seed is None else random.permutation
      plan = []
      for g, (_, members, size) in enumerate(self.groups):
        members = shuffle(members)
        plan += [(g, members[i : i + size]) for i in range(0, len(members), size)]
      order = shuffle(np.arange(len(plan)))
      plan = [plan[i] for i in order]
      self._epoch = (epoch, plan)
    return plan

  def _fill(self, members: list[np.ndarray], shape: tuple[int, ...], size: int) -> Batch:
    batch: Batch = {}
    lengths = iter(shape)
    for name, field in self.fields.items():
      if isinstance(field, np.ndarray):
        batch[name] = np.zeros((size, *field.shape[1:]), field.dtype)
        batch[name][: len(members)] = field[[examples[0] for examples in members]]
        batch[f'{name}_segments'] = (np.arange(size) < len(members)).astype(np.int32)
        continue
      length = next(lengths)
      tokens = np.zeros((size, length, *field.tokens.shape[1:]), field.tokens.dtype)
      segments = np.zeros((size, length), np.int32)
      for row, examples in enumerate(members):
        end = 0
        for segment, example in enumerate(examples, start=1):
          start, end = end, end + len(field[example])
          tokens[row, start:end] = field[example]
          segments[row, start:end] = segment
      batch[name], batch[f'{name}_segments'] = tokens, segments
    return batch


def grouped(batches: Iterator[Batch], start: int, size: int) -> Iterator[tuple[int, list[Batch]]]:
  """Batches that go to the device together, and the step after them.

  Steps 0 to size - 1 are a group, and so on, if their batches have one shape; if not, each is
  alone. So a run that goes on from any group's end makes the groups that it would have made.

  Args:
    batches: of the steps start, start + 1, ...
    start: the first step.
    size: of a group.
  """
  step, waiting = start, []
  for batch in batches:
    waiting.append(batch)
    if (step + len(waiting)) % size == 0:
      for group in _together(waiting, size):
        step += len(group)
        yield step, group
      waiting = []
  for batch in waiting:
    step += 1
    yield step, [batch]


def _together(batches: list[Batch], size: int) -> list[list[Batch]]:
  shapes = {tuple(array.shape for array in batch.values()) for batch in batches}
  alike = len(batches) == size and len(shapes) == 1
  return [batches] if alike else [[batch] for batch in batches]


def stream(batches: Batches, start: int, stop: int) -> Iterator[Batch]:
  """The batches of steps start, ..., stop - 1, made ahead of their use by Grain, in a thread."""
  import grain

  class Steps:
    """Random access for Grain."""

    def __len__(self):
      return max(stop - start, 0)

    def __getitem__(self, i):
      return batches[start + i]

  # one thread: more of them only fight over the interpreter lock (16 are 10 times slower)
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return iter(grain.MapDataset.source(Steps()).to_iter_dataset(options))
