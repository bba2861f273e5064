"""Tests of tasks/ctc.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit
from parameters import drawn

from transformer.data import audio, tokenizers
from transformer.data.pipeline import Batches, bucket
from transformer.data.processors import SoundProcessor
from transformer.evaluation.evaluate import eval_step
from transformer.functional.losses import ctc
from transformer.inference.attention_maps import attend
from transformer.inference.decoding import Batching, Decoding
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.tasks.ctc import CTC, JointCTC
from transformer.tasks.seq2seq import Seq2Seq

CONFIG = ModelConfig(
  vocab=9,
  modality='frames',
  features=5,
  width=16,
  depth=1,
  heads=2,
  feedforward=32,
  max_length=64,
  position='rotary',
  prenorm=True,
  tie='output',
  dropout=0.0,
)


@pytest.fixture(scope='module')
def task():
  tokenizer = tokenizers.train(['abcde'], kind='characters', vocab=9)
  inputs = SoundProcessor(max_length=64, bands=5)
  return CTC(
    tokenizer=tokenizer, decoding=Batching(batch_size=4), max_length=64, input_processor=inputs
  )


@pytest.fixture(scope='module')
def examples():
  """Each letter is a few frames in which one band is loud."""
  random = np.random.default_rng(0)
  found = []
  for _ in range(40):
    letters = random.integers(5, size=random.integers(1, 5))
    frames = [np.eye(5)[[letter] * random.integers(5, 9)] for letter in letters]
    silence = [np.zeros((random.integers(2, 5), 5)) for _ in letters]
    parts = [part for pair in zip(frames, silence, strict=True) for part in pair]
    sound = np.concatenate(parts) * 3 + 0.1 * random.normal(size=(sum(map(len, parts)), 5))
    found.append({'inputs': sound, 'targets': ''.join('abcde'[letter] for letter in letters)})
  return found


@pytest.fixture(scope='module')
def model(task):
  return drawn(lambda: task.init(CONFIG, jax.random.key(0)))


def batches(task, examples, tokens=256):
  fields = task.columns(examples)
  lengths = np.stack([field.lengths for field in fields.values()], axis=1)
  return Batches(fields, bucket(lengths, buckets=1), tokens=tokens, seed=None)


@pytest.mark.slow
def test_ctc_learns_to_transcribe(task, examples, seed, bounded):
  model = jax.jit(lambda key: task.init(CONFIG, key))(jax.random.key(seed))
  batch = jax.tree.map(jnp.asarray, batches(task, examples, tokens=64 * 40)[0])
  learned, losses = fit(task, model, batch, steps=150, learning_rate=2e-2, seed=seed)
  bounded('loss, of its start', losses[-1] / losses[0], below=0.1)
  inputs, targets = zip(*map(task.example, examples), strict=True)
  found = predict(task, learned, inputs)
  bounded('share of sounds understood', np.mean(np.array(found) == targets), above=0.8)
  assert predict(task, learned, inputs[5:6]) == found[5:6]  # whatever lines come with it


def test_loss_is_the_sum_over_single_sounds(task, model, examples):
  batch = batches(task, examples[:6], tokens=64 * 9)[0]
  assert len(batch['inputs']) > 6  # with empty rows
  loss = jax.jit(lambda batch: task.loss(model, batch, None))
  mean, logged = loss(jax.tree.map(jnp.asarray, batch))
  total = 0.0
  for row in range(6):  # and with nothing in the padding of either side that counts
    alone = {name: np.roll(array, -row, axis=0) for name, array in batch.items()}
    for name in ('inputs', 'targets'):
      alone[f'{name}_segments'][1:] = 0
      alone[name][alone[f'{name}_segments'] == 0] = 7
    total += np.asarray(loss(alone)[0].sum)
  np.testing.assert_allclose(mean.sum, total, rtol=1e-4)
  assert mean.weight == sum(len(e['targets']) for e in examples[:6])
  assert logged['nll_per_token'].value == mean.value

  @jax.jit
  def of_logits(inputs, inputs_segments, targets, targets_segments):
    logits, segments = model(inputs, segments=inputs_segments)
    weights = targets_segments.astype(jnp.float32)
    return ctc(logits, segments != 0, targets, weights, blank=0)

  expected = of_logits(**batch)
  np.testing.assert_allclose(mean.sum, expected.sum, rtol=1e-5)


@pytest.mark.parametrize('kind', [CTC, JointCTC])
def test_inputs_without_an_alignment_are_counted(task, model, examples, kind):
  """Before the training by their lengths, and in the loss itself: both agree."""
  short = [
    {'inputs': np.zeros((n, 5)), 'targets': t} for n, t in ((4, 'ab'), (3, 'abc'), (5, 'aab'))
  ]
  short += [
    {'inputs': np.zeros((5, 5)), 'targets': 'aba'},
    {'inputs': np.zeros((9, 5)), 'targets': 'a'},
  ]
  given = dict(tokenizer=task.tokenizer, input_processor=task.input_processor, max_length=64)
  decoding = Batching(batch_size=4) if kind is CTC else Decoding(batch_size=4, max_new_tokens=8)
  objective = kind(**given, decoding=decoding)
  (warning,) = objective.warnings(objective.columns(short), CONFIG, training=False)
  assert warning.startswith('2 of 5 inputs have fewer positions')  # 'abc' of 2, 'aab' of 3, not 4
  assert warning.endswith('leaves out 50 % of the tokens')
  assert not [*objective.warnings(objective.columns(short[-1:]), CONFIG, training=False)]
  if kind is CTC:
    batch = jax.tree.map(jnp.asarray, batches(task, short, tokens=1024)[0])
    metrics = eval_step(task, model, batch)
    assert metrics['tokens_without_alignment'].value == 6 / 12
    assert metrics['nll_per_token'].weight == 6


def test_augmentation_is_off_in_evaluation(task, model, examples):
  varied = dataclasses.replace(
    task,
    input_processor=dataclasses.replace(
      task.input_processor, tempo=0.2, time_masks=1, time_width=4
    ),
  )
  batch = jax.tree.map(jnp.asarray, batches(task, examples[:4])[0])
  loss = jax.jit(lambda task, key: task.loss(model, batch, key)[0].sum, static_argnums=0)
  plain = loss(task, None)
  assert loss(varied, None) == plain
  found = [float(loss(varied, jax.random.key(seed))) for seed in (0, 0, 1)]
  assert found[0] == found[1] != found[2] and found[0] != plain
  measured = eval_step(varied, model, batch)
  np.testing.assert_allclose(measured['nll_per_token'].sum, plain, rtol=1e-6)


def test_collapse_removes_repetitions_and_then_blanks(task):
  assert task.collapse([0, 5, 5, 0, 5, 6, 6, 0]) == [5, 5, 6]
  assert task.collapse([0, 0]) == []
  assert task.collapse([4, 4, 4]) == [4]


def test_wav_files_of_any_rate_are_transcribed(tmp_path, task, rng):
  inputs = SoundProcessor(max_length=64, rate=8000, bands=5)
  task = dataclasses.replace(task, input_processor=inputs)
  model = drawn(lambda: task.init(CONFIG, jax.random.key(0)))
  sound = rng.normal(size=4000) * 0.1
  for rate in (8000, 16000):
    audio.write(tmp_path / f'{rate}.wav', sound, rate)
  path = tmp_path / '8000.wav'
  paths = [str(path), str(tmp_path / '16000.wav')]
  assert (
    len(task.processor.encode_example(paths[0])) == 51
    and len(task.processor.encode_example(paths[1])) == 26
  )
  found = predict(task, model, [*paths, path.read_bytes()])
  assert found[0] == found[2]
  weights, names, _ = attend(task, model, paths[0])
  assert weights.shape == (1, 2, 26, 26) and names[:3] == ['0.00', '0.02', '0.04']
  np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
  audio.write(path, np.tile(sound, 2), 8000)
  with pytest.raises(ValueError, match='line 2: the sound has 101 frames, more than the 64'):
    predict(task, model, [paths[1], paths[0]])
  assert len(predict(task, model, [paths[0]], truncate=True)) == 1
  with pytest.raises(FileNotFoundError, match=r'none\.wav'):
    predict(task, model, ['none.wav'])


def test_precomputed_frames_are_accepted_and_sounds_refused(tmp_path, task, model, rng):
  task = dataclasses.replace(
    task, input_processor=SoundProcessor(max_length=64, bands=5, window=0.0)
  )
  frames = rng.normal(size=(30, 5))
  np.save(tmp_path / 'ours.npy', frames)
  np.save(tmp_path / 'wide.npy', np.pad(frames, ((0, 0), (0, 1))))
  assert predict(task, model, [str(tmp_path / 'ours.npy')]) == predict(task, model, [frames])
  with pytest.raises(ValueError, match=r'line 1: .*6 numbers each: set processor\.bands=5'):
    predict(task, model, [str(tmp_path / 'wide.npy')])
  sound, flat = tmp_path / 'sound.wav', tmp_path / 'flat.npy'
  audio.write(sound, frames[:, 0] * 0.1, 8000)
  np.save(flat, frames[:, 0])
  np.save(tmp_path / 'nan.npy', frames * np.nan)
  np.savez(tmp_path / 'many.npz', frames)
  (tmp_path / 'damaged.npz').write_bytes((tmp_path / 'many.npz').read_bytes()[:90])
  for file in (sound, flat, *(tmp_path / name for name in ('nan.npy', 'many.npz', 'damaged.npz'))):
    with pytest.raises(ValueError, match=rf'line 1: .*{file.name} is no .npy.*processor\.window=0'):
      predict(task, model, [str(file)])
  with pytest.raises(ValueError, match='line 1: the sound is no .npy'):
    predict(task, model, [sound.read_bytes()])
  with pytest.raises(FileNotFoundError, match=r'none\.npy'):
    predict(task, model, ['none.npy'])


def test_predicting_with_nan_raises(task, model, examples):
  broken = jax.tree.map(lambda x: x * jnp.nan, model)
  with pytest.raises(FloatingPointError, match='computes NaN'):
    predict(task, broken, [examples[0]['inputs']])


def test_tokenizer_without_padding_token_is_refused(task):
  import tokenizers as library

  without = tokenizers.Tokenizer(library.Tokenizer(library.models.BPE({'a': 0}, [])))
  with pytest.raises(ValueError, match='no padding token'):
    dataclasses.replace(task, tokenizer=without)


@pytest.mark.parametrize(
  'wrong, message',
  [
    (dict(tempo=1.0), r'processor\.tempo=1\.0'),
    (dict(time_share=1.5), r'processor\.time_share=1\.5'),
    (dict(time_masks=-1), r'processor\.time_masks=-1'),
    (dict(hop=0.5), r'processor: hop=0\.5'),
  ],
)
def test_invalid_processor_settings_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    SoundProcessor(max_length=64, **wrong)


def test_sounds_are_normalized(rng):
  frames = rng.normal(size=(50, 5)) * [1, 2, 3, 4, 0] + [5, 6, 7, 8, 9]
  read = SoundProcessor(max_length=64, bands=5).encode_example(frames)
  assert read.dtype == np.float32
  np.testing.assert_allclose(read.mean(axis=0), 0, atol=1e-4)
  np.testing.assert_allclose(read.std(axis=0), [1, 1, 1, 1, 0], atol=1e-4)


@pytest.fixture(scope='module')
def joint(task):
  kwargs = dict(tokenizer=task.tokenizer, max_length=64, input_processor=task.input_processor)
  return JointCTC(decoding=Decoding(max_new_tokens=8, batch_size=4), label_smoothing=0.1, **kwargs)


def test_joint_loss_is_the_weighted_sum_of_both(task, joint, examples):
  model = drawn(lambda: joint.init(CONFIG, jax.random.key(0)))
  batch = batches(joint, examples[:5])[0]
  kwargs = dict(tokenizer=task.tokenizer, max_length=64, input_processor=task.input_processor)
  plain = Seq2Seq(decoding=joint.decoding, label_smoothing=0.1, **kwargs)
  shares = 0.0, 0.25, 1.0

  @jax.jit
  def compute(model, batch, alone):
    memory = model.encode(alone['inputs'], segments=alone['inputs_segments'])
    weights = (alone['targets_segments'] != 0).astype(jnp.float32)
    logits = model.align(memory.states)
    aligned = ctc(logits, memory.segments != 0, alone['targets'], weights, blank=0)
    tasks = *(dataclasses.replace(joint, ctc=share) for share in shares), plain
    return aligned, [of.loss(model, batch, None) for of in tasks]

  alone = batches(task, examples[:5])[0]  # without end tokens
  aligned, (*joined, (attended, nll)) = compute(model, batch, alone)
  losses = {share: float(loss.sum) for share, (loss, _) in zip(shares, joined, strict=True)}
  assert {float(loss.weight) for loss, _ in joined} == {
    sum(len(e['targets']) + 1 for e in examples[:5])
  }
  assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
  assert losses[0.0] == pytest.approx(float(attended.sum), rel=1e-5)
  logged = joined[-1][1]
  np.testing.assert_allclose(logged['nll_per_token'].value, nll['nll_per_token'].value, rtol=1e-5)
  assert losses[1.0] == pytest.approx(float(aligned.sum), rel=1e-5)
  assert float(logged['ctc_per_token'].value) == pytest.approx(float(aligned.value), rel=1e-5)
  assert len(predict(joint, model, [examples[0]['inputs']])) == 1


@pytest.mark.parametrize('share', [-0.1, 1.5])
def test_ctc_weight_outside_0_to_1_is_refused(joint, share):
  with pytest.raises(ValueError, match=rf'loss\.ctc={share} is a share'):
    dataclasses.replace(joint, ctc=share)
