"""Tests of data/reading.py and data/files.py: errors name the file; archives and folders."""

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import unicodedata
import zipfile

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from transformer.data import audio, corpora, images, reading
from transformer.data.files import files_of_split, find_file
from transformer.data.processors import SoundProcessor
from transformer.data.reading import FileError, naming, read_arrays, read_json, read_lines
from transformer.data.tokenizers import Tokenizer, train


class PanicException(BaseException):
  """As libraries written in Rust raise it."""


@pytest.mark.parametrize(
  'error',
  [
    *(struct.error('odd'), KeyError('feats'), AttributeError('NoneType'), RecursionError()),
    *(zipfile.BadZipFile('odd'), tarfile.ReadError('odd'), lzma.LZMAError('odd'), MemoryError()),
    *(PanicException('alphabet'), OSError('truncated'), UnicodeDecodeError('utf-8', b'', 0, 1, '')),
  ],
)
def test_any_error_of_a_parser_names_the_file_once(error):
  with pytest.raises(FileError, match='^a.npz, feats: .*; copy it again$') as raised:
    with naming('other'), naming('a.npz, feats'):
      raise error
  assert raised.value.__cause__ is error and 'other' not in str(raised.value)


@pytest.mark.parametrize('error', [KeyboardInterrupt(), ModuleNotFoundError(), SystemExit()])
def test_what_is_no_fault_of_a_file_passes(error):
  with pytest.raises(type(error)) as raised, naming('a.npz'):
    raise error
  assert raised.value is error
  with pytest.raises(FileNotFoundError, match='nowhere'), naming('a.npz'):
    open('nowhere')


@pytest.mark.parametrize(
  'row, message',
  [
    ([], "the key.* 'a', but list"),
    ({'b': 1}, "'a', but keys b"),
    ({'a': 3}, 'a is 3: give str'),
    ({'a': '\ud800'}, 'whole characters'),
  ],
)
def test_values_are_checked_before_use(row, message):
  with pytest.raises(ValueError, match=message):
    reading.check_field(row, 'a')
  with pytest.raises(ValueError, match='is True'):
    reading.check_field({'a': True}, 'a', int)


def test_what_is_given_is_a_path_a_content_or_an_array(tmp_path):
  given = [str(tmp_path), tmp_path, b'a', bytearray(b'a'), memoryview(b'a'), [0.5], jnp.zeros(2)]
  found = [reading.as_file_or_array(value) for value in given]
  assert found[:5] == [str(tmp_path)] * 2 + [b'a'] * 3
  assert [(x.dtype, x.shape) for x in found[5:]] == [(np.float64, (1,)), (np.float32, (2,))]
  for value in (None, PIL.Image.new('P', (2, 2)), io.BytesIO(b'a')):
    with pytest.raises(ValueError, match='is no path, content of a file or array'):
      reading.as_file_or_array(value)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_a_byte_order_mark_says_the_encoding(encoding, tmp_path):
  (tmp_path / 'a.txt').write_bytes('Öl\r\nzwei\u2028\n\nend'.encode(encoding))
  assert [*read_lines(tmp_path / 'a.txt')] == [(1, 'Öl'), (2, 'zwei\u2028'), (3, ''), (4, 'end')]
  big = '\ufeffÖl\n'.encode('utf-16-be')
  (tmp_path / 'b.txt.gz').write_bytes(gzip.compress(big))
  assert [*read_lines(tmp_path / 'b.txt.gz')] == [(1, 'Öl')]


def test_wide_characters_without_a_mark_are_named(tmp_path):
  (tmp_path / 'a.txt').write_bytes('plain words\n'.encode('utf-16-le'))
  with pytest.raises(FileError, match='a.txt: .*utf-16le'):
    [*read_lines(tmp_path / 'a.txt')]


