"""Laws of greedy, sampled and beam search, over random models whose cache is all they read."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional.search import (
  beam_search,
  filter_logits,
  greedy,
  largest,
  repeat_rows,
  sample,
  take_rows,
)

CLOSE = dict(rtol=1e-5, atol=1e-5)
EOS, PAD, FIRST = 1, -7, 2
SEARCHES = dict(greedy=greedy, sample=sample, beam_search=beam_search)


def random_model(seed, batch=3, vocabulary=4, length=4, eos_bonus=0.0):
  """Weights [length N N] and a context [batch N] that makes every sentence a different one."""
  rng = np.random.default_rng(seed)
  context = rng.normal(size=(batch, vocabulary))
  bonus = np.where(np.arange(vocabulary) == EOS, eos_bonus, 0.0)
  return dict(read=rng.normal(size=(length, vocabulary, vocabulary)), bonus=bonus), context


def logits_after(weights, context, history):
  """The oracle: float64, from the whole history at once."""
  read = sum(weights['read'][t, token] for t, token in enumerate(history))
  return 2 * np.sin(2 * (read + context)) + weights['bonus']


def make_step(weights, dtype=jnp.float32):
  """The same from a cache, one token at a time."""
  weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weights)

  def step(tokens, cache):
    rows = jnp.arange(len(tokens))
    history = cache['history'].at[rows, cache['length']].set(tokens)
    length = cache['length'] + 1
    steps = jnp.arange(history.shape[1])
    read = weights['read'][steps, history] * (steps < length[:, None])[..., None]
    logits = 2 * jnp.sin(2 * (read.sum(axis=1) + cache['context'])) + weights['bonus']
    return logits.astype(dtype), cache | dict(history=history, length=length)

  return step


def make_cache(context, length):
  return dict(
    history=jnp.zeros((len(context), length), jnp.int32),
    length=jnp.zeros(len(context), jnp.int32),
    context=jnp.asarray(context, jnp.float32),
    scalar=jnp.int32(0),
  )


@partial(jax.jit, static_argnames=['name', 'dtype', 'steps', 'beams', 'settings'])
def search(name, weights, context, keys=None, dtype=jnp.float32, steps=4, beams=None, settings=()):
  """One of SEARCHES on every row of context, compiled; settings are (name, value) pairs."""
  cache, keyed = make_cache(context, steps), () if keys is None else (keys,)
  settings = dict(settings) | dict(steps=steps, eos=EOS, pad=PAD)
  if beams:
    cache, settings = repeat_rows(cache, beams), settings | dict(beams=beams)
  first = jnp.full(len(context), FIRST)
  return SEARCHES[name](make_step(weights, dtype), cache, first, *keyed, **settings)


def run(name, weights, context, *args, **settings):
  fixed = {k: settings.pop(k) for k in ['dtype', 'steps', 'beams'] if k in settings}
  found = search(name, weights, context, *args, **fixed, settings=tuple(settings.items()))
  return jax.tree.map(np.asarray, found)


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def log_probability(weights, context, tokens):
  """Teacher forcing: reads the start and every token before, scores the next, until eos."""
  history, total = [FIRST], 0.0
  for token in tokens:
    total += log_softmax(logits_after(weights, context, history))[token]
    history.append(token)
  return total


def until_eos(tokens):
  """The tokens without padding; asserts that there is nothing but padding after eos."""
  tokens = [int(token) for token in tokens]
  length = tokens.index(EOS) + 1 if EOS in tokens else len(tokens)
  assert tokens[length:] == [PAD] * (len(tokens) - length)
  return tokens[:length]


def penalty(length, alpha):
  return ((5 + length) / 6) ** alpha


def enumerate_all(weights, context, steps, alpha):
  """Every sentence there is, best first: [(score, tokens)]."""
  vocabulary = range(len(context))
  sentences = set()
  for tokens in itertools.product(vocabulary, repeat=steps):
    sentences.add(tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens)
  scored = [
    (log_probability(weights, context, tokens) / penalty(len(tokens), alpha), list(tokens))
    for tokens in sentences
  ]
  return sorted(scored, reverse=True)


def reference_beam_search(weights, context, beams, steps, alpha):
  """Beam search on lists that never stops early: [(score, tokens)], best first."""
  alive, finished = [(0.0, [])], []
  for length in range(1, steps + 1):
    candidates = []
    for log_p, tokens in alive:
      step_log_p = log_softmax(logits_after(weights, context, [FIRST, *tokens]))
      candidates += [(log_p + step_log_p[n], [*tokens, n]) for n in range(len(context))]
    candidates.sort(reverse=True)
    finished += [
      (log_p / penalty(length, alpha), tokens)
      for log_p, tokens in candidates[:beams]
      if tokens[-1] == EOS or length == steps
    ]
    alive = [c for c in candidates if c[1][-1] != EOS][:beams]
  return sorted(finished, reverse=True)[:beams]


def assert_n_best(found_tokens, found_scores, expected):
  """Found [W steps] and [W] is the expected list, and empty slots after it."""
  real = len(expected)
  assert [until_eos(tokens) for tokens in found_tokens[:real]] == [tokens for _, tokens in expected]
  np.testing.assert_allclose(found_scores[:real], [score for score, _ in expected], **CLOSE)
  assert (found_scores[real:] == -np.inf).all()
  assert (found_tokens[real:] == PAD).all()


@pytest.mark.parametrize('distinct', [3, 1000])  # few: all are equals
@pytest.mark.parametrize('shape, k, size', [((4, 40), 5, 4), ((3, 41), 1, 8), ((2, 7), 7, 3)])
def test_largest_is_top_k_in_its_order_of_equals(shape, k, size, distinct, rng):
  x = rng.integers(-distinct, 0, size=shape).astype('float32')
  x[0, ::2] = -np.inf
  best, places = largest(jnp.asarray(x), k, chunk_size=size)
  want = np.argsort(-x, axis=-1, kind='stable')[:, :k]
  np.testing.assert_array_equal(places, want)
  np.testing.assert_array_equal(best, np.take_along_axis(x, want, axis=-1))


@pytest.mark.parametrize('seed', range(4))
def test_greedy_takes_the_most_probable_token(seed):
  weights, context = random_model(seed, batch=5)
  tokens, scores = run('greedy', weights, context)
  assert tokens.dtype == np.int32 and scores.dtype == np.float32
  for row in range(5):
    expected = []
    while len(expected) < 4 and EOS not in expected:
      expected.append(int(np.argmax(logits_after(weights, context[row], [FIRST, *expected]))))
    assert until_eos(tokens[row]) == expected


@pytest.mark.parametrize('seed', range(4))
def test_one_beam_is_greedy(seed):
  weights, context = random_model(seed, batch=8, eos_bonus=seed - 1)
  tokens, scores = run('greedy', weights, context)
  beam_tokens, beam_scores = run('beam_search', weights, context, beams=1)
  np.testing.assert_array_equal(beam_tokens[:, 0], tokens)
  np.testing.assert_allclose(beam_scores[:, 0], scores, **CLOSE)


@pytest.mark.parametrize(
  'settings', [dict(temperature=0.0), dict(top_k=1), dict(top_p=1e-6)], ids=str
)
def test_a_sample_of_one_candidate_is_greedy(settings):
  weights, context = random_model(0, batch=8)
  # ties of all tokens in half of the rows
  weights['read'][:], context[:4] = 0, 0
  expected = run('greedy', weights, context)
  found = run('sample', weights, context, jax.random.split(jax.random.key(0), 8), **settings)
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_allclose(found[1], expected[1], **CLOSE)


@pytest.mark.parametrize('vocabulary, steps, alpha', [(3, 3, 0.0), (3, 4, 0.6), (4, 2, 1.5)])
def test_wide_beam_search_is_enumeration(vocabulary, steps, alpha):
  for seed in range(3):
    weights, context = random_model(seed, vocabulary=vocabulary, length=steps)
    beams = vocabulary**steps
    tokens, scores = run('beam_search', weights, context, steps=steps, beams=beams, alpha=alpha)
    for row in range(len(context)):
      expected = enumerate_all(weights, context[row], steps, alpha)
      assert_n_best(tokens[row], scores[row], expected)


@pytest.mark.parametrize('beams, alpha', [(1, 0.6), (2, 0.0), (3, 0.6), (4, 1.5)])
def test_early_stop_changes_nothing(beams, alpha):
  for seed in range(6):
    bonus = [0.0, 1.0, 2.0][seed % 3]
    weights, context = random_model(seed, batch=6, vocabulary=5, length=6, eos_bonus=bonus)
    tokens, scores = run('beam_search', weights, context, steps=6, beams=beams, alpha=alpha)
    for row in range(6):
      expected = reference_beam_search(weights, context[row], beams, 6, alpha)
      assert_n_best(tokens[row], scores[row], expected)


def test_scores_are_those_of_teacher_forcing():
  weights, context = random_model(3, batch=6, vocabulary=9, length=6)
  keys = jax.random.split(jax.random.key(1), 6)
  found = [
    run('greedy', weights, context, steps=6),
    run('sample', weights, context, keys, steps=6, temperature=2.0, top_k=5, top_p=0.9),
  ]
  for tokens, scores in found:
    for row in range(6):
      expected = log_probability(weights, context[row], until_eos(tokens[row]))
      np.testing.assert_allclose(scores[row], expected, **CLOSE)
  tokens, scores = run('beam_search', weights, context, steps=6, beams=3, alpha=0.6)
  assert (np.diff(scores) <= 0).all()
  for row, beam in np.ndindex(6, 3):
    y = until_eos(tokens[row, beam])
    expected = log_probability(weights, context[row], y) / penalty(len(y), 0.6)
    np.testing.assert_allclose(scores[row, beam], expected, **CLOSE)


@pytest.mark.parametrize(
  'name, settings',
  [('greedy', {}), ('sample', dict(top_p=0.9)), ('beam_search', dict(beams=3, alpha=0.6))],
)
def test_a_sentence_alone_is_the_same_as_in_a_batch(name, settings):
  weights, context = random_model(4, batch=6, vocabulary=5, length=6, eos_bonus=1.0)
  keys = jax.random.split(jax.random.key(2), 6) if name == 'sample' else None
  tokens, scores = run(name, weights, context, keys, steps=6, **settings)
  assert len({len(until_eos(best)) for best in tokens.reshape(6, -1, 6)[:, 0]}) > 1
  for row in range(6):
    own = slice(row, row + 1)
    own_keys = keys if keys is None else keys[own]
    alone = run(name, weights, context[own], own_keys, steps=6, **settings)
    np.testing.assert_array_equal(alone[0][0], tokens[row])
    np.testing.assert_allclose(alone[1][0], scores[row], **CLOSE)


@pytest.mark.parametrize(
  'name, settings',
  [('greedy', {}), ('sample', {}), ('beam_search', dict(beams=2, alpha=0.6))],
)
def test_steps_end_when_every_row_has(name, settings):
  calls = []

  def step(tokens, cache):
    """Says 3 until each row's own length, then eos, with next to certainty."""
    jax.debug.callback(lambda: calls.append(1))
    last, position = cache
    sure = 40 * jax.nn.one_hot(jnp.where(position + 1 >= last, EOS, 3), 5)
    return sure - 5 * jnp.arange(5), (last, position + 1)

  lengths = jnp.array([2, 4])
  cache = repeat_rows((lengths, jnp.int32(0)), settings.get('beams', 1))
  keys = [jax.random.split(jax.random.key(0), 2)] if name == 'sample' else []
  first = jnp.array([FIRST, FIRST])
  found = SEARCHES[name](step, cache, first, *keys, steps=50, eos=EOS, pad=PAD, **settings)
  jax.block_until_ready(found)
  jax.effects_barrier()
  best = np.asarray(found[0]).reshape(2, -1, 50)[:, 0]
  assert [until_eos(tokens) for tokens in best] == [[3, EOS], [3, 3, 3, EOS]]
  assert 4 <= len(calls) <= 10


