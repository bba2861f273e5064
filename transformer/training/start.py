"""The start of a run: checks and stores its config, trains its tokenizer."""

import dataclasses
import itertools
import pathlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from unicodedata import normalize

from absl import logging
from tqdm.auto import tqdm

from transformer.data import tokenizers
from transformer.data.lookup import is_reference
from transformer.data.prepared import Prepared
from transformer.training import optimizers, prepared_data, processes, sharding
from transformer.training.checkpoints import reachable
from transformer.training.checks import check, without_effect
from transformer.training.config import find_task
from transformer.training.experiment import (
  Experiment,
  load_split,
  make_experiment,
  stream_split,
  with_dtype,
)
from transformer.training.sections import Settings
from transformer.training.workdir import Workdir, is_run


def start_run(config: dict[str, Any], workdir: Workdir) -> Experiment:
  """Return a run to train: check the config, store it, and train the tokenizer if there is none.

  Raises:
    ValueError, FileNotFoundError: for an error in the config, the data or the workdir.
  """
  settings = check(config)
  for has_no_effect, message in without_effect(settings):
    if has_no_effect:
      logging.warning('%s', message)
  mesh, data = sharding.make_mesh(**settings.mesh), settings.data
  reachable(settings.train.checkpoint_dir or workdir.path)
  logging.info('%s in %s: reading %s', settings.experiment, workdir, data.dir or data.name)
  for split in (data.val, *data.test):
    load_split(data, split)  # so that a missing file is an error before the tokenizer is trained
  source = load_split(data, data.train)
  if is_reference(data.name):
    _check_own_corpus(settings, source)
  settings = _with_labels(settings, source)
  with processes.first_alone():
    if processes.is_first():
      workdir.lock()
    settings = with_dtype(settings, workdir, mesh)
    workdir.compare(settings.as_dict())
    _compare_steps(settings, workdir)
    stored = workdir.tokenizer()
    tokenizer = stored or _tokenizer_of(settings, source)
    # before the config is stored, so that the folder can be used again after an error of the task
    experiment = make_experiment(settings, tokenizer, mesh)
    if whole := sharding.whole_tables(tokenizer.size, mesh):
      logging.warning('%s', whole)
    experiment.try_evaluation()
    workdir.claim(settings.as_dict())
    if stored is None:
      workdir.save_tokenizer(tokenizer)
  return experiment._replace(cache=workdir.path / 'cache')


def prepare_corpus(config: dict[str, Any], workdir: Workdir, workers: int) -> dict[str, Any]:
  """Write the tokenized data of a run to the workdir, and return the content of prepared.json.

  Args:
    config: of the run.
    workdir: the folder of the corpus.
    workers: the number of processes that encode.

  Raises:
    ValueError, FileNotFoundError: for an error in the config, the data or the workdir.
  """
  settings = check(config)
  data = settings.data
  if data.name == 'prepared':
    raise ValueError('data.name=prepared is what --mode=prepare writes: name the source of it')

  def stream(split: str) -> Iterator[dict[str, Any]]:
    examples = stream_split(data, split)
    return map(_with_path, examples) if settings.model['modality'] != 'tokens' else examples

  for split in (data.train, data.val, *data.test):
    next(iter(stream(split)), None)  # so that a missing file is an error before hours of work
  workdir.lock()
  if settings.loss.get('classes') == ():
    settings = _with_classes(settings, (example['targets'] for example in stream(data.train)))
  tokenizer = workdir.tokenizer()
  if tokenizer is None:
    examples = prepared_data.sample(stream(data.train), _text_fields(settings))
    tokenizer = _new_tokenizer(settings, examples)
    workdir.save_tokenizer(tokenizer)
  task = make_experiment(settings, tokenizer, sharding.make_mesh(**settings.mesh)).task
  return prepared_data.write_corpus(workdir.path, settings, task, stream, workers)


def _with_path(example: dict[str, Any]) -> dict[str, Any]:
  """Return an example with an input that is a str as a Path."""
  file = example['inputs']
  return example | {'inputs': pathlib.Path(file)} if isinstance(file, str) else example


def draft_run(config: dict[str, Any], workdir: Workdir, devices: Any = None) -> Experiment:
  """Return a run as `start_run` does, but store nothing.

  Args:
    config: of the run.
    workdir: its tokenizer is used, if it has one.
    devices: of the mesh; None for all.
  """
  settings = check(config)
  mesh = sharding.make_mesh(**settings.mesh, over=devices)
  settings = with_dtype(settings, workdir, mesh)
  source = load_split(settings.data, settings.data.train)
  settings = _with_labels(settings, source)
  return make_experiment(settings, workdir.tokenizer() or _tokenizer_of(settings, source), mesh)


def _tokenizer_of(settings: Settings, source: Any) -> tokenizers.Tokenizer:
  """Return the tokenizer of a prepared corpus, or a new one."""
  if isinstance(source, Prepared):
    return tokenizers.Tokenizer.load(source.folder / 'tokenizer.json')
  return _new_tokenizer(settings, (source[i] for i in range(len(source))))


