"""Prepared corpora: on disk, of any size, of which only the examples of a batch are read.

A folder has `prepared.json` (settings, counts and checksums), `tokenizer.json`, and for each split
columns as written by data.token_files. A split has one of these kinds:

documents   the tokens of whole documents, <split>.targets, which a task cuts into windows
columns     the columns that the task makes from examples, such as <split>.inputs, <split>.targets
examples    the examples themselves: <split>.fields as JSON, and <split>.content, the original bytes
            of an image or sound; decoded or tokenized when a batch needs them

The index of a split says which examples are in which row of a batch: `<split>.rows`, with rows of
the same shape next to each other, and for documents `<split>.windows`, begin and end of each window
in the tokens. No file is read as a whole, so that start-up time and memory do not grow with the
corpus.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import pathlib
import urllib.parse
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np

from transformer.data.archives import Content
from transformer.data.permutation import permute
from transformer.data.pipeline import Batch, Batches, Columns, Ragged, fill
from transformer.data.reading import FileError, check_keys, naming
from transformer.data.token_files import open_column, release
from transformer.data.tokenizers import Tokenizer

JSON = 'prepared.json'
FORMAT = 2  # of prepared.json; 1 had no checksum
Example = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A split of a prepared corpus.

  Attributes:
    folder, split: of the corpus.
    info: its entry in prepared.json: 'kind', 'content' (the settings that the files depend on),
      'index' (None without one), 'columns' (the Info of each).
    columns: {name: column}, mapped into memory.
    rows, windows: the index; None if row i is example i, or if there are no windows.
    vocab: number of ids of the tokenizer.
  """

  folder: pathlib.Path
  split: str
  info: dict[str, Any]
  columns: dict[str, Any]
  rows: Any
  windows: Any
  vocab: int

  @classmethod
  def open(cls, folder: pathlib.Path, split: str) -> Any:
    """Return a split of a prepared corpus, or of a folder with nanoGPT's `<split>.bin`.

    Raises:
      FileNotFoundError: there is no such corpus or file.
      FileError: there is no such split, a file has the wrong size, or prepared.json is damaged.
    """
    if not (folder / JSON).is_file():
      return _nanogpt(folder, split)
    with naming(folder / JSON, 'run --mode=prepare again'):
      described = read_json(folder)
      if split not in described['splits']:
        raise ValueError(f'no split {split!r}, but {", ".join(described["splits"])}')
      info = described['splits'][split]
      columns = {n: open_column(stem(folder, split, n), x) for n, x in info['columns'].items()}
      index = info['index'] or {}
      rows, windows = (
        open_column(stem(folder, split, name), index[name]) if index.get(name) else None
        for name in ('rows', 'windows')
      )
      return cls(folder, split, info, columns, rows, windows, described['vocab'])

  @property
  def fingerprint(self) -> str:
    """The SHA-256 of `info`, which has the checksums of all files."""
    return _digest(self.info)

  def __len__(self) -> int:
    return len(next(iter(self.columns.values())))

  def __getitem__(self, i: SupportsIndex) -> Example:
    i = range(len(self))[i]
    if self.info['kind'] == 'documents':
      return {'targets': self._checked(self.columns['targets'][i])}
    if self.info['kind'] == 'columns':
      return {name: column[i] for name, column in self.columns.items()}
    with naming(f'{self.folder}: example {i} of {self.split}', 'run --mode=prepare again'):
      fields = json.loads(self.columns['fields'][i].tobytes())
    example = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    if (kind := example.pop('content', None)) is not None:
      content = Content(self.columns['content'][i].tobytes())
      content.name = f'{self.folder / self.split}[{i}], {example.get("name", "an input")}'
      is_array = kind == 'npy'
      example['inputs'] = np.load(io.BytesIO(content), allow_pickle=False) if is_array else content
    return example

  def encoded(self, ids: np.ndarray, encode: Callable[[Any], Columns]) -> Columns:
    """Return the columns of some examples or windows.

    Args:
      ids: indices of windows (kind 'documents') or of examples.
      encode: (examples) to columns; an example is {'targets': tokens of a window} for documents.
    """
    if self.info['kind'] == 'examples':
      return encode([self[i] for i in ids.tolist()])
    if self.info['kind'] == 'documents':
      starts, stops = self._windows(ids)
      ends = np.cumsum(stops - starts)
      places = np.arange(ends[-1]) + np.repeat(stops - ends, stops - starts)
      tokens = self._checked(self.columns['targets'].tokens[places])
      bounds = [0, *ends.tolist()]
      return encode([{'targets': tokens[i:j]} for i, j in itertools.pairwise(bounds)])
    return {
      name: Ragged.from_sequences([_int32(column[i]) for i in ids])
      if isinstance(column, Ragged)
      else _int32(column[ids])
      for name, column in self.columns.items()
    }

  def _windows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the begins and the ends of windows in the tokens."""
    length, step, _ = self.info['index']['settings']['cut']
    size = len(self.columns['targets'].tokens)
    if self.windows is None:
      return ids * step, np.minimum(ids * step + length, size)
    starts, stops = np.asarray(self.windows[ids]).T
    valid = (starts >= 0) & (stops - starts <= length) & (starts <= stops) & (stops <= size)
    self.check('windows', valid)
    return starts, stops

  def check(self, name: str, valid: np.ndarray):
    """Raise FileError, which names the file of the index, unless all entries are valid.

    Args:
      name: rows or windows.
      valid: bool[entries].
    """
    if not valid.all():
      raise FileError(
        f'{stem(self.folder, self.split, name)}.bin is damaged: it has entries outside of the '
        'corpus: copy it again, or run --mode=prepare, which compares the checksums'
      )

  def _checked(self, tokens: np.ndarray) -> np.ndarray:
    """Return tokens as int32; raise FileError if the tokenizer does not have their ids."""
    if tokens.max(initial=0) >= self.vocab:
      raise FileError(
        f'{self.folder}: {self.split} has the token {tokens.max()}, and tokenizer.json has '
        f'{self.vocab}: put the tokenizer there that made the file'
      )
    return _int32(tokens)


class PreparedBatches(Batches):
  """The batches of a split with an index, like `pipeline.Batches`.

  The rows of each shape and the batches of an epoch are shuffled by `permute`, without an array of
  indices. Every epoch has each row once.

  Args:
    source: the split.
    encode: see `Prepared.encoded`.
    tokens, multiple, parts, seed, process: as of `pipeline.Batches`.

  Raises:
    ValueError: the split has no row.
  """

  def __init__(
    self,
    source: Prepared,
    encode: Callable[[Any], Columns],
    *,
    tokens: int,
    multiple: int = 1,
    parts: int = 1,
    seed: int | None = 0,
    process: tuple[int, int] = (0, 1),
  ):
    self.source, self.encode, self.seed = source, encode, seed
    groups, first = [], 0
    for group in source.info['index']['groups']:
      groups.append((group['shape'], range(first, first + group['rows'])))
      first += group['rows']
    if not groups:
      raise ValueError(f'{source.folder} has no row of {source.split}: prepare longer texts')
    self._share_out(groups, tokens, multiple, parts, process)

  def __getitem__(self, step: int) -> Batch:
    """Return the batch of a step, counted over all epochs."""
    epoch, number = divmod(step, len(self))
    if self.seed is not None:
      (number,) = permute(np.array([number]), len(self), (self.seed, epoch)).tolist()
    group = 0
    while number >= self.counts[group]:
      number, group = number - self.counts[group], group + 1
    _, rows, size = self.groups[group]
    share = self._share(size)
    # contiguous, so that the parts of all processes in order are the batch of a single process
    numbers = np.arange(number * size, min((number + 1) * size, len(rows)))
    numbers = numbers[self.process[0] * share :][:share]
    if self.seed is not None:
      numbers = permute(numbers, len(rows), (self.seed, epoch, group + 1))
    batch = self._filled_with(numbers.tolist(), group, share)
    if step % 8 == 0:  # more often takes time, less often takes memory
      for column in (*self.source.columns.values(), self.source.rows, self.source.windows):
        release(column)
    return batch

  def empty(self, group: int) -> Batch:
    """Return a batch of all processes in the shape of a group, of empty rows."""
    return self._filled_with([], group, self._share(self.groups[group][2]) * self.process[1])

  def _filled_with(self, numbers: list[int], group: int, size: int) -> Batch:
    shape, rows, _ = self.groups[group]
    members = [self._members(rows[i]) for i in numbers]
    # for an empty batch, encode the first row to learn the columns
    ids = np.concatenate(members or [self._members(rows[0])])
    places = np.split(np.arange(len(ids)), np.cumsum([len(each) for each in members])[:-1])
    columns = self.source.encoded(ids, self.encode)
    # the index of documents has one length, which all columns of the task have
    ragged = sum(isinstance(column, Ragged) for column in columns.values())
    rows = f'{stem(self.source.folder, self.source.split, "rows")}.bin'
    with naming(rows, 'run --mode=prepare again'):  # a damaged one has rows that are too long
      return fill(columns, places[: len(members)], shape * (ragged // len(shape)), size)

  def _members(self, row: int) -> np.ndarray:
    source, rows = self.source, self.source.rows
    ids = np.atleast_1d(np.asarray(row if rows is None else rows[row]))
    if rows is not None:
      count = len(source if source.windows is None else source.windows)
      valid = (ids >= 0) & (ids < count)
      source.check('rows', valid if len(ids) else np.zeros(1, bool))
    return ids


def stem(folder: pathlib.Path, split: str, column: str) -> pathlib.Path:
  """Return the path of the files of a column without their endings .bin and .idx."""
  return folder / f'{urllib.parse.quote(split, safe="[]:%")}.{column}'


def endless(source: Prepared, settings: dict[str, Any]) -> Prepared:
  """Return a split that is one document, with an index whose windows are computed, not stored.

  Args:
    source: the split.
    settings: as of preparation.write_index.
  """
  length, step, added = settings['cut']
  rows = -(-max(len(source.columns['targets'].tokens) - (length - step), 0) // step)
  groups = [{'shape': [length + added], 'rows': rows}] if rows else []
  index = {'settings': settings, 'groups': groups, 'left_out': 0}
  return dataclasses.replace(source, info=source.info | {'index': index})


def read_json(folder: pathlib.Path) -> dict[str, Any]:
  """Return the content of a folder's prepared.json; raise ValueError for another format."""
  described = json.loads((folder / JSON).read_bytes())
  check_keys(described, 'format', 'splits', 'vocab')
  if described['format'] not in (1, FORMAT):
    raise ValueError(f'it has format {described["format"]}, and this version reads 1 to {FORMAT}')
  if described.pop('sha256', None) != _digest(described) and described['format'] == FORMAT:
    raise ValueError('it is not as it was written')
  return described


