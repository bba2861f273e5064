"""Reading folders of published models.

No pickle is ever opened. Tensors are read one after the other into their final place, so that a
model needs little more memory than its weights.
"""

import difflib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier, MaskedTokens
from transformer.modules.model import Decoder
from transformer.zoo.families import FAMILIES
from transformer.zoo.families.family import Family, read_config, rows_of
from transformer.zoo.families.rows import Row, leaves, named, some

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.h5', '.msgpack', '.npz')
DTYPES = ('F32', 'F16', 'BF16', 'F64')
# fields that do not come from a file
OURS = ('dropout', 'attention_dropout', 'dtype', 'remat', 'unroll', 'pad', 'platform')


def load_pretrained(folder: str | os.PathLike, **settings: Any) -> tuple[nnx.Module, Any]:
  """Return (model, tokenizer) of a folder as published on the Hugging Face hub.

  config.json decides what the model is: an Encoder, Decoder or EncoderDecoder, or an
  Encoder within MaskedTokens, Classifier or Spans. Parameters become float32.

  Args:
    folder: with config.json, model.safetensors (or its shards and their index) and tokenizer.json;
      without the last, as of images and sounds, or without the package `tokenizers`, the tokenizer
      is None.
    settings: values of `ModelConfig` that are not the file's: dropout, attention_dropout, dtype,
      remat, unroll, platform, and pad, which is otherwise that of config.json (none for a decoder,
      whose prompts may hold that token).

  Raises:
    ValueError: a file is missing, damaged, a pickle, or of a model that this codebase does not
      have; or tensors are missing, left over, of another shape or no floating-point numbers.
  """
  folder = pathlib.Path(folder)
  theirs = _json(folder / 'config.json')
  if wrong := settings.keys() - set(OURS):
    raise ValueError(f'{", ".join(sorted(wrong))} comes from config.json: give only {OURS}')
  model_type = theirs.get('model_type')
  if model_type not in FAMILIES:
    raise ValueError(
      f'{folder}/config.json: model_type={model_type!r} is not among those that can be read: '
      f'{", ".join(FAMILIES)}'
    )
  family = FAMILIES[model_type]
  architecture, *_ = theirs.get('architectures') or family.architectures
  if architecture not in family.architectures:
    raise ValueError(
      f'{folder}/config.json: the architecture {architecture} is not among those that can be read: '
      f'{", ".join(family.architectures)}'
    )
  tensors = _tensors(folder, family)
  kind = family.architectures[architecture]
  try:
    fields = read_config(family, theirs, tensors, kind)
    if _mean_of_tokens(folder):
      fields['pooling'] = 'mean'
      # it was trained with the body, and is not used
      tensors = {name: x for name, x in tensors.items() if not name.startswith('pooler.')}
    if kind is not Decoder and fields.get('modality', 'tokens') == 'tokens':
      fields['pad'] = -1 if theirs.get('pad_token_id') is None else theirs['pad_token_id']
    config = ModelConfig(**fields | settings)
  except ValueError as error:
    raise ValueError(f'{folder}: {error}') from error
  about: dict[str, Any] = {}
  if kind is MaskedTokens:
    about['next_sentence'] = 'cls.seq_relationship.weight' in tensors
  if kind is Classifier:
    about['classes'] = len(theirs.get('id2label') or ()) or theirs.get('num_labels', 2)
  shapes = jax.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0), **about))
  parameters = leaves(shapes)
  rows = rows_of(family, config, kind, parameters)
  _check(folder, family, rows, parameters, tensors)

  tokenizer = _tokenizer(folder, config)
  loaded: dict[str, jax.Array] = {}
  # the largest first, while there is the most free memory
  for row in sorted(rows, key=lambda row: -sum(parameters[path].size for path in row.ours)):
    loaded |= _read(row, parameters, tensors)
  return jax.tree.unflatten(jax.tree.structure(shapes), map(loaded.get, parameters)), tokenizer


