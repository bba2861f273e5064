"""Published weights: what `transformers` answers, we answer."""

import numpy as np
import pytest
from answers import GENERATE, NAMES, answers_of, assert_same, continued, golden


@pytest.mark.parametrize('name', NAMES)
def test_the_reference_answers_the_same(name, close):
  model, inputs, expected, _ = golden(name)
  assert_same(answers_of(model, inputs), expected, inputs, close)


@pytest.mark.parametrize('name', GENERATE)
def test_the_reference_generates_the_same(name, close):
  model, inputs, expected, config = golden(name)
  greedy, beam, scores = continued(model, inputs, config)
  np.testing.assert_array_equal(greedy, expected['greedy'][:, 0])
  np.testing.assert_array_equal(beam, expected['beam'])
  close(scores, expected['beam_scores'])
