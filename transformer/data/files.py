"""Finding the files of a split, in a folder or in an archive."""

import difflib
import functools
import logging
import operator
import os
import pathlib
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from transformer.data import archives
from transformer.data.reading import UNPACK, FileError

SPLITS = ('train', 'val', 'test')
# Endings of tables and notes, which may be in a folder of images or sounds without a warning.
NOTES = tuple('.txt .md .csv .tsv .json .jsonl .xml .html .pdf .db .lab .textgrid'.split())
log = logging.getLogger(__name__)


def find_file(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
  """Return the path of the first of the named files that exists in a folder, maybe compressed.

  Raises:
    FileNotFoundError: none exists; lists the files of the folder.
  """
  for name in names:
    for ending in ('', *UNPACK):
      if (path := folder / f'{name}{ending}').is_file():
        return path
  if not folder.is_dir():
    what = 'a file, not a folder' if folder.exists() else 'not even the folder'
    near = _listed(folder.parent, folder.name) if folder.parent.is_dir() else 'nothing'
    raise FileNotFoundError(
      f'{folder}: {what} is there. Give the folder that has {" or ".join(names)} as dir '
      f'(--config.data.dir). In {folder.parent} there are: {near}.'
    )
  raise FileNotFoundError(
    f'there is no {" and no ".join(str(folder / name) for name in names)}, nor with '
    f'{", ".join(UNPACK)}. Put one of them there, or give the folder that has it as dir '
    f'(--config.data.dir). There now: {_listed(folder, names[0]) or "nothing"}.'
  )


def _listed(folder: pathlib.Path, name: str) -> str:
  """Return the names of a folder's files as text; first the one that is most similar to `name`."""
  names = sorted(path.name for path in folder.iterdir() if not archives.is_hidden(path.name))
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
  return ', '.join([*(f'{best} (did you mean this?)' for best in near), *names[:30]])


def is_undivided(folder: pathlib.Path, split: str) -> bool:
  """Return whether a folder has no files of splits, and is to be divided by `splits.split_by_hash`.

  Args:
    folder: of the data.
    split: False unless it is train, val or test.
  """
  return (
    split in SPLITS
    and folder.is_dir()
    and any(not archives.is_hidden(path.name) for path in folder.iterdir())
    and not any(
      path.name.partition('.')[0] in SPLITS and (path.is_dir() or '.tar' in path.suffixes)
      for path in folder.iterdir()
    )
  )


def files_of_split(
  folder: pathlib.Path, split: str, endings: tuple[str, ...]
) -> dict[str, str] | dict[str, bytes]:
  """Return the files of a folder `<split>/` (paths), or of `<split>.tar`, maybe .gz (bytes).

  Links are followed, hidden files are skipped. The number of files with other endings is logged,
  unless all are tables or notes.

  Args:
    folder: has the folder or the archive.
    split: its name; '' for `folder` itself.
    endings: of the files to return, in lower case.

  Returns:
    {name relative to the folder or in the archive, in Unicode NFC: path or content}.

  Raises:
    FileNotFoundError: there is neither a folder nor an archive.
    FileError: the archive is damaged or has a member that is no file; or no file, or none in one of
      the folders within, has one of the endings.
  """
  where = folder / split
  if where.is_dir():
    all_files: Any = {name: os.path.join(where, name) for name in _walk(where)}
  else:
    where = find_file(folder, [f'{split}.tar'])
    all_files = archives.unpack(where, where.stat().st_mtime_ns, endings)
  kept = [name for name in all_files if name.lower().endswith(endings)]
  other = [name for name in all_files if not name.lower().endswith(endings)]
  suffixes = Counter(pathlib.PurePath(name).suffix or 'without ending' for name in other)
  kinds = ', '.join(f'{count} {suffix}' for suffix, count in suffixes.most_common(9))
  if not kept:
    raise FileError(
      f'{where} has no file that ends in {", ".join(endings)}{f", but {kinds}" if kinds else ""}: '
      'add some'
    )
  folders = {str(above) for name in kept for above in pathlib.PurePosixPath(name).parents}
  for name in other:
    if posixpath.dirname(name) not in {'', *folders} and not name.lower().endswith(NOTES):
      raise FileError(
        f'{where}: all files beside {_readable(name)} are left out, for they do not end in '
        f'{", ".join(endings)}: convert them, or remove that folder'
      )
  if any(not name.lower().endswith(NOTES) for name in other):
    _warn(f'{where}: {len(other)} files are left out: {kinds}')
  files = {_readable(name): all_files[name] for name in kept}
  if len(files) < len(kept):
    twice = Counter(map(_readable, kept)).most_common(1)[0][0]
    raise FileError(f'{where}: two files are called {twice}: rename one')
  return files


def _readable(name: str) -> str:
  """Return a name in Unicode NFC, with U+FFFD for bytes that are not UTF-8."""
  return unicodedata.normalize('NFC', os.fsencode(name).decode('utf-8', 'replace'))


def _walk(
  folder: pathlib.Path, within: str = '', above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
  """Yield the relative paths of the files in a folder and its subfolders; follow links.

  Args:
    folder: the top folder.
    within: path of the subfolder to read, with a final /.
    above: (device, inode) of the folders above it, to detect cycles of links.
  """
  stat = (folder / within).stat()
  if (stat.st_dev, stat.st_ino) in above:
    raise FileError(f'{folder / within} is a link to a folder that has it: remove it')
  entries = [e for e in os.scandir(folder / within) if not archives.is_hidden(e.name)]
  if within and not entries:
    raise FileError(f'{folder / within} is an empty folder: add files, or remove it')
  for entry in sorted(entries, key=operator.attrgetter('name')):
    name = f'{within}{entry.name}'
    if entry.is_dir():
      yield from _walk(folder, f'{name}/', above | {(stat.st_dev, stat.st_ino)})
    elif entry.is_file():
      yield name
    else:
      raise FileError(f'{folder / name} is a broken link, or no regular file: remove it')


@functools.cache  # only once, although a run opens a split several times
def _warn(text: str):
  log.warning(text)
