"""Recordings with a table of transcripts: `{'inputs': sound, 'targets': text, 'name': file name}`.

A sound is the path or the bytes of a file (see data.audio), or precomputed frames [S, X].
"""

import pathlib
import unicodedata
from collections import Counter
from typing import Any

import numpy as np

from transformer.data.files import files_of_split, find_file, is_undivided
from transformer.data.reading import FileError, read_arrays
from transformer.data.splits import parse_split, take
from transformer.data.text_files import read_pairs

ENDINGS = ('.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.aiff', '.aif', '.au', '.sph')

Example = dict[str, Any]


def recordings(folder: pathlib.Path, split: str, inputs: str, targets: str) -> list[Example]:
  """Return the sounds of `<split>/` or `<split>.tar`, with transcripts of `<split>.tsv` or .jsonl.

  A folder without splits may have one table, and sounds in any subfolder; they are divided into
  splits by a hash of the names in the table.

  Args:
    folder: has the sounds and the table.
    split: its name, maybe with a slice.
    inputs: column of the table with the file names, with or without ending.
    targets: column with the transcripts.

  Raises:
    FileNotFoundError: the table or the sounds do not exist.
    ValueError: a sound of the table does not exist.
  """
  name, _ = parse_split(split)
  where = folder
  if undivided := is_undivided(folder, name):
    tables = [path for end in ('*.tsv*', '*.jsonl*') for path in sorted(folder.glob(end))]
    if len(tables) != 1:
      raise FileNotFoundError(
        f'{folder} has {len(tables)} tables of transcripts, *.tsv or *.jsonl: put one there, or '
        'give folders train and val, and train.tsv and val.tsv'
      )
    where = tables[0]
  sounds = sounds_of_split(folder, '' if undivided else name)
  files = {file.rpartition('.')[0]: file for file in sounds} | {file: file for file in sounds}
  examples = []
  for written, text in read_pairs(where, name, inputs, targets):
    sound = unicodedata.normalize('NFC', written)
    if sound not in files:
      raise ValueError(
        f'{folder / name}: no sound {sound!r}, which the table of {name} has: put its file there '
        f'(there now: {", ".join(sorted(sounds)[:5])}, ...) or remove the line'
      )
    examples.append({'inputs': sounds[files[sound]], 'targets': text, 'name': files[sound]})
  return take(examples, split, 'recordings')


def frames(folder: pathlib.Path, split: str, inputs: str, targets: str) -> list[Example]:
  """Return precomputed frames with the transcripts of a table, which `read_pairs` reads.

  `<split>.npz` or `<split>_mfcc.npz` has 'feats' [sum of S, X], the frames of all sounds one after
  the other, and 'lengths' [sounds], in the order of the table.

  Raises:
    FileNotFoundError: a file does not exist.
    ValueError: an array has another shape or type, or the numbers of the two files do not agree.
  """
  name, _ = parse_split(split)
  file = find_file(folder, [f'{name}.npz', f'{name}_mfcc.npz'])
  feats, lengths = read_arrays(file, 'feats', 'lengths')
  if feats.ndim != 2 or feats.dtype.kind not in 'fiu' or not np.isfinite(feats).all():
    raise FileError(f'{file}: feats is no array [frames, numbers] of finite numbers')
  if lengths.ndim != 1 or lengths.dtype.kind not in 'iu' or (lengths < 0).any():
    raise FileError(f'{file}: lengths is no array of positive integers')
  table = list(read_pairs(folder, name, inputs, targets))
  if len(table) != len(lengths) or lengths.sum() != len(feats):
    raise ValueError(
      f'{file} has {len(lengths)} lengths, {lengths.sum()} in all, for {len(table)} transcripts '
      f'and {len(feats)} frames: give a length for each transcript, which add up to all frames'
    )
  ends = np.cumsum(lengths)
  examples = [
    {'inputs': feats[end - length : end], 'targets': text, 'name': sound}
    for (sound, text), end, length in zip(table, ends, lengths, strict=True)
  ]
  return take(examples, split, 'frames')


def sounds_of_split(folder: pathlib.Path, split: str) -> dict[str, str | bytes]:
  """Return {file name: path or content} of the sounds of a split."""
  files = files_of_split(folder, split, ENDINGS)
  sounds = {pathlib.PurePath(name).name: sound for name, sound in files.items()}
  if len(sounds) < len(files):
    twice = Counter(pathlib.PurePath(name).name for name in files).most_common(1)[0][0]
    raise ValueError(f'{folder}: two sounds of {split} are called {twice}; give each its own name')
  return sounds
