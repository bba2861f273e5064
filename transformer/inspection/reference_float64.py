"""Reference attention and its gradient: float64 NumPy loops over rows.

It is simple rather than fast. The self-test compares all other implementations with it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Shaped


class Reference(NamedTuple):
  """Multi-head attention, and the gradient of sum(output * g)."""

  output: Float64[np.ndarray, 'B T H V']
  weights: Float64[np.ndarray, 'B H T S']
  dq: Float64[np.ndarray, 'B T H K']
  dk: Float64[np.ndarray, 'B S G K']
  dv: Float64[np.ndarray, 'B S G V']
  dbias: Float64[np.ndarray, 'B H T S']


def multi_head_attention(
  q: Shaped[np.ndarray, 'B T H K'],
  k: Shaped[np.ndarray, 'B S G K'],
  v: Shaped[np.ndarray, 'B S G V'],
  g: Shaped[np.ndarray, 'B T H V'],
  *,
  mask: Bool[np.ndarray, '#B #H #T #S'],
  bias: Shaped[np.ndarray, '#B #H #T #S'],
  scale: float | None = None,
) -> Reference:
  """Return softmax(q kT / sqrt K + bias) v and its gradient; masked positions are never read.

  Args:
    q, k, v: queries, keys and values, of any dtype that converts to float64. Head i reads group
      i // (H / G).
    g: the gradient of the output.
    mask: True where the target may attend to the source.
    bias: added to the scores.
    scale: of q kT; 1 / sqrt K if None.

  Returns:
    Zeros for a target that may attend to no source. The gradient of a broadcast bias is not summed.
  """
  q, k, v, g, bias = (np.asarray(x, np.float64) for x in (q, k, v, g, bias))
  (B, T, H, K), (_, S, G, _) = q.shape, k.shape
  scale = K**-0.5 if scale is None else scale
  mask, bias = np.broadcast_to(mask, (B, H, T, S)), np.broadcast_to(bias, (B, H, T, S))
  output, weights = np.zeros(g.shape), np.zeros((B, H, T, S))
  dq, dk, dv, dbias = (np.zeros(x.shape) for x in (q, k, v, weights))
  for b, t, i in np.ndindex(B, T, H):
    j = i // (H // G)
    allowed = [s for s in range(S) if mask[b, i, t, s]]
    if not allowed:
      continue
    scores = np.array([scale * np.dot(q[b, t, i], k[b, s, j]) + bias[b, i, t, s] for s in allowed])
    e = np.exp(scores - scores.max())
    p = e / e.sum()
    dp = np.array([np.dot(g[b, t, i], v[b, s, j]) for s in allowed])
    dscores = p * (dp - np.dot(p, dp))
    for n, s in enumerate(allowed):
      weights[b, i, t, s] = p[n]
      output[b, t, i] += p[n] * v[b, s, j]
      dv[b, s, j] += p[n] * g[b, t, i]
      dq[b, t, i] += dscores[n] * scale * k[b, s, j]
      dk[b, s, j] += dscores[n] * scale * q[b, t, i]
      dbias[b, i, t, s] = dscores[n]
  return Reference(output, weights, dq, dk, dv, dbias)
