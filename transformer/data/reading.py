"""Reading files: whatever a parser raises, the error names the file, what is wrong, and a cure."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# A file of a few kilobytes can unpack to terabytes. Real data unpack to a few times their size.
MAX_UNPACKED = 1 << 28  # bytes, of a small compressed file
MAX_RATIO = 100  # bytes for each one of a large compressed file
MAX_LINE = 1 << 26  # bytes
UNPACK: dict[str, Callable[..., Any]] = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}
BYTE_ORDER_MARKS = {
  b'\xff\xfe\0\0': 'utf-32',
  b'\0\0\xfe\xff': 'utf-32',
  b'\xff\xfe': 'utf-16',
  b'\xfe\xff': 'utf-16',
}


class FileError(ValueError):
  """What is wrong with a file, which the message names."""


@contextlib.contextmanager
def naming(file: Any, cure: str = 'copy it anew') -> Iterator[None]:
  """Turn any error raised inside into a FileError that names the file.

  Errors that name a file already, FileError and OSErrors of the system, pass as they are, and so
  do missing modules and what is no error, such as KeyboardInterrupt.

  Args:
    file: its name, with that of a member or the number of a line; or a function that returns them.
    cure: what to do.

  >>> with naming('a.json', 'write it anew'):
  ...   json.loads('{')
  Traceback (most recent call last):
  transformer.data.reading.FileError: a.json: Expecting property name enclosed in double quotes: \
line 1 column 2 (char 1); write it anew
  """
  try:
    yield
  except (FileError, ImportError):
    raise
  except BaseException as error:
    # libraries written in Rust raise a PanicException, which is no Exception
    if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
      raise
    if isinstance(error, OSError) and error.filename:
      raise
    what = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
    where = file() if callable(file) else file
    raise FileError(f'{where}: {what.rstrip(": ")}; {cure}') from error


def as_file_or_array(value: Any) -> Any:
  """Return a path as str, the content of a file as bytes, and what is neither as a NumPy array.

  Raises:
    ValueError: it is none of these, as an image of Pillow, whose colours have many forms.
  """
  if isinstance(value, (str, bytes)):
    return value
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, (bytearray, memoryview)):
    return bytes(value)
  if not hasattr(value, 'dtype') and not isinstance(value, (list, tuple)):
    raise ValueError(f'{type(value).__name__} is no path, content of a file or array: give one')
  return np.asarray(value)


def check_field(row: Any, key: str, kind: Any = str) -> Any:
  """Return row[key] of a parsed file.

  Raises:
    ValueError: `row` has no such key, or its value is not of this kind, a type or union of types.
  """
  check_keys(row, key)
  value = row[key]
  if not isinstance(value, kind) or isinstance(value, bool):
    raise ValueError(f'{key} is {value!r:.80}: give {getattr(kind, "__name__", kind)}')
  if isinstance(value, str) and re.search('[\ud800-\udfff]', value):
    raise ValueError(f'{key} is {value!r:.80}: give whole characters')
  return value


def check_keys(row: Any, *keys: str):
  """Raise ValueError where a row is no object with these keys."""
  if not isinstance(row, dict) or not row.keys() >= {*keys}:
    there = f'keys {", ".join(row)}'[:200] if isinstance(row, dict) else type(row).__name__
    raise ValueError(f'no object with the keys {" and ".join(map(repr, keys))}, but {there}')


class _Unpacked(io.RawIOBase):
  """A stream of unpacked bytes that ends in an error where it becomes too long."""

  def __init__(self, stream: Any, limit: int):
    self._stream, self._limit = stream, limit

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = 0) -> int:
    return self._stream.seek(offset, whence)

  def close(self):
    self._stream.close()
    super().close()

  def readinto(self, buffer: Any) -> int:
    size = self._stream.readinto(buffer)
    check_unpacked(self._stream.tell(), self._limit)
    return size


def check_unpacked(size: int, limit: int):
  """Raise ValueError where a file unpacks to more bytes than any real one."""
  if size > limit:
    raise ValueError(f'it unpacks to more than {limit:,} bytes, too many for its size')


def unpacked_limit(file: pathlib.Path) -> int:
  """Return how many bytes a compressed file may unpack to."""
  return max(MAX_UNPACKED, MAX_RATIO * file.stat().st_size)


def plain_name(file: pathlib.Path) -> str:
  """Return the name of a file without the ending of its compression."""
  return file.stem if file.suffix in UNPACK else file.name


def open_file(file: pathlib.Path) -> io.BufferedIOBase:
  """Open a file to read its bytes, unpacked if it ends in .gz, .xz or .bz2; see `MAX_UNPACKED`."""
  if not (unpack := UNPACK.get(file.suffix)):
    return open(file, 'rb')
  return io.BufferedReader(_Unpacked(unpack(file), unpacked_limit(file)))


def read_lines(file: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yield (number, text) of each line, which ends at LF or CR LF (and not at U+2028).

  Raises:
    FileError: the file is neither UTF-8 nor UTF-16 or -32 with a byte order mark, is broken, or has
      a line longer than MAX_LINE; names the line.
  """
  number = 0
  broken = f': broken {file.suffix[1:]}' if file.suffix in UNPACK else ''
  with naming(lambda: f'{file}:{number + 1}{broken}'), open_file(file) as opened:
    head = opened.read(256)
    opened.seek(0)
    wide = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), '')
    if not wide and head.count(0) > len(head) / 4:
      raise FileError(
        f'{file}: a quarter of its bytes are 0, as in UTF-16: convert it, e.g. iconv -f utf-16le '
        '-t utf-8'
      )
    lines: Any = io.TextIOWrapper(opened, wide, newline='\n') if wide else opened
    while line := lines.readline(MAX_LINE + 1):
      if len(line) > MAX_LINE:
        raise FileError(f'{file}:{number + 1}: the line has more than {MAX_LINE:,} bytes')
      text = line if wide else _decoded(line, file, number + 1)
      number += 1
      yield number, text.removesuffix('\n').removesuffix('\r')


