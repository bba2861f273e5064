"""Recordings of eight words, yes or no, and synthetic ones joined from their words.

https://www.openslr.org/1; yes_no of TFDS.
"""

import pathlib
import re
from typing import Any

from transformer.data import audio
from transformer.data.concatenation import RATE, Concatenated, seed_of
from transformer.data.recordings import Example, sounds_of_split
from transformer.data.splits import parse_split, take


def yesno(folder: pathlib.Path, split: str) -> list[Example] | Concatenated:
  """Return the recordings, whose names are their transcripts: 0_0_1_1_0_1_1_1.wav, 1 is yes.

  Args:
    folder: has the archives or folders.
    split: train or test_visible, maybe with a slice; 'joined' for strings joined from train's
      words.
  """
  name, _ = parse_split(split)
  files = 'train' if name == 'joined' else name
  examples = []
  for file, sound in sorted(sounds_of_split(folder, files).items()):
    if not (match := re.fullmatch(r'([01](?:_[01])*)\.\w+', file)):
      raise ValueError(f'{folder}: {file} of {files} is not named as 0_1_1.wav, 1 yes and 0 no')
    text = ' '.join(('no', 'yes')[int(word)] for word in match[1].split('_'))
    examples.append({'inputs': sound, 'targets': text, 'name': file})
  examples = take(examples, split, 'yesno')
  if name != 'joined':
    return examples
  words = [word for recording in examples for word in split_words(recording)]
  return Concatenated(words, words=(2, 10), pause=0.6, size=8 * len(words), seed=seed_of(split))


def split_words(example: Example) -> list[Example]:
  """Return the words of a recording, each as an example with at most 0.1 s of silence around it.

  With a longer silence a model could recognize the first word of a recording, which is "no" in all
  of train. Returns [] if no threshold of loudness divides the recording into its number of words.
  """
  import librosa

  sound = audio.read(example['inputs'], RATE)
  words = example['targets'].split()
  sizes: dict[str, Any] = dict(frame_length=2048, hop_length=80)
  divided = [librosa.effects.split(sound, top_db=decibels, **sizes) for decibels in range(6, 60)]
  fitting = [spoken for spoken in divided if len(spoken) == len(words)]
  if not fitting:
    return []
  spoken, margin = fitting[len(fitting) // 2], RATE // 10
  middles = [0, *(spoken[:-1, 1] + spoken[1:, 0]) // 2, len(sound)]
  bounds = zip(spoken, middles[:-1], middles[1:], words, strict=True)
  return [
    {
      'inputs': sound[max(start - margin, first) : min(end + margin, last)],
      'targets': word,
      'name': word,
    }
    for (start, end), first, last, word in bounds
  ]
