"""Tests of prepared corpora: data/prepared.py and what it is made of and by."""

import functools
import json
import multiprocessing

import numpy as np
import PIL.Image
import pytest

from transformer.data import corpora, preparation, prepared, token_files, tokenizers
from transformer.data.permutation import permute
from transformer.data.pipeline import Ragged
from transformer.data.prepared import PreparedBatches
from transformer.data.processors import ImageProcessor
from transformer.data.reading import FileError
from transformer.data.text import Cut, encode_documents
from transformer.inference.decoding import Batching, Decoding
from transformer.tasks.classification import Classification
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.masked_lm import MaskedLM
from transformer.tasks.seq2seq import Seq2Seq
from transformer.tasks.span_corruption import SpanCorruption

TEXTS = [f'document {i}: ' + 'abc ' * (i % 17) for i in range(60)]
PAIRS = [{'inputs': f'{i} ' + 'a' * (i % 13), 'targets': f'{i} b'} for i in range(60)]
SETTINGS = dict(max_length=16, packing=False, buckets=3)


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train([], kind='bytes', vocab=260, sentinels=20)


def language_model(tokenizer, **settings):
  return LanguageModel(tokenizer=tokenizer, decoding=Decoding(), max_length=16, **settings)


def prepare(folder, task, examples, kind, measured=False, **settings):
  """Write a corpus with the split train, and open it."""
  task.tokenizer.save(folder / 'tokenizer.json')
  encoder = preparation.Encoder(kind, task, measured)
  info = preparation.write_split(folder, 'train', lambda: iter(examples), encoder, {'of': kind})
  settings = SETTINGS | {'cut': list(task.cut[:3]) if kind == 'documents' else None} | settings
  info['index'] = preparation.write_index(folder, 'train', info, settings)
  prepared.write_json(folder, {'vocab': task.tokenizer.size, 'splits': {'train': info}})
  preparation.remove_parts(folder, 'train')
  return corpora.load('prepared', 'train', dir=folder)


def rows_of(batches, names):
  """Every segment of the batches of an epoch, as tuples of the columns."""
  found = []
  for step in range(len(batches)):
    batch = batches[step]
    for row in range(len(batch[f'{names[0]}_segments'])):
      segments = [batch[f'{name}_segments'][row] for name in names]
      for segment in range(1, segments[0].max(initial=0) + 1):
        where = [s == segment for s in segments]
        found.append(tuple(tuple(batch[n][row][w]) for n, w in zip(names, where, strict=True)))
  return sorted(found)


def expected_rows(columns, names):
  count = len(columns[names[0]])
  return sorted(tuple(tuple(columns[name][i]) for name in names) for i in range(count))


@pytest.mark.parametrize('size', [1, 2, 3, 5, 8, 63, 64, 65, 1000])
def test_a_permutation_is_a_bijection_of_every_size(size):
  orders = [permute(np.arange(size), size, (0, epoch)).tolist() for epoch in range(5)]
  assert all(sorted(order) == [*range(size)] for order in orders)
  assert size < 8 or len({*map(tuple, orders)}) == 5
  assert permute(np.asarray([size - 1]), size, (0, 1))[0] == orders[1][-1]  # each place by itself


def test_a_permutation_sends_an_index_everywhere_alike():
  places = [int(permute(np.asarray([2]), 5, (seed,))[0]) for seed in range(300)]
  assert np.bincount(places).min() > 30


@pytest.mark.parametrize('packing', [False, True])
@pytest.mark.parametrize('task', [LanguageModel, MaskedLM, SpanCorruption])
def test_documents_make_the_rows_of_the_corpus_in_memory(tmp_path, tokenizer, task, packing):
  decoding = Batching() if task is MaskedLM else Decoding()
  task = task(tokenizer=tokenizer, decoding=decoding, max_length=16)
  examples = [{'targets': text} for text in TEXTS]
  if not (packing and not task.supports_packing):
    source = prepare(tmp_path, task, examples, 'documents', packing=packing)
    columns = task.columns(examples)
    batches = PreparedBatches(source, task.columns, tokens=64)
    assert rows_of(batches, [*columns]) == expected_rows(columns, [*columns])


def test_whole_documents_have_their_ends(tmp_path, tokenizer):
  task = language_model(tokenizer, documents=True)
  source = prepare(tmp_path, task, [{'targets': text} for text in TEXTS], 'documents')
  tokens = source[1]['targets'].tolist()
  assert tokens == [tokenizer.bos, *tokenizer.encode(TEXTS[1]), tokenizer.eos]
  batches = PreparedBatches(source, task.columns, tokens=64)
  columns = task.columns([{'targets': text} for text in TEXTS])
  assert rows_of(batches, ['targets']) == expected_rows(columns, ['targets'])


