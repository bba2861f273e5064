"""Synthetic data: sequences to copy, reverse or sort, for tests and first experiments.

copy: 3 1 2 -> 3 1 2        reverse: 3 1 2 -> 2 1 3        sort: 3 1 2 -> 1 2 3
"""

import dataclasses
import operator
import string
from collections.abc import Callable
from typing import SupportsIndex

import numpy as np

from transformer.data.splits import split_by_hash

TASKS: dict[str, Callable[[list[str]], list[str]]] = {
  'copy': list,
  'reverse': lambda symbols: symbols[::-1],
  'sort': sorted,
}
SYMBOLS = string.digits + string.ascii_lowercase  # in sorting order
SIZES = {'train': 100_000, 'val': 1_000, 'test': 1_000, 'longer': 1_000}


@dataclasses.dataclass(frozen=True)
class Algorithmic:
  """`source[i] -> {'inputs': '3 1 2', 'targets': '2 1 3'}` for 'reverse'.

  An example is a pure function of (split, i): nothing is stored, and workers may read in any order.
  Splits share no sequence: `split_by_hash` of the text (90/5/5 %) decides. All sequences of one or
  two symbols are in train, because there are too few of them to test anything. Sequences of
  'longer' have up to twice as many symbols as any other, to test whether the rule was learned.

  Args:
    task: 'copy', 'reverse' or 'sort'.
    split: 'train', 'val', 'test' or 'longer'.
    lengths: smallest and largest number of symbols of a sequence, both included; uniform. In
      'longer' the lengths are from one more than the largest to twice the largest.
    symbols: number of different symbols, 2 to 36: digits, then letters.
    size: number of examples, 0 for `SIZES[split]`; a smaller size is a prefix of a larger one.

  Raises:
    ValueError: an argument is out of range, or there is no sequence for the split.
  """

  task: str
  split: str
  _: dataclasses.KW_ONLY
  lengths: tuple[int, int] = (1, 20)
  symbols: int = 10
  size: int = 0

  def __post_init__(self):
    if self.task not in TASKS:
      raise ValueError(f'unknown task {self.task!r}: take one of {", ".join(TASKS)}')
    if self.split not in SIZES:
      raise ValueError(f'unknown split {self.split!r} of {self.task}: take {", ".join(SIZES)}')
    if not 1 <= self.lengths[0] <= self.lengths[1]:
      raise ValueError(f'lengths={self.lengths}: give (smallest, largest), 1 or more symbols each')
    if not 2 <= self.symbols <= len(SYMBOLS):
      raise ValueError(f'symbols={self.symbols}: give a number from 2 to {len(SYMBOLS)}')
    if self.size < 0:
      raise ValueError(f'size={self.size} examples: give a positive number, or 0 for the default')

  def __len__(self) -> int:
    return self.size or SIZES[self.split]

  def __getitem__(self, i: SupportsIndex) -> dict[str, str]:
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f'example {i} of {len(self)}: the index runs from 0 to {len(self) - 1}')
    rng = np.random.default_rng(i)
    largest, longer = self.lengths[1], self.split == 'longer'
    for _ in range(1000):  # val and test need 20 attempts on average
      length = rng.integers(
        *((largest + 1, 2 * largest) if longer else self.lengths), endpoint=True
      )
      symbols = [SYMBOLS[s] for s in rng.integers(self.symbols, size=length)]
      text = ' '.join(symbols)
      if longer or self.split == (split_by_hash(text) if length > 2 else 'train'):
        return {'inputs': text, 'targets': ' '.join(TASKS[self.task](symbols))}
    raise ValueError(
      f'lengths={self.lengths} and symbols={self.symbols} leave no sequence for {self.split!r}; '
      'let them be longer (one or two symbols are for train only).'
    )
