"""Tests of data/corpora.py and the sources it opens."""

import functools
import gzip
import io
import itertools
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from transformer.data import corpora
from transformer.data.algorithmic import Algorithmic
from transformer.data.splits import split_by_hash

REPOSITORY = pathlib.Path(__file__).parents[2]
SHARED = pathlib.Path(os.environ.get('TRANSFORMER_DATA', REPOSITORY.parent / 'shared' / 'data'))
PAIRS = [(f'question {i} \u2028 ü', f'answer {i}') for i in range(400)]


def examples(source):
  return [(e['inputs'], e['targets']) for e in source]


# Algorithmic


@pytest.mark.parametrize('task', ['copy', 'reverse', 'sort'])
def test_algorithmic_targets(task):
  answer = {'copy': list, 'reverse': lambda s: [*reversed(s)], 'sort': sorted}[task]
  for split in ('train', 'val', 'test'):
    for inputs, targets in examples(corpora.load(task, split, limit=300)):
      symbols = inputs.split(' ')
      assert all(s in '0123456789' and len(s) == 1 for s in symbols)
      assert targets.split(' ') == answer(symbols)


def test_algorithmic_is_a_pure_function_of_split_and_index():
  source = Algorithmic('copy', 'train', size=50)
  forwards = [source[i] for i in range(50)]
  backwards = [pickle.loads(pickle.dumps(source))[np.int64(i)] for i in reversed(range(50))]
  assert backwards == forwards[::-1]
  assert [Algorithmic('copy', 'train')[i] for i in range(50)] == forwards
  assert len(set(examples(source))) > 40
  script = 'from transformer.data import corpora; print(corpora.load("copy", "train")[7]["inputs"])'
  other = subprocess.run(
    [sys.executable, '-c', script], cwd=REPOSITORY, capture_output=True, text=True, check=True
  )
  assert other.stdout.strip() == forwards[7]['inputs']


def test_algorithmic_lengths_are_uniform_and_symbols_used():
  for split, lowest in (('train', 1), ('test', 3)):
    sequences = [
      s.split(' ') for s, _ in examples(Algorithmic('copy', split, symbols=16, size=900))
    ]
    counts = np.bincount([len(s) for s in sequences], minlength=21)
    assert counts[:lowest].sum() == 0 and len(counts) == 21
    expected = 900 / (21 - lowest)
    assert np.all(abs(counts[lowest:] - expected) < 5 * expected**0.5)  # 5 standard deviations
    assert {s for sequence in sequences for s in sequence} == set('0123456789abcdef')


def test_algorithmic_splits_share_no_sequence():
  # short ones over few symbols: without the split by hash all of them would be shared
  seen = {
    split: {s for s, _ in examples(Algorithmic('copy', split, lengths=(1, 7), symbols=3, size=600))}
    for split in ('train', 'val', 'test')
  }
  for one, other in itertools.combinations(seen.values(), 2):
    assert one.isdisjoint(other)
  assert {'0', '1', '2', '0 0', '2 1'} <= seen['train']


def test_algorithmic_longer_is_longer_than_every_other_split():
  for lengths in ((1, 20), (2, 5)):
    sizes = [len(s.split()) for s, _ in examples(Algorithmic('sort', 'longer', lengths=lengths))]
    assert (min(sizes), max(sizes)) == (lengths[1] + 1, 2 * lengths[1])


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(task='shuffle'), "'shuffle'.*copy, reverse, sort"),
    (dict(split='dev'), "'dev'.*train, val, test"),
    (dict(lengths=(0, 3)), r'lengths=\(0, 3\)'),
    (dict(lengths=(5, 4)), r'lengths=\(5, 4\)'),
    (dict(symbols=1), 'symbols=1.*2 to 36'),
    (dict(symbols=37), 'symbols=37.*2 to 36'),
    (dict(size=-1), 'size=-1'),
  ],
)
def test_algorithmic_checks_its_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    Algorithmic(**{'task': 'copy', 'split': 'train', **arguments})


