"""The parts of a run, made from its config: tokenizer, task, model, mesh and data."""

import dataclasses
import itertools
from typing import Any, NamedTuple
from unicodedata import normalize

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from transformer.data import corpora, pipeline, tokenizers
from transformer.data.folders import where_published
from transformer.data.lookup import is_reference, lookup
from transformer.functional import platforms
from transformer.modules.adapters import adapt
from transformer.modules.config import ModelConfig
from transformer.tasks.task import Task
from transformer.training import optimizers, sharding
from transformer.training.checkpoints import Checkpoints, digest
from transformer.training.checks import check, processor_of
from transformer.training.config import find_task
from transformer.training.sections import Data, Settings
from transformer.training.step import Model
from transformer.training.workdir import Workdir


class Experiment(NamedTuple):
  """The parts of a run; nothing is trained or loaded yet."""

  settings: Settings
  task: Task
  model: ModelConfig
  mesh: Mesh

  def source(self, split: str) -> corpora.Source:
    """Return the examples of a split."""
    data = self.settings.data
    limit = data.limit if split == data.train else 0
    return _load(data, split, limit)

  def batches(self, split: str) -> pipeline.Batches:
    """Return the batches of a split: shuffled for training, in order for the others."""
    data, train = self.settings.data, split == self.settings.data.train
    columns = self.task.columns(self.source(split))
    ragged = [c.lengths for c in columns.values() if isinstance(c, pipeline.Ragged)]
    count = len(next(iter(columns.values())))
    lengths = np.stack(ragged or [np.ones(count, np.int64)], axis=1)
    short = np.flatnonzero(lengths.max(axis=1) <= data.max_length)
    self._log_left_out(split, columns, count, count - len(short))
    if not len(short):
      raise ValueError(
        f'every example of {split} is longer than data.max_length={data.max_length} tokens'
      )
    if data.packing and not self.task.supports_packing:
      raise ValueError(
        f'data.packing=True, but {self.settings.task} needs a row for each example here: set it to '
        'False'
      )
    if not ragged:
      rows = pipeline.unpacked(len(short))
    elif data.packing:
      rows = pipeline.pack(lengths[short], length=data.max_length, seed=self.settings.seed)
    else:
      rows = pipeline.bucket(lengths[short], buckets=data.buckets)
    sizes = [c.shape[1] for c in columns.values() if isinstance(c, np.ndarray) and c.ndim > 1]
    sizes += np.unique(rows.shapes).tolist() if ragged else []
    if any(size % self.mesh.shape['sequence'] for size in sizes):
      raise ValueError(
        f'mesh.sequence={self.mesh.shape["sequence"]} does not divide the lengths of the batches, '
        f'{sizes}: choose a divisor, or another data.max_length'
      )
    microbatches = self.settings.train.microbatches if train else 1
    return pipeline.Batches(
      columns,
      rows._replace(members=[short[m] for m in rows.members]),
      tokens=data.batch_tokens,
      multiple=sharding.batch_parts(self.mesh) * microbatches,
      seed=self.settings.seed if train else None,
      process=(jax.process_index(), jax.process_count()),
    )

  def _log_left_out(self, split: str, columns: pipeline.Columns, count: int, long: int):
    """Log how many of the `count` examples of a split are left out, cut or without effect."""
    train = split == self.settings.data.train
    if long:
      log = logging.info if train else logging.warning  # metrics of teacher forcing leave them out
      text = '%d of %d examples of %s are longer than data.max_length=%d tokens and left out'
      log(text, long, count, split, self.settings.data.max_length)
    texts = columns.get('targets') if 'targets' in self.task.text_fields else None
    if isinstance(texts, pipeline.Ragged) and (lost := texts.count_with(self.task.tokenizer.unk)):
      text = '%d of %d targets of %s have characters that the tokenizer cannot write (<unk>)'
      logging.warning(text, lost, count, split)
    if hasattr(self.task, 'warnings'):
      for warning in self.task.warnings(columns, self.model, training=train):
        logging.warning('%s: %s', split, warning)

  def try_evaluation(self):
    """Encode one example of each split, so that errors of evaluation come before training.

    Raises:
      ValueError, OSError, ModuleNotFoundError: what evaluation would raise then.
    """
    config, data = self.settings.eval, self.settings.data
    answers = config.metrics or config.samples or config.by
    for split in (data.val, *data.test):
      source = self.source(split)
      if not len(source):
        raise ValueError(f'the split {split} has no example: leave it out, or give it some')
      if config.by and config.by not in source[0]:
        logging.warning('eval.by=%s is no field of the examples of %s', config.by, split)
      if answers:
        request, _ = self.task.example(source[0])
        self.task.processor.encode_example(request, truncate=True)
    if answers and hasattr(self.task, 'open'):
      self.task.open()

  def init(self, key: jax.Array) -> Model:
    """Return a model with random parameters, and with adapters if the config has some."""
    model = self.task.init(self.model, key)
    for i, (pattern, rank) in enumerate(self.settings.train.adapters, start=1):
      adapt(model, pattern, rank, jax.random.fold_in(key, i))
    return model

  @property
  def lr_multipliers(self) -> tuple[tuple[str, float], ...]:
    """The learning rate multipliers; with adapters, parameters that match none are frozen."""
    multipliers = self.settings.optimizer['lr_multipliers']
    if not self.settings.train.adapters:
      return multipliers
    return (('/adapter/', 1.0), *multipliers, ('', 0.0))

  def abstract_model(self) -> Model:
    """Return the shapes and shardings of the parameters, without arrays."""
    return with_shardings(jax.eval_shape(self.init, jax.random.key(0)), self.mesh)


