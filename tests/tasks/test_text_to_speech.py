"""Tests of tasks/text_to_speech.py, modules/speech.py and evaluation/distortion.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit, initialized

from transformer import ModelConfig
from transformer.data import audio, tokenizers
from transformer.data.pipeline import Batches, bucket
from transformer.evaluation import distortion
from transformer.evaluation.evaluate import eval_step
from transformer.inference.attention_maps import attend
from transformer.inference.predict import predict
from transformer.modules import sites
from transformer.modules.speech import Synthesizer
from transformer.tasks.task import Task
from transformer.tasks.text_to_speech import (
  Synthesis,
  TextToSpeech,
  generate_steps,
  off_diagonal,
  shift_right,
)

RATE = 4000
CONFIG = dict(
  width=16, depth=1, heads=2, feedforward=16, max_length=32, prenorm=True, tie='none', dropout=0.0
)


def tone(hertz, seconds=0.1, loudness=0.3):
  time = np.arange(round(seconds * RATE)) / RATE
  return (loudness * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


SOURCE = [
  {'inputs': tone(hertz, seconds), 'targets': text}
  for text, hertz, seconds in (('low', 200, 0.1), ('middle', 500, 0.17), ('high', 1500, 0.05))
]


@pytest.fixture(scope='module')
def task():
  return TextToSpeech(
    tokenizer=tokenizers.train([e['targets'] for e in SOURCE], kind='characters'),
    decoding=Synthesis(batch_size=2, max_new_tokens=12, stop=0.5, iterations=4),
    max_length=24,
    rate=RATE,
    window=0.03,
    hop=0.01,
    mels=6,
    floor=1e-4,
    frames_per_step=2,
    prenet_dropout=0.5,
    stop_weight=3.0,
    diagonal=1.0,
  )


@pytest.fixture(scope='module')
def model(task):
  config = ModelConfig(vocab=task.tokenizer.size, **CONFIG)
  return initialized(task, config, jax.random.key(0))


@pytest.fixture(scope='module')
def batch(task):
  fields = task.columns(SOURCE)
  lengths = np.stack([field.lengths for field in fields.values()], axis=1)
  made = Batches(fields, bucket(lengths, buckets=1), tokens=48, seed=None)[0]
  return {name: jnp.asarray(rows) for name, rows in made.items()}


forward = jax.jit(Synthesizer.__call__)
captured = jax.jit(sites.capture(Synthesizer.__call__))


@pytest.fixture(scope='module')
def loss(task):
  return jax.jit(task.loss)


@pytest.fixture(scope='module')
def measure(task):
  return functools.partial(eval_step, task)


def test_text_to_speech_is_a_task(task):
  assert isinstance(task, Task)
  text, sound = task.example(SOURCE[0])
  assert text == 'low' and audio.rate_of(sound) == RATE


def test_frames_are_scaled_to_minus_one_to_one(task):
  steps = task.steps(SOURCE[1]['inputs'])
  frames = task.log_mel(SOURCE[1]['inputs'])
  assert steps.shape == (-(-len(frames) // 2), 12)
  flat = steps.reshape(-1, 6)[: len(frames)]
  np.testing.assert_allclose(flat, 1 - 2 * frames / np.log(1e-4), rtol=1e-5)
  assert np.all(task.steps(np.zeros(400, np.float32)) == -1)


def test_sound_of_steps_has_their_frames_and_length(task):
  better = dataclasses.replace(
    task, decoding=dataclasses.replace(task.decoding, iterations=60), mels=24, hop=0.0075
  )
  sound = better.sound(better.steps(SOURCE[1]['inputs']))
  samples = audio.read(sound, RATE)
  assert abs(len(samples) / len(SOURCE[1]['inputs']) - 1) < 0.15
  spectrum = np.abs(np.fft.rfft(samples))
  assert abs(np.argmax(spectrum) / len(samples) * RATE - 500) < 40


def test_loss_is_the_weighted_sum_of_its_parts(task, model, batch, loss, measure):
  whole, parts = loss(model, batch, None)
  measured = measure(model, batch)
  assert set(parts) == set(measured) == set(task.metrics)
  (made, ends), inside = captured(
    model,
    batch['inputs'],
    shift_right(batch['targets']),
    input_segments=batch['inputs_segments'],
    target_segments=batch['targets_segments'],
  )
  total, weight = np.zeros(4), 0
  for row in range(3):  # one after the other, without what is padded
    T = int((batch['targets_segments'][row] != 0).sum())
    S = int((batch['inputs_segments'][row] != 0).sum())
    error = np.abs(np.asarray(made - batch['targets'])[row, :T]).mean(axis=1).sum()
    p = 1 / (1 + np.exp(-np.asarray(ends, np.float64)[row, :T]))
    stop = -np.log(np.append(1 - p[:-1], p[-1]))
    seen = np.asarray(inside['decoder']['cross'])[:, row, :, :T, :S].mean(axis=(0, 1))
    t, s = np.mgrid[:T, :S]
    off = (seen * (1 - np.exp(-((s / S - t / T) ** 2) / 0.08))).sum()
    total += [error * -np.log(1e-4) / 2, stop.sum(), off, error + stop.sum() + 2 * stop[-1] + off]
    weight += T
  for part, value in zip((*(measured[n] for n in task.metrics), whole), total, strict=True):
    assert part.weight == weight
    np.testing.assert_allclose(part.sum, value, rtol=1e-4)


def test_step_depends_on_earlier_steps_and_the_whole_text(task, model, batch):
  def one(before, tokens_of_text):
    return forward(
      model,
      tokens_of_text,
      before,
      input_segments=batch['inputs_segments'],
      target_segments=batch['targets_segments'],
    )[0][1, 3].sum()

  before = shift_right(batch['targets'])
  gradient = np.asarray(jax.grad(one)(before, batch['inputs']))[1]
  # the first is 0, where a relu has no slope
  assert np.abs(gradient[1:4]).max(axis=1).min() > 0 and not gradient[4:].any()
  last = int((batch['inputs_segments'][1] != 0).sum()) - 2
  other = batch['inputs'].at[1, last].set(batch['inputs'][0, 0])
  assert one(before, other) != one(before, batch['inputs'])


def test_prenet_dropout_is_on_with_a_key(model, batch, loss, key):
  plain, again = (loss(model, batch, None)[0].sum for _ in range(2))
  assert plain == again
  assert loss(model, batch, key)[0].sum != plain


def test_generated_steps_equal_teacher_forcing(task, model, close):
  synthesize = jax.jit(generate_steps, static_argnums=2)
  rows = jnp.array(
    [task.processor.encode_example('middle'), task.processor.encode_example('hidden')]
  )
  steps, counts, _ = synthesize(model, rows, dataclasses.replace(task.decoding, stop=0.999))
  assert counts.tolist() == [12, 12]
  ones = jnp.ones((2, 12), jnp.int32)
  taught, ends = forward(
    model, rows, shift_right(steps), input_segments=rows * 0 + 1, target_segments=ones
  )
  close(steps, taught)
  # and it ends with the first step whose end is likely enough
  stop = float(np.sort(np.asarray(jax.nn.sigmoid(ends)).max(axis=1))[0]) - 1e-6
  _, counts, _ = synthesize(model, rows, dataclasses.replace(task.decoding, stop=stop))
  expected = np.argmax(np.asarray(jax.nn.sigmoid(ends)) > stop, axis=1) + 1
  assert counts.tolist() == expected.tolist()


def test_sound_does_not_depend_on_other_lines(task, model):
  alone = predict(task, model, ['high'])
  beside = predict(task, model, ['low', 'middle low high', 'high'])
  assert beside[2] == alone[0] and audio.rate_of(alone[0]) == RATE


def test_invalid_lines_are_refused_by_number(task, model):
  with pytest.raises(ValueError, match='line 2: the line is empty'):
    predict(task, model, ['low', ' '])
  with pytest.raises(ValueError, match='split it'):
    task.processor.encode_example('low ' * 9)


def test_attend_has_a_row_for_each_step(task, model):
  weights, seconds, pieces = attend(task, model, 'low')
  (steps,) = task.synthesize(model, [task.processor.encode_example('low')])
  assert weights.shape == (1, 2, len(steps), 4) and len(seconds) == len(steps)
  assert pieces[:3] == ['l', 'o', 'w']
  np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


def test_off_diagonal_ignores_padding():
  inputs = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
  off = off_diagonal(inputs, inputs)
  np.testing.assert_allclose(np.diagonal(off[1]), 0)
  np.testing.assert_allclose(off[0, :4, :4], off_diagonal(inputs[:1, :4], inputs[:1, :4])[0])
  assert off[1, 0, 5] > off[1, 0, 3] > off[1, 0, 1] > 0


def test_three_tones_are_learned(task, batch, seed, bounded):
  config = ModelConfig(vocab=task.tokenizer.size, **CONFIG)
  model = initialized(task, config, jax.random.key(seed))
  model, losses = fit(task, model, batch, steps=150, learning_rate=1e-2, seed=seed)
  bounded('loss, of its start', losses[-10:].mean() / losses[0], below=0.3)
  requests = [task.processor.encode_example(e['targets']) for e in SOURCE]
  made = task.synthesize(model, requests)
  expected = [task.steps(example['inputs']) for example in SOURCE]
  # the stop token works: 12 steps at most, of which the texts need 3 to 9
  off = [abs(len(a) - len(b)) for a, b in zip(made, expected, strict=True)]
  bounded('steps too many or too few', np.mean(off), below=1)
  loudest = [[steps[1:-1].mean(axis=0).argmax() % 6 for steps in x] for x in (made, expected)]
  bounded('bands off', np.abs(np.subtract(*loudest)).mean(), below=1)


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'frames_per_step': 0}, 'frames_per_step'),
    ({'prenet_dropout': 1.0}, 'prenet_dropout'),
    ({'stop_weight': 0.0}, 'stop_weight'),
    ({'hop': 0.05}, 'hop'),
  ],
)
def test_invalid_settings_are_refused(task, changed, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(task, **changed)
  with pytest.raises(ValueError, match=r'decode\.stop'):
    Synthesis(batch_size=1, max_new_tokens=1, stop=1.0, iterations=1)


def noise(seed, seconds=0.3):
  return np.random.default_rng(seed).normal(size=round(16_000 * seconds)).astype(np.float32) / 9


def test_distortion_ignores_loudness_and_speed():
  measure = distortion.distortion
  sound = noise(0)
  assert measure(sound, sound, 16_000) == 0
  assert measure(sound, 2 * sound, 16_000) < 1e-3
  low = np.convolve(sound, np.ones(8) / 8, 'same').astype(np.float32)
  assert measure(sound, low, 16_000) > 2 * measure(sound, noise(1), 16_000) > 0
  # what stands still twice as long is aligned
  parts = np.concatenate([sound, low]), np.concatenate([sound, sound, low])
  assert measure(*parts, 16_000) < measure(sound, low, 16_000) / 4


def test_distortion_is_the_rms_difference_of_smooth_spectra(monkeypatch):
  monkeypatch.setattr(distortion, 'CEPSTRA', distortion.BANDS - 1)  # nothing is smoothed
  sounds = noise(0, 0.02), noise(1, 0.02)
  bands = [audio.LogMel(rate=16_000, mels=distortion.BANDS)(x).astype(np.float64) for x in sounds]
  bands = [20 / np.log(10) * (b - b.mean(axis=1, keepdims=True)) for b in bands]
  cost = np.sqrt(((bands[0][:, None] - bands[1][None]) ** 2).mean(axis=-1))
  assert cost.shape == (3, 3)
  paths = [[(0, 0)]]
  totals = []
  while paths:  # all of them
    path = paths.pop()
    i, j = path[-1]
    if (i, j) == (2, 2):
      totals.append((sum(cost[at] for at in path), len(path)))
    for at in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
      if max(at) <= 2:
        paths.append([*path, at])
  total, steps = min(totals)
  assert distortion.distortion(*sounds, 16_000) == pytest.approx(total / steps)


def test_missing_sounds_are_refused():
  for metric in (distortion.mel_cepstral_distortion, distortion.length_ratio):
    with pytest.raises(ValueError, match='1 predictions for 2 references'):
      metric([b'x'], [b'x', b'y'])


def test_sound_metrics_are_in_decibels_and_percent():
  made = [audio.encode(noise(0, 0.2), 16_000), audio.encode(noise(1, 0.1), 16_000)]
  true = [audio.encode(noise(0, 0.1), 8_000), audio.encode(noise(1, 0.1), 16_000)]
  # noise() has 1,600 samples in a tenth of a second, which are two at 8 kHz
  value, signature = distortion.length_ratio(made, true)
  assert value == pytest.approx(100) and 'n:2' in signature
  value, signature = distortion.mel_cepstral_distortion(made[1:], true[1:])
  assert value == 0 and 'dB' in signature and 'rate:16000' in signature


def test_padding_changes_nothing(model, batch, measure, close):
  whole = measure(model, batch)
  text = {n: jnp.pad(batch[n], ((0, 0), (0, 3))) for n in ('inputs', 'inputs_segments')}
  sound = {
    n: jnp.pad(batch[n], [(0, 0), (0, 2)] + [(0, 0)] * (batch[n].ndim - 2))
    for n in ('targets', 'targets_segments')
  }
  for name, mean in measure(model, text | sound).items():
    close(mean.sum, whole[name].sum)
