"""Writing a prepared corpus (see data.prepared), in parallel; can be interrupted and resumed.

The examples of a split are divided into parts of some megabytes, and each part is encoded by one of
several processes into its own files. Parts that exist already, from the same examples and complete,
are kept. At the end the parts are joined, and the index is made from the lengths.
"""

import collections
import contextlib
import ctypes
import functools
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import pickle
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from transformer.data import pipeline, prepared, token_files
from transformer.data.pipeline import Columns, Ragged
from transformer.data.text import Cut, encode_documents

PART = 1 << 23  # characters or bytes in a part
PART_EXAMPLES = 1 << 16  # the most examples in a part
FILE = 1 << 15  # bytes that a file of an image or sound counts as, without looking at its size
DECODED = 64  # images or sounds that are decoded at once
PACKED = 1 << 17  # examples that are packed together
Example = dict[str, Any]
log = logging.getLogger(__name__)


class Encoder(NamedTuple):
  """A function from examples to the columns that are written.

  Attributes:
    kind: documents, columns or examples; see data.prepared.
    task: makes columns from examples (columns), or has a tokenizer and a `cut` (documents).
    measured: whether to encode examples also for their lengths (kind 'examples').
  """

  kind: str
  task: Any
  measured: bool = False

  def __call__(self, examples: list[Example]) -> Columns:
    """Return the columns to be written."""
    if self.kind == 'columns':
      return self.task.columns(examples)
    if self.kind == 'documents':
      texts = [example['targets'] for example in examples]
      encoded = encode_documents(self.task.tokenizer, texts, whole=self.task.cut.whole)
      return {'targets': Ragged.from_sequences(list(encoded))}
    fields, contents = zip(*map(_as_bytes, examples), strict=True)
    columns: Columns = {'fields': _ragged_bytes(fields), 'content': _ragged_bytes(contents)}
    if self.measured:
      named = [
        x | {'inputs': str(f)} if isinstance(f := x['inputs'], os.PathLike) else x for x in examples
      ]
      parts = [named[i : i + DECODED] for i in range(0, len(named), DECODED)]
      lengths = [_lengths(pipeline.make_small(self.task.columns(part))) for part in parts]
      columns['lengths'] = np.concatenate(lengths)
    return columns


def write_split(
  folder: pathlib.Path,
  split: str,
  examples: Callable[[], Iterable[Example]],
  encoder: Encoder,
  content: Any,
  *,
  workers: int = 1,
) -> dict[str, Any]:
  """Write the columns of a split, and return its entry for prepared.json, without an index.

  Args:
    folder: of the corpus.
    split: its name.
    examples: returns a new iterator over the examples at each call.
    encoder: makes the columns.
    content: the settings that the columns depend on, as JSON types.
    workers: number of processes that encode.

  Raises:
    ValueError: the split has no example.
  """
  with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
    old = prepared.read_json(folder)['splits'][split]
    if old['content'] == content and old['source'] == _digest(map(_source, _parts(examples()))):
      _check(folder, split, old)
      log.info('%s: %s is there already', folder, split)
      return old
  parts = prepared.stem(folder, split, 'parts')
  parts.mkdir(parents=True, exist_ok=True)
  packed, settings = pickle.dumps(encoder), json.dumps(content).encode()
  jobs = ((packed, settings, part, parts / f'{i:06}') for i, part in enumerate(_parts(examples())))
  done, count, logged = [], 0, 0
  for infos, source in in_processes(_write_part, jobs, workers):
    done.append((infos, source))
    count += next(iter(infos.values()))['count']
    if len(done) >= 2 * logged:
      logged = len(done)
      log.info('%s: %d rows in %d parts so far', split, count, logged)
  if not done:
    raise ValueError(f'the split {split} has no example: give it some')
  columns = {}
  for name in done[0][0]:
    each = [(parts / f'{i:06}.{name}', infos[name]) for i, (infos, _) in enumerate(done)]
    columns[name] = token_files.join_columns(prepared.stem(folder, split, name), each)
  source = _digest(source for _, source in done)
  info = {'kind': encoder.kind, 'content': content, 'source': source, 'columns': columns}
  return info | {'index': None}


def remove_parts(folder: pathlib.Path, split: str):
  """Delete the parts of a split, after they were joined."""
  shutil.rmtree(prepared.stem(folder, split, 'parts'), ignore_errors=True)


