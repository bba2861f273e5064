"""Prepared corpora of runs: writing one, and checking that its settings are those of a run."""

import functools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from absl import logging

from transformer.data import preparation, prepared
from transformer.data.prepared import Prepared, PreparedBatches
from transformer.training.sections import Settings

SAMPLE = 1 << 27  # the most characters of a corpus that a tokenizer is trained on
OF_LOSS_ALONE = ('label_smoothing', 'z_loss', 'consistency')  # keys that change no column
Example = dict[str, Any]


def sample(examples: Iterable[Example], fields: Iterable[str]) -> list[Example]:
  """Return every n-th example, where n is the smallest power of 2 that leaves SAMPLE characters.

  Args:
    examples: read once.
    fields: of the examples whose characters count.
  """
  kept: list[Example] = []
  size, step = 0, 1

  def characters(example):
    return sum(len(example[field]) for field in fields)

  for i, example in enumerate(examples):
    if i % step:
      continue
    kept.append(example)
    size += characters(example)
    if size > SAMPLE and len(kept) > 1:
      kept, step = kept[::2], 2 * step
      size = sum(map(characters, kept))
  if step > 1:
    logging.info('the tokenizer is trained on every %dth example: %d characters', step, size)
  return kept


def write_corpus(
  folder: pathlib.Path,
  settings: Settings,
  task: Any,
  stream: Callable[[str], Iterable[Example]],
  workers: int,
) -> dict[str, Any]:
  """Write every split of a run's data to a folder, and return the content of prepared.json.

  Splits that are there already with the same settings and examples are kept.

  Args:
    folder: has the tokenizer.
    settings: of the run.
    task: of the run.
    stream: (name of a split) to an iterator over its examples; called more than once.
    workers: the number of processes that encode.
  """
  data, file = settings.data, folder / prepared.JSON
  described: dict[str, Any] = {
    'vocab': task.tokenizer.size,
    'settings': {name: settings.as_dict()[name] for name in ('task', 'data', 'tokenizer', 'loss')},
    'splits': {},
  }
  if file.exists():
    old = prepared.read_json(folder)
    described['splits'] = old['splits']
    there, here = (each['settings']['data'] for each in (old, described))
    differ = [key for key in ('name', 'dir', 'source', 'target') if there[key] != here[key]]
    if differ:
      raise ValueError(
        f'{folder} has the corpus of data.{differ[0]}={there[differ[0]]!r}, and that of '
        f'{here[differ[0]]!r} would replace it: give another --workdir, or delete that folder'
      )
  for split in dict.fromkeys((data.train, data.val, *data.test)):
    content = _content(settings, task, split)
    encoder = preparation.Encoder(content['kind'], task, measured=_has_files(settings))
    info = preparation.write_split(
      folder, split, functools.partial(stream, split), encoder, content, workers=workers
    )
    if split == data.train or encoder.measured:
      index_settings = _index_settings(settings, task)
      info['index'] = preparation.write_index(folder, split, info, index_settings, workers=workers)
    if split == data.train:
      info['classes'] = settings.loss.get('classes')
    described['splits'][split] = info
    prepared.write_json(folder, described)
    preparation.remove_parts(folder, split)
  return described


def open_batches(
  source: Prepared, settings: Settings, task: Any, **sharing: Any
) -> PreparedBatches:
  """Return the batches of a prepared split.

  Args:
    source: the split.
    settings: of the run.
    task: of the run.
    sharing: further arguments of `PreparedBatches`.

  Raises:
    ValueError: the corpus was prepared with other settings; names them.
  """
  if source.info['content'] is None:
    source = prepared.endless(source, _index_settings(settings, task))
  else:
    _compare(source, source.info['content'], _content(settings, task, source.split))
    _compare(source, source.info['index']['settings'], _index_settings(settings, task))
  if left_out := source.info['index']['left_out']:
    text = '%d examples of %s are longer than data.max_length=%d tokens and left out'
    logging.info(text, left_out, source.split, settings.data.max_length)
  return PreparedBatches(source, task.columns, **sharing)


def _has_files(settings: Settings) -> bool:
  return settings.model['modality'] != 'tokens'


def _content(settings: Settings, task: Any, split: str) -> dict[str, Any]:
  """Return the settings that the columns of a split depend on, as JSON types."""
  train, has_files = split == settings.data.train, _has_files(settings)
  content: dict[str, Any] = {'kind': 'examples'}
  if train and not has_files:
    content['kind'] = 'documents' if hasattr(task, 'cut') else 'columns'
  if content['kind'] == 'documents':
    content |= {'whole': task.cut.whole}
  elif train or has_files:
    loss = {k: v for k, v in settings.loss.items() if k not in OF_LOSS_ALONE}
    content |= {'task': settings.task, 'loss': loss, 'max_length': settings.data.max_length}
    content |= {'processor': settings.processor}
  if len(content) > 1:
    content['tokenizer'] = task.tokenizer.fingerprint
  return json.loads(json.dumps(content))


def _index_settings(settings: Settings, task: Any) -> dict[str, Any]:
  """Return the settings that the rows of batches depend on, as JSON types."""
  data = settings.data
  if getattr(task, 'overlap', 0):
    raise ValueError('loss.overlap needs the corpus in memory: set it to 0 for a prepared one')
  if data.packing and not task.supports_packing:
    raise ValueError(f'data.packing=True, but {settings.task} needs a row for each example here')
  cut = list(task.cut[:3]) if hasattr(task, 'cut') else None
  keys = dict(max_length=data.max_length, packing=data.packing, buckets=data.buckets)
  return {'cut': cut, **keys}


def _compare(source: Prepared, stored: dict[str, Any], wanted: dict[str, Any]):
  """Raise ValueError unless a corpus and a run have equal settings; name those that differ."""
  differ = [
    f'{key} was {stored.get(key)!r} and is {wanted.get(key)!r}'
    for key in sorted(stored.keys() | wanted.keys())
    if stored.get(key) != wanted.get(key)
  ]
  if differ:
    raise ValueError(
      f'{source.folder}: {source.split} was prepared with other settings: {"; ".join(differ)}. Run '
      '--mode=prepare again with these (what does not depend on them is kept), or restore them'
    )
