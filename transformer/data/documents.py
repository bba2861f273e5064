"""Collections of documents for retrieval."""

import functools
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from transformer.data import questions, text_files
from transformer.data.facts import facts
from transformer.data.reading import check_field, naming, plain_name, read_objects


@functools.lru_cache(maxsize=2)
def collection(where: str) -> dict[str, str]:
  """Return {name: text} of all documents in a file.

  Args:
    where: a file of lines NAME<TAB>TEXT (.tsv), of objects with id and text (.jsonl, as in
      Cranfield) or of paragraphs in SQuAD's format (.json), each maybe .gz; or facts:SPLIT for the
      synthetic paragraphs of data.facts.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file has another format, or two documents have the same name.
  """
  if where.startswith('facts:'):
    examples = facts(where.removeprefix('facts:'))
    return {row['relevant'].removesuffix(':1'): row['targets'] for row in examples}
  file = pathlib.Path(where).expanduser()
  name = plain_name(file)
  if not file.is_file() or not name.endswith(('.tsv', '.jsonl', '.json')):
    raise FileNotFoundError(
      f'{where!r} is no collection of documents: give a file *.tsv of lines NAME<TAB>TEXT, *.jsonl '
      'of objects with id and text, or *.json as SQuAD is (decode.collection)'
    )
  if name.endswith('.json'):
    rows = [*questions.paragraphs(file)]
  elif name.endswith('.jsonl'):
    rows = [(str(row['id']), row['text']) for row in read_documents(file) if row['text'].strip()]
  else:
    rows = [*text_files.read_pairs(file.parent, name.removesuffix('.tsv'), 'inputs', 'targets')]
  documents = dict(rows)
  if wrong := [name for name in documents if not name or re.search(r'\s', name)]:
    raise ValueError(f'{file}: the name of a document is one word; {wrong[0]!r} is not')
  if len(documents) < len(rows):
    twice = Counter(name for name, _ in rows).most_common(1)[0][0]
    raise ValueError(f'{file}: two documents are called {twice!r}; give each a name of its own')
  return documents


def read_documents(file: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yield the objects of a JSONL file, each with an 'id' and a 'text' on one line."""
  for number, row in read_objects(file, 'id', 'text'):
    with naming(f'{file}:{number}', 'mend the line'):
      text = one_line(check_field(row, 'text'))
      yield row | {'text': text, 'id': check_field(row, 'id', int | str)}


def one_line(text: str) -> str:
  """Return the text with every run of white space as one space."""
  return ' '.join(text.split())
