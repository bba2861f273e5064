"""Recordings made by joining several short ones of the same speaker."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np

from transformer.data import audio
from transformer.data.recordings import Example

RATE = 8000  # Hz, as in telephony


@dataclasses.dataclass(frozen=True)
class Concatenated:
  """Recordings of one speaker joined with pauses and white noise; 'inputs' is a wav file as bytes.

  An example is a pure function of i and the seed, which choose the speaker, the recordings, the
  pauses and the level of the noise (the faintest vanishes in 16 bits). Nothing is stored.

  Args:
    recordings: their 'inputs' are sounds (arrays of samples have RATE); without 'speaker' all are
      of one speaker.
    words: smallest and largest number of recordings, both included; uniform.
    pause: longest pause between two recordings and at both ends, in seconds; uniform.
    size: number of examples.
    seed: of all random choices.
  """

  recordings: Sequence[Example]
  _: dataclasses.KW_ONLY
  words: tuple[int, int]
  pause: float
  size: int
  seed: int

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: SupportsIndex) -> Example:
    i = range(self.size)[i]
    rng = np.random.default_rng((self.seed, i))
    spoken = self._by_speaker[rng.integers(len(self._by_speaker))]
    count = rng.integers(*self.words, endpoint=True)
    chosen = [spoken[k] for k in rng.integers(len(spoken), size=count)]
    pauses = [np.zeros(int(RATE * s)) for s in rng.uniform(0, self.pause, count + 1)]
    parts = [pauses[0]]
    for example, pause in zip(chosen, pauses[1:], strict=True):
      parts += [example['inputs'], pause]
    sound = np.concatenate(parts)
    sound += rng.normal(size=len(sound)) * 10 ** rng.uniform(-5, -2)
    return {
      'inputs': audio.encode(sound, RATE),
      'targets': ' '.join(example['targets'] for example in chosen),
      'name': '+'.join(example['name'] for example in chosen),
    }

  @functools.cached_property
  def _by_speaker(self) -> list[list[Example]]:
    """The recordings of each speaker, as samples."""
    spoken: dict[str, list[Example]] = {}
    for example in self.recordings:
      sound = audio.read(example['inputs'], RATE)
      spoken.setdefault(example.get('speaker', ''), []).append(dict(example, inputs=sound))
    return [spoken[speaker] for speaker in sorted(spoken)]


def seed_of(split: str) -> int:
  """Return a seed for a split, so that no two splits are equal."""
  return zlib.crc32(split.encode())
