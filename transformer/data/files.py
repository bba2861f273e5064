"""Find the files of a split: in a folder, or in an archive."""

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
# Files that nobody takes for images or sounds.
NOTES = tuple('.txt .md .csv .tsv .json .jsonl .xml .html .pdf .db .lab .textgrid'.split())
log = logging.getLogger(__name__)


def find_file(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
  """Return the first of the named files that exists in the folder, maybe compressed.

  Raises:
    FileNotFoundError: none exists; lists what does.
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
  """Return the names of a folder's files as a list, first the one that is most like `name`."""
  there = sorted(path.name for path in folder.iterdir() if not archives.is_hidden(path.name))
  near = difflib.get_close_matches(name, there, n=1, cutoff=0.8)
  return ', '.join([*(f'{found} (did you mean this?)' for found in near), *there[:30]])


def is_undivided(folder: pathlib.Path, split: str) -> bool:
  """Whether files are to be divided by `splits.split_by_hash`: a folder without any split's own."""
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

  Links are followed. Names that begin with a dot, as of companions that macOS and Jupyter write,
  are passed over; how many files are left out because of their ending is logged, unless all are
  tables or notes.

  Args:
    folder: has the folder or the archive.
    split: its name; '' for the folder itself.
    endings: of the files to return, in lower case.

  Returns:
    {name below the folder or in the archive, as text in Unicode NFC: path or content}.

  Raises:
    FileNotFoundError: there is neither a folder nor an archive.
    FileError: the archive is broken or has a member that is no file, no file has one of the
      endings, or none of those in a folder within.
  """
  where = folder / split
  if where.is_dir():
    found: Any = {name: os.path.join(where, name) for name in _walk(where)}
  else:
    where = find_file(folder, [f'{split}.tar'])
    found = archives.unpack(where, where.stat().st_mtime_ns, endings)
  kept = [name for name in found if name.lower().endswith(endings)]
  other = [name for name in found if not name.lower().endswith(endings)]
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
  files = {_readable(name): found[name] for name in kept}
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
  """Yield the names of the files below a folder that are not hidden; follow links."""
  there = (folder / within).stat()
  if (there.st_dev, there.st_ino) in above:
    raise FileError(f'{folder / within} is a link to a folder that has it: remove it')
  entries = [e for e in os.scandir(folder / within) if not archives.is_hidden(e.name)]
  if within and not entries:
    raise FileError(f'{folder / within} is an empty folder: add files, or remove it')
  for entry in sorted(entries, key=operator.attrgetter('name')):
    name = f'{within}{entry.name}'
    if entry.is_dir():
      yield from _walk(folder, f'{name}/', above | {(there.st_dev, there.st_ino)})
    elif entry.is_file():
      yield name
    else:
      raise FileError(f'{folder / name} is a broken link, or no regular file: remove it')


@functools.cache  # once, although a run opens a split several times
def _warn(text: str):
  log.warning(text)
