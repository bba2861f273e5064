"""Reading the files of a tar archive, with links resolved."""

import functools
import pathlib
import posixpath
import tarfile

from transformer.data.reading import FileError, check_unpacked, naming, open_file, unpacked_limit

MAX_LINKED = 100  # links may multiply the number of files by at most this


class Content(bytes):
  """The content of a file in an archive.

  Attributes:
    name: the names of the archive and the file, for errors.
  """

  name: str


def is_hidden(name: str) -> bool:
  """Return whether a file or folder is hidden, such as those that macOS and Jupyter create."""
  return name.startswith('.') or name == '__MACOSX'


def _within_hidden(name: str) -> bool:
  return any(map(is_hidden, name.split('/')))


@functools.lru_cache(maxsize=2)  # a run reads several slices of one archive
def unpack(
  archive: pathlib.Path, changed: int, endings: tuple[str, ...]
) -> dict[str, Content | None]:
  """Return {name: content} of the files of an archive; None for a file with another ending.

  Of two members with the same name the later one counts, as when the archive is unpacked.

  Args:
    archive: its path.
    changed: its time of change, so that the cache does not return an old content.
    endings: of the files to read, in lower case.

  Raises:
    FileError: the archive is damaged, unpacks to too many bytes, or has a member with a path
      outside of it, a device, or a link to a missing file.
  """
  files: dict[str, Content | None] = {}
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
        raise FileError(f'{archive}: {name} is outside of the archive: pack it again')
      if member.isdir() or (_within_hidden(name) and not member.isreg()):
        continue
      files.pop(name, None)
      links.pop(name, None)
      if member.issym() or member.islnk():
        above = posixpath.dirname(name) if member.issym() else ''
        links[name] = posixpath.normpath(posixpath.join(above, member.linkname))
      elif not member.isfile():
        raise FileError(f'{archive}: {name} is a device or pipe: remove it')
      elif not name.lower().endswith(endings):
        files[name] = None
      else:
        size += member.size  # a sparse file may be larger than the archive
        check_unpacked(size, limit)
        files[name] = content = Content(opened.extractfile(member).read())  # type: ignore[union-attr]
        content.name = f'{archive}, {name}'
    # tarfile treats a damaged header as the end: check that nothing follows
    if stream.tell() % 512 or any(r.strip(b'\0') for r in iter(lambda: stream.read(1 << 20), b'')):
      raise FileError(
        f'{archive}: its end is in the middle, as of a damaged archive or of two that were joined: '
        'pack it again'
      )
  _follow(archive, files, links)
  return {name: content for name, content in files.items() if not _within_hidden(name)}


def _follow(archive: pathlib.Path, files: dict[str, Content | None], links: dict[str, str]):
  """Add an entry to `files` for each file that is reached through a link, by its name there."""
  most, before = MAX_LINKED * (len(files) + len(links)), -1
  while before < len(files):  # repeated, because a link may lead to a file that another one adds
    before = len(files)
    for link, target in links.items():
      if target in files:
        files[link] = files[target]
      else:
        within = [name for name in files if name.startswith(f'{target}/')]
        files |= {link + name.removeprefix(target): files[name] for name in within}
      if f'{link}/'.startswith(f'{target}/') or target == '.' or len(files) > most:
        raise FileError(f'{archive}: {link} is a link to a folder that has it: remove it')
  for link, target in links.items():
    if link not in files and not any(name.startswith(f'{link}/') for name in files):
      raise FileError(
        f'{archive}: {link} links to {target}, which is no file or folder of the archive: add it, '
        'or pack with tar --dereference'
      )
