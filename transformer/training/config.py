"""The keys of a config, with types, defaults and meanings; `checks` checks their values.

Each section of a config is the keyword arguments of one dataclass or function, its reader. The
signature of the reader gives the keys, types and defaults, and its docstring the meanings.
"""

import difflib
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict, config_dict

from transformer.data import tokenizers
from transformer.data.folders import data_dir as data_dir
from transformer.data.lookup import lookup
from transformer.data.lookup import reference as reference
from transformer.data.processors import PROCESSORS
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification
from transformer.tasks.ctc import CTC, JointCTC
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.masked_lm import MaskedLM
from transformer.tasks.question_answering import QuestionAnswering
from transformer.tasks.retrieval import Retrieval
from transformer.tasks.seq2seq import Seq2Seq
from transformer.tasks.span_corruption import SpanCorruption
from transformer.tasks.task import Task
from transformer.tasks.text_to_speech import TextToSpeech
from transformer.tasks.token_classification import TokenClassification
from transformer.training import optimizers, sharding
from transformer.training.sections import Data, Evaluation, Settings, Train

TASKS: dict[str, Any] = {
  'seq2seq': Seq2Seq,
  'language_model': LanguageModel,
  'masked_lm': MaskedLM,
  'span_corruption': SpanCorruption,
  'classification': Classification,
  'token_classification': TokenClassification,
  'ctc': CTC,
  'joint_ctc': JointCTC,
  'question_answering': QuestionAnswering,
  'retrieval': Retrieval,
  'text_to_speech': TextToSpeech,
}

TOP = ('experiment', 'task', 'seed', 'warm_start')  # keys outside of any section
SECTIONS = tuple('data processor tokenizer model loss optimizer train eval decode mesh'.split())
NOT_FROM_CONFIG = {  # arguments of readers that are no keys, because the run computes them
  'processor': ('tokenizer', 'max_length', 'start', 'truncate', 'prefix', 'stem'),
  'tokenizer': ('texts',),
  'model': ('vocab', 'pad', 'platform'),
  'loss': ('tokenizer', 'decoding', 'max_length', 'input_processor'),
  'optimizer': ('steps', 'width'),
  'mesh': ('over',),
}
READERS: dict[str, Callable] = {  # for the sections that are the same for all tasks and modalities
  '': Settings,
  'data': Data,
  'tokenizer': tokenizers.train,
  'model': ModelConfig,
  'optimizer': optimizers.build,
  'train': Train,
  'eval': Evaluation,
  'mesh': sharding.make_mesh,
}
REQUIRED = inspect.Parameter.empty
# The attributes that a task class must have; `decoding` is an argument of its constructor.
MEMBERS = {name for name in dir(Task) if name[0] != '_'} - {'decoding'}
MEMBERS |= {'text_fields', 'metrics', 'supports_packing'}

FORMAT = 2  # of config.json in the folder of a run; in the first edition it had no number
# {format: {key that it added: value for runs of older formats}}, for keys whose default would
# change what an older run computes.
ADDED: dict[int, dict[str, Any]] = {}


class Key(NamedTuple):
  """A key of a config.

  Attributes:
    type: the type of its value.
    default: REQUIRED if it has none; None if the default depends on another key.
    meaning: its text in the docstring of the reader.
  """

  type: Any
  default: Any
  meaning: str


def find_task(name: str) -> Any:
  """Return the class of a task: a name of TASKS, or 'module:name' of a class of your own.

  Raises:
    ValueError: there is no such class, or it lacks an attribute that a task must have.
  """
  task = lookup('config.task', name, TASKS)
  if missing := sorted(member for member in MEMBERS if not hasattr(task, member)):
    raise ValueError(
      f'config.task={name!r} has no {", ".join(missing)}: add them, as described in '
      'transformer/tasks/task.py and transformer/inference/predict.py'
    )
  return task


def for_task(task: str | type, *, modality: str = 'tokens') -> ConfigDict:
  """Return a locked config with the default of every key; keys without a default are None.

  Args:
    task: a name of TASKS, a class of your own, or 'module:name' of it.
    modality: of the encoder's input: tokens, patches or frames.
  """
  task_name = task if isinstance(task, str) else reference(task)
  values = {
    section: {name: _initial(key) for name, key in keys(section, task_name, modality).items()}
    for section in ('', *SECTIONS)
  }
  config = ConfigDict(values.pop('') | values)
  config.task, config.model.modality = task_name, modality
  return config.lock()


def _initial(key: Key) -> Any:
  """Return the default of a key, or a placeholder of its type if it has none."""
  if key.default is not None and key.default is not REQUIRED:
    return key.default
  origin = get_origin(key.type)
  return config_dict.placeholder(str if origin is Literal else origin or key.type)


def keys(section: str, task: str, modality: str = 'tokens') -> dict[str, Key]:
  """Return {name: Key} of a section; '' is the top level, for the keys outside of sections."""
  function = reader(section, task, modality)
  hints, meanings = get_type_hints(function), _meanings(function)
  result: dict[str, Key] = {}
  for name, parameter in inspect.signature(function).parameters.items():
    if parameter.kind == parameter.VAR_KEYWORD:
      result |= _optimizer_options()
    elif name in TOP if not section else name not in NOT_FROM_CONFIG.get(section, ()):
      result[name] = Key(hints[name], parameter.default, meanings.get(name, ''))
  return result


