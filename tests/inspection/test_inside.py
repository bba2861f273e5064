"""Looking inside: each quantity against its definition, and a page for every kind of model."""

import base64
import io
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import drawn
from PIL import Image

from transformer.data.processors import ImageProcessor, SoundProcessor
from transformer.data.tokenizers import train
from transformer.functional import kernels
from transformer.inference.attention_maps import Probe, lm_logits
from transformer.inference.decoding import Batching, Decoding
from transformer.inspection.inside import entropy, look, look_at, rollout
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder
from transformer.modules.sites import observe
from transformer.tasks.classification import Classification
from transformer.tasks.masked_lm import MaskedLM
from transformer.tasks.seq2seq import Seq2Seq

SMALL = dict(width=16, depth=2, heads=2, feedforward=16, prenorm=True, dropout=0.0)
ONE = SMALL | dict(depth=1)
TOKENS = jnp.array([[3, 7, 1, 9, 4]])
PIECES = list('adbec')


@pytest.fixture(scope='module')
def model():
  return drawn(lambda: Decoder(ModelConfig(vocab=11, **SMALL), nnx.Rngs(0)))


@pytest.fixture(scope='module')
def inside(model):
  names = lambda numbers: [f'<{n}>' for n in numbers]  # noqa: E731
  probe = Probe(Decoder.__call__, (TOKENS,), PIECES, PIECES, lm_logits, names)
  return look_at(probe, model, title='a text')


@pytest.fixture(scope='module')
def tokenizer():
  return train(['abc def', 'fed cba'], kind='characters', sentinels=1)


def data_of(page):
  return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


def test_the_last_layer_of_the_lens_is_the_model(model, inside, close):
  p = np.asarray(jax.nn.softmax(jax.jit(Decoder.__call__)(model, TOKENS)[0]))
  close(inside.lens.probabilities[-1], -np.sort(-p)[:, :5])
  best = [f'<{n}>' for n in p.argmax(-1)]
  assert [names[0] for names in inside.lens.outputs[-1]] == best
  first = inside.layers['']['states'][0][None]
  early = jax.nn.softmax(model.lm_head.attend(model.stack.norm(jnp.asarray(first))))[0]
  close(inside.lens.probabilities[0], -np.sort(-np.asarray(early))[:, :5])


def test_vectors_give_the_weights(inside, close):
  """Head by head, so that the axes of what is read are those of the map."""
  layers = inside.layers['']
  for layer, head in ((0, 1), (1, 0)):
    q, k = layers['queries'][layer, :, head], layers['keys'][layer, :, head]
    scores = np.where(np.tri(5), q @ k.T / np.sqrt(8), -np.inf)
    close(inside.maps['self'].weights[layer, head], np.asarray(jax.nn.softmax(scores)))


def test_changes_are_those_of_the_model_without_the_head(model, inside, close):
  run = jax.jit(Decoder.__call__)
  said = run(model, TOKENS).argmax(-1)

  def loss(logits):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), said[..., None], -1).mean()

  edit = {'blocks.1.attention.heads': lambda x: x.at[:, :, 0].set(0)}
  without, _ = jax.jit(observe(Decoder.__call__, edit=edit))(model, TOKENS)
  assert inside.changes['self'].shape == (2, 2)
  close(inside.changes['self'][1, 0], loss(without) - loss(run(model, TOKENS)))


def test_entropy_and_rollout_are_their_definitions():
  weights = np.random.default_rng(0).dirichlet(np.ones(4), (3, 2, 4))
  found = entropy(weights)
  assert found[1, 0] == pytest.approx(np.mean([-sum(p * np.log2(p)) for p in weights[1, 0]]))
  assert entropy(np.eye(4)[None, None])[0, 0] == 0
  layers = [(weights[i].mean(0) + np.eye(4)) / 2 for i in range(3)]
  np.testing.assert_allclose(rollout(weights)[2], layers[2] @ layers[1] @ layers[0])
  np.testing.assert_allclose(rollout(weights).sum(-1), 1)


def test_weights_are_those_of_the_kernel_that_runs(model, inside, monkeypatch, close):
  """A kernel never has the weights: they are recomputed, and give the values that it gave."""
  ran = []
  monkeypatch.setattr(kernels, 'choose', lambda call: ran.append('blockwise') or 'blockwise')
  read = ['blocks.1.attention.*']
  _, values = jax.jit(observe(lambda model: model(TOKENS), read=read))(model)
  assert ran
  name = 'blocks.1.attention'
  weighted = jnp.einsum('bhts,bshk->bthk', values[f'{name}.weights'], values[f'{name}.values'])
  close(values[f'{name}.heads'], weighted)
  close(values[f'{name}.weights'][0], inside.maps['self'].weights[1])


def test_the_page_has_everything_of_a_decoder(inside):
  page = inside.html()
  (shown,) = data_of(page)['maps']
  assert shown['kind'] == 'self' and shown['rows'] == PIECES
  np.testing.assert_allclose(shown['entropy'], entropy(inside.maps['self'].weights), atol=1e-3)
  np.testing.assert_allclose(shown['changes'], inside.changes['self'], rtol=1e-2)
  queries = shown['vectors']['queries']
  assert queries['shape'] == [2, 2, 5, 8]
  found = np.frombuffer(base64.b64decode(queries['data']), np.int8).reshape(queries['shape'])
  want = inside.layers['']['queries'].swapaxes(1, 2)
  np.testing.assert_allclose(found * queries['largest'] / 127, want, atol=0.01 * np.abs(want).max())
  assert len(shown['rollout']) == 2 * 5 * 5
  assert data_of(page)['lens']['positions'] == PIECES
  frame = inside._repr_html_()
  assert frame.startswith('<iframe srcdoc="&lt;!doctype html&gt;')


