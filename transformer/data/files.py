"""Find and read the files of a split: in a folder, compressed, or in an archive."""

import functools
import gzip
import lzma
import pathlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

ARCHIVES = ('.tar', '.tar.gz', '.tar.xz')
CORRUPT = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


def find_file(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
  """Return the first of the named files that exists in the folder.

  Raises:
    FileNotFoundError: none exists; lists what does.
  """
  for path in (folder / name for name in names):
    if path.is_file():
      return path
  there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ['not even the folder']
  raise FileNotFoundError(
    f'none of {", ".join(str(folder / name) for name in names)}. Put one of them there, or give '
    f'the folder that has it as dir (data.dir). There now: {", ".join(there[:30]) or "nothing"}.'
  )


def open_file(file: pathlib.Path, mode: str = 'rb', **kwargs: Any) -> Any:
  """Open a file that may be compressed: .gz or .xz."""
  opener: Any = {'.gz': gzip.open, '.xz': lzma.open}.get(file.suffix, open)
  return opener(file, mode, **kwargs)


def read_lines(file: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yield (number, text) of each line, which ends at LF or CR LF (and not at U+2028).

  Raises:
    ValueError: the file is not UTF-8, or broken gzip; names the line.
  """
  with open_file(file) as opened:
    number = 0
    try:
      for number, line in enumerate(opened, 1):
        text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
        yield number, text.removesuffix('\n').removesuffix('\r')
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{file}:{number}: not UTF-8 ({error}); convert it, e.g. iconv -f latin1 -t utf-8.'
      ) from error
    except CORRUPT as error:
      raise ValueError(f'{file}:{number + 1}: broken gzip ({error}); copy it anew.') from error


def files_of_split(
  folder: pathlib.Path, split: str, endings: tuple[str, ...]
) -> dict[str, str] | dict[str, bytes]:
  """Return the files of a folder `<split>/` (paths), or of `<split>.tar`, .tar.gz, .tar.xz (bytes).

  Args:
    folder: has the folder or the archive.
    split: its name.
    endings: of the files to return, in lower case; other files, such as notes, are ignored.

  Returns:
    {name below the folder or in the archive: path or content}.

  Raises:
    FileNotFoundError: there is neither a folder nor an archive.
    ValueError: the archive is broken, or no file has one of the endings.
  """
  where = folder / split
  found: dict[str, str] | dict[str, bytes]
  if where.is_dir():
    found = {
      path.relative_to(where).as_posix(): str(path)
      for path in where.rglob('*')
      if path.is_file() and path.suffix.lower() in endings
    }
  else:
    where = find_file(folder, [f'{split}{ending}' for ending in ARCHIVES])
    found = _unpack(where, where.stat().st_mtime_ns, endings)
  if not found:
    raise ValueError(f'{where} has no file that ends in {", ".join(endings)}: add some')
  return found


@functools.lru_cache(maxsize=2)
def _unpack(archive: pathlib.Path, changed: int, endings: tuple[str, ...]) -> dict[str, bytes]:
  """Return an archive's files; cached, because a run takes several slices of one archive."""
  try:
    with tarfile.open(archive) as opened:
      return {
        member.name.removeprefix('./'): opened.extractfile(member).read()  # type: ignore[union-attr]
        for member in opened
        if member.isfile() and member.name.lower().endswith(endings)
      }
  except CORRUPT as error:
    raise ValueError(f'{archive}: broken archive ({error}); copy it anew') from error