@pytest.mark.parametrize('packing', [False, True])
def test_pairs_make_the_rows_of_the_corpus_in_memory(tmp_path, tokenizer, packing):
  task = Seq2Seq(tokenizer=tokenizer, decoding=Decoding(), max_length=16)
  source = prepare(tmp_path, task, PAIRS, 'columns', packing=packing)
  columns, names = task.columns(PAIRS), ['inputs', 'targets']
  short = [i for i in range(len(PAIRS)) if len(columns['inputs'][i]) <= 16]
  columns = {n: Ragged.from_sequences([columns[n][i] for i in short]) for n in names}
  batches = PreparedBatches(source, task.columns, tokens=64)
  assert rows_of(batches, names) == expected_rows(columns, names)
  assert source.info['index']['left_out'] == len(PAIRS) - len(short)


def image_task(tokenizer):
  processor = ImageProcessor(height=8, width=8, channels=3, patch=4)
  settings = dict(tokenizer=tokenizer, decoding=Batching(), max_length=16, classes=('a', 'b'))
  return Classification(**settings, input_processor=processor)


def image_files(folder, count=10):
  examples = []
  for i in range(count):
    file = folder / f'{i}.png'
    PIL.Image.fromarray(np.full((9, 7, 3), 20 * i, np.uint8)).save(file)
    examples.append({'inputs': file, 'targets': 'ab'[i % 2], 'name': f'{i}.png', 'tags': ('x',)})
  return examples


def test_images_stay_as_they_are_and_are_decoded_for_their_batch(tmp_path, tokenizer):
  examples, task = image_files(tmp_path), image_task(tokenizer)
  examples[3]['inputs'] = np.full((8, 8, 3), 60, np.uint8)  # as of MNIST
  source = prepare(tmp_path, task, examples, 'examples', measured=True)
  assert source[2]['inputs'] == examples[2]['inputs'].read_bytes()
  assert source[2]['tags'] == ('x',) and '2.png' in source[2]['inputs'].name
  batches = PreparedBatches(source, task.columns, tokens=4)
  seen = [
    (b['inputs'][i, 0, 0, 0], b['label'][i])
    for b in map(batches.__getitem__, range(len(batches)))
    for i in np.flatnonzero(b['label_segments'])
  ]
  assert sorted(seen) == [(20 * i, i % 2) for i in range(10)]


def test_a_broken_image_is_named_while_it_is_prepared(tmp_path, tokenizer):
  examples = image_files(tmp_path, 3)
  examples[1]['inputs'].write_bytes(b'\x89PNG broken')
  with pytest.raises(ValueError, match='1.png'):
    prepare(tmp_path, image_task(tokenizer), examples, 'examples', measured=True)


@pytest.fixture(scope='module')
def batches(tmp_path_factory, tokenizer):
  task = language_model(tokenizer)
  folder = tmp_path_factory.mktemp('corpus')
  source = prepare(folder, task, [{'targets': text} for text in TEXTS], 'documents')
  return functools.partial(PreparedBatches, source, task.columns, tokens=100, multiple=4)


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_batch_depends_on_its_step_alone(batches):
  first, again = batches(), batches()
  last = 3 * len(first) - 1
  assert same(first[last], again[last]) and same(first[0], again[0])
  epochs = [rows_of_steps(first, range(e * len(first), (e + 1) * len(first))) for e in range(2)]
  assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
  assert rows_of_steps(batches(seed=None), range(2)) == rows_of_steps(batches(seed=None), range(2))


def rows_of_steps(batches, steps):
  return [row.tobytes() for step in steps for row in batches[step]['inputs'] if row.any()]


def test_processes_make_the_parts_of_one_batch(batches):
  parts = [batches(process=(i, 4)) for i in range(4)]
  for step in (0, 5, len(batches()) - 1):
    made = [part[step] for part in parts]
    joined = {name: np.concatenate([each[name] for each in made]) for name in made[0]}
    assert same(joined, batches()[step])
  with pytest.raises(ValueError, match='3 processes'):
    batches(process=(0, 3))


def test_a_killed_preparation_goes_on_with_its_parts(tmp_path, tokenizer, monkeypatch):
  monkeypatch.setattr(preparation, 'PART_EXAMPLES', 20)
  task, examples = language_model(tokenizer), [{'targets': text} for text in TEXTS]
  made, killed = [], [True]
  encode = preparation.Encoder.__call__

  def counted(self, part):
    if killed and len(made) == 2:
      raise KeyboardInterrupt
    made.append(len(part))
    return encode(self, part)

  monkeypatch.setattr(preparation.Encoder, '__call__', counted)
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, task, examples, 'documents')
  killed.clear()
  # of the two parts that were made one is damaged
  damaged = tmp_path / 'train.parts' / '000001.targets.bin'
  damaged.write_bytes(damaged.read_bytes()[::-1])
  source = prepare(tmp_path, task, examples, 'documents')
  assert made == [20] * 4  # the damaged one again, and the last
  expected = list(encode_documents(tokenizer, TEXTS))
  assert all(np.array_equal(source[i]['targets'], row) for i, row in enumerate(expected))
  assert not list(tmp_path.glob('*.parts'))


