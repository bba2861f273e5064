"""The parts of a run, made from its config: task, model, mesh and data."""

import contextlib
import dataclasses
import hashlib
import inspect
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from transformer.data import column_cache, corpora, pipeline
from transformer.data.folders import where_published
from transformer.data.lookup import is_reference, lookup
from transformer.data.prepared import Prepared, PreparedBatches
from transformer.evaluation.metrics import try_metric
from transformer.functional import platforms
from transformer.inference.decoding import Decoding, try_search
from transformer.modules.adapters import adapt
from transformer.modules.config import ModelConfig
from transformer.tasks.task import Task
from transformer.training import prepared_data, sharding
from transformer.training.checkpoints import Checkpoints, digest
from transformer.training.checks import check, processor_of
from transformer.training.config import find_task
from transformer.training.sections import Data, Settings
from transformer.training.step import Model
from transformer.training.workdir import Workdir

LARGE = 100_000  # examples of a validation split: from there on a warning


class Experiment(NamedTuple):
  """The parts of a run before training: no parameters, no data in memory.

  Attributes:
    settings: the checked config.
    task: with the tokenizer and the settings of decoding.
    model: the config of the model.
    mesh: of devices.
    cache: folder for encoded data; None to keep none.
  """

  settings: Settings
  task: Task
  model: ModelConfig
  mesh: Mesh
  cache: pathlib.Path | None = None

  def source(self, split: str) -> corpora.Source:
    """Return the examples of a split."""
    return load_split(self.settings.data, split)

  def batches(self, split: str) -> pipeline.Batches:
    """Return the batches of a split, shuffled for the training split, in order for others.

    Raises:
      ValueError: no example is short enough, the task cannot pack, or the mesh does not divide the
        lengths.
    """
    data, train = self.settings.data, split == self.settings.data.train
    sharing: Any = dict(
      tokens=data.batch_tokens,
      multiple=self.settings.train.microbatches if train else 1,
      parts=sharding.batch_parts(self.mesh),
      seed=self.settings.seed if train else None,
      process=sharding.share(self.mesh),
    )
    source = self.source(split)
    if isinstance(source, Prepared) and (train or source.info['index']):
      batches = prepared_data.open_batches(source, self.settings, self.task, **sharing)
      self._check_lengths([size for shape, _, _ in batches.groups for size in shape])
      return batches
    columns = pipeline.make_small(self._columns(split, source))
    ragged = [c.sizes for c in columns.values() if isinstance(c, pipeline.Ragged)]
    count = len(next(iter(columns.values())))
    lengths = np.stack(ragged or [np.ones(count, np.int64)], axis=1)
    kept = np.flatnonzero(lengths.max(axis=1) <= data.max_length)
    self._log_left_out(split, columns, count, count - len(kept))
    if not len(kept):
      raise ValueError(
        f'every example of {split} is longer than data.max_length={data.max_length} tokens'
      )
    if data.packing and not self.task.supports_packing:
      raise ValueError(
        f'data.packing=True, but {self.settings.task} needs a row for each example here: set it to '
        'False'
      )
    if not ragged:
      rows = pipeline.unpacked(len(kept))
    elif data.packing:
      rows = pipeline.pack(lengths[kept], length=data.max_length, seed=self.settings.seed)
    else:
      rows = pipeline.bucket(lengths[kept], buckets=data.buckets)
    arrays = [c for c in columns.values() if not isinstance(c, pipeline.Ragged)]
    sizes = [c.shape[1] for c in arrays if len(c.shape) > 1]
    sizes += np.unique(rows.shapes).tolist() if ragged else []
    self._check_lengths(sizes)
    rows = rows._replace(members=[kept[m] for m in rows.members])
    return pipeline.Batches(columns, rows, **sharing)

  def _columns(self, split: str, source: corpora.Source) -> pipeline.Columns:
    """Return the columns of a split, from the cache if they are there (texts only)."""
    if split == self.settings.data.train:
      logging.info('encoding %s examples of %s', f'{len(source):,}', split)
    if self.cache is None or self.model.modality != 'tokens':
      return self.task.columns(source)
    try:
      code = pathlib.Path(inspect.getsourcefile(type(self.task)) or '').read_bytes()
    except (OSError, TypeError):  # a class without a file (notebook): changes cannot be detected
      return self.task.columns(source)
    settings = [self.settings.task, self.settings.loss, self.settings.data.max_length]
    key = column_cache.source_key(source, settings, self.task.tokenizer.fingerprint, code)
    return column_cache.cached(self.cache, split, key, lambda: self.task.columns(source))

  def _check_lengths(self, sizes: list[int]):
    if any(size % self.mesh.shape['sequence'] for size in sizes):
      raise ValueError(
        f'mesh.sequence={self.mesh.shape["sequence"]} does not divide the lengths of the batches, '
        f'{sizes}: choose a divisor, or another data.max_length or processor.height'
      )

  def _log_left_out(self, split: str, columns: pipeline.Columns, count: int, long: int):
    """Log how many of the `count` examples are too long, not encodable, or have other faults."""
    train = split == self.settings.data.train
    if long:
      log = logging.info if train else logging.warning  # they are missing in metrics such as nll
      text = '%d of %d examples of %s are longer than data.max_length=%d tokens and left out'
      log(text, long, count, split, self.settings.data.max_length)
    texts = columns.get('targets') if 'targets' in self.task.text_fields else None
    tokenizer = self.task.tokenizer
    unk = None if tokenizer.unk in tokenizer.ends else tokenizer.unk  # one token in GPT's family
    if isinstance(texts, pipeline.Ragged) and (lost := texts.count_with(unk)):
      text = '%d of %d targets of %s have characters that the tokenizer cannot write (<unk>)'
      logging.warning(text, lost, count, split)
    if hasattr(self.task, 'warnings'):
      for warning in self.task.warnings(columns, self.model, training=train):
        logging.warning('%s: %s', split, warning)

  def try_evaluation(self):
    """Raise the errors of evaluation and of the final report now, before training.

    Encodes one example of each split and evaluates it against itself, makes the batches of the test
    splits, and searches once under the constraints of `decode`.

    Raises:
      ValueError, OSError, ModuleNotFoundError: as evaluation would.
    """
    config, data = self.settings.eval, self.settings.data
    answers = config.metrics or config.samples or config.by
    for split in (data.val, *data.test):
      source = self.source(split)
      if not len(source):
        raise ValueError(f'the split {split} has no example: leave it out, or give it some')
      if split == data.val and len(source) > LARGE:
        when = ', when the corpus is prepared' if data.name == 'prepared' else ''
        text = 'every evaluation reads all %d examples of %s: set data.val_limit, such as 2000%s'
        logging.warning(text, len(source), split, when)
      if config.by and config.by not in source[0]:
        logging.warning('eval.by=%s is no field of the examples of %s', config.by, split)
      if answers:
        request, reference = self.task.example(source[0])
        self.task.processor.encode_example(request, truncate=True)
        for name in config.metrics if reference else ():
          try_metric(name, reference)
    for split in data.test:
      self.batches(split)
    if answers and hasattr(self.task, 'open'):
      self.task.open()
    if isinstance(decoding := self.settings.decode, Decoding):
      try_search(decoding, self.model.vocab, self.task.tokenizer.ends)

  def init(self, key: jax.Array) -> Model:
    """Return a model with random parameters, and with the adapters of train.adapters."""
    model = self.task.init(self.model, key)
    for i, (pattern, rank) in enumerate(self.settings.train.adapters, start=1):
      adapt(model, pattern, rank, jax.random.fold_in(key, i))
    return model

  @property
  def lr_multipliers(self) -> tuple[tuple[str, float], ...]:
    """The (pattern, factor) pairs of learning rates; with adapters, the other parameters get 0."""
    multipliers = self.settings.optimizer['lr_multipliers']
    if not self.settings.train.adapters:
      return multipliers
    return (('/adapter/', 1.0), *multipliers, ('', 0.0))

  def abstract_model(self) -> Model:
    """Return the model with ShapeDtypeStructs, which have shardings, in place of arrays."""
    return with_shardings(jax.eval_shape(self.init, jax.random.key(0)), self.mesh)


