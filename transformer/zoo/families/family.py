"""A family of published models: the table of its tensors, and its config.json."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from transformer.modules.config import DualConfig, ModelConfig
from transformer.modules.model import Encoder
from transformer.zoo.families.rows import Row, some

# {name in config.json: ours}; of names with the same meaning the first is written
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
  """The published form of a family of models.

  Attributes:
    architectures: {their class: ours}; of several for one of ours, the first is written.
    fields: {our field: (their keys, default of their class)}. Keys are separated by spaces, and
      their values must agree; a|b are synonyms, of which the first present one is read, and a is
      written.
    fixed: our fields that have the same value in all models of the family.
    only: {their key: the only supported value, which is also the default}.
    rows: (our config, our class, config.json) to the table, with names without `prefix`. Rows of
      parameters that a model does not have are skipped; of two rows for the same parameters the
      last one is used.
    derive: (config.json with the defaults of `fields`, names of the tensors, our class) to fields
      that depend on more than one key.
    express: (our config) to the keys of the fields of `derive`.
    pad: their default of pad_token_id; None if there is none.
    prefix: of the names of the body, in files of a model with a head.
    aliases: {name: name of the tensor that it is a copy of, if a file has both}.
    ignored: names of tensors that are no parameters.
    heads: names of tensors of heads and poolers, which a file may have and a model not use.
    start, end: their defaults of decoder_start_token_id and eos_token_id, if a model needs them.
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
  """Return the rows of the family's table that a model needs.

  Args:
    family: of the model.
    config: ours.
    kind: our class.
    theirs: config.json.
    parameters: paths of the model's parameters.

  Raises:
    ValueError: the family has no row for a parameter.
  """
  table = {row.ours: row for row in family.rows(config, kind, theirs)}
  rows = [row for row in table.values() if set(row.ours) <= set(parameters)]
  paths = [path for row in rows for path in row.ours]
  if len(paths) != len(set(paths)):
    raise AssertionError(f'two rows of the table give {paths}')
  if without_row := set(parameters) - set(paths):
    raise ValueError(f'the family has no name for {some(without_row)}')
  return rows


def value(theirs: Mapping[str, Any], key: str, default: Any) -> Any:
  """Return the value of a key of config.json, or the default if the key is missing or null.

  Raises:
    ValueError: the value has another type than the default.
  """
  result = theirs.get(key)
  if result is None:
    return default
  if isinstance(default, float) and type(result) is int:
    result = float(result)
  if type(result) is not type(default):
    raise ValueError(f'config.json: {key}={result!r} is not {_TYPES[type(default)]}')
  return result


_TYPES = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a text'}
_TYPES |= {dict: 'an object', list: 'a list'}


def read_config(
  family: Family, theirs: Mapping[str, Any], names: Collection[str], kind: type
) -> dict[str, Any]:
  """Return the fields of ModelConfig for a config.json.

  Args:
    family: of the model.
    theirs: config.json.
    names: of the tensors in the files, without prefix.
    kind: our class.

  Raises:
    ValueError: a key has a value that is not supported, or of a wrong type.
  """
  for key, only in family.only.items():
    if theirs.get(key, only) not in (only, None):
      raise ValueError(f'config.json: {key}={theirs[key]!r} is not supported, only {only!r} is')
  fields, with_defaults = dict(family.fixed), dict(theirs)
  for ours, (keys, default) in family.fields.items():
    values = {}
    for synonyms in keys.split():
      first, *others = synonyms.split('|')
      key = next((k for k in (first, *others) if theirs.get(k) is not None), first)
      values[key] = with_defaults[first] = value(theirs, key, default)
    if len(set(values.values())) > 1 and 'dropout' not in ours:
      raise ValueError(f'config.json: {values} differ, which is not supported')
    fields[ours] = next(iter(values.values()))
  fields |= family.derive(with_defaults, names, kind)
  if fields['activation'] not in ACTIVATIONS:
    raise ValueError(
      f'config.json: the activation {fields["activation"]!r} is not supported, '
      f'only {", ".join(ACTIVATIONS)} are'
    )
  fields['activation'] = ACTIVATIONS[fields['activation']]
  # 0 stands for the size that follows from others
  implied = dict(
    head_size=fields['width'] // max(fields['heads'], 1),
    kv_heads=fields['heads'],
    decoder_depth=fields['depth'],
    max_source_length=fields['max_length'],
  )
  return fields | {name: 0 for name, size in implied.items() if fields.get(name) == size}


def write_config(family: Family, config: Any) -> dict[str, Any]:
  """Return the keys and values of config.json for our config; the inverse of `read_config`."""
  if family.towers:
    result = {
      CONFIGS[side]: write_config(tower, getattr(config, side))
      for side, tower in family.towers.items()
    }
    size = result['text_config'].get('projection_dim')
    return result | ({'projection_dim': size} if size else {})
  values = in_full(config)
  values['activation'] = {v: k for k, v in reversed(ACTIVATIONS.items())}[config.activation]
  result = {
    key.split('|')[0]: values[ours]
    for ours, (keys, _) in family.fields.items()
    for key in keys.split()
  }
  return result | family.express(config)


CONFIGS = {'text': 'text_config', 'image': 'vision_config'}  # keys of the towers of a DualEncoder


def read_towers(
  family: Family, theirs: Mapping[str, Any], names: Collection[str], settings: Mapping[str, Any]
) -> DualConfig:
  """Return the config of a DualEncoder.

  Args:
    family, theirs, names: as for `read_config`.
    settings: fields of both ModelConfigs that replace those of config.json.
  """
  configs = {}
  for side, tower in family.towers.items():
    tower_json = dict(value(theirs, CONFIGS[side], {}))
    if 'projection_dim' in theirs:
      tower_json['projection_dim'] = theirs['projection_dim']
    short = {name.removeprefix(tower.prefix) for name in names}
    configs[side] = ModelConfig(**read_config(tower, tower_json, short, Encoder) | dict(settings))
  return DualConfig(**configs, bias='logit_bias' in names)


def in_full(config: ModelConfig) -> dict[str, Any]:
  """Return all fields of a config, with actual sizes in place of 0, and `layers` for all L."""
  return dataclasses.asdict(config) | dict(
    kv_heads=config.groups,
    head_size=config.key_size,
    embedding_size=config.embedding_size or config.width,
    decoder_depth=config.decoder_depth or config.depth,
    max_source_length=config.max_source_length or config.max_length,
    layers=[dataclasses.asdict(x) for x in config.pattern * (config.depth // len(config.pattern))],
  )
