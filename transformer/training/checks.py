"""Checks of a config, before anything is built from it."""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from ml_collections import ConfigDict

from transformer.data.lookup import lookup, one_of, reference
from transformer.data.processors import PROCESSORS
from transformer.evaluation.metrics import require
from transformer.inference.decoding import Decoding
from transformer.modules.config import ModelConfig
from transformer.training import mup, optimizers, processes
from transformer.training.config import (
  REQUIRED,
  SECTIONS,
  TOP,
  Key,
  find_task,
  keys,
  reader,
  same_keys,
)
from transformer.training.sections import Settings


def check(config: Mapping[str, Any] | ConfigDict) -> Settings:
  """Return the config as Settings, with every default filled in.

  Raises:
    ValueError: a key is unknown, missing, of a wrong type or value, or contradicts another one;
      names it, and the nearest key for an unknown one.
  """
  config = config.to_dict() if isinstance(config, ConfigDict) else config
  same_keys('config', config, [*TOP, *SECTIONS])
  for section in SECTIONS:
    if not isinstance(config[section], Mapping):
      raise ValueError(f'config.{section}={config[section]!r} must be a section of keys')
  task = config['task']
  objective = find_task(task)
  modality = config['model'].get('modality', 'tokens')
  lookup('model.modality', modality, PROCESSORS)
  typed = {name: _typed(f'config.{name}', config[name], k) for name, k in keys('', task).items()}
  for section in SECTIONS:
    known = keys(section, task, modality)
    same_keys(f'config.{section}', config[section], known)
    typed[section] = {
      name: _typed(f'{section}.{name}', config[section][name], key) for name, key in known.items()
    }
  ModelConfig(vocab=1, **typed['model'])  # raises ValueError for a wrong value
  optimizers.build(**typed['optimizer'], steps=1, width=1)  # the same
  if typed['optimizer']['mup_base_width']:
    mup.check(typed['optimizer']['name'], typed['model'])
  defaults = optimizers.defaults(typed['optimizer']['name'], typed['optimizer']['schedule'])
  not_none = {name: value for name, value in typed['optimizer'].items() if value is not None}
  typed['optimizer'] |= {k: v for k, v in defaults.items() if k in typed['optimizer']} | not_none
  for section in ('data', 'train', 'eval', 'decode'):
    typed[section] = reader(section, task, modality)(**typed[section])
  settings = Settings(**typed)
  settings = _check_metrics(settings, objective)
  for wrong, message in _contradictions(settings, objective, _check_processor(settings, objective)):
    if wrong:
      raise ValueError(message)
  return settings


def _contradictions(settings: Settings, objective: Any, inputs: int) -> Iterator[tuple[bool, str]]:
  """Yield (whether values of different keys contradict each other, the error message).

  Args:
    settings: of the run.
    objective: the class of its task.
    inputs: the positions of the longest input in the encoder.
  """
  data, model, train, decode = settings.data, settings.model, settings.train, settings.decode
  yield settings.seed < 0, f'config.seed={settings.seed} must be at least 0'
  names = ('label_smoothing', 'z_loss', 'consistency')
  smoothing, *factors = (settings.loss.get(name, 0) for name in names)
  yield (
    not 0 <= smoothing < 1 or min(factors) < 0,
    f'loss={settings.loss}: give 0 <= label_smoothing < 1, such as 0.1, and z_loss >= 0 and '
    'consistency >= 0',
  )
  for name, every in (
    ('train.save_every_steps', train.save_every_steps),
    ('eval.every_steps', settings.eval.every_steps),
  ):
    yield (
      every % train.steps_per_call != 0,
      f'{name}={every} is no multiple of train.steps_per_call={train.steps_per_call}: nothing is '
      'evaluated or saved between the steps of a call',
    )
  yield (
    settings.eval.attention > 0 and processes.several(),
    f'eval.attention={settings.eval.attention}: the pictures are drawn in one process only: set it '
    'to 0',
  )
  yield (
    data.packing and data.batch_tokens < data.max_length,
    f'data.batch_tokens={data.batch_tokens} is less than data.max_length={data.max_length}, the '
    'length of a packed row: raise it to at least that',
  )
  longest, source = inputs, model['max_source_length']
  if hasattr(objective, 'positions'):  # decoding may need more positions than training
    yield (
      model['position'] == 'learned' and 0 < source < inputs,
      f'model.max_source_length={source} learned positions are fewer than the {inputs} of an input '
      f'of data.max_length={data.max_length}: set it to at least {inputs}',
    )
    targets = data.max_length if model['modality'] == 'tokens' else 0
    longest = objective.positions(targets if source else inputs, decode.max_new_tokens)
  yield (
    model['position'] == 'learned' and longest > model['max_length'],
    f'model.max_length={model["max_length"]} learned positions are fewer than data.max_length='
    f'{data.max_length} or decode.max_new_tokens: set it to at least {longest}',
  )


