"""Tiny models and sentences for the tests of models and their layers."""

import jax
import numpy as np
import pytest
from flax import nnx
from parameters import drawn

from transformer.modules.config import ModelConfig

TINY = dict(vocab=11, width=16, depth=2, heads=4, feedforward=24, max_length=16, unroll=1, pad=0)
# every scheme of positions, with full (kv_heads=0) and grouped heads, pre- and post-norm, a window
SCHEMES = [
  dict(position='sinusoidal'),
  dict(position='learned', kv_heads=2, prenorm=True),
  dict(position='rotary', kv_heads=1, window=3),
  dict(position='relative', prenorm=True, scale_attention=False),
  dict(position='alibi', kv_heads=2, prenorm=True, norm='rms', bias=False),
  dict(position='none', kv_heads=2, gated=True, activation='silu'),
]


def slow(*values):
  """Parameters of a test that a plain pytest leaves to `-m slow`, because others show the same."""
  return pytest.param(*values, marks=pytest.mark.slow)


def name(settings):
  return '-'.join(f'{v}' if k == 'position' else f'{k}={v}' for k, v in settings.items())


def build(cls, seed=0, **settings):
  """A model whose parameters are all random, biases and scales too."""
  config = ModelConfig(**(TINY | settings))
  return drawn(lambda: cls(config, nnx.Rngs(0)), seed)


@jax.jit
def cached(model, tokens, segments, cache):
  return model(tokens, segments=segments, cache=cache)


def at(row, length, left):
  """`row` in a row of `length`, after `left` columns of padding."""
  return [0] * left + list(row) + [0] * (length - left - len(row))


A, B = [3, 7, 1, 9, 4], [5, 2, 8]  # two sentences
TOKENS = [
  at(A, 8, 0),
  at(A, 8, 3),
  at(A, 8, 1),
  A + B,
  at(B, 8, 0),
  at(B, 8, 5),
  B + A,
  at([], 8, 0),
]
SEGMENTS = [[int(t != 0) for t in row] for row in TOKENS]
SEGMENTS[3], SEGMENTS[6] = [1] * 5 + [2] * 3, [1] * 3 + [2] * 5

# A and B with padding anywhere, whose tokens are those of others: the columns of each sentence
SPREAD = [
  (A, (0, 1, 4, 5, 6)),  # a hole, and the end
  (A, (1, 3, 4, 6, 7)),  # both sides and two holes
  (A, (0, 2, 4, 6, 7)),  # every other column
  (B, (0, 3, 7)),
  (B, (2, 4, 5)),
  (A, (3, 4, 5, 6, 7)),  # the beginning
  (B, (0, 1, 7)),
  ((), ()),  # all of the row
]


def spread():
  """(tokens, segments) of SPREAD, [8, 8]."""
  tokens, segments = np.full((8, 8), 9, int), np.zeros((8, 8), int)
  for row, (sentence, columns) in enumerate(SPREAD):
    tokens[row, list(columns)], segments[row, list(columns)] = sentence, 1
  return tokens, segments