def test_algorithmic_raises_past_its_end_and_without_sequences():
  source = Algorithmic('copy', 'val', size=3)
  assert len(list(source)) == len(source) == 3
  for i in (3, -1):
    with pytest.raises(IndexError, match='0 to 2'):
      source[i]
  with pytest.raises(ValueError, match="no sequence for 'test'"):
    Algorithmic('copy', 'test', lengths=(1, 2))[0]


# Any source


def test_dates_have_a_locale():
  pytest.importorskip('babel')
  example = corpora.load('dates', 'val', limit=2)[1]
  assert example.keys() == {'inputs', 'targets', 'locale'}


def test_limit(tmp_path):
  whole = corpora.load('copy', 'val')
  for limit, size in ((0, 1000), (7, 7), (5000, 1000)):
    part = corpora.load('copy', 'val', limit=limit)
    assert len(part) == size
    assert [part[i] for i in range(7)] == [whole[i] for i in range(7)]
  with pytest.raises(IndexError):
    corpora.load('copy', 'val', limit=7)[7]
  with pytest.raises(ValueError, match='limit=-1'):
    corpora.load('copy', 'val', limit=-1)


def test_a_function_is_a_corpus(tmp_path):
  def mine(dir, split, inputs, targets):
    return [{'inputs': f'{dir.name}/{split}', 'targets': inputs + targets}] * 3

  source = corpora.load(mine, 'dev', dir=tmp_path / 'a', inputs='x', targets='y', limit=2)
  assert examples(source) == [('a/dev', 'xy')] * 2


# Parallel


def write_parallel(folder, split='train', de='eins\nzwei\n', en='one\ntwo\n'):
  (folder / f'{split}.de').write_bytes(de.encode())
  (folder / f'{split}.en.gz').write_bytes(gzip.compress(en.encode()))


def parallel(folder, split='train', targets='en'):
  return corpora.load('parallel', split, dir=folder, inputs='de', targets=targets)


def test_parallel_reads_plain_and_gz(tmp_path):
  # LF or CRLF, with BOM, a separator that only str.splitlines obeys, no newline at the end
  write_parallel(tmp_path, de='\ufeffeins\r\n z\u2028w\x85ei \n\ndrei', en='one\ntwo\n\nthree\n')
  source = parallel(tmp_path)
  assert examples(source) == [
    ('eins', 'one'),
    (' z\u2028w\x85ei ', 'two'),
    ('', ''),
    ('drei', 'three'),
  ]
  assert pickle.loads(pickle.dumps(source))[1] == source[np.int64(1)]


def test_parallel_counts_must_agree(tmp_path):
  write_parallel(tmp_path, en='one\n')
  with pytest.raises(ValueError, match=r'train\.de has 2 lines.*train\.en\.gz has 1'):
    parallel(tmp_path)
  write_parallel(tmp_path, de='', en='')
  with pytest.raises(ValueError, match=r'train\.de is empty'):
    parallel(tmp_path)


def test_parallel_lists_the_files_where_one_is_missing(tmp_path):
  write_parallel(tmp_path)
  with pytest.raises(FileNotFoundError) as error:
    parallel(tmp_path, targets='fr')
  for part in ('train.fr', '.gz', 'train.de, train.en.gz', str(tmp_path), 'data.dir'):
    assert part in str(error.value)
  with pytest.raises(FileNotFoundError, match='not even the folder.*--config.data.dir'):
    parallel(tmp_path / 'nowhere')


def test_parallel_names_the_line_of_broken_bytes(tmp_path):
  write_parallel(tmp_path)
  (tmp_path / 'train.de').write_bytes('eins\nzwölf\n'.encode('latin1'))
  with pytest.raises(ValueError, match=r'train\.de:2: not UTF-8.*iconv'):
    parallel(tmp_path)
  whole = gzip.compress(os.urandom(9999).hex().encode())
  for broken in (b'plain text', whole[:500], whole[:-1], whole[:99] + whole[100:]):
    (tmp_path / 'train.en.gz').write_bytes(broken)
    (tmp_path / 'train.de').write_bytes(b'eins\n')
    with pytest.raises(ValueError, match=r'train\.en\.gz:\d+: broken gz'):
      parallel(tmp_path)


