"""Folders of published models: on this disk or from the Hugging Face hub; their JSON and tensors.

No pickle is ever opened.
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from transformer.zoo.families.rows import some

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.h5', '.msgpack', '.npz')
DTYPES = {'F32': '<f4', 'F16': '<f2', 'BF16': ml_dtypes.bfloat16, 'F64': '<f8'}
# what a model of the hub needs of its files
PATTERNS = ('*.json', '*.safetensors', '*.jinja', '*.spm', '*.model', '*.txt')


class Stored(NamedTuple):
  """A tensor in a file."""

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str
  start: int

  def read(self) -> np.ndarray:
    """Map the tensor into memory; its pages are freed with the array."""
    if 0 in self.shape:
      return np.empty(self.shape, DTYPES[self.dtype])
    return np.memmap(self.file, DTYPES[self.dtype], 'r', self.start, self.shape)


def find_folder(name: str | os.PathLike, revision: str | None, subfolder: str) -> pathlib.Path:
  """Return the folder of a model: `name` itself if it is one, else OWNER/NAME of the hub.

  The hub's cache answers where there is no network.

  Raises:
    ValueError: there is no such folder, and none on the hub.
  """
  folder = pathlib.Path(name).expanduser()
  owner, _, model = str(name).partition('/')
  if folder.exists() or not owner or not model or '/' in model or owner in ('.', '..', '~'):
    return folder / subfolder
  try:
    import huggingface_hub
  except ModuleNotFoundError:
    raise ValueError(
      f'{name} is no folder here, and the package that asks the Hugging Face hub is not installed: '
      'pip install huggingface_hub'
    ) from None
  prefix = f'{subfolder}/' if subfolder else ''
  try:
    patterns = [prefix + pattern for pattern in PATTERNS]
    found = huggingface_hub.snapshot_download(
      str(name), revision=revision, allow_patterns=patterns, ignore_patterns=['*/*'] * (not prefix)
    )
  except (
    Exception
  ) as error:  # of the network, of the disk, of the hub: all mean that it is not here
    raise ValueError(
      f'{name} is no folder here, and the Hugging Face hub does not give it ({error})'
    ) from error
  return pathlib.Path(found) / subfolder


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Return the object in a JSON file; ValueError, which names the file, if there is none."""
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError):
    raise ValueError(
      f'{file} does not exist: give a folder as it is published, with config.json, {WEIGHTS} and '
      'tokenizer.json, or OWNER/NAME of a model on the Hugging Face hub'
    ) from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{file} is not JSON ({error}): fetch it anew') from error
  if not isinstance(found, dict):
    raise ValueError(f'{file} is not a JSON object but {str(found)[:60]!r}: fetch it anew')
  return found


def stored_tensors(folder: pathlib.Path) -> Iterator[Stored]:
  """Yield the tensors of a folder, of one file or of several named by an index.

  Raises:
    ValueError: there is no file, one is damaged, or the index promises more than there is.
  """
  if (folder / WEIGHTS).is_file():
    yield from _tensors_of(folder / WEIGHTS)
    return
  if not (folder / INDEX).is_file():
    pickles = sorted(f.name for f in folder.glob('*') if f.suffix in PICKLES)
    advice = (
      f'; {", ".join(pickles)} can run code when opened, so they never are. Where you trust them, '
      'convert: python -c "from transformers import AutoModel as M; m = M.from_pretrained(\''
      f"{folder}'); m.save_pretrained('converted')\", with the class that config.json names "
      'instead of AutoModel'
    )
    raise ValueError(f'{folder}: there is no {WEIGHTS} and no {INDEX}{advice * bool(pickles)}')
  placed = read_json(folder / INDEX).get('weight_map')
  if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
    raise ValueError(f'{folder / INDEX}: there is no weight_map of names to files in it')
  there = {path.name for path in folder.iterdir() if path.is_file()}
  for file in dict.fromkeys(placed.values()):
    if file not in there:
      raise ValueError(f'{folder / INDEX} names {file}, which is not in the folder')
    found = list(_tensors_of(folder / file))
    if lost := {n for n, f in placed.items() if f == file} - {stored.name for stored in found}:
      raise ValueError(f'{folder / INDEX} promises tensors that {file} lacks: {some(lost)}')
    yield from found


def _tensors_of(file: pathlib.Path) -> Iterator[Stored]:
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(file, 'np'):  # checks the header, and that the file holds what it says
      pass
  except SafetensorError as error:
    raise ValueError(f'{file} is damaged or cut short ({error}): fetch it anew') from error
  with file.open('rb') as opened:
    length = int.from_bytes(opened.read(8), 'little')
    header = json.loads(opened.read(length))
  for name, about in header.items():
    if name != '__metadata__':
      start = 8 + length + about['data_offsets'][0]
      yield Stored(file, name, tuple(about['shape']), about['dtype'], start)