def test_nothing_unpacks_without_bound(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, 'MAX_UNPACKED', 1 << 16)
  bomb = bytes(1 << 20)
  (tmp_path / 'a.json.gz').write_bytes(gzip.compress(bomb))
  (tmp_path / 'a.tar.xz').write_bytes(lzma.compress(bomb))
  np.savez_compressed(tmp_path / 'a.npz', feats=np.zeros(1 << 18))
  for read in (
    lambda: read_json(tmp_path / 'a.json.gz'),
    lambda: files_of_split(tmp_path, 'a', ('.png',)),
    lambda: read_arrays(tmp_path / 'a.npz', 'feats'),
  ):
    with pytest.raises(FileError, match='a[.].*unpacks to more than'):
      read()
  monkeypatch.setattr(reading, 'MAX_LINE', 100)
  (tmp_path / 'a.txt').write_text(f'short\n{"long" * 100}\n')
  with pytest.raises(FileError, match='a.txt:2: the line has more than 100 bytes'):
    [*read_lines(tmp_path / 'a.txt')]


def test_a_small_archive_with_a_sparse_file_is_refused(tmp_path):
  info = tarfile.TarInfo('cat/1.png')
  info.size, info.pax_headers = 1, {'GNU.sparse.map': '0,1', 'GNU.sparse.size': str(8 << 30)}
  with tarfile.open(tmp_path / 'a.tar', 'w', format=tarfile.PAX_FORMAT) as archive:
    archive.addfile(info, io.BytesIO(b'x'))
  with pytest.raises(FileError, match='a.tar: .*unpacks to more than 268,435,456 bytes'):
    files_of_split(tmp_path, 'a', ('.png',))


def test_a_long_line_that_is_packed_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, 'MAX_LINE', 1 << 16)
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(b'a' * (1 << 20)))
  with pytest.raises(FileError, match='a.txt.gz:1: the line has more than 65,536 bytes'):
    [*read_lines(tmp_path / 'a.txt.gz')]


def test_arrays_that_say_they_are_larger_than_their_file_are_refused(tmp_path):
  content = io.BytesIO()
  np.save(content, np.zeros(9))
  lie = content.getvalue().replace(b'(9,), }' + b' ' * 12, b'(549755813888,), }'.ljust(19))
  assert len(lie) == len(content.getvalue())
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr('feats.npy', lie)
  with pytest.raises(FileError, match=r'a.npz: .*float64 \[549755813888\], and has 200 bytes'):
    read_arrays(tmp_path / 'a.npz', 'feats')
  (tmp_path / 'a.npy').write_bytes(lie)
  sounds = SoundProcessor(max_length=9, window=0.0, bands=1)
  for sound in (lie, str(tmp_path / 'a.npy')):
    with pytest.raises(FileError, match='is no .npy file.*and has 200 bytes'):
      sounds.encode_example(sound)


def test_a_sound_that_says_it_is_endless_is_refused():
  soundfile, file = pytest.importorskip('soundfile'), io.BytesIO()
  soundfile.write(file, np.zeros(1000), 16_000, format='FLAC')
  content = bytearray(file.getvalue())
  content[21] |= 15
  content[22:26] = b'\xff' * 4  # 36 bits: the number of samples
  with pytest.raises(FileError, match='68,719,476,735 samples at 16000 Hz, too many'):
    audio.read(bytes(content), 16_000)


def test_an_image_of_too_many_pixels_is_refused():
  file = io.BytesIO()
  PIL.Image.new('1', (9000, 9000)).save(file, 'PNG')
  with pytest.raises(FileError, match='9000 x 9000 pixels are more than 67,108,864'):
    images.read(file.getvalue(), 8, 8, 3)


@pytest.mark.parametrize(
  'pattern, refused',
  [
    (r'(a+)+$', True),
    (r'(?:\s*\w?)*x', True),
    (r'((a|b{2,})c?)+', True),
    (r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", False),  # GPT-2
    (
      r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s]+[\r\n]*|\s*[\r\n]+",
      False,
    ),  # Llama 3
    (r' ?[^(\s|[.,!?])]+', False),  # Bloom
    (r'(?:\r?\n)+|[(+]+\(a+\)+', False),
  ],
)
def test_patterns_that_may_never_end_are_refused(pattern, refused, tmp_path):
  file = json.loads(train([], kind='bytes', vocab=260)._tokenizer.to_str())
  split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
  file['pre_tokenizer']['pretokenizers'].insert(0, split)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(file))
  if refused:
    with pytest.raises(FileError, match='tokenizer.json.*has nested repetitions'):
      Tokenizer.load(tmp_path / 'tokenizer.json')
  else:
    assert Tokenizer.load(tmp_path / 'tokenizer.json').size == 260


