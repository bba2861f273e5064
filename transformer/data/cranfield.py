"""Cranfield: 1,400 abstracts on aerodynamics, queries, and relevance judgments (Cleverdon 1967).

An example is {'inputs': query, 'targets': text of the most relevant document, 'relevant': names and
gains of all relevant documents, as in '12:4 184:1'}.
"""

import pathlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from transformer.data.documents import one_line, read_documents
from transformer.data.reading import FileError, check_field, naming, read_lines
from transformer.data.splits import parse_split

FILES = ('docs.jsonl.gz', 'queries.tsv', 'qrels.tsv')


def cranfield(folder: pathlib.Path, split: str) -> list[dict[str, str]]:
  """Return the queries, or pairs of a title and an abstract.

  Relevant documents have grades from 1 (a complete answer) to 4, others -1; the gain of a relevant
  one is 5 - grade.

  Args:
    folder: has docs.jsonl.gz, queries.tsv and qrels.tsv.
    split: 'documents' or 'queries', maybe with a slice, as in 'queries[:75]'.

  Raises:
    FileNotFoundError: a file does not exist.
    ValueError: the split is unknown, or a query has no relevant document.
  """
  name, slice_of = parse_split(split)
  if name not in ('documents', 'queries'):
    raise ValueError(f'split {split!r} of cranfield: take documents, queries, or queries[:75]')
  if missing := [name for name in FILES if not (folder / name).is_file()]:
    raise FileNotFoundError(
      f'{folder} lacks {", ".join(missing)} of Cranfield: give the folder that has them (data.dir)'
    )
  documents = {row['id']: row for row in read_documents(folder / FILES[0]) if row['text']}
  with naming(folder, 'give the files of Cranfield (data.dir)'):
    examples = _titles(documents) if name == 'documents' else _queries(folder, documents)
  return examples[slice_of(len(examples))]


def _titles(documents: dict[Any, dict[str, Any]]) -> list[dict[str, str]]:
  examples = []
  for row in documents.values():
    title, text = one_line(check_field(row, 'title')), row['text']
    rest = text.removeprefix(title).strip()  # the text begins with the title
    if title and rest:
      examples.append({'inputs': title, 'targets': rest, 'relevant': f'{row["id"]}:1'})
  return examples


def _queries(folder: pathlib.Path, documents: dict[Any, dict[str, Any]]) -> list[dict[str, str]]:
  gains: dict[str, dict[int, int]] = defaultdict(dict)
  for number, row in _read_table(folder / 'qrels.tsv', 'qid', 'docid', 'grade'):
    with naming(f'{folder / "qrels.tsv"}:{number}', 'give docid and grade as integers'):
      if int(row['grade']) > 0:
        gains[row['qid']][int(row['docid'])] = 5 - int(row['grade'])
  examples = []
  for _, row in _read_table(folder / 'queries.tsv', 'qid', 'text'):
    relevant = gains[row['qid']]
    with_text = [document for document in relevant if document in documents]
    if not with_text:
      raise ValueError(
        f'no document of qrels.tsv with a grade above 0 is relevant to the query {row["qid"]!r} of '
        'queries.tsv: judge one for it, or remove the query'
      )
    best = max(with_text, key=relevant.__getitem__)
    examples.append(
      {
        'inputs': one_line(row['text']),
        'targets': documents[best]['text'],
        'relevant': ' '.join(f'{document}:{gain}' for document, gain in relevant.items()),
      }
    )
  return examples


def _read_table(file: pathlib.Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
  names: list[str] = []
  for number, line in read_lines(file):
    values = line.split('\t')
    names = names or values
    if len(values) != len(names):
      raise FileError(f'{file}:{number}: {len(values)} columns, and the header has {len(names)}')
    if missing := {*columns} - {*names}:
      raise FileError(f'{file}:1: the header lacks {", ".join(sorted(missing))}')
    if number > 1:
      yield number, dict(zip(names, values, strict=True))
