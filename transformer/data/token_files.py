"""Columns of a corpus as files of plain numbers, which are mapped into memory.

`<stem>.bin` has the numbers of all sequences one after the other, like nanoGPT's train.bin, and
`<stem>.idx` the offsets of the sequences in tokens or frames, and of the end (int64). A column with
one value for each example has no `.idx`. The dtype and shape are not in these files but in an
`Info`, which is stored elsewhere.
"""

import hashlib
import mmap
import pathlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from transformer.data.pipeline import Column, Ragged
from transformer.data.reading import FileError

# dtype (of NumPy, little-endian), shape (of a token, frame or value), count (of sequences), length
# (number of tokens or values), ragged (whether there is an .idx), sha256 (of .bin and .idx)
Info = dict[str, Any]
BLOCK = 1 << 24  # bytes that are copied at a time


def token_dtype(vocab: int) -> str:
  """Return the smallest unsigned dtype for the ids of a vocabulary."""
  return '<u2' if vocab <= 1 << 16 else '<u4'


def write_column(stem: pathlib.Path, column: Column, dtype: str = '') -> Info:
  """Write a column, and return its Info.

  Args:
    stem: path without .bin and .idx.
    column: sequences, or an array with a value for each example.
    dtype: to store integers in, if none is negative; '' for that of the column.
  """
  values: Any = column.tokens if isinstance(column, Ragged) else column
  if values.dtype.kind == 'i' and dtype and values.min(initial=0) >= 0:
    values = values.astype(dtype)
  values = np.ascontiguousarray(values, values.dtype.newbyteorder('<'))
  values.tofile(_bin(stem))
  info = {'dtype': values.dtype.str, 'shape': list(values.shape[1:]), 'length': len(values)}
  if isinstance(column, Ragged):
    column.offsets.astype('<i8').tofile(_idx(stem))
  info |= {'count': len(column), 'ragged': isinstance(column, Ragged)}
  return info | {'sha256': digests(stem, info)}


def join_columns(stem: pathlib.Path, parts: Sequence[tuple[pathlib.Path, Info]]) -> Info:
  """Write the column of all parts, in order, and return its Info.

  Args:
    stem: path without .bin and .idx.
    parts: (stem, Info) of each.
  """
  infos = [info for _, info in parts]
  dtype = np.result_type(*(info['dtype'] for info in infos)).newbyteorder('<')
  info = {'dtype': dtype.str, 'shape': infos[0]['shape'], 'ragged': infos[0]['ragged']}
  info['length'] = sum(each['length'] for each in infos)
  with open(_bin(stem), 'wb') as values:
    for part, each in parts:
      _copy(_bin(part), each['dtype'], values, dtype)
  if info['ragged']:
    with open(_idx(stem), 'wb') as offsets:
      offsets.write(bytes(8))
      start = 0
      for part, each in parts:
        (np.fromfile(_idx(part), '<i8')[1:] + start).tofile(offsets)
        start += each['length']
  info['count'] = sum(each['count'] for each in infos)
  return info | {'sha256': digests(stem, info)}


def open_column(stem: pathlib.Path, info: Info) -> Column:
  """Return a column whose numbers are mapped from disk.

  Raises:
    FileNotFoundError: a file does not exist.
    FileError: a file has another size than in the Info.
  """
  dtype, shape = np.dtype(info['dtype']), tuple(info['shape'])
  values = _mapped(_bin(stem), dtype, (info['length'], *shape))
  if not info['ragged']:
    return values
  return Ragged(values, _mapped(_idx(stem), np.dtype('<i8'), (info['count'] + 1,)))


def release(column: Any):
  """Release the pages of a column that were read; they are mapped again when they are needed.

  Pages of a mapped file count as memory of the process, and each access maps 64 kB around it.
  """
  for values in (column.tokens, column.offsets) if isinstance(column, Ragged) else (column,):
    base = getattr(values, 'base', None)
    if isinstance(base, mmap.mmap) and hasattr(mmap, 'MADV_DONTNEED'):
      base.madvise(mmap.MADV_DONTNEED)


def digests(stem: pathlib.Path, info: Info) -> list[str]:
  """Return the SHA-256 of the files of a column."""
  result = []
  for file in (_bin(stem), _idx(stem))[: 1 + info['ragged']]:
    with open(file, 'rb') as opened:
      result.append(hashlib.file_digest(opened, 'sha256').hexdigest())
  return result


def _mapped(file: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
  expected = dtype.itemsize * int(np.prod(shape, dtype=object))
  if (size := file.stat().st_size) != expected:
    raise FileError(
      f'{file} has {size:,} bytes instead of {expected:,}: copy it again, or make it by '
      '--mode=prepare'
    )
  # an empty file cannot be mapped
  return np.memmap(file, dtype, 'r', shape=shape) if size else np.zeros(shape, dtype)


def _copy(file: pathlib.Path, dtype: str, to: BinaryIO, to_dtype: np.dtype):
  with open(file, 'rb') as opened:
    while block := opened.read(BLOCK):
      values = np.frombuffer(block, dtype)
      to.write(values.astype(to_dtype, copy=False).tobytes())


def _bin(stem: pathlib.Path) -> pathlib.Path:
  return stem.with_name(f'{stem.name}.bin')


def _idx(stem: pathlib.Path) -> pathlib.Path:
  return stem.with_name(f'{stem.name}.idx')