def test_multi30k_counts():
  folder = SHARED / 'multi30k'
  if not folder.is_dir():
    pytest.skip(f'no multi30k in {SHARED}; set TRANSFORMER_DATA to the folder with the data sets')
  for split, count in (('train', 29_000), ('val', 1_014), ('test_2016_flickr', 1_000)):
    source = corpora.load('parallel', split, dir=folder, inputs='en', targets='de')
    assert len(source) == count
    assert all(inputs and targets for inputs, targets in examples(source))
  assert source[0] == {
    'inputs': 'A man in an orange hat starring at something.',
    'targets': 'Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.',
  }


# Pairs


def tsv(pairs):
  return ''.join(f'{i}\t{t}\n' for i, t in pairs)


def jsonl(pairs, **extra):
  return ''.join(json.dumps({'inputs': i, 'targets': t, **extra}) + '\n' for i, t in pairs)


@pytest.mark.parametrize('write, end', [(tsv, '.tsv'), (jsonl, '.jsonl')])
@pytest.mark.parametrize('compress', [False, True])
def test_pairs_of_a_folder(write, end, compress, tmp_path):
  for split, part in (('train', PAIRS[:300]), ('dev', PAIRS[300:])):
    content = write(part).encode()
    path = tmp_path / f'{split}{end}{".gz" * compress}'
    path.write_bytes(gzip.compress(content) if compress else content)
  assert examples(corpora.load('pairs', 'train', dir=tmp_path)) == PAIRS[:300]
  assert examples(corpora.load('pairs', 'dev', dir=str(tmp_path))) == PAIRS[300:]
  with pytest.raises(FileNotFoundError, match=rf'test\{end}.*There now: dev.*train'):
    corpora.load('pairs', 'test', dir=tmp_path)


@pytest.mark.parametrize('write, end', [(tsv, '.tsv'), (jsonl, '.jsonl')])
def test_one_file_is_divided_by_its_inputs(write, end, tmp_path):
  pairs = PAIRS + [(i, 'another answer') for i, _ in PAIRS]
  path = tmp_path / f'mine{end}'
  path.write_text(write(pairs), encoding='utf-8')
  parts = {s: examples(corpora.load('pairs', s, dir=path)) for s in ('train', 'val', 'test')}
  assert sorted(sum(parts.values(), [])) == sorted(pairs)
  for split, part in parts.items():
    assert part == [pair for pair in pairs if split_by_hash(pair[0]) == split]  # in order
    for inputs, _ in part:
      assert (inputs, 'another answer') in part
  with pytest.raises(ValueError, match="'dev'.*train, val and test"):
    corpora.load('pairs', 'dev', dir=path)


def test_split_by_hash_is_90_5_5_and_never_changes():
  counts = {split: 0 for split in ('train', 'val', 'test')}
  for i in range(20_000):
    counts[split_by_hash(str(i))] += 1
  assert abs(counts['val'] - 1000) < 150 and abs(counts['test'] - 1000) < 150
  # a user's test set must not move into train with a new release
  assert [split_by_hash(t) for t in ('a', 'ü', '2', '3')] == ['train', 'train', 'val', 'test']


def test_tsv_header_names_columns(tmp_path):
  (tmp_path / 'train.tsv').write_bytes(
    '\ufeffid\ten\tde\r\n7\tone\teins\r\n8\ttwo\tzwei\r\n'.encode()
  )
  source = corpora.load('pairs', 'train', dir=tmp_path, inputs='de', targets='en')
  assert examples(source) == [('eins', 'one'), ('zwei', 'two')]
  with pytest.raises(ValueError, match=r"train\.tsv:1: no columns 'fr' and 'en'.*'id', 'en', 'de'"):
    corpora.load('pairs', 'train', dir=tmp_path, inputs='fr', targets='en')
  (tmp_path / 'val.tsv').write_text('inputs\ttargets\none\teins\n')
  assert examples(corpora.load('pairs', 'val', dir=tmp_path)) == [('one', 'eins')]


