"""Speculative decoding: a small model proposes tokens, the large one checks several at once.

Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, algorithm 1; Chen et al. 2023,
https://arxiv.org/abs/2302.01318. The tokens are those of `search.greedy`, or have the distribution
of `search.sample`, whatever the small model proposes: it decides about the time alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from transformer.functional import search

# (tokens [B, n], which are real [B, n], cache) to (logits [B, n, N], cache with the real tokens)
Read = Callable[[Array, Array, PyTree], tuple[Array, PyTree]]


class State(NamedTuple):
  """What a search has found so far; `generated` tokens of each row."""

  round: Int[Array, '']
  generated: Int[Array, 'B']
  last: Int[Array, 'B']
  tokens: Int[Array, 'B steps']
  scores: Float[Array, 'B']
  finished: Bool[Array, 'B']
  caches: tuple[PyTree, PyTree]


def speculate(
  read: Read,
  draft: Read,
  caches: tuple[PyTree, PyTree],
  first: Int[Array, 'B'],
  keys: Key[Array, 'B'],
  *,
  keep: Callable[[PyTree, Bool[Array, 'B n']], PyTree],
  lookahead: int,
  steps: int,
  eos: search.Ends,
  constrain: Callable[[Any, Any, Any], Any] | None = None,
  stop: Callable[[Any, Any], Any] | None = None,
  filters: dict[str, Any],
) -> tuple[Int[Array, 'B steps'], Float[Array, 'B']]:
  """Return the generated tokens and log P of each row, as `greedy` and `sample` do.

  Args:
    read, draft: the model that is asked, and the small one that proposes.
    caches: of both, with the tokens before `first`.
    first: the token each row starts from.
    keys: one for each row; only sampling uses them.
    keep: (cache, which of the last n tokens) to the cache without the others.
    lookahead: how many tokens are proposed at once.
    steps: the most tokens to generate.
    eos: the end token, or a tuple of them.
    constrain: as in `search`, but of (logits [B, n, N], tokens [B, n, steps], generated [B, n]).
    stop: as in `search`, but of (tokens [B, n, steps], position [B, n]).
    filters: arguments of `search.filter_logits`; temperature 0 is greedy.

  Raises:
    ValueError: lookahead < 1.
  """
  if lookahead < 1:
    raise ValueError(f'lookahead {lookahead} proposes nothing: pass 1 or more')
  n = lookahead + 1
  filtered = jax.vmap(jax.vmap(lambda logits: search.filter_logits(logits, **filters)))
  places, rows = jnp.arange(n), jnp.arange(len(first))[:, None]
  pad = -1 if 0 in search.as_tuple(eos) else 0

  def extend(state: State) -> State:
    count = state.generated[:, None] + places
    real = (count < steps) & ~state.finished[:, None]
    round_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.round)
    proposed, q, drafted = _propose(draft, filtered, state, round_keys, real)
    given = jnp.concatenate([state.last[:, None], proposed], axis=1)
    logits, cache = read(given, real, state.caches[0])
    logits = allowed = logits.astype(jnp.float32)
    if constrain is not None:
      # before place i there are the first i proposals
      whole = state.tokens.at[rows, count[:, :-1]].set(proposed, mode='drop')
      allowed = constrain(logits, jnp.repeat(whole[:, None], n, axis=1), count)
    p = jax.nn.softmax(filtered(allowed))
    taken, token = jax.vmap(_accept)(round_keys, p, q, proposed)
    # the proposals that were taken, then a token of the large model's own
    new = jnp.where(places < taken[:, None], jnp.pad(proposed, ((0, 0), (0, 1))), token[:, None])
    valid = (places <= taken[:, None]) & real
    tokens, valid, ends = _until_end(state, new, valid, count, eos, stop)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), new[..., None], axis=-1)[..., 0]
    if constrain is not None:  # where every token is forbidden
      log_p = jnp.where(jnp.max(allowed, axis=-1) == -jnp.inf, -jnp.inf, log_p)
    # all that was read but the last new token, which comes first in the next round
    caches = keep(cache, valid), keep(drafted, valid)
    return _append(state, new, tokens, log_p, valid, ends, caches, pad)

  start = _first_state(first, steps, pad, caches)
  found = lax.while_loop(lambda state: ~jnp.all(state.finished), extend, start)
  return found.tokens, found.scores


def _first_state(first, steps: int, pad: int, caches) -> State:
  """The state before the first round."""
  zeros = jnp.zeros(len(first), jnp.int32)
  tokens = jnp.full((len(first), steps), pad, jnp.int32)
  scores, finished = zeros.astype(jnp.float32), zeros.astype(bool)
  return State(jnp.int32(0), zeros, first.astype(jnp.int32), tokens, scores, finished, caches)


def _until_end(state: State, new, valid, count, eos: search.Ends, stop):
  """The tokens of each row with the new ones, which of these count, and which end it."""
  steps, rows = state.tokens.shape[1], jnp.arange(len(new))[:, None]
  tokens = state.tokens.at[rows, jnp.where(valid, count, steps)].set(new, mode='drop')
  ends = search.is_end(new, eos)
  if stop is not None:
    whole = jnp.repeat(tokens[:, None], new.shape[1], axis=1)
    ends |= stop(whole, jnp.minimum(count, steps - 1))
  ends &= valid
  valid &= jnp.cumsum(ends, axis=1) - ends == 0
  return tokens, valid, ends


def _propose(draft, filtered, state, keys, real):
  """The tokens that the small model proposes, their distributions [B, n - 1, N], and its cache."""

  def one(carry, xs):
    last, cache = carry
    i, real = xs
    logits, cache = draft(last[:, None], real[:, None], cache)
    logits = filtered(logits.astype(jnp.float32))[:, 0]
    token = jax.vmap(_draw, in_axes=(0, 0, None))(keys, logits, i)
    return (token, cache), (token, jax.nn.softmax(logits))

  # the last proposal is read, too, so that its keys are cached if all are taken
  start = (state.last, state.caches[1])
  (_, cache), (tokens, q) = lax.scan(one, start, (jnp.arange(real.shape[1]), real.T))
  return tokens[:-1].T, q[:-1].swapaxes(0, 1), cache


def _append(state, new, tokens, log_p, valid, ends, caches, pad) -> State:
  """The state with the valid ones of the new tokens."""
  steps, added = tokens.shape[1], jnp.sum(valid, axis=1)
  generated = state.generated + added
  last = jnp.take_along_axis(new, jnp.maximum(added - 1, 0)[:, None], axis=1)[:, 0]
  return State(
    round=state.round + 1,
    generated=generated,
    last=jnp.where(state.finished, state.last, last),
    tokens=jnp.where(jnp.arange(steps) < generated[:, None], tokens, pad),
    scores=state.scores + jnp.sum(jnp.where(valid, log_p, 0), axis=1),
    finished=state.finished | jnp.any(ends & valid, axis=1) | (generated >= steps),
    caches=caches,
  )


def _draw(key, logits, position):
  """A token of filtered logits; if only one is left, that one."""
  return jax.random.categorical(jax.random.fold_in(key, position), logits).astype(jnp.int32)


def _accept(key, p, q, proposed):
  """How many proposals of a row are taken, and the token after them.

  Args:
    key: of the row.
    p: [n, N] of the large model.
    q: [n - 1, N] of the small one.
    proposed: [n - 1].
  """
  places = jnp.arange(len(proposed))
  # not the keys of the proposals
  accept_key, token_key = jax.random.split(jax.random.fold_in(key, len(p)))
  ratio = p[places, proposed] / q[places, proposed]
  accepted = jax.random.uniform(accept_key, ratio.shape) < ratio
  taken = jnp.sum(jnp.cumprod(accepted))
  rest = jnp.maximum(p - jnp.pad(q, ((0, 1), (0, 0))), 0)[taken]
  rest = jnp.where(jnp.sum(rest) > 0, rest, p[taken])  # p = q, up to rounding
  return taken, jax.random.categorical(token_key, jnp.log(rest)).astype(jnp.int32)
