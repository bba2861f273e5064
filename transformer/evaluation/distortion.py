"""Metrics of synthesized sounds, compared with recordings of the same text."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from transformer.data import audio
from transformer.evaluation.text import Score, check_pairs

BANDS, CEPSTRA = 40, 13
WINDOW, HOP, FLOOR = 0.025, 0.010, 1e-5  # seconds, seconds, a magnitude


def cepstra(sound: Float[np.ndarray, ' n'], rate: int) -> Float[np.ndarray, 'S C']:
  """Return the mel cepstra c_1 to c_13 of each frame: log |mel_k| = c_0 + sum_m c_m cos(...).

  Args:
    sound: samples.
    rate: sampling rate in Hz.
  """
  frames = audio.LogMel(rate=rate, window=WINDOW, hop=HOP, mels=BANDS, floor=FLOOR)(sound)
  angle = np.pi * np.outer(np.arange(BANDS) + 0.5, np.arange(1, CEPSTRA + 1)) / BANDS
  return frames @ (2 / BANDS * np.cos(angle)).astype(np.float32)


def distortion(sound: audio.Sound, reference: audio.Sound, rate: int) -> float:
  """Return 10 / ln 10 sqrt(2 sum_m (c_m - c'_m)^2) in dB, the mean over aligned frames.

  That is the root mean square difference of two smoothed spectra over the bands; a difference in
  loudness does not count. Frames are aligned by dynamic time warping, with the least sum.

  Args:
    sound, reference: the two sounds.
    rate: sampling rate in Hz, to which both are converted.

  Kubichek 1993, https://doi.org/10.1109/PACRIM.1993.407206, with cepstra of mel bands.
  """
  import librosa

  x, y = (cepstra(audio.read(s, rate), rate) for s in (sound, reference))
  difference = x[:, None].astype(np.float64) - y[None]
  cost = 10 / np.log(10) * np.sqrt(2 * np.sum(difference**2, axis=-1))
  path = librosa.sequence.dtw(C=cost)[1]
  return float(cost[path[:, 0], path[:, 1]].mean())


def mel_cepstral_distortion(
  predictions: Sequence[bytes], references: Sequence[audio.Sound]
) -> Score:
  """Return the mean `distortion` of wav files, in dB. Less is better."""
  check_pairs(predictions, references)
  rates = [audio.rate_of(sound) for sound in predictions]
  values = [distortion(*pair) for pair in zip(predictions, references, rates, strict=True)]
  frames = f'window:{1000 * WINDOW:g}ms|hop:{1000 * HOP:g}ms|floor:{FLOOR:g}|mels:{BANDS}'
  settings = f'{frames}|cepstra:1-{CEPSTRA}|rate:{rates[0]}|aligned:dtw'
  return Score(sum(values) / len(values), f'mel cepstral distortion|dB|n:{len(values)}|{settings}')


def length_ratio(predictions: Sequence[bytes], references: Sequence[audio.Sound]) -> Score:
  """Return the total duration of wav files in percent of that of the references.

  A synthesized sound consists of whole steps, so it is longer by half a step on average.
  """
  check_pairs(predictions, references)
  seconds = reference_seconds = 0.0
  for sound, reference in zip(predictions, references, strict=True):
    rate = audio.rate_of(sound)
    seconds += len(audio.read(sound, rate)) / rate
    reference_seconds += len(audio.read(reference, rate)) / rate
  return Score(100 * seconds / reference_seconds, f'length ratio|n:{len(references)}')
