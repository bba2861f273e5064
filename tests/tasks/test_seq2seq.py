"""Tests of tasks/seq2seq.py, with a tiny model whose outputs are long and varied."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit

from transformer.data import pipeline, tokenizers
from transformer.functional import search
from transformer.inference.attention_maps import attend
from transformer.inference.decoding import Decoding
from transformer.inference.predict import predict
from transformer.modules import sites
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.tasks.seq2seq import Seq2Seq, shift_right
from transformer.training.diagnosis import first_not_finite

GREEDY = Decoding(beams=1, alpha=0.0, max_new_tokens=20, batch_size=4)
BEAM = Decoding(beams=4, alpha=0.6, max_new_tokens=20, batch_size=4)
LONGEST = 16
LINES = [
  'abc', 'cab', 't', 'qrst ab', 'ponmlkj', 'a', 'hello there', 'bca', 'abcdefghijklmno', 'no', 'abc'
]  # fmt: skip


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(['abcdefghijklmnopqrst '], kind='characters', vocab=40)


@pytest.fixture(scope='module')
def greedy(tokenizer):
  return Seq2Seq(
    tokenizer=tokenizer,
    decoding=GREEDY,
    max_length=LONGEST,
    label_smoothing=0.1,
    z_loss=0.0,
    start='bos',
  )


@pytest.fixture(scope='module', params=[GREEDY, BEAM], ids=['greedy', 'beam'])
def task(request, greedy):
  return dataclasses.replace(greedy, decoding=request.param)


@pytest.fixture(scope='module')
def config(tokenizer):
  return ModelConfig(
    vocab=tokenizer.size,
    width=16,
    depth=2,
    heads=2,
    feedforward=32,
    max_length=24,
    prenorm=True,
    position='learned',
    tie='none',
    dropout=0.0,
    unroll=1,
  )


def random_model(task, config, seed, size):
  """Drawn by NumPy: nothing to compile."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    if 'scale' in name:
      return jnp.ones(leaf.shape)
    return jnp.asarray(('bias' not in name) * size * rng.normal(size=leaf.shape), jnp.float32)

  shapes = jax.eval_shape(lambda: task.init(config, jax.random.key(0)))
  return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope='module')
def model(greedy, config):
  """Its parameters are so large that the outputs wander: untrained models repeat one token."""
  model = random_model(greedy, config, seed=4, size=0.8)
  for stack in (model.encoder, model.decoder):
    stack.positions.table[...] = 2 * stack.positions.table[...]
  model.output.table[...] = model.output.table[...].at[greedy.tokenizer.eos].multiply(1.5)
  return model


def test_consistency_adds_the_divergence_of_two_passes(greedy, config, close):
  rows = jnp.array([[5, 6, 7, 3], [8, 3, 0, 0]])
  segments = (rows != 0).astype(jnp.int32)
  batch = dict(inputs=rows, inputs_segments=segments, targets=rows, targets_segments=segments)
  model = random_model(greedy, config, 0, 0.5)
  dropping = random_model(greedy, dataclasses.replace(config, dropout=0.5), 0, 0.5)
  one, three = (dataclasses.replace(greedy, consistency=factor) for factor in (1.0, 3.0))

  @jax.jit
  def losses(model, dropping):
    key = jax.random.key(1)
    means = [greedy.loss(model, batch, None), one.loss(model, batch, None)]  # one pass
    means += [one.loss(model, batch, key)]  # two passes without dropout
    means += [one.loss(dropping, batch, key), three.loss(dropping, batch, key)]
    return [(loss.value, plain['nll_per_token'].value) for loss, plain in means]

  plain, single, alike, once, thrice = losses(model, dropping)
  jax.tree.map(close, (single, alike), (plain, plain))
  assert thrice[0] > once[0] + 0.01 and thrice[1] == once[1]


