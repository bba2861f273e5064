"""Tests of data/whisper.py, and of the SoundProcessor with scaling='whisper'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mel import triangles

from transformer.data import pipeline, whisper
from transformer.data.processors import SoundProcessor

SIZE = 20  # frames of a whole input: 0.2 s


def by_definition(sound, bands):
  """All frames of a sound and the silence after it, one at a time."""
  whole = np.concatenate([sound, np.zeros(SIZE * 160 - len(sound))])
  mirrored = np.concatenate([whole[200:0:-1], whole, whole[-2:-202:-1]])
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
  powers = [np.abs(np.fft.rfft(mirrored[160 * i : 160 * i + 400] * hann)) ** 2 for i in range(SIZE)]
  decades = np.log10(np.maximum(powers @ triangles(16_000, 400, bands).T, 1e-10))
  return (np.maximum(decades, decades.max() - 8) + 4) / 4


def noise(n):
  return (0.3 * np.random.default_rng(n).normal(size=n)).astype(np.float32)


@pytest.mark.parametrize('n', [1, 199, 201, 1601, 2840, 3190, 3200])
def test_frames_and_silence_are_their_definition(n):
  expected, found = by_definition(noise(n), 11), whisper.log_mel(noise(n), 11, SIZE)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected[: len(found)], atol=2e-3)
  silence = whisper.silence(jnp.asarray(found)[None], jnp.ones((1, len(found)), jnp.int32))
  np.testing.assert_allclose(expected[len(found) :], np.ravel(silence)[0], atol=1e-5)
  assert len(found) == min(SIZE, -(-(n + 200) // 160))


def test_silence_alone_is_the_smallest_power():
  found = whisper.log_mel(np.zeros(500, np.float32), 5, SIZE)
  assert (found == -1.5).all()
  assert np.ravel(
    whisper.silence(jnp.asarray(found)[None], jnp.ones((1, len(found)), jnp.int32))
  ) == [-1.5]


@pytest.fixture(scope='module')
def processor():
  return SoundProcessor(scaling='whisper', bands=11, max_length=SIZE)


def test_a_batch_is_followed_by_silence_that_is_heard(processor):
  sounds = [noise(1601), noise(700)]
  rows = np.zeros((3, 12, 11), np.float32)  # the last row has no example
  segments = np.zeros((3, 12), np.int32)
  for row, real, sound in zip(rows, segments, sounds, strict=False):
    frames = processor.encode_example(sound)
    row[: len(frames)], real[: len(frames)] = frames, 1
  x, heard = processor.prepare_batch(jnp.asarray(rows), jnp.asarray(segments), None)
  assert heard.tolist() == [[1] * SIZE, [1] * SIZE, [0] * SIZE]
  for frames, sound in zip(x, sounds, strict=False):
    np.testing.assert_allclose(frames, by_definition(sound, 11), atol=2e-3)


def test_augmentation_leaves_the_silence_and_its_value(processor):
  changed = SoundProcessor(
    scaling='whisper', bands=11, max_length=SIZE, tempo=0.3, frequency_masks=1, frequency_width=11
  )
  rows = jnp.asarray(processor.encode_example(noise(1601)))[None]
  segments = jnp.ones(rows.shape[:2], jnp.int32)
  plain, _ = processor.prepare_batch(rows, segments, None)
  x, heard = changed.prepare_batch(rows, segments, jax.random.key(3))
  assert (heard == 1).all() and x.shape == plain.shape
  assert not np.allclose(x[0, :9], plain[0, :9])
  np.testing.assert_array_equal(x[0, -4:], plain[0, -4:])


def test_rows_count_with_the_silence_in_the_size_of_a_batch(processor):
  frames = processor.encode_column([noise(n) for n in (700, 1601, 3200, 100, 100)])
  assert frames.lengths.tolist() == [6, 12, 20, 2, 2] and frames.sizes.tolist() == [20] * 5
  both = pipeline.concatenate([{'inputs': frames}, {'inputs': frames}])['inputs']
  assert both.sizes.tolist() == [20] * 10
  rows = pipeline.bucket(frames.sizes[:, None], buckets=3, multiple=4)
  batches = pipeline.Batches({'inputs': frames}, rows, tokens=2 * SIZE)
  assert [(shape, size) for shape, _, size in batches.groups] == [((20,), 2)]


def test_longer_sounds_keep_their_length_and_are_refused(processor):
  assert processor.encode_column([noise(5000)]).lengths.tolist() == [32]
  with pytest.raises(ValueError, match='has 32 frames, more than the 20'):
    processor.encode_example(noise(5000))
  assert len(processor.encode_example(noise(5000), truncate=True)) == SIZE


@pytest.mark.parametrize('wrong', [dict(rate=8000), dict(window=0.02), dict(hop=0.0125)], ids=str)
def test_other_frames_than_whispers_are_refused(wrong):
  with pytest.raises(ValueError, match=r'has rate, window and hop \(16000, 0.025, 0.01\), not'):
    SoundProcessor(scaling='whisper', max_length=SIZE, **wrong)
