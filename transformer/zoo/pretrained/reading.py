"""Reading folders of published models.

Tensors are read one after the other into their final arrays, so that loading a model needs little
more memory than its weights.
"""

import dataclasses
import difflib
import functools
import logging
import mmap
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer.modules import heads
from transformer.modules.config import DualConfig, ModelConfig
from transformer.modules.heads import (
  Classifier,
  Embedding,
  MaskedTokens,
  MultipleChoice,
  TargetClassifier,
  TokenClassifier,
)
from transformer.modules.model import Decoder, Encoder, EncoderDecoder
from transformer.zoo.families import FAMILIES
from transformer.zoo.families.family import Family, read_config, read_towers, rows_of, value
from transformer.zoo.families.rows import Row, leaves, named, some
from transformer.zoo.pretrained.files import DTYPES, Stored, find_folder, stored_tensors
from transformer.zoo.pretrained.published import CONFIG, Published, labels, read_modules
from transformer.zoo.pretrained.sentencepiece import read_sentencepiece

STRIP = 12  # rows of a stored matrix that a transposed copy takes at once: the fastest of 2 to 256
LARGE = 1 << 22  # bytes: NumPy asks for huge pages from there on, and several threads copy
THREADS = 8  # the most that copy at once; each may hold a tensor
# fields of ModelConfig that do not come from config.json
OURS = ('dropout', 'attention_dropout', 'dtype', 'remat', 'unroll', 'pad', 'platform')


def load_pretrained(
  name: str | os.PathLike,
  *,
  revision: str | None = None,
  subfolder: str = '',
  strict: bool = True,
  ignore: Collection[str] = (),
  param_dtype: str = 'float32',
  shardings: Callable[[Any], Any] | None = None,
  **settings: Any,
) -> tuple[nnx.Module, Any]:
  """Return (model, tokenizer) of a model in the format of the Hugging Face hub.

  config.json decides the class of the model: an Encoder, Decoder or EncoderDecoder, or an Encoder
  in MaskedTokens, Classifier, Spans or another head; if it names no class, the tensors decide. A
  folder of sentence-transformers that normalizes is an Embedding. Other settings of the folder
  (start and end tokens, names of classes, ...) are in `model.published`; `save_pretrained` writes
  them again.

  Args:
    name: a folder with config.json, model.safetensors (or its shards and their index) and
      tokenizer.json, or OWNER/NAME of a model on the hub. Without tokenizer.json, as of images and
      sounds, or without the package `tokenizers`, the tokenizer is None.
    revision: a branch, tag or commit of the hub.
    subfolder: of the model in the folder.
    strict: whether tensors that the model does not use are an error. Those of known heads and
      poolers never are.
    ignore: beginnings of names of tensors that may be left over.
    param_dtype: of the parameters: 'float32', 'bfloat16', ..., or 'auto' as they are stored.
    shardings: a function from the model, of shapes without arrays, to the sharding of each of
      them, such as `lambda model: training.sharding.shardings(model, mesh)`. Each device's part is
      then read from the file by itself, and no array is whole in memory. By default the arrays are
      on the first device.
    settings: values of `ModelConfig` that are not the file's: dropout, attention_dropout, dtype,
      remat, unroll, platform, and pad, which is otherwise that of config.json (none for a decoder,
      whose prompts may hold that token).

  Raises:
    ValueError: a file is missing, damaged or a pickle; the model is not supported; or a tensor is
      missing, not used, of another shape, or not of floating-point numbers.
  """
  if wrong := settings.keys() - set(OURS):
    raise ValueError(f'{", ".join(sorted(wrong))} comes from config.json: give only {OURS}')
  folder = find_folder(name, revision, subfolder)
  published = Published.read(folder)
  plan, tensors = _best_plan(folder, published.json(CONFIG), settings)
  _check(folder, plan, tensors, strict, tuple(ignore))
  tokenizer = _tokenizer(folder, getattr(plan.config, 'text', plan.config), published)
  places = leaves(shardings(plan.model)) if shardings else dict.fromkeys(plan.parameters)
  loaded: dict[str, jax.Array] = {}
  # the largest first, when most memory is free
  for row in sorted(plan.rows, key=lambda row: -sum(plan.parameters[x].size for x in row.ours)):
    loaded |= _read(row, plan.parameters, tensors, param_dtype, places)
  model = jax.tree.unflatten(jax.tree.structure(plan.model), map(loaded.get, plan.parameters))
  model.published = published
  return model, tokenizer