def reader(section: str, task: str, modality: str) -> Callable:
  """Return the dataclass or function that takes the keys of a section as arguments."""
  if section == 'processor':
    return lookup('model.modality', modality, PROCESSORS)
  if section in READERS:
    return READERS[section]
  objective = find_task(task)
  return objective if section == 'loss' else get_type_hints(objective)['decoding']


def _optimizer_options() -> dict[str, Key]:
  """Return the keys of all optimizers and schedules.

  Their default is None here, because it depends on optimizer.name and optimizer.schedule.
  """
  options: dict[str, Key] = {}
  for name, function in {**optimizers.OPTIMIZERS, **optimizers.SCHEDULES}.items():
    hints, meanings = get_type_hints(function), _meanings(function)
    for key, parameter in inspect.signature(function).parameters.items():
      if parameter.default is not REQUIRED:
        meaning = f'of {name}, {parameter.default} by default: {meanings.get(key, "")}'
        before = f'{options[key].meaning} ' if key in options else ''
        options[key] = Key(hints[key], None, before + meaning)
  return options


@functools.cache
def _meanings(function: Callable) -> Mapping[str, str]:
  """Return {argument: text} of the section Args or Attributes of a docstring."""
  meanings: dict[str, str] = {}
  for each in reversed(inspect.getmro(function)) if inspect.isclass(function) else [function]:
    part = re.split(r'^(?:Args|Attributes):\n', inspect.getdoc(each) or '', flags=re.MULTILINE)
    entries = re.split(r'^\S', part[-1] if len(part) > 1 else '', flags=re.MULTILINE)[0]
    for names, text in re.findall(
      r'^  (\w[\w, ]*): (.*(?:\n    .*)*)', entries, flags=re.MULTILINE
    ):
      meanings |= dict.fromkeys(names.split(', '), ' '.join(text.split()))
  return meanings


def describe(config: Mapping[str, Any]) -> str:
  """Return every key with its value, type, default and meaning, as text."""
  lines = []
  for section in ('', *SECTIONS):
    values, prefix = (config[section], f'{section}.') if section else (config, '')
    for name, key in keys(section, config['task'], config['model']['modality']).items():
      lines.append(f'{prefix}{name} = {values[name]!r}  ({_type_and_default(key)})')
      lines += textwrap.wrap(key.meaning, 100, initial_indent='    ', subsequent_indent='    ')
  return '\n'.join(lines)


def _type_and_default(key: Key) -> str:
  """Return the type and the default of a key, as text."""
  kind = key.type.__name__ if isinstance(key.type, type) else str(key.type)
  if get_origin(key.type) is Literal:
    kind = ' | '.join(map(repr, get_args(key.type)))
  elif get_origin(key.type) is tuple:
    item = get_args(key.type)[0]
    kind = 'tuple of ' + ('names' if item is str else 'pattern=number')
    kind = kind if item is str or get_origin(item) is tuple else 'tuple'
  if key.default is REQUIRED:
    return f'{kind}, required'
  return kind if key.default is None else f'{kind}, default {key.default!r}'


def same_keys(where: str, values: Mapping[str, Any], known: Iterable[str]):
  """Raise ValueError unless `values` has exactly the known keys; names the nearest known key."""
  for key in values:
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1, cutoff=0)
      hint = f': did you mean {where}.{near[0]}?' if near else ''
      raise ValueError(f'{where}.{key} is unknown{hint}')
  for key in known:
    if key not in values:
      raise ValueError(f'{where}.{key} is missing: give it a value')


def upgrade(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Return the config of a stored run, with the keys added that did not exist when it was stored.

  Raises:
    ValueError: its format is of the first edition or of a later version, or a key is unknown.
  """
  config = dict(stored)
  number = config.pop('format', 1)
  if not 2 <= number <= FORMAT:
    raise ValueError(
      f'it has format {number}, and this version reads 2 to {FORMAT}: '
      + ('update this code' if number > FORMAT else 'train it again')
    )
  added: dict[str, Any] = {}
  for later in sorted(ADDED, reverse=True):
    added |= ADDED[later] if later > number else {}
  modality = config['model'].get('modality', 'tokens')
  for section in SECTIONS:
    known = keys(section, config['task'], modality)
    values = {
      name: added.get(f'{section}.{name}', key.default)
      for name, key in known.items()
      if key.default is not REQUIRED
    }
    values |= config.get(section, {})
    same_keys(f'config.{section}', values, known)
    config[section] = _with_tuples(values)
  same_keys('config', config, [*TOP, *SECTIONS])
  return config


def _with_tuples(value: Any) -> Any:
  """Return a value from JSON with its lists as tuples."""
  if isinstance(value, Mapping):
    return {name: _with_tuples(item) for name, item in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def from_values(values: Mapping[str, Any]) -> ConfigDict:
  """Return a config with these values, typed and locked like those of `for_task`."""
  config = for_task(values['task'], modality=values['model']['modality'])
  config.update(values)
  return config
