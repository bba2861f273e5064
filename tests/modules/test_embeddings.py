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


# what a test computes is one program: compiling takes nearly all of its time
call = jax.jit(lambda module, *inputs: module(*inputs))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(
  'sizes, dimensions',
  [
    ((7,), 'NWC WIO NWC'),
    ((8,), 'NWC WIO NWC'),
    ((6, 7), 'NHWC HWIO NHWC'),
    ((7, 8), 'NHWC HWIO NHWC'),
  ],
)
def test_convolution_equals_lax_conv(rng, close, stride, sizes, dimensions):
  """Over time, and over rows and columns."""
  config, axes = ModelConfig(**FRAMES), len(sizes)
  layer = drawn(lambda: Convolution(config, 5, nnx.Rngs(0), stride=stride, axes=axes), rng)

  @jax.jit
  def both(layer, x):
    found = jax.lax.conv_general_dilated(
      x,
      layer.kernel[...],
      (stride,) * axes,
      [(1, 1)] * axes,
      dimension_numbers=tuple(dimensions.split()),
    )
    return layer(x), found + layer.bias[...]

  close(*both(layer, rng.normal(size=(2, *sizes, 5)).astype(np.float32)))


@pytest.mark.parametrize('length', [5, 6])
def test_padding_frames_change_nothing(rng, close, length):
  embed = drawn(lambda: Frames(ModelConfig(**FRAMES), nnx.Rngs(0)), rng)
  frames, ones = rng.normal(size=(1, length, 5)).astype(np.float32), np.ones((1, length), int)
  alone, segments = map(np.asarray, call(embed, frames, ones))
  padded = np.pad(frames, ((0, 0), (0, 4), (0, 0)), constant_values=np.nan)
  seen, padded_segments = map(np.asarray, call(embed, padded, np.pad(ones, ((0, 0), (0, 4)))))
  assert segments.all() and padded_segments.sum() == segments.sum()
  close(seen[:, : alone.shape[1]], alone)


def test_frames_reach_the_decoder_as_without_padding(rng, close):
  model = drawn(
    lambda: EncoderDecoder(ModelConfig(**FRAMES | dict(depth=1), max_source_length=4), nnx.Rngs(0)),
    rng,
  )
  frames, ones = rng.normal(size=(1, 7, 5)).astype(np.float32), np.ones((1, 7), int)
  segments = np.pad(ones, ((0, 0), (0, 5)))
  padded = np.pad(frames, ((0, 0), (0, 5), (0, 0)))
  targets = jnp.array([[3, 4, 5]])
  run = jax.jit(lambda frames, segments: model(frames, targets, input_segments=segments))
  close(run(padded, segments), run(frames, ones))


def test_source_length_is_the_encoders_own():
  config = ModelConfig(**FRAMES, position='learned', max_source_length=9)
  model = drawn(lambda: EncoderDecoder(config, nnx.Rngs(0)))
  assert len(model.encoder.positions.table[...]) == 9
  assert len(model.decoder.positions.table[...]) == 16


def test_patches_come_after_one_learned_vector(rng, close):
  embed = drawn(lambda: Patches(ModelConfig(**PATCHES), nnx.Rngs(0)), rng)
  patches = rng.normal(size=(2, 4, 12)).astype(np.float32)
  x, segments = map(np.asarray, call(embed, patches, np.ones((2, 4), int)))
  close(x[:, 0], np.stack([embed.class_token[...]] * 2))
  kernel, bias = (np.asarray(p[...]) for p in (embed.projection.kernel, embed.projection.bias))
  close(x[:, 1:], patches @ kernel + bias)
  assert segments.shape == (2, 5) and segments.all()


@pytest.mark.parametrize('side, left', [(8, 2), (7, 2), (5, 2)])
def test_a_stem_halves_height_and_width_each_time(side, left):
  config = ModelConfig(**dict(PATCHES, features=3), stem=2)
  embed = drawn(lambda: Patches(config, nnx.Rngs(0)))
  images = np.zeros((3, side * side, 3), np.float32)
  segments = np.array([1, 0, 1])[:, None] * np.ones((1, side * side), int)
  x, segments = call(embed, images, segments)
  assert x.shape == (3, left * left + 1, 16)
  assert segments.tolist() == [[i] * (left * left + 1) for i in (1, 0, 1)]
  widths = [conv.kernel.shape for conv, _ in embed.stem]
  assert widths == [(3, 3, 3, 8), (3, 3, 8, 16)]


