"""The files in a tar archive, links followed."""

import functools
import pathlib
import posixpath
import tarfile

from transformer.data.reading import FileError, check_unpacked, naming, open_file, unpacked_limit

MAX_LINKED = 100  # times as many files as an archive has


class Content(bytes):
  """The content of a member of an archive.

  Attributes:
    name: of the archive and the member, for errors.
  """

  name: str


def is_hidden(name: str) -> bool:
  """Whether a file or folder is of no interest, as companions that macOS and Jupyter write."""
  return name.startswith('.') or name == '__MACOSX'


def _within_hidden(name: str) -> bool:
  return any(map(is_hidden, name.split('/')))


@functools.lru_cache(maxsize=2)  # a run takes several slices of one archive
def unpack(
  archive: pathlib.Path, changed: int, endings: tuple[str, ...]
) -> dict[str, Content | None]:
  """Return the files of an archive by name; only those with one of the endings have a content.

  Of two members with one name the later counts, as when the archive is unpacked.

  Args:
    archive: its path.
    changed: when; so that the cache forgets a changed one.
    endings: in lower case.

  Raises:
    FileError: the archive is broken, unpacks to too much, or has a member outside of it, a device,
      or a link to nothing.
  """
  found: dict[str, Content | None] = {}
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
      if member.isdir() or (_within_hidden(name) and not member.isreg()):
        continue
      found.pop(name, None)
      links.pop(name, None)
      if member.issym() or member.islnk():
        above = posixpath.dirname(name) if member.issym() else ''
        links[name] = posixpath.normpath(posixpath.join(above, member.linkname))
      elif not member.isfile():
        raise FileError(f'{archive}: {name} is a device or pipe: remove it')
      elif not name.lower().endswith(endings):
        found[name] = None
      else:
        size += member.size  # of a sparse file more than the archive has
        check_unpacked(size, limit)
        found[name] = content = Content(opened.extractfile(member).read())  # type: ignore[union-attr]
        content.name = f'{archive}, {name}'
    # tarfile takes a damaged header for the end
    if stream.tell() % 512 or any(r.strip(b'\0') for r in iter(lambda: stream.read(1 << 20), b'')):
      raise FileError(
        f'{archive}: its end is in the middle, as of a damaged archive or of two that were joined: '
        'pack it anew'
      )
  _follow(archive, found, links)
  return {name: content for name, content in found.items() if not _within_hidden(name)}


def _follow(archive: pathlib.Path, found: dict[str, Content | None], links: dict[str, str]):
  """Add the files that links to files, to folders and to other links stand for."""
  most, before = MAX_LINKED * (len(found) + len(links)), -1
  while before < len(found):  # a link may lead to what another one adds
    before = len(found)
    for link, target in links.items():
      if target in found:
        found[link] = found[target]
      else:
        within = [name for name in found if name.startswith(f'{target}/')]
        found |= {link + name.removeprefix(target): found[name] for name in within}
      if f'{link}/'.startswith(f'{target}/') or target == '.' or len(found) > most:
        raise FileError(f'{archive}: {link} is a link to a folder that has it: remove it')
  for link, target in links.items():
    if link not in found and not any(name.startswith(f'{link}/') for name in found):
      raise FileError(
        f'{archive}: {link} links to {target}, which is no file or folder of the archive: add it, '
        'or pack with tar --dereference'
      )