def with_dtype(settings: Settings, workdir: Workdir, mesh: Mesh) -> Settings:
  """Return the settings with model.dtype=auto replaced by a dtype.

  It is the dtype of the stored run if there is one, otherwise the fastest of the device.
  """
  if settings.model['dtype'] != 'auto':
    return settings
  if workdir.has_config():
    dtype = workdir.read_config()['model']['dtype']
  else:
    dtype = platforms.matmul_dtype(platforms.of_device(mesh.devices.flat[0]))
  logging.info('model.dtype=auto is %s here', dtype)
  return dataclasses.replace(settings, model=settings.model | {'dtype': dtype})


def reopen(config: dict[str, Any], workdir: Workdir, mesh: Mesh | None = None) -> Experiment:
  """Return the run that is stored in a workdir.

  Args:
    config: of the run, maybe changed by flags.
    workdir: of the run.
    mesh: by default that of the config; if the number of devices is another one now, all of them
      are used as replicas.

  Raises:
    FileNotFoundError: there is no run in the workdir.
  """
  settings, tokenizer = check(config), workdir.tokenizer()
  if tokenizer is None:
    raise FileNotFoundError(f'there is no trained model in {workdir}: train one first')
  if mesh is None:
    try:
      mesh = sharding.make_mesh(**settings.mesh)
    except ValueError:
      if settings.mesh != workdir.read_config()['mesh']:  # wrong flags, not another machine
        raise
      logging.info('the mesh of the run, %s, is not for these devices', settings.mesh)
      mesh = sharding.make_mesh()
  experiment = make_experiment(with_dtype(settings, workdir, mesh), tokenizer, mesh)
  return experiment._replace(cache=workdir.path / 'cache')


