"""The sections data, train and eval of a config, and the whole config, as dataclasses."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Where examples come from and how they become batches.

  Attributes:
    name: one of data.corpora.SOURCES, a TFDS name, or module:name of a function of your own
      (dir, split, inputs, targets) that returns a sequence of examples.
    dir: the folder or file of the data set; '' for one that is generated.
    source, target: names of inputs and targets in the data set: languages, columns or features.
    train: the split to train on.
    val: the split to validate on, and to choose the best checkpoint by.
    test: the splits to report after training.
    limit: the number of training examples to use; 0 for all.
    val_limit: the number of examples of `val` to use, every time it is evaluated; 0 for all.
    max_length: of an example, in tokens, end token included; longer ones are left out and counted.
    batch_tokens: size of a batch in positions of its longer side, padding included; in examples if
      neither side has a length, as images and their labels.
    buckets: the largest number of different shapes of batches.
    packing: put several examples in a row of `max_length` instead of padding each.
  """

  name: str
  dir: str = ''
  source: str = 'inputs'
  target: str = 'targets'
  train: str = 'train'
  val: str = 'val'
  test: tuple[str, ...] = ()
  limit: int = 0
  val_limit: int = 0
  max_length: int
  batch_tokens: int = 4096
  buckets: int = 4
  packing: bool = False

  def __post_init__(self):
    _check_integers('data', self, zero=('limit', 'val_limit'))

  def limit_of(self, split: str) -> int:
    """Return the number of examples of a split to use; 0 for all."""
    return {self.val: self.val_limit, self.train: self.limit}.get(split, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """The training loop.

  Attributes:
    steps: number of updates.
    steps_per_call: updates in one call of the device, for consecutive batches of one shape; more
      than 1 helps models whose steps take less than about 50 ms.
    microbatches: number of parts that a batch is divided into, to save memory; the gradient is the
      same.
    ema: decay of a moving average of the parameters that is evaluated in their place; 0 for none.
    average_checkpoints: number of last checkpoints whose mean is the final model; 1 for the last.
    log_every_steps: interval of training metrics.
    save_every_steps: interval of checkpoints.
    keep_checkpoints: checkpoints kept beside the best one.
    checkpoint_dir: a folder or URL, such as gs://bucket/run, for the checkpoints of only this run;
      '' for the workdir.
    damaged_checkpoint: if the newest checkpoint is damaged: halt; or previous, to move it to
      WORKDIR/checkpoints/damaged and to resume from the one before.
    nonfinite: if a loss or gradient is NaN or Inf, the update is not made, and then: halt; skip, to
      continue with the next batch; or rollback, to continue with the next batch from the parameters
      of the last checkpoint.
    max_nonfinite: number of steps that may be skipped or rolled back before the process halts.
    max_compiles: number of times that the training step may be compiled; the next one is an error
      that names the argument whose shape changed. 0 for no limit.
    adapters: (pattern, rank) pairs: layers whose path matches get low-rank adapters, and only these
      and the parameters of optimizer.lr_multipliers are trained; see modules.adapters.
  """

  steps: int
  steps_per_call: int = 1
  microbatches: int = 1
  ema: float = 0.0
  average_checkpoints: int = 1
  log_every_steps: int = 100
  save_every_steps: int = 500
  keep_checkpoints: int = 2
  checkpoint_dir: str = ''
  damaged_checkpoint: Literal['halt', 'previous'] = 'halt'
  nonfinite: Literal['halt', 'skip', 'rollback'] = 'halt'
  max_nonfinite: int = 10
  max_compiles: int = 0
  adapters: tuple[tuple[str, int], ...] = ()

  def __post_init__(self):
    _check_integers('train', self, zero=('max_compiles',))
    for pattern, rank in self.adapters:
      if not pattern or rank < 1:
        raise ValueError(
          f'train.adapters={self.adapters!r}: give patterns and ranks of at least 1, such as '
          'query|value=8'
        )
    if not 0 <= self.ema < 1:
      raise ValueError(f'train.ema={self.ema} is a decay: give 0 <= ema < 1, such as 0.999')
    if self.average_checkpoints > self.keep_checkpoints:
      raise ValueError(
        f'train.average_checkpoints={self.average_checkpoints} needs as many checkpoints: set '
        f'train.keep_checkpoints={self.average_checkpoints}'
      )
    if self.average_checkpoints > 1 and self.ema:
      raise ValueError(
        'train.average_checkpoints and train.ema both average parameters: set one of them only'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """The evaluation of a model.

  Attributes:
    every_steps: interval of evaluations on the validation split.
    limit: number of examples that they decode; 0 for all. Test splits are always decoded whole.
    samples: number of examples that are logged.
    attention: number of validation examples whose attention weights TensorBoard shows as images.
    metrics: names of metrics of the decoded outputs, or module:name of functions of your own.
    best: the validation metric by which the best checkpoint is chosen; '' for the first of the
      task's own metrics.
    by: a field of the examples, such as locale, for each of whose values the metrics are also
      reported; '' for none.
  """

  every_steps: int = 500
  limit: int = 0
  samples: int = 4
  attention: int = 0
  metrics: tuple[str, ...] = ()
  best: str = ''
  by: str = ''

  def __post_init__(self):
    _check_integers('eval', self, zero=('limit', 'samples', 'attention'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A config, checked and typed.

  Attributes:
    experiment: the name of the run, and of its folder in runs/.
    task: the objective: a name of config.TASKS, or module:name of a class of your own.
    seed: of the initial parameters, the order of the data, and dropout.
    warm_start: folder of a run or of a published model to take the initial parameters from; '' for
      random ones.
    data, train, eval: the sections of these names.
    processor: arguments of the processor of images or sounds.
    tokenizer: arguments of data.tokenizers.train.
    model: arguments of ModelConfig, except the vocabulary, which is the tokenizer's.
    loss: arguments of the task.
    optimizer: arguments of optimizers.build.
    decode: settings of decoding; their type depends on the task.
    mesh: arguments of sharding.make_mesh.
  """

  experiment: str
  task: str
  seed: int = 0
  warm_start: str = ''
  data: Data
  processor: dict[str, Any]
  tokenizer: dict[str, Any]
  model: dict[str, Any]
  loss: dict[str, Any]
  optimizer: dict[str, Any]
  train: Train
  eval: Evaluation
  decode: Any
  mesh: dict[str, int]

  def as_dict(self) -> dict[str, Any]:
    """Return the config with every key, as it is stored beside a run."""
    return dataclasses.asdict(self)


def _check_integers(section: str, values: Any, zero: tuple[str, ...] = ()):
  """Raise ValueError for an integer below 1, or below 0 for the names in `zero`."""
  for name, value in vars(values).items():
    least = 0 if name in zero else 1
    if isinstance(value, int) and not isinstance(value, bool) and value < least:
      raise ValueError(f'{section}.{name}={value} must be at least {least}')
