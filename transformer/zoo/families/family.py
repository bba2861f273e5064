"""A family of published models: the table of its tensors, and its config.json."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from transformer.modules.config import ModelConfig
from transformer.zoo.families.rows import Row, some

# the first name of each is the one that is written
ACTIVATIONS = {
  'gelu': 'gelu_erf',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}


class Family(NamedTuple):
  """How a family of models is published.

  Attributes:
    architectures: their classes and ours.
    fields: ours to (their keys, default): the first key counts, all are written, and sizes given by
      several must agree.
    fixed: our fields that are the same for all models of the family.
    only: their keys of which only this value is supported.
    rows: (our config, our class) to the table, in names without prefix. Rows of parameters that a
      model does not have are skipped; of two rows of the same parameters the last counts.
    derive: (their config, names in their files, our class) to fields that need more than one key.
    express: our config to the keys of these fields.
    prefix: of the names of the body, in files of a model with a head.
    aliases: name to the name that it is a copy of, if a file holds both.
    ignored: names of tensors that are not parameters, or not used.
  """

  architectures: dict[str, type]
  fields: dict[str, tuple[str, Any]]
  fixed: dict[str, Any]
  only: dict[str, Any]
  rows: Callable[[ModelConfig, type], list[Row]]
  derive: Callable[[Mapping[str, Any], Collection[str], type], dict[str, Any]] = lambda *_: {}
  express: Callable[[ModelConfig], dict[str, Any]] = lambda _: {}
  prefix: str = ''
  aliases: Mapping[str, str] = {}
  ignored: re.Pattern = re.compile(r'(.*\.)?position_ids')


def rows_of(
  family: Family, config: ModelConfig, kind: type, parameters: Collection[str]
) -> list[Row]:
  """Return the rows of the parameters that a model has.

  Raises:
    ValueError: the family has no row for some of them.
  """
  table = {row.ours: row for row in family.rows(config, kind)}
  rows = [row for row in table.values() if set(row.ours) <= set(parameters)]
  paths = [path for row in rows for path in row.ours]
  if len(paths) != len(set(paths)):
    raise AssertionError(f'two rows of the table give {paths}')
  if nameless := set(parameters) - set(paths):
    raise ValueError(f'the family has no name for {some(nameless)}')
  return rows


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
    ValueError: it asks for what this codebase does not have.
  """
  for key, value in family.only.items():
    if theirs.get(key, value) not in (value, None):
      raise ValueError(f'config.json: {key}={theirs[key]!r} is not supported, only {value!r} is')
  found = dict(family.fixed)
  for ours, (keys, default) in family.fields.items():
    given = {key: theirs[key] for key in keys.split() if theirs.get(key) is not None}
    if len(set(given.values())) > 1 and 'dropout' not in ours:
      raise ValueError(f'config.json: {given} differ, which is not supported')
    value = next(iter(given.values()), default)
    found[ours] = float(value) if isinstance(default, float) else value
  found |= family.derive(theirs, names, kind)
  if found['activation'] not in ACTIVATIONS:
    raise ValueError(
      f'config.json: the activation {found["activation"]!r} is not supported, '
      f'only {", ".join(ACTIVATIONS)} are'
    )
  found['activation'] = ACTIVATIONS[found['activation']]
  # sizes that follow from others are left at their default
  followed = dict(
    head_size=found['width'] // found['heads'],
    kv_heads=found['heads'],
    decoder_depth=found['depth'],
    max_source_length=found['max_length'],
  )
  return found | {name: 0 for name, value in followed.items() if found.get(name) == value}


def write_config(family: Family, config: ModelConfig) -> dict[str, Any]:
  """Return the keys of config.json that express our config."""
  values = in_full(config)
  values['activation'] = {v: k for k, v in reversed(ACTIVATIONS.items())}[config.activation]
  written = {key: values[ours] for ours, (keys, _) in family.fields.items() for key in keys.split()}
  return written | family.express(config)


def in_full(config: ModelConfig) -> dict[str, Any]:
  """Return all fields, with the sizes that 0 stands for."""
  return dataclasses.asdict(config) | dict(
    kv_heads=config.groups,
    head_size=config.key_size,
    decoder_depth=config.decoder_depth or config.depth,
    max_source_length=config.max_source_length or config.max_length,
  )
