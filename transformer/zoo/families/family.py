"""A family of published models: the table of its tensors, and its config.json."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from transformer.modules.config import DualConfig, ModelConfig
from transformer.modules.model import Encoder
from transformer.zoo.families.rows import Row, some

# the first name of each is the one that is written
ACTIVATIONS = {
  'gelu': 'gelu_erf',
  'gelu_python': 'gelu_erf',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'gelu_10': 'gelu_10',
  'quick_gelu': 'quick_gelu',
  'relu': 'relu',
  'relu2': 'relu_squared',
  'tanh': 'tanh',
  'silu': 'silu',
  'swish': 'silu',
}


class Family(NamedTuple):
  """How a family of models is published.

  Attributes:
    architectures: their classes and ours; the first of each of ours is the one that is written.
    fields: ours to (their keys, default of their class). Sizes given by several keys must agree.
      With a|b the first of the synonyms that is there counts, and a is written.
    fixed: our fields that are the same for all models of the family.
    only: their keys of which only this value is supported; it is also their default.
    rows: (our config, our class, config.json) to the table, in names without prefix. Rows of
      parameters that a model does not have are skipped; of two rows of the same parameters the last
      counts.
    derive: (config.json with the defaults of `fields`, names in their files, our class) to fields
      that need more than one key.
    express: our config to the keys of these fields.
    pad: their default of pad_token_id; None if there is none.
    prefix: of the names of the body, in files of a model with a head.
    aliases: name to the name that it is a copy of, if a file holds both.
    ignored: names of tensors that are not parameters.
    heads: names of heads and poolers, which files hold that a model does without.
    start, end: their defaults of decoder_start_token_id and eos_token_id, where a model needs them.
    towers: the families of the two encoders of a DualEncoder; such a family has no fields.
  """

  architectures: dict[str, type]
  fields: dict[str, tuple[str, Any]]
  fixed: dict[str, Any]
  only: dict[str, Any]
  rows: Callable[[ModelConfig, type, Mapping[str, Any]], list[Row]]
  derive: Callable[[Mapping[str, Any], Collection[str], type], dict[str, Any]] = lambda *_: {}
  express: Callable[[ModelConfig], dict[str, Any]] = lambda _: {}
  pad: int | None = None
  prefix: str = ''
  aliases: Mapping[str, str] = {}
  ignored: re.Pattern = re.compile(r'(.*\.)?position_ids')
  heads: re.Pattern = re.compile(r'(?!)')
  start: int = 0
  end: int = 1
  towers: Mapping[str, Any] = {}


def rows_of(
  family: Family,
  config: Any,
  kind: type,
  theirs: Mapping[str, Any],
  parameters: Collection[str],
) -> list[Row]:
  """Return the rows of the parameters that a model has.

  Raises:
    ValueError: the family has no row for some of them.
  """
  table = {row.ours: row for row in family.rows(config, kind, theirs)}
  rows = [row for row in table.values() if set(row.ours) <= set(parameters)]
  paths = [path for row in rows for path in row.ours]
  if len(paths) != len(set(paths)):
    raise AssertionError(f'two rows of the table give {paths}')
  if nameless := set(parameters) - set(paths):
    raise ValueError(f'the family has no name for {some(nameless)}')
  return rows


def value(theirs: Mapping[str, Any], key: str, default: Any) -> Any:
  """Return a value of config.json; the default, which also tells its type, if it is not there.

  Raises:
    ValueError: it is of another type.
  """
  found = theirs.get(key)
  if found is None:
    return default
  if isinstance(default, float) and type(found) is int:
    found = float(found)
  if type(found) is not type(default):
    raise ValueError(f'config.json: {key}={found!r} is not {_TYPES[type(default)]}')
  return found


_TYPES = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a text'}
_TYPES |= {dict: 'an object', list: 'a list'}


def read_config(
  family: Family, theirs: Mapping[str, Any], names: Collection[str], kind: type
) -> dict[str, Any]:
  """Return the fields of `ModelConfig` that a config.json gives.

  Args:
    family: the model's.
    theirs: config.json.
    names: of the tensors in their files, without prefix.
    kind: our class.

  Raises:
    ValueError: it asks for what this codebase does not have, or a value is of a wrong type.
  """
  for key, only in family.only.items():
    if theirs.get(key, only) not in (only, None):
      raise ValueError(f'config.json: {key}={theirs[key]!r} is not supported, only {only!r} is')
  found, filled = dict(family.fixed), dict(theirs)
  for ours, (keys, default) in family.fields.items():
    given = {}
    for synonyms in keys.split():
      first, *others = synonyms.split('|')
      key = next((k for k in (first, *others) if theirs.get(k) is not None), first)
      given[key] = filled[first] = value(theirs, key, default)
    if len(set(given.values())) > 1 and 'dropout' not in ours:
      raise ValueError(f'config.json: {given} differ, which is not supported')
    found[ours] = next(iter(given.values()))
  found |= family.derive(filled, names, kind)
  if found['activation'] not in ACTIVATIONS:
    raise ValueError(
      f'config.json: the activation {found["activation"]!r} is not supported, '
      f'only {", ".join(ACTIVATIONS)} are'
    )
  found['activation'] = ACTIVATIONS[found['activation']]
  # sizes that follow from others are left at their default
  followed = dict(
    head_size=found['width'] // max(found['heads'], 1),
    kv_heads=found['heads'],
    decoder_depth=found['depth'],
    max_source_length=found['max_length'],
  )
  return found | {name: 0 for name, size in followed.items() if found.get(name) == size}


def write_config(family: Family, config: Any) -> dict[str, Any]:
  """Return the keys of config.json that express our config."""
  if family.towers:
    written = {
      CONFIGS[side]: write_config(tower, getattr(config, side))
      for side, tower in family.towers.items()
    }
    size = written['text_config'].get('projection_dim')
    return written | ({'projection_dim': size} if size else {})
  values = in_full(config)
  values['activation'] = {v: k for k, v in reversed(ACTIVATIONS.items())}[config.activation]
  written = {
    key.split('|')[0]: values[ours]
    for ours, (keys, _) in family.fields.items()
    for key in keys.split()
  }
  return written | family.express(config)


CONFIGS = {'text': 'text_config', 'image': 'vision_config'}  # of a DualEncoder


def read_towers(
  family: Family, theirs: Mapping[str, Any], names: Collection[str], settings: Mapping[str, Any]
) -> DualConfig:
  """Return the config of a DualEncoder; arguments as in `read_config`, and fields to be set."""
  found = {}
  for side, tower in family.towers.items():
    each = dict(value(theirs, CONFIGS[side], {}))
    if 'projection_dim' in theirs:
      each['projection_dim'] = theirs['projection_dim']
    own = {name.removeprefix(tower.prefix) for name in names}
    found[side] = ModelConfig(**read_config(tower, each, own, Encoder) | dict(settings))
  return DualConfig(**found, bias='logit_bias' in names)


def in_full(config: ModelConfig) -> dict[str, Any]:
  """Return all fields, with the sizes that 0 stands for and what each of the layers does."""
  return dataclasses.asdict(config) | dict(
    kv_heads=config.groups,
    head_size=config.key_size,
    embedding_size=config.embedding_size or config.width,
    decoder_depth=config.decoder_depth or config.depth,
    max_source_length=config.max_source_length or config.max_length,
    layers=[dataclasses.asdict(x) for x in config.pattern * (config.depth // len(config.pattern))],
  )
