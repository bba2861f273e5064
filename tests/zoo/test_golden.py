"""Published weights: what `transformers` answers, we answer."""

import numpy as np
import pytest
from answers import BEAMS, GENERATE, NAMES, answers_of, assert_same, continued, golden


@pytest.mark.parametrize('name', NAMES)
def test_the_reference_answers_the_same(name, close):
  model, inputs, expected, _ = golden(name)
  assert_same(answers_of(model, inputs), expected, inputs, close)


@pytest.mark.parametrize('beams', [1, BEAMS])
@pytest.mark.parametrize('name', GENERATE)
def test_the_reference_generates_the_same(name, beams, close):
  model, inputs, expected, config = golden(name)
  tokens, scores = continued(model, inputs, config, beams)
  np.testing.assert_array_equal(tokens, expected['beam' if beams > 1 else 'greedy'])
  if beams > 1:
    close(scores, expected['beam_scores'])
