"""Log-mel frames as published Whisper models read them.

Needs the extra `audio`: pip install 'functional-transformer[audio]'.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RATE, FFT, HOP = 16_000, 400, 160  # Hz; samples in a window, and from one window to the next
SILENCE = 1e-10  # the smallest power
RANGE = 8.0  # decades below the loudest band of a sound, where its powers are cut


def log_mel(sound: Float[np.ndarray, ' n'], bands: int, size: int) -> Float[np.ndarray, 'S M']:
  """Return the first frames of a sound, (log10 max(mel |STFT(x)|^2, 1e-10) + 4) / 4.

  Values are cut 8 decades below the largest. Radford et al. 2022, https://arxiv.org/abs/2212.04356,
  section 2.2, with the constants of the published code. The frames are those whose windows reach
  the sound; the later ones up to `size`, of silence, have the value of `silence`.

  Args:
    sound: at 16 kHz, of at most `size` hops.
    bands: M, number of mel bands (Slaney's); 80 or 128 in published models.
    size: number of frames to which the sound is padded with silence; 3000 in published models.
  """
  import librosa

  reached = min(-(-(len(sound) + FFT // 2) // HOP), size)
  samples = min((reached + 3) * HOP, size * HOP)
  padded = np.pad(sound.astype(np.float64), (0, samples - len(sound)))
  # mirrored at both ends, as in the published code
  spectrum = librosa.stft(padded, n_fft=FFT, hop_length=HOP, pad_mode='reflect')[:, :reached]
  powers = np.log10(np.maximum(_mel(bands) @ np.abs(spectrum) ** 2, SILENCE))
  return ((np.maximum(powers, powers.max() - RANGE) + 4) / 4).T.astype(np.float32)


def silence(frames: Float[Array, 'B S M'], segments: Int[Array, 'B S']) -> Float[Array, 'B 1 1']:
  """Return the value that `log_mel` gives to silence in each of these sounds.

  Args:
    frames: from `log_mel`.
    segments: 0 for padding.
  """
  real = (segments != 0)[..., None]
  loudest = jnp.max(frames, axis=(1, 2), keepdims=True, where=real, initial=-jnp.inf)
  return jnp.maximum(loudest - RANGE / 4, (np.log10(SILENCE) + 4) / 4)


@functools.cache
def _mel(bands: int) -> Float[np.ndarray, 'M F']:
  """Return the weight of each frequency in each band."""
  import librosa

  return librosa.filters.mel(sr=RATE, n_fft=FFT, n_mels=bands)