def restore_best(experiment: Experiment, workdir: Workdir) -> tuple[Model, int]:
  """Return the best model of a run, and its step; 0 if it is unknown."""
  with Checkpoints(workdir.checkpoint_dir()) as checkpoints:
    model, best = checkpoints.restore(experiment.abstract_model(), which='best'), checkpoints.best
  return model, best[0] if best else 0


def fingerprint_of(batches: pipeline.Batches) -> str:
  """Return a hash of all examples that batches are made of."""
  if isinstance(batches, PreparedBatches):
    return batches.source.fingerprint
  return fingerprint(batches.columns)


def fingerprint(columns: pipeline.Columns) -> str:
  """Return a hash of all examples, in order."""
  arrays = {
    name: (c.tokens, c.offsets)
    if isinstance(c, pipeline.Ragged)
    else _digest_of(c.items)
    if isinstance(c, pipeline.Lazy)
    else c
    for name, c in columns.items()
  }
  return digest(arrays)


def _digest_of(items: Iterable[Any]) -> np.ndarray:
  """Return a hash of items: of the names and sizes of files, of the content of bytes and arrays."""
  sha = hashlib.sha256()
  for item in items:
    if isinstance(item, str):
      item = f'{os.path.basename(item)} {os.path.getsize(item)}\n'.encode()
    sha.update(item if isinstance(item, bytes) else item.tobytes())
  return np.frombuffer(sha.digest(), np.uint8)


def with_shardings(tree: Any, mesh: Mesh) -> Any:
  """Return a tree with ShapeDtypeStructs, sharded by the rules of `sharding`, for its arrays."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    tree,
    sharding.shardings(tree, mesh),
  )


def load_split(data: Data, split: str) -> corpora.Source:
  """Return the examples of a split, at most the first `data.limit_of(split)`.

  Raises:
    FileNotFoundError: the data are missing; says where the data set is published, if known.
    ValueError: a limit for a prepared corpus.
  """
  limit = data.limit_of(split)
  if limit and data.name == 'prepared':
    key = 'limit' if split == data.train else 'val_limit'
    raise ValueError(f'data.{key}={limit} has to be set when a corpus is prepared: set it to 0')
  with _naming_publisher(data):
    return corpora.load(
      _name(data), split, dir=data.dir, inputs=data.source, targets=data.target, limit=limit
    )


def stream_split(data: Data, split: str) -> Iterator[dict[str, Any]]:
  """Yield the examples of a split without holding all; errors as of `load_split`."""
  with _naming_publisher(data):
    examples = corpora.stream(
      _name(data), split, dir=data.dir, inputs=data.source, targets=data.target
    )
    yield from itertools.islice(examples, data.limit_of(split) or None)


def _name(data: Data) -> Any:
  return lookup('data.name', data.name, {}) if is_reference(data.name) else data.name


@contextlib.contextmanager
def _naming_publisher(data: Data) -> Iterator[None]:
  """Add to a FileNotFoundError where the data set is published, if that is known."""
  try:
    yield
  except FileNotFoundError as error:
    if published := where_published(data.dir):
      raise FileNotFoundError(
        f'{error} The data set is published at {published}. Put it in {data.dir}, or set '
        '--config.data.dir, or the environment variable TRANSFORMER_DATA to the folder above it'
      ) from error
    raise


def make_experiment(settings: Settings, tokenizer: Any, mesh: Mesh) -> Experiment:
  """Return the parts of a run with these settings."""
  kwargs = dict(tokenizer=tokenizer, decoding=settings.decode, max_length=settings.data.max_length)
  if processor := processor_of(settings):
    kwargs['input_processor'] = processor
  task = find_task(settings.task)(**kwargs, **settings.loss)
  platform = platforms.of_device(mesh.devices.flat[0])
  model = ModelConfig(vocab=tokenizer.size, **settings.model, platform=platform)
  return Experiment(settings, task, model, mesh)