def poisoned(model, path, value, layer=None):
  """The model with one number of one parameter replaced."""

  def change(at, x):
    if not jax.tree_util.keystr(at, simple=True, separator='/').startswith(path):
      return x
    return x.at[(0,) * x.ndim if layer is None else (layer, *(0,) * (x.ndim - 1))].set(value)

  return jax.tree_util.tree_map_with_path(change, model)


def random_pairs(count, seed=0):
  rng = np.random.default_rng(seed)
  line = lambda: ''.join(rng.choice(list('abcdefghijklmnop'), rng.integers(1, 15)))  # noqa: E731
  return [{'inputs': line(), 'targets': line()} for _ in range(count)]


def batch_of(task, pairs, pack=0):
  """All pairs in one batch, on the device."""
  fields = task.columns(pairs)
  lengths = np.stack([ragged.lengths for ragged in fields.values()], axis=1)
  rows = pipeline.pack(lengths, length=pack) if pack else pipeline.bucket(lengths, buckets=1)
  batches = pipeline.Batches(fields, rows, tokens=1, multiple=8 // (1 + bool(pack)))
  assert len(batches) == 1
  return jax.tree.map(jnp.asarray, batches[0])


@pytest.fixture(scope='module')
def batch(greedy):
  return batch_of(greedy, random_pairs(7))


@pytest.fixture(scope='module')
def forward():
  """Teacher-forced logits."""
  return jax.jit(lambda model, inputs, read, *s: model(inputs, read, **dict(zip(SEGMENTS, s))))  # noqa: B905


SEGMENTS = ('input_segments', 'target_segments')


def test_shift_right_equals_a_loop_over_segments(rng):
  for _ in range(50):
    targets, segments = np.zeros((2, 4, 17), np.int32)
    expected = np.zeros_like(targets)
    for row in range(4):
      end = 0
      for segment, length in enumerate(rng.integers(1, 8, rng.integers(0, 4)), start=1):
        start, end = end, min(end + length, 17)
        tokens = rng.integers(2, 30, end - start)
        targets[row, start:end], segments[row, start:end] = tokens, segment
        expected[row, start:end] = [1, *tokens[:-1]][: end - start]
    found = shift_right(jnp.asarray(targets), jnp.asarray(segments), 1)
    np.testing.assert_array_equal(np.where(segments, found, 0), expected)


def test_columns_are_tokens_and_end_token(greedy, tokenizer):
  pairs = random_pairs(5)
  for side, ragged in greedy.columns(pairs).items():
    for pair, tokens in zip(pairs, ragged, strict=True):
      assert list(tokens) == [*tokenizer.encode(pair[side]), tokenizer.eos]


def test_loss_is_smoothed_and_its_metric_is_not(greedy, model, batch, forward, close):
  read = shift_right(batch['targets'], batch['targets_segments'], 1)
  segments = batch['inputs_segments'], batch['targets_segments']
  logits = np.asarray(forward(model, batch['inputs'], read, *segments), np.float64)
  valid = np.asarray(batch['targets_segments']) != 0
  log_z = np.log(np.exp(logits).sum(-1))
  log_p = logits - log_z[..., None]
  nll = -np.take_along_axis(log_p, np.asarray(batch['targets'])[..., None], -1)[..., 0]

  settings = [(0.0, 0.0), (0.1, 0.0), (0.3, 0.01)]
  tasks = [
    Seq2Seq(
      tokenizer=greedy.tokenizer,
      decoding=GREEDY,
      max_length=16,
      label_smoothing=a,
      z_loss=z,
      start='bos',
    )
    for a, z in settings
  ]
  found, measured = jax.jit(
    lambda *args: ([task.loss(*args, None) for task in tasks], greedy.batch_metrics(*args))
  )(model, batch)
  for (a, z), (objective, metrics) in zip(settings, found, strict=True):
    smoothed = (1 - a) * nll + a * -log_p.mean(-1) + z * log_z**2
    close(objective.sum, smoothed[valid].sum())
    close(metrics['nll_per_token'].sum, nll[valid].sum())
    assert objective.weight == metrics['nll_per_token'].weight == valid.sum()
  close(measured['nll_per_token'].value, nll[valid].mean())
  right = logits.argmax(-1) == np.asarray(batch['targets'])
  close(measured['token_accuracy'].value, right[valid].mean())


def test_loss_of_a_batch_is_the_sum_over_rows_packed_or_not(greedy, model, batch, close):
  loss = jax.jit(lambda model, batch: greedy.loss(model, batch, None))
  pairs = random_pairs(7)
  whole, _ = loss(model, batch)
  assert np.asarray(whole.weight) == sum(len(pair['targets']) + 1 for pair in pairs)
  alone = []
  for pair in pairs:
    row = batch_of(greedy, [pair])
    row = {name: jnp.pad(x, ((0, 0), (0, 16 - x.shape[1]))) for name, x in row.items()}
    alone.append(loss(model, row)[0])
  close(whole.sum, sum(float(mean.sum) for mean in alone))
  packed = batch_of(greedy, pairs, pack=40)
  assert np.asarray(packed['targets_segments']).max() > 1
  together, metrics = loss(model, packed)
  close(together.sum, float(whole.sum))
  close(metrics['nll_per_token'].weight, float(whole.weight))


def test_random_model_has_varied_outputs(task, model):
  """Else the laws below would hold for a model that always says the same."""
  outputs = [row.tolist() for row in found_by(task, model)[0][:, 0]]
  ends = [row.index(2) if 2 in row else len(row) for row in outputs]
  said = [tuple(row[:end]) for row, end in zip(outputs, ends, strict=True)]
  assert len(set(said)) >= 0.8 * len(set(LINES))
  assert np.mean(ends) > 8 and np.mean([len(set(row)) for row in said]) > 2.5
  assert min(ends) < 20 == max(ends)
  assert not any({0, 1} & {*row} for row in said)  # nor does it ever say <pad> or <s>


def test_output_does_not_depend_on_other_lines(task, model, rng):
  outputs = dict(zip(LINES, predict(task, model, LINES), strict=True))
  for line in outputs:
    assert predict(task, model, [line]) == [outputs[line]]
  for count in (2, 3, 4, 5, 9, 23):
    lines = [str(line) for line in rng.choice(LINES, count)]
    assert predict(task, model, iter(lines)) == [outputs[line] for line in lines]
  assert predict(task, model, []) == []


def test_score_is_bit_identical_in_any_row(task, model):
  tokens = [[*task.tokenizer.encode(line), task.tokenizer.eos] for line in LINES[:4]]
  inputs = np.zeros((4, 8), np.int32)
  for row, of_line in enumerate(tokens):
    inputs[row, : len(of_line)] = of_line
  found, scores = map(np.asarray, task.search(model, jnp.asarray(inputs)))
  for order in ([1, 2, 3, 0], [3, 2, 1, 0], [2, 2, 2, 2], [0, 1, 1, 1]):
    again, scores_again = map(np.asarray, task.search(model, jnp.asarray(inputs[order])))
    np.testing.assert_array_equal(again, found[order])
    np.testing.assert_array_equal(scores_again, scores[order])


def found_by(task, model):
  """task.search for all LINES, padded more than predict does, in batches of its rows."""
  inputs = np.zeros((12, 16), np.int32)
  for row, line in enumerate([*LINES, LINES[0]]):
    inputs[row, : len(line) + 1] = task.processor.encode_example(line)
  parts = [task.search(model, jnp.asarray(inputs[i : i + 4])) for i in (0, 4, 8)]
  return [np.concatenate([np.asarray(part[i]) for part in parts])[: len(LINES)] for i in (0, 1)]


def test_search_score_equals_teacher_forcing(task, model, forward, close):
  tokenizer = task.tokenizer
  found, scores = found_by(task, model)
  assert [tokenizer.decode(best) for best in found[:, 0]] == predict(task, model, LINES)
  inputs = np.zeros((len(LINES) * 4, 13 + 3), np.int32)
  targets, segments = np.zeros((2, len(LINES) * 4, task.decoding.max_new_tokens), np.int32)
  expected = np.zeros(len(targets), np.float32)
  for row in range(len(targets)):
    line, beam = row // 4, row % found.shape[1]
    inputs[row, : len(LINES[line]) + 1] = task.processor.encode_example(LINES[line])
    output = found[line, beam].tolist()
    end = output.index(tokenizer.eos) + 1 if tokenizer.eos in output else len(output)
    targets[row, :end], segments[row, :end] = output[:end], 1
    expected[row] = scores[line, beam]
  targets, segments = jnp.asarray(targets), jnp.asarray(segments)
  inputs = jnp.asarray(inputs)
  read = shift_right(targets, segments, tokenizer.bos)
  log_p = jax.nn.log_softmax(
    forward(model, inputs, read, (inputs != 0).astype(jnp.int32), segments)
  )
  log_p = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0] * segments
  lengths = segments.sum(1)
  penalty = ((5 + lengths) / 6) ** task.decoding.alpha
  close(expected, log_p.sum(1) / penalty)