def test_ids_far_beyond_the_tokens_are_refused(tmp_path):
  file = json.loads(train([], kind='bytes', vocab=260)._tokenizer.to_str())
  file['model']['vocab']['zzz'] = 4_000_000_000
  (tmp_path / 'tokenizer.json').write_text(json.dumps(file))
  with pytest.raises(FileError, match='tokenizer.json: .*261 tokens, with ids up to 4000000000'):
    Tokenizer.load(tmp_path / 'tokenizer.json')


@pytest.mark.parametrize('module', [gzip, lzma, bz2])
def test_a_file_of_several_streams_is_read_whole(module, tmp_path):
  file = tmp_path / f'a.txt{dict(gzip=".gz", lzma=".xz", bz2=".bz2")[module.__name__]}'
  file.write_bytes(module.compress(b'one\n') + module.compress(b'two\n'))
  assert [*read_lines(file)] == [(1, 'one'), (2, 'two')]
  assert corpora.load('text', 'a', dir=tmp_path)[0]['targets'] == 'one\ntwo\n'
  file.write_bytes(file.read_bytes()[:-3])
  with pytest.raises(FileError, match=r'a.txt.*:\d: broken'):
    [*read_lines(file)]


def test_an_encrypted_archive_is_named(tmp_path):
  np.savez(tmp_path / 'a.npz', feats=np.zeros(3))
  content = bytearray((tmp_path / 'a.npz').read_bytes())
  for mark, flags in ((b'PK\3\4', 6), (b'PK\1\2', 8)):  # a member's header, and the directory's
    content[content.index(mark) + flags] |= 1
  (tmp_path / 'a.npz').write_bytes(content)
  with pytest.raises(FileError, match='a.npz: .*encrypted'):
    read_arrays(tmp_path / 'a.npz', 'feats')


def test_arrays_of_one_name_or_of_objects_are_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', feats=np.zeros(3), objects=np.array([{}, None]))
  assert len(read_arrays(tmp_path / 'a.npz', 'feats')[0]) == 3
  for name in ('lengths', 'objects'):
    with pytest.raises(FileError, match='a.npz: '):
      read_arrays(tmp_path / 'a.npz', name)
  with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(tmp_path / 'a.npz', 'a') as z:
    z.writestr('feats.npy', b'')
  with pytest.raises(FileError, match='one name'):
    read_arrays(tmp_path / 'a.npz', 'feats')
  (tmp_path / 'deep.json').write_text('[' * 100_000)
  with pytest.raises(FileError, match='deep.json: RecursionError'):
    read_json(tmp_path / 'deep.json')


# Folders and archives


def member(name, content=b'', **fields):
  info = tarfile.TarInfo(name)
  info.size = len(content)
  for key, value in fields.items():
    setattr(info, key, value)
  return info, io.BytesIO(content)


def pack(path, *members, end=b''):
  with tarfile.open(path, 'w') as opened:
    for info, content in members:
      opened.addfile(info, content)
  path.write_bytes(path.read_bytes() + end)
  return lambda: files_of_split(path.parent, path.stem, ('.png',))


def test_a_folder_with_links_is_what_its_archive_is(tmp_path):
  folder = tmp_path / 'train'
  (folder / 'dot' / '.ipynb_checkpoints').mkdir(parents=True)
  (tmp_path / 'store').mkdir()
  (tmp_path / 'store' / 'c.png').write_bytes(b'c')
  for name in ('a.png', '._a.png', '.ipynb_checkpoints/a-checkpoint.png', '.DS_Store'):
    (folder / 'dot' / name).write_bytes(b'a')
  os.link(folder / 'dot' / 'a.png', folder / 'dot' / 'hard.png')
  (folder / 'dot' / 'soft.png').symlink_to('a.png')
  (folder / 'bar').symlink_to('dot')
  with tarfile.open(tmp_path / 'test.tar.gz', 'w:gz') as opened:
    opened.add(folder, '.')
  (folder / 'box').symlink_to(tmp_path / 'store')
  plain = files_of_split(tmp_path, 'train', ('.png',))
  packed = files_of_split(tmp_path, 'test', ('.png',))
  names = {f'{kind}/{name}.png' for kind in ('dot', 'bar') for name in ('a', 'hard', 'soft')}
  assert plain.keys() == names | {'box/c.png'}
  assert packed == dict.fromkeys(names, b'a')
  (folder / 'dot' / 'loop').symlink_to(folder)
  with pytest.raises(FileError, match='loop'):
    files_of_split(tmp_path, 'train', ('.png',))


