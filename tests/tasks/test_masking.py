"""Laws of masking, denoising and labels: what is asked, what is learnt, what lines are answered."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer.data import tokenizers
from transformer.data.pipeline import Batches, bucketed
from transformer.functional.losses import cross_entropy
from transformer.modules.config import ModelConfig
from transformer.tasks.batching import Batching
from transformer.tasks.decoding import Decoding
from transformer.tasks.denoising import Denoising
from transformer.tasks.labels import Labels
from transformer.tasks.masking import Masking
from transformer.tasks.texts import with_blanks

TEXTS = ['red ant\n', 'big red ant\n', 'big blue bee\n', 'blue bee\n']
SIZES = dict(width=16, depth=1, heads=2, feedforward=32, length=16, dropout=0.0, prenorm=True)
SIZES |= dict(position='learned', unroll=1)


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(TEXTS, kind='characters', vocab=40, sentinels=4)


@pytest.fixture(scope='module')
def masking(tokenizer):
  how = dict(rate=0.2, whole_words=False, next_sentence=False)
  return Masking(tokenizer=tokenizer, decoding=Batching(rows=2), length=16, **how)


@pytest.fixture(scope='module')
def denoising(tokenizer):
  return Denoising(
    tokenizer=tokenizer,
    decoding=Decoding(beams=2, alpha=0.0, length=14, rows=2),
    length=13,
    objective='spans',
    rate=0.2,
    mean_span=2.0,
    label_smoothing=0.0,
    z_loss=0.0,
    start='bos',
  )


@pytest.fixture(scope='module')
def labels(tokenizer):
  return Labels(
    tokenizer=tokenizer,
    decoding=Batching(rows=2),
    length=16,
    classes='ant, bee',
    label_smoothing=0.0,
  )


def texts(lines=TEXTS):
  return [{'targets': line} for line in lines]


def marked():
  return [{'inputs': line.strip()[:-3], 'targets': line.strip()[-3:]} for line in TEXTS]


def batch_of(task, source):
  fields = task.features(source)
  lengths = np.stack([f.lengths for f in fields.values() if hasattr(f, 'lengths')], axis=1)
  rows = len(lengths) + 1  # one of them empty
  batch = Batches(fields, bucketed(lengths, buckets=1), tokens=1, multiple=rows, seed=None)[0]
  return jax.tree.map(jnp.asarray, batch)


def learnt(task, source, steps, **settings):
  """A model that knows the source by heart."""
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES | dict(width=32) | settings)
  model, batch = task.init(config, jax.random.key(0)), batch_of(task, source)
  optimizer = optax.adam(5e-3)

  @jax.jit
  def run(model):
    def step(carry, key):
      model, state = carry
      gradient, _ = jax.grad(
        lambda model: (lambda loss, _: (loss.sum / loss.weight, 0))(*task.loss(model, batch, key)),
        has_aux=True,
      )(model)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(model, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    return jax.lax.scan(step, (model, optimizer.init(model)), keys)[0][0]

  return run(model)


def test_what_is_hidden_is_what_is_asked(masking, close):
  """The loss is the cross-entropy of all positions with a weight where a token was hidden."""
  batch = batch_of(masking, texts())
  config = ModelConfig(vocab=masking.tokenizer.size, bias_output=True, **SIZES)
  model = masking.init(config, jax.random.key(0))
  model.readout.bias[...] = jax.random.normal(jax.random.key(2), model.readout.bias.shape)
  hide_key, _ = jax.random.split(jax.random.key(3))
  hidden = masking._hide(batch, hide_key)
  count = np.asarray(batch['inputs_segments'].sum(axis=1)) - 2
  assert (np.asarray(hidden.chosen.sum(axis=1))[:4] == np.round(count[:4] * 0.2)).all()
  shown = np.asarray(hidden.tokens)[~np.asarray(hidden.chosen)]
  assert (shown == np.asarray(batch['inputs'])[~np.asarray(hidden.chosen)]).all()
  logits = model(hidden.tokens, segments=batch['inputs_segments'])
  expected = cross_entropy(logits, batch['inputs'], hidden.chosen.astype(jnp.float32))
  loss, _ = masking.loss(model, batch, jax.random.key(3))
  close(loss.sum, expected.sum)
  close(loss.weight, expected.weight)


def test_whole_words_are_hidden_whole():
  tokenizer = tokenizers.train(
    ['redder bluer antic beeline'] * 9, kind='bpe', vocab=270, sentinels=1
  )
  how = dict(rate=0.3, whole_words=True, next_sentence=False)
  task = Masking(tokenizer=tokenizer, decoding=Batching(rows=2), length=40, **how)
  line = 'redder bluer antic beeline redder antic'
  batch = batch_of(task, texts([line]))
  words = np.asarray(task._words(batch['inputs']))[0]
  for seed in range(5):
    chosen = np.asarray(task._hide(batch, jax.random.key(seed)).chosen)[0]
    hidden_words = set(words[chosen] - 1)  # the start token is before the first
    pieces = tokenizer.encode(line)
    text = ' '.join(w for i, w in enumerate(line.split()) if i not in hidden_words)
    kept = [t for t, c in zip(pieces, chosen[1:], strict=False) if not c]
    assert tokenizer.decode(kept).strip() == text


def test_halves_of_other_rows_are_told_apart(tokenizer):
  how = dict(rate=0.2, whole_words=False, next_sentence=True)
  task = Masking(tokenizer=tokenizer, decoding=Batching(rows=2), length=14, **how)
  same = ['abcdefghijk', 'lmnopqrstuv', 'wxyzabcdefg', 'hijklmnopqr', 'stuvwxyzabc', 'defghijklmn']
  task = dataclasses.replace(
    task, tokenizer=tokenizers.train(same, kind='characters', vocab=40, sentinels=1)
  )
  batch = batch_of(task, texts(same))
  hidden = [task._hide(batch, jax.random.key(seed)) for seed in range(20)]
  swapped = np.stack([h.swapped for h in hidden])
  assert 0.3 < swapped[:, 1:6].mean() < 0.7
  before = np.asarray(batch['inputs'])
  for h in hidden:
    second = np.asarray(h.types) == 1
    for row in np.flatnonzero(np.asarray(batch['inputs_segments']).any(axis=1)):
      source = row - 1 if h.swapped[row] else row
      assert (np.asarray(h.targets)[row][second[row]] == before[source][second[row]]).all()
      assert (np.asarray(h.targets)[row][~second[row]] == before[row][~second[row]]).all()
  model = task.init(
    ModelConfig(vocab=task.tokenizer.size, types=2, summary='pooler', **SIZES), jax.random.key(0)
  )
  loss, metrics = task.loss(model, batch, jax.random.key(1))
  assert np.isfinite(loss.sum) and {'nll_of_order', 'accuracy_of_order'} <= metrics.keys()


def test_blanks_are_filled(masking):
  model = learnt(masking, texts(), 1000)
  assert masking.predict(model, ['big red a___t', 'blue b___e', 'r___d ant']) == [
    'big red ant',
    'blue bee',
    'red ant',
  ]
  with pytest.raises(ValueError, match='write ___ where'):
    masking.predict(model, ['big red ant'])
  with pytest.raises(ValueError, match='more than the 14'):
    masking.predict(model, ['a___' + 'b' * 20])
  weights, rows, columns = masking.attend(model, 'red a___t')
  assert weights.shape == (1, 2, len(rows), len(columns)) and rows[0] == '<s>'


def test_spans_are_restored(denoising):
  model = learnt(denoising, texts(), 600)
  totals = denoising.measure(model, batch_of(denoising, texts()))
  assert denoising.report(totals, texts())['token_accuracy'] > 0.9
  with pytest.raises(ValueError, match='write ___ where'):
    denoising.predict(model, ['big red ant'])


def test_what_belongs_at_each_blank_is_told(denoising, monkeypatch):
  config = ModelConfig(vocab=denoising.tokenizer.size, **SIZES)
  model = denoising.init(config, jax.random.key(0))
  first, second, *_ = denoising.tokenizer.sentinels
  lu, g = (denoising.tokenizer.encode(text) for text in ('lu', 'g'))
  asked = []

  def best(self, model, rows):
    asked.extend(rows)
    return [np.array([first, *lu, second, *g, 2])]

  monkeypatch.setattr('transformer.tasks.sequence.SequenceToSequence.best', best)
  assert denoising.predict(model, ['b___e bi___']) == ['lu ___ g']
  b, e, bi = (denoising.tokenizer.encode(text) for text in ('b', 'e bi', ''))
  assert asked == [[*b, first, *e, second, *bi, 2]]


def test_a_prefix_is_gone_on_with(denoising):
  task = dataclasses.replace(denoising, objective='prefix')
  batch = batch_of(task, texts())
  parts = task.corrupt(batch, jax.random.key(0))
  for row in range(4):
    read = [t for t in parts['inputs'][row].tolist() if t > 2]
    said = [t for t in parts['targets'][row].tolist() if t > 2]
    assert read and said and read + said == [t for t in batch['inputs'][row].tolist() if t > 2]
  loss, _ = task.loss(
    task.init(ModelConfig(vocab=task.tokenizer.size, **SIZES), jax.random.key(0)),
    batch,
    jax.random.key(1),
  )
  assert np.isfinite(loss.sum)
  assert task.input('big') == [*task.tokenizer.encode('big'), 2]


def test_whole_windows_of_spans_have_fixed_room(denoising):
  """What is cut to a static length is exactly what a whole window needs."""
  batch = batch_of(denoising, texts(['big red antbig red antbig ']))
  for seed in range(10):
    parts = denoising.corrupt(batch, jax.random.key(seed))
    for side in ('inputs', 'targets'):
      tokens, segments = np.asarray(parts[side][:2]), np.asarray(parts[f'{side}_segments'][:2])
      assert segments.all() and (tokens[:, -1] == 2).all()
  assert parts['inputs'].shape[1] == 13 - 3 + 2 + 1 and parts['targets'].shape[1] == 3 + 2 + 1


def test_labels_are_learnt(labels):
  model = learnt(labels, marked(), 60)
  lines = [example['inputs'] for example in marked()]
  assert labels.predict(model, lines) == [example['targets'] for example in marked()]
  totals = labels.measure(model, batch_of(labels, marked()))
  report = labels.report(totals, marked())
  assert report['accuracy'] == 1.0 and float(totals['accuracy'].weight) == 4
  assert labels.predict(model, ['', 'x' * 99], cut=True)
  with pytest.raises(ValueError, match='the line is empty'):
    labels.predict(model, [''])


def test_a_blank_takes_the_space_before_it():
  """As in training, where a word's token begins with its space."""
  tokenizer = tokenizers.train(TEXTS * 9, kind='bpe', vocab=300, sentinels=1)
  whole = tokenizer.encode('big blue bee')
  mask = [tokenizer.mask]
  assert with_blanks(tokenizer, 'big ___ bee', mask) == [whole[0], *mask, whole[-1]]


def test_what_cannot_be_learnt_is_refused(labels, masking, denoising):
  with pytest.raises(ValueError, match="label 'wasp' of 'big' is none of"):
    labels.features([{'inputs': 'big', 'targets': 'wasp'}])
  with pytest.raises(ValueError, match='two or more labels'):
    dataclasses.replace(labels, classes='ant, ant')
  with pytest.raises(ValueError, match='show where a word begins'):
    dataclasses.replace(masking, whole_words=True)
  plain = tokenizers.train(TEXTS, kind='characters', vocab=40)
  with pytest.raises(ValueError, match='tokenizer.sentinels=1'):
    dataclasses.replace(masking, tokenizer=plain)
  with pytest.raises(ValueError, match='tokenizer.sentinels='):
    dataclasses.replace(denoising, length=60)
