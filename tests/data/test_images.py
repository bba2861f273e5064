"""Tests of data/images.py, image_files.py and shapes.py."""

import gzip
import io
import lzma
import re
import struct
import tarfile
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from transformer.data import corpora, images, shapes


def encoded(array, kind='png'):
  file = io.BytesIO()
  PIL.Image.fromarray(array).save(file, kind)
  return file.getvalue()


@pytest.fixture
def picture(rng):
  return rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)


# read


def test_path_bytes_and_array_are_the_same_image(picture, tmp_path):
  (tmp_path / 'a.png').write_bytes(encoded(picture))
  size = dict(height=12, width=20, channels=3)
  for image in (picture, encoded(picture), str(tmp_path / 'a.png')):
    np.testing.assert_array_equal(images.read(image, **size), picture)


def test_cropping_keeps_the_centre(picture):
  found = images.read(picture, height=12, width=12, channels=3)
  np.testing.assert_array_equal(found, picture[:, 4:16])
  large = np.repeat(np.repeat(picture, 4, axis=0), 4, axis=1)
  small = images.read(large, height=12, width=20, channels=3)
  assert abs(small.astype(int) - picture).mean() < 30 and small.shape == (12, 20, 3)


def test_channels(picture):
  grey = images.read(picture, height=12, width=20, channels=1)
  assert grey.shape == (12, 20, 1)
  np.testing.assert_allclose(grey[..., 0], picture @ [0.299, 0.587, 0.114], atol=1)
  for flat in (grey, grey[..., 0]):
    again = images.read(flat, height=12, width=20, channels=3)
    np.testing.assert_array_equal(again, np.repeat(grey, 3, axis=2))


def test_exif_orientation_is_applied(picture):
  exif, file = PIL.Image.Exif(), io.BytesIO()
  exif[0x0112] = 3  # upside down
  PIL.Image.fromarray(picture).save(file, 'png', exif=exif)
  found = images.read(file.getvalue(), height=12, width=20, channels=3)
  np.testing.assert_array_equal(found, picture[::-1, ::-1])


RAMP = np.linspace(0, 255, 32).round().astype(np.uint8)[None].repeat(32, 0)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK', 'LAB', 'I;16', 'I;16B', 'I', 'LA', 'RGBA'])
def test_every_mode_keeps_its_shades_of_grey(mode):
  file = io.BytesIO()
  if mode.startswith('I'):
    wide = (RAMP.astype('u2') * 257).astype({'I': '<i4', 'I;16': '<u2', 'I;16B': '>u2'}[mode])
    PIL.Image.fromarray(wide).save(file, 'tiff')
    assert PIL.Image.open(file).mode == mode
  else:
    PIL.Image.fromarray(RAMP).convert(mode).save(file, 'png' if mode.endswith('A') else 'tiff')
  for channels in (1, 3):
    found = images.read(file.getvalue(), 32, 32, channels).astype(int)
    assert abs(found - RAMP[..., None]).max() <= 2


@pytest.mark.parametrize('mode', ['F', 'I'])
def test_pictures_whose_range_of_values_is_unknown_are_refused(mode):
  file = io.BytesIO()
  PIL.Image.new(mode, (4, 4), 100_000 if mode == 'I' else 0).save(file, 'tiff')
  with pytest.raises(ValueError, match='an image of .* bytes cannot be read'):
    images.read(file.getvalue(), 4, 4, 3)


@pytest.mark.parametrize('mode, options', [('RGBA', {}), ('LA', {}), ('P', {'transparency': 0})])
def test_transparent_pixels_become_white(mode, options):
  file = io.BytesIO()
  PIL.Image.new(mode, (4, 4)).save(file, 'png', **options)
  for channels in (1, 3):
    assert images.read(file.getvalue(), 4, 4, channels).min() == 255


@pytest.mark.parametrize('dtype, white', [('u1', 255), ('<u2', 65_535), ('>u2', 65_535), ('?', 1)])
def test_arrays_are_scaled_by_their_type(dtype, white):
  array = np.full((4, 4, 3), white).astype(dtype)
  assert (
    images.read(array, 4, 4, 3).min() == 255
    and images.read(np.zeros_like(array), 4, 4, 3).max() == 0
  )


