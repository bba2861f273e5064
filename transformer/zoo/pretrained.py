"""Models in folders as they are published: config.json, model.safetensors, tokenizer.json.

No pickle is ever opened. Tensors are read one after the other into the place where they stay, so
that a model needs little more memory than its weights.
"""

import dataclasses
import difflib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier, MaskedTokens
from transformer.modules.model import Encoder
from transformer.zoo.families import FAMILIES, Family, Row, read_config, write_config

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.h5', '.msgpack', '.npz')
DTYPES = ('F32', 'F16', 'BF16', 'F64')
# what a file has no say in
OURS = ('dropout', 'attention_dropout', 'dtype', 'remat', 'unroll')


def load_pretrained(folder: str | os.PathLike, **settings: Any) -> tuple[nnx.Module, Any]:
  """(model, tokenizer) of a folder as published on the Hugging Face hub.

  The model is what the folder's config.json says: an Encoder, Decoder or EncoderDecoder, or an
  Encoder within MaskedTokens, Classifier or Spans. Parameters become float32.

  Args:
    folder: with config.json, model.safetensors (or its shards and their index) and tokenizer.json;
      without the last, as of images and sounds, the tokenizer is None.
    settings: values of `ModelConfig` that are not the file's: dropout, attention_dropout, dtype,
      remat, unroll.

  Raises:
    ValueError: a file is missing, damaged, a pickle, or of a model that this codebase does not
      have; or tensors are missing, left over, of another shape or no floating-point numbers.
  """
  folder = pathlib.Path(folder)
  theirs = _json(folder / 'config.json')
  if wrong := settings.keys() - set(OURS):
    raise ValueError(f"{', '.join(sorted(wrong))} is the file's to say: give only {OURS}")
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
    fields = read_config(theirs, tensors, kind)
    if _mean_of_tokens(folder):
      fields['summary'] = 'mean'
      # it was trained with the body, and is not used
      tensors = {name: x for name, x in tensors.items() if not name.startswith('pooler.')}
    config = ModelConfig(**fields | settings)
  except ValueError as error:
    raise ValueError(f'{folder}: {error}') from error
  build = _builder(kind, config, tensors, theirs)
  shapes = jax.eval_shape(build)
  leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
  rows = _rows(family, config, kind, leaves)
  _check(folder, family, rows, leaves, tensors)

  tokenizer = _tokenizer(folder, config)
  loaded: dict[str, jax.Array] = {}
  # the largest first: what is needed beside them is needed while there is little else
  for row in sorted(rows, key=lambda row: -sum(leaves[path].size for path in row.ours)):
    loaded |= _read(row, leaves, tensors)
  model = jax.tree_util.tree_map_with_path(lambda path, _: loaded[_path(path)], shapes)
  return model, tokenizer


def save_pretrained(
  folder: str | os.PathLike, model: nnx.Module, tokenizer: Any = None, **config: Any
) -> None:
  """Writes a folder that `load_pretrained` and the `transformers` library read.

  Args:
    folder: made if there is none.
    model: shaped like one of the families that can be read.
    tokenizer: a `data.tokenizers.Tokenizer`, if there is one.
    config: further keys of config.json, such as decoder_start_token_id; model_type where several
      families have the same shape (a RoBERTa is written as a bert unless it says roberta).

  Raises:
    ValueError: no family has this shape; with what the nearest would need.
  """
  leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
  model_type, rows = _family(model, leaves, config.get('model_type'))
  family, kind = FAMILIES[model_type], type(model)
  written = _architecture(family, model) | write_config(model_type, _config(model))
  if kind is Classifier:
    labels = {i: f'LABEL_{i}' for i in range(leaves['out/bias'].size)}
    written['id2label'] = labels
    written['label2id'] = {label: i for i, label in labels.items()}
  for name in ('pad', 'bos', 'eos'):
    if getattr(tokenizer, name, None) is not None:
      written[f'{name}_token_id'] = getattr(tokenizer, name)

  tensors = {}
  for row in rows:
    arrays = [np.asarray(leaves[path], np.float32) for path in row.ours]
    for name, layer in _names(row, leaves):
      prefix = '' if kind is Encoder or name.startswith(family.outside) else family.prefix
      value = row.write(*(x if layer is None else x[layer] for x in arrays))
      tensors[prefix + name] = np.ascontiguousarray(value)

  from safetensors.numpy import save_file

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  partial = folder / f'{WEIGHTS}.partial'
  save_file(tensors, partial, metadata={'format': 'pt'})
  partial.replace(folder / WEIGHTS)
  _dump(folder / 'config.json', written | {'dtype': 'float32'} | config)
  if kind is Encoder and _config(model).summary == 'mean':
    _dump(
      folder / 'modules.json',
      [
        {'idx': 0, 'name': '0', 'path': '', 'type': 'sentence_transformers.models.Transformer'},
        {
          'idx': 1,
          'name': '1',
          'path': '1_Pooling',
          'type': 'sentence_transformers.models.Pooling',
        },
      ],
    )
    (folder / '1_Pooling').mkdir(exist_ok=True)
    width = _config(model).width
    pooling = {'word_embedding_dimension': width, 'pooling_mode_mean_tokens': True}
    _dump(folder / '1_Pooling' / 'config.json', pooling)
  if tokenizer is not None:
    tokenizer.save(folder / 'tokenizer.json')
    ids = {name: getattr(tokenizer, name) for name in ('pad', 'bos', 'eos', 'unk', 'mask')}
    specials = {
      f'{name}_token': tokenizer.pieces([i])[0] for name, i in ids.items() if i is not None
    }
    _dump(
      folder / 'tokenizer_config.json', {'tokenizer_class': 'PreTrainedTokenizerFast'} | specials
    )


