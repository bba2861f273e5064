"""Reading the lines of `--input` as they arrive."""

import contextlib
import pathlib
import select
import sys
from collections.abc import Iterator
from typing import Any

from transformer.data.reading import BYTE_ORDER_MARKS, UNPACK, naming, open_file


def read_chunks(name: str, size: int) -> Iterator[list[str | ValueError]]:
  """Yield lists of at most `size` lines; a line that is not UTF-8 is replaced by a ValueError.

  A list has fewer lines if no more have arrived, so that a program that writes one line and waits
  for its answer gets it.

  Args:
    name: path of a file, which may be compressed, or of a pipe; - is stdin.
    size: the largest length of a list.

  Raises:
    OSError, ValueError: the file cannot be read, or is text of another encoding.
  """
  path = pathlib.Path(name).expanduser()
  if name != '-' and (path.is_dir() or not path.exists()):
    raise FileNotFoundError(f'--input={name} is no file: give a file of lines, or - for stdin')
  if name == '-' and sys.stdin.isatty():
    print('type a line and Enter for each input; Ctrl-D ends', file=sys.stderr)
  opened: Any = contextlib.nullcontext(sys.stdin.buffer) if name == '-' else open_file(path)
  with naming(f'--input={name}', 'give a file of lines in UTF-8'), opened as file:
    lines = enumerate(file, start=1)
    for number, line in lines:
      chunk = [_text(line, first=number == 1)]
      while len(chunk) < size and _has_arrived(file, path) and (item := next(lines, None)):
        chunk.append(_text(item[1]))
      yield chunk


def _has_arrived(file: Any, path: pathlib.Path) -> bool:
  """Return whether the next line can be read without waiting; True if the system cannot tell."""
  if path.suffix in UNPACK:
    return True
  try:
    return bool(select.select([file], [], [], 0)[0])
  except (OSError, ValueError):  # on Windows select takes sockets only
    return True


def _text(line: bytes, *, first: bool = False) -> str | ValueError:
  if first and (wide := next((m for m in BYTE_ORDER_MARKS if line.startswith(m)), b'')):
    raise ValueError(f'it is {BYTE_ORDER_MARKS[wide].upper()}')
  try:
    return line.decode('utf-8-sig' if first else 'utf-8').rstrip('\r\n')
  except UnicodeDecodeError as error:
    return ValueError(f'it is not UTF-8 ({error.reason} at byte {error.start}): convert it')
