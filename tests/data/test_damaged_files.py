"""Damaged files of every kind: whatever is wrong, the error names the file."""

import functools
import gzip
import io
import json
import lzma
import pathlib
import shutil
import tarfile
import tempfile
import zlib

import numpy as np
import PIL.Image
import pytest
from fuzzing import check_refusals, mutate

from transformer.data import audio, column_cache, corpora, images, preparation, prepared
from transformer.data.archives import Content
from transformer.data.documents import collection
from transformer.data.pipeline import Ragged
from transformer.data.prepared import PreparedBatches
from transformer.data.processors import SoundProcessor
from transformer.data.tokenizers import Tokenizer, train
from transformer.inference.decoding import Decoding
from transformer.tasks.language_model import LanguageModel

PARAGRAPH = 'In 1840 the Tower was built in Rome by Anna, who had three goats and 20 clocks. ' * 3
ASKED = {'question': 'When?', 'answers': [{'text': '1840', 'answer_start': 3}], 'id': '0'}
SQUAD = {'data': [{'title': 'A', 'paragraphs': [{'context': PARAGRAPH, 'qas': [ASKED]}]}]}
WORDS = 'one two\tthree\nfour\tfive six\nÖl\téte\n'
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 11, 3), dtype=np.uint8)
SAMPLES = 0.1 * RNG.normal(size=900)


def picture(kind, mode='RGB', **options):
  file = io.BytesIO()
  PIL.Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
  return file.getvalue()


def sound(kind, subtype):
  soundfile = pytest.importorskip('soundfile')
  file = io.BytesIO()
  soundfile.write(file, SAMPLES, 16_000, format=kind, subtype=subtype)
  return file.getvalue()


def packed(*members):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as opened:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      opened.addfile(info, io.BytesIO(content))
    link = tarfile.TarInfo('b/link.png')
    link.type, link.linkname = tarfile.SYMTYPE, '../a/1.png'
    opened.addfile(link)
  return file.getvalue()


def arrays(save, **named):
  file = io.BytesIO()
  save(file, **named)
  return file.getvalue()


def idx(array):
  header = b'\0\0\x08' + bytes([array.ndim]) + np.array(array.shape, '>i4').tobytes()
  return header + array.astype(np.uint8).tobytes()


def examples(name, split='train', **options):
  """Return a reader of all examples of a corpus, images decoded."""

  def read(path):
    source = corpora.load(name, split, dir=path.parent, **options)
    for example in (source[i] for i in range(len(source))):
      if name in ('images', 'captions', 'idx'):
        images.read(example['inputs'], 8, 8, 3)

  return read


def named(path):
  content = Content(path.read_bytes())
  content.name = str(path)
  return content


def collected(path):
  collection.cache_clear()
  return collection(str(path))


FRAMES = dict(feats=np.ones((6, 3), np.float32), lengths=np.array([2, 3, 1]))
FEATS = lambda file, **_: np.save(file, FRAMES['feats'])
TABLE = {'train.tsv': b'a\tone\nb\ttwo\nc\tthree\n'}
CRANFIELD = {
  'docs.jsonl.gz': gzip.compress(b'{"id": 1, "title": "a", "text": "a b"}\n', mtime=0),
  'queries.tsv': b'qid\ttext\n7\twho?\n',
  'qrels.tsv': b'qid\tdocid\tgrade\n7\t1\t2\n',
}
FOLDERS = packed(('a/1.png', picture('png')), ('b/2.gif', picture('gif')))
PICTURE = lambda path: images.read(str(path), 8, 8, 3)
SOUND = lambda path: audio.read(path, audio.rate_of(path))
BYTES = lambda path: audio.read(named(path), audio.rate_of(named(path)))

TEXTS = [{'targets': f'document {i}: ' + 'abc ' * (i % 7)} for i in range(12)]


def files_of(folder):
  return {
    str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob('*') if file.is_file()
  }


@functools.cache
def language_model():
  tokenizer = train([], kind='bytes', vocab=260)
  return LanguageModel(tokenizer=tokenizer, decoding=Decoding(), max_length=16)


@functools.cache
def prepared_corpus():
  """The files of a prepared corpus, and those of nanoGPT."""
  task = language_model()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    task.tokenizer.save(folder / 'tokenizer.json')
    encoder = preparation.Encoder('documents', task)
    info = preparation.write_split(folder, 'train', lambda: iter(TEXTS), encoder, {})
    settings = dict(cut=list(task.cut[:3]), max_length=16, packing=True, buckets=1)
    info['index'] = preparation.write_index(folder, 'train', info, settings)
    preparation.remove_parts(folder, 'train')
    prepared.write_json(folder, {'vocab': task.tokenizer.size, 'splits': {'train': info}})
    (folder / 'ids').mkdir()
    for split in ('train', 'val'):
      shutil.copy(folder / 'train.targets.bin', folder / 'ids' / f'{split}.bin')
    return files_of(folder)


