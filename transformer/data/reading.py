"""Reading files, with errors that name the file, the fault and a cure."""

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

# Limits, because a file of a few kilobytes can unpack to terabytes: MAX_UNPACKED bytes, or
# MAX_RATIO times the size of the compressed file, if that is more.
MAX_UNPACKED = 1 << 28
MAX_RATIO = 100
MAX_LINE = 1 << 26  # bytes
UNPACK: dict[str, Callable[..., Any]] = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}
BYTE_ORDER_MARKS = {
  b'\xff\xfe\0\0': 'utf-32',
  b'\0\0\xfe\xff': 'utf-32',
  b'\xff\xfe': 'utf-16',
  b'\xfe\xff': 'utf-16',
}


class FileError(ValueError):
  """Raised for a fault of a file; the message names the file."""


@contextlib.contextmanager
def naming(file: Any, cure: str = 'copy it again') -> Iterator[None]:
  """Turn any error raised in the block into a FileError that names the file.

  Errors that already name a file (FileError, OSErrors of the system), missing modules, and
  exceptions that are no errors (KeyboardInterrupt) are not changed.

  Args:
    file: its name, maybe with that of a member or the number of a line; or a function that returns
      it.
    cure: the advice in the message.

  >>> with naming('a.json', 'write it again'):
  ...   json.loads('{')
  Traceback (most recent call last):
  transformer.data.reading.FileError: a.json: Expecting property name enclosed in double quotes: \
line 1 column 2 (char 1); write it again
  """
  try:
    yield
  except (FileError, ImportError):
    raise
  except BaseException as error:
    # libraries in Rust raise PanicException, which is a BaseException only
    if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
      raise
    if isinstance(error, OSError) and error.filename:
      raise
    fault = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
    name = file() if callable(file) else file
    raise FileError(f'{name}: {fault.rstrip(": ")}; {cure}') from error


def as_file_or_array(value: Any) -> Any:
  """Return a path as str, the content of a file as bytes, and arrays and lists as a NumPy array.

  Raises:
    ValueError: for any other type, such as an image of Pillow.
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
    ValueError: `row` has no such key, its value is not of the type (or union of types) `kind`, or a
      text has half of a surrogate pair.
  """
  check_keys(row, key)
  value = row[key]
  if not isinstance(value, kind) or isinstance(value, bool):
    raise ValueError(f'{key} is {value!r:.80}: give {getattr(kind, "__name__", kind)}')
  if isinstance(value, str) and re.search('[\ud800-\udfff]', value):
    raise ValueError(f'{key} is {value!r:.80}: give whole characters')
  return value


def check_keys(row: Any, *keys: str):
  """Raise ValueError unless a row is a dict with these keys."""
  if not isinstance(row, dict) or not row.keys() >= {*keys}:
    actual = f'keys {", ".join(row)}'[:200] if isinstance(row, dict) else type(row).__name__
    raise ValueError(f'no object with the keys {" and ".join(map(repr, keys))}, but {actual}')


class _Unpacked(io.RawIOBase):
  """A stream of unpacked bytes that raises ValueError when it exceeds a limit."""

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
  """Raise ValueError if a file unpacks to more bytes than the limit."""
  if size > limit:
    raise ValueError(f'it unpacks to more than {limit:,} bytes, too many for its size')


def unpacked_limit(file: pathlib.Path) -> int:
  """Return the number of bytes that a compressed file may unpack to."""
  return max(MAX_UNPACKED, MAX_RATIO * file.stat().st_size)


def plain_name(file: pathlib.Path) -> str:
  """Return the name of a file without .gz, .xz or .bz2."""
  return file.stem if file.suffix in UNPACK else file.name


def open_file(file: pathlib.Path) -> io.BufferedIOBase:
  """Open a file to read its bytes; unpack .gz, .xz and .bz2 up to `unpacked_limit`."""
  if not (unpack := UNPACK.get(file.suffix)):
    return open(file, 'rb')
  return io.BufferedReader(_Unpacked(unpack(file), unpacked_limit(file)))


def read_lines(file: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yield (number, text) of each line, which ends at LF or CR LF (and not at U+2028).

  Raises:
    FileError: the file is neither UTF-8 nor UTF-16 or -32 with a byte order mark, is damaged, or
      has a line longer than MAX_LINE; names the line.
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
  """Yield (number, object) of each line of a JSONL file; FileError if an object lacks a key."""
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
    FileError: the file is damaged, lacks an array, has two with one name, or arrays of objects.
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
  """Raise ValueError if the header of an .npy file declares an array larger than its `size` bytes.

  NumPy would allocate the declared size before it reads the array.
  """
  headers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if read := headers.get(np.lib.format.read_magic(stream)):
    shape, _, dtype = read(stream)
    if dtype.itemsize * math.prod(shape) > size:
      raise ValueError(f'it says that it has {dtype} {list(shape)}, and has {size:,} bytes')
