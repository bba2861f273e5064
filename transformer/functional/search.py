"""Greedy, sampled and beam search over a function step(tokens, cache) -> (logits, cache).

`step` takes the last token of each row and a cache of the earlier ones (any pytree). It returns the
logits of the next token and the new cache. Rows must not depend on each other. Each search is one
`lax.while_loop`, which ends when every row has ended: call it inside `jax.jit`, or JAX compiles the
loop in every call. Besides `step` and `cache` every search takes

  first: [B], the token each row starts from; not part of the result.
  steps: the largest number of tokens to generate.
  eos: the end token, or a tuple of them; it is part of the result. -1 for none.
  pad: written after the end token, and passed to `step` for rows that have ended; 0 by default, or
    -1 if 0 is an end token.
  constrain: f(logits, tokens, position) returns logits with -inf for forbidden tokens; `tokens`
    [R, steps] are those generated before `position`; R is B, or B W in a beam search. None allows
    every token. See functional.constraints. Greedy search and sampling return scores of the
    unchanged logits. A beam search passes log-probabilities; it ranks and scores hypotheses by the
    result of `constrain`, without normalizing it.
  stop: f(tokens, position) returns which rows end with the token at `position`, in addition to
    those with an end token; `tokens` as for `constrain`. None for end tokens only.

All but `first`, `constrain` and `stop` are Python numbers; invalid ones raise ValueError.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Step = Callable[[Int[Array, 'B'], PyTree], tuple[Float[Array, 'B N'], PyTree]]
Constrain = Callable[
  [Float[Array, 'R N'], Int[Array, 'R steps'], Int[Array, '']], Float[Array, 'R N']
]
Stop = Callable[[Int[Array, 'R steps'], Int[Array, '']], Bool[Array, 'R']]
Ends = int | tuple[int, ...]
Choose = Callable[[Float[Array, 'B N'], Int[Array, '']], Int[Array, 'B']]


def greedy(
  step: Step,
  cache: PyTree,
  first: Int[Array, 'B'],
  *,
  steps: int,
  eos: Ends,
  pad: int | None = None,
  constrain: Constrain | None = None,
  stop: Stop | None = None,
) -> tuple[Int[Array, 'B steps'], Float[Array, 'B']]:
  """Greedy search: y_t = argmax_n log P(n | y_<t); ties go to the lowest token.

  Returns:
    The generated tokens, and log P of each row in nats: the sum over its tokens, eos included.

  >>> p = jnp.array([[0.0, 0.6, 0.4], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
  >>> step = lambda tokens, cache: (jnp.log(p[tokens]), cache)
  >>> tokens, scores = greedy(step, (), jnp.array([0, 2]), steps=3, eos=0, pad=-1)
  >>> tokens.tolist(), jnp.exp(scores)
  ([[1, 0, -1], [0, -1, -1]], Array([0.3, 0.9], dtype=float32))
  """
  pad = _checked_pad(first, steps, eos, pad)
  choose = lambda logits, _: argmax(logits)  # noqa: E731
  return _generate(step, cache, first, choose, steps, eos, pad, constrain, stop)


def sample(
  step: Step,
  cache: PyTree,
  first: Int[Array, 'B'],
  keys: Key[Array, 'B'],
  *,
  steps: int,
  eos: Ends,
  pad: int | None = None,
  constrain: Constrain | None = None,
  stop: Stop | None = None,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> tuple[Int[Array, 'B steps'], Float[Array, 'B']]:
  """Sampling: y_t ~ P(n | y_<t) after `filter_logits`; temperature 0 is `greedy`.

  Args:
    keys: one for each row, as from `jax.random.split(key, B)`. The tokens of a row depend on its
      own key only, not on the other rows.

  Returns:
    The generated tokens, and log P of each row by the unfiltered logits.

  >>> dice = lambda tokens, cache: (jnp.zeros((len(tokens), 6)), cache)
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> tokens, scores = sample(dice, (), jnp.array([0, 0]), keys, steps=3, eos=-1)
  >>> tokens.shape, jnp.exp(-scores).round()
  ((2, 3), Array([216., 216.], dtype=float32))
  """
  pad = _checked_pad(first, steps, eos, pad)
  if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != first.shape:
    raise ValueError(
      f'sample takes a typed key for each row, {list(first.shape)}, not {keys.dtype}'
      f'{list(keys.shape)}: pass jax.random.split(jax.random.key(seed), {first.shape[0]})'
    )
  filters = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

  def choose(logits, position):
    return draw(keys, logits, position, **filters)

  return _generate(step, cache, first, choose, steps, eos, pad, constrain, stop)


def argmax(logits: Float[Array, 'B N']) -> Int[Array, 'B']:
  """Return the token that `greedy` chooses for each row: the lowest of the most probable.

  >>> argmax(jnp.array([[0., 2., 2.], [5., 1., 0.]])).tolist()
  [1, 0]
  """
  return largest(logits, 1)[1][:, 0]


def draw(
  keys: Key[Array, 'B'], logits: Float[Array, 'B N'], position: Int[Array, ''] | int, **filters
) -> Int[Array, 'B']:
  """Return the token that `sample` chooses for each row at a position.

  `filters` are the arguments of `filter_logits`.

  >>> keys = jax.random.split(jax.random.key(0), 1)
  >>> draw(keys, jnp.array([[0., 2., 1.]]), 0, top_k=1).tolist()
  [1]
  """

  def draw_one(key, logits):
    return jax.random.categorical(
      jax.random.fold_in(key, position), filter_logits(logits, **filters)
    )

  return over_rows(draw_one, keys)(keys, logits)


def over_rows(f: Callable, key: Key[Array, '...']) -> Callable:
  """Return f mapped over rows, so that the random bits of a row depend on its own key only.

  That is `jax.vmap` for Threefry keys. Under vmap other generators ('rbg', 'unsafe_rbg') take the
  bits of all rows from the first key, so for them the rows are computed one after another.

  Args:
    f: a function of one row that draws random numbers.
    key: any key of the generator in use.

  >>> keys = jax.random.split(jax.random.key(0, impl='rbg'), 3)
  >>> draws = over_rows(jax.random.normal, keys)
  >>> bool((draws(keys)[1:] == draws(keys[1:])).all())
  True
  """
  if jax.random.key_impl(key) == 'threefry2x32':
    return jax.vmap(f)
  return lambda *rows: lax.map(lambda row: f(*row), rows)


def filter_logits(
  logits: Float[Array, 'N'],
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> Float[Array, 'N']:
  """Return the logits of one row / temperature, with -inf for tokens that the filters exclude.

  The filters apply in the order of the arguments, each to the tokens that the earlier ones keep.

  Args:
    temperature: below 1 sharpens the distribution, above 1 flattens it; 0 keeps only the most
      probable token.
    top_k: keeps the k most probable tokens; 0 keeps all (Fan et al. 2018).
    top_p: keeps the smallest set of most probable tokens with total probability >= top_p (nucleus
      sampling; Holtzman et al. 2020, section 3.1).
    min_p: keeps tokens at least min_p times as probable as the best (Nguyen et al. 2024).

  Returns:
    float32 logits, shifted so that the largest is 0. At least one token is kept.

  Raises:
    ValueError: temperature < 0, top_k < 0, top_p not in (0, 1] or min_p not in [0, 1].

  >>> p = jnp.array([0.4, 0.1, 0.2, 0.3])
  >>> jnp.exp(filter_logits(jnp.log(p), top_p=0.6))
  Array([1.  , 0.  , 0.  , 0.75], dtype=float32)
  """
  check_filters(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
  if temperature == 0:
    temperature, top_k = 1.0, 1
  logits = logits.astype(jnp.float32)
  # shifted first, or a temperature near 0 overflows
  logits = (logits - jnp.max(logits)) / temperature
  if top_k or top_p < 1:
    # by rank and not by threshold, which would keep more than k of equally probable tokens
    ranked, tokens = lax.top_k(logits, min(top_k or logits.size, logits.size))
    if top_p < 1:
      p = jax.nn.softmax(ranked)
      mass_before = jnp.cumsum(p) - p
      ranked = jnp.where(mass_before < top_p, ranked, -jnp.inf)
    logits = jnp.full_like(logits, -jnp.inf).at[tokens].set(ranked)
  return jnp.where(logits >= jnp.log(min_p), logits, -jnp.inf)


def check_filters(*, temperature: float, top_k: int, top_p: float, min_p: float):
  """Raise ValueError if an argument of `filter_logits` is out of its range."""
  if not temperature >= 0:
    raise ValueError(f'temperature {temperature} is negative: pass 0 (greedy) or more')
  if top_k < 0:
    raise ValueError(f'top_k {top_k} is negative: pass 0 to keep every token')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p {top_p} is not a mass in (0, 1]: pass 1 to keep every token')
  if not 0 <= min_p <= 1:
    raise ValueError(f'min_p {min_p} is not a ratio in [0, 1]: pass 0 to keep every token')


def largest(
  x: Float[Array, 'B N'], k: int, *, chunk_size: int = 64
) -> tuple[Float[Array, 'B k'], Int[Array, 'B k']]:
  """Return the k largest values of each row and their indices, as `lax.top_k` does.

  For large N and small k it takes a tenth of the time of `lax.top_k` on a CPU, because the k
  largest values are in the k chunks with the largest maxima.

  Args:
    x: without NaN; a row with NaN gets any k values.
    k: how many; ties go to the lowest index.
    chunk_size: number of values in a chunk.

  >>> largest(jnp.array([[3., 9., 9., 1.]]), 2, chunk_size=1)[1]
  Array([[1, 2]], dtype=int32)
  """
  (B, N), size, count = x.shape, chunk_size, -(-x.shape[-1] // chunk_size)
  if count <= k:
    best, places = lax.top_k(x, k)
    return best, places
  x = jnp.pad(x, ((0, 0), (0, count * size - N)), constant_values=-jnp.inf)
  x = x.reshape(B, count, size)
  chunks = jnp.sort(lax.top_k(jnp.max(x, axis=-1), k)[1])  # sorted, so that ties stay in order
  best, places = lax.top_k(jnp.take_along_axis(x, chunks[:, :, None], axis=1).reshape(B, -1), k)
  tokens = jnp.take_along_axis(chunks, places // size, axis=1) * size + places % size
  return best, jnp.minimum(tokens, N - 1)  # a NaN may rank below the padding


class Rows(NamedTuple):
  """The state of greedy search or sampling, with one sequence for each row."""

  position: Int[Array, '']
  last: Int[Array, 'B']
  tokens: Int[Array, 'B steps']
  scores: Float[Array, 'B']
  finished: Bool[Array, 'B']
  cache: PyTree


def first_rows(first: Int[Array, 'B'], steps: int, pad: int, cache: PyTree) -> Rows:
  """Return the state before the first token; arguments as in a search."""
  batch = first.shape[0]
  tokens = jnp.full((batch, steps), pad, jnp.int32)
  scores, finished = jnp.zeros(batch, jnp.float32), jnp.zeros(batch, bool)
  return Rows(jnp.int32(0), first.astype(jnp.int32), tokens, scores, finished, cache)


def extend_rows(
  rows: Rows,
  step: Step,
  choose: Choose,
  eos: Ends,
  pad: int,
  constrain: Constrain | None,
  stop: Stop | None = None,
) -> Rows:
  """Return the state after one more token of every row, chosen by `choose(logits, position)`.

  `eos`, `pad`, `constrain` and `stop` are as in a search.
  """
  logits, cache = step(rows.last, rows.cache)
  logits = logits.astype(jnp.float32)
  allowed = logits if constrain is None else constrain(logits, rows.tokens, rows.position)
  token = choose(allowed, rows.position).astype(jnp.int32)
  log_p = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
  log_p -= jax.nn.logsumexp(logits, axis=-1)
  if constrain is not None:  # -inf where every token is forbidden
    log_p = jnp.where(jnp.max(allowed, axis=-1) == -jnp.inf, -jnp.inf, log_p)
  token = jnp.where(rows.finished, pad, token)
  tokens = rows.tokens.at[:, rows.position].set(token)
  ends = is_end(token, eos)
  return Rows(
    position=rows.position + 1,
    last=token,
    tokens=tokens,
    scores=jnp.where(rows.finished, rows.scores, rows.scores + log_p),
    finished=rows.finished | (ends if stop is None else ends | stop(tokens, rows.position)),
    cache=cache,
  )


def _generate(step, cache, first, choose, steps, eos, pad, constrain, stop):
  """Extend every row until all have ended; return the tokens and the scores."""
  rows = lax.while_loop(
    lambda rows: (rows.position < steps) & ~jnp.all(rows.finished),
    lambda rows: extend_rows(rows, step, choose, eos, pad, constrain, stop),
    first_rows(first, steps, pad, cache),
  )
  return rows.tokens, rows.scores


def take_rows(tree: PyTree, rows: Int[Array, 'R'], *, axis: int = 0) -> PyTree:
  """Return the tree with new[r] = old[rows[r]] for every array; scalars do not change.

  Every array must have as many rows as `rows`, on the given axis. For an axis of layers before the
  rows: `functools.partial(take_rows, axis=1)`.

  Raises:
    ValueError: an array has another number of rows.

  >>> take_rows({'k': jnp.array([5, 6, 7])}, jnp.array([2, 2, 0]))['k'].tolist()
  [7, 7, 5]
  """

  def take(leaf):
    if jnp.ndim(leaf) == 0:
      return leaf
    if jnp.shape(leaf)[axis : axis + 1] != rows.shape:
      raise ValueError(
        f'the cache has an array {list(jnp.shape(leaf))} without {rows.size} rows (batch * beams) '
        f'on axis {axis}: pass repeat_rows(cache, beams), or your own reorder(cache, rows)'
      )
    return jnp.take(leaf, rows, axis=axis, mode='clip')

  return jax.tree.map(take, tree)


def repeat_rows(tree: PyTree, beams: int, *, axis: int = 0) -> PyTree:
  """Return the tree with every row repeated `beams` times in place; scalars do not change.

  >>> repeat_rows({'k': jnp.array([5, 6])}, 3)['k'].tolist()
  [5, 5, 5, 6, 6, 6]
  """
  return jax.tree.map(
    lambda leaf: jnp.repeat(leaf, beams, axis=axis) if jnp.ndim(leaf) else leaf, tree
  )


class Beams(NamedTuple):
  """The state of a beam search: W live prefixes and W finished hypotheses, each best first.

  An empty slot has a log P (live) or score (finished) of -inf.
  """

  position: Int[Array, '']
  last: Int[Array, 'B W']
  live_tokens: Int[Array, 'B W steps']
  live_log_p: Float[Array, 'B W']
  finished_tokens: Int[Array, 'B W steps']
  finished_scores: Float[Array, 'B W']
  cache: PyTree


def beam_search(
  step: Step,
  cache: PyTree,
  first: Int[Array, 'B'],
  *,
  beams: int,
  steps: int,
  eos: Ends,
  pad: int | None = None,
  constrain: Constrain | None = None,
  stop: Stop | None = None,
  alpha: float = 0.0,
  length_penalty: float = 0.0,
  early_stopping: bool | str = 'never',
  reorder: Callable[[PyTree, Int[Array, 'B*W']], PyTree] = take_rows,
) -> tuple[Int[Array, 'B W steps'], Float[Array, 'B W']]:
  """Beam search for the y of highest log P(y) / (((5 + |y|) / 6)^alpha |y|^length_penalty).

  In each step all one-token extensions of the W live prefixes are ranked. Those among the best W
  that end become finished hypotheses; the best W that do not end stay live. A hypothesis of `steps`
  tokens is finished. One beam with alpha 0 is `greedy`.

  Args:
    step: takes B * beams rows; beam w of row b is row b * beams + w.
    cache: of B * beams rows, as from `repeat_rows(cache, beams)`.
    beams: W, the number of live prefixes and of hypotheses returned.
    alpha: 0 ranks by log P, larger values prefer longer outputs; |y| includes eos.
    length_penalty: the exponent of that name in `transformers`; usually it or alpha is 0.
    early_stopping: when a row ends. 'never': once no live prefix can enter its n-best list. False:
      once none could if it ended now. True: once its list is full. Both as in `transformers`.
    reorder: f(cache, rows) returns the cache with old row rows[r] as new row r.

  Returns:
    The n-best list of each row, best first, and its scores. Missing hypotheses are `pad`, with
    scores -inf.

  Raises:
    ValueError: beams < 1, alpha < 0, early_stopping is not one of the three values, or an array of
      the cache does not have B * beams rows.

  Wu et al. 2016, equation 14, without the coverage term; Vaswani et al. 2017: beams 4, alpha 0.6.

  >>> p = jnp.array([[0.0, 0.6, 0.4], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
  >>> step = lambda tokens, cache: (jnp.log(p[tokens]), cache)
  >>> tokens, scores = beam_search(step, (), jnp.array([0]), beams=2, steps=3, eos=0, pad=-1)
  >>> tokens.tolist(), (100 * jnp.exp(scores)).round()
  ([[[2, 0, -1], [1, 0, -1]]], Array([[36., 30.]], dtype=float32))
  """
  pad = _checked_pad(first, steps, eos, pad)
  _check_beams(beams, alpha, early_stopping)
  # a cache of a wrong size raises the error of reorder, not one from inside step
  jax.eval_shape(reorder, cache, jnp.arange(len(first) * beams))
  penalties, divisors = _length_penalties(steps, alpha, length_penalty, early_stopping)
  settings = (penalties, divisors, early_stopping is True, eos, constrain, stop)
  state = lax.while_loop(
    lambda state: jnp.any(state.live_log_p != -jnp.inf),
    lambda state: _extend_beams(state, step, reorder, *settings),
    _first_beams(first, beams, steps, pad, cache),
  )
  return state.finished_tokens, state.finished_scores


def _length_penalties(
  steps: int, alpha: float, length_penalty: float, early_stopping: bool | str
) -> tuple[Float[Array, 'steps'], Float[Array, 'steps']]:
  """Return (penalties, divisors) for prefixes of 1, 2, ... `steps` tokens.

  The score of a hypothesis is its log P / penalty. The best score that a live prefix can still
  reach is estimated as its log P / divisor.
  """
  lengths = jnp.arange(1, steps + 1, dtype=jnp.float32)
  penalties = ((5 + lengths) / 6) ** alpha
  if length_penalty:
    penalties *= lengths**length_penalty
  divisors = lax.cummax(penalties, reverse=True) if early_stopping == 'never' else penalties
  return penalties, divisors


def _check_beams(beams: int, alpha: float, early_stopping: bool | str):
  if beams < 1:
    raise ValueError(f'beams {beams} keeps no hypothesis: pass 1 or more')
  if not alpha >= 0:
    raise ValueError(f'alpha {alpha} is negative, so that no row could end early: pass 0 or more')
  if early_stopping not in (True, False, 'never'):
    raise ValueError(f"early_stopping {early_stopping!r}: pass True, False or 'never'")


def _first_beams(first: Int[Array, 'B'], beams: int, steps: int, pad: int, cache: PyTree) -> Beams:
  """Return the state before the first token: one live prefix in each row, and no hypothesis."""
  tokens = jnp.full((len(first), beams, steps), pad, jnp.int32)
  empty = jnp.full((len(first), beams), -jnp.inf, jnp.float32)
  last = jnp.repeat(first.astype(jnp.int32)[:, None], beams, axis=1)
  return Beams(jnp.int32(0), last, tokens, empty.at[:, 0].set(0.0), tokens, empty, cache)


def _extend_beams(
  state: Beams, step, reorder, penalties, divisors, when_full, eos, constrain, stop
) -> Beams:
  """Extend every beam by one token: some hypotheses finish, the best others stay live.

  Args:
    state, step, reorder, eos, constrain, stop: as in `beam_search`.
    penalties, divisors: from `_length_penalties`.
    when_full: whether a row ends once its n-best list is full (early_stopping=True).
  """
  (batch, beams), steps = state.last.shape, len(penalties)
  logits, cache = step(state.last.reshape(-1), state.cache)
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  if constrain is not None:
    logits = constrain(logits - log_z, state.live_tokens.reshape(-1, steps), state.position)
    log_z = jnp.zeros_like(log_z)
  # each of the W prefixes may end in each of E end tokens, and W others are needed
  count = beams * max(1 + len(as_tuple(eos)), 2 if stop else 1)
  log_p, parents, tokens = _best_extensions(logits, log_z, state.live_log_p, count)
  sequences = _pick(state.live_tokens, parents).at[:, :, state.position].set(tokens)
  ends = is_end(tokens, eos) | (state.position == steps - 1)
  if stop is not None:
    ends |= stop(sequences.reshape(-1, steps), state.position).reshape(ends.shape)

  ended = jnp.where(ends, log_p / penalties[state.position], -jnp.inf)[:, :beams]
  scores, winners = lax.top_k(jnp.concatenate([state.finished_scores, ended], axis=1), beams)
  finished = jnp.concatenate([state.finished_tokens, sequences[:, :beams]], axis=1)

  log_p, survivors = lax.top_k(jnp.where(ends, -jnp.inf, log_p), beams)
  # log P only falls, so no later score is above log P / the largest later penalty
  settled = scores[:, -1] >= log_p[:, 0] / divisors[state.position]
  if when_full:
    settled = scores[:, -1] != -jnp.inf
  parents = _pick(parents, survivors)
  return Beams(
    position=state.position + 1,
    last=_pick(tokens, survivors),
    live_tokens=_pick(sequences, survivors),
    live_log_p=jnp.where(settled[:, None], -jnp.inf, log_p),
    finished_tokens=_pick(finished, winners),
    finished_scores=scores,
    cache=reorder(cache, (jnp.arange(batch)[:, None] * beams + parents).reshape(-1)),
  )


def _best_extensions(
  logits: Float[Array, 'R N'], log_z: Float[Array, 'R 1'], so_far: Float[Array, 'B W'], count: int
) -> tuple[Float[Array, 'B C'], Int[Array, 'B C'], Int[Array, 'B C']]:
  """Return (log P, beam, token) of the `count` best extensions of each row.

  log P of a token is its logit - log_z, for R = B W rows; `so_far` is log P of the prefixes.
  """
  batch, beams = so_far.shape
  # logits must be float32: XLA's CPU backend has a fast top_k for no other dtype
  best, tokens = largest(logits, min(count, logits.shape[-1]))
  log_p = best - log_z
  log_p = so_far[..., None] + log_p.reshape(batch, beams, -1)
  # top_k would rank a negative NaN last and hide it
  log_p = jnp.where(jnp.isnan(log_p), jnp.nan, log_p)
  # the cache of an empty slot may hold anything, so its NaN is no error
  log_p = jnp.where(so_far[..., None] == -jnp.inf, -jnp.inf, log_p).reshape(batch, -1)
  log_p, candidates = lax.top_k(log_p, min(count, log_p.shape[1]))
  return log_p, candidates // best.shape[-1], _pick(tokens.reshape(batch, -1), candidates)


def as_tuple(eos: Ends) -> tuple[int, ...]:
  """Return the end tokens as a tuple; () for -1 (none)."""
  return eos if isinstance(eos, tuple) else () if eos == -1 else (eos,)


def is_end(tokens: Int[Array, '*B'], eos: Ends) -> Bool[Array, '*B']:
  """Return which tokens are end tokens.

  >>> is_end(jnp.array([3, 5]), (4, 5)).tolist()
  [False, True]
  """
  ends = jnp.asarray(as_tuple(eos), jnp.int32).reshape(*[1] * tokens.ndim, -1)
  return jnp.any(tokens[..., None] == ends, axis=-1)


def _pick(slots: Int[Array, 'B W ...'], chosen: Int[Array, 'B C']) -> Int[Array, 'B C ...']:
  return jax.vmap(lambda slot, choice: slot[choice])(slots, chosen)


def _checked_pad(first, steps, eos, pad):
  """Check the arguments of a search and return the padding token."""
  if first.ndim != 1:
    raise ValueError(f'first is {list(first.shape)}: pass one start token for each row, [B]')
  if steps < 1:
    raise ValueError(f'steps {steps} generates nothing: pass 1 or more')
  if pad is None:
    return -1 if 0 in as_tuple(eos) else 0  # some published models end with token 0
  if pad in as_tuple(eos):
    raise ValueError(f'pad {pad} is an end token, too (eos={eos}): pass another pad')
  return pad
