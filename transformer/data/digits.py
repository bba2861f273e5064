"""Digits as sounds, single or joined to strings: spoken (FSDD), and the tones of a keypad."""

import operator
import pathlib
import re

import numpy as np

from transformer.data.concatenation import RATE, Concatenated, seed_of
from transformer.data.recordings import Example, sounds_of_split
from transformer.data.splits import parse_split, take

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
KEYPAD_SPLITS = ('train', 'val', 'test')


def fsdd(folder: pathlib.Path, split: str, targets: str = 'digit') -> list[Example]:
  """Return recordings <digit>_<speaker>_<index>.wav in the order of their indices.

  Examples also have a 'speaker'. Jackson et al.,
  https://github.com/Jakobovski/free-spoken-digit-dataset; spoken_digit of TFDS.

  Args:
    folder: has the archives or folders.
    split: train or test_visible, maybe with a slice.
    targets: 'speaker: digit' for targets such as 'george: seven', otherwise they are 'seven'.
  """
  name, _ = parse_split(split)
  examples = []
  for file, sound in sounds_of_split(folder, name).items():
    if not (match := re.fullmatch(r'(\d)_(.+)_(\d+)\.\w+', file)):
      raise ValueError(f'{folder}: {file} of {name} is not named <digit>_<speaker>_<index>.wav')
    digit, speaker, index = match.groups()
    word = DIGITS[int(digit)]
    text = f'{speaker}: {word}' if targets == 'speaker: digit' else word
    example = {'inputs': sound, 'targets': text, 'name': file, 'speaker': speaker}
    examples.append((int(index), file, example))
  ordered = sorted(examples, key=operator.itemgetter(0, 1))
  return take([example for *_, example in ordered], split, 'fsdd')


def keypad(split: str) -> list[Example]:
  """Return synthetic recordings of the telephone signal of a digit, two tones (DTMF).

  ITU-T recommendation Q.23. Duration, pitch and loudness vary within the tolerances of Q.24.
  """
  name, _ = parse_split(split)
  if name not in KEYPAD_SPLITS:
    raise ValueError(f'unknown split {name!r} of keypad: take {", ".join(KEYPAD_SPLITS)}')
  rng = np.random.default_rng(KEYPAD_SPLITS.index(name))
  examples = []
  for i in range(200 if name == 'train' else 30):
    digit = i % 10
    row, column = (3, 1) if digit == 0 else divmod(digit - 1, 3)
    time = np.arange(rng.integers(RATE // 20, RATE // 8)) / RATE
    low, high = (
      10 ** rng.uniform(-1.2, -0.4) * np.sin(2 * np.pi * hertz * rng.normal(1, 0.005) * time)
      for hertz in ((697, 770, 852, 941)[row], (1209, 1336, 1477)[column])
    )
    sound = np.float32(low + high)
    examples.append({'inputs': sound, 'targets': DIGITS[digit], 'name': str(digit)})
  return take(examples, split, 'keypad')


def strings(digits: list[Example], split: str) -> Concatenated:
  """Return strings of 3 to 7 of these recordings, twice as many as there are recordings."""
  return Concatenated(digits, words=(3, 7), pause=0.4, size=2 * len(digits), seed=seed_of(split))
