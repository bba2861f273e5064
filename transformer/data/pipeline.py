"""Batches of a few static shapes from examples in memory; a batch is a function of its step.

Step n of a run always trains on the same batch, so that the step of the training state is also the
position in the data, and a run resumes with the batch of that step.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

Batch = dict[str, np.ndarray]
MADE_AT_ONCE = 1 << 28  # bytes: columns up to this size are decoded once, before training


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
  """Sequences of different lengths in one array.

  Attributes:
    tokens: all tokens [n] or frames [n, X], one sequence after the other.
    offsets: int64[sequences + 1]; sequence i is tokens[offsets[i] : offsets[i + 1]].
    padded: the least length of a row in a batch; 0 for that of its longest sequence.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  padded: int = 0

  @classmethod
  def from_sequences(cls, sequences: Sequence[Sequence[int] | np.ndarray]) -> 'Ragged':
    """Return sequences, which may be empty, as one Ragged; frames are arrays [n, X]."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    if sequences and isinstance(sequences[0], np.ndarray):
      tokens = np.concatenate(sequences)
    else:
      tokens = np.fromiter((t for s in sequences for t in s), np.int32, int(lengths.sum()))
    return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]))

  @classmethod
  def concatenate(cls, parts: Sequence['Ragged']) -> 'Ragged':
    """Return the sequences of all parts, in order."""
    lengths = np.concatenate([part.lengths for part in parts])
    tokens = np.concatenate([part.tokens for part in parts])
    return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]), parts[0].padded)

  @property
  def lengths(self) -> np.ndarray:
    """The length of each sequence."""
    return np.diff(self.offsets)

  @property
  def sizes(self) -> np.ndarray:
    """The length that each sequence has at least in a batch."""
    return np.maximum(self.lengths, self.padded)

  def count_with(self, token: int | None) -> int:
    """Return the number of sequences that contain the token."""
    places = np.flatnonzero(self.tokens == token)
    return len(np.unique(np.searchsorted(self.offsets, places, side='right')))

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, i: SupportsIndex) -> np.ndarray:
    i = range(len(self))[i]
    start, stop = self.offsets[i : i + 2]
    if not 0 <= start <= stop <= len(self.tokens):
      file = getattr(self.offsets, 'filename', 'offsets')
      raise ValueError(f'{file} is damaged: sequence {i} from {start} to {stop}; copy it again')
    return self.tokens[start:stop]


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
  """A column of arrays of one shape, each made from its item (such as a path) when it is needed.

  Attributes:
    items: one for each example.
    make: (item) to its array.
    shape: [examples, ...], of the array of all examples.
    dtype: of the arrays.
  """

  items: Sequence[Any]
  make: Callable[[Any], np.ndarray]
  shape: tuple[int, ...]
  dtype: Any

  @property
  def nbytes(self) -> int:
    """The size of the array of all examples, in bytes."""
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, places: Sequence[Any]) -> np.ndarray:
    rows, made, last = np.zeros((len(places), *self.shape[1:]), self.dtype), None, None
    for row, place in enumerate(places):
      if made is None or self.items[place] is not last:  # neighbors may share an image
        made, last = self.make(self.items[place]), self.items[place]
      rows[row] = made
    return rows

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    return self[range(len(self))].astype(dtype or self.dtype, copy=False)


# one entry for each example
Column = Ragged | np.ndarray | Lazy
Columns = dict[str, Column]


def concatenate(parts: Sequence[Columns]) -> Columns:
  """Return the columns of the examples of all parts, in order."""
  return {name: _concatenate([part[name] for part in parts]) for name in parts[0]}


def _concatenate(columns: Sequence[Any]) -> Column:
  if isinstance(columns[0], Ragged):
    return Ragged.concatenate(columns)
  if isinstance(columns[0], Lazy):
    items = [item for column in columns for item in column.items]
    shape = len(items), *columns[0].shape[1:]
    return dataclasses.replace(columns[0], items=items, shape=shape)
  return np.concatenate(columns)


def make_small(columns: Columns) -> Columns:
  """Return the columns, with each Lazy one of up to MADE_AT_ONCE bytes replaced by its array."""
  return {
    name: np.asarray(c) if isinstance(c, Lazy) and c.nbytes <= MADE_AT_ONCE else c
    for name, c in columns.items()
  }


class Rows(NamedTuple):
  """The rows that batches are made of.

  Attributes:
    members: for each row the indices of its examples.
    shapes: int[rows, columns], padded lengths; there are few different ones.
  """

  members: list[np.ndarray]
  shapes: np.ndarray


def bucket(lengths: np.ndarray, *, buckets: int, multiple: int = 8) -> Rows:
  """Return rows of one example each, padded to the longest example of its bucket.

  Examples are sorted by the length of their longest column and divided into buckets with about
  equal numbers of tokens.

  Args:
    lengths: int[examples, columns].
    buckets: the largest number of buckets.
    multiple: padded lengths are multiples of this.
  """
  shapes = bucket_shapes(lengths, buckets=buckets, multiple=multiple)
  return Rows([np.array([i]) for i in range(len(lengths))], shapes)


def bucket_shapes(lengths: np.ndarray, *, buckets: int, multiple: int = 8) -> np.ndarray:
  """Return int[examples, columns], the padded lengths; the arguments are those of `bucket`."""
  lengths = np.maximum(lengths, 1)  # a row needs at least one position
  order = np.lexsort((lengths.sum(axis=1), lengths.max(axis=1)))
  work = np.cumsum(lengths.max(axis=1)[order])
  group = work * buckets // (lengths.max(axis=1).sum() + 1)
  shapes = np.zeros_like(lengths)
  for bucket in np.unique(group):
    members = order[group == bucket]
    shapes[members] = -(-lengths[members].max(axis=0) // multiple) * multiple
  return shapes


def pack(lengths: np.ndarray, *, length: int, seed: int = 0) -> Rows:
  """Return rows of several examples: in random order, each is put into the fullest row with room.

  Args:
    lengths: int[examples, columns].
    length: of every row, in each column.
    seed: of the order.

  Raises:
    ValueError: an example is longer than a row.
  """
  if lengths.max(initial=0) > length:
    raise ValueError(
      f'an example of {lengths.max()} tokens does not fit a packed row of {length}: leave it '
      'out or make the rows longer'
    )
  members: list[list[int]] = []
  # only 64 rows are open at a time, so that the time is linear in the number of examples
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


def unpacked(examples: int) -> Rows:
  """Return rows of one example each, for columns without a length; an example counts as a token."""
  return Rows(list(np.arange(examples)[:, None]), np.ones((examples, 1), np.int64))


class Batches:
  """The batches of a run: `batches[step]` is a pure function of (data, seed, step, process).

  Every epoch has each row once. Rows of the same shape are shuffled and divided into batches of as
  many rows as the token budget allows; then the batches are shuffled. Empty rows, which have no
  weight in the loss, complete the last batch of a shape, and every batch whose rows cannot be
  divided equally among devices.

  Args:
    columns: such as {'inputs': Ragged, 'targets': Ragged}; an array or Lazy has a value for each
      example, such as its class or image, and such examples are never packed.
    rows: from `bucket`, `pack` or `unpacked`.
    tokens: budget of a batch, in positions of its longest column, padding included.
    multiple: the number of rows of a batch is a multiple of this (microbatches), even if that
      exceeds the budget.
    parts: number of devices that share the rows; empty rows are added up to a multiple of parts x
      multiple. This does not change which examples are in a batch.
    seed: of the shuffling; None keeps the order.
    process: (index, count): this process makes the index-th of count equal parts of every batch.

  Raises:
    ValueError: there is no example, or processes cannot share a batch equally.
  """

  def __init__(
    self,
    columns: Columns,
    rows: Rows,
    *,
    tokens: int,
    multiple: int = 1,
    parts: int = 1,
    seed: int | None = 0,
    process: tuple[int, int] = (0, 1),
  ):
    if not len(rows.members):
      raise ValueError('there is no example to make a batch of: give at least one')
    self.columns, self.rows, self.seed = columns, rows, seed
    groups = []
    for lengths in np.unique(rows.shapes, axis=0):
      groups.append((lengths, np.flatnonzero((rows.shapes == lengths).all(axis=1))))
    self._share_out(groups, tokens, multiple, parts, process)
    self._epoch: tuple[int, list] = (-1, [])

  def __len__(self) -> int:
    """The number of batches in an epoch."""
    return sum(self.counts)

  def __getitem__(self, step: int) -> Batch:
    """Return the batch of a step, counted over all epochs."""
    epoch, index = divmod(step, len(self))
    group, members = self._plan(epoch)[index]
    shape, _, size = self.groups[group]
    share = self._share(size)
    # contiguous, so that the parts of all processes in order are the batch of a single process
    members = members[self.process[0] * share :][:share]
    return fill(self.columns, [self.rows.members[i] for i in members], shape, share)

  def empty(self, group: int) -> Batch:
    """Return a batch of empty rows, for all processes, in the shape of a group."""
    shape, _, size = self.groups[group]
    return fill(self.columns, [], shape, self._share(size) * self.process[1])

  def _share_out(
    self,
    groups: Iterable[tuple[Sequence[int] | np.ndarray, Any]],
    tokens: int,
    multiple: int,
    parts: int,
    process: tuple[int, int],
  ):
    """Set `groups` and `counts`: the batch size, and the number of batches, of each shape.

    Args:
      groups: (shape, its rows).
      tokens, multiple, parts, process: as of the constructor.
    """
    self.process, self._filled = process, parts * multiple
    if self._filled % process[1]:
      raise ValueError(
        f'{process[1]} processes cannot share batches of {self._filled} rows, or a multiple of '
        f'that, equally: make it a multiple of {process[1]}'
      )
    self.groups: list[tuple[tuple[int, ...], Any, int]] = []  # (shape, rows, batch size)
    for lengths, rows in groups:
      shape = tuple(map(int, lengths))
      size = max(tokens // max(shape) // multiple, 1) * multiple
      self.groups.append((shape, rows, size))
    self.counts = [-(-len(rows) // size) for _, rows, size in self.groups]

  def _share(self, size: int) -> int:
    """Return the number of rows that a process makes of a batch of `size`, with empty ones."""
    return -(-size // self._filled) * self._filled // self.process[1]

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


def fill(
  columns: Columns, members: Sequence[np.ndarray], shape: tuple[int, ...], size: int
) -> Batch:
  """Return a batch of `size` rows, of which the first have examples and the others are empty.

  Args:
    columns: of all examples.
    members: for each row the indices of its examples.
    shape: padded length of each ragged column.
    size: number of rows.

  Returns:
    For each column NAME its rows, and NAME_segments: 1, 2, ... for the first, second, ... example
    of a row, 0 for padding.
  """
  batch: Batch = {}
  lengths = iter(shape)
  if members:
    examples = np.concatenate(members)
    counts = np.asarray([len(each) for each in members])
    first = np.cumsum(counts) - counts  # place of each row's first example among `examples`
    row = np.repeat(np.arange(len(members)), counts)  # of each example
  for name, column in columns.items():
    if not isinstance(column, Ragged):
      batch[name] = np.zeros((size, *column.shape[1:]), column.dtype)
      if members:
        batch[name][: len(members)] = column[[examples[0] for examples in members]]
      batch[f'{name}_segments'] = (np.arange(size) < len(members)).astype(np.int32)
      continue
    length = next(lengths)
    tokens = np.zeros((size, length, *column.tokens.shape[1:]), column.tokens.dtype)
    segments = np.zeros((size, length), np.int32)
    if members:
      starts = np.asarray(column.offsets[examples])
      sizes = np.asarray(column.offsets[examples + 1]) - starts
      before = np.cumsum(sizes) - sizes  # tokens of all examples before each
      within = np.arange(sizes.sum()) - np.repeat(before, sizes)
      place = np.repeat(before - before[first][row], sizes) + within
      rows = np.repeat(row, sizes)
      tokens[rows, place] = column.tokens[np.repeat(starts, sizes) + within]
      segments[rows, place] = np.repeat(np.arange(len(row)) - first[row] + 1, sizes)
    batch[name], batch[f'{name}_segments'] = tokens, segments
  return batch


def group_steps(
  batches: Iterator[Batch], start: int, size: int
) -> Iterator[tuple[int, list[Batch]]]:
  """Yield (step after the group, batches of the group), for calls of several steps.

  Steps 0 to size - 1 are a group, and so on, if their batches have the same shape; otherwise each
  of them is a group of its own. So the groups do not depend on where a run is resumed.

  Args:
    batches: of the steps start, start + 1, ...
    start: the first step.
    size: the number of steps in a group.
  """
  step, waiting = start, []
  for batch in batches:
    waiting.append(batch)
    if (step + len(waiting)) % size == 0:
      for group in _same_shape_or_single(waiting, size):
        step += len(group)
        yield step, group
      waiting = []
  for batch in waiting:
    step += 1
    yield step, [batch]


def _same_shape_or_single(batches: list[Batch], size: int) -> list[list[Batch]]:
  shapes = {tuple(array.shape for array in batch.values()) for batch in batches}
  alike = len(batches) == size and len(shapes) == 1
  return [batches] if alike else [[batch] for batch in batches]


def prefetch(batches: Batches, start: int, stop: int) -> Iterator[Batch]:
  """Return an iterator over the batches of steps start to stop - 1, made in a thread by Grain."""
  import grain

  class Steps:
    """Random access for Grain."""

    def __len__(self):
      return max(stop - start, 0)

    def __getitem__(self, i):
      return batches[start + i]

  # one thread, because more compete for the interpreter lock (16 are 10 times slower)
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return iter(grain.MapDataset.source(Steps()).to_iter_dataset(options))
