"""Published weights: what `transformers` answers, we answer."""

import jax.numpy as jnp
import numpy as np
import pytest
from answers import BEAMS, GENERATE, NAMES, answers_of, generated, golden, real, source


@pytest.mark.parametrize('name', NAMES)
def test_the_reference_answers_the_same(name, close):
  model, inputs, expected, _ = golden(name)
  found = answers_of(model, inputs)
  compared = set(found) & set(expected)
  assert compared >= set(expected) - {'greedy', 'beam', 'beam_scores'} and compared
  for key in compared:
    close(real(key, found[key], inputs), real(key, expected[key], inputs))


@pytest.mark.parametrize('beams', [1, BEAMS])
@pytest.mark.parametrize('name', GENERATE)
def test_the_reference_generates_the_same(name, beams, close):
  model, inputs, expected, config = golden(name)
  x, segments = source(inputs)
  start = config.get('decoder_start_token_id')
  first = x[:, -1] if start is None else jnp.full(len(x), start)
  tokens, scores = generated(model, x, segments, first, beams, config['eos_token_id'])
  np.testing.assert_array_equal(tokens, expected['beam' if beams > 1 else 'greedy'])
  if beams > 1:
    close(scores, expected['beam_scores'])