def read_model_config(
  name: str | os.PathLike,
  *,
  revision: str | None = None,
  subfolder: str = '',
  head: Literal['', 'Classifier', 'Spans'] = '',
) -> dict[str, Any]:
  """Return the arguments of the ModelConfig of a published model, without reading a tensor.

  Args:
    name, revision, subfolder: as for `load_pretrained`.
    head: a class of modules.heads to use instead of the one that config.json names.

  Raises:
    ValueError: as `load_pretrained`, or it has two encoders, each with a ModelConfig.
  """
  folder = find_folder(name, revision, subfolder)
  kinds = [getattr(heads, head)] if head else None
  plan, _ = _best_plan(folder, Published.read(folder).json(CONFIG), {}, kinds)
  if isinstance(plan.config, DualConfig):
    raise ValueError(
      f'{folder} has an encoder of texts and one of images, as CLIP has: take the arguments of '
      'load_pretrained(folder)[0].config.text or of .image'
    )
  return dataclasses.asdict(plan.config)


class Plan(NamedTuple):
  """How to make a model from the tensors of a folder.

  Attributes:
    family: of the model.
    config: its ModelConfig or DualConfig.
    model: the model with ShapeDtypeStructs in place of arrays.
    parameters: {path: ShapeDtypeStruct} of the model.
    rows: which tensors give which parameters.
    shapes: {name of a tensor without prefix: the shape that it must have}.
  """

  family: Family
  config: Any
  model: Any
  parameters: dict[str, Any]
  rows: list[Row]
  shapes: dict[str, tuple[int, ...]]


def _best_plan(folder, theirs, settings, wanted=None) -> tuple[Plan, dict[str, Stored]]:
  """Return the plan of a folder's model, and its tensors by their names without prefix.

  If config.json names no class, the class is the one whose tensors are all there, and most of them.
  """
  try:
    family, kinds = _family(theirs)
    kinds = wanted or kinds
    if not set(kinds) <= set(family.architectures.values()):
      raise ValueError(f'model_type={theirs["model_type"]!r} has no {kinds[0].__name__}')
    tensors = _short_names(folder, family)
    modules = (None, False) if wanted else read_modules(folder)
    if modules[0] and Encoder in family.architectures.values():  # pooling: the encoder is used
      kinds = [Encoder]
    plans = [_plan(family, theirs, kind, tensors, settings, *modules) for kind in kinds]
  except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
    if str(folder) in str(error):
      raise
    what = error if isinstance(error, ValueError) else f'{CONFIG}: {type(error).__name__}: {error}'
    raise ValueError(f'{folder}: {what}') from error
  order = lambda plan: (plan.shapes.keys() <= tensors.keys(), len(plan.shapes))  # noqa: E731
  return max(plans, key=order), tensors


def _family(theirs: Mapping[str, Any]) -> tuple[Family, list[type]]:
  """Return the family of a config.json, and its class in a list; all classes if it names none."""
  model_type = theirs.get('model_type')
  if model_type not in FAMILIES:
    raise ValueError(
      f'config.json: model_type={model_type!r} is not among those that can be read: '
      f'{", ".join(FAMILIES)}'
    )
  family = FAMILIES[model_type]
  architectures = value(theirs, 'architectures', [])
  if not architectures:
    return family, list(dict.fromkeys(family.architectures.values()))
  if architectures[0] not in family.architectures:
    raise ValueError(
      f'config.json: the architecture {architectures[0]} is not among those that can be read: '
      f'{", ".join(family.architectures)}'
    )
  return family, [family.architectures[architectures[0]]]


def _short_names(folder: pathlib.Path, family: Family) -> dict[str, Stored]:
  """Return {name without prefix and in its current spelling: tensor} of a folder."""
  tensors: dict[str, Stored] = {}
  for stored in stored_tensors(folder):
    name = stored.name.removeprefix(family.prefix)
    for old, new in (('LayerNorm.gamma', 'LayerNorm.weight'), ('LayerNorm.beta', 'LayerNorm.bias')):
      name = name.removesuffix(old) + new if name.endswith(old) else name
    if name in tensors:
      raise ValueError(
        f'{folder}: {stored.name} and {tensors[name].name} are one tensor, given twice'
      )
    if not family.ignored.fullmatch(name):
      tensors[name] = stored
  for copy, original in family.aliases.items():
    if copy in tensors and original not in tensors:
      tensors[original] = tensors.pop(copy)
  return tensors