class Stored(NamedTuple):
  """A tensor in a file."""

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str

  def read(self) -> np.ndarray:
    """Read the tensor; opens the file again, so that its pages are not kept in memory."""
    from safetensors import safe_open

    with safe_open(self.file, 'np') as file:
      return file.get_tensor(self.name)


def _tensors(folder: pathlib.Path, family: Family) -> dict[str, Stored]:
  """Return the tensors of a folder by their names without prefix."""
  from safetensors import SafetensorError, safe_open

  if (folder / WEIGHTS).is_file():
    files: dict[str, set[str]] = {WEIGHTS: set()}
  elif (folder / INDEX).is_file():
    placed = _json(folder / INDEX).get('weight_map')
    if not isinstance(placed, dict):
      raise ValueError(f'{folder / INDEX}: there is no weight_map in it')
    files = {file: {n for n, f in placed.items() if f == file} for file in set(placed.values())}
  else:
    pickles = sorted(f.name for f in folder.glob('*') if f.suffix in PICKLES)
    advice = (
      f'; {", ".join(pickles)} can run code when opened, so they never are. Where you trust them, '
      'convert: python -c "from transformers import AutoModel as M; m = M.from_pretrained(\''
      f"{folder}'); m.save_pretrained('converted')\", with the class that config.json names "
      'instead of AutoModel'
    )
    raise ValueError(f'{folder}: there is no {WEIGHTS} and no {INDEX}{advice * bool(pickles)}')
  found: dict[str, Stored] = {}
  for file, promised in files.items():
    if pathlib.Path(file).name != file or not (folder / file).is_file():
      raise ValueError(f'{folder / INDEX} names {file}, which is not in the folder')
    try:
      with safe_open(folder / file, 'np') as opened:
        for name in opened.keys():  # noqa: SIM118  (it is no dict)
          part = opened.get_slice(name)
          stored = Stored(folder / file, name, tuple(part.get_shape()), part.get_dtype())
          short = _short(name, family)
          if family.ignored.fullmatch(short):
            continue
          if short in found:
            raise ValueError(
              f'{folder}: {name} and {found[short].name} are one tensor, given twice'
            )
          found[short] = stored
    except SafetensorError as error:
      raise ValueError(
        f'{folder / file} is damaged or cut short ({error}): fetch it anew'
      ) from error
    if promised and (lost := promised - {stored.name for stored in found.values()}):
      lost = {name for name in lost if not family.ignored.fullmatch(_short(name, family))}
      if lost:
        raise ValueError(f'{folder / INDEX} promises tensors that {file} lacks: {some(lost)}')
  return found


def _short(name: str, family: Family) -> str:
  """Return the name without its family's prefix, as new files have it."""
  name = name.removeprefix(family.prefix)
  for old, new in (('LayerNorm.gamma', 'LayerNorm.weight'), ('LayerNorm.beta', 'LayerNorm.bias')):
    if name.endswith(old):
      name = name.removesuffix(old) + new
  return name


