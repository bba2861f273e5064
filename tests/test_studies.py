"""The studies, on tiny sizes."""

import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import drawn

from experiments.studies import (
  gradients,
  induction,
  mup,
  positions,
  ranking,
  recurrence,
  similarity,
)
from transformer import Decoder, ModelConfig
from transformer.evaluation.ranking import ranking_metric
from transformer.functional.losses import cross_entropy
from transformer.tasks.retrieval import bm25

CONFIG = ModelConfig(vocab=19, width=8, depth=2, tie='none', max_length=16)


def kept(folder, name):
  assert (folder / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  return json.loads((folder / f'{name}.json').read_text())


def test_the_norm_of_the_jacobian_is_that_of_jax(key, close):
  q, k = jax.random.normal(key, (2, 256, 8))
  jacobian = jax.vmap(jax.jacobian(jax.nn.softmax))(q @ k[:5].T)
  norms = jnp.sqrt(jnp.sum(jacobian**2, axis=(1, 2)))
  found = gradients.of_softmax(key, 8, False, 5)
  close(found['jacobian_mean'], jnp.mean(norms))
  close(found['jacobian_median'], jnp.median(norms))
  p = jax.nn.softmax(q @ k[:5].T)
  close(found['entropy'], jnp.mean(jnp.sum(-p * jnp.log(p), axis=1)))


@pytest.mark.slow
def test_gradients_are_drawn(tmp_path, monkeypatch):
  monkeypatch.setattr(gradients, 'WIDTH', 16)
  monkeypatch.setattr(gradients, 'SCALES', {'scaled': True})
  monkeypatch.setattr(gradients, 'PART', 1)
  gradients.main(sizes=(8, 16), steps=2, learnt=(16,), folder=tmp_path)
  found = kept(tmp_path, 'gradients')
  for name in gradients.SCALES:
    assert [p['d_k'] for p in found['model'][name]] == [8, 16]
    assert [len(p['losses']) for p in found['model'][name]] == [0, 2]
    assert all(p['gradient_norm_query_key'] > 0 for p in found['model'][name])


@pytest.fixture(scope='module')
def lstm():
  return drawn(lambda: recurrence.LSTM(CONFIG, nnx.Rngs(0)))


states = jax.jit(lambda lstm, inputs, targets: lstm.states(inputs, targets))


def test_an_lstm_does_not_see_padding(lstm, close):
  tokens = jnp.array([[4, 5, 6, recurrence.EOS]])
  padded = jnp.pad(tokens, ((0, 0), (0, 3)))
  close(states(lstm, padded, tokens), states(lstm, tokens, tokens))
  assert not np.allclose(states(lstm, tokens[:, ::-1], tokens), states(lstm, tokens, tokens))


def test_an_lstm_steps_as_it_was_taught(lstm, close):
  inputs, targets = jnp.array([[4, 5, 2, 0], [7, 8, 9, 2]]), jnp.array([[1, 4, 5], [1, 7, 8]])

  @jax.jit
  def both(lstm):
    carries, steps = lstm.encode(inputs), []
    for t in range(3):
      one, carries = lstm.step(targets[:, t], carries)
      steps.append(one)
    return jnp.stack(steps, 1), lstm.lm_head.attend(lstm.states(inputs, targets))

  close(*both(lstm))


def test_both_learn_the_copy_from_the_tokens_before(lstm):
  tokens = recurrence.batch_of(np.random.default_rng(0), 4, 6)['tokens']
  ends = np.argmax(tokens == recurrence.EOS, axis=1)
  assert np.all((tokens != recurrence.PAD).sum(axis=1) == ends + 1) and ends.min() >= 1
  read = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=recurrence.BOS)
  read = np.where(tokens == recurrence.PAD, recurrence.PAD, read)
  logits = jax.jit(
    lambda lstm: lstm.lm_head.attend(lstm.states(jnp.asarray(tokens), jnp.asarray(read)))
  )(lstm)
  tokens = jnp.asarray(tokens)
  expected = cross_entropy(logits, tokens, (tokens != 0).astype(jnp.float32))
  found, _ = recurrence.loss(lstm, {'tokens': tokens})
  np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)


@pytest.mark.slow
def test_recurrence_is_drawn(tmp_path, monkeypatch):
  tiny = dict(vocab=19, width=8, depth=1, heads=2, feedforward=8, max_length=16, tie='none')
  models = {n: (build, ModelConfig(**tiny)) for n, (build, _) in recurrence.MODELS.items()}
  monkeypatch.setattr(recurrence, 'MODELS', models)
  sizes = dict(steps=2, rows=2, longest=4, lengths=(2,), timed=(3,), positions=8, turns=1)
  recurrence.main(**sizes, folder=tmp_path)
  for found in kept(tmp_path, 'recurrence')['models'].values():
    assert found['exact_match'] == [0.0] and len(found['loss_by_tenth']) == 2
    assert min(found['training_tokens_per_s'] + found['decoding_tokens_per_s']) > 0


