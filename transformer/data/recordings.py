"""Recordings and what is said in them: `source[i] -> {'inputs': sound, 'targets': text, 'name'}`.

A sound is the path or the bytes of a file (see data.audio), or frames [S, X] that are ready-made.
"""

import dataclasses
import functools
import operator
import pathlib
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from transformer.data import audio
from transformer.data.archives import members
from transformer.data.splits import sliced
from transformer.data.textfiles import find, pairs

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
ENDINGS = ('.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.aiff', '.aif', '.au', '.sph')
RATE = 8000  # of telephones, and of all that is joined here, Hz

NAMES = ('recordings', 'frames', 'fsdd', 'fsdd_strings', 'yesno', 'keypad', 'keypad_strings')

Example = dict[str, Any]


def load(
  name: str, folder: pathlib.Path, split: str, inputs: str, targets: str
) -> 'list[Example] | Joined':
  """A split of one of `NAMES`; 'train[:2400]' and 'train[-300:]' are parts of one.

  How recordings are joined depends on how the split is written, and on nothing else.

  Raises:
    ValueError: the part has no recording, or the split is none of the corpus.
  """
  whole, part = sliced(split)
  if name == 'recordings':
    found = recordings(folder, whole, inputs, targets)
  elif name == 'frames':
    found = frames(folder, whole, inputs, targets)
  elif name == 'yesno':
    found = yesno(folder, 'train' if whole == 'joined' else whole)
  elif name.startswith('keypad'):
    found = keypad(whole)
  else:
    found = fsdd(folder, whole, targets)
  found = found[part(len(found))]
  if not found:
    raise ValueError(f'split {split!r} of {name} in {folder} has no recording: take another part')
  seed = zlib.crc32(split.encode())  # or val and test would say the same
  if name.endswith('strings'):
    return Joined(found, words=(3, 7), pause=0.4, size=2 * len(found), seed=seed)
  if whole == 'joined':
    words = [word for recording in found for word in cut(recording)]
    return Joined(words, words=(2, 10), pause=0.6, size=8 * len(words), seed=seed)
  return found


def recordings(folder: pathlib.Path, split: str, inputs: str, targets: str) -> list[Example]:
  """The sounds of `<split>/` or `<split>.tar`, and their transcripts from `<split>.tsv` or .jsonl.

  Args:
    folder: of both.
    split: what the files are called.
    inputs, targets: columns of a sound's name, with or without its ending, and of its transcript.

  Raises:
    ValueError: a sound is not there.
  """
  found = _sounds(folder, split)
  known = {**{name.rpartition('.')[0]: name for name in found}, **{name: name for name in found}}
  examples = []
  table = pairs(folder, split, inputs, targets)
  for wanted, text in zip(table.inputs, table.targets, strict=True):
    if wanted not in known:
      raise ValueError(
        f'{folder / split}: no sound {wanted!r}, which the table of {split} has: put its '
        f'file there (there now: {", ".join(sorted(found)[:5])}, ...) or take the line out'
      )
    name = known[wanted]
    examples.append({'inputs': found[name], 'targets': text, 'name': name})
  return examples


def frames(folder: pathlib.Path, split: str, inputs: str, targets: str) -> list[Example]:
  """Ready-made frames, of all sounds after each other, and their transcripts as in `recordings`.

  `<split>.npz` or `<split>_mfcc.npz` has 'feats' [all S, X], and 'lengths' in the table's order.
  """
  file = find(folder, [f'{split}.npz', f'{split}_mfcc.npz'])
  with np.load(file, allow_pickle=False) as arrays:
    feats, lengths = arrays['feats'], arrays['lengths']
  table = pairs(folder, split, inputs, targets)
  if len(table) != len(lengths) or lengths.sum() != len(feats):
    raise ValueError(
      f'{file} has {len(lengths)} lengths, {lengths.sum()} in all, for {len(table)} transcripts '
      f'and {len(feats)} frames: give a length for each transcript, which add up to all frames'
    )
  ends = np.cumsum(lengths)
  return [
    {'inputs': feats[end - length : end], 'targets': text, 'name': name}
    for name, text, end, length in zip(table.inputs, table.targets, ends, lengths, strict=True)
  ]


def fsdd(folder: pathlib.Path, split: str, targets: str = 'digit') -> list[Example]:
  """Spoken digits, <digit>_<speaker>_<index>.wav, in the order of their indices; adds 'speaker'.

  Jackson et al., https://github.com/Jakobovski/free-spoken-digit-dataset; spoken_digit of TFDS.

  Args:
    folder: of the archives or folders.
    split: train or test_visible.
    targets: 'speaker: digit' for 'george: seven', anything else for 'seven'.
  """
  examples = []
  for name, sound in _sounds(folder, split).items():
    if not (found := re.fullmatch(r'(\d)_(.+)_(\d+)\.\w+', name)):
      raise ValueError(f'{folder}: {name} of {split} is not named <digit>_<speaker>_<index>.wav')
    digit, speaker, index = found.groups()
    said = DIGITS[int(digit)]
    text = f'{speaker}: {said}' if targets == 'speaker: digit' else said
    example = {'inputs': sound, 'targets': text, 'name': name, 'speaker': speaker}
    examples.append((int(index), name, example))
  return [example for *_, example in sorted(examples, key=operator.itemgetter(0, 1))]


