"""Tests of inference/generate.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TOLERANCE
from parameters import drawn

from transformer.data import tokenizers
from transformer.functional import constraints
from transformer.inference import generate as module
from transformer.inference.decoding import Decoding
from transformer.inference.generate import generate
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, EncoderDecoder
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.seq2seq import Seq2Seq

SIZES = dict(width=16, depth=2, heads=2, feedforward=24, max_length=24, prenorm=True, unroll=1)
PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 5, 12]]
PADDED = np.array([[*prompt, *[0] * (5 - len(prompt))] for prompt in PROMPTS])
SAMPLED = dict(temperature=1.0, top_k=5, pad=0)
LINES = ['abc', 'd', 'ponm']
SIX = Decoding(max_new_tokens=6, batch_size=2)


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(['abcdefghijklmnop'], kind='characters', vocab=24)


def model_of(kind, tokenizer, **changes):
  from flax import nnx

  config = ModelConfig(vocab=tokenizer.size, **SIZES | dict(position='learned') | changes)
  model = drawn(lambda: kind(config, nnx.Rngs(0)))
  return jax.tree.map(lambda x: 3 * x, model)  # or it repeats one token


@pytest.fixture(scope='module')
def decoder(tokenizer):
  return model_of(Decoder, tokenizer)


@pytest.fixture(scope='module')
def translator(tokenizer):
  return model_of(EncoderDecoder, tokenizer)


forward = jax.jit(lambda model, row, segments: model(row, segments=segments))


def longhand(model, prompt, steps, eos=None):
  """Greedy search by a full pass for every token."""
  tokens = list(prompt)
  for _ in range(steps):
    row = np.zeros((1, 24), np.int32)
    row[0, : len(tokens)] = tokens
    segments = (np.arange(24) < len(tokens)).astype(np.int32)[None]
    logits = np.asarray(forward(model, row, segments))
    tokens.append(int(np.argmax(logits[0, len(tokens) - 1])))
    if tokens[-1] == eos:
      break
  return tokens[len(prompt) :]


def test_greedy_equals_a_loop_without_cache_for_any_padding(decoder):
  expected = [longhand(decoder, prompt, 8) for prompt in PROMPTS]
  assert len({*map(tuple, expected)}) == 3 and len({*expected[0]}) > 2
  assert generate(decoder, PROMPTS, max_new_tokens=8).tolist() == expected
  right = np.full((3, 6), 2, np.int32)
  left = right.copy()
  for row, prompt in enumerate(PROMPTS):
    right[row, : len(prompt)] = left[row, 6 - len(prompt) :] = prompt
  for padded in (right, left, jnp.asarray(left)):
    assert generate(decoder, padded, max_new_tokens=8, pad=2).tolist() == expected
  whole = generate(decoder, np.array(PROMPTS[:1]), max_new_tokens=8)  # without padding
  assert whole.tolist() == expected[:1]


def test_output_has_pad_after_eos(decoder):
  (plain,) = generate(decoder, PROMPTS[:1], max_new_tokens=8).tolist()
  eos = plain[3]
  end = plain.index(eos)
  expected = [*plain[: end + 1], *[23] * (7 - end)]
  assert generate(decoder, PROMPTS[:1], max_new_tokens=8, eos=eos, pad=23).tolist() == [expected]
  assert longhand(decoder, PROMPTS[0], 8, eos) == plain[: end + 1]
  (zeros,) = generate(decoder, PROMPTS[:1], max_new_tokens=8, eos=eos).tolist()
  assert zeros == [*plain[: end + 1], *[0] * (7 - end)]


@pytest.mark.parametrize('settings', [dict(), dict(beams=3, alpha=0.6)], ids=['greedy', 'beams'])
def test_generate_equals_predict_of_the_tasks(decoder, translator, tokenizer, settings):
  decoding = dataclasses.replace(SIX, **settings)
  task = LanguageModel(tokenizer=tokenizer, decoding=decoding, max_length=16, documents=True)
  prompts = [task.processor.encode_example(line) for line in LINES]
  eos = tokenizer.eos
  found = generate(decoder, prompts, max_new_tokens=6, eos=eos, pad=0, **settings)
  assert [tokenizer.decode(row) for row in found.tolist()] == predict(task, decoder, LINES)

  task = Seq2Seq(tokenizer=tokenizer, decoding=decoding, max_length=16)
  inputs = [task.processor.encode_example(line) for line in LINES]
  found = generate(
    translator, inputs, max_new_tokens=6, start=tokenizer.bos, eos=eos, pad=0, **settings
  )
  assert [tokenizer.decode(row) for row in found.tolist()] == predict(task, translator, LINES)


def test_samples_are_a_function_of_the_key_and_the_row(decoder):
  def sample(prompts, seed):
    key = jax.random.key(seed)
    return generate(decoder, prompts, max_new_tokens=8, key=key, **SAMPLED).tolist()

  found = sample(PADDED, 0)
  assert [sample(row[None], 0)[0] for row in PADDED] == found
  assert sample(PADDED, 1) != found
  with pytest.raises(ValueError, match='pass key=jax.random.key'):
    generate(decoder, PROMPTS, max_new_tokens=8, temperature=1.0)


def test_second_call_of_the_same_shape_compiles_nothing(decoder, translator):
  calls = [
    lambda seed: generate(decoder, PADDED, max_new_tokens=8, key=jax.random.key(seed), **SAMPLED),
    lambda seed: generate(translator, PROMPTS, max_new_tokens=6, start=1, eos=2, pad=0),
  ]
  for call, compiled in zip(calls, (module.continue_prompts, module.decode_inputs), strict=True):
    call(0)
    before = compiled._cache_size()
    call(1)
    assert compiled._cache_size() == before


@pytest.mark.parametrize(
  'tokens, settings, message',
  [
    ([[5], []], {}, 'prompt 1 is empty'),
    ([], {}, 'pass at least one'),
    ([[5, 99]], {}, 'prompt 0 has ids from 5 to 99, but the model has ids 0 to'),
    ([[-1]], {}, 'prompt 0 has ids from -1'),
    (np.array([5, 6]), {}, r'tokens are \[2\]: pass \[B, S\]'),
    (np.array([[0, 0]]), dict(pad=0), 'prompt 0 is empty'),
    ([[5] * 20], dict(max_new_tokens=9), '28 tokens are more than the 24 learned positions'),
    ([[5]], dict(start=1), 'a Decoder continues its prompt, so pass no start'),
    ([[5]], dict(beams=2, temperature=1.0), 'set beams to 1 or temperature to 0'),
    ([[2**40]], {}, 'prompt 0 has ids from 1099511627776'),
    ([[5]], dict(suppress=(3, 99)), r'decode.suppress has ids \[99\], but the model has ids 0 to'),
    ([[5]], dict(begin_suppress=(-1,)), r'decode.begin_suppress has ids \[-1\]'),
    ([[5]], dict(bad_words=((5, 99),)), r'decode.bad_words has ids \[99\]'),
    ([[5]], dict(choices=((5, 99),), eos=2), r'decode.choices has ids \[99\]'),
    ([[5]], dict(eos=[2, 99]), r'decode.eos has ids \[99\]'),
  ],
)
def test_invalid_arguments_are_refused(decoder, tokens, settings, message):
  settings = dict(max_new_tokens=4, key=jax.random.key(0)) | settings
  with pytest.raises(ValueError, match=message):
    generate(decoder, tokens, **settings)


@pytest.mark.parametrize(
  'tokens', [[[5.5, 6.0]], [5, 6], ['ab'], [[True]], np.array([[5.5]]), [[[5], [6]]]], ids=str
)
def test_what_is_no_id_is_refused_and_not_rounded(tokens):
  with pytest.raises(ValueError, match='are no ids: pass integers'):
    module._rows(tokens, None, ModelConfig(vocab=24, **SIZES))


N = 20  # tokens
DEAD_ENDS = {
  'every token': dict(suppress=tuple(range(N))),
  'a prefix that is a bad word': dict(prefix=(5, 6), bad_words=((5, 6),)),
  'choices that are forbidden': dict(choices=((5,), (6, 7)), suppress=(5, 6), eos=2),
  'more tokens than there are': dict(no_repeated_ngrams=1, max_new_tokens=N),
}


@pytest.mark.parametrize(
  'name, search',
  [
    ('a prefix that is a bad word', {}),
    *(
      pytest.param(name, search, marks=pytest.mark.slow)
      for search in ({}, dict(beams=2), dict(temperature=1.0), dict(draft=None))
      for name in (['every token'] if search else DEAD_ENDS)
    ),
  ],
  ids=str,
)
def test_where_every_token_is_forbidden_none_is_said(decoder, name, search):
  settings = dict(max_new_tokens=4, key=jax.random.key(0)) | DEAD_ENDS[name] | search
  if 'draft' in search:
    settings['draft'] = decoder
  assert decoder.config.vocab == N
  with pytest.raises(ValueError, match='no output is possible'):
    generate(decoder, [[8]], **settings)


def test_a_prefix_may_have_suppressed_tokens(decoder):
  settings = dict(prefix=(5, 6), suppress=(6, 7), eos=-1, max_new_tokens=6)
  found = generate(decoder, [[8]], **settings)[0].tolist()
  assert found[:2] == [5, 6] and not {6, 7} & {*found[2:]}
  # forbidden after the prefix, and there alone
  other = generate(decoder, [[8]], **settings, begin_suppress=(5, found[2]))[0].tolist()
  assert other[:2] == [5, 6] and other[2] != found[2]


FRAMES = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)


@pytest.mark.parametrize('modality', ['frames', 'patches'])
def test_sounds_and_images_are_inputs(modality, tokenizer):
  model = model_of(EncoderDecoder, tokenizer, modality=modality, features=3, tie='output')
  how = dict(start=1, eos=2, pad=0, max_new_tokens=6)
  found = generate(model, FRAMES, **how)
  tokens = np.ones((2, 7), np.int32)
  for i in range(6):
    logits = np.array(teacher_forced(model, FRAMES, tokens)[:, i])
    logits[:, :2] = -np.inf  # padding and start
    tokens[:, i + 1] = logits.argmax(-1)
  for row, expected in zip(found.tolist(), tokens[:, 1:].tolist(), strict=True):
    end = expected.index(2) + 1 if 2 in expected else 6
    assert row == expected[:end] + [0] * (6 - end)
  if modality == 'frames':  # of any length
    shorter = generate(model, [FRAMES[0], FRAMES[1, :5]], **how)
    np.testing.assert_array_equal(shorter[0], found[0])
    np.testing.assert_array_equal(shorter[1], generate(model, FRAMES[1:, :5], **how)[0])


teacher_forced = jax.jit(lambda model, inputs, targets: model(inputs, targets))


@pytest.mark.parametrize(
  'inputs, words',
  [
    (FRAMES[..., :2], r'pass patches \[B, S, 3\]'),
    ([FRAMES[0, 0]], r'inputs are \[\(3,\)\]'),
    (FRAMES * np.nan, 'patches have NaN or Inf'),
    ([FRAMES[0], FRAMES[1, :5]], 'pass images of one size'),
    ([], 'there are no prompts'),
  ],
  ids=range(5),
)
def test_other_arrays_than_images_are_refused(inputs, words, tokenizer):
  model = model_of(EncoderDecoder, tokenizer, modality='patches', features=3, tie='output')
  with pytest.raises(ValueError, match=words):
    generate(model, inputs, start=1)


def nearly(model):
  """A model that often says the same."""
  return jax.tree.map(lambda x: x + 0.02 * jnp.sin(1e3 * x), model)


@pytest.mark.parametrize('kind', ['decoder', pytest.param('translator', marks=pytest.mark.slow)])
def test_a_draft_changes_no_greedy_output(kind, decoder, translator):
  model, how = (decoder, {}) if kind == 'decoder' else (translator, dict(start=1))
  how |= dict(max_new_tokens=8, eos=2, pad=0)
  plain = module.generate_outputs(model, PROMPTS, **how)
  found = module.generate_outputs(model, PROMPTS, draft=nearly(model), lookahead=3, **how)
  assert found.tokens.tolist() == plain.tokens.tolist()
  np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-4, atol=TOLERANCE['float32'])


def test_a_draft_of_other_tokens_is_refused(decoder, translator, tokenizer):
  with pytest.raises(ValueError, match='pass a Decoder of the'):
    generate(decoder, PROMPTS, max_new_tokens=8, draft=translator)
  with pytest.raises(ValueError, match='beams=2 with a draft'):
    generate(decoder, PROMPTS, max_new_tokens=8, draft=decoder, beams=2)


def test_a_stopping_string_ends_an_output(decoder, tokenizer):
  plain = generate(decoder, PROMPTS, max_new_tokens=8).tolist()
  text = ''.join(tokenizer.pieces(plain[0][2:4]))
  how = dict(max_new_tokens=8, tokenizer=tokenizer, stop=(text, 'never'), pad=23)
  (first, *_) = generate(decoder, PROMPTS, **how).tolist()
  end = next(
    i for i in range(8) if ''.join(tokenizer.pieces(PROMPTS[0] + plain[0][: i + 1])).endswith(text)
  )
  assert first == plain[0][: end + 1] + [23] * (7 - end)
  with pytest.raises(ValueError, match='pass the tokenizer='):
    generate(decoder, PROMPTS, max_new_tokens=8, stop='x')


def test_outputs_are_given_best_first_with_scores(decoder):
  how = dict(max_new_tokens=6, eos=2, pad=0, beams=3)
  found = module.generate_outputs(decoder, PROMPTS, num_return_sequences=3, **how)
  assert found.tokens.shape == (3, 3, 6) and found.scores.shape == (3, 3)
  assert (np.diff(found.scores, axis=1) <= 0).all()
  rows = generate(decoder, PROMPTS, num_return_sequences=2, **how)
  assert rows.tolist() == found.tokens[:, :2].reshape(6, 6).tolist()
  assert len({tuple(row) for row in found.tokens[0].tolist()}) == 3
  with pytest.raises(ValueError, match='more than decode.beams=1'):
    generate(decoder, PROMPTS, num_return_sequences=2)


def test_choices_are_the_only_outputs(decoder):
  choices = ((5, 6), (5, 7, 8), (9,))
  how = dict(max_new_tokens=5, eos=2, pad=0, choices=choices)
  allowed = [[*choice, 2, *[0] * (4 - len(choice))] for choice in choices]
  assert all(row in allowed for row in generate(decoder, PROMPTS, **how).tolist())
  beams = generate(decoder, PROMPTS, beams=3, num_return_sequences=3, **how).tolist()
  assert [sorted(beams[i : i + 3]) for i in (0, 3, 6)] == [sorted(allowed)] * 3
  with pytest.raises(ValueError, match='choices needs an end token'):
    generate(decoder, PROMPTS, max_new_tokens=5, choices=choices)


def test_encoder_decoder_needs_a_start_token(translator):
  with pytest.raises(ValueError, match='an EncoderDecoder needs start='):
    generate(translator, PROMPTS, max_new_tokens=4)


def test_nan_raises_in_generate_predict_and_stream(decoder, tokenizer):
  broken = jax.tree.map(lambda x: x * np.nan, decoder)
  # shapes and settings as above: compiled before
  for prompts, settings in ((PROMPTS, {}), (PADDED, SAMPLED | dict(key=jax.random.key(0)))):
    with pytest.raises(FloatingPointError, match='NaN'):
      generate(broken, prompts, max_new_tokens=8, **settings)
  task = LanguageModel(tokenizer=tokenizer, decoding=SIX, max_length=16, documents=True)
  with pytest.raises(FloatingPointError, match='NaN'):
    predict(task, broken, LINES)
  for settings in (dict(), dict(temperature=1.0, top_p=0.9)):
    decoding = Decoding(max_new_tokens=4, batch_size=1, **settings)
    task = LanguageModel(tokenizer=tokenizer, decoding=decoding, max_length=16)
    with pytest.raises(FloatingPointError, match='NaN'):
      list(task.stream(broken, 'abc'))


def test_a_constraint_of_ones_own_applies(decoder):
  automaton = constraints.Automaton([{5: 1, 6: 1}, {7: 0}])
  rows = generate(
    decoder, PROMPTS, max_new_tokens=4, constraint=constraints.follow(automaton)
  ).tolist()
  assert all({a, c} <= {5, 6} and b == d == 7 for a, b, c, d in rows)