def _with_labels(settings: Settings, source: Any) -> Settings:
  """Return the settings with loss.classes from the examples, if the config leaves them empty."""
  if settings.loss.get('classes') != ():
    return settings
  if isinstance(source, Prepared):
    return _with_classes(settings, source.info['classes'])
  return _with_classes(settings, (source[i]['targets'] for i in range(len(source))))


def _with_classes(settings: Settings, labels: Iterable[str]) -> Settings:
  """Return the settings with the classes of the labels.

  Logs how often each class occurs, and warns if the first label seems to be the header of a table.
  """
  classes = Counter(normalize('NFC', label) for label in labels)
  counted = classes.total() > len(classes)  # a prepared corpus has each class once
  names = [f'{name} ({count})' if counted else name for name, count in classes.most_common()]
  names = names if len(names) <= 20 else [*names[:10], '...', *names[-9:]]
  logging.info('%d classes: %s', len(classes), ', '.join(names))
  first = next(iter(classes), '')
  if classes[first] == 1 < classes.total() / len(classes) / 10:
    logging.warning(
      'the class of the first example, %r, occurs once: if it is the header of a table, name its '
      'columns in --config.data.source and --config.data.target',
      first,
    )
  return dataclasses.replace(settings, loss=settings.loss | {'classes': tuple(sorted(classes))})


def _compare_steps(settings: Settings, workdir: Workdir):
  """Warn if `train.steps` of a resumed run differs from before.

  Raises:
    ValueError: the run has more steps already, or checkpoints without a config.
  """
  last_step, steps = workdir.last_step(), settings.train.steps
  if last_step and not workdir.has_config():
    raise ValueError(
      f'{workdir} has a checkpoint of step {last_step}, but no config.json that says of what: '
      'restore that file (_CHECKPOINT_METADATA of the checkpoint has it as config), or delete the '
      'folder'
    )
  if last_step > steps:
    raise ValueError(
      f'{workdir} has {last_step} steps already, more than train.steps={steps}: its model is not '
      f'that of step {steps}. Give --config.train.steps={last_step} or more, or another --workdir'
    )
  if last_step == steps:
    logging.info('the run has its %d steps already, and is only evaluated', steps)
  before = workdir.read_config()['train']['steps'] if last_step else steps
  if before == steps:
    return
  kwargs = dict(settings.optimizer, width=settings.model['width'])
  rates = [float(optimizers.build(**kwargs, steps=n)[1](last_step)) for n in (before, steps)]
  if rates[0] != rates[1]:
    logging.warning(
      'train.steps was %d and is %d: the learning rate of optimizer.schedule=%s goes from %.3g to '
      '%.3g after step %d, and the run is not one of %d steps from its start',
      *(before, steps, settings.optimizer['schedule'], *rates, last_step, steps),
    )


def _new_tokenizer(settings: Settings, examples: Iterable[Any]) -> tokenizers.Tokenizer:
  """Return the tokenizer of config.warm_start, or train one on the texts of the examples."""
  if settings.warm_start:
    folder = pathlib.Path(settings.warm_start).expanduser()
    if is_run(folder) or not (folder / 'config.json').is_file():
      tokenizer = Workdir(folder).tokenizer()
    else:
      from transformer.zoo.pretrained import load_tokenizer

      tokenizer = load_tokenizer(folder)
    if tokenizer is None:
      raise FileNotFoundError(
        f'config.warm_start={settings.warm_start} has no tokenizer.json, without which its '
        "embeddings mean nothing: train that run first, as the experiment's file says, or give the "
        'folder of another, or of a published model with that file'
      )
    return tokenizer
  fields, began = _text_fields(settings), time.perf_counter()
  logging.info('reading the training texts, to train the tokenizer')
  # disable=None: no bar where stderr is not a terminal
  examples = tqdm(examples, desc='texts', unit='', disable=None, leave=False)
  texts = ([example[field] for field in fields] for example in examples)
  if getattr(find_task(settings.task), 'leaves_out_long', False):
    longest = settings.data.max_length
    texts = (pair for pair in texts if all(len(text.split()) < longest for text in pair))
  tokenizer = tokenizers.train(itertools.chain.from_iterable(texts), **settings.tokenizer)
  seconds = time.perf_counter() - began
  logging.info('the tokenizer has %s tokens, trained in %.0f s', f'{tokenizer.size:,}', seconds)
  return tokenizer


def _text_fields(settings: Settings) -> tuple[str, ...]:
  """Return the names of the fields of an example that are text."""
  tokens = settings.model['modality'] == 'tokens'
  return find_task(settings.task).text_fields if tokens else ('targets',)


def _check_own_corpus(settings: Settings, source: Any):
  """Raise ValueError if the examples of a user's own corpus lack a text that the task needs."""
  name, fields = settings.data.name, _text_fields(settings)
  if not len(source):
    raise ValueError(f'data.name={name} returned no example for {settings.data.train}')
  example = source[0]
  types = {key: type(value).__name__ for key, value in dict(example).items()}
  if any(types.get(field) != 'str' for field in fields):
    raise ValueError(
      f'data.name={name}: its first example has {types}, and config.task={settings.task} needs '
      f'the texts {", ".join(fields)}'
    )