def test_without_an_end_token_all_steps_are_generated():
  step = lambda tokens, cache: (jnp.log(jnp.array([[0.2, 0.5, 0.3]])), cache)  # noqa: E731
  tokens, scores = greedy(step, (), jnp.array([0]), steps=3, eos=-1)
  assert tokens.tolist() == [[1, 1, 1]]
  np.testing.assert_allclose(scores, [3 * np.log(0.5)], **CLOSE)


def test_empty_slots_stay_empty():
  """One sentence exists, and whatever else is read leads to NaN."""

  def step(tokens, legal):
    legal = legal & (tokens == FIRST)
    return jnp.where(legal[:, None], jnp.array([-jnp.inf, -jnp.inf, 0.0]), jnp.nan), legal

  legal = jnp.ones(4, bool)
  tokens, scores = beam_search(
    step, legal, jnp.array([FIRST]), beams=4, steps=3, eos=EOS, pad=PAD, alpha=0.6
  )
  assert tokens.tolist() == [[[2, 2, 2]] + [[PAD] * 3] * 3]
  assert scores.tolist() == [[0.0] + [-np.inf] * 3]


def test_a_vocabulary_of_one_token_has_one_hypothesis():
  step = lambda tokens, cache: (jnp.zeros((len(tokens), 1)), cache)  # noqa: E731
  tokens, scores = beam_search(step, (), jnp.array([0, 0]), beams=2, steps=2, eos=EOS, pad=PAD)
  assert tokens.tolist() == [[[0, 0], [PAD, PAD]]] * 2
  assert scores.tolist() == [[0.0, -np.inf]] * 2


