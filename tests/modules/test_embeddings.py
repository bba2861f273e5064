"""Laws of what makes vectors of tokens, patches and frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import drawn

from transformer.functional.losses import cross_entropy
from transformer.functional.positions import sinusoidal
from transformer.modules.config import ModelConfig
from transformer.modules.embeddings import Convolution, Frames, Patches, Tokens
from transformer.modules.model import Encoder, EncoderDecoder

TINY = dict(vocab=11, width=16, depth=2, heads=4, feedforward=24, max_length=16)
FRAMES = dict(TINY, modality='frames', features=5, tie='output', activation='gelu_erf')
PATCHES = dict(TINY, modality='patches', features=12, tie='output', position='learned')


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('length', [7, 8])
def test_convolution_is_laxs(rng, close, stride, length):
  layer = drawn(lambda: Convolution(ModelConfig(**FRAMES), 5, nnx.Rngs(0), stride=stride), rng)
  x = jnp.asarray(rng.normal(size=(2, length, 5)), jnp.float32)
  expected = jax.lax.conv_general_dilated(
    x, layer.kernel[...], (stride,), [(1, 1)], dimension_numbers=('NWC', 'WIO', 'NWC')
  )
  close(layer(x), expected + layer.bias[...])


@pytest.mark.parametrize('length', [5, 6])
def test_padding_frames_change_nothing(rng, close, length):
  embed = drawn(lambda: Frames(ModelConfig(**FRAMES), nnx.Rngs(0)), rng)
  frames = jnp.asarray(rng.normal(size=(1, length, 5)), jnp.float32)
  alone, segments = embed(frames, jnp.ones((1, length), int))
  padded = jnp.pad(frames, ((0, 0), (0, 4), (0, 0)), constant_values=jnp.nan)
  seen, padded_segments = embed(padded, jnp.pad(jnp.ones((1, length), int), ((0, 0), (0, 4))))
  assert segments.all() and padded_segments.sum() == segments.sum()
  close(seen[:, : alone.shape[1]], alone)


def test_frames_reach_the_decoder_as_without_padding(rng, close):
  model = drawn(
    lambda: EncoderDecoder(ModelConfig(**FRAMES, max_source_length=4), nnx.Rngs(0)), rng
  )
  frames = jnp.asarray(rng.normal(size=(1, 7, 5)), jnp.float32)
  targets = jnp.array([[3, 4, 5]])
  segments = jnp.pad(jnp.ones((1, 7), int), ((0, 0), (0, 5)))
  padded = jnp.pad(frames, ((0, 0), (0, 5), (0, 0)))
  run = jax.jit(lambda frames, segments: model(frames, targets, input_segments=segments))
  close(run(padded, segments), run(frames, jnp.ones((1, 7), int)))


def test_source_length_is_the_encoders_own():
  config = ModelConfig(**FRAMES, position='learned', max_source_length=9)
  model = drawn(lambda: EncoderDecoder(config, nnx.Rngs(0)))
  assert len(model.encoder.positions.table[...]) == 9
  assert len(model.decoder.positions.table[...]) == 16


def test_patches_come_after_one_learned_vector(rng, close):
  embed = drawn(lambda: Patches(ModelConfig(**PATCHES), nnx.Rngs(0)), rng)
  patches = jnp.asarray(rng.normal(size=(2, 4, 12)), jnp.float32)
  x, segments = embed(patches, jnp.ones((2, 4), int))
  close(x[:, 0], np.stack([embed.first[...]] * 2))
  close(x[:, 1:], patches @ embed.projection.kernel[...] + embed.projection.bias[...])
  assert segments.shape == (2, 5) and segments.all()


@pytest.mark.parametrize('size', [6, 7])
@pytest.mark.parametrize('stride', [1, 2])
def test_convolution_over_rows_and_columns_is_laxs(rng, close, stride, size):
  layer = drawn(
    lambda: Convolution(ModelConfig(**FRAMES), 5, nnx.Rngs(0), stride=stride, axes=2), rng
  )
  x = jnp.asarray(rng.normal(size=(2, size, size + 1, 5)), jnp.float32)
  expected = jax.lax.conv_general_dilated(
    x,
    layer.kernel[...],
    (stride, stride),
    [(1, 1), (1, 1)],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  close(layer(x), expected + layer.bias[...])


@pytest.mark.parametrize('side, left', [(8, 2), (7, 2), (5, 2)])
def test_a_stem_halves_height_and_width_each_time(side, left):
  config = ModelConfig(**dict(PATCHES, features=3), stem=2)
  embed = drawn(lambda: Patches(config, nnx.Rngs(0)))
  images = jnp.zeros((3, side * side, 3))
  segments = jnp.array([1, 0, 1])[:, None] * jnp.ones((1, side * side), int)
  x, segments = embed(images, segments)
  assert x.shape == (3, left * left + 1, 16)
  assert segments.tolist() == [[i] * (left * left + 1) for i in (1, 0, 1)]
  widths = [conv.kernel.shape for conv, _ in embed.stem]
  assert widths == [(3, 3, 3, 8), (3, 3, 8, 16)]


def test_a_stem_sees_rows_and_columns(rng):
  """What a pixel changes stands where the pixel stands."""
  config = ModelConfig(**dict(PATCHES, features=1), stem=1)
  embed = drawn(lambda: Patches(config, nnx.Rngs(0)), rng)
  image = jnp.asarray(rng.normal(size=(1, 8, 8, 1)), jnp.float32)
  before, _ = embed(image.reshape(1, 64, 1), jnp.ones((1, 64), int))
  after, _ = embed(image.at[0, 4, 2].add(1.0).reshape(1, 64, 1), jnp.ones((1, 64), int))
  changed = np.abs(after - before)[0].max(axis=-1) > 1e-6
  assert np.flatnonzero(changed).tolist() == [1 + 4 * 2 + 1]


def test_types_are_added_and_default_to_0(rng, close):
  model = drawn(
    lambda: Encoder(ModelConfig(**TINY, token_types=2, norm_embedding=True), nnx.Rngs(0)), rng
  )
  tokens = jnp.array([[1, 2, 3]])
  run = jax.jit(lambda types: model(tokens, types=types))
  states = run(None)
  close(run(jnp.zeros((1, 3), int)), states)
  assert not np.allclose(run(jnp.array([[0, 1, 1]])), states, atol=1e-3)


@pytest.mark.parametrize('summary', ['first', 'mean', 'attention', 'pooler'])
@pytest.mark.parametrize('side', [0, 1])
def test_a_summary_does_not_see_padding(rng, close, summary, side):
  model = drawn(lambda: Encoder(ModelConfig(**TINY, pooling=summary, pad=0), nnx.Rngs(0)), rng)
  tokens = jnp.asarray(rng.integers(1, 11, (1, 5)))
  pad = ((0, 0), (3, 0) if side == 0 else (0, 3))
  states = jax.jit(lambda: model(tokens))()
  expected = {'first': states[:, 0], 'mean': states.mean(axis=1)}
  if model.pooler:
    pooled = states @ model.pooler.kernel[...] + model.pooler.bias[...]
    expected['attention'] = (jax.nn.softmax(pooled[..., :1], axis=1) * states).sum(axis=1)
    expected['pooler'] = jnp.tanh(pooled[:, 0])
  found = jax.jit(model.encode_pooled)(jnp.pad(tokens, pad))
  close(found, expected[summary])


def test_logits_may_be_scaled_and_have_a_bias(rng, close):
  """And the loss that never holds them knows of both."""
  config = ModelConfig(**TINY, bias_output=True, scale_logits=True)
  table = drawn(lambda: Tokens(config, nnx.Rngs(0), lm_head=True), rng)
  x = jnp.asarray(rng.normal(size=(2, 3, 16)), jnp.float32)
  logits = table.attend(x)
  close(logits, x / 4 @ table.table[...].T + table.bias[...])
  targets, weights = jnp.asarray(rng.integers(0, 11, (2, 3))), jnp.ones((2, 3))

  def fused(table, x):
    return table.cross_entropy(x, targets, weights, label_smoothing=0.1)[0].sum

  def plain(table, x):
    return cross_entropy(table.attend(x), targets, weights, label_smoothing=0.1).sum

  found = jax.value_and_grad(fused, (0, 1))(table, x)
  jax.tree.map(close, found, jax.value_and_grad(plain, (0, 1))(table, x))


def test_halves_are_a_permutation(rng, close):
  positions = jnp.asarray(rng.integers(0, 50, (2, 3)))
  halves = sinusoidal(positions, 8, halves=True)
  close(halves.reshape(2, 3, 2, 4).swapaxes(2, 3).reshape(2, 3, 8), sinusoidal(positions, 8))


def test_which_tables_are_one():
  """tie says how many tables there are: of the decoder's input, the encoder's and the output."""
  for tie, count in dict(none=3, inputs=2, output=2, all=1).items():
    model = EncoderDecoder(ModelConfig(**TINY, tie=tie), nnx.Rngs(0))
    assert sum(x.shape == (11, 16) for x in jax.tree.leaves(model)) == count, tie


def test_what_contradicts_itself_is_refused():
  with pytest.raises(ValueError, match='features=0 with model.modality=frames'):
    ModelConfig(**TINY, modality='frames', tie='output')
  with pytest.raises(ValueError, match='tie=all needs tokens'):
    ModelConfig(**TINY, modality='patches', features=12)
  with pytest.raises(ValueError, match=r'model.stem=5 .* 2\^5 divides, not patches and 16'):
    ModelConfig(**PATCHES, stem=5)
  with pytest.raises(ValueError, match='8 patches .* square .* model.stem=0'):
    Patches(ModelConfig(**PATCHES, stem=1), nnx.Rngs(0))(
      jnp.zeros((1, 8, 12)), jnp.ones((1, 8), int)
    )
