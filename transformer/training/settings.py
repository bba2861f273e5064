"""Every key of an experiment's config, what it means, and the check that finds a wrong one.

A section of the config is passed whole to one dataclass or function, so a key that nobody reads
cannot be written and a key that is read cannot be left out.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transformer.data import tokenizers
from transformer.modules.config import ModelConfig
from transformer.tasks.sequence import Decoding, SequenceToSequence
from transformer.training import optimizers, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Where examples come from and how they become batches.

  Attributes:
    name: dates, copy, reverse, sort, parallel, pairs, or a TFDS name; see data.corpora.
    dir: folder or file of it, where it is not generated.
    inputs, targets: names of the two sides: languages, columns, features.
    train, val: splits to learn from and to choose by.
    test: splits to report after training, separated by commas.
    limit: use only so many training examples; 0 means all.
    length: longest example in tokens, end token included; longer ones are left out and counted.
    tokens: budget of a batch in positions of its longer side, padding included.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """The loop.

  Attributes:
    steps: updates in all.
    microbatches: parts a batch is run in, to save memory; the gradient stays the same.
    ema: decay of a moving average of parameters that is evaluated in their place; 0 for none.
    average: evaluate the mean of so many last checkpoints; 1 for the last one alone.
    log_every_steps, save_every_steps: how often.
    keep: checkpoints kept beside the best one.
  """

  steps: int
  microbatches: int
  ema: float
  average: int
  log_every_steps: int
  save_every_steps: int
  keep: int

  def __post_init__(self):
    for name in ('steps', 'microbatches', 'average', 'log_every_steps', 'save_every_steps', 'keep'):
      if getattr(self, name) < 1:
        raise ValueError(f'train.{name}={getattr(self, name)} must be at least 1')
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
    metrics: text metrics, separated by commas; see tasks.metrics.
    best: the validation metric by which the best checkpoint is chosen.
    by: an extra field of the examples to report exact match by, such as locale; '' for none.
  """

  every_steps: int
  limit: int
  samples: int
  metrics: str
  best: str
  by: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """A config, checked and typed. `model` lacks the vocabulary, which the tokenizer knows."""

  task: str
  seed: int
  data: Data
  tokenizer: dict[str, Any]
  model: dict[str, Any]
  loss: dict[str, Any]
  optimizer: dict[str, Any]
  train: Train
  eval: Evaluation
  decode: Decoding
  mesh: dict[str, int]


# Who reads each section, and the arguments that do not come from the config.
SECTIONS: dict[str, tuple[Callable, tuple[str, ...]]] = {
  'data': (Data, ()),
  'tokenizer': (tokenizers.train, ('texts',)),
  'model': (ModelConfig, ('vocab',)),
  'loss': (SequenceToSequence, ('tokenizer', 'decoding', 'length')),
  'optimizer': (optimizers.build, ('steps', 'width')),
  'train': (Train, ()),
  'eval': (Evaluation, ()),
  'decode': (Decoding, ()),
  'mesh': (sharding.make_mesh, ()),
}


def keys(section: str) -> list[str]:
  """The keys of a section, from the signature of who reads it."""
  reader, given = SECTIONS[section]
  return [name for name in inspect.signature(reader).parameters if name not in given]


def check(config: Mapping[str, Any]) -> Settings:
  """The config as Settings.

  Raises:
    ValueError: a key is unknown, missing or contradictory; names it and the nearest one there is.
  """
  _same_keys('config', config, ['experiment', 'task', 'seed', *SECTIONS])
  if config['task'] != 'sequence':
    raise ValueError(f"config.task={config['task']!r} is unknown: there is 'sequence'")
  for section in SECTIONS:
    _same_keys(f'config.{section}', config[section], keys(section))
  sections = {name: dict(config[name]) for name in SECTIONS}
  ModelConfig(vocab=1, **sections['model'])  # raises what is wrong with it
  build_check = dict(sections['optimizer'], steps=1, width=1)
  optimizers.build(**build_check)
  settings = Settings(
    task=config['task'],
    seed=config['seed'],
    **dict(
      sections,
      data=Data(**sections['data']),
      train=Train(**sections['train']),
      eval=Evaluation(**sections['eval']),
      decode=Decoding(**sections['decode']),
    ),
  )
  if settings.model['position'] == 'learned' and settings.data.length > settings.model['length']:
    raise ValueError(
      f"data.length={settings.data.length} is more than the model's learned positions: set "
      f'model.length to at least that'
    )
  return settings


def _same_keys(where: str, given: Mapping[str, Any], known: list[str]):
  for key in given:
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1, cutoff=0)
      raise ValueError(f'{where}.{key} is unknown: did you mean {where}.{near[0]}?')
  for key in known:
    if key not in given:
      raise ValueError(f'{where}.{key} is missing: give every key a value in the config file')