def test_a_stem_sees_rows_and_columns(rng):
  """What a pixel changes stands where the pixel stands."""
  config = ModelConfig(**dict(PATCHES, features=1), stem=1)
  embed = drawn(lambda: Patches(config, nnx.Rngs(0)), rng)
  image, ones = rng.normal(size=(1, 8, 8, 1)).astype(np.float32), np.ones((1, 64), int)
  other = image.copy()
  other[0, 4, 2] += 1
  before, after = (np.asarray(call(embed, x.reshape(1, 64, 1), ones)[0]) for x in (image, other))
  changed = np.abs(after - before)[0].max(axis=-1) > 1e-6
  assert np.flatnonzero(changed).tolist() == [1 + 4 * 2 + 1]


def test_types_are_added_and_default_to_0(rng, close):
  model = drawn(
    lambda: Encoder(ModelConfig(**TINY, token_types=2, norm_embedding=True), nnx.Rngs(0)), rng
  )
  tokens = jnp.array([[1, 2, 3]])
  run = jax.jit(lambda types: model(tokens, token_types=types))
  states = run(None)
  close(run(np.zeros((1, 3), int)), states)
  assert not np.allclose(run(np.array([[0, 1, 1]])), states, atol=1e-3)


@pytest.mark.parametrize('summary', ['first', 'mean', 'attention', 'pooler'])
def test_a_summary_does_not_see_padding(rng, close, summary):
  config = ModelConfig(**TINY | dict(depth=1), pooling=summary, pad=0)
  model = drawn(lambda: Encoder(config, nnx.Rngs(0)), rng)
  tokens = rng.integers(1, 11, (1, 5))
  states = np.asarray(call(model, tokens))
  expected = {'first': states[:, 0], 'mean': states.mean(axis=1)}
  if model.pooler:
    pooled = states @ np.asarray(model.pooler.kernel[...]) + np.asarray(model.pooler.bias[...])
    shares = np.exp(pooled[..., :1])
    expected['attention'] = (shares / shares.sum(axis=1) * states).sum(axis=1)
    expected['pooler'] = np.tanh(pooled[:, 0])
  pooled_of = jax.jit(model.encode_pooled)
  for pad in ((3, 0), (0, 3)):
    close(pooled_of(np.pad(tokens, ((0, 0), pad))), expected[summary])


def test_logits_may_be_scaled_and_have_a_bias(rng, close):
  """And the loss that never holds them knows of both."""
  config = ModelConfig(**TINY, bias_output=True, scale_logits=True)
  table = drawn(lambda: Tokens(config, nnx.Rngs(0), lm_head=True), rng)
  x = rng.normal(size=(2, 3, 16)).astype(np.float32)
  targets, weights = jnp.asarray(rng.integers(0, 11, (2, 3))), jnp.ones((2, 3))

  def fused(table, x):
    return table.cross_entropy(x, targets, weights, label_smoothing=0.1)[0].sum

  def plain(table, x):
    return cross_entropy(table.attend(x), targets, weights, label_smoothing=0.1).sum

  @jax.jit
  def all_of(table, x):
    of = (jax.value_and_grad(f, (0, 1))(table, x) for f in (fused, plain))
    return table.attend(x), *of

  logits, found, want = all_of(table, x)
  close(logits, x / 4 @ np.asarray(table.table[...]).T + np.asarray(table.bias[...]))
  jax.tree.map(close, found, want)


def test_halves_are_a_permutation(rng, close):
  positions = rng.integers(0, 50, (2, 3))
  halves, pairs = jax.jit(lambda p: (sinusoidal(p, 8, halves=True), sinusoidal(p, 8)))(positions)
  close(np.asarray(halves).reshape(2, 3, 2, 4).swapaxes(2, 3).reshape(2, 3, 8), pairs)


def test_tied_tables_are_counted_once():
  """tie says how many tables there are: of the decoder's input, the encoder's and the output."""
  for tie, count in dict(none=3, inputs=2, output=2, all=1).items():
    config = ModelConfig(**TINY, tie=tie)
    model = jax.eval_shape(lambda config=config: EncoderDecoder(config, nnx.Rngs(0)))
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