def test_a_nan_of_the_model_raises():
  step = lambda tokens, cache: (jnp.full((len(tokens), 3), jnp.nan), cache)  # noqa: E731
  settings = dict(steps=2, eos=-1)
  assert np.isnan(greedy(step, (), jnp.array([0]), **settings)[1]).all()
  assert np.isnan(beam_search(step, (), jnp.array([0]), beams=2, **settings)[1]).any()


def numpy_filter(logits, temperature, top_k, top_p, min_p):
  """The set that is kept and its distribution, token by token in float64."""
  p = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature))
  order = sorted(range(len(p)), key=lambda n: -p[n])[: top_k or len(p)]
  p = {n: p[n] / sum(p[n] for n in order) for n in order}
  nucleus, mass = [], 0.0
  for n in order:
    if mass < top_p:
      nucleus.append(n)
      mass += p[n]
  kept = [n for n in nucleus if p[n] >= min_p * p[nucleus[0]]]
  return {n: p[n] / sum(p[n] for n in kept) for n in kept}


def test_a_temperature_near_zero_is_no_overflow():
  assert filter_logits(jnp.array([1e3, 2e3, -1e3]), temperature=1e-37).tolist() == [
    -np.inf,
    0,
    -np.inf,
  ]


FILTERS = [
  dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
  dict(temperature=0.5, top_k=0, top_p=1.0, min_p=0.0),
  dict(temperature=1.0, top_k=3, top_p=1.0, min_p=0.0),
  dict(temperature=1.0, top_k=99, top_p=1.0, min_p=0.0),
  dict(temperature=2.0, top_k=0, top_p=0.7, min_p=0.0),
  dict(temperature=1.0, top_k=0, top_p=0.01, min_p=0.0),
  dict(temperature=1.5, top_k=0, top_p=1.0, min_p=0.3),
  dict(temperature=1.0, top_k=0, top_p=1.0, min_p=1.0),
  dict(temperature=1.3, top_k=5, top_p=0.8, min_p=0.2),
]


