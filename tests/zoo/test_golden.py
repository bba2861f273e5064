"""Published weights: what `transformers` answers, we answer.

And the goldens would notice any weight, GELU, epsilon, scale or order that is not the right one.
"""

import json
import re

import jax
import numpy as np
import pytest
from answers import (
  GENERATE,
  GOLDEN,
  NAMES,
  SECOND,
  answers_of,
  assert_same,
  continued,
  golden,
  real,
)
from conftest import TOLERANCE
from safetensors import safe_open
from safetensors.numpy import save_file

from transformer.zoo.families.rows import leaves
from transformer.zoo.pretrained import load_pretrained, reading

SWAPS = [
  ('bert', dict(activation='gelu_tanh')),
  ('bert', dict(norm_epsilon=2e-2)),
  ('gpt2', dict(activation='gelu_erf')),
  ('t5', dict(scale_attention=True)),
  ('t5', dict(scale_logits=False)),
  ('t5', dict(norm_epsilon=2e-2)),
  ('t5_v1_1', dict(activation='gelu_erf')),
  ('bart', dict(scale_embedding=False)),
  ('bart', dict(norm_epsilon=1e-6)),
  ('marian', dict(position='sinusoidal')),
  ('vit', dict(activation='gelu_tanh')),
  ('whisper', dict(activation='gelu_tanh')),
  ('whisper', dict(norm_epsilon=1e-6)),
  ('llama', dict(rotary_base=10_000.0)),
]


# of bodies that other goldens prove
HEADS = ('bert_tags', 'electra_masked', 't5_encoder', *SECOND)


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.slow) if n in HEADS else n for n in NAMES]
)
def test_the_reference_answers_the_same(name, close):
  model, inputs, expected, _ = golden(name)
  assert_same(answers_of(model, inputs), expected, inputs, close)


def slow_but(names, plain):
  """Parameters of which a plain pytest takes these."""
  return [n if n in plain else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize('name', slow_but(GENERATE, ('gpt2', 'llama', 't5', 'bart', 'whisper')))
def test_the_reference_generates_the_same(name, close):
  model, inputs, expected, config = golden(name)
  greedy, beam, scores = continued(model, inputs, config)
  np.testing.assert_array_equal(greedy, expected['greedy'][:, 0])
  np.testing.assert_array_equal(beam, expected['beam'])
  close(scores, expected['beam_scores'])


def furthest(found, expected, inputs):
  """The largest error, as `conftest.close` measures it; inf for NaN."""
  errors = []
  for key in set(found) & set(expected):
    one, other = (real(key, x, inputs).astype(np.float64) for x in (found[key], expected[key]))
    errors.append(np.abs(one - other).max() / np.abs(other).max())
  return np.nan_to_num(max(errors), nan=np.inf)


@pytest.mark.slow
@pytest.mark.parametrize('name, swap', SWAPS, ids=str)
def test_a_swap_is_noticed(name, swap, monkeypatch):
  read = reading.read_config
  monkeypatch.setattr(reading, 'read_config', lambda *given: read(*given) | swap)
  _, inputs, expected, _ = golden(name)
  model, _ = load_pretrained(GOLDEN / name, unroll=1)
  assert furthest(answers_of(model, inputs), expected, inputs) > 2 * TOLERANCE['float32']


@pytest.mark.parametrize('name', slow_but(NAMES, ('bert', 'gpt2', 't5')))
def test_every_number_counts(name, rng):
  """In every layer of every parameter, but for the biases of keys and norms that are off."""
  model, inputs, expected, _ = golden(name)
  parameters = leaves(model)
  for path, leaf in parameters.items():
    if path.endswith('key/bias'):
      continue
    for layer in range(len(leaf)) if 'blocks' in path else [...]:
      first_norm = path.endswith('blocks/attention_norm/scale') and layer == 0
      if name.startswith('modernbert') and first_norm:
        continue  # its first layer has none
      changed = np.array(leaf)
      changed[layer] += 0.1 * rng.normal(size=changed[layer].shape)
      values = (parameters | {path: jax.numpy.asarray(changed)}).values()
      found = answers_of(jax.tree.unflatten(jax.tree.structure(model), values), inputs)
      assert furthest(found, expected, inputs) > 2 * TOLERANCE['float32'], (path, layer)


def is_stacked(path, name):
  """Whether a parameter has a leading axis of layers."""
  return 'blocks' in path or (name == 'umt5' and 'positions' in path)


@pytest.mark.parametrize('name', slow_but(NAMES, [n for n in NAMES if n not in SECOND]))
def test_every_tensor_has_one_place(name, tmp_path):
  """Of tensors filled with their own number, each parameter is one, and each layer its layer's."""
  with safe_open(GOLDEN / name / 'model.safetensors', 'np') as file:
    unused = 'embed_pos' if name == 'pegasus' else 'mask_token'
    names = [n for n in file.keys() if unused not in n]  # noqa: SIM118
    tensors = {
      tensor: np.full(file.get_slice(tensor).get_shape(), i + 1, np.float32)
      for i, tensor in enumerate(names)
    }
  save_file(tensors, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text((GOLDEN / name / 'config.json').read_text())
  model, _ = load_pretrained(tmp_path)
  used = []
  for path, leaf in leaves(model).items():
    leaf = np.asarray(leaf)
    if 'experts/' in path:
      leaf = leaf.reshape(-1, *leaf.shape[2:])
    if name.startswith('modernbert') and 'blocks/attention_norm' in path:
      assert (leaf[0] == 1).all()  # the first layer has none
      used += [names[int(x[0]) - 1] for x in leaf[1:]]
      continue
    layers = leaf if is_stacked(path, name) else leaf[None]
    constants = [set(layer.ravel().tolist()) for layer in layers]
    if name == 'whisper' and path.endswith('key/bias'):
      assert constants == [{0.0}] * len(layers)
      continue
    assert all(len(constant) == 1 for constant in constants), path
    more = name.startswith('gemma') and path.endswith('/scale')  # its scales are stored less 1
    sources = [names[int(constant.pop()) - 1 - more] for constant in constants]
    used += sources
    if is_stacked(path, name):
      if 'experts/' in path:  # [L, E]
        numbers = [re.findall(r'\.(\d+)\.', source) for source in sources]
        expected = [[str(i // 4), str(i % 4)] for i in range(len(layers))]
        assert numbers == expected, path
        continue
      numbers = [re.search(r'\.(\d+)\.', source) for source in sources]
      assert [int(number[1]) for number in numbers] == list(range(len(layers))), path
      rest = {s[: n.start(1)] + s[n.end(1) :] for s, n in zip(sources, numbers, strict=True)}
      assert len(rest) == 1, (path, rest)
  assert set(used) == set(names)
  three = [x for x in names if re.search('c_attn|qkv_proj|query_key_value|Wqkv|in_proj', x)]
  two = [tensor for tensor in names if re.search('gate_up_proj|mlp.Wi|weights_in', tensor)]
  assert sorted(used) == sorted([*names, *three, *three, *two]), json.dumps(used)
