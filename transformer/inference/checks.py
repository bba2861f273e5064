"""Checks of requests and results, shared by predictions, generation, streams and attention maps."""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from transformer.inference.batching import Row
from transformer.modules.config import ModelConfig

log = logging.getLogger(__name__)


def check_finite(results: Any, what: str = 'the model computes NaN for these lines'):
  """Raise FloatingPointError if an array of the tree has a NaN; `what` begins the message."""
  for leaf in jax.tree.leaves(results):
    if jax.numpy.issubdtype(leaf.dtype, np.floating) and np.isnan(leaf).any():
      raise FloatingPointError(f'{what}: its training diverged, or a weight is not finite')


def check_possible(scores: Iterable[Any]):
  """Raise ValueError if a score, log P of the best output of a search, is -inf."""
  if any(np.isneginf(score) for score in scores):
    raise ValueError(
      'no output is possible: decode.suppress, decode.bad_words, decode.prefix, decode.choices and '
      'the like forbid every next token: allow some'
    )


def log_cut(ended: Iterable[bool], decoding: Any):
  """Log how many answers were cut at `decoding.max_new_tokens`, if any.

  Args:
    ended: for each answer, whether it has an end token.
    decoding: the settings of inference.
  """
  flags = [*ended]
  if cut := len(flags) - sum(flags):
    most = decoding.max_new_tokens
    log.warning('%d of %d answers were cut at decode.max_new_tokens=%d', cut, len(flags), most)


def check_ids(settings: Mapping[str, Any], vocab: int, published: Collection[Any] = ()):
  """Raise ValueError if settings of generation have ids outside the vocabulary.

  Args:
    settings: fields of `Decoding`, and 'eos'.
    vocab: size of the model's vocabulary.
    published: ids and sequences of ids from a published model's settings, which are not checked,
      because published settings may have ids of another model.
  """
  for name in ('bad_words', 'suppress', 'begin_suppress', 'prefix', 'choices', 'eos'):
    for item in settings.get(name) or ():
      unknown = [i for i in np.ravel(item).tolist() if not 0 <= i < vocab]
      if unknown and item not in published:
        raise ValueError(
          f'decode.{name} has ids {unknown}, but the model has ids 0 to {vocab - 1}: remove them'
        )


def check_rows(config: ModelConfig, rows: Iterable[Row], *, new: int = 0, source: bool = False):
  """Raise ValueError if a row has ids outside the vocabulary, or more tokens than positions.

  Args:
    config: of the model.
    rows: tokens without padding; frames and images are not checked.
    new: number of tokens that will be generated after them.
    source: whether the encoder of an encoder-decoder reads them.
  """
  limit = max_positions(config, source=source)
  for number, row in enumerate(rows):
    tokens = np.asarray(row)
    if tokens.ndim != 1 or not len(tokens):
      continue
    if tokens.min() < 0 or tokens.max() >= config.vocab:
      raise ValueError(
        f'prompt {number} has ids from {tokens.min()} to {tokens.max()}, but the model has ids 0 '
        f'to {config.vocab - 1}: pass tokens of its own tokenizer'
      )
    # the last generated token is never read
    if limit and (length := len(tokens) + max(new - 1, 0)) > limit:
      raise ValueError(
        f'{length} tokens are more than the {limit} learned positions of the model: use {limit} '
        'tokens at most'
      )


def max_positions(config: ModelConfig, *, source: bool = False) -> int:
  """Return the number of learned positions, or 0 if the length is not limited.

  Args:
    config: of the model.
    source: whether for the encoder of an encoder-decoder.
  """
  if config.position != 'learned':
    return 0
  return (source and config.max_source_length) or config.max_length