def prepare(config: dict[str, Any], workdir: Workdir) -> Experiment:
  """Return a run to train: check the config, store it, and train the tokenizer if there is none.

  Raises:
    ValueError, FileNotFoundError: what is wrong with the config, the data or the workdir.
  """
  settings = check(config)
  mesh, data = sharding.make_mesh(**settings.mesh), settings.data
  settings = _with_dtype(settings, workdir, mesh)
  logging.info('%s in %s: reading %s', settings.experiment, workdir, data.dir or data.name)
  for split in (data.val, *data.test):
    _load(data, split)  # finds a missing file before the tokenizer is trained
  source = _load(data, data.train, data.limit)
  if is_reference(data.name):
    _check_own_corpus(settings, source)
  if settings.loss.get('classes') == ():
    classes = {normalize('NFC', source[i]['targets']) for i in range(len(source))}
    settings = dataclasses.replace(
      settings, loss=settings.loss | {'classes': tuple(sorted(classes))}
    )
    logging.info('%d classes: %s', len(classes), ', '.join(settings.loss['classes']))
  if jax.process_index() == 0:
    workdir.lock()
  workdir.compare(settings.as_dict())
  _compare_steps(settings, workdir)
  stored = workdir.tokenizer()
  tokenizer = _new_tokenizer(settings, source) if stored is None else stored
  # before the config is stored: a task may raise an error, and the folder is then still free
  experiment = _experiment(settings, tokenizer, mesh)
  experiment.try_evaluation()
  workdir.claim(settings.as_dict())
  if stored is None:
    workdir.save_tokenizer(tokenizer)
  return experiment


def _with_dtype(settings: Settings, workdir: Workdir, mesh: Mesh) -> Settings:
  """Return the settings with a dtype for model.dtype=auto: that of the run, if it goes on."""
  if settings.model['dtype'] != 'auto':
    return settings
  if workdir.has_config():
    dtype = workdir.read_config()['model']['dtype']
  else:
    dtype = platforms.matmul_dtype(platforms.of_device(mesh.devices.flat[0]))
  logging.info('model.dtype=auto is %s here', dtype)
  return dataclasses.replace(settings, model=settings.model | {'dtype': dtype})


def _compare_steps(settings: Settings, workdir: Workdir):
  """Say what a run that goes on makes of `train.steps`.

  Raises:
    ValueError: it has more steps already.
  """
  made, steps = workdir.last_step(), settings.train.steps
  if made > steps:
    raise ValueError(
      f'{workdir} has {made} steps already, more than train.steps={steps}: its model is not that '
      f'of step {steps}. Give --config.train.steps={made} or more, or another --workdir'
    )
  if made == steps:
    logging.info('the run has its %d steps already, and is only evaluated', steps)
  before = workdir.read_config()['train']['steps'] if made else steps
  if before == steps:
    return
  kwargs = dict(settings.optimizer, width=settings.model['width'])
  rates = [float(optimizers.build(**kwargs, steps=n)[1](made)) for n in (before, steps)]
  if rates[0] != rates[1]:
    logging.warning(
      'train.steps was %d and is %d: the learning rate of optimizer.schedule=%s goes from %.3g to '
      '%.3g after step %d, and the run is not one of %d steps from its start',
      *(before, steps, settings.optimizer['schedule'], *rates, made, steps),
    )


