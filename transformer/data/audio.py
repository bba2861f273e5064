"""Audio: reading and writing files (soundfile), log-mel frames and their inverse (librosa).

Needs the extra `audio`: pip install 'functional-transformer[audio]'.
"""

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from transformer.data.reading import as_file_or_array, naming

Sound = str | os.PathLike | bytes | np.ndarray  # a path, an encoded file, or its samples
MAX_SAMPLES = 1 << 28  # of all channels: 4.6 hours at 16 kHz
LOUDEST = 4.0  # the largest magnitude accepted; samples of mp3 and float files may exceed 1


def read(sound: Sound, rate: int) -> Float[np.ndarray, ' n']:
  """Return the samples of a sound, mono, between -1 and 1, resampled to `rate` Hz.

  Args:
    sound: path of a file that libsndfile reads (wav, flac, ogg, mp3), the bytes of such a file, or
      samples with this rate: floats, or int16, int32 or uint8 as in wav files.
    rate: in Hz.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is no sound, has no samples or more than MAX_SAMPLES, or a sample is not
      finite or larger than LOUDEST.
  """
  sound = as_file_or_array(sound)
  if isinstance(sound, np.ndarray):
    name, own_rate = f'the array {sound.dtype}{list(sound.shape)}', rate
    samples = _scaled(sound)
  else:
    name = _name_of(sound)
    with _opened(sound, f'{name} is no sound that can be read') as file:
      own_rate, size = file.samplerate, file.frames * file.channels
      if max(size, size * rate / own_rate) > MAX_SAMPLES:
        raise ValueError(f'it has {size:,} samples at {own_rate} Hz, too many at once')
      samples = file.read(dtype='float32', always_2d=True).mean(axis=1)
  if samples.ndim != 1:
    raise ValueError(f'{name} holds no samples of one channel: give [n]')
  if not samples.size or not np.isfinite(samples).all():
    raise ValueError(f'{name} holds no samples, or some that are not finite: give it again')
  if np.abs(samples).max() > LOUDEST:
    raise ValueError(f'{name} has samples up to {np.abs(samples).max():g}: scale them to -1 to 1')
  if own_rate != rate:
    import librosa

    with naming(name):
      samples = librosa.resample(samples, orig_sr=own_rate, target_sr=rate)
  return samples.astype(np.float32)


def _scaled(samples: np.ndarray) -> np.ndarray:
  """Return samples scaled to -1 to 1, as in wav files of their dtype; floats are unchanged."""
  kind = samples.dtype.str[1:]
  if kind == 'u1':
    return (samples.astype(np.float32) - 128) / 128
  if kind in ('i2', 'i4'):
    return samples.astype(np.float32) / 2 ** (8 * samples.dtype.itemsize - 1)
  if samples.dtype.kind != 'f':
    raise ValueError(
      f'samples of {samples.dtype} have no known scale: give floats between -1 and 1'
    )
  return samples


@contextlib.contextmanager
def _opened(sound: str | os.PathLike | bytes, name: str) -> Iterator[Any]:
  """Open a file of sound, or its bytes, as a soundfile.SoundFile."""
  import soundfile

  with naming(name, 'give a whole wav, flac, ogg or mp3'):
    if not isinstance(sound, bytes):
      open(sound, 'rb').close()  # raises a precise error for a wrong path, unlike libsndfile
    file = _Bytes(sound) if isinstance(sound, bytes) else os.fspath(sound)
    with soundfile.SoundFile(file) as opened:
      yield opened


class _Bytes(io.BytesIO):
  """A BytesIO whose `seek` accepts negative positions, which a damaged file may contain."""

  def seek(self, offset: int, whence: int = 0) -> int:
    start = (0, self.tell(), len(self.getbuffer()))[whence]
    return super().seek(max(start + offset, 0))


def _name_of(sound: str | os.PathLike | bytes) -> str:
  """Return the path of a sound, or the name of its archives.Content, for errors."""
  return str(getattr(sound, 'name', 'the sound') if isinstance(sound, bytes) else sound)


def rate_of(sound: str | os.PathLike | bytes) -> int:
  """Return the sample rate of a file, in Hz."""
  with _opened(sound, _name_of(sound)) as file:
    return file.samplerate