def _plan(family, theirs, kind, tensors, settings, pooling, normalize) -> Plan:
  """Return the plan of a model of our class `kind`; the arguments are those of `_best_plan`."""
  for keys, default in (family.fields.get(name, ('', 0)) for name in ('depth', 'decoder_depth')):
    key = keys.split('|')[0]
    if (depth := value(theirs, key, default)) > len(tensors) and theirs.get(key):
      raise ValueError(
        f'config.json: {key}={depth}, but the files hold no more than {len(tensors)} tensors'
      )
  config: Any
  if family.towers:
    config = read_towers(family, theirs, tensors, settings)
  else:
    fields = read_config(family, theirs, tensors, kind)
    if kind not in (MaskedTokens, Decoder, EncoderDecoder, TargetClassifier):
      fields['bias_output'] = False  # of a head of tokens that the file may also hold
    if kind is Encoder and pooling:
      fields['pooling'] = pooling
      kind = Embedding if normalize else Encoder
    if kind is not Decoder and 'pad' not in fields and not fields.get('features'):
      pad = value(theirs, 'pad_token_id', -1) if 'pad_token_id' in theirs else family.pad
      fields['pad'] = -1 if pad is None else pad
    config = ModelConfig(**fields | settings)
  kwargs: dict[str, Any] = {}
  if kind is MaskedTokens:
    kwargs['next_sentence'] = 'cls.seq_relationship.weight' in tensors
  if kind in (Classifier, TokenClassifier, TargetClassifier):
    kwargs['classes'] = len(labels(theirs)) or value(theirs, 'num_labels', 2)
  if kind in (Classifier, MultipleChoice):
    kwargs['bias'] = any(row.ours == ('out/bias',) for row in family.rows(config, kind, theirs))
  if kind is TargetClassifier:
    kwargs['start'] = value(theirs, 'decoder_start_token_id', family.start)
    kwargs['end'] = value(theirs, 'eos_token_id', family.end)
  model = jax.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0), **kwargs))
  parameters = leaves(model)
  rows = rows_of(family, config, kind, theirs, parameters)
  shapes = {}
  for row in rows:
    for name, index in named(row, parameters):
      ours = [parameters[path].shape[len(index) :] for path in row.ours]
      shapes[name] = row.write(*(np.broadcast_to(np.float32(0), shape) for shape in ours)).shape
  for copy, original in family.aliases.items():  # untied tables whose bias is stored once
    if copy in shapes and copy not in tensors and copy.endswith('.bias') and original in tensors:
      tensors[copy] = tensors[original]
  return Plan(family, config, model, parameters, rows, shapes)


def _check(folder, plan: Plan, tensors: dict[str, Stored], strict, ignore) -> None:
  """Raise ValueError unless every tensor is used once and has the right shape and dtype."""
  family, shapes = plan.family, plan.shapes
  for copy, original in family.aliases.items():
    if copy in tensors and copy not in shapes:
      a, b = tensors.pop(copy), tensors[original]
      if not np.array_equal(a.read(), b.read()):
        raise ValueError(
          f'{folder}: {a.name} and {b.name} differ, but config.json says that they are one '
          'table: set "tie_word_embeddings": false there if they are two'
        )
  # a bias of untied tables may be stored under both names: the original is then not used
  others = {original for copy, original in family.aliases.items() if copy in shapes}
  missing, left = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys() - others
  unused = {n for n in left if not strict or family.heads.fullmatch(n) or n.startswith(ignore)}
  if unused and not missing:
    logging.getLogger(__name__).warning('%s: the model does not use %s', folder, some(unused))
    left -= unused
  faults = []
  for fault, names, others in (('missing', missing, left), ('left over', left, missing)):
    for name in sorted(names):
      near = difflib.get_close_matches(name, others, n=1)
      faults.append(f'{fault}: {name}{f" (nearest: {near[0]})" if near else ""}')
  for name in sorted(shapes.keys() & tensors.keys()):
    stored = tensors[name]
    if stored.shape != shapes[name]:
      faults.append(f'{name}: has shape {stored.shape}, but the config asks for {shapes[name]}')
    elif stored.dtype not in DTYPES:
      faults.append(f'{name}: holds {stored.dtype}, none of {", ".join(DTYPES)}')
  if faults:
    lines = faults[:20] + [f'... and {len(faults) - 20} more'] * (len(faults) > 20)
    raise ValueError(
      f'{folder}: the tensors are not those that config.json describes:\n  '
      + '\n  '.join(lines)
      + '\nstrict=False lets go what is left over' * (bool(left) and not missing)
    )