def test_jsonl_keys(tmp_path):
  (tmp_path / 'train.jsonl').write_text('{"q": "a\\tb\\nc", "a": "d", "n": 3}\n', encoding='utf-8')
  source = corpora.load('pairs', 'train', dir=tmp_path, inputs='q', targets='a')
  assert examples(source) == [('a\tb\nc', 'd')]
  with pytest.raises(
    ValueError, match=r"train\.jsonl:1: .*'inputs' and 'targets', but keys q, a, n"
  ):
    corpora.load('pairs', 'train', dir=tmp_path)
  with pytest.raises(ValueError, match=r'train\.jsonl:1: targets is 3'):
    corpora.load('pairs', 'train', dir=tmp_path, inputs='q', targets='n')


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('train.tsv', b'a\tb\na b\n', r'train\.tsv:2: 1 columns instead of 2'),
    ('train.tsv', b'a\tb\na\tb\tc\n', r'train\.tsv:2: 3 columns instead of 2'),
    ('train.tsv', b'a\tb\n\na\tb\n', r'train\.tsv:2: 1 columns'),
    ('train.tsv', b'a\tb\n\tb\n', r"train\.tsv:2: inputs is ''"),
    ('train.tsv', b'a\tb\na\t \n', r"train\.tsv:2: targets is ' '"),
    ('train.tsv', b'a\tb\na\t\xff\n', r'train\.tsv:2: not UTF-8'),
    ('train.tsv', b'', r"train\.tsv: no example for 'train'"),
    ('train.jsonl', b'{"inputs": "a", "targets": "b"}\n{"inputs": "a",\n', r'jsonl:2: not JSON'),
    ('train.jsonl', b'["a", "b"]\n', r'jsonl:1: .*but list'),
    ('train.jsonl', b'3\n', r'jsonl:1: .*but int'),
    ('train.jsonl', b'{"inputs": "a", "targets": null}\n', r'jsonl:1: targets is None'),
    ('train.jsonl', b'{"inputs": "\\ud83d", "targets": "b"}\n', r'jsonl:1: inputs is .*whole'),
  ],
)
def test_errors_of_pairs_name_the_line(name, content, message, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    corpora.load('pairs', 'train', dir=tmp_path)


def test_a_single_file_that_is_missing_or_of_another_format_or_too_small(tmp_path):
  (tmp_path / 'mine.csv').write_text('a,b\n')
  with pytest.raises(ValueError, match=r'mine\.csv: rename it to \*\.tsv or \*\.jsonl'):
    corpora.load('pairs', 'train', dir=tmp_path / 'mine.csv')
  with pytest.raises(FileNotFoundError, match=r'mine\.tsv.*There now: mine\.csv'):
    corpora.load('pairs', 'train', dir=tmp_path / 'mine.tsv')
  (tmp_path / 'two.tsv').write_text('a\tb\nc\td\n')
  with pytest.raises(ValueError, match=r"two\.tsv: no example for 'val'.*val\.tsv"):
    corpora.load('pairs', 'val', dir=tmp_path / 'two.tsv')


# TFDS


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A folder with a TFDS data set of ours, prepared without TensorFlow."""
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('array_record')

  class CorporaTestPairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.10.0')

    def _info(self):
      features = {
        'en': tfds.features.Text(),
        'de': tfds.features.Text(),
        'kind': tfds.features.ClassLabel(names=['noun', 'verb']),
        'many': tfds.features.Sequence(tfds.features.Text()),
        'count': tfds.features.Scalar(np.int64),
        'picture': tfds.features.Image(shape=(4, 5, 3)),
        'captions': tfds.features.Sequence({'text': tfds.features.Text(), 'id': np.int64}),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(20), 'validation': self._generate_examples(5)}

    def _generate_examples(self, count):
      for i in range(count):
        kind = -1 if i == 4 else i % 2
        captions = [{'text': f'caption {i}.{j}', 'id': j} for j in range(3)]
        texts = {'en': f'word {i}', 'de': f'Wörter {i}', 'many': ['a'], 'captions': captions}
        picture = io.BytesIO()  # encoded: TFDS would need TensorFlow for that
        PIL.Image.new('RGB', (5, 4), (i, i, i)).save(picture, 'png')
        yield i, {**texts, 'kind': kind, 'count': i, 'picture': picture.getvalue()}

  folder = tmp_path_factory.mktemp('tfds')
  try:
    CorporaTestPairs(data_dir=folder, file_format='array_record').download_and_prepare()
  except ImportError as error:
    pytest.skip(f'this TFDS cannot prepare a data set without TensorFlow: {error!r}')
  return folder


def test_tfds_is_read_without_tensorflow(prepared):
  source = corpora.load('corpora_test_pairs', 'train', dir=prepared, inputs='en', targets='de')
  assert len(source) == 20 and len(list(source)) == 20
  expected = {(f'word {i}', f'Wörter {i}') for i in range(20)}
  assert set(examples(source)) == expected
  assert pickle.loads(pickle.dumps(source))[np.int64(3)] == source[3]
  with pytest.raises(IndexError):
    source[20]
  script = (
    'import sys; from transformer.data import corpora\n'
    'load, name = corpora.load, "corpora_test_pairs"\n'
    'print(len(load(name, "train[:50%]+validation", dir=sys.argv[1], inputs="en", targets="de")))\n'
    'assert "tensorflow" not in sys.modules'
  )
  command = [sys.executable, '-c', script, prepared]
  result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
  assert result.stdout == '15\n'


def test_tfds_class_names(prepared):
  load = corpora.load
  source = load('corpora_test_pairs', 'validation', dir=prepared, inputs='en', targets='kind')
  assert dict(examples(source)) == {
    'word 0': 'noun',
    'word 1': 'verb',
    'word 2': 'noun',
    'word 3': 'verb',
    'word 4': '',  # -1, unlabelled: not the last class
  }


def test_tfds_images_have_one_caption_and_all_references(prepared):
  names = dict(dir=prepared, inputs='picture', targets='captions/text')
  source = corpora.load('corpora_test_pairs', 'train', **names)
  for i, example in enumerate(source):
    image, references = example['inputs'], example['references']
    assert image.dtype == np.uint8 and image.shape == (4, 5, 3) and np.ptp(image) == 0
    assert references == tuple(f'caption {image[0, 0, 0]}.{j}' for j in range(3))
    assert example['targets'] == references[i % 3]
  labels = corpora.load('corpora_test_pairs', 'train', **dict(names, targets='kind'))
  assert {e['targets'] for e in labels} == {'noun', 'verb', ''} and 'references' not in labels[0]


def test_tfds_default_folder_and_versions(prepared, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  old = tmp_path / 'corpora_test_pairs' / '1.9.0'
  shutil.copytree(prepared / 'corpora_test_pairs' / '1.10.0', old.parent / '1.10.0')
  shutil.copytree(old.parent / '1.10.0', old)
  info = old / 'dataset_info.json'
  info.write_text(info.read_text().replace('"20"', '"19"').replace('1.10.0', '1.9.0'))
  names = dict(inputs='en', targets='de')
  assert len(corpora.load('corpora_test_pairs', 'train', **names)) == 20  # 1.10 is after 1.9
  assert len(corpora.load('corpora_test_pairs:1.9.0', 'train', **names)) == 19


def test_tfds_errors_list_splits_and_features(prepared):
  names = dict(dir=prepared, inputs='en', targets='de')
  with pytest.raises(ValueError, match="'test'.*train.*validation"):
    corpora.load('corpora_test_pairs', 'test', **names)
  for wrong in ('fr', 'many', 'count', 'picture', 'captions', 'captions/id', 'en/text'):
    with pytest.raises(
      ValueError, match=f"feature '{wrong}'.*captions, count, de, en, kind, many.*as targets"
    ):
      corpora.load('corpora_test_pairs', 'train', **{**names, 'targets': wrong})


@pytest.mark.parametrize('name', ['wmt14_translate/de-en', 'corpora_test_pair', 'my_set:2.0.0'])
def test_tfds_never_downloads_and_explains_how_to_prepare(name, prepared, monkeypatch):
  import tensorflow_datasets as tfds

  def download(*args, **kwargs):
    raise AssertionError('a download was started')

  monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', download)
  with pytest.raises(FileNotFoundError) as error:
    corpora.load(name, 'train', dir=prepared)
  for part in (
    f"tfds.builder('{name}', data_dir='{prepared}').download_and_prepare(",
    "file_format='array_record'",
    "pip install '.[prepare]'",
    'there: corpora_test_pairs',
    "name='pairs'",
    "name='parallel'",
  ):
    assert part in str(error.value)
  assert ("Did you mean 'corpora_test_pairs'?" in str(error.value)) == name.startswith('corpora')


def test_misspelt_and_impossible_names(tmp_path):
  with pytest.raises(FileNotFoundError, match="Did you mean 'parallel'"):
    corpora.load('paralel', 'train', dir=tmp_path)
  for name in ('', '/etc', '../up', 'huggingface:sst', 'a b'):
    with pytest.raises(
      ValueError,
      match='dates, copy, reverse, sort, .*parallel, pairs',
    ):
      corpora.load(name, 'train', dir=tmp_path)


def test_labelled_lines(tmp_path):
  lines = [f'{"AB"[i % 2]}:{"xyz"[i % 3]} what is {i} ?' for i in range(60)]
  (tmp_path / 'all.txt').write_text('\n'.join(lines) + '\n')
  load = functools.partial(corpora.load, 'labelled')
  parts = [
    load(split, dir=tmp_path / 'all.txt', targets='coarse') for split in ('train', 'val', 'test')
  ]
  assert sum(map(len, parts)) == 60 and all(map(len, parts))
  assert all(e['targets'] == 'AB'[int(e['inputs'].split()[2]) % 2] for p in parts for e in p)
  (tmp_path / 'val.txt').write_text('GOOD fine words\n')
  assert load('val', dir=tmp_path, targets='label')[0] == {
    'inputs': 'fine words',
    'targets': 'GOOD',
  }
  assert load('train', dir=tmp_path / 'all.txt', targets='fine')[0]['targets'] in 'xyz'
  with pytest.raises(ValueError, match="data.target='kind' is none of label, coarse, fine"):
    load('val', dir=tmp_path, targets='kind')
  (tmp_path / 'val.txt').write_text('GOOD words\nBAD\n')
  with pytest.raises(ValueError, match='val.txt:2: inputs is'):
    load('val', dir=tmp_path, targets='label')


def test_a_text_is_one_example(tmp_path):
  """Of one file the last tenth of the characters is for val; of a folder each file is one text."""
  whole = ''.join(f'line {i} ä\n' for i in range(50)) + '\nend'
  (tmp_path / 'all.txt').write_text(whole)
  parts = [corpora.load('text', split, dir=tmp_path / 'all.txt') for split in ('train', 'val')]
  texts = [part[0]['targets'] for part in parts]
  assert ''.join(texts) == whole + '\n' and all(len(part) == 1 for part in parts)
  assert len(texts[0]) == int(0.9 * (len(whole) + 1))
  with gzip.open(tmp_path / 'valid.txt.gz', 'wt') as file:
    file.write('a\nb\n')
  assert corpora.load('text', 'valid', dir=tmp_path)[0] == {'targets': 'a\nb\n'}
  with pytest.raises(ValueError, match="split 'test'"):
    corpora.load('text', 'test', dir=tmp_path / 'all.txt')
  (tmp_path / 'none.txt').write_text('\n')
  with pytest.raises(ValueError, match='is empty'):
    corpora.load('text', 'none', dir=tmp_path)