def test_a_translation_has_three_kinds(tokenizer):
  task = Seq2Seq(
    tokenizer=tokenizer, decoding=Decoding(max_new_tokens=4, batch_size=2), max_length=8
  )
  config = ModelConfig(vocab=tokenizer.size, **ONE)
  inside = look(task, drawn(lambda: task.init(config, jax.random.key(0))), 'abc')
  assert {kind: found.weights.shape[2:] for kind, found in inside.maps.items()} == {
    'cross': (len(inside.lens.positions), 4),
    'encoder': (4, 4),
    'decoder': (len(inside.lens.positions),) * 2,
  }
  assert inside.maps['encoder'].rows == inside.maps['cross'].columns == [*'abc', '</s>']
  assert {kind: change.shape for kind, change in inside.changes.items()} == dict.fromkeys(
    ('cross', 'encoder', 'decoder'), (1, 2)
  )
  names = [shown['kind'] for shown in data_of(inside.html())['maps']]
  assert names == ['cross', 'encoder', 'decoder']
  assert inside.lens.positions == inside.maps['cross'].rows
  # what the last layer says is what was generated, which has no padding and no start token
  said = [[name for name in k if name not in ('<pad>', '<s>')] for k in inside.lens.outputs[-1]]
  assert [names[0] for names in said] == inside.lens.positions


@pytest.mark.slow
def test_images_and_sounds_are_shown(tokenizer, rng):
  pixels = rng.integers(0, 256, (4, 6, 3), np.uint8)
  images = Classification(
    tokenizer=tokenizer,
    decoding=Batching(batch_size=2),
    max_length=8,
    classes=('a', 'b'),
    input_processor=ImageProcessor(height=4, width=6, channels=3, patch=2),
  )
  config = ModelConfig(
    vocab=8, modality='patches', features=12, position='learned', tie='none', **ONE
  )
  inside = look(images, drawn(lambda: images.init(config, jax.random.key(0))), pixels)
  (shown,) = data_of(inside.html())['maps']
  assert [p['grid'] for p in shown['pictures']] == [[2, 3]] * 2 and len(shown['rows']) == 7
  file = io.BytesIO(base64.b64decode(shown['pictures'][0]['url'].partition(',')[2]))
  np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)
  assert {*inside.lens.outputs[0][0]} == {'a', 'b'}
  assert inside.lens.positions == ['input']

  sounds = Seq2Seq(
    tokenizer=tokenizer,
    decoding=Decoding(max_new_tokens=4, batch_size=2),
    max_length=20,
    input_processor=SoundProcessor(bands=5, max_length=20),
  )
  config = ModelConfig(vocab=tokenizer.size, modality='frames', features=5, tie='output', **ONE)
  frames = rng.standard_normal((9, 5)).astype(np.float32)
  inside = look(sounds, drawn(lambda: sounds.init(config, jax.random.key(0))), frames)
  cross, encoder, _ = data_of(inside.html())['maps']
  assert cross['pictures'][0] is None and cross['pictures'][1]['grid'] == [1, 5]
  assert encoder['pictures'][0]['size'] == [9, 5]


@pytest.mark.slow
def test_a_masked_model_says_what_fills_the_gap(tokenizer):
  task = MaskedLM(tokenizer=tokenizer, decoding=Batching(batch_size=2), max_length=12)
  config = ModelConfig(vocab=tokenizer.size, **ONE)
  inside = look(task, drawn(lambda: task.init(config, jax.random.key(0))), 'a___c')
  assert inside.lens.probabilities.shape[:2] == (1, len(inside.maps['self'].rows))


@pytest.mark.slow
def test_the_guide_runs(tokenizer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  guide = pathlib.Path(__file__).parents[2] / 'docs' / 'looking_inside.md'
  first, second, third = re.findall(r'```python\n(.*?)```', guide.read_text('utf-8'), re.DOTALL)
  task = Seq2Seq(
    tokenizer=tokenizer, decoding=Decoding(max_new_tokens=4, batch_size=2), max_length=32
  )
  config = ModelConfig(vocab=tokenizer.size, **ONE)
  model = drawn(lambda: task.init(config, jax.random.key(0)))
  exec(first, dict(task=task, model=model))
  assert '<svg' in (tmp_path / 'attention.svg').read_text()
  config = ModelConfig(vocab=tokenizer.size, **SMALL | dict(depth=4))
  model = drawn(lambda: Decoder(config, nnx.Rngs(0)))
  names = dict(model=model, tokenizer=tokenizer, tokens=tokenizer.encode('abc def'), jnp=jnp)
  exec(second, names)
  names |= dict(tokens=TOKENS, other=TOKENS[:, ::-1], vector=jnp.ones(16))
  exec(third, names)
  assert names['logits'].shape == (1, 5, tokenizer.size)
