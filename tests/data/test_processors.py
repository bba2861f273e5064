"""Tests of data/processors.py: tasks on images and frames, padded or not."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit
from parameters import drawn
from PIL import Image

from transformer.data import tokenizers
from transformer.data.pipeline import Batches, bucket, unpacked
from transformer.data.processors import ImageProcessor, SoundProcessor, TextProcessor, patches
from transformer.evaluation.evaluate import eval_step
from transformer.inference.attention_maps import attend
from transformer.inference.batching import pad_rows, split_padding
from transformer.inference.decoding import Batching, Decoding
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification
from transformer.tasks.seq2seq import Seq2Seq

SMALL = dict(width=16, depth=2, heads=2, feedforward=32, max_length=32, dropout=0.0, tie='output')
SMALL |= dict(unroll=1)


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(['abcdefgh '], kind='characters', vocab=40)


def halves(count):
  """Pictures whose left or right half is bright."""
  random = np.random.default_rng(0)
  examples = []
  for i in range(count):
    pixels = random.integers(0, 90, (6, 9, 1), np.uint8)
    side = slice(None, 5) if i % 2 else slice(5, None)
    pixels[:, side] += 120
    examples.append({'inputs': pixels, 'targets': 'left' if i % 2 else 'right'})
  return examples


@pytest.fixture(scope='module')
def pictures():
  return halves(11)


@pytest.fixture(scope='module')
def labels(tokenizer):
  return Classification(
    tokenizer=tokenizer,
    decoding=Batching(batch_size=4),
    max_length=1,
    input_processor=ImageProcessor(height=6, width=9, channels=1, patch=3),
    classes=('left', 'right'),
    label_smoothing=0.0,
  )


@pytest.fixture(scope='module')
def sounds(tokenizer):
  return Seq2Seq(
    tokenizer=tokenizer,
    decoding=Decoding(max_new_tokens=6, batch_size=4),
    max_length=20,
    input_processor=SoundProcessor(bands=5, max_length=20),
  )


def frames(*lengths):
  random = np.random.default_rng(1)
  return [random.standard_normal((n, 5)).astype(np.float32) for n in lengths]


def measured(task, model, batch):
  return eval_step(task, model, jax.tree.map(jnp.asarray, batch))


def test_patches_are_squares_row_by_row():
  image = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
  found = np.asarray(patches(jnp.asarray(image), 2))
  expected = [image[:, i : i + 2, j : j + 2].reshape(2, -1) for i in (0, 2, 4) for j in (0, 2)]
  np.testing.assert_array_equal(found, np.stack(expected, axis=1))


@pytest.mark.slow
def test_classes_of_images_are_learnt(labels, seed, bounded):
  pictures = halves(24)
  config = ModelConfig(vocab=40, modality='patches', features=9, position='learned', **SMALL)
  model = jax.jit(lambda key: labels.init(config, key))(jax.random.key(seed))
  batch = Batches(labels.columns(pictures), unpacked(24), tokens=24, seed=None)[0]
  batch = jax.tree.map(jnp.asarray, batch)
  model, losses = fit(labels, model, batch, steps=30, learning_rate=1e-2, seed=seed)
  bounded('loss, of its start', losses[-1] / losses[0], below=0.2)
  lines = [example['inputs'] for example in pictures]
  right = np.array(predict(labels, model, lines)) == [example['targets'] for example in pictures]
  bounded('accuracy', right.mean(), above=0.85)
  weights, rows, columns = attend(labels, model, lines[0])
  assert weights.shape == (2, 2, 7, 7) and rows == columns and rows[:3] == ['all', '0,0', '0,1']


def test_padding_rows_have_no_weight(labels, pictures):
  batches = Batches(labels.columns(pictures), unpacked(11), tokens=8, seed=None)
  assert batches[1]['label_segments'].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
  config = ModelConfig(vocab=40, modality='patches', features=9, position='learned', **SMALL)
  model = drawn(lambda: labels.init(config, jax.random.key(0)))
  total = sum(float(measured(labels, model, batches[i])['nll'].weight) for i in range(2))
  assert total == 11


def test_files_and_arrays_of_any_size_are_accepted(tmp_path):
  reader = ImageProcessor(height=8, width=8, channels=3, patch=4)
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  content = (tmp_path / 'a.png').read_bytes()
  for line in (str(tmp_path / 'a.png'), content, pixels):
    np.testing.assert_array_equal(reader.encode_example(line), pixels)
  wide = np.concatenate([np.zeros_like(pixels), pixels, np.zeros_like(pixels)], axis=1)
  np.testing.assert_array_equal(reader.encode_example(wide), pixels)  # its middle
  grey = io.BytesIO()
  Image.fromarray(pixels[..., 0]).save(grey, 'png')
  assert reader.encode_example(grey.getvalue()).shape == (8, 8, 3)
  with pytest.raises(ValueError, match='cannot be read as an image'):
    reader.encode_example(b'nothing of the kind')
  with pytest.raises(ValueError, match='nowhere.png'):
    reader.encode_example('nowhere.png')


def test_images_are_augmented_only_with_a_key(pictures):
  varied = dict(shift=1, flip=True, turn=10.0, zoom=0.1, erase=3, recolor=0.3)
  size = dict(height=6, width=9, channels=1, patch=3)
  plain, reader = ImageProcessor(**size), ImageProcessor(**size, **varied)
  rows = jnp.asarray(reader.encode_column([example['inputs'] for example in pictures]))
  segments = jnp.ones(len(rows), int)
  x, of_x = plain.prepare_batch(rows, segments, None)
  np.testing.assert_array_equal(x, patches(rows / 127.5 - 1, 3))
  np.testing.assert_array_equal(x, reader.prepare_batch(rows, segments, None)[0])
  np.testing.assert_array_equal(x, plain.prepare_batch(rows, segments, jax.random.key(0))[0])
  for name, value in varied.items():
    one = ImageProcessor(**size, **{name: value})
    prepare = jax.jit(one.prepare_batch)
    found, again = (prepare(rows, segments, jax.random.key(2))[0] for _ in range(2))
    assert found.shape == x.shape and not np.array_equal(found, x), name
    np.testing.assert_array_equal(found, again)
  assert of_x.shape == (11, 6) and of_x.all()


def test_stem_reduces_the_number_of_labels():
  reader = ImageProcessor(height=8, width=8, channels=3, patch=1, stem=2)
  assert reader.labels(np.zeros((8, 8, 3), np.uint8)) == ['all', '0,0', '0,1', '1,0', '1,1']
  assert reader.positions == 5
  assert ImageProcessor(height=7, width=7, channels=3, patch=1, stem=2).positions == 5
  with pytest.raises(ValueError, match='processor.height=8 .* processor.width=6.*model.stem=0'):
    ImageProcessor(height=8, width=6, channels=3, patch=1, stem=2)


def test_image_with_many_captions_is_decoded_once(monkeypatch, pictures):
  from transformer.data import images

  read, seen = images.read, []
  monkeypatch.setattr(
    images, 'read', lambda *given, **more: seen.append(given[0]) or read(*given, **more)
  )
  first, second = (example['inputs'] for example in pictures[:2])
  field = ImageProcessor(height=6, width=9, channels=1, patch=3).encode_column(
    [first, first, second, second]
  )
  assert not seen  # before they are needed
  pixels = np.asarray(field)
  assert len(seen) == 2
  np.testing.assert_array_equal(pixels, [first, first, second, second])


def test_answer_does_not_depend_on_longer_sounds_in_the_batch(sounds, tokenizer):
  config = ModelConfig(vocab=tokenizer.size, modality='frames', features=5, **SMALL)
  model = drawn(lambda: sounds.init(config, jax.random.key(1)))
  lines = frames(3, 20, 7, 12, 9)
  together = sounds.best(model, lines)
  for line, found in zip(lines, together, strict=True):
    np.testing.assert_array_equal(sounds.best(model, [line])[0], found)
  weights, outputs, inputs = attend(sounds, model, lines[2])
  assert weights.shape == (2, 2, len(outputs), 4) and len(inputs) == 4


def test_padding_of_frames_does_not_change_the_loss(sounds, tokenizer):
  config = ModelConfig(vocab=tokenizer.size, modality='frames', features=5, **SMALL)
  model = drawn(lambda: sounds.init(config, jax.random.key(1)))
  texts = 'a b', 'c', 'hg'
  source = [{'inputs': f, 'targets': t} for f, t in zip(frames(3, 20, 8), texts, strict=True)]
  found = []
  for buckets in (1, 3):
    fields = sounds.columns(source)
    lengths = np.stack([field.lengths for field in fields.values()], axis=1)
    batches = Batches(fields, bucket(lengths, buckets=buckets), tokens=64, seed=None)
    parts = [measured(sounds, model, batches[i])['nll_per_token'] for i in range(len(batches))]
    found.append(sum(float(p.sum) for p in parts) / sum(float(p.weight) for p in parts))
  assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_split_padding_inverts_pad_rows():
  rows, segments = split_padding(jnp.asarray(pad_rows(frames(2, 3), 4)))
  assert segments.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]] and not jnp.isnan(rows).any()
  rows, segments = split_padding(jnp.asarray(pad_rows([[5, 0], [7]], 3)))
  assert rows.tolist() == [[5, 0, 0], [7, 0, 0]] and segments.tolist() == [[1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
  'reader, line, words',
  [
    (SoundProcessor(bands=5, max_length=4), np.zeros((9, 5)), 'has 9 frames, more than the 4'),
    (SoundProcessor(bands=5, max_length=4), np.zeros((3, 6)), 'processor.bands=5 to that'),
  ],
)
def test_invalid_inputs_are_refused(reader, line, words):
  with pytest.raises(ValueError, match=words):
    reader.encode_example(line)


def test_texts_are_truncated_on_request(tokenizer):
  for start in (False, True):
    reader = TextProcessor(tokenizer, 5, start=start, truncate=True)
    assert [len(reader.encode_example(line, truncate=True)) for line in ('a', 'abcdefgh')] == [
      2 + start,
      5,
    ]
    assert reader.encode_example('abcdefgh', truncate=True)[-1] == tokenizer.eos
    assert reader.encode_column(['a', 'abcdefgh']).lengths.tolist() == [2 + start, 5]
    with pytest.raises(ValueError, match='9 tokens|10 tokens'):
      reader.encode_example('abcdefgh')


def test_patch_size_must_divide_the_image():
  with pytest.raises(ValueError, match='processor.patch=4 does not divide'):
    ImageProcessor(height=6, width=8, channels=1, patch=4)
  for wrong in (dict(shift=-1), dict(erase=-1), dict(turn=-1.0), dict(zoom=1.0), dict(recolor=1.5)):
    with pytest.raises(ValueError, match=f'processor.{next(iter(wrong))}'):
      ImageProcessor(height=8, width=8, channels=1, patch=4, **wrong)
