"""Folders of published models, on disk or on the Hugging Face hub: their JSON files and tensors.

Pickles are never opened.
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
# the files of a model that are downloaded from the hub
PATTERNS = ('*.json', '*.safetensors', '*.jinja', '*.spm', '*.model', '*.txt')


class Stored(NamedTuple):
  """A tensor in a safetensors file.

  Attributes:
    file: its path.
    name: of the tensor.
    shape: of the tensor.
    dtype: a key of DTYPES, if it can be read.
    start: offset of its first byte in the file.
  """

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str
  start: int

  def read(self) -> np.ndarray:
    """Return the tensor, mapped into memory."""
    if 0 in self.shape:
      return np.empty(self.shape, DTYPES[self.dtype])
    return np.memmap(self.file, DTYPES[self.dtype], 'r', self.start, self.shape)


def find_folder(name: str | os.PathLike, revision: str | None, subfolder: str) -> pathlib.Path:
  """Return the folder of a model: `name` if it is a folder, otherwise OWNER/NAME of the hub.

  Without network a model is found if it is in the hub's cache.

  Args:
    name: a path, or OWNER/NAME.
    revision: a branch, tag or commit of the hub; None for the newest.
    subfolder: of the model in the folder; '' if it has none.

  Raises:
    ValueError: there is no such folder, neither here nor on the hub.
  """
  folder = pathlib.Path(name).expanduser()
  owner, _, model = str(name).partition('/')
  if folder.exists() or not owner or not model or '/' in model or owner in ('.', '..', '~'):
    return folder / subfolder
  try:
    import huggingface_hub
  except ModuleNotFoundError:
    raise ValueError(
      f'{name} is no folder here, and huggingface_hub, which downloads models, is not installed: '
      'pip install huggingface_hub'
    ) from None
  prefix = f'{subfolder}/' if subfolder else ''
  try:
    patterns = [prefix + pattern for pattern in PATTERNS]
    snapshot = huggingface_hub.snapshot_download(
      str(name), revision=revision, allow_patterns=patterns, ignore_patterns=['*/*'] * (not prefix)
    )
  except Exception as error:  # network, disk or hub: the model is not available
    raise ValueError(
      f'{name} is no folder here, and the Hugging Face hub has no such model or cannot be reached '
      f'({error})'
    ) from error
  return pathlib.Path(snapshot) / subfolder


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Return the object in a JSON file; raise ValueError, which names the file, if there is none."""
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError):
    raise ValueError(
      f'{file} does not exist: give a folder as it is published, with config.json, {WEIGHTS} and '
      'tokenizer.json, or OWNER/NAME of a model on the Hugging Face hub'
    ) from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{file} is not JSON ({error}): fetch it again') from error
  if not isinstance(content, dict):
    raise ValueError(f'{file} is not a JSON object but {str(content)[:60]!r}: fetch it again')
  return content


def stored_tensors(folder: pathlib.Path) -> Iterator[Stored]:
  """Yield the tensors of a folder: of its one file, or of the files named in its index.

  Raises:
    ValueError: there is no file, one is damaged, or a tensor of the index is missing.
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
  file_of = read_json(folder / INDEX).get('weight_map')
  if not isinstance(file_of, dict) or not all(isinstance(file, str) for file in file_of.values()):
    raise ValueError(f'{folder / INDEX}: there is no weight_map of names to files in it')
  files = {path.name for path in folder.iterdir() if path.is_file()}
  for file in dict.fromkeys(file_of.values()):
    if file not in files:
      raise ValueError(f'{folder / INDEX} names {file}, which is not in the folder')
    tensors = list(_tensors_of(folder / file))
    if missing := {n for n, f in file_of.items() if f == file} - {x.name for x in tensors}:
      raise ValueError(f'{folder / INDEX} promises tensors that {file} lacks: {some(missing)}')
    yield from tensors


def _tensors_of(file: pathlib.Path) -> Iterator[Stored]:
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(file, 'np'):  # checks the header, and the size of the file
      pass
  except SafetensorError as error:
    raise ValueError(f'{file} is damaged or cut short ({error}): fetch it again') from error
  with file.open('rb') as opened:
    length = int.from_bytes(opened.read(8), 'little')
    header = json.loads(opened.read(length))
  for name, entry in header.items():
    if name != '__metadata__':
      start = 8 + length + entry['data_offsets'][0]
      yield Stored(file, name, tuple(entry['shape']), entry['dtype'], start)
