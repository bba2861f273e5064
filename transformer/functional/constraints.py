"""Constraints on the next token of a search, like the logits processors of `transformers`.

A constraint is a function of one row that returns its changed logits, -inf for forbidden tokens. It
takes

  logits: [N]; log-probabilities in a beam search.
  tokens: [T], the prompt and the generated tokens, padded with -1 on the left.
  generated: the number of generated tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array, 'N']
Tokens = Int[Array, 'T']
Constraint = Callable[[Logits, Tokens, Int[Array, '']], Logits]


def combine(constraints: Sequence[Constraint]) -> Constraint:
  """Return the constraint that applies the given ones in order."""

  def combined(logits: Logits, tokens: Tokens, generated: Int[Array, '']) -> Logits:
    for constraint in constraints:
      logits = constraint(logits, tokens, generated)
    return logits

  return combined


def forbid(ids: Sequence[int], *, after: int = 0, before: int | None = None) -> Constraint:
  """Forbid the tokens `ids` where at least `after` and fewer than `before` tokens are generated.

  None for `before` is no limit. Ids outside the vocabulary are ignored.

  >>> forbid([1, 3], before=1)(jnp.arange(4.0), jnp.array([-1, 2]), 0).tolist()
  [0.0, -inf, 2.0, -inf]
  """

  def constraint(logits, tokens, generated):
    valid = [token for token in ids if 0 <= token < logits.size]
    forbidden = jnp.zeros(logits.size, bool).at[jnp.asarray(valid, jnp.int32)].set(True)
    applies = (generated >= after) & (before is None or generated < before)
    return jnp.where(forbidden & applies, -jnp.inf, logits)

  return constraint


def forbid_sequences(sequences: Sequence[Sequence[int]]) -> Constraint:
  """Forbid sequences of tokens: the last token of each, where the row ends with the others.

  Ids outside the vocabulary are ignored. The row includes the prompt.

  >>> forbid_sequences([[1, 0], [2]])(jnp.zeros(3), jnp.array([0, 1]), 2).tolist()
  [-inf, 0.0, -inf]
  """

  def constraint(logits, tokens, generated):
    for *before, last in sequences:
      n = len(before)
      if n <= tokens.size and 0 <= last < logits.size:
        follows = jnp.all(tokens[tokens.size - n :] == jnp.asarray(before, jnp.int32))
        logits = logits.at[last].set(jnp.where(follows, -jnp.inf, logits[last]))
    return logits

  return constraint


def force_prefix(prefix: Sequence[int]) -> Constraint:
  """Make the output begin with these tokens, at least one.

  Raises:
    ValueError: while tracing, if an id is outside the vocabulary.

  >>> force_prefix([2, 1])(jnp.zeros(3), jnp.array([-1, 2]), 1).tolist()
  [-inf, 0.0, -inf]
  """

  def constraint(logits, tokens, generated):
    if not all(0 <= token < logits.size for token in prefix):
      raise ValueError(f'prefix {prefix} has ids outside 0 to {logits.size - 1}: remove them')
    forced = jnp.asarray(prefix, jnp.int32)[jnp.minimum(generated, len(prefix) - 1)]
    excluded = (generated < len(prefix)) & (jnp.arange(logits.size) != forced)
    return jnp.where(excluded, -jnp.inf, logits)

  return constraint


def no_repeated_ngrams(n: int) -> Constraint:
  """Forbid tokens that would repeat an n-gram of the prompt or the output.

  Paulus et al. 2017, https://arxiv.org/abs/1705.04304, section 2.5.

  >>> no_repeated_ngrams(2)(jnp.zeros(4), jnp.array([1, 2, 3, 1]), 2).tolist()
  [0.0, 0.0, -inf, 0.0]
  """

  def constraint(logits, tokens, generated):
    count = tokens.size - n + 1
    if count < 1:
      return logits
    ngrams = tokens[jnp.arange(count)[:, None] + jnp.arange(n)[None]]
    repeats = jnp.all(ngrams[:, :-1] == tokens[None, tokens.size - n + 1 :], axis=1)
    return _set(logits, ngrams[:, -1], repeats & jnp.all(ngrams >= 0, axis=1), -jnp.inf)

  return constraint


def penalize_repetitions(penalty: float) -> Constraint:
  """Make the tokens of the prompt and the output less probable.

  Positive logits are divided by the penalty, negative ones multiplied by it. A beam search passes
  log-probabilities, which are never positive, so that the penalty has more effect there.

  Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1, who only divide.

  >>> penalize_repetitions(2.0)(jnp.array([4.0, 4.0, -4.0]), jnp.array([0, 2]), 2).tolist()
  [2.0, 4.0, -8.0]
  """

  def constraint(logits, tokens, generated):
    penalized = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return _set(logits, tokens, tokens >= 0, penalized)

  return constraint


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
  """A deterministic finite automaton over tokens; it starts in state 0.

  It is compared by identity, so that it can be a static argument of `jax.jit`.

  Attributes:
    transitions: for each state, a mapping from a token to the next state; other tokens are
      forbidden in that state.
  """

  transitions: Sequence[Mapping[int, int]]

  def __post_init__(self):
    targets = {state for edges in self.transitions for state in edges.values()}
    if wrong := sorted(state for state in targets if not 0 <= state < len(self.transitions)):
      raise ValueError(
        f'transitions lead to the states {wrong[:8]}, but there are {len(self.transitions)}: give '
        'each state its own entry, an empty one if nothing follows'
      )


def trie(sequences: Sequence[Sequence[int]], end: int) -> Automaton:
  """Return the automaton that allows these sequences, each followed by the token `end`.

  >>> trie([[4, 5], [4]], end=2).transitions
  [{4: 1}, {5: 2, 2: 3}, {2: 3}, {}]
  """
  transitions: list[dict[int, int]] = [{}]
  last_states = []
  for sequence in sequences:
    state = 0
    for token in sequence:
      if token not in transitions[state]:
        transitions[state][token] = len(transitions)
        transitions.append({})
      state = transitions[state][token]
    last_states.append(state)
  for state in last_states:
    transitions[state][end] = len(transitions)
  return Automaton([*transitions, {}])


def follow(automaton: Automaton) -> Constraint:
  """Allow only the generated tokens that an automaton accepts.

  Every token is forbidden once a row has left the automaton or reached a state without transitions.
  The state is computed from all generated tokens at every step, which takes little time compared
  with the model.

  >>> follow(trie([[1, 0], [1, 3]], end=2))(jnp.zeros(4), jnp.array([3, 1]), 1).tolist()
  [0.0, -inf, -inf, 0.0]
  """
  edges = [sorted(edges.items()) for edges in automaton.transitions]
  sizes = [len(pairs) for pairs in edges]
  starts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
  # the token and the next state of each edge, both [edges]; edges of one state are adjacent
  tokens, targets = np.array([(-1, -1), *(e for pairs in edges for e in pairs)], np.int32)[1:].T
  max_size = max(1, *sizes)

  def constraint(logits, history, generated):
    def edges_of(state):
      index = jnp.asarray(starts)[state] + jnp.arange(max_size)
      valid = (jnp.arange(max_size) < jnp.asarray(sizes, jnp.int32)[state]) & (state >= 0)
      index = jnp.minimum(index, len(tokens) - 1)
      return jnp.where(valid, jnp.asarray(tokens)[index], -1), jnp.asarray(targets)[index]

    def read(i, state):
      allowed, next_states = edges_of(state)
      taken = (allowed == history[history.size - generated + i]) & (allowed >= 0)
      return jnp.where(jnp.any(taken), jnp.sum(jnp.where(taken, next_states, 0)), -1)

    state = jax.lax.fori_loop(0, generated, read, jnp.int32(0))
    allowed, _ = edges_of(state)
    return _set(jnp.full_like(logits, -jnp.inf), allowed, allowed >= 0, logits)

  return constraint


def _set(logits: Logits, ids: Tokens, where: Bool[Array, 'T'], values: Logits | float) -> Logits:
  """Return the logits, replaced by `values` [N] at the tokens ids[where]."""
  # one extra element, for the ids where `where` is False
  chosen = jnp.zeros(logits.size + 1, bool).at[jnp.where(where, ids, logits.size)].set(True)
  return jnp.where(chosen[:-1], values, logits)


def on_rows(
  constraint: Constraint, prompts: Int[Array, 'B P']
) -> Callable[[Float[Array, 'R N'], Int[Array, 'R steps'], Int[Array, '']], Float[Array, 'R N']]:
  """Return a constraint mapped over the rows of a search, for its argument `constrain`.

  Args:
    constraint: of one row.
    prompts: padded with -1 on the left. Prompt b belongs to rows b W to b W + W - 1, where R = B W.
  """

  def constrain(logits, tokens, generated):
    rows = history(prompts, tokens, generated)
    return jax.vmap(constraint, in_axes=(0, 0, None))(logits, rows, generated)

  return constrain


def history(
  prompts: Int[Array, 'B P'], tokens: Int[Array, 'R steps'], generated: Int[Array, '']
) -> Int[Array, 'R P+steps']:
  """Return the prompt and the generated tokens of each row, padded with -1 on the left.

  Args:
    prompts: as in `on_rows`.
    tokens: the generated tokens of a search.
    generated: their number; later ones are ignored.
  """
  steps = tokens.shape[1]
  so_far = jnp.where(jnp.arange(steps) < generated, tokens, -1)
  before = jnp.repeat(prompts, len(tokens) // len(prompts), axis=0)
  # roll the empty places from the right to the left
  return jnp.roll(jnp.concatenate([before, so_far], axis=1), steps - generated, axis=1)
