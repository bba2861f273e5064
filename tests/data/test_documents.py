"""Tests of data/documents.py: collections in four formats; and of Cranfield."""

import gzip
import json

import pytest

from transformer.data import corpora
from transformer.data.documents import collection

DOCUMENTS = [
  {'id': 1, 'title': 'wings of\nbees .', 'text': 'wings of\nbees .\nthey are thin .'},
  {'id': 2, 'title': 'ants .', 'text': 'ants .\n they walk .'},
  {'id': 3, 'title': '', 'text': ''},
  {'id': 4, 'title': 'a title', 'text': 'another beginning'},
]


@pytest.fixture
def folder(tmp_path):
  with gzip.open(tmp_path / 'docs.jsonl.gz', 'wt') as file:
    file.writelines(json.dumps(row) + '\n' for row in DOCUMENTS)
  (tmp_path / 'queries.tsv').write_text('qid\toriginal_I\ttext\n7\t009\twho flies ?\n9\t1\twho?\n')
  rows = ['qid\tdocid\tgrade', '7\t3\t1', '7\t1\t2', '7\t2\t4', '7\t4\t-1', '9\t2\t1']
  (tmp_path / 'qrels.tsv').write_text('\n'.join(rows) + '\n')
  return tmp_path


def test_documents_are_titles_and_texts(folder):
  pairs = corpora.load('cranfield', 'documents', dir=folder)
  assert [(e['inputs'], e['targets'], e['relevant']) for e in pairs] == [
    ('wings of bees .', 'they are thin .', '1:1'),
    ('ants .', 'they walk .', '2:1'),
    ('a title', 'another beginning', '4:1'),
  ]


def test_grades_become_gains(folder):
  queries = corpora.load('cranfield', 'queries', dir=folder)
  assert [*queries] == [
    {
      'inputs': 'who flies ?',
      'targets': 'wings of bees . they are thin .',  # the empty one cannot be the best
      'relevant': '3:4 1:3 2:1',
    },
    {'inputs': 'who?', 'targets': 'ants . they walk .', 'relevant': '2:4'},
  ]
  assert [*corpora.load('cranfield', 'queries[50%:]', dir=folder)] == queries[1:]
  with pytest.raises(ValueError, match='documents, queries'):
    corpora.load('cranfield', 'train', dir=folder)
  (folder / 'qrels.tsv').write_text('qid\tdocid\tgrade\n7\t2\n')
  with pytest.raises(ValueError, match=r'qrels.tsv:2: 2 columns, and the header has 3'):
    corpora.load('cranfield', 'queries', dir=folder)
  (folder / 'qrels.tsv').write_text('qid\tdocid\tgrade\n')
  with pytest.raises(ValueError, match='qrels.tsv.* is relevant to the query'):
    corpora.load('cranfield', 'queries', dir=folder)
  (folder / 'qrels.tsv').unlink()
  with pytest.raises(FileNotFoundError, match='qrels.tsv'):
    corpora.load('cranfield', 'queries', dir=folder)


def test_collections(folder):
  assert collection(str(folder / 'docs.jsonl.gz')) == {
    '1': 'wings of bees . they are thin .',
    '2': 'ants . they walk .',
    '4': 'another beginning',
  }
  (folder / 'mine.tsv').write_text('a\tthe first\nb\tthe second\n')
  assert collection(str(folder / 'mine.tsv')) == {'a': 'the first', 'b': 'the second'}
  paragraphs = [{'context': 'one\ntwo', 'qas': []}, {'context': 'three', 'qas': []}]
  data = {'data': [{'title': 'A b', 'paragraphs': paragraphs}]}
  (folder / 'squad.json').write_text(json.dumps(data))
  assert collection(str(folder / 'squad.json')) == {'A_b/0': 'one two', 'A_b/1': 'three'}
  assert len(collection('facts:val')) == 40


def test_errors_of_collections(folder):
  (folder / 'wrong.jsonl').write_text('{"id": 1, "text": "a"}\n{"id": 2}\n')
  with pytest.raises(ValueError, match="wrong.jsonl:2.*'id' and 'text'"):
    collection(str(folder / 'wrong.jsonl'))
  (folder / 'words.tsv').write_text('a\tfirst\nmy doc\tsecond\n')
  with pytest.raises(ValueError, match="one word.*'my doc'"):
    collection(str(folder / 'words.tsv'))
  (folder / 'twice.tsv').write_text('a\tfirst\nb\tsecond\na\tthird\n')
  with pytest.raises(ValueError, match="two documents are called 'a'"):
    collection(str(folder / 'twice.tsv'))
  for wrong in ('', str(folder), str(folder / 'no.tsv'), str(folder / 'docs.txt')):
    with pytest.raises(FileNotFoundError, match='NAME<TAB>TEXT'):
      collection(wrong)


def test_cranfield_of_the_data_sets(real_data):
  folder = real_data('cranfield')
  assert len(collection(str(folder / 'docs.jsonl.gz'))) == 1398
  assert len(corpora.load('cranfield', 'queries', dir=folder)) == 150
