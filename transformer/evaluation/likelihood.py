"""Metrics with teacher forcing: the likelihood of the true tokens, given the earlier ones."""

import math
from collections.abc import Iterable

from jaxtyping import Array, Float, Int

from transformer.functional.losses import Mean, accuracy, cross_entropy

# names, and whether higher is better
TOKEN_METRICS = {'nll_per_token': False, 'perplexity_per_token': False, 'token_accuracy': True}
TEXT_METRICS = {'perplexity_per_word': False, 'bits_per_byte': False}


def token_metrics(
  logits: Float[Array, 'B T N'], targets: Int[Array, 'B T'], weights: Float[Array, 'B T']
) -> dict[str, Mean]:
  """Return the negative log-likelihood per token, in nats, and the accuracy of the best tokens."""
  return {
    'nll_per_token': cross_entropy(logits, targets, weights),
    'token_accuracy': accuracy(logits, targets, weights),
  }


def perplexity(nats: float) -> float:
  """Return exp(nats), with nats limited to 700, so that the result is finite."""
  return math.exp(min(nats, 700))


def text_metrics(nll: Mean, texts: Iterable[str]) -> dict[str, float]:
  """Return the perplexity per word and the bits per byte, which do not depend on the tokenizer.

  Words are separated by white space; a line end counts as a word, as it is a token in Merity et al.
  2017, https://arxiv.org/abs/1609.07843.

  Args:
    nll: sum of the negative log-likelihood of all texts, in nats.
    texts: the texts.
  """
  words = size = 0
  for text in texts:
    words += len(text.split()) + text.count('\n')
    size += len(text.encode())
  total = float(nll.sum)
  return {
    'perplexity_per_word': perplexity(total / max(words, 1)),
    'bits_per_byte': total / max(size, 1) / math.log(2),
  }
