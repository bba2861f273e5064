"""Data for token classification: files in CoNLL format, and synthetic sentences with entities."""

import itertools
import pathlib
from collections.abc import Iterator

import numpy as np

from transformer.data.files import find_file
from transformer.data.reading import read_lines
from transformer.data.splits import parse_split, take

NAMES = 'Anna Boris Clara David Emma Farid Grace Hugo'.split()
CITIES = 'Rome Oslo Lima Cairo Kyoto Quito'.split()
VERBS = 'visits likes left knows sees remembers'.split()
SIZES = {'train': 1000, 'val': 50, 'test': 50}


def conll(folder: pathlib.Path, split: str) -> list[dict[str, str]]:
  """Return the sentences of `<split>.conll` or `<split>.conll.gz`.

  Args:
    folder: has the file. Each line is a token: columns separated by tabs or spaces, of which the
      first is the word and the last its label. A blank line ends a sentence, and so does a
      -DOCSTART- line. Comment lines are not supported.
    split: name of the split, optionally with a slice, as in train[:90%].

  Returns:
    For each sentence {'inputs': words, 'targets': labels}, both joined by spaces.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file cannot be read, a line has one column only, or the slice is malformed or
      empty; names the file and the line.
  """
  name, _ = parse_split(split)
  file = find_file(folder, [f'{name}.conll'])
  return take(list(_sentences(file)), split, str(file))


def _sentences(file: pathlib.Path) -> Iterator[dict[str, str]]:
  words: list[str] = []
  labels: list[str] = []
  end = (0, '')  # a blank line, for the last sentence
  for number, line in itertools.chain(read_lines(file), [end]):
    columns = line.split()
    if columns[:1] == ['-DOCSTART-']:  # begins the documents of CoNLL-2003
      columns = []
    if len(columns) == 1:
      raise ValueError(f'{file}:{number}: {line!r} has no label: write WORD<TAB>LABEL')
    if columns:
      words.append(columns[0])
      labels.append(columns[-1])
    elif words:
      yield {'inputs': ' '.join(words), 'targets': ' '.join(labels)}
      words, labels = [], []


def entities(split: str) -> list[dict[str, str]]:
  """Return synthetic sentences about persons and locations, the same in every call.

  Splits are drawn independently of each other: about a third of the sentences of test are in train,
  too. There are no slices of splits.
  """
  if split not in SIZES:
    raise ValueError(f'unknown split {split!r} of entities: choose one of {", ".join(SIZES)}')
  rng = np.random.default_rng([*SIZES].index(split))
  examples = []
  for _ in range(SIZES[split]):
    pairs = [(str(rng.choice(NAMES)), 'B-person')]
    if rng.random() < 0.5:
      pairs.append((f'{rng.choice(NAMES)}son', 'I-person'))
    pairs.append((str(rng.choice(VERBS)), 'O'))
    if rng.random() < 0.5:
      pairs += [('New', 'B-location'), (str(rng.choice(CITIES)), 'I-location')]
    else:
      pairs.append((str(rng.choice(CITIES)), 'B-location'))
    words, labels = zip(*pairs, strict=True)
    examples.append({'inputs': ' '.join(words), 'targets': ' '.join(labels)})
  return examples