def test_greedy_equals_beam_search_with_one_beam(greedy, model):
  @functools.partial(jax.jit, static_argnums=2)
  def one_beam(model, inputs, steps):
    segments = (inputs >= 0).astype(jnp.int32)
    memory = model.encode(jnp.maximum(inputs, 0), segments=segments)

    def step(tokens, cache):
      ones = jnp.ones((len(tokens), 1), jnp.int32)
      logits, cache = model.decode(tokens[:, None], memory, segments=ones, cache=cache)
      return logits[:, 0], cache

    cache, first = model.init_cache(len(inputs), steps), jnp.full(len(inputs), 1, jnp.int32)
    constrain = greedy.decoding.for_model(model, (0, 1), eos=2).constrain(first[:, None], 2)
    settings = dict(steps=steps, eos=2, alpha=0.0, reorder=Cache.take, constrain=constrain)
    return search.beam_search(step, cache, first, beams=1, **settings)

  lines = LINES[:4]
  inputs = np.full((4, 8), -1, np.int32)
  for row, line in enumerate(lines):
    inputs[row, : len(line) + 1] = greedy.processor.encode_example(line)
  tokens, scores = one_beam(model, jnp.asarray(inputs), GREEDY.max_new_tokens)
  expected, expected_scores = greedy.search(model, jnp.asarray(inputs))
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_the_best_outputs_come_with_their_scores(greedy, model):
  task = dataclasses.replace(greedy, decoding=dataclasses.replace(BEAM, num_return_sequences=3))
  requests = [greedy.processor.encode_example(line) for line in ('abc', 'ed')]
  found = task.n_best(model, requests)
  assert [len(each) for each in found] == [3, 3]
  assert [each[0][0] for each in found] == task.answer(model, requests)
  assert all(each[0][1] >= each[1][1] >= each[2][1] for each in found)
  sampled = dataclasses.replace(BEAM, beams=1, temperature=1.0, num_return_sequences=3)
  with pytest.raises(ValueError, match='is more than decode.beams=1'):
    dataclasses.replace(task, decoding=sampled).n_best(model, requests)


