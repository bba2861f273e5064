"""Speculative decoding: a small draft model proposes tokens, the large one checks several at once.

Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, algorithm 1; Chen et al. 2023,
https://arxiv.org/abs/2302.01318. The tokens are those of `search.greedy`, or have the distribution
of `search.sample`, whatever the draft model proposes; it changes only the time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from transformer.functional import search

# f(tokens [B, n], which of them are real [B, n], cache) returns (logits [B, n, N], the cache with
# the real tokens added)
Read = Callable[[Array, Array, PyTree], tuple[Array, PyTree]]


class State(NamedTuple):
  """The state of a search after some rounds of proposing and checking."""

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

  A round proposes and checks `lookahead` tokens; n is lookahead + 1.

  Args:
    read, draft: the large model and the draft model.
    caches: of both, with the tokens before `first`.
    first: the token each row starts from.
    keys: one for each row; used by sampling only.
    keep: f(cache, which of the last n tokens to keep [B, n]) returns the cache without the others.
    lookahead: how many tokens are proposed at once.
    steps: the largest number of tokens to generate.
    eos: the end token, or a tuple of them.
    constrain: as in `search`, but of (logits [B, n, N], tokens [B, n, steps], generated [B, n]).
    stop: as in `search`, but of (tokens [B, n, steps], position [B, n]).
    filters: arguments of `search.filter_logits`; temperature 0 is greedy.

  Raises:
    ValueError: lookahead < 1.
  """
  if lookahead < 1:
    raise ValueError(f'lookahead {lookahead} proposes nothing: pass 1 or more')
  filtered = jax.vmap(jax.vmap(lambda logits: search.filter_logits(logits, **filters)))
  pad = -1 if 0 in search.as_tuple(eos) else 0

  def extend(state: State) -> State:
    count = state.generated[:, None] + jnp.arange(lookahead + 1)[None]
    real = (count < steps) & ~state.finished[:, None]
    round_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.round)
    proposal = _propose(draft, filtered, state, round_keys, real)
    new, log_p, accepted, cache = _check(
      read, filtered, constrain, state, round_keys, proposal, count, real
    )
    tokens, valid, ends = _until_end(state, new, accepted & real, count, eos, stop)
    # the caches have no keys of the last new token, which is read first in the next round
    caches = keep(cache, valid), keep(proposal.cache, valid)
    return _append(state, new, tokens, log_p, valid, ends, caches, pad)

  start = _first_state(first, steps, pad, caches)
  end = lax.while_loop(lambda state: ~jnp.all(state.finished), extend, start)
  return end.tokens, end.scores


def _first_state(first, steps: int, pad: int, caches) -> State:
  """Return the state before the first round."""
  zeros = jnp.zeros(len(first), jnp.int32)
  tokens = jnp.full((len(first), steps), pad, jnp.int32)
  scores, finished = zeros.astype(jnp.float32), zeros.astype(bool)
  return State(jnp.int32(0), zeros, first.astype(jnp.int32), tokens, scores, finished, caches)


def _until_end(state: State, new, valid, count, eos: search.Ends, stop):
  """Return (the rows with the new tokens, which of these come before the end, which end a row)."""
  steps, rows = state.tokens.shape[1], jnp.arange(len(new))[:, None]
  tokens = state.tokens.at[rows, jnp.where(valid, count, steps)].set(new, mode='drop')
  ends = search.is_end(new, eos)
  if stop is not None:
    rows_so_far = jnp.repeat(tokens[:, None], new.shape[1], axis=1)
    ends |= stop(rows_so_far, jnp.minimum(count, steps - 1))
  ends &= valid
  valid &= jnp.cumsum(ends, axis=1) == ends.astype(int)
  return tokens, valid, ends


class _Proposal(NamedTuple):
  """The tokens that the draft model proposes.

  Attributes:
    tokens: [B, n - 1].
    q: the distributions that they were drawn from, [B, n - 1, N].
    cache: of the draft model, with all proposals.
  """

  tokens: Array
  q: Array
  cache: PyTree


