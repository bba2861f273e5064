"""Corpora: `load(name, split)` returns examples {'inputs': ..., 'targets': text} by their index.

An input is a text, or an image or sound: a path, the bytes of a file, or an array. An example may
also have a 'name' of its input, to be displayed.

name                  examples
dates                 dates in 40 locales -> ISO 8601, synthetic
copy, reverse, sort   digits -> digits, synthetic
parallel              line-aligned <dir>/<split>.<inputs> and <dir>/<split>.<targets>, maybe .gz
pairs                 TSV or JSONL: <dir>/<split>.tsv, or a file <dir>, divided by hash
labelled              `LABEL text` lines: <dir>/<split>.txt, or a file <dir>, divided by hash
text                  whole texts: <dir>/<split>.txt, or a file <dir>, whose last tenth is 'val'
documents             many texts: <dir>/<split>.jsonl (key text), .parquet (the extra parquet) or
                      .txt (one a line), or a file <dir>, divided by hash
prepared              the output of --mode=prepare in <dir>, or nanoGPT's <dir>/<split>.bin with a
                      tokenizer.json; of any size, see data.prepared
shapes                images of shapes -> their names, or captions, synthetic
idx                   MNIST's files: <dir>/<split>-images-idx3-ubyte and labels, maybe .gz or .xz
images                <dir>/<split>/<class>/<file>, or <split>.tar of <class>/<file>, or
                      <dir>/<class>/<file>, divided by hash
captions              images in <dir>/<split> or <split>.tar, and <dir>/<split>_captions.tsv
recordings            <dir>/<split>/ or .tar of sounds, and <split>.tsv: their names and texts; or
                      a folder of sounds and one table, divided by hash
frames                precomputed frames: <dir>/<split>.npz (feats, lengths) in order of <split>.tsv
conll                 words and their labels, a pair a line: <dir>/<split>.conll, maybe .gz
entities              the same, synthetic
fsdd                  spoken digits <digit>_<speaker>_<index>.wav, in the order of their indices
fsdd_strings          strings of 3 to 7 of them, of one speaker
yesno                 0_0_1_1_0_1_1_1.wav -> 'no no yes ...'; split 'joined': new strings of words
squad                 question -> paragraph, and the answers in it: <dir>/<split>.json
squad/v1.1            the same, prepared by TFDS
facts                 the same, synthetic
cranfield             title -> abstract, or query -> relevant abstracts: <dir>/docs.jsonl.gz, ...
keypad, ..._strings   a digit, or 3 to 7, as the tones of a telephone, synthetic
any other             the TFDS data set of this name, prepared in <dir>; needs no TensorFlow

Text files and archives may be compressed: .gz, .xz or .bz2. Texts are UTF-8, or UTF-16 or -32 with
a byte order mark. Links are followed, hidden files are skipped. An error in a file is raised with
its name; see data.reading.

For files and TFDS a split may be a slice, such as train[:90%], train[90%:] or train[2400:]. A
corpus of your own is a function like those in SOURCES.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from transformer.data import (
  algorithmic,
  conll,
  cranfield,
  digits,
  document_files,
  facts,
  image_files,
  prepared,
  questions,
  recordings,
  shapes,
  text_files,
  tfds,
  yesno,
)


@runtime_checkable
class Source(Protocol):
  """A sequence of examples, such as a list."""

  def __len__(self) -> int: ...
  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]: ...


def _dates(split: str) -> Source:
  from transformer.data import dates  # needs Babel

  return dates.Dates(split)


# {name: function (dir, split, inputs, targets) that opens a split}
SOURCES: dict[str, Callable[[pathlib.Path, str, str, str], Any]] = {
  'dates': lambda dir, split, *_: _dates(split),
  'copy': lambda dir, split, *_: algorithmic.Algorithmic('copy', split),
  'reverse': lambda dir, split, *_: algorithmic.Algorithmic('reverse', split),
  'sort': lambda dir, split, *_: algorithmic.Algorithmic('sort', split),
  'shapes': lambda dir, split, _, targets: shapes.Shapes(split, targets),
  'facts': lambda dir, split, *_: facts.facts(split),
  'keypad': lambda dir, split, *_: digits.keypad(split),
  'keypad_strings': lambda dir, split, *_: digits.strings(digits.keypad(split), split),
  'parallel': lambda *where: text_files.in_memory(text_files.read_parallel(*where)),
  'pairs': lambda *where: text_files.in_memory(text_files.read_pairs(*where)),
  'labelled': lambda dir, split, _, targets: text_files.in_memory(
    text_files.read_labelled(dir, split, targets)
  ),
  'text': lambda dir, split, *_: [{'targets': ''.join(text_files.read_text(dir, split))}],
  'documents': lambda *where: list(STREAMS['documents'](*where)),
  'prepared': lambda dir, split, *_: prepared.Prepared.open(dir, split),
  'conll': lambda dir, split, *_: conll.conll(dir, split),
  'entities': lambda dir, split, *_: conll.entities(split),
  'idx': lambda dir, split, *_: image_files.idx(dir, split),
  'images': lambda dir, split, *_: image_files.labelled(dir, split),
  'captions': lambda dir, split, *_: image_files.captioned(dir, split),
  'squad': lambda dir, split, *_: questions.squad(dir, split),
  'cranfield': lambda dir, split, *_: cranfield.cranfield(dir, split),
  'recordings': recordings.recordings,
  'frames': recordings.frames,
  'fsdd': lambda dir, split, _, targets: digits.fsdd(dir, split, targets),
  'fsdd_strings': lambda dir, split, *_: digits.strings(digits.fsdd(dir, split), split),
  'yesno': lambda dir, split, *_: yesno.yesno(dir, split),
}


# The corpora that can be read one example after the other, without all of them in memory.
STREAMS: dict[str, Callable[[pathlib.Path, str, str, str], Iterator[dict[str, Any]]]] = {
  'parallel': lambda *where: _named(text_files.read_parallel(*where)),
  'pairs': lambda *where: _named(text_files.read_pairs(*where)),
  'labelled': lambda dir, split, _, targets: _named(text_files.read_labelled(dir, split, targets)),
  'text': lambda dir, split, *_: ({'targets': x} for x in text_files.read_text(dir, split)),
  'documents': lambda dir, split, _, targets: document_files.documents(dir, split, targets),
}


def _named(rows: Iterator[tuple[str, str]]) -> Iterator[dict[str, Any]]:
  return ({'inputs': inputs, 'targets': targets} for inputs, targets in rows)


def load(
  name: str | Callable[[pathlib.Path, str, str, str], Source],
  split: str,
  *,
  dir: str | os.PathLike = '',
  inputs: str = 'inputs',
  targets: str = 'targets',
  limit: int = 0,
) -> Source:
  """Open one split of a corpus; nothing is ever downloaded.

  Args:
    name: one of SOURCES; a TFDS name such as 'my_set' or 'wmt14_translate/de-en' (or, to fix the
      version, 'my_set:1.0.0'); or a function (dir, split, inputs, targets) that opens a split.
    split: 'train', 'val', 'test', or the name in the files or the TFDS data set ('train[:10%]').
    dir: the folder of the files; '' is the current folder, for TFDS $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    inputs: language ('parallel'), column or key ('pairs') or feature (TFDS) that becomes 'inputs'.
    targets: the same for 'targets'; label or caption for 'shapes'.
    limit: the number of examples to keep, from the first; 0 keeps all.

  Returns:
    A source: `len(source)`, `source[i] -> {'inputs': ..., 'targets': ...}`. 'dates' adds 'locale';
      'text' has one example for a file, without 'inputs'; images also have a 'name', and captioned
      ones 'references', all their captions. For 'squad' and 'cranfield' see their modules.

  Raises:
    FileNotFoundError: a file or data set does not exist; says where it was expected, what is there,
      and how to get it.
    ValueError: an unknown split, column or feature, or a file of another format (names file:line).
  """
  if limit < 0:
    raise ValueError(f'limit={limit} examples: give a positive number, or 0 for all')
  folder = pathlib.Path(dir).expanduser()
  if callable(name):
    source: Any = name(folder, split, inputs, targets)
    if not isinstance(source, Source):
      kind = type(source).__name__
      raise ValueError(f'{name.__name__} returned a {kind} for {split!r}: return a list')
  elif name in SOURCES:
    source = SOURCES[name](folder, split, inputs, targets)
  elif name.startswith('squad/'):
    source = questions.TfdsQuestions(tfds.open_builder(name, dir, ()).as_data_source(split))
  else:
    source = tfds.load(name, split, dir, inputs, targets, [*SOURCES])
  return First(source, min(limit, len(source))) if limit else source


def stream(
  name: Any, split: str, *, dir: str | os.PathLike, inputs: str, targets: str
) -> Iterator[dict[str, Any]]:
  """Yield the examples of a split one after the other; corpora of STREAMS are not held in memory.

  The arguments and errors are those of `load`. A 'text' is divided into parts, each an example.
  """
  if isinstance(name, str) and name in STREAMS:
    return STREAMS[name](pathlib.Path(dir).expanduser(), split, inputs, targets)
  source = load(name, split, dir=dir, inputs=inputs, targets=targets)
  return (source[i] for i in range(len(source)))


def chunks(source: Source, size: int = 1024) -> Iterator[list[dict[str, Any]]]:
  """Yield the examples in order, `size` at a time."""
  for start in range(0, len(source), size):
    yield [source[i] for i in range(start, min(start + size, len(source)))]


@dataclasses.dataclass(frozen=True)
class First:
  """The first `size` examples of `source`."""

  source: Source
  size: int

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
    return self.source[range(self.size)[i]]
