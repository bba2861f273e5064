"""Words with labels, one a line, in the format of the CoNLL shared tasks; and synthetic ones."""

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
  """Return the sentences of `<split>.conll`, maybe .gz: lines of words and of their labels.

  Args:
    folder: has the file: a word and its label on each line, the first and the last of the columns,
      which tabs or spaces separate, and a blank line after each sentence.
    split: its name, maybe with a slice, as in train[:90%].

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: a line has one column only; names it.
  """
  name, _ = parse_split(split)
  file = find_file(folder, [f'{name}.conll', f'{name}.conll.gz'])
  return take(list(_sentences(file)), split, str(file))


def _sentences(file: pathlib.Path) -> Iterator[dict[str, str]]:
  words: list[str] = []
  labels: list[str] = []
  for number, line in [*read_lines(file), (0, '')]:
    columns = line.split()
    if columns and columns[0] == '-DOCSTART-':  # CoNLL-2003 begins documents with it
      continue
    if len(columns) == 1:
      raise ValueError(f'{file}:{number}: {line!r} is a word without a label: add it after a tab')
    if columns:
      words.append(columns[0])
      labels.append(columns[-1])
    elif words:
      yield {'inputs': ' '.join(words), 'targets': ' '.join(labels)}
      words, labels = [], []


def entities(split: str) -> list[dict[str, str]]:
  """Return synthetic sentences about persons and locations, always the same."""
  if split not in SIZES:
    raise ValueError(f'unknown split {split!r} of entities: take {", ".join(SIZES)}')
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