def _read(
  row: Row, parameters, tensors: Mapping[str, Stored], dtype, places: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Return the parameters of a row, read layer by layer into their final place.

  Args:
    row: of a family's table.
    parameters: shapes by path.
    tensors: those of the files.
    dtype: of the parameters, or 'auto'.
    places: the sharding of each parameter, None for the first device.
  """
  names = list(named(row, parameters))
  if dtype == 'auto':
    dtype = np.dtype(DTYPES[tensors[names[0][0]].dtype]) if names else 'float32'
    dtype = 'float32' if dtype == np.float64 else dtype

  def part(number: int, slices: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return a part of a parameter of this shape, of the number-th of the row."""
    bounds = [s.indices(n)[:2] for s, n in zip(slices, shape, strict=True)]
    found = _aligned([end - start for start, end in bounds], jnp.dtype(dtype))
    if row.theirs is None:
      found[...] = 0
    elif row.without:
      found[...] = 1

    def pair(item: tuple[str, tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
      """Return the place of a tensor, and what is to be copied there."""
      name, layer = item
      place: Any = tuple(i - start for i, (start, _) in zip(layer, bounds, strict=False))
      whole = row.read(tensors[name].read())[number]
      return found[(*place, ...)], np.asarray(whole[slices[len(layer) :]])

    inside = lambda layer: all(a <= i < b for i, (a, b) in zip(layer, bounds, strict=False))  # noqa: E731
    wanted = [item for item in names if inside(item[1])]
    _copy_all(pair, wanted, found.nbytes)
    return found

  def placed(number: int, path: str) -> jax.Array:
    shape = parameters[path].shape
    if places[path] is None:  # nothing else refers to the memory, so no copy
      return jax.device_put(part(number, (slice(None),) * len(shape), shape), may_alias=True)
    one = functools.partial(part, number, shape=shape)
    return jax.make_array_from_callback(shape, places[path], one)

  return {path: placed(number, path) for number, path in enumerate(row.ours)}


def _copy_all(pair: Callable, items: Sequence[Any], size: int) -> None:
  """Copy to and from the arrays pair(item) = (target, source) of each item.

  Each thread copies another item, or another part of a single one.

  Args:
    pair: called by the threads.
    items: its arguments.
    size: bytes of all targets; few of them are copied without threads.
  """
  if size < LARGE:
    for item in items:
      _copy(*pair(item))
    return
  threads = min(os.cpu_count() or 1, THREADS)
  with ThreadPoolExecutor(threads) as pool:
    if len(items) == 1:
      target, source = pair(items[0])
      list(pool.map(_copy, np.array_split(target, threads), np.array_split(source, threads)))
    else:
      list(pool.map(lambda item: _copy(*pair(item)), items))


def _copy(target: np.ndarray, source: np.ndarray) -> None:
  """Copy an array, a transposed matrix in strips, which takes NumPy a third of the time."""
  if source.dtype == target.dtype == jnp.bfloat16:  # integers are copied faster
    target, source = target.view(np.uint16), source.view(np.uint16)
  if source.ndim == 2 and source.strides[0] < source.strides[1]:
    for i in range(0, source.shape[1], STRIP):
      target[:, i : i + STRIP] = source[:, i : i + STRIP]
  else:
    target[...] = source


def _aligned(shape, dtype) -> np.ndarray:
  """Return an empty array at an address that XLA's CPU backend uses without a copy."""
  size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
  if hasattr(mmap, 'MAP_ANONYMOUS') and size > LARGE:
    # np.empty asks for huge pages, which takes seconds where files fill the memory
    memory = np.frombuffer(
      mmap.mmap(-1, size + 64, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8
    )
  else:
    memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(dtype).reshape(shape)


def load_tokenizer(folder: pathlib.Path, published: Published | None = None) -> Any:
  """Return the tokenizer of a published folder, with its template; None if there is none."""
  from transformer.data.tokenizers import Tokenizer

  published = published or Published.read(folder)
  special: dict[str, Any] = dict(
    tokens=published.special_tokens(),
    ends=published.ends(),
    template=True,
    chat_template=published.chat_template,
  )
  if (folder / 'tokenizer.json').is_file():
    return Tokenizer.load(folder / 'tokenizer.json', **special)
  made = read_sentencepiece(folder)
  return Tokenizer(made, **special) if made else None


def _tokenizer(folder: pathlib.Path, config: ModelConfig, published: Published):
  """Return the folder's tokenizer; None without a file for it or without the package."""
  log = logging.getLogger(__name__)
  try:
    tokenizer = load_tokenizer(folder, published)
  except ModuleNotFoundError as error:  # the weights can be used without it
    if error.name != 'tokenizers':
      raise
    log.warning(
      'the tokenizer of %s is None: the package tokenizers, which reads tokenizer.json, is not '
      "installed (pip install 'functional-transformer[train]')",
      folder,
    )
    return None
  if tokenizer is None:
    if config.modality == 'tokens':
      log.warning(
        '%s has no tokenizer.json, and no unigram model of SentencePiece: the tokenizer is None. '
        'Where transformers has a fast tokenizer for it, it writes one: AutoTokenizer.'
        'from_pretrained(folder).save_pretrained(folder)',
        folder,
      )
    return None
  if tokenizer.trained_size > config.vocab:
    raise ValueError(
      f'{folder}: tokenizer.json has {tokenizer.size} ids, but the model knows {config.vocab}: '
      'they do not belong together'
    )
  if tokenizer.size > config.vocab:
    added = tokenizer.pieces(range(config.vocab, tokenizer.size))
    log.warning(
      '%s: the model has no vectors for %s, which were added to its tokenizer', folder, some(added)
    )
  return tokenizer
