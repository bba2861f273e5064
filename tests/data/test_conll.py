"""Tests of data/conll.py."""

import gzip

import pytest

from transformer.data import corpora
from transformer.data.conll import SIZES, entities

TEXT = """-DOCSTART- -X- O

@paul\tO
Empire\tB-location
State\tI-location

Good NN O
news NN O
"""


def test_sentences_are_lines_of_words_and_of_labels(tmp_path):
  (tmp_path / 'train.conll').write_text(TEXT)
  (tmp_path / 'dev.conll.gz').write_bytes(gzip.compress(TEXT.replace('\n', '\r\n').encode()))
  expected = [
    {'inputs': '@paul Empire State', 'targets': 'O B-location I-location'},
    {'inputs': 'Good news', 'targets': 'O O'},
  ]
  assert corpora.load('conll', 'train', dir=tmp_path) == expected
  assert corpora.load('conll', 'dev', dir=tmp_path) == expected
  assert corpora.load('conll', 'train[1:]', dir=tmp_path) == expected[1:]


def test_what_is_wrong_with_a_file_is_said(tmp_path):
  (tmp_path / 'train.conll').write_text('a\tO\nb\n')
  with pytest.raises(ValueError, match=r"train.conll:2: 'b' has no label"):
    corpora.load('conll', 'train', dir=tmp_path)
  with pytest.raises(FileNotFoundError, match='dev.conll'):
    corpora.load('conll', 'dev', dir=tmp_path)
  with pytest.raises(ValueError, match='unknown split'):
    entities('dev')


def test_wnut17_has_as_many_sentences_and_entities_as_published(real_data):
  for split, count, found in (('train', 3394, 1975), ('dev', 1009, 836)):
    source = corpora.load('conll', split, dir=real_data('wnut17'))
    assert len(source) == count
    assert sum(line['targets'].count('B-') for line in source) == found


def test_generated_sentences_have_a_label_for_each_word():
  for split, size in SIZES.items():
    source = entities(split)
    assert len(source) == size and source == entities(split)
    assert all(len(e['inputs'].split()) == len(e['targets'].split()) for e in source)
