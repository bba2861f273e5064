"""A ModelConfig that cannot be built says which key is wrong and what to do."""

import dataclasses

import jaxtyping
import pytest

from transformer.modules.config import ModelConfig
from transformer.zoo import presets


@pytest.fixture(autouse=True)
def unchecked():
  """Without the tests' type checks, as users run: our own errors must do."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


# what few families have: a preset that does not name it is without it
PARTS = set(
  'sublayer_norm parallel qk_norm rotary_size rotary_scaling relative_buckets relative_distance'
  ' bias_attention bias_feedforward bias_norm attention_scale attention_sinks soft_cap_attention'
  ' soft_cap_logits'.split()
)

ERRORS = [
  (dict(position='rotray'), r"model\.position='rotray' is none of 'sinusoidal', .*'rotary'"),
  (dict(norm='batch'), r"model\.norm='batch' is none of 'layer', 'rms'"),
  (dict(activation='gelu'), r"model\.activation='gelu' is none of .*'gelu_erf', 'gelu_tanh'"),
  (dict(tie='input'), r"model\.tie='input' is none of 'none', 'inputs', 'output', 'all'"),
  (dict(dtype='float64'), r"model\.dtype='float64' is none of 'float32', 'bfloat16', 'float16'"),
  (dict(vocab=0), r'model\.vocab=0 must be at least 1'),
  (dict(depth=0), r'model\.depth=0 must be at least 1'),
  (dict(max_length=-1), r'model\.max_length=-1 must be at least 1'),
  (dict(decoder_depth=-1), r'model\.decoder_depth=-1 must be at least 0'),
  (dict(window=-2), r'model\.window=-2 must be at least 0'),
  (dict(unroll=-1), r'model\.unroll=-1 must be at least 0'),
  (dict(dropout=1.0), r'model\.dropout=1\.0 is a rate: give 0 <= rate < 1'),
  (dict(attention_dropout=-0.1), r'model\.attention_dropout=-0\.1 is a rate'),
  (dict(width=30, heads=4), r'model\.heads=4 does not divide model\.width=30.*model\.head_size'),
  (dict(heads=8, kv_heads=3), r'model\.kv_heads=3 does not divide model\.heads=8.*divisor'),
  (dict(width=15, heads=5), r'model\.position=sinusoidal needs an even model\.width, not 15'),
  (dict(layers=(dict(windw=3),)), r'model\.layers=.*windw.* give each as dict\(window'),
  (dict(layers=(dict(window=-3),)), r'model\.layers=.*a window must be at least 0'),
  (dict(depth=3, layers=({}, {})), r'pattern of 2 layers, .* not divide model\.depth=3'),
  (dict(rotary_size=3), r'model\.rotary_size=3 must be even, and at most the head size 64'),
  (
    dict(rotary_scaling=dict(kind='ntk')),
    r'model\.rotary_scaling=.* one of none, linear, dynamic, llama3',
  ),
  (dict(rotary_scaling=dict(kind='yarn', factr=2.0)), r"rotary_scaling=.*missing.*'factor'"),
  (dict(layers=(dict(rotary_scaling=('yarn',)),)), r'rotary_scaling=.* give kind'),
  (dict(parallel='one_norm'), r'model\.parallel=one_norm needs model\.prenorm=True'),
  (dict(sublayer_norm='both'), r'model\.sublayer_norm=both .* needs model\.prenorm=True'),
  (dict(soft_cap_logits=-1.0), r'model\.soft_cap_logits=-1\.0 must be positive, or 0 for none'),
  (dict(position='rotary', head_size=7), r'model\.position=rotary needs an even head size, not 7'),
]


@pytest.mark.parametrize('settings, message', ERRORS, ids=[str(e[0]) for e in ERRORS])
def test_a_wrong_value_is_an_error_that_names_the_key(settings, message):
  with pytest.raises(ValueError, match=message):
    ModelConfig(**(dict(vocab=10) | settings))


def test_a_key_that_is_unknown_or_missing_is_an_error():
  with pytest.raises(TypeError, match='widht'):
    ModelConfig(vocab=10, widht=3)
  with pytest.raises(TypeError, match='vocab'):
    ModelConfig()


def test_0_means_a_size_that_follows_from_others():
  config = ModelConfig(vocab=10, width=32, heads=4)
  assert (config.key_size, config.groups) == (8, 4)
  config = ModelConfig(vocab=10, width=30, heads=4, kv_heads=2, head_size=6)
  assert (config.key_size, config.groups) == (6, 2)


def test_a_layer_has_the_values_of_the_config_where_it_has_none():
  scaling = dict(kind='linear', factor=8.0)
  layers = ({}, dict(window=0, rotary_scaling=scaling), dict(rotary_base=0))
  config = ModelConfig(vocab=10, window=4, rotary_base=50.0, layers=layers)
  near, far, unturned = config.pattern
  assert (near.window, near.rotary_base, near.rotary_scaling) == (4, 50.0, ())
  assert (far.window, dict(far.rotary_scaling)) == (0, scaling)
  assert (unturned.window, unturned.rotary_base) == (4, 0)
  again = ModelConfig(**dataclasses.asdict(config))
  assert again == config and hash(again) == hash(config)


def test_a_config_cannot_change_and_is_a_key_of_a_cache():
  config = ModelConfig(vocab=10)
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.width = 3
  assert hash(config) == hash(ModelConfig(vocab=10))


def test_presets_say_every_key_of_the_architecture():
  # the run gives the vocabulary and the platform; modality and padding are tokens and none
  given = {'vocab', 'pad', 'platform', 'layers', 'modality', 'features', 'stem'} | PARTS
  keys = {field.name for field in dataclasses.fields(ModelConfig)}
  found = {k: v for k, v in vars(presets).items() if k.isupper() and 'heads' in v}
  assert found
  for preset in found.values():
    assert keys - given <= set(preset) <= keys
    ModelConfig(vocab=10, **preset)
  assert ModelConfig(vocab=10, **presets.TRANSFORMER_BASE) == ModelConfig(vocab=10)
