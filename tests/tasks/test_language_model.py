"""Tests of tasks/language_model.py: windows, and continuations of prompts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from transformer.data import tokenizers
from transformer.data.pipeline import Batches, bucket
from transformer.data.text import encode
from transformer.evaluation.evaluate import compute_metrics
from transformer.inference.attention_maps import attend
from transformer.inference.decoding import Decoding
from transformer.inference.predict import predict, with_fast_decoding
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder
from transformer.tasks import language_model
from transformer.tasks.language_model import LanguageModel

TEXT = 'the quick brown fox\njumps over the lazy dog\n'
GREEDY = Decoding(beams=1, alpha=0.0, max_new_tokens=21, batch_size=3)
DRAWN = dataclasses.replace(GREEDY, max_new_tokens=20, temperature=1.0, top_k=20, seed=3)


@pytest.fixture(scope='module')
def task():
  return LanguageModel(
    tokenizer=tokenizers.train([TEXT], kind='characters', vocab=40),
    decoding=GREEDY,
    max_length=8,
    documents=False,
    overlap=0,
    label_smoothing=0.0,
    z_loss=0.0,
  )


@pytest.fixture(scope='module')
def model(task):
  config = ModelConfig(
    vocab=task.tokenizer.size,
    width=16,
    depth=2,
    heads=2,
    feedforward=24,
    max_length=8,
    position='learned',
    prenorm=True,
    unroll=1,
  )
  shapes = jax.eval_shape(lambda: task.init(config, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)


@jax.jit
def logits_of(model, tokens, segments):
  return model(tokens, segments=segments)


def test_windows_cover_every_token_and_predict_the_next(task):
  """The windows of an endless text, joined, are the text, and the text one token later."""
  fields = task.columns([{'targets': TEXT}, {'targets': 'fox'}])
  tokens = task.tokenizer.encode(TEXT)
  n = len(tokens) - 1
  windows = [fields['inputs'][i].tolist() for i in range(len(fields['inputs']))]
  assert [len(w) for w in windows] == [8] * (n // 8) + [n % 8] * (n % 8 > 0) + [2]
  assert sum(windows[:-1], []) == tokens[:-1]
  later = [fields['targets'][i].tolist() for i in range(len(fields['targets']))]
  assert sum(later[:-1], []) == tokens[1:]
  assert windows[-1] + later[-1][-1:] == task.tokenizer.encode('fox')


@pytest.mark.parametrize('text', [TEXT, TEXT[:9], TEXT[:10], TEXT[:4], TEXT[:2]])
def test_overlapping_tokens_are_scored_once(task, text):
  far = dataclasses.replace(task, overlap=5)
  fields = far.columns([{'targets': text}])
  tokens = task.tokenizer.encode(text)
  judged = []
  for i, later in enumerate(fields['targets']):
    kept = later != -1
    assert kept.sum() and kept.all() == (i == 0) and kept[5:].all()
    judged += later[kept].tolist()
    end = len(judged)
    assert fields['inputs'][i].tolist() == tokens[end - len(later) : end]
  assert judged == tokens[1:]


def test_documents_have_start_and_end_tokens(task):
  whole = dataclasses.replace(task, documents=True, max_length=16)
  fields = whole.columns([{'targets': 'fox'}])
  fox = task.tokenizer.encode('fox')
  assert fields['inputs'][0].tolist() == [1, *fox]
  assert fields['targets'][0].tolist() == [*fox, 2]


def test_encoding_in_parts_equals_encoding_the_whole(task, monkeypatch):
  monkeypatch.setattr('transformer.data.text.PART', 5)
  assert encode(task.tokenizer, TEXT * 3).tolist() == task.tokenizer.encode(TEXT * 3)


def test_overlap_of_a_whole_window_is_refused(task):
  with pytest.raises(ValueError, match=r'loss.overlap=8 with data.max_length=8'):
    dataclasses.replace(task, overlap=8)


def test_corpus_without_text_is_refused(task):
  with pytest.raises(ValueError, match='two tokens or more'):
    task.columns([{'targets': 'f'}])


@pytest.mark.parametrize('overlap', [0, 5])
def test_loss_is_the_cross_entropy_of_the_logits(task, model, close, overlap):
  task = dataclasses.replace(task, overlap=overlap)
  fields = task.columns([{'targets': TEXT}])
  lengths = np.stack([f.lengths for f in fields.values()], axis=1)
  batch = Batches(fields, bucket(lengths, buckets=1), tokens=999, seed=None)[0]
  loss, _ = jax.jit(task.loss)(model, jax.tree.map(jnp.asarray, batch), None)
  total = 0.0
  for i in range(len(fields['inputs'])):
    row = np.zeros((1, task.max_length), np.int32)
    row[0, : len(fields['inputs'][i])] = fields['inputs'][i]
    segments = np.arange(task.max_length) < len(fields['inputs'][i])
    logits = logits_of(model, row, segments.astype(np.int32)[None])[0, segments]
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    judged = np.arange(overlap if i else 0, len(logits))
    total -= float(log_p[judged, fields['targets'][i][judged]].sum())
  close(loss.sum, total)
  assert float(loss.weight) == len(task.tokenizer.encode(TEXT)) - 1
  measured = compute_metrics(task, model, [jax.tree.map(jnp.asarray, batch)], [{'targets': TEXT}])
  assert measured['nll_per_token'] == pytest.approx(total / float(loss.weight), rel=1e-5)
  assert measured['perplexity_per_word'] == pytest.approx(math.exp(total / 11), rel=1e-4)
  assert measured['bits_per_byte'] == pytest.approx(total / len(TEXT) / math.log(2), rel=1e-5)
  assert set(measured) == set(task.metrics)


def longhand(task, model, prompt):
  """Greedy, one full pass over the window for every token."""
  text = task.tokenizer.encode(prompt)
  produced = 0
  while produced < task.decoding.max_new_tokens:
    steps = min(task.max_length // 2, task.decoding.max_new_tokens - produced)
    context = text[-(task.max_length - steps) :]
    for _ in range(steps):
      row = jnp.asarray([context + [0] * (task.max_length - len(context))])
      segments = (jnp.arange(task.max_length) < len(context)).astype(int)[None]
      logits = logits_of(model, row, segments)[0, len(context) - 1]
      context.append(int(jnp.argmax(logits)))
      text.append(context[-1])
    produced += steps
  return task.tokenizer.decode(text)[len(prompt) :]


def test_greedy_equals_a_search_without_cache_in_moving_windows(task, model):
  prompts = ['the', 'quick brown fox', 'o']
  found = predict(task, model, prompts)
  assert found == [longhand(task, model, prompt) for prompt in prompts]


@pytest.mark.parametrize('decoding', [GREEDY, DRAWN], ids=['greedy', 'drawn'])
def test_stream_equals_predict(task, model, decoding):
  task = dataclasses.replace(task, decoding=decoding)
  for prompt in ('the', 'over the lazy dog'):
    pieces = list(task.stream(model, prompt))
    assert len(pieces) > 5
    assert ''.join(pieces) == predict(task, model, [prompt])[0]


def test_a_stream_that_ends_within_a_character_is_whole(monkeypatch):
  tokenizer = tokenizers.train([], kind='bytes', vocab=260)
  config = ModelConfig(vocab=tokenizer.size, width=8, heads=2)
  model = jax.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
  decoding = Decoding(max_new_tokens=3, batch_size=1)
  task = LanguageModel(tokenizer=tokenizer, decoding=decoding, max_length=64, documents=True)
  new = tokenizer.encode('a\U0001f600')[:3]
  for found in (new, [*new, tokenizer.eos]):
    monkeypatch.setattr(language_model, 'stream_tokens', lambda *_, found=found: iter(found))
    assert ''.join(task.stream(model, 'b')) == tokenizer.decode(new) == 'a\ufffd'


def test_samples_of_a_line_do_not_depend_on_other_lines(task, model):
  drawn = dataclasses.replace(task, decoding=DRAWN)
  prompts = ['the', 'fox', 'quick', 'dog', 'lazy']
  together = predict(drawn, model, prompts)
  assert [predict(drawn, model, [prompt])[0] for prompt in prompts] == together
  other = dataclasses.replace(task, decoding=dataclasses.replace(DRAWN, seed=4))
  assert predict(other, model, prompts) != together
  assert len(set(together)) == 5


def test_generation_stops_at_the_end_token(task, model):
  """The model is made to say the end token at once."""
  ends = dataclasses.replace(task, documents=True, max_length=16)
  sure = jax.tree.map(lambda x: x, model)
  sure.embed.table[...] = (
    model.embed.table[...].at[2].set(100 * model.states(jnp.array([[1]]))[0, 0])
  )
  assert predict(ends, sure, ['']) == ['']
  assert ''.join(ends.stream(sure, '')) == ''


def test_beam_search_scores_no_worse_than_greedy_and_needs_one_window(task, model):
  with pytest.raises(ValueError, match='beams cannot move'):
    dataclasses.replace(task, decoding=dataclasses.replace(GREEDY, beams=4))
  wide = dataclasses.replace(task, decoding=dataclasses.replace(GREEDY, beams=4, max_new_tokens=4))
  assert with_fast_decoding(wide).decoding.beams == 1
  prompts, compared = ['the', 'fox', 'over', 'dog', 'lazy', 'quick b'], 0

  def log_p(prompt, continuation):
    tokens = task.tokenizer.encode(prompt + continuation)
    row = np.zeros((1, 16), np.int32)
    row[0, : len(tokens)] = tokens
    logits = logits_of(model, row, np.sign(row))[0, : len(tokens)]
    n = len(task.tokenizer.encode(prompt))
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    return log_p[np.arange(n - 1, len(tokens) - 1), tokens[n:]].sum()

  for prompt, found, plain in zip(
    prompts,
    predict(wide, model, prompts),
    predict(with_fast_decoding(wide), model, prompts),
    strict=True,
  ):
    if len(found) == len(plain) == 4:  # no special token in it
      compared += 1
      assert log_p(prompt, found) >= log_p(prompt, plain) - 1e-4
  assert compared


def test_attention_of_a_line_is_causal(task, model, close):
  weights, rows, columns = attend(task, model, 'the fox')
  assert weights.shape == (2, 2, 7, 7) and rows == columns == list('the fox')
  close(weights.sum(-1), np.ones((2, 2, 7)))
  assert not np.triu(weights, 1).any()


def test_empty_prompt_needs_a_start_token(task, model):
  with pytest.raises(ValueError, match='the line is empty'):
    predict(task, model, [''])
  with pytest.raises(ValueError, match='pass a list'):
    predict(task, model, 'the')
  assert predict(task, model, ['', 'the'], truncate=True) == ['', predict(task, model, ['the'])[0]]
