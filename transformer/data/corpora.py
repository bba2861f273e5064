"""Corpora: `load(name, split)` gives examples {'inputs': ..., 'targets': str} by their index.

Inputs are texts, or images and sounds: a path, the bytes of a file, or an array. An example may
have a 'name' to show for them.

name                  what is read
dates                 dates in 40 locales -> ISO 8601, made on the spot
copy, reverse, sort   digits -> digits, made on the spot
parallel              line-aligned <dir>/<split>.<inputs> and <dir>/<split>.<targets>, maybe .gz
pairs                 TSV or JSONL: <dir>/<split>.tsv, or one file <dir>, divided by hash
labelled              `LABEL text` lines: <dir>/<split>.txt, or one file <dir>, divided by hash
text                  whole texts: <dir>/<split>.txt, or one file <dir>, whose last tenth is 'val'
shapes                drawn pictures -> their names, or captions, made on the spot
idx                   MNIST's files: <dir>/<split>-images-idx3-ubyte and labels, maybe .gz or .xz
images                <dir>/<split>/<class>/<file>, or <split>.tar (.gz, .xz) of <class>/<file>
captions              images in <dir>/<split> or <split>.tar, and <dir>/<split>_captions.tsv
recordings            <dir>/<split>/ or .tar[.xz|.gz] of sounds; <split>.tsv: their names and texts
frames                ready-made frames: <dir>/<split>.npz (feats, lengths) in order of <split>.tsv
fsdd                  spoken digits <digit>_<speaker>_<index>.wav, in the order of their indices
fsdd_strings          3 to 7 of them, of one speaker, joined on the spot
yesno                 0_0_1_1_0_1_1_1.wav -> 'no no yes ...'; split 'joined': train's words, anew
squad                 question -> paragraph, and the answers in it: <dir>/<split>.json
squad/v1.1            the same, prepared by TFDS
facts                 the same, made on the spot
cranfield             title -> abstract, or query -> relevant abstracts: <dir>/docs.jsonl.gz, ...
keypad, ..._strings   a digit, or 3 to 7, as a telephone dials them, made on the spot
any other             the TFDS data set of this name, prepared in <dir>; without TensorFlow

Of files and TFDS a split may be a slice, such as train[:90%], train[90%:] or train[2400:].
"""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from transformer.data import (
  algorithmic,
  documents,
  facts,
  images,
  questions,
  recordings,
  textfiles,
)

# Each opens (split, inputs, targets).
GENERATED: dict[str, Callable[..., Any]] = {
  'dates': lambda split, *_: _dates(split),
  **{
    name: lambda split, *_, name=name: algorithmic.Algorithmic(name, split)
    for name in algorithmic.TASKS
  },
  'shapes': lambda split, _, targets: images.Drawn(split, targets),
  'facts': lambda split, *_: facts.facts(split),
}
# Each opens (dir, split, inputs, targets).
FILES: dict[str, Callable[..., Any]] = {
  'parallel': textfiles.parallel,
  'pairs': textfiles.pairs,
  'labelled': lambda dir, split, _, targets: textfiles.labelled(dir, split, targets),
  'text': lambda dir, split, *_: textfiles.text(dir, split),
  'idx': lambda dir, split, *_: images.idx(dir, split),
  'images': lambda dir, split, *_: images.labelled(dir, split),
  'captions': lambda dir, split, *_: images.captioned(dir, split),
  'squad': lambda dir, split, *_: questions.squad(dir, split),
  'cranfield': lambda dir, split, *_: documents.cranfield(dir, split),
  **{name: functools.partial(recordings.load, name) for name in recordings.NAMES},
}
NAMES = (*GENERATED, *FILES)


@runtime_checkable
class Source(Protocol):
  """Random access to examples; what Grain and `list` need."""

  def __len__(self) -> int: ...
  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]: ...


def load(
  name: str | Callable[..., Source],
  split: str,
  *,
  dir: str | os.PathLike = '',
  inputs: str = 'inputs',
  targets: str = 'targets',
  limit: int = 0,
) -> Source:
  """Opens one split of a corpus; nothing is ever downloaded.

  Args:
    name: one of NAMES, or a TFDS name such as 'my_set' or 'wmt14_translate/de-en' (or, to fix the
      version, 'my_set:1.0.0'), or a function (dir, split, inputs, targets) that opens a split.
    split: 'train', 'val', 'test', or what the files or the TFDS data set call it ('train[:10%]').
    dir: where the files are, '' for here; for TFDS '' is $TFDS_DATA_DIR, ~/tensorflow_datasets.
    inputs: language ('parallel'), column or key ('pairs') or feature (TFDS) that becomes 'inputs'.
    targets: the same for 'targets'; of 'shapes' label or caption.
    limit: keep the first so many examples; 0 keeps all.

  Returns:
    A source: `len(source)`, `source[i] -> {'inputs': ..., 'targets': ...}`; 'dates' adds 'locale',
    'text' has one example per file, without 'inputs'. Images also have a 'name', and captioned ones
    'references', all captions of theirs. Of 'squad' and 'cranfield' see their modules.

  Raises:
    FileNotFoundError: a file or data set is not there; says where it was sought, what is there,
      and how to get it.
    ValueError: an unknown split, column or feature, or a file that is not what it should be (names
      file:line).
  """
  if limit < 0:
    raise ValueError(f'limit={limit} examples: give a positive number, or 0 for all')
  if callable(name):
    source: Source = name(pathlib.Path(dir).expanduser(), split, inputs, targets)
  elif name in GENERATED:
    source = GENERATED[name](split, inputs, targets)
  elif name in FILES:
    source = FILES[name](pathlib.Path(dir).expanduser(), split, inputs, targets)
  elif name.startswith('squad/'):
    source = questions.Prepared(_builder(name, dir).as_data_source(split))
  else:
    source = _tfds(name, split, dir, inputs, targets)
  return First(source, min(limit, len(source))) if limit else source


