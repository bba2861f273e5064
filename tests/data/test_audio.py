"""Tests of data/audio.py."""

import io

import numpy as np
import pytest
from mel import triangles

from transformer.data import audio
from transformer.data.audio import LogMel


def tone(frequency, seconds, rate, loudness=0.5):
  return loudness * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def loudest(sound, rate):
  """The frequency of the highest peak of the whole sound's spectrum."""
  spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 8 * len(sound)))
  return np.argmax(spectrum) * rate / (8 * len(sound))


def log_mel(sound, rate, window, hop, mels, floor):
  """From the definitions, one frame and one band at a time."""
  W, H = round(rate * window), round(rate * hop)
  fft = 2 ** int(np.ceil(np.log2(W)))
  weights = triangles(rate, fft, mels)
  padded = np.concatenate([np.zeros(fft // 2), sound, np.zeros(fft)])
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(W) / W)
  hann = np.pad(hann, ((fft - W) // 2, fft - W - (fft - W) // 2))
  frames = []
  for start in range(0, len(sound) + 1, H):
    magnitudes = np.abs(np.fft.rfft(padded[start : start + fft] * hann))
    frames.append(np.log(np.maximum(weights @ magnitudes, floor)))
  return np.array(frames)


@pytest.mark.parametrize(
  'rate, window, hop, mels', [(8000, 0.025, 0.01, 23), (16000, 0.05, 0.0125, 80)]
)
def test_log_mel_is_its_definition(rate, window, hop, mels, rng):
  sound = (rng.normal(size=1 + int(0.3 * rate)) * 0.1).astype(np.float32)
  features = LogMel(rate=rate, window=window, hop=hop, mels=mels)
  expected = log_mel(sound, rate, window, hop, mels, features.floor)
  found = features(sound)
  assert found.dtype == np.float32 and found.shape == expected.shape
  np.testing.assert_allclose(found, expected, atol=2e-3)


def test_sounds_of_any_length_have_frames():
  features = LogMel(rate=8000, mels=20)
  for n in (1, 2, 79, 80, 81, 200):
    assert features(np.zeros(n, np.float32)).shape == (1 + n // 80, 20)
  np.testing.assert_allclose(features(np.zeros(9, np.float32)), np.log(features.floor), rtol=1e-6)


@pytest.mark.parametrize('frequency', [440.0, 1500.0])
def test_griffin_lim_restores_a_tone(frequency):
  rate = 8000
  features = LogMel(rate=rate, window=0.05, hop=0.0125, mels=80)
  frames = features(tone(frequency, 0.5, rate).astype(np.float32))
  sound = features.inverse(frames)
  assert len(sound) == len(frames) * rate * 0.0125
  assert loudest(sound, rate) == pytest.approx(frequency, abs=12)
  again = features(sound)
  n = min(len(frames), len(again))
  near = np.abs(again[:n] - frames[:n])[frames[:n] > frames.max() - 3]
  assert near.mean() < 0.2
  np.testing.assert_array_equal(sound, features.inverse(frames))
  assert np.isfinite(features.inverse(frames[:1])).all()  # one frame makes one hop of sound
  assert len(features.inverse(frames[:1])) == rate * 0.0125


def test_wav_round_trip(tmp_path, rng):
  sound = (rng.uniform(-1, 1, 500)).astype(np.float32)
  audio.write(tmp_path / 'a.wav', sound, 8000)
  for given in (tmp_path / 'a.wav', str(tmp_path / 'a.wav'), audio.encode(sound, 8000)):
    np.testing.assert_allclose(audio.read(given, 8000), sound, atol=2**-15)
  np.testing.assert_array_equal(audio.read(sound, 8000), sound)
  louder = audio.read(audio.encode(4 * sound, 8000), 8000)  # turned down: nothing is cut off
  np.testing.assert_allclose(louder * np.abs(sound).max(), sound, atol=2**-14)


def test_flac_stereo_and_other_rates_are_read(tmp_path):
  import soundfile

  left, right = tone(440, 0.4, 44_100), tone(440, 0.4, 44_100, 0.1)
  soundfile.write(tmp_path / 'a.flac', np.stack([left, right], 1), 44_100)
  sound = audio.read(tmp_path / 'a.flac', 16_000)
  assert sound.dtype == np.float32 and abs(len(sound) - 6400) <= 1
  middle = slice(1000, 5000)
  np.testing.assert_allclose(sound[:6400][middle], tone(440, 0.4, 16_000, 0.3)[middle], atol=3e-3)


def test_a_file_that_is_no_sound_is_an_error(tmp_path):
  (tmp_path / 'text.wav').write_text('no sound')
  with pytest.raises(ValueError, match=r'text\.wav is no sound.*wav, flac'):
    audio.read(tmp_path / 'text.wav', 8000)
  with pytest.raises(ValueError, match='the sound is no sound'):
    audio.read(b'', 8000)
  with pytest.raises(FileNotFoundError, match=r'none\.wav'):
    audio.read(tmp_path / 'none.wav', 8000)
  for wrong in (
    np.zeros(0, np.float32),
    np.full(9, np.nan, np.float32),
    np.zeros((9, 2), np.float32),
  ):
    with pytest.raises(ValueError, match='holds no samples'):
      audio.read(wrong, 8000)
  audio.write(tmp_path / 'empty.wav', np.zeros(0, np.float32), 8000)
  with pytest.raises(ValueError, match=r'empty\.wav holds no samples'):
    audio.read(tmp_path / 'empty.wav', 8000)
  with pytest.raises(ValueError, match='not finite and cannot be written'):
    audio.encode(np.array([np.inf]), 8000)


@pytest.mark.parametrize('shape', [(800, 2), (2, 400), (800, 1), ()])
def test_samples_of_several_channels_are_refused(shape):
  with pytest.raises(ValueError, match='no samples of one channel'):
    audio.read(np.zeros(shape, np.float32), 8000)


@pytest.mark.parametrize(
  'kind',
  [
    *('WAV PCM_U8', 'WAV PCM_24', 'WAV FLOAT', 'WAV ULAW', 'AIFF PCM_16', 'AIFF PCM_S8'),
    *('AU PCM_16', 'CAF PCM_32', 'FLAC PCM_24', 'W64 DOUBLE'),
  ],
)
def test_files_of_any_number_format_are_scaled(kind, rng):
  soundfile = pytest.importorskip('soundfile')
  sound, file, (form, subtype) = rng.uniform(-0.9, 0.9, 800), io.BytesIO(), kind.split()
  soundfile.write(file, sound, 8000, format=form, subtype=subtype)
  np.testing.assert_allclose(audio.read(file.getvalue(), 8000), sound, atol=0.03)


@pytest.mark.parametrize('dtype', ['<i2', '>i2', '<i4', '>i4', 'u1', 'f2', '>f4', 'f8'])
def test_samples_are_scaled_by_their_type(dtype, rng):
  sound, kind = rng.uniform(-0.9, 0.9, 800), np.dtype(dtype)
  samples = sound
  if kind.kind != 'f':
    samples = (sound * 2 ** (8 * kind.itemsize - 1)).round() + 128 * (dtype == 'u1')
  found = audio.read(samples.astype(dtype), 8000)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, sound, atol=0.005 if dtype == 'u1' else 5e-4)


@pytest.mark.parametrize(
  'scale, dtype',
  [
    (32_768, 'f4'),
    (4000, 'f2'),
    *((100, kind) for kind in ('i8', 'u2', 'u4', 'i1')),
    (1, '?'),
    (1, 'c8'),
  ],
)
def test_samples_of_an_unknown_scale_are_refused(scale, dtype, rng):
  with pytest.raises(ValueError, match='scale'):
    audio.read((rng.uniform(-0.9, 0.9, 800) * scale).astype(dtype), 8000)


def test_a_file_that_claims_too_many_samples_is_refused(tmp_path):
  """Also one that has few of them, and a rate at which they last for days."""
  wav = bytearray(audio.encode(np.zeros(100_000, np.float32), 8000))
  wav[24:28] = (1).to_bytes(4, 'little')  # the rate
  (tmp_path / 'slow.wav').write_bytes(wav)
  with pytest.raises(ValueError, match='slow.wav .*too many at once'):
    audio.read(tmp_path / 'slow.wav', 8000)


@pytest.mark.parametrize(
  'wrong, message',
  [
    (dict(hop=0.05), 'hop=0.05 and window=0.025 are in seconds'),
    (dict(hop=0.0), 'hop=0.0'),
    (dict(hop=1e-6), 'at least one sample'),
    (dict(mels=0), 'mels=0'),
    (dict(floor=0.0), 'floor=0.0'),
  ],
)
def test_impossible_settings_are_errors(wrong, message):
  with pytest.raises(ValueError, match=message):
    LogMel(**dict(dict(rate=8000), **wrong))