def test_what_is_prepared_is_kept_unless_it_changed(tmp_path, tokenizer, monkeypatch):
  task, examples = language_model(tokenizer), [{'targets': text} for text in TEXTS]
  before = prepare(tmp_path, task, examples, 'documents')
  packed = prepare(tmp_path, task, examples, 'documents', packing=True)
  assert packed.info['columns'] == before.info['columns']
  assert packed.info['index'] != before.info['index']
  changed = prepare(tmp_path, task, examples[1:], 'documents')
  assert len(changed) == len(before) - 1 and changed.fingerprint != before.fingerprint


@pytest.mark.slow
def test_several_processes_write_the_files_of_one(tmp_path, tokenizer, monkeypatch):
  monkeypatch.setattr(preparation, 'PART_EXAMPLES', 20)
  encoder = preparation.Encoder('documents', language_model(tokenizer))
  infos = []
  for workers in (1, 2):
    folder = tmp_path / str(workers)
    folder.mkdir()
    examples = ({'targets': text} for text in TEXTS)
    infos.append(
      preparation.write_split(folder, 'train', lambda e=examples: e, encoder, 0, workers=workers)
    )
  assert infos[0] == infos[1] and not multiprocessing.active_children()


def test_columns_of_every_type_survive(tmp_path):
  columns = {
    'ids': Ragged.from_sequences([[1, 2], [], [70_000]]),
    'marks': Ragged.from_sequences([[-1, 2], [3], []]),
    'frames': Ragged.from_sequences([np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)]),
    'labels': np.asarray([[1, 2], [3, 4]], np.int32),
    'empty': Ragged.from_sequences([[], []]),
  }
  for name, column in columns.items():
    infos = [token_files.write_column(tmp_path / f'{i}', column, '<u4') for i in range(2)]
    parts = [(tmp_path / f'{i}', info) for i, info in enumerate(infos)]
    whole = token_files.open_column(
      tmp_path / 'whole', token_files.join_columns(tmp_path / 'whole', parts)
    )
    assert len(whole) == 2 * len(column), name
    for i in range(len(whole)):
      np.testing.assert_array_equal(whole[i], column[i % len(column)], err_msg=name)


def test_released_columns_are_read_again(tmp_path):
  column = Ragged.from_sequences([[1, 2], [3]])
  opened = token_files.open_column(tmp_path / 'a', token_files.write_column(tmp_path / 'a', column))
  token_files.release(opened)
  token_files.release(column)  # of what is no file nothing is given back
  assert [row.tolist() for row in opened] == [row.tolist() for row in column] == [[1, 2], [3]]


def test_small_vocabularies_take_two_bytes_a_token(tmp_path):
  info = token_files.write_column(tmp_path / 'a', Ragged.from_sequences([[1, 2]]), '<u2')
  assert (tmp_path / 'a.bin').stat().st_size == 4 and info['dtype'] == '<u2'
  # a part with PAD keeps its own type, and so does the whole
  marked = token_files.write_column(tmp_path / 'b', Ragged.from_sequences([[-1]]), '<u2')
  joined = token_files.join_columns(
    tmp_path / 'c', [(tmp_path / 'a', info), (tmp_path / 'b', marked)]
  )
  assert token_files.open_column(tmp_path / 'c', joined).tokens.tolist() == [1, 2, -1]


def test_windows_are_those_of_the_task():
  offsets = np.asarray([0, 1, 3, 3, 12])
  # a language model predicts from each window's first token on: two tokens at least
  assert cut_lengths(offsets, Cut(5, 4)) == [(1, 3), (3, 8), (7, 12)]
  assert cut_lengths(offsets, Cut(4, 4)) == [(0, 1), (1, 3), (3, 7), (7, 11), (11, 12)]


def cut_lengths(offsets, cut):
  return [*map(tuple, preparation.cut_windows(offsets, cut).tolist())]