class Stored(NamedTuple):
  """A tensor in a file: where, under which name, and of what shape and type."""

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str

  def read(self) -> np.ndarray:
    """Its numbers. The file is opened anew, so that its pages do not count as ours afterwards."""
    from safetensors import safe_open

    with safe_open(self.file, 'np') as file:
      return file.get_tensor(self.name)


def _tensors(folder: pathlib.Path, family: Family) -> dict[str, Stored]:
  """What is in the folder's weights, by names without prefix."""
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
        raise ValueError(f'{folder / INDEX} promises tensors that {file} lacks: {_some(lost)}')
  return found


def _short(name: str, family: Family) -> str:
  """The name without its family's prefix, as new files have it."""
  name = name.removeprefix(family.prefix)
  for old, new in (('LayerNorm.gamma', 'LayerNorm.weight'), ('LayerNorm.beta', 'LayerNorm.bias')):
    if name.endswith(old):
      name = name.removesuffix(old) + new
  return name


def _builder(kind: type, config: ModelConfig, tensors, theirs) -> Callable[[], nnx.Module]:
  """What makes the model with fresh parameters."""
  about: dict[str, Any] = {}
  if kind is MaskedTokens:
    about['next_sentence'] = 'cls.seq_relationship.weight' in tensors
  if kind is Classifier:
    about['classes'] = len(theirs.get('id2label') or ()) or theirs.get('num_labels', 2)
  return lambda: kind(config, rngs=nnx.Rngs(0), **about)


def _rows(family: Family, config: ModelConfig, kind: type, leaves: Mapping[str, Any]) -> list[Row]:
  """The rows of the parameters that this model has, which must be all of them."""
  rows = [row for row in family.rows(config, kind) if set(row.ours) <= leaves.keys()]
  paths = [path for row in rows for path in row.ours]
  if len(paths) != len(set(paths)):
    raise AssertionError(f'two rows of the table give {paths}')
  if nameless := leaves.keys() - set(paths):
    raise ValueError(f'the family has no name for {_some(nameless)}')
  return rows


