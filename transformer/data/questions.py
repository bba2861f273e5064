"""Questions about paragraphs, their answers being pieces of these: SQuAD's files and TFDS's sets.

An example is {'inputs': question, 'targets': paragraph, 'answers': texts, 'starts': where each
begins in the paragraph, in characters, 'relevant': the paragraph's name}.
"""

import dataclasses
import gzip
import json
import operator
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np

from transformer.data import cloze
from transformer.data.splits import sliced

PER_PARAGRAPH = 5  # questions made of one
SHORTEST = 200  # characters of a line that is a paragraph and no heading
WIKITEXT = re.compile(r' @(.)@ | (?=[.,;:!?)])|(?<=\() ')  # its spaces around marks


Row = tuple[str, str, list[str], list[int], str]


@dataclasses.dataclass(frozen=True)
class Questions:
  """Questions in memory: (question, paragraph, answers, starts, name of the paragraph)."""

  rows: Sequence[Row]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
    question, paragraph, answers, starts, name = self.rows[operator.index(i)]
    return _example(question, paragraph, answers, starts) | {'relevant': f'{name}:1'}


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A TFDS data source with the features question, context and answers, such as squad/v1.1."""

  source: Any

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
    row = self.source[range(len(self))[i]]
    answers = [_line(bytes(text).decode()) for text in row['answers']['text']]
    starts = [int(start) for start in row['answers']['answer_start']]
    question, paragraph = (_line(row[key].decode()) for key in ('question', 'context'))
    return _example(question, paragraph, answers, starts)


def squad(folder: pathlib.Path, split: str) -> Questions:
  """The questions of `<split>.json`, or .json.gz, in the format of SQuAD 1.1.

  Args:
    folder: where the files are.
    split: names of files joined by +, each maybe with a slice of its articles, as in 'dev[12:]'.
      'cloze:NAME' are questions made of the file's paragraphs (see data.cloze), which may also
      be the long lines of a text, <NAME>.txt or .txt.gz.

  Raises:
    FileNotFoundError, ValueError: a file is not there, or not what it should be.
  """
  rows: list[Row] = []
  for part in split.split('+'):
    if part.startswith('cloze:'):
      rows += _cloze(folder, part.removeprefix('cloze:'))
      continue
    for name, paragraph in _paragraphs(folder, part):
      context = _line(paragraph['context'])
      if 'qas' not in paragraph:
        raise ValueError(f'{part!r} in {folder} asks no questions: cloze:{part} makes some of it')
      for asked in paragraph['qas']:
        answers = [_line(answer['text']) for answer in asked['answers']]
        starts = [answer['answer_start'] for answer in asked['answers']]
        for answer, start in zip(answers, starts, strict=True):
          if context[start : start + len(answer)] != answer:
            raise ValueError(
              f'{split} in {folder}: {answer!r}, the answer to {asked["question"]!r}, is not at '
              f'character {start} of its paragraph: count Unicode characters'
            )
        rows.append((_line(asked['question']), context, answers, starts, name))
  return Questions(rows)


def paragraphs(file: pathlib.Path) -> Iterator[tuple[str, str]]:
  """The names, 'Title/0', 'Title/1', ..., and the paragraphs of a file."""
  name = file.name.removesuffix('.gz').removesuffix('.json')
  found = _paragraphs(file.parent, name)
  return ((name, _line(paragraph['context'])) for name, paragraph in found)


def _paragraphs(folder: pathlib.Path, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """(name, paragraph) of a file, or of a slice of its articles."""
  name, of = sliced(part)
  files = [folder / (name + end) for end in ('.json', '.json.gz', '.txt', '.txt.gz')]
  file = next((file for file in files if file.is_file()), None)
  if file is None:
    raise FileNotFoundError(
      f'none of {", ".join(map(str, files))}: put SQuAD there (train-v1.1.json, dev-v1.1.json), or '
      'give the folder that has it as dir (data.dir) and the name of the file as a split'
    )
  try:
    with (gzip.open if file.suffix == '.gz' else open)(file, 'rt', encoding='utf-8') as opened:
      if '.txt' in file.suffixes:
        lines = [{'context': WIKITEXT.sub(r'\1', line.strip())} for line in opened]
        articles = [{'paragraphs': [p for p in lines if len(p['context']) >= SHORTEST]}]
      else:
        articles = json.load(opened)['data']
  except (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile) as error:
    raise ValueError(
      f'{file}: not in the format of SQuAD, {{"data": [{{"paragraphs": ...}}]}} ({error!r})'
    ) from error
  for article in articles[of(len(articles))]:
    title = re.sub(r'\s+', '_', str(article.get('title', '')))
    for number, paragraph in enumerate(article['paragraphs']):
      yield f'{title}/{number}', paragraph


def _cloze(folder: pathlib.Path, part: str) -> Iterator[Row]:
  rng = np.random.default_rng(0)
  for name, paragraph in _paragraphs(folder, part):
    context = _line(paragraph['context'])
    for question, answer, start in cloze.questions(context, PER_PARAGRAPH, rng):
      yield question, context, [answer], [start], name


def _example(question, paragraph, answers, starts) -> dict[str, Any]:
  return {'inputs': question, 'targets': paragraph, 'answers': answers, 'starts': starts}


def _line(text: str) -> str:
  """The text without tabs and line ends, character for character, as `predict` reads it."""
  return re.sub(r'\s', ' ', text)
