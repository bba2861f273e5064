"""Constraints on the next token, against NumPy statements of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional import constraints, search

N, STEPS = 6, 7
WORDS = [[0], [4, 2], [1, 4, 5]]
PROMPTS = [[4, 1, 4], [2], [5, 0]]


def forbidden(ids, before=None):
  def edit(logits, history, generated):
    if before is None or generated < before:
      logits[list(ids)] = -np.inf

  return edit


def sequences(words):
  def edit(logits, history, generated):
    for *start, last in words:
      if history[len(history) - len(start) :] == start:
        logits[last] = -np.inf

  return edit


def prefix(tokens):
  def edit(logits, history, generated):
    if generated < len(tokens):
      logits[[i for i in range(N) if i != tokens[generated]]] = -np.inf

  return edit


def no_ngrams(n):
  def edit(logits, history, generated):
    for i in range(len(history) - n + 1):
      if n == 1 or history[i : i + n - 1] == history[len(history) - n + 1 :]:
        logits[history[i + n - 1]] = -np.inf

  return edit


def penalty(factor):
  def edit(logits, history, generated):
    for token in set(history):
      logits[token] *= factor if logits[token] < 0 else 1 / factor

  return edit


def choices(sequences, end):
  def edit(logits, history, generated):
    so_far = history[len(history) - generated :]
    whole = [[*sequence, end] for sequence in sequences]
    allowed = {w[generated] for w in whole if w[:generated] == so_far and len(w) > generated}
    logits[[i for i in range(N) if i not in allowed]] = -np.inf

  return edit


CHOICES = [[3, 1, 1], [3, 4], [5]]
CASES = {
  'choices': (constraints.follow(constraints.trie(CHOICES, 0)), choices(CHOICES, 0)),
  'forbid': (constraints.forbid([1, 3, 99]), forbidden([1, 3])),
  'forbid at first': (constraints.forbid([0, 1, 2], before=3), forbidden([0, 1, 2], 3)),
  'words': (
    constraints.forbid_sequences([[0], [4, 2], [1, 4, 5]]),
    sequences([[0], [4, 2], [1, 4, 5]]),
  ),
  'prefix': (constraints.force_prefix([3, 3, 0]), prefix([3, 3, 0])),
  'one gram': (constraints.no_repeated_ngrams(1), no_ngrams(1)),
  'two grams': (constraints.no_repeated_ngrams(2), no_ngrams(2)),
  'three grams': (constraints.no_repeated_ngrams(3), no_ngrams(3)),
  'penalty': (constraints.penalize_repetitions(1.7), penalty(1.7)),
}


def search_with(constraint, logits_of, steps, beams=0):
  """The tokens [B, steps] or [B, beams, steps] of our search, and their scores."""
  prompts = np.full((len(PROMPTS), 4), -1, np.int32)
  for row, prompt in zip(prompts, PROMPTS, strict=True):
    row[4 - len(prompt) :] = prompt
  constrain = constraints.on_rows(constraint, jnp.asarray(prompts))

  @jax.jit
  def run(table):
    step = lambda tokens, cache: (table[tokens], cache)  # noqa: E731
    settings = dict(steps=steps, eos=-1, constrain=constrain)
    if beams:
      return search.beam_search(step, (), jnp.asarray(prompts[:, -1]), beams=beams, **settings)
    return search.greedy(step, (), jnp.asarray(prompts[:, -1]), **settings)

  return jax.device_get(run(jnp.asarray(logits_of)))


def edited(logits_of, history, prompt, edit):
  logits = logits_of[history[-1]].astype(np.float64)
  edit(logits, history, len(history) - len(prompt))
  return logits


@pytest.mark.parametrize('case', CASES)
def test_greedy_search_keeps_the_definition(case, rng):
  constraint, edit = CASES[case]
  logits_of = 2 * rng.normal(size=(N, N)).astype(np.float32)
  tokens, _ = search_with(constraint, logits_of, STEPS)
  changed = False
  for prompt, found in zip(PROMPTS, tokens.tolist(), strict=True):
    history = list(prompt)
    for token in found:
      logits = edited(logits_of, history, prompt, edit)
      if not np.isfinite(logits).any():
        break  # nothing may follow: any token is as good
      assert token == int(logits.argmax()), (history, logits)
      changed |= token != int(logits_of[history[-1]].argmax())
      history.append(token)
  assert changed


@pytest.mark.parametrize('case', ['words', 'prefix', 'two grams', 'penalty'])
def test_beams_for_every_prefix_find_the_best_allowed_sequence(case, rng):
  constraint, edit = CASES[case]
  logits_of = rng.normal(size=(N, N)).astype(np.float32)
  log_p = logits_of - np.log(np.exp(logits_of).sum(axis=1, keepdims=True))
  tokens, scores = search_with(constraint, logits_of, 3, beams=N**2)
  for prompt, found, score in zip(PROMPTS, tokens, scores, strict=True):
    best = -np.inf, ()
    for sequence in np.ndindex(N, N, N):
      history, total = list(prompt), 0.0
      for token in sequence:
        total += edited(log_p, history, prompt, edit)[token]
        history.append(token)
      best = max(best, (total, sequence))
    assert tuple(found[0]) == best[1]
    np.testing.assert_allclose(score[0], best[0], rtol=1e-5)


def test_any_of_several_end_tokens_ends_a_row(rng):
  logits_of = 2 * rng.normal(size=(N, N)).astype(np.float32)
  step = lambda tokens, cache: (jnp.asarray(logits_of)[tokens], cache)  # noqa: E731
  first = jnp.arange(N)
  plain = search.greedy(step, (), first, steps=STEPS, eos=-1)[0].tolist()
  ends = (plain[0][1], plain[1][2])
  found, _ = search.greedy(step, (), first, steps=STEPS, eos=ends, pad=-7)
  for row, whole in zip(found.tolist(), plain, strict=True):
    end = next((i for i, token in enumerate(whole) if token in ends), STEPS)
    assert row == whole[: end + 1] + [-7] * (STEPS - end - 1)
  beams, _ = search.beam_search(step, (), first, beams=1, steps=STEPS, eos=ends, pad=-7)
  assert beams[:, 0].tolist() == found.tolist()