def test_a_picture_with_an_odd_exif_block_is_turned():
  """Orientation 6, and a length written as one BYTE: Pillow's own exif_transpose fails."""
  entries = struct.pack('<HHIIHHII', 0x0101, 1, 1, 5, 0x0112, 3, 1, 6)
  block = b'Exif\0\0II*\0' + struct.pack('<IH', 8, 2) + entries + struct.pack('<I', 0)
  file, picture = io.BytesIO(), np.uint8(np.add.outer(np.arange(12) * 3, np.arange(20) * 10))
  PIL.Image.fromarray(picture).save(file, 'jpeg', exif=block, quality=100)
  found = images.read(file.getvalue(), 20, 12, 1).astype(int)
  assert abs(found[..., 0] - np.rot90(picture, -1)).max() < 9
  PIL.Image.fromarray(picture).save(file, 'jpeg', exif=b'Exif\0\0broken')
  assert images.read(file.getvalue(), 12, 20, 3).shape == (12, 20, 3)


def test_a_huge_picture_is_refused(tmp_path):
  def chunk(kind, content):
    return (
      struct.pack('>I', len(content))
      + kind
      + content
      + struct.pack('>I', zlib.crc32(kind + content))
    )

  header = struct.pack('>IIBBBBB', 16_000, 12_000, 8, 0, 0, 0, 0)
  (tmp_path / 'scan.png').write_bytes(
    b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'')
  )
  with pytest.raises(ValueError, match='scan.png cannot be read.*exceeds limit'):
    images.read(str(tmp_path / 'scan.png'), 4, 4, 3)


def text_of_many_bytes():
  info, file = PIL.PngImagePlugin.PngInfo(), io.BytesIO()
  info.add_text('comment', ' ' * (1 << 22), zip=True)
  PIL.Image.new('L', (4, 4)).save(file, 'png', pnginfo=info)
  return file.getvalue()


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'<html>404 not found</html>',
    b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n',
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n',
    b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    text_of_many_bytes(),
  ],
  ids=['empty', 'page', 'pointer', 'eps', 'svg', 'text of many bytes'],
)
def test_what_is_no_image_names_its_file(content, tmp_path):
  (tmp_path / 'a.png').write_bytes(content)
  with pytest.raises(ValueError, match='a.png cannot be read as an image'):
    images.read(str(tmp_path / 'a.png'), 4, 4, 3)


@pytest.mark.parametrize(
  'image, error, message',
  [
    (b'no image', ValueError, '8 bytes cannot be read.*Pillow'),
    ('/no/where.jpg', ValueError, '/no/where.jpg'),
    (np.zeros((4, 4)), ValueError, r'float64 \[4, 4\]: scale'),
    *(
      (np.zeros(shape, dtype), ValueError, f'{dtype} {re.escape(str([*shape]))}')
      for dtype, shape in [
        ('uint8', (4, 4, 2)),
        ('uint8', (3, 4, 4)),
        ('uint8', (1, 4, 4, 3)),
        ('uint8', (0, 4, 3)),
        ('uint8', ()),
        ('int16', (4, 4, 3)),
        ('uint32', (4, 4)),
        ('float16', (4, 4)),
        ('complex64', (4, 4)),
      ]
    ),
    (encoded(np.zeros((64, 64, 3), np.uint8), 'bmp')[:-99], ValueError, 'whole file'),
  ],
)
def test_errors_of_images(image, error, message):
  with pytest.raises(error, match=message):
    images.read(image, height=4, width=4, channels=3)
  with pytest.raises(ValueError, match='channels=2'):
    images.read(image, height=4, width=4, channels=2)


# Files


def write_idx(file, array, opener=open):
  header = b'\0\0\x08' + bytes([array.ndim]) + np.array(array.shape, '>i4').tobytes()
  with opener(file, 'wb') as opened:
    opened.write(header + array.astype(np.uint8).tobytes())


