"""Tests of data/pipeline.py, on examples whose tokens identify them."""

import functools
import itertools
import threading
import time

import numpy as np
import pytest

from transformer.data import pipeline
from transformer.data.pipeline import (
  Batches,
  Lazy,
  Ragged,
  Rows,
  bucket,
  concatenate,
  group_steps,
  make_small,
  pack,
  prefetch,
  unpacked,
)

FIELDS = ('inputs', 'targets')


def make_data(count=97, longest=30, seed=0):
  """Fields of random lengths in which every token occurs once."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, longest + 1, (count, len(FIELDS)))
  fields = {}
  for name, of_field in zip(FIELDS, lengths.T, strict=True):
    tokens = np.arange(1, of_field.sum() + 1, dtype=np.int32)
    fields[name] = Ragged(tokens, np.concatenate([[0], np.cumsum(of_field)]))
  return fields, lengths


def make_rows(kind, lengths):
  return pack(lengths, length=48) if kind == 'packed' else bucket(lengths, buckets=4)


def examples_of(batch, fields):
  """The examples of every row; fails where one is cut, mixed with another or mislabelled."""
  found = {}
  for name, ragged in fields.items():
    tokens, segments = batch[name], batch[f'{name}_segments']
    assert tokens.dtype == segments.dtype == np.int32 and tokens.shape == segments.shape
    rows = []
    for row_tokens, row_segments in zip(tokens, segments, strict=True):
      used = int((row_segments != 0).sum())
      assert (
        not row_tokens[used:].any() and not row_segments[used:].any()
      )  # padding is on the right
      members, end = [], 0
      while end < used:
        i = int(np.searchsorted(ragged.offsets, row_tokens[end]) - 1)
        length = int(ragged.lengths[i])
        np.testing.assert_array_equal(row_tokens[end : end + length], ragged[i])
        assert (row_segments[end : end + length] == len(members) + 1).all()
        members.append(i)
        end += length
      assert end == used
      rows.append(members)
    found[name] = rows
  assert found['inputs'] == found['targets']
  return found['inputs']


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def data():
  return make_data()


@pytest.fixture(params=['bucketed', 'packed'])
def kind(request):
  return request.param


def test_ragged_round_trip(rng):
  sequences = [rng.integers(0, 100, n).tolist() for n in rng.integers(0, 9, 50)]
  ragged = Ragged.from_sequences(sequences)
  assert len(ragged) == len(sequences) == len(ragged.lengths)
  assert [list(s) for s in ragged] == sequences
  assert list(ragged.lengths) == list(map(len, sequences))
  assert list(ragged[-1]) == sequences[-1] and list(ragged[np.int64(3)]) == sequences[3]
  with pytest.raises(IndexError):
    ragged[len(sequences)]
  assert (
    list(Ragged.from_sequences([])) == [] and Ragged.from_sequences([]).tokens.dtype == np.int32
  )


@pytest.mark.parametrize('seed', [None, 0, 1, 12345])
def test_every_epoch_visits_each_example_exactly_once(data, kind, seed):
  fields, lengths = data
  batches = Batches(fields, make_rows(kind, lengths), tokens=96, seed=seed)
  for epoch in range(3):
    steps = range(epoch * len(batches), (epoch + 1) * len(batches))
    seen = itertools.chain(*(examples_of(batches[step], fields) for step in steps))
    assert sorted(itertools.chain(*seen)) == list(range(len(lengths)))


def test_a_batch_is_a_function_of_its_step(data, kind):
  fields, lengths = data
  rows = make_rows(kind, lengths)
  make = functools.partial(Batches, fields, rows, tokens=96, multiple=2, seed=3)
  one = make()
  in_order = [one[step] for step in range(3 * len(one))]
  for step in np.random.default_rng(1).permutation(len(in_order)).tolist():
    assert same(make()[step], in_order[step])  # by an object that made no other batch
    assert same(one[step], in_order[step])  # by one that jumps between epochs
  for start in (0, 1, len(one) + 3):
    ahead = list(prefetch(one, start, len(in_order)))
    assert len(ahead) == len(in_order) - start
    assert all(same(a, b) for a, b in zip(ahead, in_order[start:], strict=True))


def test_epochs_and_seeds_differ_and_no_seed_keeps_the_order(data, kind):
  fields, lengths = data
  rows = make_rows(kind, lengths)
  order = {}
  for seed in (0, 1, None):
    batches = Batches(fields, rows, tokens=96, seed=seed)
    for epoch in range(2):
      steps = range(epoch * len(batches), (epoch + 1) * len(batches))
      order[seed, epoch] = [tuple(map(tuple, examples_of(batches[i], fields))) for i in steps]
  shuffled = [order[seed, epoch] for seed in (0, 1) for epoch in (0, 1)]
  for a, b in itertools.combinations(shuffled, 2):
    assert a != b  # the batches come in another order
    assert set(a) != set(b)  # and are other ones
  assert order[None, 0] == order[None, 1]
  first = [row for batch in order[None, 0] for row in batch if row]
  shape_of = dict(zip(map(tuple, rows.members), map(tuple, rows.shapes), strict=True))
  expected = sorted(shape_of, key=lambda m: shape_of[m])  # a stable sort: by shape alone
  assert first == expected


@pytest.mark.parametrize('multiple', [1, 3, 8])
@pytest.mark.parametrize('buckets', [1, 2, 5, 1000])
def test_few_shapes_within_the_budget(data, buckets, multiple):
  fields, lengths = data
  rows = bucket(lengths, buckets=buckets, multiple=4)
  assert (rows.shapes >= lengths).all() and not (rows.shapes % 4).any()
  assert len(np.unique(rows.shapes, axis=0)) <= buckets
  budget = 150
  batches = Batches(fields, rows, tokens=budget, multiple=multiple)
  shapes = set()
  for step in range(len(batches)):
    batch = batches[step]
    shapes.add(tuple(batch[name].shape for name in FIELDS))
    (size,) = {len(array) for array in batch.values()}
    longest = max(batch[name].shape[1] for name in FIELDS)
    assert size % multiple == 0
    assert size * longest <= budget or size == multiple
    assert (size + multiple) * longest > budget  # no smaller than it need be
  assert len(shapes) <= buckets


def test_buckets_share_the_work_and_fit_the_data(data):
  _, lengths = data
  padding = [bucket(lengths, buckets=n, multiple=1).shapes.sum() for n in (1, 2, 4, 97)]
  assert padding == sorted(padding, reverse=True) and padding[-1] < padding[0]
  assert padding[0] == len(lengths) * lengths.max(axis=0).sum()
  # one more shape for each distinct length there is: hardly anything is left to pad
  assert padding[-1] <= 1.1 * 2 * lengths.max(axis=1).sum()
  alike = bucket(np.full((10, 2), 7), buckets=4)
  assert len(np.unique(alike.shapes, axis=0)) == 1


@pytest.mark.parametrize('seed', [None, 5])
@pytest.mark.parametrize('count', [2, 3, 4])
def test_parts_of_all_processes_are_the_batch_of_one(data, kind, count, seed):
  fields, lengths = data
  rows = make_rows(kind, lengths)
  make = functools.partial(Batches, fields, rows, tokens=96, multiple=2 * count, seed=seed)
  alone, shares = make(), [make(process=(i, count)) for i in range(count)]
  assert {len(share) for share in shares} == {len(alone)}
  empty = 0
  for step in range(2 * len(alone)):
    parts = [share[step] for share in shares]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert same(joined, alone[step])
    assert len({len(part['inputs']) for part in parts}) == 1  # every process has as many rows
    empty += sum(not part['targets_segments'].any() for part in parts)
  assert empty or kind == 'packed'  # it did happen that a process had nothing but empty rows


def test_a_batch_that_cannot_be_shared_equally_is_refused(data):
  fields, lengths = data
  rows = bucket(lengths, buckets=2)
  with pytest.raises(ValueError, match='make it a multiple of 2'):
    Batches(fields, rows, tokens=96, multiple=3, process=(0, 2))


@pytest.mark.parametrize('parts, multiple, count', [(8, 1, 1), (8, 3, 2), (4, 1, 4), (2, 2, 1)])
def test_devices_do_not_change_which_examples_are_in_a_batch(data, parts, multiple, count):
  """17 rows stay 17 on 8 devices: empty ones fill them up."""
  fields, lengths = data
  make = functools.partial(
    Batches, fields, pack(lengths, length=32), tokens=17 * 32, multiple=multiple
  )
  alone, shares = make(), [make(parts=parts, process=(i, count)) for i in range(count)]
  assert alone.groups[0][2] == 17 // multiple * multiple
  for step in range(len(alone)):
    joined = [examples_of(share[step], fields) for share in shares]
    joined, expected = [row for rows in joined for row in rows], examples_of(alone[step], fields)
    assert joined[: len(expected)] == expected and not any(joined[len(expected) :])
    assert len(joined) % (parts * multiple) == 0 and len(joined) - len(expected) < parts * multiple
  assert make(parts=parts).empty(0)['inputs'].shape == (len(joined), 32)


def test_only_the_last_batch_of_a_shape_has_empty_rows(data):
  fields, lengths = data
  rows = bucket(lengths, buckets=3)
  batches = Batches(fields, rows, tokens=128, multiple=4, seed=0)
  partial = {}
  for step in range(len(batches)):
    batch = batches[step]
    full = [bool(members) for members in examples_of(batch, fields)]
    assert any(full) and full == sorted(full, reverse=True)
    if not all(full):
      shape = tuple(batch[name].shape[1] for name in FIELDS)
      partial[shape] = partial.get(shape, 0) + 1
  assert partial and max(partial.values()) == 1


@pytest.mark.parametrize('seed', range(3))
def test_packed_rows_are_well_filled_and_never_overflow(seed):
  rng = np.random.default_rng(seed)
  for lengths in (
    rng.integers(1, 65, (1500, 2)),
    rng.integers(1, 129, (1500, 1)),
    np.clip(rng.lognormal(2.6, 0.5, (1500, 1)) + rng.integers(-2, 3, (1500, 2)), 1, 128).astype(
      int
    ),
  ):
    rows = pack(lengths, length=128, seed=seed)
    assert sorted(itertools.chain(*rows.members)) == list(range(len(lengths)))
    used = np.array([lengths[members].sum(axis=0) for members in rows.members])
    assert (used <= 128).all() and (rows.shapes == 128).all()
    assert used.sum() >= 0.85 * rows.shapes.sum()


def test_packing_is_shuffled_by_its_seed_only(data):
  _, lengths = data
  members = [list(map(tuple, pack(lengths, length=48, seed=s).members)) for s in (0, 0, 1)]
  assert members[0] == members[1] != members[2]


def test_a_row_holds_what_fills_it_exactly():
  rows = pack(np.array([[48, 1], [1, 48], [47, 47], [48, 48]]), length=48)
  assert sorted(map(sorted, map(list, rows.members))) in ([[0], [1], [2], [3]],)
  together = pack(np.array([[24, 8]] * 4), length=48)
  assert sorted(map(len, together.members)) == [2, 2]


def test_an_example_too_long_for_its_row_is_refused():
  for lengths in ([[3, 4], [9, 2]], [[3, 4], [2, 9]]):
    with pytest.raises(ValueError, match='9 tokens does not fit a packed row of 8: leave it out'):
      pack(np.array(lengths), length=8)


def test_no_example_is_an_error(kind):
  nothing = np.zeros((0, 2), int)
  with pytest.raises(ValueError, match='there is no example'):
    Batches(dict.fromkeys(FIELDS, Ragged.from_sequences([])), make_rows(kind, nothing), tokens=96)


def test_an_empty_sequence_still_has_a_row_of_some_length(kind):
  fields = {'inputs': Ragged.from_sequences([[], []]), 'targets': Ragged.from_sequences([[], [1]])}
  lengths = np.stack([ragged.lengths for ragged in fields.values()], axis=1)
  batch = Batches(fields, make_rows(kind, lengths), tokens=96)[0]
  assert batch['inputs'].shape[1] and not batch['inputs'].any() and batch['targets'].sum() == 1


def test_prefetch_works_ahead_in_a_thread_and_ends_at_stop(data):
  threads, made = set(), []

  class Watched(Batches):
    def __getitem__(self, step):
      threads.add(threading.get_ident())
      made.append(step)
      return super().__getitem__(step)

  fields, lengths = data
  found = prefetch(Watched(fields, bucket(lengths, buckets=2), tokens=96), 5, 40)
  for _ in range(2):
    next(found)
  deadline = time.monotonic() + 20
  while len(made) < 5 and time.monotonic() < deadline:
    time.sleep(0.01)
  assert 5 <= len(made) < 20  # ahead of its use, and not far
  assert len(list(found)) == 33
  assert made == list(range(5, 40))
  assert threads and threading.get_ident() not in threads
  with pytest.raises(StopIteration):
    next(found)


@pytest.mark.parametrize('stop', [7, 3])
def test_prefetch_of_a_finished_run_is_empty(data, stop):
  fields, lengths = data
  batches = Batches(fields, bucket(lengths, buckets=2), tokens=96)
  assert list(prefetch(batches, 7, stop)) == []


def test_an_error_in_the_thread_reaches_the_consumer(data):
  class Broken(Batches):
    def __getitem__(self, step):
      if step == 3:
        raise OSError('the disk is gone')
      return super().__getitem__(step)

  fields, lengths = data
  found = prefetch(Broken(fields, bucket(lengths, buckets=2), tokens=96), 0, 9)
  with pytest.raises(OSError, match='the disk is gone'):
    list(found)


def test_threads_in_different_epochs_do_not_mix_their_plans(data):
  fields, lengths = data
  batches = Batches(fields, bucket(lengths, buckets=2), tokens=96)
  expected = [batches[epoch * len(batches)]['targets'] for epoch in range(2)]
  wrong = []

  def read(epoch):
    for _ in range(300):
      if not np.array_equal(batches[epoch * len(batches)]['targets'], expected[epoch]):
        wrong.append(epoch)

  threads = [threading.Thread(target=read, args=(epoch,)) for epoch in (0, 1)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_groups_have_one_shape_and_are_the_same_after_a_resume():
  lengths = [8, 8, 8, 8, 4, 8, 8, 8, 8]
  batches = [{'x': np.full((2, n), i)} for i, n in enumerate(lengths)]
  groups = list(group_steps(iter(batches), 0, 2))
  assert [len(group) for _, group in groups] == [2, 2, 1, 1, 2, 1]
  assert [step for step, _ in groups] == [2, 4, 5, 6, 8, 9]
  assert [b['x'][0, 0] for _, group in groups for b in group] == list(range(9))
  for n, (step, _) in enumerate(groups):
    again = list(group_steps(iter(batches[step:]), step, 2))
    assert [s for s, _ in again] == [s for s, _ in groups[n + 1 :]]


def test_rows_can_be_written_by_hand():
  fields = {'inputs': Ragged.from_sequences([[1, 2], [3], [4, 5, 6]])}
  rows = Rows([np.array([2, 0]), np.array([1])], np.array([[6], [2]]))
  batches = Batches(fields, rows, tokens=6, seed=None)
  assert batches[0]['inputs'].tolist() == [[3, 0], [0, 0], [0, 0]]
  assert batches[1]['inputs'].tolist() == [[4, 5, 6, 1, 2, 0]]
  assert batches[1]['inputs_segments'].tolist() == [[1, 1, 1, 2, 2, 0]]


def test_arrays_stay_with_their_examples():
  """Whatever the order, and 0 where a row is empty."""
  texts = Ragged.from_sequences([[10 + i] * (i % 5 + 1) for i in range(11)])
  fields = {'inputs': texts, 'label': np.arange(11, dtype=np.float32)[:, None] * [1, 2]}
  rows = bucket(texts.lengths[:, None], buckets=2, multiple=2)
  batches = Batches(fields, rows, tokens=12, multiple=2, seed=0)
  seen = []
  for step in range(len(batches)):
    batch = batches[step]
    for tokens, (one, two) in zip(batch['inputs'], batch['label'], strict=True):
      assert two == 2 * one
      assert one == (tokens[0] - 10 if tokens[0] else 0)
      seen += [one] * bool(tokens[0])
  assert sorted(seen) == list(range(11))


def test_what_is_made_when_needed_makes_the_same_batches(monkeypatch):
  made = []

  def make(item):
    made.append(item)
    return np.full((2, 3), item, np.uint8)

  column = Lazy([5, 7, 7], make, (3, 2, 3), np.dtype(np.uint8))
  columns = concatenate([{'inputs': column}, {'inputs': column}])
  arrays = make_small(columns)
  assert isinstance(arrays['inputs'], np.ndarray) and len(made) == 4  # neighbours are made once
  monkeypatch.setattr(pipeline, 'MADE_AT_ONCE', 35)
  assert make_small(columns)['inputs'] is columns['inputs']
  lazy, whole = (Batches(c, unpacked(6), tokens=4, parts=4) for c in (columns, arrays))
  made.clear()
  for step in range(4):
    assert same(lazy[step], whole[step])
  assert len(made) <= 4 * 4