@pytest.mark.parametrize('filters', FILTERS, ids=lambda f: ' '.join(map(str, f.values())))
def test_filters_keep_the_sets_of_their_definition(filters):
  rows = np.random.default_rng(0).normal(scale=2, size=(50, 12))
  kept = jax.jit(jax.vmap(partial(filter_logits, **filters)))(jnp.asarray(rows, jnp.float32))
  assert kept.dtype == jnp.float32
  for row, found in zip(rows, np.asarray(kept, np.float64), strict=True):
    expected = np.zeros(12)
    for n, p in numpy_filter(row, **filters).items():
      expected[n] = p
    assert ((found > -np.inf) == (expected > 0)).all()
    np.testing.assert_allclose(np.exp(log_softmax(found)), expected, **CLOSE)


@pytest.mark.parametrize('filters', [FILTERS[0], FILTERS[8]], ids=str)
def test_samples_have_the_filtered_distribution(filters):
  draws = 4000
  weights, context = random_model(5, batch=1, vocabulary=6, length=2, eos_bonus=-np.inf)
  keys = jax.random.split(jax.random.key(3), draws)
  contexts = np.repeat(context, draws, axis=0)
  tokens, _ = run('sample', weights, contexts, keys, steps=2, **filters)
  expected = {}
  for n, p in numpy_filter(logits_after(weights, context[0], [FIRST]), **filters).items():
    logits = logits_after(weights, context[0], [FIRST, n])
    for m, q in numpy_filter(logits, **filters).items():
      if p * q:
        expected[n, m] = p * q * draws
  observed = dict.fromkeys(expected, 0)
  for pair in map(tuple, tokens.tolist()):
    observed[pair] += 1  # a KeyError is a pair that must not be drawn
  chi_square = sum((observed[pair] - e) ** 2 / e for pair, e in expected.items())
  freedom = len(expected) - 1
  assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
  'name, settings',
  [('greedy', {}), ('sample', {}), ('beam_search', dict(beams=3, alpha=0.6))],
)
def test_bfloat16_logits_are_scored_in_float32(name, settings):
  """Nothing but the logits themselves is rounded."""
  weights, context = random_model(6, batch=4, vocabulary=20, length=6)
  keys = jax.random.split(jax.random.key(4), 4) if name == 'sample' else None
  tokens, scores = run(name, weights, context, keys, dtype=jnp.bfloat16, steps=6, **settings)
  assert scores.dtype == np.float32
  for row, beam in np.ndindex(4, settings.get('beams', 1)):
    y, score = tokens.reshape(4, -1, 6)[row, beam], scores.reshape(4, -1)[row, beam]
    history, total = [FIRST], 0.0
    for token in until_eos(y):
      logits = logits_after(weights, context[row], history).astype(np.float32)
      total += log_softmax(logits.astype(jnp.bfloat16))[token]
      history.append(token)
    np.testing.assert_allclose(
      score, total / penalty(len(history) - 1, settings.get('alpha', 0)), **CLOSE
    )