def _propose(draft, filtered, state, keys, real) -> _Proposal:
  """Draw the proposals of one round."""

  def draw_next(carry, xs):
    last, cache = carry
    i, real = xs
    logits, cache = draft(last[:, None], real[:, None], cache)
    logits = filtered(logits.astype(jnp.float32))[:, 0]
    token = jax.vmap(_draw, in_axes=(0, 0, None))(keys, logits, i)
    return (token, cache), (token, jax.nn.softmax(logits))

  # the model also reads its last proposal, whose keys are needed if all proposals are accepted
  start = (state.last, state.caches[1])
  (_, cache), (tokens, q) = lax.scan(draw_next, start, (jnp.arange(real.shape[1]), real.T))
  return _Proposal(tokens[:-1].T, q[:-1].swapaxes(0, 1), cache)


def _check(read, filtered, constrain, state, keys, proposal: _Proposal, count, real):
  """Check the proposals with the large model.

  Returns:
    new: [B, n], the accepted proposals, then a token drawn from the large model.
    log_p: [B, n], log P of the new tokens.
    accepted: [B, n], which of the new tokens count.
    cache: of the large model.
  """
  (B, n), places = count.shape, jnp.arange(count.shape[1])[None]
  logits, cache = read(
    jnp.concatenate([state.last[:, None], proposal.tokens], axis=1), real, state.caches[0]
  )
  logits = allowed = logits.astype(jnp.float32)
  if constrain is not None:
    # at place i the row ends with the first i proposals
    rows = state.tokens.at[jnp.arange(B)[:, None], count[:, :-1]].set(proposal.tokens, mode='drop')
    allowed = constrain(logits, jnp.repeat(rows[:, None], n, axis=1), count)
  p = jax.nn.softmax(filtered(allowed))
  accepted, token = jax.vmap(_accept)(keys, p, proposal.q, proposal.tokens)
  padded = jnp.pad(proposal.tokens, ((0, 0), (0, 1)))
  new = jnp.where(places < accepted[:, None], padded, token[:, None])
  log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), new[..., None], axis=-1)[..., 0]
  if constrain is not None:  # -inf where every token is forbidden
    log_p = jnp.where(jnp.max(allowed, axis=-1) == -jnp.inf, -jnp.inf, log_p)
  return new, log_p, places <= accepted[:, None], cache


def _append(state, new, tokens, log_p, valid, ends, caches, pad) -> State:
  """Return the state with the valid new tokens."""
  steps, added = tokens.shape[1], jnp.sum(valid, axis=1)
  generated = state.generated + added
  last = jnp.take_along_axis(new, jnp.maximum(added - 1, 0)[:, None], axis=1)[:, 0]
  return State(
    round=state.round + 1,
    generated=generated,
    last=jnp.where(state.finished, state.last, last),
    tokens=jnp.where(jnp.arange(steps)[None] < generated[:, None], tokens, pad),
    scores=state.scores + jnp.sum(jnp.where(valid, log_p, 0), axis=1),
    finished=state.finished | jnp.any(ends & valid, axis=1) | (generated >= steps),
    caches=caches,
  )


def _draw(key, logits, position):
  """Draw a token by filtered logits; if only one token is allowed, that one."""
  return jax.random.categorical(jax.random.fold_in(key, position), logits).astype(jnp.int32)


def _accept(key, p, q, proposed):
  """Return (how many proposals of a row are accepted, the token after them).

  Args:
    key: of the row.
    p: distributions of the large model [n, N].
    q: distributions of the draft model [n - 1, N].
    proposed: tokens [n - 1].
  """
  places = jnp.arange(len(proposed))
  # _propose has used the numbers below len(p)
  accept_key, token_key = jax.random.split(jax.random.fold_in(key, len(p)))
  ratio = p[places, proposed] / q[places, proposed]
  accepted = jax.random.uniform(accept_key, ratio.shape) < ratio
  count = jnp.sum(jnp.cumprod(accepted))
  rest = jnp.maximum(p - jnp.pad(q, ((0, 1), (0, 0))), 0)[count]
  rest = jnp.where(jnp.sum(rest) > 0, rest, p[count])  # p = q, up to rounding
  return count, jax.random.categorical(token_key, jnp.log(rest)).astype(jnp.int32)