def write(path: str | os.PathLike, sound: Float[np.ndarray, ' n'], rate: int):
  """Write samples as a 16-bit wav file; see `encode`."""
  with open(path, 'wb') as file:
    file.write(encode(sound, rate))


def encode(sound: Float[np.ndarray, ' n'], rate: int) -> bytes:
  """Return the bytes of a 16-bit wav file; samples are scaled down, not clipped, to -1 to 1.

  Args:
    sound: samples.
    rate: in Hz.

  Raises:
    ValueError: a sample is not finite.
  """
  import soundfile

  if not np.isfinite(sound).all():
    raise ValueError(
      'some samples are not finite and cannot be written: the model that made them diverged'
    )
  file = io.BytesIO()
  sound = sound / max(1.0, np.abs(sound).max(initial=0))
  soundfile.write(file, sound, rate, format='WAV', subtype='PCM_16')
  return file.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMel:
  """Log-mel frames of a sound, log max(mel |STFT(x)|, floor), and their approximate inverse.

  With a Hann window, Slaney's mel bands, magnitudes (not powers) and the natural logarithm, as in
  Tacotron 2 (Shen et al. 2018, https://arxiv.org/abs/1712.05884, section 2.2).

  Attributes:
    rate: sample rate, in Hz.
    window: length of a frame, in seconds.
    hop: distance from one frame to the next, in seconds.
    mels: M, number of bands between 0 Hz and half the rate.
    floor: the smallest magnitude.
  """

  rate: int = 16_000
  window: float = 0.025
  hop: float = 0.010
  mels: int = 80
  floor: float = 1e-5

  def __post_init__(self):
    if not 0 < self.hop <= self.window or self.rate * self.hop < 1:
      raise ValueError(
        f'hop={self.hop} and window={self.window} are in seconds: give 0 < hop <= window, and a '
        f'hop of at least one sample, 1 / {self.rate}'
      )
    if self.mels < 1 or not self.floor > 0:
      raise ValueError(f'mels={self.mels} and floor={self.floor} must be positive')

  def __call__(self, sound: Float[np.ndarray, ' n']) -> Float[np.ndarray, 'S M']:
    """Return the 1 + n // hop frames of a sound; the first is centered on the first sample."""
    import librosa

    # padded with silence; librosa warns of sounds shorter than a window
    padded = np.pad(sound, self._stft['n_fft'] // 2)
    mel = self._bands @ np.abs(librosa.stft(padded, center=False, **self._stft))
    return np.log(np.maximum(mel, self.floor)).T.astype(np.float32)

  def inverse(
    self, frames: Float[np.ndarray, 'S M'], *, iterations: int = 60
  ) -> Float[np.ndarray, ' n']:
    """Return a sound of S hops with approximately these frames; deterministic.

    Griffin and Lim 1984, https://doi.org/10.1109/TASSP.1984.1164317, with the momentum of Perraudin
    et al. 2013. The magnitudes of frequencies are computed from the bands by non-negative least
    squares.

    Args:
      frames: natural logarithms of band magnitudes, as from `__call__`.
      iterations: of the algorithm; more give a cleaner sound.
    """
    import librosa

    fft, hop = self._stft['n_fft'], self._stft['hop_length']
    magnitudes = np.exp(frames.T.astype(np.float64))
    spectrum = librosa.util.nnls(self._bands.astype(np.float64), magnitudes)
    spectrum = np.pad(spectrum, ((0, 0), (0, -(-fft // hop))))  # for sounds shorter than a window
    options = dict(self._stft, n_iter=iterations, pad_mode='constant', random_state=0)
    return librosa.griffinlim(spectrum, **options)[: len(frames) * hop].astype(np.float32)

  @property
  def _stft(self) -> dict[str, Any]:
    window = round(self.rate * self.window)
    fft = 1 << (window - 1).bit_length()
    return dict(n_fft=fft, win_length=window, hop_length=round(self.rate * self.hop))

  @functools.cached_property
  def _bands(self) -> Float[np.ndarray, 'M F']:
    """The weight of each frequency in each band."""
    import librosa

    return librosa.filters.mel(sr=self.rate, n_fft=self._stft['n_fft'], n_mels=self.mels)