def test_idx_is_read_and_sliced(rng, tmp_path):
  pixels, labels = rng.integers(0, 256, (10, 5, 6)), rng.integers(0, 10, 10)
  write_idx(tmp_path / 'train-images-idx3-ubyte.gz', pixels, gzip.open)
  write_idx(tmp_path / 'train-labels-idx1-ubyte.xz', labels, lzma.open)
  whole = corpora.load('idx', 'train', dir=tmp_path)
  np.testing.assert_array_equal([e['inputs'][..., 0] for e in whole], pixels)
  assert [e['targets'] for e in whole] == [str(label) for label in labels]
  assert [e['name'] for e in corpora.load('idx', 'train[80%:]', dir=tmp_path)] == [
    'train/8',
    'train/9',
  ]
  parts = [corpora.load('idx', f'train{part}', dir=tmp_path) for part in ('[:3]', '[3:7]', '[7:]')]
  assert [e['name'] for part in parts for e in part] == [e['name'] for e in whole]


def test_errors_of_idx_files(tmp_path):
  write_idx(tmp_path / 'train-images-idx3-ubyte', np.zeros((3, 2, 2)))
  with pytest.raises(FileNotFoundError, match='train-labels-idx1-ubyte'):
    corpora.load('idx', 'train', dir=tmp_path)
  write_idx(tmp_path / 'train-labels-idx1-ubyte', np.zeros(2))
  with pytest.raises(ValueError, match='3 images and 2 labels'):
    corpora.load('idx', 'train', dir=tmp_path)
  file = tmp_path / 'train-images-idx3-ubyte'
  for damaged in (file.read_bytes()[:-1], b'text', b''):
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match='train-images-idx3-ubyte: not a whole idx'):
      corpora.load('idx', 'train', dir=tmp_path)


def write_tree(folder, files):
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_tar(file, files, mode='w:xz'):
  with tarfile.open(file, mode) as opened:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      opened.addfile(info, io.BytesIO(content))


def test_a_folder_and_an_archive_hold_the_same_classes(rng, tmp_path):
  files = {
    f'{kind}/{i}.png': encoded(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    for kind in ('cat', 'dog')
    for i in range(30)
  }
  write_tree(tmp_path / 'folder' / 'train', {**files, 'cat/notes.txt': b'no image'})
  for end, mode in (('tar', 'w'), ('tar.gz', 'w:gz'), ('tar.xz', 'w:xz')):
    folder = tmp_path / end
    folder.mkdir()
    write_tar(folder / f'train.{end}', {'./notes.txt': b'', **files}, mode)
    source = corpora.load('images', 'train', dir=folder)
    assert {e['name']: (e['inputs'], e['targets']) for e in source} == {
      name: (content, name[:3]) for name, content in files.items()
    }
  plain = corpora.load('images', 'train', dir=tmp_path / 'folder')
  assert [e['name'] for e in plain] == [e['name'] for e in source]
  for a, b in zip(plain, source, strict=True):
    assert isinstance(a['inputs'], str) and open(a['inputs'], 'rb').read() == b['inputs']
  # any slice has both classes, although files stand by class
  last = corpora.load('images', 'train[70%:]', dir=tmp_path / 'folder')
  assert {e['targets'] for e in last} == {'cat', 'dog'} and len(last) == 18


def test_one_example_for_each_caption(rng, tmp_path):
  files = {
    f'{i}.jpg': encoded(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8), 'jpeg') for i in range(4)
  }
  write_tar(tmp_path / 'val.tar', files, 'w')
  lines = [f'{i}.jpg\t{j}\tcaption {i} {j}' for j in range(3) for i in range(4)]
  table = tmp_path / 'val_captions.tsv'
  table.write_text('\n'.join(['image\tcaption_no\tcaption', *lines]))
  source = corpora.load('captions', 'val', dir=tmp_path)
  assert len(source) == 12
  for i, example in enumerate(source):
    name = example['name']
    assert example['inputs'] is source[i - i % 3]['inputs'] and example['inputs'] == files[name]
    assert example['references'] == tuple(f'caption {name[0]} {j}' for j in range(3))
    assert example['targets'] == example['references'][i % 3]
  part = corpora.load('captions', 'val[:50%]', dir=tmp_path)  # of the images
  assert [e['targets'] for e in part] == [e['targets'] for e in source[:6]]
  table.write_text('\n'.join(['image\tcaption_no\tcaption', *lines, '9.jpg\t0\ta dog']))
  with pytest.raises(ValueError, match='val_captions.tsv: there is no image 9.jpg in val'):
    corpora.load('captions', 'val', dir=tmp_path)
  table.write_text('image\tcaption_no\tcaption\n0.jpg\t0\ta cat')
  with pytest.raises(ValueError, match='val_captions.tsv: .*jpg has no caption'):
    corpora.load('captions', 'val', dir=tmp_path)