def test_beam_search_mostly_scores_no_worse_than_greedy(greedy, model):
  plain = dataclasses.replace(
    greedy, decoding=Decoding(beams=4, alpha=0.6, max_new_tokens=20, batch_size=4)
  )
  best, alone = found_by(plain, model), found_by(greedy, model)
  lengths = np.array([[*row, 2].index(2) + 1 for row in alone[0][:, 0].tolist()]).clip(max=20)
  greedy_scores = alone[1][:, 0] / ((5 + lengths) / 6) ** 0.6
  assert np.mean(best[1][:, 0] >= greedy_scores - 1e-5) > 0.8  # a beam may lose the greedy path
  assert (np.diff(best[1], axis=1) <= 0).all()


@pytest.mark.parametrize(
  'lines, message',
  [
    (['abc', ''], 'line 2: the line is empty: give it some text'),
    (['  '], 'line 1: the line is empty'),
    (
      ['abc', 'b', 'a' * 16],
      'line 3: the line has 17 tokens, more than the 16 .*: shorten or split it',
    ),
    ('abc', r'pass a list, \[line\]'),
  ],
)
def test_invalid_lines_are_refused_by_number(greedy, model, lines, message):
  with pytest.raises(ValueError, match=message):
    predict(greedy, model, lines)


def test_values_that_are_no_text_are_refused(greedy, model):
  for line in ('\ud800', None, b'abc', 3):
    with pytest.raises((TypeError, ValueError)):
      greedy.processor.encode_column([line])


