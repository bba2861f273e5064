"""Text files: line-aligned translations, pairs (TSV, JSONL), labeled lines, whole texts.

All are UTF-8 and may be compressed. Instead of a folder with a file `<split>.tsv` for each split, a
single file can be given; it is divided by a hash of the text (see `splits.split_by_hash`).
"""

import dataclasses
import itertools
import operator
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

from transformer.data.files import find_file
from transformer.data.reading import plain_name, read_lines, read_objects
from transformer.data.splits import split_by_hash

PART = 1 << 22  # characters: longer texts are read in parts
# If the columns of the first line are two or more of these words, it is a header and no example.
HEADER = frozenset(
  'id inputs input outputs output targets target source src tgt text texts label labels class '
  'classes category categories sentiment emotion rating ratings score stars topic intent tag tags '
  'spam language lang sentence sentences phrase review reviews comment message subject body post '
  'tweet content description headline abstract question answer query prompt completion response '
  'document title summary caption image file filename file_name path audio wav sound recording '
  'clip utt_id utterance transcript transcription words original translation english german french '
  'spanish italian en de fr es it'.split()
)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """A source of two lists of the same length, in memory."""

  inputs: Sequence[str]
  targets: Sequence[str]

  def __len__(self) -> int:
    return len(self.inputs)

  def __getitem__(self, i: SupportsIndex) -> dict[str, str]:
    i = operator.index(i)
    return {'inputs': self.inputs[i], 'targets': self.targets[i]}


def read_parallel(
  folder: pathlib.Path, split: str, inputs: str, targets: str
) -> Iterator[tuple[str, str]]:
  """Yield (line i of `<split>.<inputs>`, line i of `<split>.<targets>`), also of blank lines.

  Raises:
    FileNotFoundError: a file does not exist.
    ValueError: a file is empty, or they have different numbers of lines.
  """
  paths = [find_file(folder, [f'{split}.{side}']) for side in (inputs, targets)]
  sides = [read_lines(path) for path in paths]
  number = 0
  for number, pair in enumerate(itertools.zip_longest(*sides), start=1):  # noqa: B007
    if None in pair:
      longer = number + sum(1 for side in sides for _ in side)
      counts = [number - 1 if line is None else longer for line in pair]
      raise ValueError(
        f'{paths[0]} has {counts[0]} lines, {paths[1]} has {counts[1]}; line i of one must '
        'be the translation of line i of the other. Restore the missing lines (blank, if need be).'
      )
    yield pair[0][1], pair[1][1]
  if not number:
    raise ValueError(f'{paths[0]} is empty; give at least one line.')


def read_pairs(
  path: pathlib.Path, split: str, inputs: str, targets: str
) -> Iterator[tuple[str, str]]:
  """Yield (input, target) of the rows of `<split>.tsv` or `<split>.jsonl`, or of a single file.

  TSV has no quoting, and two columns, or more with a header.

  Args:
    path: a folder or a file.
    split: its name.
    inputs, targets: columns of the header, or keys of the JSON objects.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file has another format, or no row of the split; names the line.
  """
  readers = {'.tsv': read_tsv, '.jsonl': _read_jsonl}
  file, one_file = file_of(path, split, [*readers])
  reader = readers.get(pathlib.Path(plain_name(file)).suffix)
  if not reader:
    raise ValueError(f'{file}: rename it to *.tsv or *.jsonl (or .gz of these), as its content is.')
  rows = reader(file, inputs, targets)
  kept = (row for row in rows if not one_file or split_by_hash(row[0]) == split)
  yield from some(kept, file, split)


def read_labelled(path: pathlib.Path, split: str, targets: str) -> Iterator[tuple[str, str]]:
  """Yield (text, label) of lines `LABEL text` or `COARSE:FINE text` (TREC).

  Args:
    path: a folder with `<split>.txt`, or a file.
    split: its name.
    targets: label (the whole first word), coarse or fine.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: a line has no text or label, or no line is of the split.
  """
  parts = {'label': slice(None), 'coarse': slice(0, 1), 'fine': slice(1, None)}
  if targets not in parts:
    raise ValueError(f'data.target={targets!r} is none of {", ".join(parts)}')
  file, one_file = file_of(path, split, ['.txt'])

  def rows():
    for number, line in read_lines(file):
      first, _, text = line.partition(' ')
      label = ':'.join(first.split(':')[parts[targets]])
      row = _check_texts(f'{file}:{number}', text, label)
      if not one_file or split_by_hash(text) == split:
        yield row

  yield from some(rows(), file, split)