def _decoded(line: bytes, file: pathlib.Path, number: int) -> str:
  try:
    return line.decode('utf-8-sig' if number == 1 else 'utf-8')
  except UnicodeDecodeError as error:
    raise FileError(
      f'{file}:{number}: not UTF-8 ({error}); convert it from its encoding, e.g. iconv -f latin1 '
      '-t utf-8.'
    ) from error


def read_json(file: pathlib.Path) -> Any:
  """Return the content of a JSON file, maybe compressed."""
  with naming(file, 'write it as JSON'), open_file(file) as opened:
    return json.loads(opened.read())


def read_objects(file: pathlib.Path, *keys: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield (number, object) of each line of a JSONL file, which must have these keys."""
  number = 0
  with naming(lambda: f'{file}:{number}', 'write one object a line'):
    for number, line in read_lines(file):
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(f'not JSON ({error})') from error
      check_keys(row, *keys)
      yield number, row


def read_arrays(file: pathlib.Path, *names: str) -> list[np.ndarray]:
  """Return the named arrays of an .npz file.

  Raises:
    FileError: the file is broken, has no such array, two of one name, or some of Python objects.
  """
  with naming(file, 'write it with numpy.savez'):
    with zipfile.ZipFile(file) as archive:
      check_unpacked(sum(info.file_size for info in archive.infolist()), unpacked_limit(file))
      members = archive.namelist()
      if len(set(members)) < len(members):
        raise ValueError(f'two of its arrays have one name: {", ".join(members)}')
      for name in names:
        with archive.open(f'{name}.npy') as member:
          check_array(member, archive.getinfo(f'{name}.npy').file_size)
    with np.load(file, allow_pickle=False) as arrays:
      return [arrays[name] for name in names]


def check_array(stream: Any, size: int):
  """Raise ValueError where an .npy of `size` bytes says that it has an array of more.

  NumPy allocates what the beginning of a file says, before it reads the rest.
  """
  headers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if read := headers.get(np.lib.format.read_magic(stream)):
    shape, _, dtype = read(stream)
    if dtype.itemsize * math.prod(shape) > size:
      raise ValueError(f'it says that it has {dtype} {list(shape)}, and has {size:,} bytes')
