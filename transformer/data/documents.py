"""Collections of documents to search, and queries with what is relevant to them.

An example of a query is {'inputs': query, 'targets': text of the best document, 'relevant': names
and gains, as in '12:4 184:1'}.
"""

import functools
import gzip
import json
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from transformer.data import questions, textfiles
from transformer.data.facts import facts
from transformer.data.splits import sliced


@functools.lru_cache(maxsize=2)
def collection(where: str) -> dict[str, str]:
  """The documents of a file, by their names.

  Args:
    where: a file of lines NAME<TAB>TEXT (.tsv), of objects with id and text (.jsonl, Cranfield's
      too) or of SQuAD's paragraphs (.json), each maybe .gz; or facts:SPLIT.

  Raises:
    FileNotFoundError, ValueError: the file is not there, or is not one of these.
  """
  if where.startswith('facts:'):
    return {row[4]: row[1] for row in facts(where.removeprefix('facts:')).rows}
  file = pathlib.Path(where).expanduser()
  name = file.name.removesuffix('.gz')
  if not file.is_file() or not name.endswith(('.tsv', '.jsonl', '.json')):
    raise FileNotFoundError(
      f'{where!r} is no collection of documents: give a file *.tsv of lines NAME<TAB>TEXT, *.jsonl '
      'of objects with id and text, or *.json as SQuAD is (decode.collection)'
    )
  if name.endswith('.json'):
    rows = [*questions.paragraphs(file)]
  elif name.endswith('.jsonl'):
    rows = [(str(row['id']), row['text']) for row in _objects(file) if row['text'].strip()]
  else:
    table = textfiles.pairs(file.parent, name.removesuffix('.tsv'), 'inputs', 'targets')
    rows = [*zip(table.inputs, table.targets, strict=True)]
  found = dict(rows)
  if wrong := [name for name in found if not name or re.search(r'\s', name)]:
    raise ValueError(f'{file}: a name is one word, by which it is found; {wrong[0]!r} is not')
  if len(found) < len(rows):
    twice = Counter(name for name, _ in rows).most_common(1)[0][0]
    raise ValueError(f'{file}: two documents are called {twice!r}; give each a name of its own')
  return found


def cranfield(folder: pathlib.Path, split: str) -> list[dict[str, str]]:
  """Abstracts on aerodynamics (Cleverdon 1967), of docs.jsonl.gz, queries.tsv and qrels.tsv.

  Relevance is graded 1, a complete answer, to 4; the gain is 5 - grade, and -1 counts as nothing.

  Args:
    folder: with the three files.
    split: 'documents', pairs of a title and what follows it; or 'queries', maybe some of them only,
      such as 'queries[:75]'.

  Raises:
    FileNotFoundError, ValueError: a file is not there, or the split is none of these.
  """
  name, part = sliced(split)
  if name not in ('documents', 'queries'):
    raise ValueError(f'split {split!r} of cranfield: take documents, queries, or queries[:75]')
  missing = [n for n in ('docs.jsonl.gz', 'queries.tsv', 'qrels.tsv') if not (folder / n).is_file()]
  if missing:
    raise FileNotFoundError(
      f'{folder} lacks {", ".join(missing)} of Cranfield: give the folder that has them (data.dir)'
    )
  texts = {row['id']: row for row in _objects(folder / 'docs.jsonl.gz') if row['text'].strip()}
  examples = []
  if name == 'documents':
    for row in texts.values():
      title, text = (_one_line(row[key]) for key in ('title', 'text'))
      rest = text.removeprefix(title).strip()  # it begins with the title
      if title and rest:
        examples.append({'inputs': title, 'targets': rest, 'relevant': f'{row["id"]}:1'})
    return examples[part(len(examples))]
  gains: dict[str, dict[int, int]] = defaultdict(dict)
  for row in _table(folder / 'qrels.tsv'):
    if int(row['grade']) > 0:
      gains[row['qid']][int(row['docid'])] = 5 - int(row['grade'])
  for row in _table(folder / 'queries.tsv'):
    relevant = gains[row['qid']]
    known = [document for document in relevant if document in texts]
    if not known:
      raise ValueError(
        f'{folder}: no document of qrels.tsv with a grade above 0 is relevant to the query '
        f'{row["qid"]!r} of queries.tsv: judge one for it, or leave the query out'
      )
    best = max(known, key=relevant.__getitem__)
    examples.append(
      {
        'inputs': _one_line(row['text']),
        'targets': _one_line(texts[best]['text']),
        'relevant': ' '.join(f'{document}:{gain}' for document, gain in relevant.items()),
      }
    )
  return examples[part(len(examples))]


def _objects(file: pathlib.Path) -> Iterator[dict[str, Any]]:
  with (gzip.open if file.suffix == '.gz' else open)(file, 'rt', encoding='utf-8') as opened:
    for number, line in enumerate(opened, 1):
      try:
        row = json.loads(line)
        yield row | {'text': _one_line(row['text']), 'id': row['id']}
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f'{file}:{number}: no object with the keys id and text ({error!r}); write one a line'
        ) from error


def _table(file: pathlib.Path) -> Iterator[dict[str, str]]:
  header, *lines = file.read_text(encoding='utf-8').splitlines()
  names = header.split('\t')
  for number, line in enumerate(lines, 2):
    values = line.split('\t')
    if len(values) != len(names):
      raise ValueError(f'{file}:{number}: {len(values)} columns, and the header has {len(names)}')
    yield dict(zip(names, values, strict=True))


def _one_line(text: str) -> str:
  return ' '.join(text.split())