def _dates(split: str) -> Source:
  from transformer.data import dates  # which imports a library of calendars

  return dates.Dates(split)


def chunks(source: Source, size: int = 1024) -> Iterator[list[dict[str, Any]]]:
  """The examples in order, about a thousand at a time."""
  for start in range(0, len(source), size):
    yield [source[i] for i in range(start, min(start + size, len(source)))]


@dataclasses.dataclass(frozen=True)
class First:
  """The first `size` examples of `source`."""

  source: Source
  size: int

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
    return self.source[range(self.size)[i]]


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A TFDS data source; `columns` are (key, feature, {class: its name} or nothing).

  A feature 'captions/text' is a list of texts: one of them, by the example's number, is what is
  read, and all are its 'references'.
  """

  source: Any
  columns: tuple[tuple[str, str, Mapping[int, str]], ...]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
    # array_record raises a ValueError past its end, where `for` and list() need an IndexError
    i = range(len(self))[i]
    example, found = self.source[i], {}
    for key, feature, names in self.columns:
      value = example
      for part in feature.split('/'):
        value = value[part]
      if '/' in feature:
        if not value:
          raise ValueError(f'example {i} has nothing in {feature}: take it out of the data set')
        found['references'] = tuple(_value(text, names) for text in value)
        value = value[i % len(value)]
      found[key] = _value(value, names)
    return found


def _value(value: Any, names: Mapping[int, str]) -> Any:
  if isinstance(value, int):  # a class label
    return names[value]
  return value.decode('utf-8') if isinstance(value, bytes) else value  # mocked TFDS gives str


def _builder(name: str, dir: str | os.PathLike) -> Any:
  """A TFDS data set that is prepared in the folder."""
  if not re.fullmatch(r'\w+(/[\w.+-]+)?(:[\d.]+)?', name):
    raise ValueError(f'corpus {name!r}: take one of {", ".join(NAMES)}, or a TFDS name[/config].')
  path, _, version = name.partition(':')
  root = pathlib.Path(dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
  root = root.expanduser().absolute()
  folders = [info.parent for info in root.glob(f'{path}/{version or "*"}/dataset_info.json')]
  if not folders:
    raise FileNotFoundError(_how_to_prepare(name, root))

  import tensorflow_datasets as tfds

  # tfds.data_source would start a download where something is missing, and import all builders
  newest = max(folders, key=lambda folder: [int(n) for n in re.findall(r'\d+', folder.name)])
  return tfds.builder_from_directory(newest)


def _tfds(name: str, split: str, dir: str | os.PathLike, inputs: str, targets: str) -> Prepared:
  builder = _builder(name, dir)

  import tensorflow_datasets as tfds

  features = dict(builder.info.features.items())
  columns = []
  for key, column in (('inputs', inputs), ('targets', targets)):
    feature, names = _feature(features, column), {}
    if isinstance(feature, tfds.features.ClassLabel):
      names = {-1: '', **dict(enumerate(feature.names))}  # -1: TFDS for an unlabelled example
    elif not isinstance(feature, tfds.features.Image if key == 'inputs' else ()) and (
      feature is None or feature.shape or np.dtype(feature.np_dtype).kind != 'O'
    ):
      raise ValueError(
        f'{name} has no feature {column!r} that is text or a class (or, of inputs, an image); name '
        f'one of its features ({", ".join(sorted(features))}) as {key} (data.{key}).'
      )
    columns.append((key, column, names))
  return Prepared(builder.as_data_source(split), tuple(columns))


def _feature(features: Mapping[str, Any], column: str) -> Any:
  """A feature by its name, or that of each item of a list, such as captions/text."""
  name, _, inner = column.partition('/')
  feature = features.get(name)
  if not inner:
    return feature
  item: Any = getattr(feature, 'feature', None)  # of a Sequence
  return dict(item.items()).get(inner) if hasattr(item, 'items') else None


def _how_to_prepare(name: str, root: pathlib.Path) -> str:
  infos = [info for depth in ('*/*', '*/*/*') for info in root.glob(f'{depth}/dataset_info.json')]
  there = sorted({str(info.parent.parent.relative_to(root)) for info in infos})
  close = difflib.get_close_matches(name, [*NAMES, *there], 1)
  command = (
    f"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{root}')"
    ".download_and_prepare(file_format='array_record')"
  )
  return (
    f'TFDS data set {name!r} is not prepared in {root} (there: {", ".join(there) or "nothing"}).'
    f'{f" Did you mean {close[0]!r}?" if close else ""} Prepare it once, with a network:\n'
    f'  pip install \'.[prepare]\'\n  python -c "{command}"\n'
    "or read files of your own: name='pairs' (TSV or JSONL) or name='parallel' (lines of two "
    f'files) with dir; made on the spot: {", ".join(GENERATED)}.'
  )