def yesno(folder: pathlib.Path, split: str) -> list[Example]:
  """Eight words in a recording, whose name says which: 0_0_1_1_0_1_1_1.wav, 1 is yes and 0 is no.

  https://www.openslr.org/1; yes_no of TFDS.
  """
  examples = []
  for name, sound in sorted(_sounds(folder, split).items()):
    if not (found := re.fullmatch(r'([01](?:_[01])*)\.\w+', name)):
      raise ValueError(f'{folder}: {name} of {split} is not named as 0_1_1.wav, 1 yes and 0 no')
    said = ' '.join(('no', 'yes')[int(word)] for word in found[1].split('_'))
    examples.append({'inputs': sound, 'targets': said, 'name': name})
  return examples


def keypad(split: str) -> list[Example]:
  """Recordings of each digit as a telephone's keypad dials it, two tones at a time: DTMF.

  ITU-T recommendation Q.23. Lengths, pitches and loudness vary within what Q.24 lets pass.
  """
  splits = ('train', 'val', 'test')
  if split not in splits:
    raise ValueError(f'unknown split {split!r} of keypad: take {", ".join(splits)}')
  random = np.random.default_rng(splits.index(split))
  examples = []
  for i in range(200 if split == 'train' else 30):
    digit = i % 10
    row, column = (3, 1) if digit == 0 else divmod(digit - 1, 3)
    time = np.arange(random.integers(RATE // 20, RATE // 8)) / RATE
    low, high = (
      10 ** random.uniform(-1.2, -0.4) * np.sin(2 * np.pi * hertz * random.normal(1, 0.005) * time)
      for hertz in ((697, 770, 852, 941)[row], (1209, 1336, 1477)[column])
    )
    sound = np.float32(low + high)
    examples.append({'inputs': sound, 'targets': DIGITS[digit], 'name': str(digit)})
  return examples


@dataclasses.dataclass(frozen=True)
class Joined:
  """Recordings of one speaker, one after the other, with pauses: wav files that are never stored.

  A pure function of i and the seed: who speaks, how many words, which recordings of them, the
  pauses and the noise of the line, white and so faint at times that nothing is left in 16 bits.

  Args:
    recordings: whose 'inputs' are sounds, and samples have RATE; without 'speaker' all are one's.
    words: smallest and largest number of recordings, both included; uniform.
    pause: longest pause between two of them and at both ends, in seconds; uniform.
    size: how many strings there are.
    seed: of all that is drawn.
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
    random = np.random.default_rng((self.seed, i))
    spoken = self._by_speaker[random.integers(len(self._by_speaker))]
    count = random.integers(*self.words, endpoint=True)
    chosen = [spoken[k] for k in random.integers(len(spoken), size=count)]
    pauses = [np.zeros(int(RATE * s)) for s in random.uniform(0, self.pause, count + 1)]
    parts = [pauses[0]]
    for example, pause in zip(chosen, pauses[1:], strict=True):
      parts += [example['inputs'], pause]
    sound = np.concatenate(parts)
    sound += random.normal(size=len(sound)) * 10 ** random.uniform(-5, -2)
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


def cut(example: Example) -> list[Example]:
  """The words of a recording, each a recording of its own, with a tenth of a second around it.

  No more, for who hears a long silence would know that a recording begins, and with what word. None
  where no loudness divides it into as many pieces as it has words.
  """
  import librosa

  sound = audio.read(example['inputs'], RATE)
  words = example['targets'].split()
  how: dict[str, Any] = dict(frame_length=2048, hop_length=80)
  divided = [librosa.effects.split(sound, top_db=decibels, **how) for decibels in range(6, 60)]
  fitting = [spoken for spoken in divided if len(spoken) == len(words)]
  if not fitting:
    return []
  spoken, margin = fitting[len(fitting) // 2], RATE // 10
  middles = [0, *(spoken[:-1, 1] + spoken[1:, 0]) // 2, len(sound)]
  return [
    {
      'inputs': sound[max(start - margin, first) : min(end + margin, last)],
      'targets': word,
      'name': word,
    }
    for (start, end), first, last, word in zip(
      spoken, middles[:-1], middles[1:], words, strict=True
    )
  ]


def _sounds(folder: pathlib.Path, split: str) -> dict[str, str | bytes]:
  """The sounds of a split, by file name."""
  found = members(folder, split, ENDINGS)
  sounds = {pathlib.PurePath(name).name: sound for name, sound in found.items()}
  if len(sounds) < len(found):
    twice = Counter(pathlib.PurePath(name).name for name in found).most_common(1)[0][0]
    raise ValueError(f'{folder}: two sounds of {split} are called {twice}; give each its own name')
  return sounds
