"""Your own text files: line-aligned ones, pairs (TSV, JSONL), whole texts; UTF-8, maybe .gz."""

import dataclasses
import gzip
import json
import operator
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

from transformer.data.splits import split_of


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Two lists of the same length, in memory."""

  inputs: Sequence[str]
  targets: Sequence[str]

  def __len__(self) -> int:
    return len(self.inputs)

  def __getitem__(self, i: SupportsIndex) -> dict[str, str]:
    i = operator.index(i)
    return {'inputs': self.inputs[i], 'targets': self.targets[i]}


def parallel(folder: pathlib.Path, split: str, inputs: str, targets: str) -> Pairs:
  """Line i of `<split>.<inputs>` with line i of `<split>.<targets>`; blank lines are kept."""
  paths = [find(folder, [f'{split}.{lang}', f'{split}.{lang}.gz']) for lang in (inputs, targets)]
  sides = [[text for _, text in _lines(path)] for path in paths]
  if len(sides[0]) != len(sides[1]):
    raise ValueError(
      f'{paths[0]} has {len(sides[0])} lines, {paths[1]} has {len(sides[1])}; line i of one must '
      'be the translation of line i of the other. Restore the missing lines (blank, if need be).'
    )
  if not sides[0]:
    raise ValueError(f'{paths[0]} is empty; give at least one line.')
  return Pairs(*sides)


def pairs(path: pathlib.Path, split: str, inputs: str, targets: str) -> Pairs:
  """`<split>.tsv` or `<split>.jsonl` of a folder; one single file is divided by `split_of`.

  TSV has no quoting: two columns, or more below a header that holds the names inputs and targets.
  """
  readers = {'.tsv': tsv, '.jsonl': _jsonl, '.tsv.gz': tsv, '.jsonl.gz': _jsonl}
  one_file = bool(path.suffix) and not path.is_dir()
  if one_file and split not in ('train', 'val', 'test'):
    raise ValueError(f'split {split!r}: one file is divided into train, val and test; take one.')
  names = [path.name] if one_file else [split + end for end in readers]
  file = find(path.parent if one_file else path, names)
  reader = next((readers[end] for end in readers if file.name.endswith(end)), None)
  if not reader:
    raise ValueError(f'{file}: rename it to *.tsv or *.jsonl (or .gz of these), as its content is.')
  rows = reader(file, inputs, targets)
  found = [row for row in rows if not one_file or split_of(row[0]) == split]
  if not found:
    raise ValueError(
      f'{file}: no example for {split!r}. One file is divided 90/5/5 % by hash into train, val and '
      f'test; give more lines, or a folder with {split}.tsv or {split}.jsonl.'
    )
  return Pairs(*zip(*found, strict=True))


def labelled(path: pathlib.Path, split: str, targets: str) -> Pairs:
  """Lines `LABEL text` or `COARSE:FINE text` (TREC) of `<split>.txt`, or of one file.

  Args:
    path: a folder, or a file that is divided by `split_of`.
    split: which part.
    targets: what is to be found: label (the whole first word), coarse or fine.
  """
  parts = {'label': slice(None), 'coarse': slice(0, 1), 'fine': slice(1, None)}
  if targets not in parts:
    raise ValueError(f'data.targets={targets!r} is none of {", ".join(parts)}')
  one_file = path.is_file()
  names = [path.name] if one_file else [f'{split}.txt', f'{split}.txt.gz']
  file = find(path.parent if one_file else path, names)
  found = []
  for number, line in _lines(file):
    first, _, text = line.partition(' ')
    label = ':'.join(first.split(':')[parts[targets]])
    text, label = _filled(f'{file}:{number}', text, label)
    if not one_file or split_of(text) == split:
      found.append((text, label))
  if not found:
    raise ValueError(f'{file}: no example for {split!r}; one file is divided into train, val, test')
  return Pairs(*zip(*found, strict=True))


def text(path: pathlib.Path, split: str) -> list[dict[str, str]]:
  """`<split>.txt` of a folder as one example; of one single file 'train' is the first 90 %.

  That is the division of character-level language models; 'val' is the last tenth.
  """
  one_file = path.is_file()
  if one_file and split not in ('train', 'val'):
    raise ValueError(f'split {split!r}: one file is divided into train and val; take one.')
  names = [path.name] if one_file else [f'{split}.txt', f'{split}.txt.gz']
  file = find(path.parent if one_file else path, names)
  whole = ''.join(f'{line}\n' for _, line in _lines(file))
  if not whole.strip():
    raise ValueError(f'{file} is empty; give it some text.')
  if one_file:
    cut = int(0.9 * len(whole))
    whole = whole[:cut] if split == 'train' else whole[cut:]
  return [{'targets': whole}]


def tsv(file: pathlib.Path, inputs: str, targets: str) -> Iterator[tuple[str, str]]:
  """(inputs, targets) of each line; the first one is a header where it holds both names."""
  columns, width = [0, 1], 2
  for number, line in _lines(file):
    fields = line.split('\t')
    if number == 1 and inputs in fields and targets in fields:
      columns, width = [fields.index(inputs), fields.index(targets)], len(fields)
    elif number == 1 and (inputs, targets) != ('inputs', 'targets'):
      raise ValueError(
        f'{file}:1: no columns {inputs!r} and {targets!r} in the header {fields}; name its columns '
        "in inputs and targets (without a header: 'inputs' and 'targets')."
      )
    elif len(fields) != width:
      raise ValueError(
        f'{file}:{number}: {len(fields)} columns instead of {width}; put one tab between columns '
        'and none inside a text.'
      )
    else:
      yield _filled(f'{file}:{number}', fields[columns[0]], fields[columns[1]])


def _jsonl(file: pathlib.Path, inputs: str, targets: str) -> Iterator[tuple[str, str]]:
  for number, line in _lines(file):
    try:
      row = json.loads(line)
      pair = row[inputs], row[targets]
    except json.JSONDecodeError as error:
      raise ValueError(f'{file}:{number}: not JSON ({error}); write one object a line.') from error
    except (KeyError, TypeError) as error:
      there = f'keys {", ".join(row)}' if isinstance(row, dict) else type(row).__name__
      raise ValueError(
        f'{file}:{number}: no object with the keys {inputs!r} and {targets!r}, but {there}; name '
        'its keys in inputs and targets.'
      ) from error
    yield _filled(f'{file}:{number}', *pair)


def _filled(where: str, *pair: Any) -> tuple[str, str]:
  for name, value in zip(('inputs', 'targets'), pair, strict=True):
    if not isinstance(value, str) or not value.strip() or re.search('[\ud800-\udfff]', value):
      raise ValueError(
        f'{where}: {name} is {value!r}; give a text of whole characters, or no line.'
      )
  return pair


def _lines(file: pathlib.Path) -> Iterator[tuple[int, str]]:
  """(number, text) of each line; LF or CR LF ends one (str.splitlines also cuts at U+2028)."""
  with (gzip.open if file.suffix == '.gz' else open)(file, 'rb') as opened:
    number = 0
    try:
      for number, line in enumerate(opened, 1):
        text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
        yield number, text.removesuffix('\n').removesuffix('\r')
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{file}:{number}: not UTF-8 ({error}); convert it, e.g. iconv -f latin1 -t utf-8.'
      ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise ValueError(f'{file}:{number + 1}: broken gzip ({error}); copy it anew.') from error


def find(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
  """The first of `names` in `folder`."""
  for path in (folder / name for name in names):
    if path.is_file():
      return path
  there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ['not even the folder']
  raise FileNotFoundError(
    f'none of {", ".join(str(folder / name) for name in names)}. Put one of them there, or give '
    f'the folder that has it as dir (data.dir). There now: {", ".join(there[:30]) or "nothing"}.'
  )