@pytest.mark.parametrize(
  'members, message',
  [
    ([member('../a.png')], '../a.png is outside'),
    ([member('/etc/a.png')], '/etc/a.png is outside'),
    ([member('b/a.png', type=tarfile.FIFOTYPE)], 'b/a.png is a device or pipe'),
    ([member('a.png', type=tarfile.SYMTYPE, linkname='b.png')], 'a.png links to b.png'),
    ([member('c/a.png', type=tarfile.LNKTYPE, linkname='b.png')], 'c/a.png links to b.png'),
    ([member(n, type=tarfile.SYMTYPE, linkname=t) for n, t in ('ab', 'bc')], 'a links to b'),
    ([member('b/../../a.png')], '../a.png is outside'),
    ([member('a.png', type=tarfile.SYMTYPE, linkname='/etc/passwd')], 'links to /etc/passwd'),
    ([member('a.png', type=tarfile.SYMTYPE, linkname='../../b.png')], r'links to ../../b.png'),
    ([member('b/a', type=tarfile.SYMTYPE, linkname='..')], 'b/a is a link to a folder that has it'),
    (
      [
        *(member(f'{folder}/a.png', b'a') for folder in 'bc'),
        member('b/x', type=tarfile.SYMTYPE, linkname='../c'),
        member('c/x', type=tarfile.SYMTYPE, linkname='../b'),
      ],
      'is a link to a folder that has it',
    ),
    ([member('a.png', b'a', type=b'Z')], 'a.png is a device or pipe'),
    ([member('b/a.tif', b'a')], r'but 1 \.tif'),
    ([member('d/a.png', b'a'), member('b/a.xyz', b'a')], 'all files beside b/a.xyz are left out'),
  ],
)
def test_a_member_that_is_no_file_is_named(members, message, tmp_path):
  with pytest.raises(FileError, match=f'val.tar.*{message}'):
    pack(tmp_path / 'val.tar', *members)()


def test_a_later_member_replaces_an_earlier_one_and_joined_archives_are_refused(tmp_path):
  assert pack(tmp_path / 'val.tar', member('a.png', b'1'), member('a.png', b'2'))() == {
    'a.png': b'2'
  }
  whole = (tmp_path / 'val.tar').read_bytes()
  with pytest.raises(FileError, match='joined.tar: its end is in the middle'):
    pack(tmp_path / 'joined.tar', member('a.png', b'1'), end=whole)()
  (tmp_path / 'cut.tar').write_bytes(whole[:1100])
  with pytest.raises(FileError, match='cut.tar'):
    files_of_split(tmp_path, 'cut', ('.png',))


@pytest.mark.parametrize(
  'links, names',
  [
    (('b.png', 'a.png', 'c.png', 'b.png'), 'b.png c.png'),  # to a link
    (('c.png', 'b.png', 'b.png', 'a.png'), 'b.png c.png'),  # that comes later
    (('k', 'f', 'm', 'k'), 'k/e.png m/e.png'),  # to a folder by another link
    (('k', 'f', 'b.png', 'k/e.png'), 'b.png k/e.png'),  # to a file within one
    (('b.png', '.git/annex/a.png'), 'b.png'),  # to a hidden file
    (('.b.png', 'nowhere.png'), ''),  # hidden itself
  ],
)
def test_links_lead_where_they_do_in_a_folder(links, names, tmp_path):
  members = [member(name, b'a') for name in ('a.png', 'f/e.png', '.git/annex/a.png')]
  members += [
    member(name, type=tarfile.SYMTYPE, linkname=target)
    for name, target in zip(links[::2], links[1::2], strict=True)
  ]
  found = pack(tmp_path / 'train.tar', *members)()
  with tarfile.open(tmp_path / 'train.tar') as opened:
    opened.extractall(tmp_path / 'val', filter='fully_trusted')
  assert found.keys() == {'a.png', 'f/e.png', *names.split()}
  if '.b.png' not in links:
    assert files_of_split(tmp_path, 'val', ('.png',)).keys() == found.keys()


