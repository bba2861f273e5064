"""Mel bands by their definition, for tests."""

import numpy as np


def slaney(hertz):
  """Linear below 1000 Hz, logarithmic above: 27 steps for a factor of 6.4."""
  above = 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4)
  return np.where(hertz < 1000, hertz * 3 / 200, above)


def triangles(rate, fft, bands):
  """The weight of each frequency in each band [bands, frequencies]: Slaney's, each of area 1."""
  frequencies = np.arange(fft // 2 + 1) * rate / fft
  grid = (
    np.linspace(0, 100 * rate, 1_000_001) / 200
  )  # Hz, fine enough to invert the scale by look-up
  edges = np.interp(np.linspace(0, slaney(rate / 2), bands + 2), slaney(grid), grid)
  weights = []
  for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
    up, down = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    weights.append(np.maximum(0, np.minimum(up, down)) * 2 / (high - low))
  return np.array(weights)
