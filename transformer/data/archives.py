"""The files of a split: in the folder of its name, or in an archive."""

import functools
import gzip
import lzma
import pathlib
import tarfile
import zlib

from transformer.data.textfiles import find

ARCHIVES = ('.tar', '.tar.gz', '.tar.xz')
BROKEN = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


def members(
  folder: pathlib.Path, split: str, endings: tuple[str, ...]
) -> dict[str, str] | dict[str, bytes]:
  """What is in `<split>/` (paths) or in `<split>.tar`, .tar.gz, .tar.xz (bytes), by name below it.

  Args:
    folder: that has the one or the other.
    split: what it is called.
    endings: in small letters, of the files that count; others, such as notes, are left out.

  Raises:
    FileNotFoundError, ValueError: there is neither, it is broken, or no file in it counts.
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
    where = find(folder, [f'{split}{ending}' for ending in ARCHIVES])
    found = _unpacked(where, where.stat().st_mtime_ns, endings)
  if not found:
    raise ValueError(
      f'{where} holds no file that counts; give files that end in {", ".join(endings)}'
    )
  return found


@functools.lru_cache(maxsize=2)
def _unpacked(archive: pathlib.Path, changed: int, endings: tuple[str, ...]) -> dict[str, bytes]:
  """An archive's files, remembered: a run takes several slices, and unpacking is slow."""
  try:
    with tarfile.open(archive) as opened:
      return {
        member.name.removeprefix('./'): opened.extractfile(member).read()  # type: ignore[union-attr]
        for member in opened
        if member.isfile() and member.name.lower().endswith(endings)
      }
  except BROKEN as error:
    raise ValueError(f'{archive}: broken archive ({error}); copy it anew') from error
