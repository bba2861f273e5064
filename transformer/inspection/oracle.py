"""What attention and its gradient must be: float64 NumPy loops, one row after the other.

Written to be obviously right and nothing else. The fast paths are compared with it by the doctor.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Shaped


class Truth(NamedTuple):
  """Attention of many heads, and the gradient of sum(output * g)."""

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
) -> Truth:
  """softmax(q kT / sqrt K + bias) v; a target takes from what it may attend to and reads no more.

  Args:
    q, k, v: queries, keys and values, of any dtype that converts to float64. Head i reads group
      i // (H / G).
    g: the gradient that reaches the output.
    mask: True where the target may attend to the source.
    bias: added to the scores.
    scale: of q kT; 1 / sqrt K if None.

  Returns:
    Zeros where a target may attend to nothing. The gradient of a bias that was broadcast is not
    summed.
  """
  q, k, v, g, bias = (np.asarray(x, np.float64) for x in (q, k, v, g, bias))
  (B, T, H, K), (_, S, G, _) = q.shape, k.shape
  scale = K**-0.5 if scale is None else scale
  mask, bias = np.broadcast_to(mask, (B, H, T, S)), np.broadcast_to(bias, (B, H, T, S))
  output, weights = np.zeros(g.shape), np.zeros((B, H, T, S))
  dq, dk, dv, dbias = (np.zeros(x.shape) for x in (q, k, v, weights))
  for b, t, i in np.ndindex(B, T, H):
    j = i // (H // G)
    seen = [s for s in range(S) if mask[b, i, t, s]]
    if not seen:
      continue
    scores = np.array([scale * np.dot(q[b, t, i], k[b, s, j]) + bias[b, i, t, s] for s in seen])
    e = np.exp(scores - scores.max())
    p = e / e.sum()
    dp = np.array([np.dot(g[b, t, i], v[b, s, j]) for s in seen])
    dscores = p * (dp - np.dot(p, dp))
    for n, s in enumerate(seen):
      weights[b, i, t, s] = p[n]
      output[b, t, i] += p[n] * v[b, s, j]
      dv[b, s, j] += p[n] * g[b, t, i]
      dq[b, t, i] += dscores[n] * scale * k[b, s, j]
      dk[b, s, j] += dscores[n] * scale * q[b, t, i]
      dbias[b, i, t, s] = dscores[n]
  return Truth(output, weights, dq, dk, dv, dbias)