def write_index(
  folder: pathlib.Path,
  split: str,
  info: dict[str, Any],
  settings: dict[str, Any],
  *,
  workers: int = 1,
) -> dict[str, Any]:
  """Write which examples or windows are in which row, and return the index for prepared.json.

  Args:
    folder, split: of the corpus.
    info: from `write_split`.
    settings: 'cut' (of documents), 'packing', 'max_length', 'buckets', and others that the lengths
      depend on; stored in the index.
    workers: number of processes that pack.
  """
  if info['index'] and info['index']['settings'] == settings:
    return info['index']
  index: dict[str, Any] = {'settings': settings, 'rows': None, 'windows': None}
  columns: dict[str, Any] = {
    name: token_files.open_column(prepared.stem(folder, split, name), each)
    for name, each in info['columns'].items()
  }
  if info['kind'] == 'documents':
    windows = cut_windows(columns['targets'].offsets, Cut(*settings['cut']))
    lengths = np.diff(windows, axis=1) + settings['cut'][2]
    stem = prepared.stem(folder, split, 'windows')
    index['windows'] = token_files.write_column(stem, windows)
  else:
    lengths = columns['lengths'] if 'lengths' in columns else _lengths(columns)
  short = np.flatnonzero(lengths.max(axis=1, initial=0) <= settings['max_length'])
  index['left_out'] = len(lengths) - len(short)
  rows: Any = short
  if not lengths.shape[1]:
    index['groups'] = [{'shape': [1], 'rows': len(short)}]
  elif settings['packing']:
    rows = _packed(lengths, short, settings['max_length'], workers)
    shape = [settings['max_length']] * lengths.shape[1]
    index['groups'] = [{'shape': shape, 'rows': len(rows)}]
  else:
    shapes = pipeline.bucket_shapes(lengths[short], buckets=settings['buckets'])
    kinds, group, counts = np.unique(shapes, axis=0, return_inverse=True, return_counts=True)
    rows = short[np.argsort(group.ravel(), kind='stable')]
    pairs = zip(kinds.tolist(), counts.tolist(), strict=True)
    index['groups'] = [{'shape': shape, 'rows': count} for shape, count in pairs]
  index['groups'] = [group for group in index['groups'] if group['rows']]
  index['rows'] = token_files.write_column(prepared.stem(folder, split, 'rows'), rows)
  return index


def cut_windows(offsets: np.ndarray, cut: Cut) -> np.ndarray:
  """Return int[windows, 2]: begin and end of each window in the tokens of all documents.

  Args:
    offsets: int[documents + 1], of the documents.
    cut: how documents are cut into windows.
  """
  sizes = np.diff(offsets)
  counts = -(-np.maximum(sizes - (cut.length - cut.step), 0) // cut.step)
  document = np.repeat(np.arange(len(sizes)), counts)
  number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
  start = np.asarray(offsets)[document] + number * cut.step
  stop = np.minimum(start + cut.length, np.asarray(offsets)[document + 1])
  return np.stack([start, stop], axis=1)


def in_processes(
  function: Callable, jobs: Iterable[tuple[Any, ...]], workers: int
) -> Iterator[Any]:
  """Yield function(*job) for each job, in order; computed in processes if workers > 1.

  At most 2 x workers jobs are waiting at a time, so that jobs may be a generator of large ones.
  """
  jobs = iter(jobs)
  first = list(itertools.islice(jobs, 2))
  if workers == 1 or len(first) < 2:
    yield from itertools.starmap(function, itertools.chain(first, jobs))
    return
  # the new processes use the CPU, and one core each
  before = {name: os.environ.get(name) for name in ('JAX_PLATFORMS', 'TOKENIZERS_PARALLELISM')}
  os.environ |= {'JAX_PLATFORMS': 'cpu', 'TOKENIZERS_PARALLELISM': 'false'}
  pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _follow_parent)
  waiting: collections.deque = collections.deque()
  try:
    for job in itertools.chain(first, jobs):
      waiting.append(pool.submit(function, *job))
      if len(waiting) > 2 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})