def an_epoch(path):
  """Read every batch and every document of the corpus that a file belongs to."""
  source, columns = corpora.load('prepared', 'train', dir=path.parent), language_model().columns
  if source.info['index'] is None:
    settings = dict(cut=language_model().cut[:3], max_length=16, packing=True, buckets=1)
    source = prepared.endless(source, settings)
  else:
    [source[i] for i in range(len(source))]
  batches = PreparedBatches(source, columns, tokens=64)
  [batches[step] for step in range(len(batches))]
  if path.name == 'val.bin':
    corpora.load('prepared', 'val', dir=path.parent)


def kept_columns(path):
  """Read columns that a run keeps: what is damaged is made again."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(column_cache, 'LEAST', 0)
    found = column_cache.cached(path.parent.parent, 'train', 'key', lambda: KEPT)
  assert [row.tolist() for row in found['targets']] == [row.tolist() for row in KEPT['targets']]


KEPT = {'targets': Ragged.from_sequences([[1, 2], [3]])}


@functools.cache
def kept_files():
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name, 'train-key', 'columns.json')
    kept_columns(path)
    return files_of(path.parent)


@functools.cache
def tfds_files():
  """The files of a data set of TFDS."""
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('array_record')

  class Damaged(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {name: tfds.features.Text() for name in ('inputs', 'targets')}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'train': ((i, {'inputs': f'a {i}', 'targets': 'b'}) for i in range(9))}

    def _generate_examples(self):
      raise NotImplementedError

  with tempfile.TemporaryDirectory() as name:
    Damaged(data_dir=name, file_format='array_record').download_and_prepare()
    return files_of(pathlib.Path(name, 'damaged', '1.0.0'))


def tfds_examples(path):
  source = corpora.load('damaged', 'train', dir=path.parents[2])
  [source[i] for i in range(len(source))]


def table_of(text):
  pyarrow, file = pytest.importorskip('pyarrow'), io.BytesIO()
  pytest.importorskip('pyarrow.parquet').write_table(pyarrow.table({'text': text}), file)
  return file.getvalue()


def made(files, name, read, folder=''):
  """A row of READERS whose files are made when it is used."""

  def row():
    found = {f'{folder}{other}': content for other, content in files().items()}
    return f'{folder}{name}', found.pop(f'{folder}{name}'), read, found

  return row


# The file, its content, how it is read, and other files that belong to it; or what returns these.
READERS = {
  **{
    name: made(prepared_corpus, name, an_epoch)
    for name in (
      *('prepared.json', 'train.targets.bin', 'train.targets.idx', 'train.windows.bin'),
      *('train.rows.bin', 'train.rows.idx'),
    )
  },
  **{
    f'nanoGPT, {name}': made(
      lambda: (
        {x[4:]: y for x, y in prepared_corpus().items() if x[:4] == 'ids/'}
        | {'tokenizer.json': prepared_corpus()['tokenizer.json']}
      ),
      *(name, an_epoch),
    )
    for name in ('train.bin', 'val.bin', 'tokenizer.json')
  },
  **{
    f'kept, {name}': made(kept_files, name, kept_columns, 'train-key/')
    for name in ('columns.json', 'targets.bin', 'targets.idx')
  },
  **{
    f'tfds, {name}': made(tfds_files, name, tfds_examples, 'damaged/1.0.0/')
    for name in (
      *('dataset_info.json', 'features.json'),
      'damaged-train.array_record-00000-of-00001',
    )
  },
  'documents.parquet': lambda: ('train.parquet', table_of(['a b'] * 3), examples('documents'), {}),
  'pairs.tsv': ('train.tsv', WORDS.encode(), examples('pairs'), {}),
  'pairs.jsonl': ('train.jsonl', b'{"inputs": "a", "targets": "b"}\n' * 3, examples('pairs'), {}),
  'pairs.tsv.gz': ('train.tsv.gz', gzip.compress(WORDS.encode(), mtime=0), examples('pairs'), {}),
  'utf-16': ('train.tsv', WORDS.encode('utf-16'), examples('pairs'), {}),
  'labelled': (
    'train.txt',
    b'GOOD fine words\nBAD others\n',
    examples('labelled', targets='label'),
    {},
  ),
  'documents.jsonl': ('train.jsonl', b'{"text": "a b"}\n' * 3, examples('documents'), {}),
  'text.gz': ('train.txt.gz', gzip.compress(b'some text\n' * 9, mtime=0), examples('text'), {}),
  'conll': ('train.conll', b'a\tO\nRome\tB-city\n\nb\tO\n', examples('conll'), {}),
  'squad': ('train.json', json.dumps(SQUAD).encode(), examples('squad'), {}),
  'squad.gz': (
    'train.json.gz',
    gzip.compress(json.dumps(SQUAD).encode(), mtime=0),
    examples('squad'),
    {},
  ),
  'cloze': ('train.json', json.dumps(SQUAD).encode(), examples('squad', 'cloze:train'), {}),
  'collection.jsonl': (
    'docs.jsonl',
    b'{"id": 1, "text": "a"}\n{"id": "b", "text": "c"}\n',
    collected,
    {},
  ),
  'collection.json': ('docs.json', json.dumps(SQUAD).encode(), collected, {}),
  'collection.tsv': ('docs.tsv', b'a\tfirst\nb\tsecond\n', collected, {}),
  **{
    f'cranfield, {name}': (name, content, examples('cranfield', 'queries'), CRANFIELD)
    for name, content in CRANFIELD.items()
  },
  'titles': (
    'docs.jsonl.gz',
    CRANFIELD['docs.jsonl.gz'],
    examples('cranfield', 'documents'),
    CRANFIELD,
  ),
  **{
    f'{kind}, {mode}': ('picture', picture(kind, mode), PICTURE, {})
    for kind, mode in [
      *(
        ('png', 'RGBA'),
        ('png', 'P'),
        ('png', 'I;16'),
        ('png', '1'),
        ('jpeg', 'CMYK'),
        ('jpeg', 'L'),
      ),
      *(('gif', 'P'), ('bmp', 'RGB'), ('webp', 'RGB'), ('tiff', 'L'), ('tiff', 'LAB')),
      *(('ppm', 'RGB'), ('tga', 'RGB')),
    ]
  },
  'animation': (
    'picture',
    picture('gif', save_all=True, append_images=[PIL.Image.new('RGB', (9, 9))]),
    PICTURE,
    {},
  ),
  'exif': (
    'picture',
    picture(
      'jpeg', exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0'
    ),
    PICTURE,
    {},
  ),
  'tar': ('train.tar', FOLDERS, examples('images'), {}),
  'tar.gz': ('train.tar.gz', gzip.compress(FOLDERS, mtime=0), examples('images'), {}),
  'tar.xz': ('train.tar.xz', lzma.compress(FOLDERS), examples('images'), {}),
  'captions': (
    'train_captions.tsv',
    b'image\tcaption\na/1.png\tone\nb/2.gif\ttwo\nb/link.png\tthree\n',
    examples('captions'),
    {'train.tar': FOLDERS},
  ),
  'idx': (
    'train-images-idx3-ubyte',
    idx(PIXELS),
    examples('idx'),
    {'train-labels-idx1-ubyte': idx(np.arange(9))},
  ),
  'labels': (
    'train-labels-idx1-ubyte.gz',
    gzip.compress(idx(np.arange(9))),
    examples('idx'),
    {'train-images-idx3-ubyte': idx(PIXELS)},
  ),
  **{
    f'{kind}, {subtype}': ('sound', sound(kind, subtype), SOUND, {})
    for kind, subtype in [
      *(('WAV', 'PCM_16'), ('WAV', 'FLOAT'), ('WAV', 'MS_ADPCM'), ('FLAC', 'PCM_24')),
      *(('OGG', 'VORBIS'), ('MP3', 'MPEG_LAYER_III'), ('AIFF', 'PCM_16'), ('AU', 'PCM_16')),
    ]
  },
  'MP3 in an archive': ('sound', sound('MP3', 'MPEG_LAYER_III'), BYTES, {}),
  'WAV in an archive': ('sound', sound('WAV', 'PCM_16'), BYTES, {}),
  'recordings': (
    'train.tsv',
    b'a\tone\nb\ttwo\n',
    examples('recordings'),
    {'train/a.wav': b'', 'train/b.wav': b''},
  ),
  'npz': ('train.npz', arrays(np.savez, **FRAMES), examples('frames'), TABLE),
  'npz, packed': ('train.npz', arrays(np.savez_compressed, **FRAMES), examples('frames'), TABLE),
  'npy': (
    'frames.npy',
    arrays(FEATS),
    lambda path: SoundProcessor(max_length=9, bands=3, window=0.0).encode_example(str(path)),
    {},
  ),
  'tokenizer': (
    'tokenizer.json',
    train(['a few words'], vocab=300)._tokenizer.to_str().encode(),
    Tokenizer.load,
    {},
  ),
}


def damage(name, folder, count):
  """Give the reader of a kind so many damaged files."""
  row = READERS[name]
  file, content, read, others = row() if callable(row) else row
  for other, its_content in others.items():
    (folder / other).parent.mkdir(exist_ok=True, parents=True)
    (folder / other).write_bytes(its_content)
  path = folder / file
  path.parent.mkdir(exist_ok=True, parents=True)
  path.write_bytes(content)
  read(path)  # whole, it is read
  rng = np.random.default_rng([count, zlib.crc32(name.encode())])
  names = [str(folder)] if others else ()  # of files that belong together
  check_refusals(
    lambda: read(path), path, (mutate(content, rng) for _ in range(count)), names=names
  )


ALL = [  # preparing a data set of TFDS takes seconds
  pytest.param(name, marks=pytest.mark.slow) if name.startswith('tfds') else name
  for name in READERS
]


@pytest.mark.parametrize('name', ALL)
def test_a_damaged_file_is_read_or_named(name, tmp_path):
  damage(name, tmp_path, 6)


@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
def test_many_damaged_files_are_read_or_named(name, tmp_path, pytestconfig):
  """`pytest -m slow tests/data/test_damaged_files.py --damaged=400` tries some 20,000."""
  damage(name, tmp_path, pytestconfig.getoption('damaged'))
