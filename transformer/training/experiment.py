"""A config made real: the tokenizer, task, model, mesh and data of one run."""

from typing import Any, NamedTuple

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
from transformer.training import sharding
from transformer.training.checkpoints import Checkpoints
from transformer.training.config import TASKS, check, processor_of
from transformer.training.sections import Data, Settings
from transformer.training.step import Model
from transformer.training.workdir import Workdir


class Experiment(NamedTuple):
  """What a run is made of; nothing is trained or loaded yet."""

  settings: Settings
  task: Task
  model: ModelConfig
  mesh: Mesh

  def source(self, split: str) -> corpora.Source:
    """The examples of a split."""
    data = self.settings.data
    limit = data.limit if split == data.train else 0
    return _load(data, split, limit)

  def batches(self, split: str) -> pipeline.Batches:
    """The batches of a split: shuffled and with seed for training, in order for the rest."""
    data, train = self.settings.data, split == self.settings.data.train
    fields = self.task.columns(self.source(split))
    ragged = [f.lengths for f in fields.values() if isinstance(f, pipeline.Ragged)]
    count = len(next(iter(fields.values())))
    lengths = np.stack(ragged or [np.ones(count, np.int64)], axis=1)
    short = np.flatnonzero(lengths.max(axis=1) <= data.max_length)
    if len(short) < len(lengths):
      say = logging.info if train else logging.warning  # figures of teacher forcing lack them
      say(
        '%d of %d examples of %s are longer than data.max_length=%d tokens and left out',
        len(lengths) - len(short),
        len(lengths),
        split,
        data.max_length,
      )
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
    if ragged and (rows.shapes % self.mesh.shape['sequence']).any():
      raise ValueError(
        f'mesh.sequence={self.mesh.shape["sequence"]} does not divide the lengths of the batches, '
        f'{np.unique(rows.shapes)}: choose a divisor, or another data.max_length'
      )
    rows = rows._replace(members=[short[m] for m in rows.members])
    microbatches = self.settings.train.microbatches if train else 1
    return pipeline.Batches(
      fields,
      rows,
      tokens=data.batch_tokens,
      multiple=sharding.batch_parts(self.mesh) * microbatches,
      seed=self.settings.seed if train else None,
      process=(jax.process_index(), jax.process_count()),
    )

  def init(self, key: jax.Array) -> Model:
    """A fresh model, with adapters where the config asks for some."""
    model = self.task.init(self.model, key)
    for i, (pattern, rank) in enumerate(self.settings.train.adapters, start=1):
      adapt(model, pattern, rank, jax.random.fold_in(key, i))
    return model

  @property
  def lr_multipliers(self) -> tuple[tuple[str, float], ...]:
    """Factors of the learning rate by path; with adapters, what is not named is frozen."""
    multipliers = self.settings.optimizer['lr_multipliers']
    return (
      (('/adapter/', 1.0), *multipliers, ('', 0.0)) if self.settings.train.adapters else multipliers
    )

  def abstract_model(self) -> Model:
    """The shapes and shardings of the parameters, without any memory."""
    return with_shardings(jax.eval_shape(self.init, jax.random.key(0)), self.mesh)


def prepare(config: dict[str, Any], workdir: Workdir) -> Experiment:
  """A run to train: checks the config, claims the workdir, trains the tokenizer if there is none.

  Raises:
    ValueError, FileNotFoundError: what is wrong with the config, the data or the workdir.
  """
  checked = check(config)
  mesh = sharding.make_mesh(**checked.mesh)
  data = checked.data
  for split in (data.val, *data.test):
    _load(data, split)  # a missing file is better found now than after training
  source = _load(data, data.train, data.limit)
  if jax.process_index() == 0:
    workdir.lock()
  workdir.compare(checked.as_dict())
  tokenizer = known = workdir.tokenizer()
  if tokenizer is None and checked.warm_start:
    tokenizer = Workdir(checked.warm_start).tokenizer()  # published models call it the same
    if tokenizer is None:
      raise FileNotFoundError(
        f'config.warm_start={checked.warm_start} has no tokenizer.json, without which its '
        "embeddings mean nothing: train that run first, as the experiment's file says, or give the "
        'folder of another, or of a published model with that file'
      )
  if tokenizer is None:
    reads = lookup('config.task', checked.task, TASKS).text_fields
    if checked.model['modality'] != 'tokens':
      reads = ('targets',)  # labels are texts, too
    examples = (source[i] for i in range(len(source)))
    texts = (example[side] for example in examples for side in reads)
    tokenizer = tokenizers.train(texts, **checked.tokenizer)
  # first, for a task may refuse its config, and the folder is then still free for another
  experiment = _experiment(checked, tokenizer, mesh)
  workdir.claim(checked.as_dict())
  if known is None:
    workdir.save_tokenizer(tokenizer)
  return experiment


def reopen(config: dict[str, Any], workdir: Workdir, mesh: Mesh | None = None) -> Experiment:
  """A run that was prepared before, on its own mesh if no other is given.

  Raises:
    FileNotFoundError: there is none in the workdir.
  """
  checked = check(config)
  tokenizer = workdir.tokenizer()
  if tokenizer is None:
    raise FileNotFoundError(f'there is no trained model in {workdir}: train one first')
  return _experiment(checked, tokenizer, mesh or sharding.make_mesh(**checked.mesh))


def restore_best(experiment: Experiment, workdir: Workdir) -> tuple[Model, int]:
  """The best model of a run, and its step."""
  with Checkpoints(workdir.path) as checkpoints:
    model, best = checkpoints.restore(experiment.abstract_model(), which='best'), checkpoints.best
  return model, best[0] if best else 0


def with_shardings(tree: Any, mesh: Mesh) -> Any:
  """The abstract arrays of a tree with the shardings that they are to have."""
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


def _experiment(checked: Settings, tokenizer: Any, mesh: Mesh) -> Experiment:
  given = dict(tokenizer=tokenizer, decoding=checked.decode, max_length=checked.data.max_length)
  if processor := processor_of(checked):
    given['input_processor'] = processor
  task = lookup('config.task', checked.task, TASKS)(**given, **checked.loss)
  platform = platforms.of_device(mesh.devices.flat[0])
  model = ModelConfig(vocab=tokenizer.size, **checked.model, platform=platform)
  return Experiment(checked, task, model, mesh)