def test_errors_of_image_files(tmp_path):
  for name in ('images', 'captions', 'idx'):
    with pytest.raises(FileNotFoundError, match='train'):
      corpora.load(name, 'train', dir=tmp_path)
  write_tree(tmp_path / 'train', {'a.png': b'', 'b/readme.txt': b''})
  with pytest.raises(ValueError, match='a.png of train is in no folder'):
    corpora.load('images', 'train', dir=tmp_path)
  write_tree(tmp_path / 'test', {'a/readme.txt': b''})
  with pytest.raises(ValueError, match='test has no file that ends in .jpg'):
    corpora.load('images', 'test', dir=tmp_path)
  (tmp_path / 'val.tar.xz').write_bytes(b'broken')
  with pytest.raises(ValueError, match=r'val.tar.xz: broken archive'):
    corpora.load('images', 'val', dir=tmp_path)
  for split in ('train[90%', 'train[5]', 'train[a:]', ''):
    with pytest.raises(ValueError, match='write train'):
      corpora.load('images', split, dir=tmp_path)


# Shapes


def test_shapes_are_a_function_of_split_and_index():
  splits = {split: corpora.load('shapes', split, targets='label') for split in ('train', 'val')}
  train, val = ([e['inputs'] for e in (s[i] for i in range(50))] for s in splits.values())
  assert not any(np.array_equal(a, b) for a in train for b in val)
  np.testing.assert_array_equal(train[7], splits['train'][np.int64(7)]['inputs'])
  assert {splits['train'][i]['targets'] for i in range(50)} == set(shapes.SHAPES)
  assert len(list(splits['val'])) == len(splits['val'])
  with pytest.raises(ValueError, match="'dev'.*train, val, test"):
    corpora.load('shapes', 'dev', targets='label')
  with pytest.raises(ValueError, match="no 'inputs': take label or caption"):
    corpora.load('shapes', 'val', targets='inputs')


def test_captions_of_shapes_are_right():
  labels = corpora.load('shapes', 'val', targets='label')
  for i, example in enumerate(corpora.load('shapes', 'val', targets='caption', limit=40)):
    article, size, color, shape = example['targets'].split()
    assert article == 'a' and labels[i]['targets'] == shape
    bright = example['inputs'].max(axis=-1) > 120
    assert (bright.sum() > 130) == (size == 'big') or 70 < bright.sum() < 190
    seen = example['inputs'][bright].mean(axis=0)
    if color != 'grey':
      assert seen.argmax() == ('red', 'green', 'blue').index(color)


# The real ones


@pytest.mark.parametrize(
  'name, data, split, size',
  [('idx', 'mnist', 't10k_even', 5000), ('captions', 'flickr8k_1000', 'val', 565)],
)
def test_image_files_of_the_data_sets(real_data, name, data, split, size):
  source = corpora.load(name, split, dir=real_data(data))
  assert len(source) == size
  found = images.read(source[size // 2]['inputs'], height=28, width=28, channels=1)
  assert found.std() > 10


def test_classes_in_the_folder_itself_are_divided_by_the_names_of_their_files(rng, tmp_path):
  files = {f'{kind}/{i}.png': b'a' for kind in ('pâte, rouge', 'riz') for i in range(60)}
  write_tree(tmp_path, files)
  parts = {s: corpora.load('images', s, dir=tmp_path) for s in ('train', 'val', 'test')}
  assert sorted(e['name'] for part in parts.values() for e in part) == sorted(files)
  assert {e['targets'] for e in parts['val']} <= {'pâte, rouge', 'riz'} and len(parts['train']) > 90
  with pytest.raises(FileNotFoundError, match='dev'):
    corpora.load('images', 'dev', dir=tmp_path)
  write_tree(tmp_path, {'val/riz/0.png': b'a'})
  with pytest.raises(FileNotFoundError, match='train'):
    corpora.load('images', 'train', dir=tmp_path)
