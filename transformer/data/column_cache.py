"""A cache on disk of the columns of a corpus, so that the next start does not tokenize again."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import pickle
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable
from typing import Any

from transformer.data import token_files
from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Columns, Ragged

LEAST = 1 << 20  # tokens: smaller corpora are not kept, because encoding them takes seconds
FILE = 'columns.json'
log = logging.getLogger(__name__)


def source_key(source: Source, *settings: Any) -> str:
  """Return a hash of all examples, of settings, and of the code in this folder.

  Args:
    source: the examples.
    settings: other values that the columns depend on; JSON types or bytes.
  """
  key = hashlib.sha256()
  for setting in settings:
    key.update(setting if isinstance(setting, bytes) else json.dumps(setting).encode())
  for file in sorted(pathlib.Path(__file__).parent.glob('*.py')):
    key.update(file.read_bytes())
  for examples in chunks(source):
    key.update(pickle.dumps(examples))
  return key.hexdigest()[:32]


def cached(folder: pathlib.Path, split: str, key: str, make: Callable[[], Columns]) -> Columns:
  """Return the columns from the cache, or make them and write them to the cache.

  Several processes may do this at once, because an entry is renamed to its name when it is
  complete. If the cache cannot be written, a warning is logged.

  Args:
    folder: of the cache.
    split: of the data; entries of this split with other keys are deleted.
    key: a hash of everything that the columns depend on.
    make: returns the columns.
  """
  split = urllib.parse.quote(split, safe='[]:%')
  entry = folder / f'{split}-{key}'
  with contextlib.suppress(Exception):  # damaged files of any kind are made again
    infos = json.loads((entry / FILE).read_bytes())
    if infos and all(
      token_files.digests(entry / n, info) == info['sha256'] for n, info in infos.items()
    ):
      return {name: token_files.open_column(entry / name, info) for name, info in infos.items()}
  columns = make()
  ragged = [column for column in columns.values() if isinstance(column, Ragged)]
  if sum(len(column.tokens) for column in ragged) >= LEAST:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      for old in folder.glob(f'{split.replace("[", "[[]")}-*'):
        shutil.rmtree(old, ignore_errors=True)
      _write(folder, entry, columns)
    except OSError as error:
      log.warning('the tokens of %s are not kept for the next start: %s', split, error)
  return columns


def _write(folder: pathlib.Path, entry: pathlib.Path, columns: Columns):
  temporary = pathlib.Path(tempfile.mkdtemp(prefix='tmp-', dir=folder))
  try:
    infos = {name: token_files.write_column(temporary / name, c) for name, c in columns.items()}
    (temporary / FILE).write_text(json.dumps(infos))
    with contextlib.suppress(FileExistsError):  # another process was faster
      os.rename(temporary, entry)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