def test_a_cache_may_have_its_rows_on_another_axis():
  weights, context = random_model(8)

  def step(tokens, cache):
    cache = {k: leaf[0] if leaf.ndim else leaf for k, leaf in cache.items()}
    logits, cache = make_step(weights)(tokens, cache)
    return logits, {k: leaf[None] if leaf.ndim else leaf for k, leaf in cache.items()}

  @jax.jit
  def layers_first():
    cache = {k: leaf[None] if leaf.ndim else leaf for k, leaf in make_cache(context, 4).items()}
    cache = repeat_rows(cache, 3, axis=1)
    reorder = partial(take_rows, axis=1)
    first, settings = jnp.full(3, FIRST), dict(beams=3, steps=4, eos=EOS, pad=PAD)
    return beam_search(step, cache, first, reorder=reorder, **settings)

  tokens, scores = map(np.asarray, layers_first())
  for row in range(3):
    assert_n_best(tokens[row], scores[row], reference_beam_search(weights, context[row], 3, 4, 0.0))


@pytest.mark.parametrize(
  'name, settings, message',
  [
    ('greedy', dict(steps=0), 'steps 0'),
    ('greedy', dict(pad=EOS), 'pad 1 is an end token'),
    ('sample', dict(steps=0), 'steps 0'),
    ('sample', dict(pad=EOS), 'pad .* is an end token'),
    ('sample', dict(temperature=-1.0), 'temperature -1.0'),
    ('sample', dict(temperature=float('nan')), 'temperature nan'),
    ('sample', dict(top_k=-1), 'top_k -1'),
    ('sample', dict(top_p=0.0), 'top_p 0.0'),
    ('sample', dict(top_p=1.1), 'top_p 1.1'),
    ('sample', dict(min_p=-0.1), 'min_p -0.1'),
    ('sample', dict(min_p=1.1), 'min_p 1.1'),
    ('beam_search', dict(steps=0), 'steps 0'),
    ('beam_search', dict(pad=EOS), 'pad .* is an end token'),
    ('beam_search', dict(beams=0), 'beams 0'),
    ('beam_search', dict(alpha=-0.1), 'alpha -0.1'),
  ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
  weights, context = random_model(9)
  cache, first = make_cache(context, 4), jnp.full(3, FIRST)
  keys = [jax.random.split(jax.random.key(0), 3)] if name == 'sample' else []
  settings = dict(steps=4, eos=EOS) | (dict(beams=1) if name == 'beam_search' else {}) | settings
  with pytest.raises(ValueError, match=message):
    SEARCHES[name](make_step(weights), cache, first, *keys, **settings)


def test_arguments_of_the_wrong_shape_are_refused():
  weights, context = random_model(9)
  step, cache, first = make_step(weights), make_cache(context, 4), jnp.full(3, FIRST)
  settings = dict(steps=4, eos=EOS)
  with pytest.raises(ValueError, match='repeat_rows'):
    beam_search(step, cache, first, beams=2, **settings)
  with pytest.raises((ValueError, TypeError)):  # the types say it first, where they are checked
    greedy(step, cache, first[:, None], **settings)
  key = jax.random.key(0)
  for keys in [key, jax.random.split(key, 2), jnp.zeros((3, 2), 'uint32')]:
    with pytest.raises((ValueError, TypeError)):
      sample(step, cache, first, keys, **settings)