def test_special_tokens_in_text_are_plain_text(greedy, model):
  odd = ['</s>', '<pad><s>', 'naïve', '日本', '\x00', 'a\nb', '😀']
  assert len(predict(greedy, model, odd)) == len(odd)


def test_truncate_shortens_long_and_accepts_empty_lines(task, model):
  long = 'abcdefghijklmnopqrst' * 3
  assert predict(task, model, [long, '', 'abc'], truncate=True)[::2] == predict(
    task, model, [long[:15], 'abc']
  )
  assert len(predict(task, model, ['', long, ''], truncate=True)) == 3


def test_predicting_with_nan_raises(task, model):
  with pytest.raises(FloatingPointError, match='NaN'):
    predict(task, poisoned(model, 'decoder/norm/scale', jnp.nan), ['abc'])


@pytest.mark.parametrize(
  'change',
  [{'beams': 0}, {'max_new_tokens': 0}, {'batch_size': 0}, {'alpha': -0.1}, {'alpha': math.nan}],
)
def test_invalid_decoding_settings_are_refused(change):
  ((name, _),) = change.items()
  with pytest.raises(ValueError, match=f'decode.{name}='):
    Decoding(**{**dict(beams=1, alpha=0.0, max_new_tokens=1, batch_size=1), **change})


@pytest.mark.parametrize(
  'path, value, layer, where',
  [
    ('embed/table', jnp.nan, None, 'parameter embed/table'),
    (
      'encoder/blocks/attention/key/kernel',
      jnp.inf,
      1,
      'parameter encoder/blocks/attention/key/kernel, layer 1',
    ),
    ('decoder/blocks/cross_norm/scale', jnp.nan, 0, None),
    ('encoder/blocks/feedforward/out/bias', 3e38, 1, 'the states of encoder layer 1'),
    ('decoder/blocks/feedforward/out/bias', 3e38, 0, 'the states of decoder layer 0'),
    ('output/table', 3e38, None, 'the gradient of '),
  ],
)
def test_first_not_finite_names_parameter_layer_or_gradient(
  greedy, model, batch, path, value, layer, where
):
  broken = poisoned(model, path, value, layer)
  if path.endswith('out/bias'):  # twice the largest number that float32 nearly holds
    broken = poisoned(broken, path.replace('out/bias', 'hidden/bias'), 1e30, layer)
    broken = poisoned(broken, path.replace('out/bias', 'out/kernel'), 1e30, layer)
  host = jax.tree.map(np.asarray, batch)  # as the training loop has it
  found = first_not_finite(greedy, broken, host)
  assert found.startswith(where or f'parameter {path}, layer {layer}')


