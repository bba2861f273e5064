"""Every key of an experiment's config, what it means, and the check that finds a wrong one.

A section of the config is passed whole to one dataclass or function, so a key that nobody reads
cannot be written and a key that is read cannot be left out.
"""

import dataclasses
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformer.data import tokenizers
from transformer.data.processors import PROCESSORS
from transformer.evaluation import metrics
from transformer.evaluation.evaluate import METRICS
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification
from transformer.tasks.ctc import CTC, JointCTC
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.masked_lm import MaskedLM
from transformer.tasks.question_answering import QuestionAnswering
from transformer.tasks.retrieval import Retrieval
from transformer.tasks.seq2seq import Seq2Seq
from transformer.tasks.span_corruption import SpanCorruption
from transformer.tasks.text_to_speech import TextToSpeech
from transformer.training import optimizers, sharding

TASKS: dict[str, Any] = {
  'seq2seq': Seq2Seq,
  'language_model': LanguageModel,
  'masked_lm': MaskedLM,
  'span_corruption': SpanCorruption,
  'classification': Classification,
  'ctc': CTC,
  'joint_ctc': JointCTC,
  'question_answering': QuestionAnswering,
  'retrieval': Retrieval,
  'text_to_speech': TextToSpeech,
}


WITH_DECODER = ('seq2seq', 'joint_ctc', 'span_corruption', 'text_to_speech')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Where examples come from and how they become batches.

  Attributes:
    name: one of data.corpora.NAMES, or a TFDS name.
    dir: folder or file of it, where it is not generated.
    inputs, targets: names of the two sides: languages, columns, features.
    train, val: splits to learn from and to choose by.
    test: splits to report after training, separated by commas.
    limit: use only so many training examples; 0 means all.
    length: longest example in tokens, end token included; longer ones are left out and counted.
    tokens: budget of a batch in positions of its longer side, padding included; in examples where
      nothing has a length, as images and their labels.
    buckets: at most so many shapes of batches.
    packing: put several examples in a row of `length` instead of padding each.
  """

  name: str
  dir: str
  inputs: str
  targets: str
  train: str
  val: str
  test: str
  limit: int
  length: int
  tokens: int
  buckets: int
  packing: bool

  def __post_init__(self):
    _at_least(0, 'data', self, 'limit')
    _at_least(1, 'data', self, 'length', 'tokens', 'buckets')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """The loop.

  Attributes:
    steps: updates in all.
    steps_per_call: updates that the device makes between two words with the host, where batches
      have one shape; more than 1 helps models whose steps take less than about 50 ms.
    microbatches: parts a batch is run in, to save memory; the gradient stays the same.
    ema: decay of a moving average of parameters that is evaluated in their place; 0 for none.
    average: evaluate the mean of so many last checkpoints; 1 for the last one alone.
    log_every_steps, save_every_steps: how often.
    keep: checkpoints kept beside the best one.
    adapters: pattern=rank gives the layers whose path fits low-rank adapters, and then only these
      are learnt, and what optimizer.rates names; see modules.adapters. '' for none.
  """

  steps: int
  steps_per_call: int
  microbatches: int
  ema: float
  average: int
  log_every_steps: int
  save_every_steps: int
  keep: int
  adapters: str

  def __post_init__(self):
    try:
      pattern, _, rank = self.adapters.rpartition('=')
      good = not self.adapters or bool(re.compile(pattern) and pattern and int(rank) > 0)
    except (re.error, ValueError):
      good = False
    if not good:
      raise ValueError(
        f'train.adapters={self.adapters!r} is no pattern=rank: write query|value=8, or nothing'
      )
    _at_least(1, 'train', self, 'steps', 'steps_per_call', 'microbatches', 'average', 'keep')
    _at_least(1, 'train', self, 'log_every_steps', 'save_every_steps')
    if not 0 <= self.ema < 1:
      raise ValueError(f'train.ema={self.ema} is a decay: give 0 <= ema < 1, such as 0.999')
    if self.average > self.keep:
      raise ValueError(
        f'train.average={self.average} needs as many checkpoints: set train.keep={self.average}'
      )
    if self.average > 1 and self.ema:
      raise ValueError(
        'train.average and train.ema both average parameters: set one of them to off'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """How a model is judged.

  Attributes:
    every_steps: how often on the validation split while training.
    limit: lines decoded then; 0 means all. The test splits are always decoded whole.
    samples: lines shown.
    metrics: text metrics, separated by commas; see METRICS.
    best: the validation metric by which the best checkpoint is chosen.
    by: an extra field of the examples to report exact match by, such as locale; '' for none.
  """

  every_steps: int
  limit: int
  samples: int
  metrics: str
  best: str
  by: str

  def __post_init__(self):
    _at_least(0, 'eval', self, 'limit', 'samples')
    _at_least(1, 'eval', self, 'every_steps')
    for name in names(self.metrics):
      _one_of('eval.metrics', name, METRICS)
      if name in metrics.LIBRARIES:
        importlib.import_module(metrics.LIBRARIES[name])


@dataclasses.dataclass(frozen=True)
class Settings:
  """A config, checked and typed. `model` lacks the vocabulary, which the tokenizer knows."""

  task: str
  seed: int
  init: str
  data: Data
  inputs: dict[str, Any]
  tokenizer: dict[str, Any]
  model: dict[str, Any]
  loss: dict[str, Any]
  optimizer: dict[str, Any]
  train: Train
  eval: Evaluation
  decode: Any  # of the task's own type
  mesh: dict[str, int]


# Who reads each section whatever the task, and the arguments that do not come from the config.
COMMON: dict[str, tuple[Callable, tuple[str, ...]]] = {
  'data': (Data, ()),
  'tokenizer': (tokenizers.train, ('texts',)),
  'model': (ModelConfig, ('vocab',)),
  'optimizer': (optimizers.build, ('steps', 'width')),
  'train': (Train, ()),
  'eval': (Evaluation, ()),
  'mesh': (sharding.make_mesh, ()),
}
SECTIONS = (*COMMON, 'inputs', 'loss', 'decode')


def readers(task: str, inputs: str = 'tokens') -> dict[str, tuple[Callable, tuple[str, ...]]]:
  """Who reads each section, and the arguments that do not come from the config.

  Args:
    task: of TASKS.
    inputs: what the model reads, of inputs.PROCESSORS.
  """
  given = ('tokenizer', 'decoding', 'length', 'inputs')
  decoding = get_type_hints(TASKS[task])['decoding']
  return dict(
    COMMON,
    inputs=(PROCESSORS[inputs], ('tokenizer', 'longest', 'start', 'cuts', 'stem')),
    loss=(TASKS[task], given),
    decode=(decoding, ()),
  )


def keys(section: str, task: str, inputs: str = 'tokens') -> list[str]:
  """The keys of a section, from the signature of who reads it."""
  reader, given = readers(task, inputs)[section]
  return [name for name in inspect.signature(reader).parameters if name not in given]


def check(config: Mapping[str, Any]) -> Settings:
  """The config as Settings.

  Raises:
    ValueError: a key is unknown, missing or contradictory; names it and the nearest one there is.
  """
  _same_keys('config', config, ['experiment', 'task', 'seed', 'init', *SECTIONS])
  _one_of('config.task', config['task'], TASKS)
  if not isinstance(config['seed'], int) or config['seed'] < 0:
    raise ValueError(f'config.seed={config["seed"]!r} must be a whole number, at least 0')
  if not isinstance(config['init'], str):
    raise ValueError(f'config.init={config["init"]!r} must be a folder, or nothing')
  for section in SECTIONS:
    if not isinstance(config[section], Mapping):
      raise ValueError(f'config.{section}={config[section]!r} must be a section of keys')
  sections: dict[str, Any] = {}
  inputs = config['model'].get('inputs', 'tokens')
  _one_of('model.inputs', inputs, PROCESSORS)
  for section, (reader, _) in readers(config['task'], inputs).items():
    _same_keys(f'config.{section}', config[section], keys(section, config['task'], inputs))
    sections[section] = _typed(section, config[section], reader)
  ModelConfig(vocab=1, **sections['model'])  # raises what is wrong with it
  optimizers.build(**sections['optimizer'], steps=1, width=1)  # the same
  smoothing, z_loss = (sections['loss'].get(name, 0) for name in ('label_smoothing', 'z_loss'))
  if not 0 <= smoothing < 1 or z_loss < 0:
    raise ValueError(
      f'loss={sections["loss"]}: give 0 <= label_smoothing < 1, such as 0.1, and z_loss >= 0'
    )
  typed: dict[str, Any] = dict(
    sections,
    data=Data(**sections['data']),
    train=Train(**sections['train']),
    eval=Evaluation(**sections['eval']),
    decode=readers(config['task'])['decode'][0](**sections['decode']),
  )
  settings = Settings(task=config['task'], seed=config['seed'], init=config['init'], **typed)
  figures = [*TASKS[settings.task].figures, *names(settings.eval.metrics)]
  _one_of('eval.best', settings.eval.best, figures)
  for name, every in (
    ('train.save_every_steps', settings.train.save_every_steps),
    ('eval.every_steps', settings.eval.every_steps),
  ):
    if every % settings.train.steps_per_call:
      raise ValueError(
        f'{name}={every} is no multiple of train.steps_per_call={settings.train.steps_per_call}: '
        'the model is not seen between the steps of a call'
      )
  if inputs != 'tokens' and 'inputs' not in inspect.signature(TASKS[settings.task]).parameters:
    raise ValueError(f'model.inputs={inputs}, but config.task={settings.task} reads tokens alone')
  longest = settings.data.length
  if reader := reader_of(settings):
    if settings.model['features'] != reader.features:
      raise ValueError(
        f'model.features={settings.model["features"]}, but what inputs={settings.inputs} describes '
        f'has {reader.features} numbers in each of its {inputs}: set it to that'
      )
    longest = reader.positions
  if settings.task in WITH_DECODER:  # others never look further than they learnt to
    longest = max(longest + (settings.task == 'span_corruption'), settings.decode.length)
  if settings.model['position'] == 'learned' and longest > settings.model['length']:
    raise ValueError(
      f'model.length={settings.model["length"]} learned positions are fewer than '
      f'data.length={settings.data.length} or decode.length: set it to at least {longest}'
    )
  return settings


def reader_of(settings: Settings) -> Any:
  """What reads images or sounds; None where texts are read.

  Raises:
    ValueError: what is wrong with the section 'inputs'.
  """
  if settings.model['inputs'] == 'tokens':
    return None
  made, _ = readers(settings.task, settings.model['inputs'])['inputs']
  known = {'longest': settings.data.length, 'stem': settings.model['stem']}
  wanted = inspect.signature(made).parameters
  given = {name: value for name, value in known.items() if name in wanted}
  return made(**settings.inputs, **given)


def names(text: str) -> list[str]:
  """The names of a list separated by commas."""
  return [name.strip() for name in text.split(',') if name.strip()]


def _same_keys(where: str, given: Mapping[str, Any], known: list[str]):
  for key in given:
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1, cutoff=0)
      raise ValueError(f'{where}.{key} is unknown: did you mean {where}.{near[0]}?')
  for key in known:
    if key not in given:
      raise ValueError(f'{where}.{key} is missing: give every key a value in the config file')


def _typed(section: str, given: Mapping[str, Any], reader: Callable) -> dict[str, Any]:
  """The section with whole numbers as floats where these are read.

  Raises:
    ValueError: a number, text or truth value is given where another is read.
  """
  typed = dict(given)
  for name, value in given.items():
    wanted = inspect.signature(reader).parameters[name].annotation
    if get_origin(wanted) is Literal:
      _one_of(f'{section}.{name}', value, get_args(wanted))
    elif wanted is float and type(value) is int:
      typed[name] = float(value)
    elif wanted in (bool, int, float, str) and type(value) is not wanted:
      raise ValueError(f'{section}.{name}={value!r} must be of type {wanted.__name__}')
  return typed


def _at_least(least: int, section: str, given: Any, *fields: str):
  for name in fields:
    if getattr(given, name) < least:
      raise ValueError(f'{section}.{name}={getattr(given, name)} must be at least {least}')


def _one_of(where: str, value: Any, known: Iterable[str]):
  if value not in known:
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0)
    raise ValueError(f'{where}={value!r} is none of {", ".join(known)}: did you mean {near[0]!r}?')
