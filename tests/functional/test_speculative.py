"""Speculative decoding, on a table of probabilities in place of models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional import constraints, search
from transformer.functional.speculative import speculate

N, STEPS, EOS = 5, 6, 0
GREEDY = dict(temperature=0.0)


def tables(rng):
  """Logits of the next token after each token, of a large and of a small model."""
  return 2 * rng.normal(size=(N, N)), 2 * rng.normal(size=(N, N))


def reader(table):
  return lambda tokens, real, cache: (jnp.asarray(table)[tokens], cache)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def speculated(tables, first, keys, lookahead, filters, automaton=None):
  large, small = tables
  constrain = None
  if automaton is not None:

    def constrain(logits, tokens, generated):
      follow = constraints.on_rows(constraints.follow(automaton), jnp.full((1, 1), -1))
      one = jax.vmap(lambda x, row, n: follow(x[None], row[None], n)[0])
      return jax.vmap(one)(logits, tokens, generated)

  return speculate(
    *(reader(large), reader(small), ((), ()), first, keys),
    keep=lambda cache, kept: cache,
    lookahead=lookahead,
    steps=STEPS,
    eos=EOS,
    constrain=constrain,
    filters=dict(filters),
  )


@pytest.mark.parametrize('lookahead', [pytest.param(1, marks=pytest.mark.slow), 3])
def test_greedy_is_that_of_the_large_model(rng, lookahead, close):
  both, first = tables(rng), jnp.arange(1, N)
  keys = jax.random.split(jax.random.key(0), len(first))
  step = lambda tokens, cache: (jnp.asarray(both[0])[tokens], cache)  # noqa: E731
  expected, scores = search.greedy(step, (), first, steps=STEPS, eos=EOS, pad=-1)
  found = speculated(both, first, keys, lookahead, tuple(GREEDY.items()))
  np.testing.assert_array_equal(found[0], expected)
  close(found[1], scores)


def test_a_constraint_holds(rng):
  both, first = tables(rng), jnp.arange(1, N)
  keys = jax.random.split(jax.random.key(0), len(first))
  automaton = constraints.trie([[3, 1, 4], [3, 2]], end=EOS)
  found, _ = speculated(both, first, keys, 3, tuple(GREEDY.items()), automaton)
  allowed = ([3, 1, 4, EOS, -1, -1], [3, 2, EOS, -1, -1, -1])
  assert all(row in allowed for row in found.tolist())
  step = lambda tokens, cache: (jnp.asarray(both[0])[tokens], cache)  # noqa: E731
  constrain = constraints.on_rows(constraints.follow(automaton), jnp.full((len(first), 1), -1))
  how = dict(steps=STEPS, eos=EOS, pad=-1, constrain=constrain)
  np.testing.assert_array_equal(found, search.greedy(step, (), first, **how)[0])


def test_samples_have_the_distribution_of_the_large_model(rng):
  """Of pairs of tokens, by their frequencies among 20,000 rows."""
  both, rows = tables(rng), 20_000
  both[0][:, EOS] = -30  # no row ends
  keys = jax.random.split(jax.random.key(1), rows)
  filters = dict(temperature=0.8, top_k=3)
  found, _ = speculated(both, jnp.full(rows, 2), keys, 2, tuple(filters.items()))
  p = np.asarray(jax.nn.softmax(jax.vmap(lambda x: search.filter_logits(x, **filters))(both[0])))
  for place in range(1, 4):
    before = np.linalg.matrix_power(p, place)[2]
    expected = before[:, None] * p
    pairs = np.asarray(found)[:, place - 1 : place + 1]
    frequencies = np.zeros((N, N))
    np.add.at(frequencies, tuple(pairs.T), 1 / rows)
    assert np.abs(frequencies - expected).max() < 5 * np.sqrt(0.25 / rows)
