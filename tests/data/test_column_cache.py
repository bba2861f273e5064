"""Tests of data/column_cache.py: the next start reads the tokens that the last one made."""

import numpy as np
import pytest

from transformer.data import column_cache
from transformer.data.column_cache import cached, source_key
from transformer.data.pipeline import Ragged

EXAMPLES = [{'inputs': f'text {i}', 'answers': ('a', i)} for i in range(3)]


@pytest.fixture
def make(monkeypatch):
  monkeypatch.setattr(column_cache, 'LEAST', 3)

  def make():
    make.times += 1
    rows = [[1, 2], [], [-1, 70_000]]
    return {'inputs': Ragged.from_sequences(rows), 'label': np.asarray([3, 1, 2], np.int32)}

  make.times = 0
  return make


def same(a, b):
  arrays = [(x.tokens, x.offsets) if isinstance(x, Ragged) else (x,) for x in (a, b)]
  return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(*arrays, strict=True))


def test_columns_are_made_once(make, tmp_path):
  found = [cached(tmp_path / 'cache', 'train[:9]', 'key', make) for _ in range(3)]
  assert make.times == 1
  assert all(same(each[name], found[0][name]) for each in found for name in found[0])
  cached(tmp_path / 'cache', 'train[:9]', 'other', make)
  assert make.times == 2 and len(list((tmp_path / 'cache').iterdir())) == 1
  cached(tmp_path / 'cache', 'train', 'key', make)  # another split takes none of its place
  assert len(list((tmp_path / 'cache').iterdir())) == 2


def test_a_damaged_copy_is_made_anew(make, tmp_path):
  before = cached(tmp_path, 'train', 'key', make)
  file = tmp_path / 'train-key' / 'inputs.bin'
  file.write_bytes(bytes(len(file.read_bytes())))
  assert same(cached(tmp_path, 'train', 'key', make)['inputs'], before['inputs'])
  assert make.times == 2 and cached(tmp_path, 'train', 'key', make) and make.times == 2


def test_two_processes_at_once_leave_one_whole_copy(make, tmp_path):
  def slow():
    cached(tmp_path, 'train', 'key', make)  # meanwhile another process writes it
    return make()

  cached(tmp_path, 'train', 'key', slow)
  cached(tmp_path, 'train', 'key', make)
  assert make.times == 2 and [p.name for p in tmp_path.iterdir()] == ['train-key']


def test_where_nothing_can_be_written_nothing_is_kept(make, tmp_path):
  (tmp_path / 'cache').write_text('a file')
  assert len(cached(tmp_path / 'cache', 'train', 'key', make)['inputs']) == 3


def test_small_corpora_are_not_kept(make, tmp_path, monkeypatch):
  monkeypatch.setattr(column_cache, 'LEAST', 100)
  cached(tmp_path / 'cache', 'train', 'key', make)
  assert not (tmp_path / 'cache').exists()


def test_a_key_is_of_examples_and_settings():
  key = source_key(EXAMPLES, {'max_length': 8}, b'code')
  assert key == source_key([dict(x) for x in EXAMPLES], {'max_length': 8}, b'code')
  assert key != source_key(EXAMPLES[:2], {'max_length': 8}, b'code')
  assert key != source_key(EXAMPLES, {'max_length': 9}, b'code')
  assert key != source_key(EXAMPLES, {'max_length': 8}, b'other')