def write_json(folder: pathlib.Path, described: dict[str, Any]):
  """Write prepared.json atomically, with its format and checksum."""
  described = described | {'format': FORMAT}
  text = json.dumps(described | {'sha256': _digest(described)}, indent=1)
  temporary = folder / f'{JSON}.tmp'
  temporary.write_text(text + '\n')
  temporary.replace(folder / JSON)


def _digest(described: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _nanogpt(folder: pathlib.Path, split: str) -> Any:
  """Return nanoGPT's train.bin as one document, or the texts in the file of another split.

  The files have ids as uint16, with end tokens between documents.
  """
  file = folder / f'{split}.bin'
  if not file.is_file():
    names = sorted(path.name for path in folder.glob('*'))[:20]
    raise FileNotFoundError(
      f'{folder} has no prepared corpus, neither {JSON} nor {file.name} (there: '
      f'{", ".join(names) or "nothing"}): write it by --mode=prepare --workdir={folder}'
    )
  tokenizer = Tokenizer.load(folder / 'tokenizer.json')
  size = file.stat().st_size
  info = {'dtype': '<u2', 'shape': [], 'length': size // 2, 'count': size // 2, 'ragged': False}
  tokens: Any = open_column(folder / split, info)
  if split != 'train':
    parts = np.split(tokens, np.flatnonzero(tokens == tokenizer.eos))
    texts = (tokenizer.decode(part[part != tokenizer.eos]) for part in parts)
    return [{'targets': text} for text in texts if text]
  state = {'file': str(file), 'size': size, 'changed': file.stat().st_mtime_ns}
  info = {'kind': 'documents', 'content': None, 'index': None, 'columns': {'targets': state}}
  columns = {'targets': Ragged(tokens, np.asarray([0, len(tokens)]))}
  return Prepared(folder, split, info, columns, None, None, tokenizer.size)


def _int32(values: np.ndarray) -> np.ndarray:
  return values.astype(np.int32) if values.dtype.kind in 'iu' else np.asarray(values)
