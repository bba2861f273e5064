"""The keys of a config, their defaults and meanings; see `checks` for what values they may have.

Each section of a config is the keyword arguments of one dataclass or function, its reader. The
reader's signature gives the keys, types and defaults, and its docstring the meanings.
"""

import difflib
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
NOT_FROM_CONFIG = {  # arguments of readers that a run gives itself
  'processor': ('tokenizer', 'max_length', 'start', 'truncate', 'stem'),
  'tokenizer': ('texts',),
  'model': ('vocab', 'pad', 'platform'),
  'loss': ('tokenizer', 'decoding', 'max_length', 'input_processor'),
  'optimizer': ('steps', 'width'),
  'mesh': ('over',),
}
READERS: dict[str, Callable] = {  # of the sections that are the same for every task and modality
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
# Members of a task, but for the tokenizer and the settings of decoding, which a run gives it.
MEMBERS = {name for name in dir(Task) if name[0] != '_'} - {'decoding'}
MEMBERS |= {'text_fields', 'metrics', 'supports_packing'}

FORMAT = 2  # of config.json in the folder of a run; the first edition's has no number
# By format, the keys that it added and whose default would change what an older run computes, with
# the value that does not: {3: {'model.new_key': value}}.
ADDED: dict[int, dict[str, Any]] = {}


class Key(NamedTuple):
  """A key of a config.

  Attributes:
    type: of its value.
    default: REQUIRED where there is none; None where it depends on another key.
    meaning: from the docstring of its reader.
  """

  type: Any
  default: Any
  meaning: str


def find_task(name: str) -> Any:
  """Return the class of a task: a name of TASKS, or 'module:name' of a class of your own.

  Raises:
    ValueError: there is none of this name, or it lacks a member that a task must have.
  """
  found = lookup('config.task', name, TASKS)
  if missing := sorted(member for member in MEMBERS if not hasattr(found, member)):
    raise ValueError(
      f'config.task={name!r} has no {", ".join(missing)}: add what transformer/tasks/task.py and '
      'transformer/inference/predict.py say of a task'
    )
  return found


def for_task(task: str | type, *, modality: str = 'tokens') -> ConfigDict:
  """Return a config with every key at its default; keys without one are None until they are set.

  Args:
    task: a name of TASKS, a class of your own, or 'module:name' of it.
    modality: what the encoder reads: a name of PROCESSORS.
  """
  name = task if isinstance(task, str) else reference(task)
  values = {
    section: {key: _initial(found) for key, found in keys(section, name, modality).items()}
    for section in ('', *SECTIONS)
  }
  config = ConfigDict(values.pop('') | values)
  config.task, config.model.modality = name, modality
  return config.lock()


def _initial(key: Key) -> Any:
  """Return the default, or a placeholder of its type where there is none."""
  if key.default is not None and key.default is not REQUIRED:
    return key.default
  origin = get_origin(key.type)
  return config_dict.placeholder(str if origin is Literal else origin or key.type)


def keys(section: str, task: str, modality: str = 'tokens') -> dict[str, Key]:
  """Return the keys of a section by name; of those outside of any section for ''."""
  read_by = reader(section, task, modality)
  hints, meanings = get_type_hints(read_by), _meanings(read_by)
  found: dict[str, Key] = {}
  for name, parameter in inspect.signature(read_by).parameters.items():
    if parameter.kind == parameter.VAR_KEYWORD:
      found |= _optimizer_options()
    elif name in TOP if not section else name not in NOT_FROM_CONFIG.get(section, ()):
      found[name] = Key(hints[name], parameter.default, meanings.get(name, ''))
  return found


def reader(section: str, task: str, modality: str) -> Callable:
  """Return the dataclass or function that takes the keys of a section as arguments."""
  if section == 'processor':
    return lookup('model.modality', modality, PROCESSORS)
  if section in READERS:
    return READERS[section]
  objective = find_task(task)
  return objective if section == 'loss' else get_type_hints(objective)['decoding']


def _optimizer_options() -> dict[str, Key]:
  """Return the keys of all optimizers and schedules; their defaults depend on the chosen ones."""
  found: dict[str, Key] = {}
  for name, function in {**optimizers.OPTIMIZERS, **optimizers.SCHEDULES}.items():
    hints, meanings = get_type_hints(function), _meanings(function)
    for key, parameter in inspect.signature(function).parameters.items():
      if parameter.default is not REQUIRED:
        meaning = f'of {name}, {parameter.default} by default: {meanings.get(key, "")}'
        before = f'{found[key].meaning} ' if key in found else ''
        found[key] = Key(hints[key], None, before + meaning)
  return found


def _meanings(read_by: Callable) -> dict[str, str]:
  """Return the texts of the arguments in a docstring, from its section Args or Attributes."""
  found: dict[str, str] = {}
  for each in reversed(inspect.getmro(read_by)) if inspect.isclass(read_by) else [read_by]:
    part = re.split(r'^(?:Args|Attributes):\n', inspect.getdoc(each) or '', flags=re.MULTILINE)
    entries = re.split(r'^\S', part[-1] if len(part) > 1 else '', flags=re.MULTILINE)[0]
    for names, text in re.findall(
      r'^  (\w[\w, ]*): (.*(?:\n    .*)*)', entries, flags=re.MULTILINE
    ):
      found |= dict.fromkeys(names.split(', '), ' '.join(text.split()))
  return found


def describe(config: Mapping[str, Any]) -> str:
  """Return every key with its value, type, default and meaning, as text."""
  lines = []
  for section in ('', *SECTIONS):
    values, prefix = (config[section], f'{section}.') if section else (config, '')
    for name, key in keys(section, config['task'], config['model']['modality']).items():
      lines.append(f'{prefix}{name} = {values[name]!r}  ({_about(key)})')
      lines += textwrap.wrap(key.meaning, 100, initial_indent='    ', subsequent_indent='    ')
  return '\n'.join(lines)


def _about(key: Key) -> str:
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


def same_keys(where: str, given: Mapping[str, Any], known: Iterable[str]):
  """Raise ValueError for a key that is unknown, with the nearest one, or missing."""
  for key in given:
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1, cutoff=0)
      hint = f': did you mean {where}.{near[0]}?' if near else ''
      raise ValueError(f'{where}.{key} is unknown{hint}')
  for key in known:
    if key not in given:
      raise ValueError(f'{where}.{key} is missing: give it a value')


def upgrade(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Return the config of a stored run with the keys that did not exist when it was stored.

  Raises:
    ValueError: it is of the first edition or of a later version, or has an unknown key.
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
  """Return a value of JSON with tuples for its lists."""
  if isinstance(value, Mapping):
    return {name: _with_tuples(item) for name, item in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def from_values(values: Mapping[str, Any]) -> ConfigDict:
  """Return the config of these values, typed and locked as `for_task` returns it."""
  config = for_task(values['task'], modality=values['model']['modality'])
  config.update(values)
  return config