def without_effect(settings: Settings) -> Iterator[tuple[bool, str]]:
  """Yield (whether a key has no effect because of another one, the warning to log)."""
  steps, train, decode = settings.train.steps, settings.train, settings.decode
  data, text = settings.data, settings.model['modality'] == 'tokens'
  warmup, saved = settings.optimizer['warmup_steps'], -(-steps // train.save_every_steps)
  yield (
    warmup > steps,
    f'optimizer.warmup_steps={warmup} are more than train.steps={steps}: the learning rate never '
    'reaches its peak',
  )
  yield (
    train.average_checkpoints > saved,
    f'train.average_checkpoints={train.average_checkpoints}, but train.save_every_steps='
    f'{train.save_every_steps} makes {saved} in train.steps={steps}: these are averaged',
  )
  yield (
    text and data.batch_tokens < data.max_length,
    f'data.batch_tokens={data.batch_tokens} is less than data.max_length={data.max_length}: a '
    'batch of examples longer than that is one of them, or one for each part of the mesh',
  )
  yield from _undivided(settings)
  yield (
    bool(settings.eval.by and not settings.eval.metrics),
    f'eval.by={settings.eval.by} reports eval.metrics, which are none',
  )
  yield (
    bool(settings.loss.get('consistency')) and not settings.model['dropout'],
    f'loss.consistency={settings.loss.get("consistency")} compares two passes with different '
    'dropout, but model.dropout=0',
  )
  if isinstance(decode, Decoding):
    filters = {k: v for k, v in decode.filters.items() if v != getattr(Decoding, k)}
    yield (
      bool(filters) and not decode.temperature,
      f'decode: {filters} filter samples, but decode.temperature=0 takes the most probable token',
    )
    yield (
      decode.beams == 1 and bool(decode.alpha or decode.length_penalty),
      f'decode.alpha={decode.alpha} and decode.length_penalty={decode.length_penalty} compare '
      'beams, but decode.beams=1',
    )


def _undivided(settings: Settings) -> Iterator[tuple[bool, str]]:
  """Yield (whether an axis of the mesh does not divide a size, the warning to log)."""
  mesh, model = settings.mesh, ModelConfig(vocab=1, **settings.model)
  sizes = {'heads': model.heads, 'kv_heads': model.groups, 'feedforward': model.feedforward}
  for axis, name, size in (
    *(('tensor', *item) for item in sizes.items()),
    ('fsdp', 'width', model.width),
  ):
    yield (
      mesh[axis] > 1 and size % mesh[axis] != 0,
      f'mesh.{axis}={mesh[axis]} does not divide model.{name}={size}: devices of that axis hold or '
      'compute more than their share',
    )


def _typed(where: str, value: Any, key: Key) -> Any:
  """Return the value of a key converted to its type: an integer to float, a list to tuple.

  Args:
    where: the name of the key, for errors.
    value: None if it is not set.
    key: gives the type and the default.

  Raises:
    ValueError: the value is missing, of another type, or not among those of a Literal.
  """
  if value is None and key.default is REQUIRED:
    where = where if where.startswith('config.') else f'config.{where}'
    raise ValueError(f'{where} is missing: give it a value')
  if value is None and key.default is None:
    return None
  if get_origin(key.type) is Literal:
    return one_of(where, value, get_args(key.type))
  if get_origin(key.type) is tuple:
    if not isinstance(value, tuple | list):
      raise ValueError(f'{where}={value!r} must be a tuple: give ({value!r},)')
    return tuple(_item(where, item, get_args(key.type)[0]) for item in value)
  if any(get_origin(kind) is tuple for kind in get_args(key.type)):  # a tuple, or a mapping
    if not isinstance(value, tuple | list | Mapping):
      raise ValueError(f'{where}={value!r} must be a tuple, or names with values')
    return value if isinstance(value, Mapping) else tuple(value)
  if key.type is float and type(value) is int:
    return float(value)
  if key.type in (bool, int, float, str) and type(value) is not key.type:
    raise ValueError(f'{where}={value!r} must be of type {key.type.__name__}')
  return value


def _item(where: str, item: Any, kind: Any) -> Any:
  """Return an item of a tuple converted to its type: a string, an integer or (pattern, number)."""
  if kind is str:
    if callable(item):
      return reference(item)
    if not isinstance(item, str):
      raise ValueError(f'{where}: {item!r} must be of type str')
    return item
  if kind is int:
    if not re.fullmatch('-?[0-9]+', str(item)):
      raise ValueError(f'{where}: {item!r} must be of type int')
    return int(item)
  if get_origin(kind) is not tuple:
    return item
  try:
    pattern, number = item.rpartition('=')[::2] if isinstance(item, str) else item
    re.compile(pattern)
    return pattern, get_args(kind)[1](number)
  except (re.error, TypeError, ValueError) as error:
    raise ValueError(
      f"{where}: {item!r} is no pair of a pattern and a number ({error}): write ('query|value', 2),"
      ' or query|value=2 on the command line'
    ) from error


def _check_metrics(settings: Settings, objective: Any) -> Settings:
  """Return the settings with eval.best set; raise ValueError for an unknown metric."""
  for name in settings.eval.metrics:
    require(name)
  names = [*objective.metrics, *settings.eval.metrics]
  best = one_of('eval.best', settings.eval.best or names[0], names)
  return dataclasses.replace(settings, eval=dataclasses.replace(settings.eval, best=best))


def _check_processor(settings: Settings, objective: Any) -> int:
  """Check the section 'processor'; return the positions of the longest input in the encoder."""
  modality = settings.model['modality']
  if modality != 'tokens' and 'input_processor' not in inspect.signature(objective).parameters:
    raise ValueError(
      f'model.modality={modality}, but config.task={settings.task} reads tokens alone'
    )
  processor = processor_of(settings)
  if processor is None:
    return settings.data.max_length
  if settings.model['features'] != processor.features:
    raise ValueError(
      f'model.features={settings.model["features"]}, but each of the {modality} that processor='
      f'{settings.processor} describes has {processor.features} numbers: set it to that'
    )
  return processor.positions


def processor_of(settings: Settings) -> Any:
  """Return the processor of images or sounds; None if the model reads texts.

  Raises:
    ValueError: a key of the section 'processor' has a wrong value.
  """
  if settings.model['modality'] == 'tokens':
    return None
  processor = PROCESSORS[settings.model['modality']]
  shared = {'max_length': settings.data.max_length, 'stem': settings.model['stem']}
  names = inspect.signature(processor).parameters
  return processor(**settings.processor, **{k: v for k, v in shared.items() if k in names})
