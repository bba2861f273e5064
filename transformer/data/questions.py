"""Questions whose answers are spans of a paragraph: files in SQuAD's format, and TFDS's data sets.

An example is {'inputs': question, 'targets': paragraph, 'answers': texts, 'starts': the index of
each answer's first character in the paragraph, 'relevant': the paragraph's name}.
"""

import dataclasses
import json
import operator
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np

from transformer.data import cloze
from transformer.data.files import CORRUPT, open_file
from transformer.data.splits import parse_split

CLOZE_QUESTIONS = 5  # for each paragraph
MIN_PARAGRAPH = 200  # characters; a shorter line of a text is a heading
WIKITEXT_SPACES = re.compile(r' @(.)@ | (?=[.,;:!?)])|(?<=\() ')  # around punctuation

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
class TfdsQuestions:
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
  """Return the questions of `<split>.json`, or .json.gz, in the format of SQuAD 1.1.

  Args:
    folder: has the files.
    split: names of files joined by +, each maybe with a slice of its articles, as in 'dev[12:]'.
      'cloze:NAME' generates questions from the file's paragraphs (see data.cloze); these may also
      be the long lines of a text, <NAME>.txt or .txt.gz.

  Raises:
    FileNotFoundError: a file does not exist.
    ValueError: a file has another format, or an answer is not where it should be.
  """
  rows: list[Row] = []
  for part in split.split('+'):
    if part.startswith('cloze:'):
      rows += _cloze(folder, part.removeprefix('cloze:'))
      continue
    for name, paragraph in _paragraphs(folder, part):
      context = _line(paragraph['context'])
      if 'qas' not in paragraph:
        raise ValueError(f'{part!r} in {folder} has no questions: cloze:{part} generates some')
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
  """Yield the names, 'Title/0', 'Title/1', ..., and the paragraphs of a file."""
  name = file.name.removesuffix('.gz').removesuffix('.json')
  found = _paragraphs(file.parent, name)
  return ((name, _line(paragraph['context'])) for name, paragraph in found)


def _paragraphs(folder: pathlib.Path, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yield (name, paragraph) of a file, or of a slice of its articles."""
  name, slice_of = parse_split(part)
  files = [folder / (name + end) for end in ('.json', '.json.gz', '.txt', '.txt.gz')]
  file = next((file for file in files if file.is_file()), None)
  if file is None:
    raise FileNotFoundError(
      f'none of {", ".join(map(str, files))}: put SQuAD there (train-v1.1.json, dev-v1.1.json), or '
      'give the folder that has it as dir (data.dir) and the name of the file as a split'
    )
  try:
    with open_file(file, 'rt', encoding='utf-8') as opened:
      if '.txt' in file.suffixes:
        lines = [{'context': WIKITEXT_SPACES.sub(r'\1', line.strip())} for line in opened]
        articles = [{'paragraphs': [p for p in lines if len(p['context']) >= MIN_PARAGRAPH]}]
      else:
        articles = json.load(opened)['data']
  except (ValueError, KeyError, TypeError, *CORRUPT) as error:
    raise ValueError(
      f'{file}: not in the format of SQuAD, {{"data": [{{"paragraphs": ...}}]}} ({error!r})'
    ) from error
  for article in articles[slice_of(len(articles))]:
    title = re.sub(r'\s+', '_', str(article.get('title', '')))
    for number, paragraph in enumerate(article['paragraphs']):
      yield f'{title}/{number}', paragraph


def _cloze(folder: pathlib.Path, part: str) -> Iterator[Row]:
  rng = np.random.default_rng(0)
  for name, paragraph in _paragraphs(folder, part):
    context = _line(paragraph['context'])
    for question, answer, start in cloze.questions(context, CLOZE_QUESTIONS, rng):
      yield question, context, [answer], [start], name


def _example(question, paragraph, answers, starts) -> dict[str, Any]:
  return {'inputs': question, 'targets': paragraph, 'answers': answers, 'starts': starts}


def _line(text: str) -> str:
  """Return the text with a space for each tab and line end, so that character indices stay."""
  return re.sub(r'\s', ' ', text)
