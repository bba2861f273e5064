"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from transformer.data.reading import naming

CURE = 'prepare the data set again'


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """The examples of a TFDS data source.

  If a feature is a list of texts, such as 'captions/text', 'targets' is the text with index i
  modulo their number, and 'references' are all of them.

  Attributes:
    source: a TFDS data source.
    columns: (key of our examples, name of the feature, {class id: name}); {} if it is no class.
    folder: of the data set, for errors.
  """

  source: Any
  columns: tuple[tuple[str, str, Mapping[int, str]], ...]
  folder: str

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
    # array_record raises a ValueError past its end, where `for` and list() need an IndexError
    i = range(len(self))[i]
    with naming(lambda: f'{self.folder}: example {i}', CURE):
      return self._example(i)

  def _example(self, i: int) -> dict[str, Any]:
    example, fields = self.source[i], {}
    for key, feature, names in self.columns:
      value = example
      for part in feature.split('/'):
        value = value[part]
      if '/' in feature:
        if not value:
          raise ValueError(f'example {i} has no {feature}: remove it from the data set')
        fields['references'] = tuple(_value(text, names) for text in value)
        value = value[i % len(value)]
      fields[key] = _value(value, names)
    return fields


def load(
  name: str,
  split: str,
  dir: str | os.PathLike,
  inputs: str,
  targets: str,
  corpora: Sequence[str] = (),
) -> TfdsSource:
  """Return the examples of a split of a data set that was prepared in a folder.

  Args:
    name: 'my_set', 'wmt14_translate/de-en', or with a version 'my_set:1.0.0'.
    split: of the data set, maybe with a slice.
    dir: the folder; '' is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    inputs, targets: features that are a text, a class, a list of texts, or (inputs) an image.
    corpora: names of other corpora, for the error of a misspelled name.

  Raises:
    FileNotFoundError: the data set is not prepared there; says how to do it.
    ValueError: the name is malformed, or a feature does not exist or has another type.
  """
  builder = open_builder(name, dir, corpora)

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
        f'one of its features ({", ".join(sorted(features))}) as {key} '
        f'(data.{dict(inputs="source", targets="target")[key]}).'
      )
    columns.append((key, column, names))
  folder = str(builder.data_dir)
  with naming(folder, CURE):
    return TfdsSource(builder.as_data_source(split), tuple(columns), folder)


def open_builder(name: str, dir: str | os.PathLike, corpora: Sequence[str]) -> Any:
  """Return the TFDS builder of the newest version of a data set in a folder.

  Args:
    name, dir, corpora: as for `load`.

  Raises:
    ValueError: the name is malformed.
    FileNotFoundError: the data set is not prepared there; says how to do it.
  """
  if not re.fullmatch(r'\w+(/[\w.+-]+)?(:[\d.]+)?', name):
    raise ValueError(f'corpus {name!r}: take one of {", ".join(corpora)}, or a TFDS name[/config].')
  path, _, version = name.partition(':')
  root = pathlib.Path(dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
  root = root.expanduser().absolute()
  folders = [info.parent for info in root.glob(f'{path}/{version or "*"}/dataset_info.json')]
  if not folders:
    raise FileNotFoundError(_how_to_prepare(name, root, corpora))

  import tensorflow_datasets as tfds

  # tfds.data_source would download missing data, and import all builders
  newest = max(folders, key=lambda folder: [int(n) for n in re.findall(r'\d+', folder.name)])
  with naming(newest, CURE):
    return tfds.builder_from_directory(newest)


def _value(value: Any, names: Mapping[int, str]) -> Any:
  if isinstance(value, int):  # a class label
    return names[value]
  return value.decode('utf-8') if isinstance(value, bytes) else value  # mocked TFDS gives str


def _feature(features: Mapping[str, Any], column: str) -> Any:
  """Return a feature by its name, or, for a name such as captions/text, that of a list's items."""
  name, _, inner = column.partition('/')
  feature = features.get(name)
  if not inner:
    return feature
  item: Any = getattr(feature, 'feature', None)  # of a Sequence
  return dict(item.items()).get(inner) if hasattr(item, 'items') else None


def _how_to_prepare(name: str, root: pathlib.Path, corpora: Sequence[str]) -> str:
  infos = [info for depth in ('*/*', '*/*/*') for info in root.glob(f'{depth}/dataset_info.json')]
  prepared = sorted({str(info.parent.parent.relative_to(root)) for info in infos})
  close = difflib.get_close_matches(name, [*corpora, *prepared], 1)
  command = (
    f"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{root}')"
    ".download_and_prepare(file_format='array_record')"
  )
  return (
    f'TFDS data set {name!r} is not prepared in {root} (there: {", ".join(prepared) or "nothing"}).'
    f'{f" Did you mean {close[0]!r}?" if close else ""} Prepare it once, with a network:\n'
    f'  pip install \'.[prepare]\' && python -c "{command}"\n'
    "or read files of your own: name='pairs' (TSV or JSONL) or name='parallel' (lines of two "
    "files) with dir; 'dates', 'copy' and others need no files."
  )