def _follow_parent():
  """Ignore Ctrl-C, which the parent handles, and end when the parent ends, also by kill (Linux)."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _parts(examples: Iterable[Example]) -> Iterator[bytes]:
  """Yield pickled parts: (examples, (size, time of change) of each of their files).

  The division into parts depends only on the examples. The bytes of a part change when a file does.
  """
  part: list[Example] = []
  files: list[tuple[int, int]] = []
  size = 0
  for example in examples:
    part.append(example)
    size += sum(len(x) for x in example.values() if isinstance(x, str | bytes))
    if isinstance(inputs := example.get('inputs'), os.PathLike):
      stat = os.stat(inputs)
      files.append((stat.st_size, stat.st_mtime_ns))
    size += FILE * isinstance(inputs, os.PathLike | np.ndarray)
    if size >= PART or len(part) >= PART_EXAMPLES:
      yield pickle.dumps((part, files))
      part, files, size = [], [], 0
  if part:
    yield pickle.dumps((part, files))


def _write_part(
  packed: bytes, settings: bytes, part: bytes, stem: pathlib.Path
) -> tuple[dict[str, Any], str]:
  """Write the columns of a part, unless they exist; return {column: Info}, and a hash of the part.

  Args:
    packed: the pickled encoder.
    settings: that the columns depend on, as JSON.
    part: from `_parts`.
    stem: path of the files without their endings.
  """
  file, made = stem.with_suffix('.json'), hashlib.sha256(settings + part).hexdigest()
  with contextlib.suppress(OSError, KeyError, ValueError):
    old = json.loads(file.read_bytes())
    if old['made'] == made and all(
      token_files.digests(stem.with_name(f'{stem.name}.{name}'), info) == info['sha256']
      for name, info in old['columns'].items()
    ):
      return old['columns'], _source(part)
  encoder, examples = _unpickled(packed), pickle.loads(part)[0]
  dtype = token_files.token_dtype(encoder.task.tokenizer.size)
  columns = {
    name: token_files.write_column(stem.with_name(f'{stem.name}.{name}'), column, dtype)
    for name, column in encoder(examples).items()
  }
  temporary = stem.with_suffix('.json.tmp')
  temporary.write_text(json.dumps({'made': made, 'columns': columns}))
  temporary.replace(file)
  return columns, _source(part)


@functools.lru_cache(maxsize=1)  # unpickled once in each process, not for each part
def _unpickled(packed: bytes) -> Encoder:
  return pickle.loads(packed)


def _source(part: bytes) -> str:
  return hashlib.sha256(part).hexdigest()


def _digest(texts: Iterable[str]) -> str:
  return hashlib.sha256('\n'.join(texts).encode()).hexdigest()


def _check(folder: pathlib.Path, split: str, info: dict[str, Any]):
  """Raise ValueError if the checksum of a file of a split is wrong."""
  for name, each in info['columns'].items():
    stem = prepared.stem(folder, split, name)
    if token_files.digests(stem, each) != each['sha256']:
      raise ValueError(f'{stem} is damaged')


def _as_bytes(example: Example) -> tuple[bytes, bytes]:
  """Return the fields of an example as JSON, and its image or sound as bytes (b'' for a text)."""
  fields, content = dict(example), b''
  if isinstance(inputs := fields.get('inputs'), os.PathLike | bytes):
    content = inputs if isinstance(inputs, bytes) else pathlib.Path(inputs).read_bytes()
    fields |= {'content': 'file'}
  elif isinstance(inputs, np.ndarray):
    file = io.BytesIO()
    np.save(file, inputs, allow_pickle=False)
    content, fields = file.getvalue(), fields | {'content': 'npy'}
  if content:
    del fields['inputs']
  return json.dumps(fields, ensure_ascii=False).encode(), content


def _ragged_bytes(rows: Iterable[bytes]) -> Ragged:
  return Ragged.from_sequences([np.frombuffer(row, np.uint8) for row in rows])


def _lengths(columns: Columns) -> np.ndarray:
  """Return int[examples, columns], the lengths of the ragged columns in a batch."""
  count = len(next(iter(columns.values())))
  ragged = [column.sizes for column in columns.values() if isinstance(column, Ragged)]
  return np.stack(ragged, axis=1) if ragged else np.zeros((count, 0), np.int64)


def _packed(lengths: np.ndarray, short: np.ndarray, length: int, workers: int) -> Ragged:
  """Return the examples of each packed row; only those in `short` are packed, PACKED at a time."""
  groups = [short[i : i + PACKED] for i in range(0, len(short), PACKED)]
  jobs = ((np.asarray(lengths[group]), length, i) for i, group in enumerate(groups))
  results = in_processes(_pack, jobs, workers if len(groups) > 1 else 1)
  return Ragged.concatenate(
    [Ragged(group[rows.tokens], rows.offsets) for group, rows in zip(groups, results, strict=True)]
  )


def _pack(lengths: np.ndarray, length: int, seed: int) -> Ragged:
  return Ragged.from_sequences(pipeline.pack(lengths, length=length, seed=seed).members)