def test_nanogpt_files_are_read(tmp_path, tokenizer):
  task = language_model(tokenizer)
  tokens = np.asarray([*tokenizer.encode('abc ' * 30), tokenizer.eos, *tokenizer.encode('xyz')])
  for split in ('train', 'val'):
    tokens.astype(np.uint16).tofile(tmp_path / f'{split}.bin')
  tokenizer.save(tmp_path / 'tokenizer.json')
  source = corpora.load('prepared', 'train', dir=tmp_path)
  settings = SETTINGS | {'cut': list(task.cut[:3])}
  batches = PreparedBatches(prepared.endless(source, settings), task.columns, tokens=64)
  expected = task.columns([{'targets': tokens}])
  assert rows_of(batches, ['targets']) == expected_rows(expected, ['targets'])
  texts = corpora.load('prepared', 'val', dir=tmp_path)
  assert texts == [{'targets': 'abc ' * 30}, {'targets': 'xyz'}]
  np.asarray([300, 1] * 20, np.uint16).tofile(tmp_path / 'train.bin')
  source = prepared.endless(corpora.load('prepared', 'train', dir=tmp_path), settings)
  with pytest.raises(FileError, match='train has the token 300.*tokenizer'):
    PreparedBatches(source, task.columns, tokens=64)[0]


def test_damaged_corpora_are_named(tmp_path, tokenizer):
  task = language_model(tokenizer)
  prepare(tmp_path, task, [{'targets': text} for text in TEXTS], 'documents')
  load = functools.partial(corpora.load, 'prepared', dir=tmp_path)
  with pytest.raises(ValueError, match="prepared.json.*no split 'val', but train"):
    load('val')
  described = prepared.read_json(tmp_path)
  (tmp_path / prepared.JSON).write_text(json.dumps(described | {'vocab': 7}))
  with pytest.raises(FileError, match='prepared.json: it is not as it was written'):
    load('train')
  (tmp_path / prepared.JSON).write_text(json.dumps(described | {'format': 1}))  # had no checksum
  assert len(load('train')) == len(TEXTS)
  file = tmp_path / 'train.targets.bin'
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(FileError, match='train.targets.bin has [0-9,]+ bytes instead of'):
    load('train')
  (tmp_path / prepared.JSON).write_text('{"format": 9, "splits": {}, "vocab": 1}')
  with pytest.raises(FileError, match='prepared.json: it has format 9'):
    load('train')
  (tmp_path / prepared.JSON).write_text('[')
  with pytest.raises(FileError, match='prepared.json'):
    load('train')
  with pytest.raises(FileNotFoundError, match='--mode=prepare'):
    corpora.load('prepared', 'train', dir=tmp_path / 'nowhere')


@pytest.mark.parametrize('ending', ['jsonl', 'txt', 'parquet', 'jsonl.gz'])
def test_documents_are_read_from_files(tmp_path, ending):
  import gzip

  texts, file = ['one ü', 'two', 'three'], tmp_path / f'train.{ending}'
  lines = '\n'.join(json.dumps({'text': x, 'id': 1}) for x in [*texts, ' ']) + '\n'
  if ending == 'parquet':
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({'id': [1] * 4, 'text': [*texts, ' ']}), file)
  elif ending == 'jsonl.gz':
    file.write_bytes(gzip.compress(lines.encode()))
  else:
    file.write_text(lines if ending == 'jsonl' else '\n'.join([*texts, '', '']))
  assert [x['targets'] for x in corpora.load('documents', 'train', dir=tmp_path)] == texts
  with pytest.raises((ValueError, FileNotFoundError), match='train|val'):
    corpora.load('documents', 'val', dir=tmp_path)


def test_streams_are_the_sources(tmp_path):
  (tmp_path / 'train.en').write_text('a\nb\n')
  (tmp_path / 'train.de').write_text('c\nd\n')
  (tmp_path / 'train.tsv').write_text('a\tb\nc\td\n')
  (tmp_path / 'train.txt').write_text('x one\ny two\n')
  for name, inputs, targets in [
    ('parallel', 'en', 'de'),
    ('pairs', 'inputs', 'targets'),
    ('labelled', '', 'label'),
    ('text', '', ''),
  ]:
    where = dict(dir=tmp_path, inputs=inputs, targets=targets)
    source = corpora.load(name, 'train', **where)
    assert list(corpora.stream(name, 'train', **where)) == [source[i] for i in range(len(source))]


def test_a_long_text_is_streamed_in_parts(tmp_path, monkeypatch):
  monkeypatch.setattr('transformer.data.text_files.PART', 5)
  file = tmp_path / 'input.txt'
  file.write_text(text := ''.join(f'line {i}\n' for i in range(20)))
  parts = [
    [x['targets'] for x in corpora.stream('text', split, dir=file, inputs='', targets='')]
    for split in ('train', 'val')
  ]
  assert len(parts[0]) > 5 and ''.join(parts[0] + parts[1]) == text
  assert len(''.join(parts[1])) == len(text) - int(0.9 * len(text))