def in_memory(rows: Iterable[tuple[str, str]]) -> Pairs:
  """Return (input, target) rows as a source."""
  return Pairs(*zip(*rows, strict=True))


def read_text(path: pathlib.Path, split: str) -> Iterator[str]:
  """Yield the text of `<split>.txt` in a folder, or of a single file, in parts of whole lines.

  Of a single file 'train' is the first 90 % and 'val' the last 10 %, as usual for character-level
  language models.

  Args:
    path: a folder or a file.
    split: its name.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is blank, or the split is neither train nor val.
  """
  file, one_file = file_of(path, split, ['.txt'], ('train', 'val'))
  start, stop = 0, sys.maxsize
  if one_file:
    boundary = int(0.9 * sum(len(line) + 1 for _, line in read_lines(file)))
    start, stop = (0, boundary) if split == 'train' else (boundary, stop)
  waiting, size, place, blank = [], 0, 0, True
  for _, line in read_lines(file):
    line, place = f'{line}\n'[max(start - place, 0) : max(stop - place, 0)], place + len(line) + 1
    waiting.append(line)
    size, blank = size + len(line), blank and not line.strip()
    if size >= PART:
      yield ''.join(waiting)
      waiting, size = [], 0
  if blank:
    raise ValueError(f'{file} is empty; give it some text.')
  yield ''.join(waiting)


def read_tsv(file: pathlib.Path, inputs: str, targets: str) -> Iterator[tuple[str, str]]:
  """Yield (input, target) of a TSV file; its first line is a header if it has both column names."""
  columns, width = [0, 1], 2
  for number, line in read_lines(file):
    fields = line.split('\t')
    if number == 1 and inputs in fields and targets in fields:
      columns, width = [fields.index(inputs), fields.index(targets)], len(fields)
    elif number == 1 and (inputs, targets) != ('inputs', 'targets'):
      raise ValueError(
        f'{file}:1: no columns {inputs!r} and {targets!r} in the header {fields}; name its columns '
        "in inputs and targets (without a header: 'inputs' and 'targets')."
      )
    elif (
      number == 1
      and HEADER.issuperset(names := [f.strip().lower() for f in fields])
      and (1 < len(set(names)) == len(names))
    ):
      raise ValueError(
        f'{file}:1: {fields} seems to be a header: name two of its columns in inputs and targets '
        f'(data.source, data.target), as by --config.data.source={shlex.quote(fields[0])} '
        f'--config.data.target={shlex.quote(fields[1])}, or remove the line'
      )
    elif len(fields) != width:
      raise ValueError(
        f'{file}:{number}: {len(fields)} columns instead of {width}; put one tab between columns '
        'and none inside a text.'
      )
    else:
      yield _check_texts(f'{file}:{number}', fields[columns[0]], fields[columns[1]])


def _read_jsonl(file: pathlib.Path, inputs: str, targets: str) -> Iterator[tuple[str, str]]:
  for number, row in read_objects(file, inputs, targets):
    yield _check_texts(f'{file}:{number}', row[inputs], row[targets])


def _check_texts(where: str, *pair: Any) -> tuple[str, str]:
  for name, value in zip(('inputs', 'targets'), pair, strict=True):
    if not isinstance(value, str) or not value.strip() or re.search('[\ud800-\udfff]', value):
      raise ValueError(
        f'{where}: {name} is {value!r}; give a text of whole characters, or no line.'
      )
  return pair


def file_of(
  path: pathlib.Path,
  split: str,
  endings: list[str],
  splits: Sequence[str] = ('train', 'val', 'test'),
) -> tuple[pathlib.Path, bool]:
  """Return the file of a split, and whether it is a single file for all splits.

  Args:
    path: a folder, in which the first existing `<split><ending>` is taken, or a file.
    split: its name.
    endings: of the files in a folder.
    splits: into which a single file is divided.
  """
  if path.is_dir() or not (path.suffix or path.is_file()):
    return find_file(path, [split + ending for ending in endings]), False
  if split not in splits:
    names = f'{", ".join(splits[:-1])} and {splits[-1]}'
    raise ValueError(f'split {split!r}: one file is divided into {names}; take one.')
  return find_file(path.parent, [path.name]), True


def some(rows: Iterable[Any], file: pathlib.Path, split: str) -> Iterator[Any]:
  """Yield the rows of a split; raise ValueError if there is none."""
  empty = True
  for row in rows:
    empty = False
    yield row
  if empty:
    raise ValueError(
      f'{file}: no example for {split!r}. One file is divided 90/5/5 % by hash into train, val and '
      f'test; give more lines, or a folder with {split}{"".join(file.suffixes)}.'
    )