def test_attend_uses_the_predicted_output(task, model, close):
  for line in ('abc', 't', 'qrst ab', 'hello there'):
    weights, rows, columns = attend(task, model, line)
    assert weights.shape == (2, 2, len(rows), len(columns))
    assert columns == [*line, '</s>']
    specials = tokenizers.SPECIALS
    text = ''.join(piece for piece in rows if piece not in specials)
    assert [text] == predict(task, model, [line])
    assert '</s>' not in rows[:-1] and (rows[-1] == '</s>' or len(rows) == 20)
    close(weights.sum(-1), np.ones(weights.shape[:-1]))


def test_attend_equals_the_teacher_forced_weights(greedy, model, close):
  weights, rows, _ = attend(greedy, model, 'qrst ab')
  ids = [greedy.tokenizer._tokenizer.token_to_id(piece) for piece in rows]
  inputs = jnp.asarray([greedy.processor.encode_example('qrst ab')])
  read = jnp.asarray([[1, *ids[:-1]]])
  capture = jax.jit(sites.capture(type(model).states))
  maps = capture(model, inputs, read, target_segments=jnp.ones_like(read))[1]
  close(weights, maps['decoder']['cross'][:, 0])
  with pytest.raises(ValueError, match='empty'):
    attend(greedy, model, '')


def test_pairs_are_memorized(greedy, config, seed, bounded):
  pairs = random_pairs(8, seed=1)
  batch = batch_of(greedy, pairs)
  model = random_model(greedy, config, seed=seed + 1, size=0.25)
  model, losses = fit(greedy, model, batch, steps=150, learning_rate=1e-2, seed=seed)
  nll = jax.jit(greedy.batch_metrics)(model, batch)['nll_per_token']
  bounded('nll per token', nll.value, below=0.25)
  inputs, targets = ([pair[side] for pair in pairs] for side in ('inputs', 'targets'))
  for name, decoding in (('greedy', GREEDY), ('beam', BEAM)):
    found = predict(dataclasses.replace(greedy, decoding=decoding), model, inputs)
    right = [
      said == letter
      for line, target in zip(found, targets, strict=True)
      for said, letter in itertools.zip_longest(line, target)
    ]
    bounded(f'share of letters said, {name}', np.mean(right), above=0.8)


def test_targets_and_outputs_begin_with_the_prefix(tokenizer, config):
  task = Seq2Seq(
    tokenizer=tokenizer, decoding=GREEDY, max_length=LONGEST, start='e', prefix=('g', 'h')
  )
  start, g, h = map(tokenizer.token_id, 'egh')
  targets = task.columns([{'inputs': 'a', 'targets': 'bc'}])['targets']
  assert targets[0].tolist() == [g, h, *tokenizer.encode('bc'), tokenizer.eos]
  assert task.start_token == start
  model = task.init(config, jax.random.key(0))
  rows = [task.processor.encode_example(line) for line in LINES[:3]]
  outputs = task.best(model, rows)
  assert all(output[:2].tolist() == [g, h] for output in outputs)
  assert task.answer(model, rows) == [tokenizer.decode(output[2:]) for output in outputs]
  assert [found[0][0] for found in task.n_best(model, rows)] == task.answer(model, rows)


@pytest.mark.parametrize(
  'wrong, words',
  [
    (dict(start='bas'), "loss.start: the vocabulary has no 'bas'.*give bos, eos, pad, or the name"),
    (dict(prefix=('<|en|>',)), r"loss.prefix: the vocabulary has no '<\|en\|>'.*give names of tok"),
    (
      dict(prefix=('a',), decoding=dataclasses.replace(GREEDY, prefix=(1,))),
      r"decode.prefix=\(1,\), but loss.prefix=\('a',\) has the ids",
    ),
  ],
)
def test_unknown_or_contradicting_first_tokens_are_errors(wrong, words, tokenizer):
  given = dict(tokenizer=tokenizer, decoding=GREEDY, max_length=LONGEST) | wrong
  with pytest.raises(ValueError, match=words):
    Seq2Seq(**given)