def test_a_later_member_replaces_a_link(tmp_path):
  link = member('b.png', type=tarfile.SYMTYPE, linkname='a.png')
  found = pack(tmp_path / 'val.tar', member('a.png', b'1'), link, member('b.png', b'2'))()
  assert found == {'a.png': b'1', 'b.png': b'2'}


def test_members_whose_names_look_alike_are_refused(tmp_path):
  names = [unicodedata.normalize(form, 'é.png') for form in ('NFC', 'NFD')]
  with pytest.raises(FileError, match='val.tar: two files are called é.png'):
    pack(tmp_path / 'val.tar', *(member(name, b'a') for name in names))()


def test_what_is_left_out_is_counted(tmp_path, caplog):
  for name in ('a.png', 'b.heic', 'c.heic', 'notes.txt', 'README'):
    (tmp_path / 'train').mkdir(exist_ok=True)
    (tmp_path / 'train' / name).write_bytes(b'')
  assert [*files_of_split(tmp_path, 'train', ('.png',))] == ['a.png']
  assert '4 files are left out: 2 .heic, 1 without ending, 1 .txt' in caplog.text
  caplog.clear()
  for name in ('a.png', 'table.tsv', 'README.md'):
    (tmp_path / 'val').mkdir(exist_ok=True)
    (tmp_path / 'val' / name).write_bytes(b'')
  assert [*files_of_split(tmp_path, 'val', ('.png',))] == ['a.png'] and not caplog.text


@pytest.mark.parametrize('hidden', ['', '.DS_Store', '._a.png'])
def test_a_class_without_files_does_not_vanish(hidden, tmp_path):
  for folder, name in (('bar', 'a.png'), ('dot', hidden)):
    (tmp_path / 'train' / folder).mkdir(parents=True)
    if name:
      (tmp_path / 'train' / folder / name).write_bytes(b'')
  with pytest.raises(FileError, match='train/dot is an empty folder'):
    files_of_split(tmp_path, 'train', ('.png',))


def test_names_are_text_in_one_form(tmp_path):
  for name in (b'caf\xe9', unicodedata.normalize('NFD', 'pâte').encode(), b'two  spaces'):
    folder = os.path.join(os.fsencode(tmp_path), b'train', name)
    os.makedirs(folder)
    with open(os.path.join(folder, b'a.png'), 'wb') as file:
      file.write(b'a')
  with tarfile.open(tmp_path / 'val.tar', 'w') as opened:
    opened.add(tmp_path / 'train', '.')
  for split in ('train', 'val'):
    source = corpora.load('images', split, dir=tmp_path)
    assert {e['targets'] for e in source} == {'caf\ufffd', 'pâte', 'two  spaces'}
  for example in corpora.load('images', 'train', dir=tmp_path):
    assert open(example['inputs'], 'rb').read() == b'a'
    json.dumps(example['name']).encode()


def test_a_name_that_is_almost_right_is_named(tmp_path):
  for name in ('photos/train.tar', 'reviews.tsv'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  for folder, names, message in (
    ('photo', ['val.tar'], 'photo: not even the folder is there.*: photos .did you mean this'),
    ('', ['review.tsv'], 'no .*/review.tsv.*There now: reviews.tsv .did you mean this'),
    ('reviews.tsv', ['val.tar'], 'reviews.tsv: a file, not a folder'),
    ('photos', ['test.tsv'], 'There now: train.tar.$'),
    ('no/such/place', ['a'], 'there are: nothing'),
  ):
    with pytest.raises(FileNotFoundError, match=message):
      find_file(tmp_path / folder, names)