def _check(folder, family: Family, rows, parameters, tensors: dict[str, Stored]) -> None:
  """Raise unless every tensor is used once, with its shape; adds copies stored without original."""
  shapes = {}
  for row in rows:
    for name, layer in named(row, parameters):
      ours = [parameters[path].shape[layer is not None :] for path in row.ours]
      shapes[name] = row.write(*(np.broadcast_to(np.float32(0), shape) for shape in ours)).shape
  for copy, original in family.aliases.items():
    if copy not in tensors or copy in shapes:
      continue
    stored = tensors.pop(copy)
    if original not in tensors:
      tensors[original] = stored
    elif not np.array_equal(stored.read(), tensors[original].read()):
      raise ValueError(
        f'{folder}: {stored.name} and {tensors[original].name} differ, but config.json says that '
        'they are one table: set "tie_word_embeddings": false there if they are two'
      )
  missing, left = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
  complaints = []
  for what, names, others in (('missing', missing, left), ('left over', left, missing)):
    for name in sorted(names):
      near = difflib.get_close_matches(name, others, n=1)
      complaints.append(f'{what}: {name}{f" (nearest: {near[0]})" if near else ""}')
  for name in sorted(shapes.keys() & tensors.keys()):
    stored = tensors[name]
    if stored.shape != shapes[name]:
      complaints.append(f'{name}: has shape {stored.shape}, but the config asks for {shapes[name]}')
    elif stored.dtype not in DTYPES:
      complaints.append(f'{name}: holds {stored.dtype}, none of {", ".join(DTYPES)}')
  if complaints:
    shown = complaints[:20] + [f'... and {len(complaints) - 20} more'] * (len(complaints) > 20)
    raise ValueError(
      f'{folder}: the tensors are not those that config.json describes:\n  ' + '\n  '.join(shown)
    )


def _read(row: Row, parameters, tensors: Mapping[str, Stored]) -> dict[str, jax.Array]:
  """Return the parameters of a row, read layer by layer into their final place."""
  if row.theirs is None:
    return {path: jnp.zeros(parameters[path].shape, parameters[path].dtype) for path in row.ours}
  places = {path: _aligned(parameters[path].shape, parameters[path].dtype) for path in row.ours}
  for name, layer in named(row, parameters):
    for place, value in zip(places.values(), row.read(tensors[name].read()), strict=True):
      place[... if layer is None else layer] = value
  # nothing else refers to the memory: the device may use it without a copy
  return {path: jax.device_put(place, may_alias=True) for path, place in places.items()}


def _aligned(shape, dtype) -> np.ndarray:
  """Return an empty array at an address that XLA's CPU backend uses without a copy."""
  size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(dtype).reshape(shape)


def _mean_of_tokens(folder: pathlib.Path) -> bool:
  """Whether sentence-transformers pools by the mean of the states."""
  file = folder / '1_Pooling' / 'config.json'
  if not file.is_file():
    return False
  modes = {k for k, v in _json(file).items() if k.startswith('pooling_mode') and v}
  if not modes <= {'pooling_mode_mean_tokens', 'pooling_mode_cls_token'}:
    raise ValueError(f'{file}: {", ".join(sorted(modes))} is not supported, only mean_tokens is')
  return 'pooling_mode_mean_tokens' in modes


def _tokenizer(folder: pathlib.Path, config: ModelConfig):
  """Return the folder's tokenizer; None without a file or the package."""
  if not (folder / 'tokenizer.json').is_file():
    if config.modality == 'tokens':
      logging.getLogger(__name__).warning(
        '%s has no tokenizer.json: the tokenizer is None. transformers writes one: AutoTokenizer.'
        'from_pretrained(folder).save_pretrained(folder)',
        folder,
      )
    return None
  try:
    from transformer.data.tokenizers import Tokenizer
  except ModuleNotFoundError as error:  # weights are of use without it
    if error.name != 'tokenizers':
      raise
    logging.getLogger(__name__).warning(
      'the tokenizer of %s is None: the package tokenizers, which reads tokenizer.json, is not '
      "installed (pip install 'functional-transformer[train]')",
      folder,
    )
    return None

  tokenizer = Tokenizer.load(folder / 'tokenizer.json')
  if tokenizer.size > config.vocab:
    raise ValueError(
      f'{folder}: tokenizer.json has {tokenizer.size} ids, but the model knows {config.vocab}: '
      'they do not belong together'
    )
  return tokenizer


def _json(file: pathlib.Path) -> Any:
  try:
    return json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ValueError(
      f'{file} does not exist: give a folder as it is published, with config.json, {WEIGHTS} and '
      'tokenizer.json'
    ) from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f'{file} is not JSON ({error}): fetch it anew') from error
