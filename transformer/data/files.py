"""Find the files of a split: in a folder, or in an archive."""

import functools
import logging
import os
import pathlib
import posixpath
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from transformer.data.reading import FileError, check_unpacked, naming, open_file, unpacked_limit

SPLITS = ('train', 'val', 'test')
ARCHIVES = ('.tar', '.tar.gz', '.tar.xz', '.tar.bz2')
NOTES = (
  '.txt',
  '.md',
  '.csv',
  '.tsv',
  '.json',
  '.xml',
  '.html',
  '.pdf',
  '.db',
  '.lab',
  '.textgrid',
)
log = logging.getLogger(__name__)


class Content(bytes):
  """The content of a member of an archive.

  Attributes:
    name: of the archive and the member, for errors.
  """

  name: str


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


def is_undivided(folder: pathlib.Path, split: str) -> bool:
  """Whether files are to be divided by `splits.split_by_hash`: a folder without any split's own."""
  return (
    split in SPLITS
    and folder.is_dir()
    and not any((folder / f'{s}{end}').exists() for s in SPLITS for end in ('', *ARCHIVES))
    and any(not path.name.startswith('.') for path in folder.iterdir())
  )


def files_of_split(
  folder: pathlib.Path, split: str, endings: tuple[str, ...]
) -> dict[str, str] | dict[str, bytes]:
  """Return the files of a folder `<split>/` (paths), or of `<split>.tar`, maybe .gz (bytes).

  Links are followed. Names that begin with a dot, as of companions that macOS and Jupyter write,
  are passed over; how many files are left out because of their ending is logged.

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
    names = [path.relative_to(where).as_posix() for path in _walk(where, frozenset())]
    found: Any = {}
    for name in names:
      if _ends(name, endings):
        if not (where / name).is_file():
          raise FileError(f'{where / name} is a broken link, or no regular file: remove it')
        if found.setdefault(_readable(name), str(where / name)) != str(where / name):
          raise FileError(f'{where}: two files are called {_readable(name)}: rename one')
  else:
    where = find_file(folder, [f'{split}{ending}' for ending in ARCHIVES])
    names, found = _unpack(where, where.stat().st_mtime_ns, endings)
  other = [_readable(name) for name in names if not _ends(name, endings)]
  kinds = ', '.join(f'{n} {end}' for end, n in Counter(map(_ending, other)).most_common(9))
  if not found:
    raise FileError(
      f'{where} has no file that ends in {", ".join(endings)}{f", but {kinds}" if kinds else ""}: '
      'add some'
    )
  for name in other:
    above = posixpath.dirname(name)
    if above and not _ends(name, NOTES) and not any(n.startswith(f'{above}/') for n in found):
      raise FileError(
        f'{where}: all files of {above} are left out, such as {name}, for they do not end in '
        f'{", ".join(endings)}: convert them, or remove that folder'
      )
  if other:
    log.warning('%s: %d files are left out: %s', where, len(other), kinds)
  return found


def _ends(name: str, endings: tuple[str, ...]) -> bool:
  return name.lower().endswith(endings)


def _ending(name: str) -> str:
  return pathlib.PurePath(name).suffix or 'without ending'


def _readable(name: str) -> str:
  """Return a name in Unicode NFC, with U+FFFD for bytes that are not UTF-8."""
  return unicodedata.normalize('NFC', os.fsencode(name).decode('utf-8', 'replace'))


def _walk(folder: pathlib.Path, above: frozenset[tuple[int, int]]) -> Iterator[pathlib.Path]:
  """Yield the files below a folder whose names do not begin with a dot; follow links."""
  there = folder.stat()
  if (there.st_dev, there.st_ino) in above:
    raise FileError(f'{folder} is a link to a folder that has it: remove it')
  for path in sorted(folder.iterdir()):
    if path.name.startswith('.') or path.name == '__MACOSX':
      continue
    if path.is_dir():
      yield from _walk(path, above | {(there.st_dev, there.st_ino)})
    else:
      yield path


@functools.lru_cache(maxsize=2)  # a run takes several slices of one archive
def _unpack(
  archive: pathlib.Path, changed: int, endings: tuple[str, ...]
) -> tuple[list[str], dict[str, bytes]]:
  """Return the names of an archive's files, and the content of those with one of the endings.

  Of two members with one name the later counts, as when the archive is unpacked.
  """
  names: list[str] = []
  found: dict[str, bytes] = {}
  links: dict[str, str] = {}
  size, limit = 0, unpacked_limit(archive)
  with (
    naming(f'{archive}: broken archive'),
    open_file(archive) as stream,
    tarfile.open(fileobj=stream, mode='r:') as opened,
  ):
    for member in opened:
      name = posixpath.normpath(member.name)
      if name.startswith(('/', '../')):
        raise FileError(f'{archive}: {name} is outside of the archive: pack it anew')
      if member.isdir() or any(p.startswith('.') or p == '__MACOSX' for p in name.split('/')):
        continue
      if member.issym() or member.islnk():
        above = posixpath.dirname(name) if member.issym() else ''
        target = posixpath.normpath(posixpath.join(above, member.linkname))
        links[_readable(name)] = _readable(target)
      elif not member.isfile():
        raise FileError(f'{archive}: {name} is a device or pipe: remove it')
      else:
        names.append(name)
        if _ends(name, endings):
          size += member.size  # of a sparse file more than the archive has
          check_unpacked(size, limit)
          content = Content(opened.extractfile(member).read())  # type: ignore[union-attr]
          content.name = f'{archive}, {_readable(name)}'
          found[_readable(name)] = content
    # tarfile takes a damaged header for the end
    if stream.tell() % 512 or any(r.strip(b'\0') for r in iter(lambda: stream.read(1 << 20), b'')):
      raise FileError(
        f'{archive}: its end is in the middle, as of a damaged archive or of two that were joined: '
        'pack it anew'
      )
  # links to files first, because a linked folder may have some
  to_files = {link: target for link, target in links.items() if _ends(link, endings)}
  if broken := [
    link
    for link, target in links.items()
    if target in links or (link in to_files and target not in found)
  ]:
    raise FileError(
      f'{archive}: {broken[0]} links to {links[broken[0]]}, which is no such file of the archive: '
      'add that, or pack with tar --dereference'
    )
  files = found | {link: found[target] for link, target in to_files.items()}
  linked = {
    link + name.removeprefix(target): content
    for link, target in links.items()
    for name, content in files.items()
    if link not in to_files and name.startswith(f'{target}/')
  }
  return names, files | linked
