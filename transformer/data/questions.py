"""Questions whose answers are spans of a paragraph: files in SQuAD's format, and TFDS data sets.

An example is {'inputs': question, 'targets': paragraph, 'answers': texts, 'starts': index of the
first character of each answer in the paragraph, 'relevant': 'NAME:1' with the paragraph's name}.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np

from transformer.data import cloze
from transformer.data.files import find_file
from transformer.data.reading import check_field, naming, read_json, read_lines
from transformer.data.splits import parse_split

CLOZE_QUESTIONS = 5  # for each paragraph
MIN_PARAGRAPH = 200  # characters; a shorter line of a text is skipped, as a heading
WIKITEXT_SPACES = re.compile(r' @(.)@ | (?=[.,;:!?)])|(?<=\() ')  # around punctuation

FORMAT = 'write it in the format of SQuAD, {"data": [{"paragraphs": ...}]}'

Example = dict[str, Any]


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


def squad(folder: pathlib.Path, split: str) -> list[Example]:
  """Return the questions of `<split>.json`, or .json.gz, in the format of SQuAD 1.1.

  Args:
    folder: has the files.
    split: names of files joined by +, each maybe with a slice of its articles, as in 'dev[12:]'.
      'cloze:NAME' generates questions from the paragraphs of a file (see data.cloze), which are
      also the long lines of a text, <NAME>.txt or .txt.gz.

  Raises:
    FileNotFoundError: a file does not exist.
    ValueError: a file has another format, or an answer is not at the position in the file.
  """
  examples: list[Example] = []
  for part in split.split('+'):
    read = _cloze if part.startswith('cloze:') else _asked
    name, slice_of = parse_split(part.removeprefix('cloze:'))
    examples += read(find_file(folder, [f'{name}.json', f'{name}.txt']), slice_of)
  return examples


def paragraphs(file: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yield (name, text) of the paragraphs of a file, with names 'Title/0', 'Title/1', ..."""
  return ((name, context) for name, context, _ in _paragraphs(file, lambda _: slice(None)))


def example_of(question: str, paragraph: str, answers, starts, name: str) -> Example:
  """Return the example of a question; see the module for its fields."""
  return _example(question, paragraph, answers, starts) | {'relevant': f'{name}:1'}


def _paragraphs(file: pathlib.Path, slice_of: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """Yield (name, text, JSON object) of the paragraphs of a slice of a file's articles."""
  if '.txt' in file.suffixes:
    lines = (WIKITEXT_SPACES.sub(r'\1', line.strip()) for _, line in read_lines(file))
    articles = [{'paragraphs': [{'context': line} for line in lines if len(line) >= MIN_PARAGRAPH]}]
  else:
    articles = read_json(file)
  with naming(file, FORMAT):
    if '.txt' not in file.suffixes:
      articles = check_field(articles, 'data', list)
    for article in articles[slice_of(len(articles))]:
      items = check_field(article, 'paragraphs', list)
      title = re.sub(r'\s+', '_', str(article.get('title', '')))
      for number, paragraph in enumerate(items):
        yield f'{title}/{number}', _line(check_field(paragraph, 'context')), paragraph


def _asked(file: pathlib.Path, slice_of: Any) -> Iterator[Example]:
  for name, context, paragraph in _paragraphs(file, slice_of):
    if 'qas' not in paragraph:
      part = file.name.partition('.')[0]
      raise ValueError(f'{part!r} in {file.parent} has no questions: cloze:{part} generates some')
    with naming(f'{file}, {name}', FORMAT):
      for row in check_field(paragraph, 'qas', list):
        question = _line(check_field(row, 'question'))
        items = check_field(row, 'answers', list)
        answers = [_line(check_field(answer, 'text')) for answer in items]
        starts = [check_field(answer, 'answer_start', int) for answer in items]
        for answer, start in zip(answers, starts, strict=True):
          if start < 0 or context[start : start + len(answer)] != answer:
            raise ValueError(
              f'{answer!r}, the answer to {question!r}, is not at character {start} of its '
              'paragraph: count Unicode characters'
            )
        yield example_of(question, context, answers, starts, name)


def _cloze(file: pathlib.Path, slice_of: Any) -> Iterator[Example]:
  rng = np.random.default_rng(0)
  for name, context, _ in _paragraphs(file, slice_of):
    for question, answer, start in cloze.questions(context, CLOZE_QUESTIONS, rng):
      yield example_of(question, context, [answer], [start], name)


def _example(question, paragraph, answers, starts) -> dict[str, Any]:
  return {'inputs': question, 'targets': paragraph, 'answers': answers, 'starts': starts}


def _line(text: str) -> str:
  """Return the text with each white-space character as a space, which keeps character indices."""
  return re.sub(r'\s', ' ', text)
