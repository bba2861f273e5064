"""Tests of masked language modeling, span corruption and classification of texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit
from parameters import drawn

from transformer.data import tokenizers
from transformer.data.pipeline import Batches, bucket
from transformer.data.text import with_blanks
from transformer.evaluation.evaluate import eval_step, evaluate
from transformer.functional.losses import cross_entropy
from transformer.inference.attention_maps import attend
from transformer.inference.decoding import Batching, Decoding
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification
from transformer.tasks.masked_lm import MaskedLM
from transformer.tasks.seq2seq import Seq2Seq, shift_right
from transformer.tasks.span_corruption import SpanCorruption

TEXTS = ['red ant\n', 'big red ant\n', 'big blue bee\n', 'blue bee\n']
SIZES = dict(width=16, depth=1, heads=2, feedforward=32, max_length=16, dropout=0.0, prenorm=True)
SIZES |= dict(position='learned', unroll=1)


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(TEXTS, kind='characters', vocab=40, sentinels=4)


@pytest.fixture(scope='module')
def masking(tokenizer):
  kwargs = dict(rate=0.2, whole_words=False, next_sentence=False)
  return MaskedLM(tokenizer=tokenizer, decoding=Batching(batch_size=2), max_length=16, **kwargs)


@pytest.fixture(scope='module')
def denoising(tokenizer):
  return SpanCorruption(
    tokenizer=tokenizer,
    decoding=Decoding(beams=2, alpha=0.0, max_new_tokens=14, batch_size=2),
    max_length=13,
    objective='spans',
    rate=0.2,
    mean_span=2.0,
    label_smoothing=0.0,
    z_loss=0.0,
    start='bos',
  )


@pytest.fixture(scope='module')
def labels(tokenizer):
  return Classification(
    tokenizer=tokenizer,
    decoding=Batching(batch_size=2),
    max_length=16,
    classes=('ant', 'bee'),
    label_smoothing=0.0,
  )


def texts(lines=TEXTS):
  return [{'targets': line} for line in lines]


def batch_of(task, source):
  fields = task.columns(source)
  lengths = np.stack([f.lengths for f in fields.values() if hasattr(f, 'lengths')], axis=1)
  rows = len(lengths) + 1  # one of them empty
  batch = Batches(fields, bucket(lengths, buckets=1), tokens=1, multiple=rows, seed=None)[0]
  return jax.tree.map(jnp.asarray, batch)


def learn(task, source, steps, seed, **settings):
  """(a model that has learned the source by heart, the loss of every step)."""
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES | dict(width=32) | settings)
  model = jax.jit(lambda key: task.init(config, key))(jax.random.key(seed))
  batch = batch_of(task, source)
  return fit(task, model, batch, steps=steps, learning_rate=5e-3, seed=seed)


def test_masked_tokens_are_the_scored_ones(masking, close):
  """The loss is the cross-entropy of all positions with a weight where a token was hidden."""
  batch = batch_of(masking, texts())
  config = ModelConfig(vocab=masking.tokenizer.size, bias_output=True, **SIZES)
  model = drawn(lambda: masking.init(config, jax.random.key(0)))
  hide_key, _ = jax.random.split(jax.random.key(3))
  hidden = jax.jit(masking.mask)(batch, hide_key)
  count = np.asarray(batch['inputs_segments'].sum(axis=1)) - 2
  assert (np.asarray(hidden.chosen.sum(axis=1))[:4] == np.round(count[:4] * 0.2)).all()
  shown = np.asarray(hidden.tokens)[~np.asarray(hidden.chosen)]
  assert (shown == np.asarray(batch['inputs'])[~np.asarray(hidden.chosen)]).all()
  logits = jax.jit(lambda: model(hidden.tokens, segments=batch['inputs_segments']))()
  expected = cross_entropy(logits, batch['inputs'], hidden.chosen.astype(jnp.float32))
  loss, _ = jax.jit(masking.loss)(model, batch, jax.random.key(3))
  close(loss.sum, expected.sum)
  close(loss.weight, expected.weight)


def test_whole_words_are_masked_together():
  tokenizer = tokenizers.train(
    ['redder bluer antic beeline'] * 9, kind='bpe', vocab=270, sentinels=1
  )
  kwargs = dict(rate=0.3, whole_words=True, next_sentence=False)
  task = MaskedLM(tokenizer=tokenizer, decoding=Batching(batch_size=2), max_length=40, **kwargs)
  line = 'redder bluer antic beeline redder antic'
  batch = batch_of(task, texts([line]))
  words = np.asarray(task.words(batch['inputs']))[0]
  hide = jax.jit(task.mask)
  for seed in range(5):
    chosen = np.asarray(hide(batch, jax.random.key(seed)).chosen)[0]
    hidden_words = set(words[chosen] - 1)  # the start token is before the first
    pieces = tokenizer.encode(line)
    text = ' '.join(w for i, w in enumerate(line.split()) if i not in hidden_words)
    kept = [t for t, c in zip(pieces, chosen[1:], strict=False) if not c]
    assert tokenizer.decode(kept).strip() == text


def test_swapped_halves_come_from_the_row_before(tokenizer):
  kwargs = dict(rate=0.2, whole_words=False, next_sentence=True)
  task = MaskedLM(tokenizer=tokenizer, decoding=Batching(batch_size=2), max_length=14, **kwargs)
  same = ['abcdefghijk', 'lmnopqrstuv', 'wxyzabcdefg', 'hijklmnopqr', 'stuvwxyzabc', 'defghijklmn']
  task = dataclasses.replace(
    task, tokenizer=tokenizers.train(same, kind='characters', vocab=40, sentinels=1)
  )
  batch = batch_of(task, texts(same))
  hide = jax.jit(task.mask)
  hidden = [hide(batch, jax.random.key(seed)) for seed in range(20)]
  swapped = np.stack([h.swapped for h in hidden])
  assert 0.3 < swapped[:, 1:6].mean() < 0.7
  before = np.asarray(batch['inputs'])
  for h in hidden:
    second = np.asarray(h.token_types) == 1
    for row in np.flatnonzero(np.asarray(batch['inputs_segments']).any(axis=1)):
      source = row - 1 if h.swapped[row] else row
      assert (np.asarray(h.targets)[row][second[row]] == before[source][second[row]]).all()
      assert (np.asarray(h.targets)[row][~second[row]] == before[row][~second[row]]).all()
  config = ModelConfig(vocab=task.tokenizer.size, token_types=2, pooling='pooler', **SIZES)
  model = drawn(lambda: task.init(config, jax.random.key(0)))
  loss, metrics = jax.jit(task.loss)(model, batch, jax.random.key(1))
  assert np.isfinite(loss.sum) and {'nll_of_order', 'accuracy_of_order'} <= metrics.keys()


def each_letter_blank(texts):
  """Every text with one of its letters left out, for every letter; and the texts themselves."""
  lines = [text.strip() for text in texts]
  places = [(line, i) for line in lines for i, letter in enumerate(line) if letter != ' ']
  return [f'{line[:i]}___{line[i + 1 :]}' for line, i in places], [line for line, _ in places]


@pytest.mark.slow
def test_blanks_are_filled(masking, seed, bounded):
  model, _ = learn(masking, texts(), 600, seed)
  asked, expected = each_letter_blank(TEXTS)
  right = np.array(predict(masking, model, asked)) == np.array(expected)
  assert len(right) > 30
  bounded('share of letters filled in', right.mean(), above=0.8)
  with pytest.raises(ValueError, match='write ___ where'):
    predict(masking, model, ['big red ant'])
  with pytest.raises(ValueError, match='more than the 16'):
    predict(masking, model, ['a___' + 'b' * 20])
  weights, rows, columns = attend(masking, model, 'red a___t')
  assert weights.shape == (1, 2, len(rows), len(columns)) and rows[0] == '<s>'


@pytest.mark.slow
def test_spans_are_restored(denoising, seed, bounded):
  # several spans: a single one is always the end, which could be told without reading
  denoising = dataclasses.replace(denoising, rate=0.4)
  model, losses = learn(denoising, texts(), 600, seed)
  bounded('loss, of its start', losses[-50:].mean() / losses[0], below=0.1)
  batch = batch_of(denoising, texts(TEXTS * 16))  # each time with other spans left out
  parts = jax.jit(denoising.corrupt)(batch, None)
  first = denoising.tokenizer.bos
  read = shift_right(parts['targets'], parts['targets_segments'], first)
  segments = {f'{side[:-1]}_segments': parts[f'{side}_segments'] for side in ('inputs', 'targets')}
  logits = jax.jit(lambda model: model(parts['inputs'], read, **segments))(model)
  # sentinels and ends could be told without having read anything
  known = [denoising.tokenizer.eos, *denoising.tokenizer.sentinels]
  asked = np.asarray(parts['targets_segments'] != 0) & ~np.isin(parts['targets'], known)
  right = np.argmax(logits, axis=-1) == np.asarray(parts['targets'])
  assert asked.sum() > 100
  bounded('share of letters said', right[asked].mean(), above=0.7)
  totals = jax.jit(denoising.batch_metrics)(model, batch)
  everything = np.asarray(parts['targets_segments'] != 0)
  measured = totals['token_accuracy'].value
  assert measured == pytest.approx(right[everything].mean())
  with pytest.raises(ValueError, match='write ___ where'):
    predict(denoising, model, ['big red ant'])


def test_span_corruption_answers_each_blank(denoising, monkeypatch):
  config = ModelConfig(vocab=denoising.tokenizer.size, **SIZES)
  model = drawn(lambda: denoising.init(config, jax.random.key(0)))
  first, second, *_ = denoising.tokenizer.sentinels
  lu, g = (denoising.tokenizer.encode(text) for text in ('lu', 'g'))
  asked = []

  def best(self, model, rows, **_):
    asked.extend(rows)
    return [np.array([first, *lu, second, *g, 2])]

  monkeypatch.setattr('transformer.tasks.seq2seq.Seq2Seq.best', best)
  assert predict(denoising, model, ['b___e bi___']) == ['lu ___ g']
  b, e, bi = (denoising.tokenizer.encode(text) for text in ('b', 'e bi', ''))
  assert asked == [[*b, first, *e, second, *bi, 2]]


def test_prefix_objective_splits_a_text_in_two(denoising):
  task = dataclasses.replace(denoising, objective='prefix')
  batch = batch_of(task, texts())
  parts = jax.jit(task.corrupt)(batch, jax.random.key(0))
  for row in range(4):
    read = [t for t in parts['inputs'][row].tolist() if t > 2]
    said = [t for t in parts['targets'][row].tolist() if t > 2]
    assert read and said and read + said == [t for t in batch['inputs'][row].tolist() if t > 2]
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES)
  model = drawn(lambda: task.init(config, jax.random.key(0)))

  @jax.jit
  def both(model, batch, key):
    noise, dropout = jax.random.split(key)
    translation = Seq2Seq(tokenizer=task.tokenizer, decoding=task.decoding, max_length=13)
    return task.loss(model, batch, key), translation.loss(
      model, task.corrupt(batch, noise), dropout
    )

  found, want = both(model, batch, jax.random.key(1))
  assert found == want and found[0].sum > found[0].weight
  assert task.processor.encode_example('big') == [*task.tokenizer.encode('big'), 2]


def test_whole_windows_of_spans_have_a_fixed_length(denoising):
  """What is cut to a static length is exactly what a whole window needs."""
  batch = batch_of(denoising, texts(['big red antbig red antbig ']))
  corrupt = jax.jit(denoising.corrupt)
  for seed in range(10):
    parts = corrupt(batch, jax.random.key(seed))
    for side in ('inputs', 'targets'):
      tokens, segments = np.asarray(parts[side][:2]), np.asarray(parts[f'{side}_segments'][:2])
      assert segments.all() and (tokens[:, -1] == 2).all()
  assert parts['inputs'].shape[1] == 13 - 3 + 2 + 1 and parts['targets'].shape[1] == 3 + 2 + 1


def test_classes_of_texts_are_learned(labels, seed, bounded):
  rng = np.random.default_rng(0)
  names = rng.permutation(['ant', 'bee'] * 12)
  words = [rng.choice(['big', 'red', 'blue', 'shy'], 2) for _ in names]
  source = [
    {'inputs': ' '.join(rng.permutation([*two, name])), 'targets': str(name)}
    for two, name in zip(words, names, strict=True)
  ]
  model, losses = learn(labels, source, 60, seed)
  bounded('loss, of its start', losses[-1] / losses[0], below=0.2)
  lines = [example['inputs'] for example in source]
  right = np.array(predict(labels, model, lines)) == names
  bounded('accuracy', right.mean(), above=0.85)
  totals = eval_step(labels, model, batch_of(labels, source))
  assert float(totals['nll'].weight) == 24
  found = evaluate(labels, model, source, metrics=['accuracy']).metrics
  assert found == {'accuracy': pytest.approx(100 * right.mean())}
  assert predict(labels, model, ['', 'x' * 99], truncate=True)
  with pytest.raises(ValueError, match='the line is empty'):
    predict(labels, model, [''])


def test_blank_includes_the_space_before_it():
  """As in training, where a word's token begins with its space."""
  tokenizer = tokenizers.train(TEXTS * 9, kind='bpe', vocab=300, sentinels=1)
  whole = tokenizer.encode('big blue bee')
  mask = [tokenizer.mask]
  assert with_blanks(tokenizer, 'big ___ bee', mask) == [whole[0], *mask, whole[-1]]


def test_contradictory_settings_are_refused(labels, masking, denoising):
  with pytest.raises(ValueError, match="label 'wasp' of 'big' is none of"):
    labels.columns([{'inputs': 'big', 'targets': 'wasp'}])
  with pytest.raises(ValueError, match='two or more labels'):
    dataclasses.replace(labels, classes=('ant', 'ant'))
  with pytest.raises(ValueError, match='show where a word begins'):
    dataclasses.replace(masking, whole_words=True)
  plain = tokenizers.train(TEXTS, kind='characters', vocab=40)
  with pytest.raises(ValueError, match='tokenizer.sentinels=1'):
    dataclasses.replace(masking, tokenizer=plain)
  with pytest.raises(ValueError, match='tokenizer.sentinels='):
    dataclasses.replace(denoising, max_length=60)