def _new_tokenizer(settings: Settings, source: corpora.Source) -> tokenizers.Tokenizer:
  """Return the tokenizer of the model to start from, or train one on the texts of examples."""
  if settings.warm_start:
    tokenizer = Workdir(settings.warm_start).tokenizer()  # published models call the file the same
    if tokenizer is None:
      raise FileNotFoundError(
        f'config.warm_start={settings.warm_start} has no tokenizer.json, without which its '
        "embeddings mean nothing: train that run first, as the experiment's file says, or give the "
        'folder of another, or of a published model with that file'
      )
    return tokenizer
  fields = _text_fields(settings)
  texts = ([source[i][field] for field in fields] for i in range(len(source)))
  if settings.task == 'seq2seq':  # which leaves out examples of more tokens, and so of more words
    longest = settings.data.max_length
    texts = (pair for pair in texts if all(len(text.split()) < longest for text in pair))
  return tokenizers.train(itertools.chain.from_iterable(texts), **settings.tokenizer)


def _text_fields(settings: Settings) -> tuple[str, ...]:
  """Return the fields of an example that are text."""
  tokens = settings.model['modality'] == 'tokens'
  return find_task(settings.task).text_fields if tokens else ('targets',)


def _check_own_corpus(settings: Settings, source: Any):
  """Raise ValueError where the examples of a function of the user's are not what the task needs."""
  name, fields = settings.data.name, _text_fields(settings)
  if not len(source):
    raise ValueError(f'data.name={name} returned no example for {settings.data.train}')
  example = source[0]
  there = {key: type(value).__name__ for key, value in dict(example).items()}
  if any(there.get(field) != 'str' for field in fields):
    raise ValueError(
      f'data.name={name}: its first example has {there}, and config.task={settings.task} needs '
      f'the texts {", ".join(fields)}'
    )


def reopen(config: dict[str, Any], workdir: Workdir, mesh: Mesh | None = None) -> Experiment:
  """Return a run that was prepared before, on its own mesh if no other is given.

  Raises:
    FileNotFoundError: there is none in the workdir.
  """
  settings, tokenizer = check(config), workdir.tokenizer()
  if tokenizer is None:
    raise FileNotFoundError(f'there is no trained model in {workdir}: train one first')
  mesh = mesh or sharding.make_mesh(**settings.mesh)
  return _experiment(_with_dtype(settings, workdir, mesh), tokenizer, mesh)


def restore_best(experiment: Experiment, workdir: Workdir) -> tuple[Model, int]:
  """Return the best model of a run, and its step."""
  with Checkpoints(workdir.path) as checkpoints:
    model, best = checkpoints.restore(experiment.abstract_model(), which='best'), checkpoints.best
  return model, best[0] if best else 0


def fingerprint(columns: pipeline.Columns) -> str:
  """Return a hash of all examples, in their order."""
  arrays = {
    name: (c.tokens, c.offsets) if isinstance(c, pipeline.Ragged) else c
    for name, c in columns.items()
  }
  return digest(arrays)


def with_shardings(tree: Any, mesh: Mesh) -> Any:
  """Return the shapes and shardings of the arrays of a tree."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    tree,
    sharding.shardings(tree, mesh),
  )


def _load(data: Data, split: str, limit: int = 0) -> corpora.Source:
  name = lookup('data.name', data.name, {}) if is_reference(data.name) else data.name
  try:
    return corpora.load(
      name, split, dir=data.dir, inputs=data.source, targets=data.target, limit=limit
    )
  except FileNotFoundError as error:
    if published := where_published(data.dir):
      raise FileNotFoundError(
        f'{error} The data set is published at {published}. Put it in {data.dir}, or set '
        '--config.data.dir, or the environment variable TRANSFORMER_DATA to the folder above it'
      ) from error
    raise


def _experiment(settings: Settings, tokenizer: Any, mesh: Mesh) -> Experiment:
  given = dict(tokenizer=tokenizer, decoding=settings.decode, max_length=settings.data.max_length)
  if processor := processor_of(settings):
    given['input_processor'] = processor
  task = find_task(settings.task)(**given, **settings.loss)
  platform = platforms.of_device(mesh.devices.flat[0])
  model = ModelConfig(vocab=tokenizer.size, **settings.model, platform=platform)
  return Experiment(settings, task, model, mesh)