def _names(row: Row, leaves: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
  """Their names, with the number of the layer in stacked ones."""
  if row.theirs is not None and '{}' in row.theirs:
    yield from ((row.theirs.format(i), i) for i in range(leaves[row.ours[0]].shape[0]))
  elif row.theirs is not None:
    yield row.theirs, None


def _check(folder, family: Family, rows, leaves, tensors: dict[str, Stored]) -> None:
  """Every tensor is used once, and as what it is; adds the copies that are stored alone."""
  shapes = {}
  for row in rows:
    for name, layer in _names(row, leaves):
      ours = [leaves[path].shape[layer is not None :] for path in row.ours]
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


def _read(row: Row, leaves, tensors: Mapping[str, Stored]) -> dict[str, jax.Array]:
  """The parameters of a row, layer by layer in the place where they stay."""
  if row.theirs is None:
    return {path: jnp.zeros(leaves[path].shape, leaves[path].dtype) for path in row.ours}
  places = {path: _aligned(leaves[path].shape, leaves[path].dtype) for path in row.ours}
  for name, layer in _names(row, leaves):
    for place, value in zip(places.values(), row.read(tensors[name].read()), strict=True):
      place[... if layer is None else layer] = value
  # nobody else holds the memory: the device may use it as it is
  return {path: jax.device_put(place, may_alias=True) for path, place in places.items()}


def _aligned(shape, dtype) -> np.ndarray:
  """An empty array at an address that XLA's CPU backend takes without a copy."""
  size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(dtype).reshape(shape)


def _family(model: nnx.Module, leaves, wanted: str | None) -> tuple[str, list[Row]]:
  """The family that can say all of the model's config, and its rows."""
  kind = type(model)
  if kind not in {kind for family in FAMILIES.values() for kind in family.architectures.values()}:
    raise ValueError(f'no published family has the shape of a {kind.__name__}')
  config, differences = _config(model), {}
  for model_type, family in FAMILIES.items():
    if kind not in family.architectures.values() or wanted not in (None, model_type):
      continue
    try:
      rows = _rows(family, config, kind, leaves)
      names = {name for row in rows for name, _ in _names(row, leaves)}
      said = ModelConfig(**read_config(write_config(model_type, config), names, kind))
    except ValueError as error:
      differences[model_type] = [str(error)]
      continue
    one, other = _essence(config, kind), _essence(said, kind)
    if config.summary == 'mean' and kind is Encoder:
      other['summary'] = 'mean'  # which stands in a file of its own
    if one == other:
      return model_type, rows
    differences[model_type] = [
      f'{k}={other[k]!r}, not {one[k]!r}' for k in one if one[k] != other[k]
    ]
  if not differences:
    raise ValueError(
      f'model_type={wanted!r} has no {kind.__name__}; there are {", ".join(FAMILIES)}'
    )
  nearest = min(differences, key=lambda name: len(differences[name]))
  raise ValueError(
    f'no published family has the shape of this {kind.__name__}; the nearest, {nearest}, needs '
    + ', '.join(differences[nearest])
  )


def _essence(config: ModelConfig, kind: type) -> dict[str, Any]:
  """The config without what says the same in another way, or nothing."""
  values = dataclasses.asdict(config) | dict(
    kv_heads=config.groups,
    head_size=config.key_size,
    decoder_depth=config.decoder_depth or config.depth,
    source_length=config.source_length or config.length,
  )
  nothing = set(OURS)
  if config.bias:
    nothing.add('bias_qkv')
  if config.position != 'rotary':
    nothing.add('rotary_base')
  if 'EncoderDecoder' not in kind.__name__:
    nothing |= {'decoder_depth', 'source_length'}
  if kind.__name__ == 'Decoder':
    nothing.add('summary')
    values['tie'] = config.tie in ('output', 'all')
  elif kind.__name__ != 'EncoderDecoder':
    nothing.add('tie')
  if config.inputs != 'tokens' and kind.__name__ != 'EncoderDecoder':
    nothing.add('vocab')
  return {name: value for name, value in values.items() if name not in nothing}


def _architecture(family: Family, model: nnx.Module) -> dict[str, Any]:
  """The name of their class for this model."""
  names = [name for name, kind in family.architectures.items() if kind is type(model)]
  if type(model) is MaskedTokens and model.next_sentence is None:
    names = [name for name in names if 'PreTraining' not in name]
  return {'architectures': names[:1]}


def _config(model: Any) -> ModelConfig:
  return model.config


def _mean_of_tokens(folder: pathlib.Path) -> bool:
  """Whether sentence-transformers is told to take the mean of the states."""
  file = folder / '1_Pooling' / 'config.json'
  if not file.is_file():
    return False
  modes = {k for k, v in _json(file).items() if k.startswith('pooling_mode') and v}
  if not modes <= {'pooling_mode_mean_tokens', 'pooling_mode_cls_token'}:
    raise ValueError(f'{file}: {", ".join(sorted(modes))} is not supported, only mean_tokens is')
  return 'pooling_mode_mean_tokens' in modes


def _tokenizer(folder: pathlib.Path, config: ModelConfig):
  """The folder's tokenizer, whose ids the model knows; None without a file."""
  if not (folder / 'tokenizer.json').is_file():
    if config.inputs == 'tokens':
      logging.warning(
        '%s has no tokenizer.json: the tokenizer is None. transformers writes one: AutoTokenizer.'
        'from_pretrained(folder).save_pretrained(folder)',
        folder,
      )
    return None
  from transformer.data.tokenizers import Tokenizer

  tokenizer = Tokenizer.load(folder / 'tokenizer.json')
  if tokenizer.size > config.vocab:
    raise ValueError(
      f'{folder}: tokenizer.json has {tokenizer.size} ids, but the model knows {config.vocab}: '
      'they do not belong together'
    )
  return tokenizer


def _path(path) -> str:
  """'stack/blocks/attention/query/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


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


def _dump(file: pathlib.Path, value: Any) -> None:
  file.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def _some(names) -> str:
  names = sorted(names)
  return ', '.join(names[:8]) + f' and {len(names) - 8} more' * (len(names) > 8)