def test_positions_are_drawn(tmp_path, monkeypatch):
  def run(command, **kwargs):
    (workdir,) = [pathlib.Path(word[10:]) for word in command if word.startswith('--workdir=')]
    for i in range(6):
      metrics = {f'{split}/exact_match': 10.0 * i for split in positions.SPLITS}
      (workdir / f'sweep-{i}').mkdir(parents=True)
      result = json.dumps({'metrics': metrics, 'seconds': 1.0})
      (workdir / f'sweep-{i}' / 'train.json').write_text(result)

  monkeypatch.setattr(positions.subprocess, 'run', run)
  monkeypatch.setattr('experiments.studies.study.subprocess.check_output', lambda *_, **__: 'c\n')
  positions.main(str(tmp_path / 'runs'), folder=tmp_path)
  found = kept(tmp_path, 'positions')['exact_match']
  assert found['sort']['relative'] == {'test': 30.0, 'longer': 30.0, 'seconds': 1.0}
  positions.main(str(tmp_path / 'runs'), folder=tmp_path)  # nothing is run again


def test_the_two_sides_are_of_one_size():
  sizes = [
    sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda b=b, c=c: b(c, nnx.Rngs(0)))))
    for b, c in recurrence.MODELS.values()
  ]
  assert max(sizes) / min(sizes) < 1.01


def test_the_scores_of_heads_are_shares_of_the_positions_they_are_named_after(monkeypatch):
  """Of a model that attends evenly: 1 / (t + 1) at each position that is known."""
  batch = induction.batch_of(np.random.default_rng(0), 4)
  tokens, n = batch['tokens'], batch['periods']
  at = np.arange(induction.LENGTH)
  known = np.asarray(induction.repeats(batch))
  for row, start in enumerate(n):  # what is known was there before
    assert all(tokens[row, t + 1] == tokens[row, t + 1 - start] for t in at[known[row]])
  model = jax.jit(lambda: Decoder(ModelConfig(**induction.SIZES, depth=1), nnx.Rngs(0)))()
  model.stack.blocks.attention.query.kernel[...] *= 0
  want = (known / (at + 1)).sum() / known.sum()
  for score in induction.scores(model, batch).values():
    np.testing.assert_allclose(score, want, rtol=1e-5)


@pytest.mark.slow
def test_induction_heads_are_drawn(tmp_path, monkeypatch):
  monkeypatch.setattr('experiments.studies.study.subprocess.check_output', lambda *_, **__: 'c\n')
  induction.main(steps=2, rows=8, folder=tmp_path)
  found = kept(tmp_path, 'induction')
  assert np.shape(found['scores']['induction']) == (2, 4)
  assert len(found['removed']['as many others']) == len(found['removed']['induction heads'])
  assert {*found['accuracy']} == {*found['removed'], 'one layer'}


@pytest.mark.slow
def test_the_rates_of_widths_are_drawn(tmp_path, monkeypatch):
  monkeypatch.setattr('experiments.studies.study.subprocess.check_output', lambda *_, **__: 'c\n')
  mup.main(widths=(32,), exponents=(-9, -6), steps=20, rows=4, folder=tmp_path)
  losses = kept(tmp_path, 'mup')['losses']
  for values in (losses['one rate for all']['32'], losses['muP']['32']):
    assert len(values) == 2 and values[1] < values[0]  # 20 steps are few for a small rate


def test_average_precisions_are_those_of_trec_eval(rng):
  names = [f'd{i}' for i in range(30)]
  scores = rng.normal(size=(5, 30))
  relevant = [rng.choice(names, 1 + i, replace=False) for i in range(5)]
  examples = [{'relevant': ' '.join(f'{name}:1' for name in row)} for row in relevant]
  ranked = [' '.join(names[i] for i in np.argsort(-row)) for row in scores]
  metric = ranking_metric('mean_average_precision', 'map')
  expected = metric(ranked, [example['relevant'] for example in examples]).value
  found = ranking.average_precisions(scores, names, examples)
  np.testing.assert_allclose(found.mean(), expected, rtol=1e-6)


def test_feedback_adds_words_of_the_first_documents(tmp_path):
  texts = ['wing lift flow', 'wing lift', 'flow heat', 'shock heat', 'panel flutter']
  (tmp_path / 'documents.tsv').write_text(''.join(f'd{i}\t{t}\n' for i, t in enumerate(texts)))
  where, queries = str(tmp_path / 'documents.tsv'), ['wing', 'shock']
  unchanged = ranking.with_feedback(where, queries, original=1.0)
  np.testing.assert_allclose(unchanged, bm25(where, queries), rtol=1e-6)
  wing, shock = ranking.with_feedback(where, queries, documents=2)
  assert wing[2] > 0 == bm25(where, ['wing'])[0][2]  # it has a word of the first documents: flow
  assert shock[2] > 0 and wing[4] == 0


def test_a_word_of_all_texts_says_nothing_of_their_similarity():
  same, other, again = similarity.tf_idf(['A wing', 'a shock', 'a wing wing'])
  np.testing.assert_allclose(np.linalg.norm(same), 1, rtol=1e-6)
  np.testing.assert_allclose([same @ other, same @ again], [0, 1], atol=1e-6)


def test_judgements_are_read_as_they_are_published(tmp_path):
  (tmp_path / 'dev.csv.gz').write_bytes(gzip.compress(b'"A, b.",C.,4.75\nD,E,0\n'))
  first, second, judged = similarity.read(tmp_path / 'dev.csv.gz')
  assert (first, second, judged.tolist()) == (['A, b.', 'D'], ['C.', 'E'], [4.75, 0.0])
