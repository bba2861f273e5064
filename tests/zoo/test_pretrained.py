"""Folders of published weights: every way they come in, and nothing wrong is taken."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from answers import GOLDEN, NAMES, SECOND, copied
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from transformer.data import tokenizers
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, Encoder, EncoderDecoder
from transformer.training import sharding
from transformer.zoo import presets
from transformer.zoo.families.rows import leaves
from transformer.zoo.pretrained import load_pretrained, reading, save_pretrained

FAMILY = {n: json.loads((GOLDEN / n / 'config.json').read_text())['model_type'] for n in NAMES}
# whose tables of positions begin with two rows for padding
PADDED_POSITIONS = ('roberta', 'mpnet', 'bart', 'mbart', 'opt')


@pytest.fixture
def copy(tmp_path):
  return functools.partial(copied, tmp_path)


def same(one, other):
  """The parameters and the config are; what came with the files may differ."""
  alike = [
    np.array_equal(*x) for x in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  ]
  return one.config == other.config and leaves(one).keys() == leaves(other).keys() and all(alike)


def renamed(old, new):
  return lambda tensors: {re.sub(old, new, name): x for name, x in tensors.items()}


@pytest.mark.parametrize('name', ['modernbert', 'qwen3_moe'])
def test_each_device_is_given_its_part(name):
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  model, _ = load_pretrained(GOLDEN / name, shardings=lambda m: sharding.shardings(m, mesh))
  whole, _ = load_pretrained(GOLDEN / name)
  assert same(model, whole)
  expected = leaves(sharding.shardings(whole, mesh))
  found = leaves(model)
  assert {path: x.sharding for path, x in found.items()} == expected
  kernels = [x for path, x in found.items() if path.endswith('feedforward/hidden/kernel')]
  for kernel in kernels:
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.slow) if n in SECOND else n for n in NAMES]
)
def test_what_is_written_is_read(name, tmp_path):
  model, _ = load_pretrained(GOLDEN / name)
  save_pretrained(tmp_path, model, model_type=FAMILY[name])
  again, _ = load_pretrained(tmp_path)
  assert same(model, again)
  with safe_open(GOLDEN / name / 'model.safetensors', 'np') as there:
    with safe_open(tmp_path / 'model.safetensors', 'np') as here:
      # sinusoids need no file
      unused = 'embed_pos' if name == 'pegasus' else 'mask_token'
      computed = {t for t in there.keys() if unused in t}  # noqa: SIM118
      assert set(there.keys()) - computed == set(here.keys())
      for tensor in here.keys():  # noqa: SIM118
        one, other = there.get_tensor(tensor), here.get_tensor(tensor)
        if 'position' in tensor and FAMILY[name] in PADDED_POSITIONS:
          one, other = one[2:], other[2:]  # without the rows of padding
        # Gemma's scales are stored as what they are more than 1, and used as a sum
        rounded = 2e-7 if name.startswith('gemma') and 'norm' in tensor else 0
        np.testing.assert_allclose(one, other, rtol=0, atol=rounded, err_msg=tensor)


OTHER_WAYS = {
  'gpt2 as published: no prefix, buffers': (
    'gpt2',
    lambda t: renamed('transformer.', '')(t) | {'h.0.attn.bias': np.ones((1, 1, 9, 9), np.float32)},
    {},
  ),
  'gpt2 with its output stored again': (
    'gpt2',
    lambda t: t | {'lm_head.weight': t['transformer.wte.weight']},
    {},
  ),
  'bert under the names of 2018': (
    'bert',
    lambda t: renamed('LayerNorm.weight', 'LayerNorm.gamma')(
      renamed('LayerNorm.bias', 'LayerNorm.beta')(t)
    ),
    {},
  ),
  'bert-base says MaskedLM and holds more': ('bert', dict, {'architectures': ['BertForMaskedLM']}),
  'bert with copies and buffers': (
    'bert',
    lambda t: (
      t
      | {
        'bert.embeddings.position_ids': np.arange(21)[None],
        'cls.predictions.decoder.weight': t['bert.embeddings.word_embeddings.weight'],
        'cls.predictions.decoder.bias': t['cls.predictions.bias'],
      }
    ),
    {},
  ),
  'bart with all copies': (
    'bart',
    lambda t: (
      t
      | {
        f'{side}.weight': t['model.shared.weight']
        for side in ('model.encoder.embed_tokens', 'model.decoder.embed_tokens', 'lm_head')
      }
    ),
    {},
  ),
  'bart with a copy alone': ('bart', renamed('model.shared', 'lm_head'), {}),
  'marian with its sinusoids': (
    'marian',
    lambda t: t | {'model.encoder.embed_positions.weight': np.ones((21, 24), np.float32)},
    {},
  ),
  't5 with the row nobody reads': (
    't5',
    lambda t: (
      t
      | {
        'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight': np.ones(
          (32, 3), np.float32
        )
      }
    ),
    {},
  ),
  't5 v1.1 as transformers 5 writes it': (
    't5_v1_1',
    dict,
    {'tie_word_embeddings': True, 'scale_decoder_outputs': False},
  ),
  'llama as transformers 4 writes it': (
    'llama',
    dict,
    {'rope_parameters': None, 'rope_theta': 500.0, 'rope_scaling': None},
  ),
  'llama with buffers': (
    'llama',
    lambda t: t | {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(5, np.float32)},
    {},
  ),
}


@pytest.mark.parametrize('way', OTHER_WAYS)
def test_other_ways_to_say_the_same(way, copy):
  name, change, config = OTHER_WAYS[way]
  assert same(load_pretrained(copy(name, change, **config))[0], load_pretrained(GOLDEN / name)[0])


def test_bodies_of_bart_have_no_bias_of_logits(copy):
  drop = lambda t: {k.removeprefix('model.'): x for k, x in t.items() if 'final_logits' not in k}
  body, _ = load_pretrained(copy('bart', drop, architectures=['BartModel']))
  whole, _ = load_pretrained(GOLDEN / 'bart')
  assert body.embed.bias is None and not body.config.bias_output
  np.testing.assert_array_equal(body.embed.table, whole.embed.table)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(copy, dtype):
  folder = copy('llama', lambda tensors: {k: x.astype(dtype) for k, x in tensors.items()})
  model, _ = load_pretrained(folder)
  exact, _ = load_pretrained(GOLDEN / 'llama')
  for one, other in zip(jax.tree.leaves(model), jax.tree.leaves(exact), strict=True):
    assert one.dtype == jnp.float32
    np.testing.assert_array_equal(one, np.asarray(other).astype(dtype).astype(np.float32))


def shards(folder, files=2):
  """Splits the weights as the hub does, and returns the index."""
  with safe_open(folder / 'model.safetensors', 'np') as file:
    tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118
  (folder / 'model.safetensors').unlink()
  index = {}
  for i in range(files):
    name = f'model-{i + 1:05}-of-{files:05}.safetensors'
    part = dict(list(tensors.items())[i::files])
    save_file(part, folder / name)
    index |= dict.fromkeys(part, name)
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  return index


def test_large_parameters_are_read_into_memory_of_their_own(monkeypatch):
  small, _ = load_pretrained(GOLDEN / 'gpt2')
  monkeypatch.setattr(reading, 'LARGE', 0)
  assert same(load_pretrained(GOLDEN / 'gpt2')[0], small)


def test_shards_are_one_model(copy):
  folder = copy('llama')
  index = shards(folder)
  assert same(load_pretrained(folder)[0], load_pretrained(GOLDEN / 'llama')[0])

  name, file = next(iter(index.items()))
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': index | {'model.none.weight': file}})
  )
  with pytest.raises(ValueError, match=f'promises tensors that {file} lacks: model.none.weight'):
    load_pretrained(folder)
  (folder / file).unlink()
  with pytest.raises(ValueError, match=f'names {file}, which is not in the folder'):
    load_pretrained(folder)
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': {name: '../../secret'}})
  )
  with pytest.raises(ValueError, match='names ../../secret, which is not in the folder'):
    load_pretrained(folder)
  (folder / 'model.safetensors.index.json').write_text('{}')
  with pytest.raises(ValueError, match='there is no weight_map'):
    load_pretrained(folder)


WRONG_TENSORS = [
  (lambda t: {k: x for k, x in t.items() if 'wpe' not in k}, 'missing: wpe.weight$'),
  (lambda t: t | {'extra.weight': np.ones(3, np.float32)}, 'left over: extra.weight$'),
  (
    renamed('h.1.attn.c_proj.weight', 'h.1.attn.c_prj.weight'),
    r'missing: h.1.attn.c_proj.weight \(nearest: h.1.attn.c_prj.weight\)\n  left over: h.1',
  ),
  (
    lambda t: t | {'transformer.h.2.mlp.c_fc.weight': np.ones((40, 24), np.float32)},
    r'h.2.mlp.c_fc.weight: has shape \(40, 24\), but the config asks for \(24, 40\)',
  ),
  (
    lambda t: t | {'transformer.h.0.ln_1.bias': np.ones(24, np.int8)},
    'h.0.ln_1.bias: holds I8, none of F32, F16, BF16, F64',
  ),
  (lambda t: t | {'wpe.weight': t['transformer.wpe.weight']}, 'are one tensor, given twice'),
  (
    lambda t: t | {'lm_head.weight': t['transformer.wte.weight'] + 1},
    'lm_head.weight and transformer.wte.weight differ, but config.json says',
  ),
  (lambda t: {k: x for k, x in t.items() if 'h.2.' not in k}, 'missing: h.2.attn.c_attn.bias'),
  (
    lambda t: t | {k.replace('h.2.', 'h.3.'): x for k, x in t.items() if 'h.2.' in k},
    'left over: h.3.attn.c_attn.bias',
  ),
]


@pytest.mark.parametrize('change, complaint', WRONG_TENSORS)
def test_every_tensor_is_used_once_or_the_error_lists_it(copy, change, complaint):
  with pytest.raises(ValueError, match=f'(?m){complaint}'):
    load_pretrained(copy('gpt2', change))


def test_an_untied_gpt2_has_a_table_of_its_own(copy):
  table = np.full((99, 24), 2, np.float32)
  folder = copy('gpt2', lambda t: t | {'lm_head.weight': table}, tie_word_embeddings=False)
  np.testing.assert_array_equal(load_pretrained(folder)[0].output.table, table)


WRONG_CONFIGS = [
  ('bert', dict(model_type='mamba'), "model_type='mamba' is not among those .* bert, "),
  ('bert', dict(model_type=None), 'model_type=None is not among'),
  ('bert', dict(architectures=['BertForNextSentencePrediction']), 'SentencePrediction is not'),
  ('bert', dict(architectures=['GPT2LMHeadModel']), 'GPT2LMHeadModel is not among'),
  ('bert', dict(position_embedding_type='relative_key'), "position_embedding_type='relative_key'"),
  ('bert', dict(add_cross_attention=True), 'add_cross_attention=True is not supported, only False'),
  ('electra', dict(is_decoder=True), 'is_decoder=True is not supported, only False'),
  ('deit', dict(architectures=['DeiTForImageClassificationWithTeacher']), 'WithTeacher is not amo'),
  ('bert', dict(hidden_act='mish'), "the activation 'mish' is not supported"),
  ('roberta', dict(pad_token_id=0), 'pad_token_id=0 is not supported, only 1'),
  ('roberta', dict(hidden_act='relu'), "hidden_act='relu' is not supported"),
  ('gpt2', dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx=True'),
  ('gpt2', dict(n_head=5), 'model.heads=5 does not divide model.width=24'),
  ('llama', dict(rope_parameters={'rope_type': 'longrope'}), "rope_type='longrope' is not supp"),
  ('llama', dict(rope_parameters=None, rope_scaling={'type': 'su'}), "rope_type='su'"),
  ('llama', dict(attention_bias=True), 'missing: layers.0.self_attn.k_proj.bias'),
  ('qwen2', dict(use_sliding_window=True), 'use_sliding_window=True is not supported'),
  ('qwen2', dict(layer_types=['sliding_attention'] * 3), 'layer_types=.* is not supported'),
  ('gemma3', dict(attn_logit_softcapping=2.5), 'attn_logit_softcapping=2.5 is not supported'),
  (
    't5',
    dict(relative_attention_num_buckets=16),
    r'shape \(32, 3\), but .* \(16, 3\)',
  ),
  ('t5', dict(feed_forward_proj='gated-swiglu'), "the activation 'swiglu' is not supported"),
  ('bart', dict(normalize_before=True), 'normalize_before=True is not supported'),
  ('bart', dict(decoder_attention_heads=4), 'decoder_attention_heads.* differ'),
  ('marian', dict(share_encoder_decoder_embeddings=False), 'share_encoder_decoder_embeddings=Fal'),
  ('vit', dict(qkv_bias=False), 'qkv_bias=False is not supported, only True'),
  ('whisper', dict(scale_embedding=True), 'scale_embedding=True is not supported'),
]


@pytest.mark.parametrize('name, config, complaint', WRONG_CONFIGS)
def test_what_cannot_be_computed_is_refused(copy, name, config, complaint):
  with pytest.raises(ValueError, match=complaint):
    load_pretrained(copy(name, **config))


def test_damaged_files_are_named(copy, tmp_path):
  folder = copy('gpt2')
  whole = (folder / 'model.safetensors').read_bytes()
  for damaged in (b'', whole[:5], whole[:1000], whole[:-4], b'\x80\x02' + whole[2:], b'x' * 999):
    (folder / 'model.safetensors').write_bytes(damaged)
    with pytest.raises(ValueError, match='model.safetensors is damaged or cut short'):
      load_pretrained(folder)
  (folder / 'model.safetensors').write_bytes(whole)
  (folder / 'config.json').write_text('{"model_type": ')
  with pytest.raises(ValueError, match='config.json is not JSON'):
    load_pretrained(folder)
  with pytest.raises(ValueError, match='config.json does not exist: give a folder as it is publ'):
    load_pretrained(tmp_path)


def test_pickles_are_never_opened(copy):
  folder = copy('gpt2')
  (folder / 'model.safetensors').unlink()
  with pytest.raises(ValueError, match='there is no model.safetensors and no .*index.json$'):
    load_pretrained(folder)
  (folder / 'pytorch_model.bin').write_bytes(b'cos\nsystem\n(S"touch /tmp/opened"\ntR.')
  with pytest.raises(ValueError, match=r'(?s)pytorch_model.bin can run code.*convert: python -c'):
    load_pretrained(folder)


def test_settings_are_ours_and_shapes_the_files(copy):
  model, _ = load_pretrained(GOLDEN / 'gpt2', dtype='bfloat16', dropout=0.25, remat='block')
  assert (model.config.dtype, model.config.dropout) == ('bfloat16', 0.25)
  assert model.config.remat == 'block'
  assert model.stack.blocks.attention.query.kernel.dtype == jnp.float32
  with pytest.raises(ValueError, match='width comes from config.json'):
    load_pretrained(GOLDEN / 'gpt2', width=32)


def test_a_loaded_model_can_be_trained_in_place():
  """Its arrays may be the loader's memory: donating them must not free what is still used."""
  model, _ = load_pretrained(GOLDEN / 'gpt2')
  before = jax.tree.map(np.array, model)
  update = jax.jit(lambda m: jax.tree.map(lambda x: x + 1, m), donate_argnums=0)
  after = update(model)
  assert same(after, jax.tree.map(lambda x: x + np.float32(1), before))


def test_the_tokenizer_comes_along(copy, tmp_path):
  model, none = load_pretrained(GOLDEN / 'llama')
  assert none is None
  tokenizer = tokenizers.train(['a cab', 'cab a'], kind='characters')
  save_pretrained(tmp_path / 'out', model, tokenizer, decoder_start_token_id=1)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert (config['pad_token_id'], config['bos_token_id'], config['eos_token_id']) == (0, 1, 2)
  assert config['decoder_start_token_id'] == 1
  _, again = load_pretrained(tmp_path / 'out')
  assert again.encode('a cab') == tokenizer.encode('a cab')
  large = tokenizers.train([], kind='bytes')
  large.save(tmp_path / 'out' / 'tokenizer.json')
  with pytest.raises(ValueError, match='tokenizer.json has 260 ids, but the model knows 99'):
    load_pretrained(tmp_path / 'out')


def test_sentence_encoders_take_the_mean(copy, tmp_path):
  folder = copy('bert_body')
  (folder / '1_Pooling').mkdir()
  pooling = {'word_embedding_dimension': 24, 'pooling_mode_mean_tokens': True}
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
  model, _ = load_pretrained(folder)
  assert model.config.pooling == 'mean' and model.pooler is None
  save_pretrained(tmp_path / 'out', model)
  again, _ = load_pretrained(tmp_path / 'out')
  assert again.config.pooling == 'mean' and same(model, again)
  pooling = {'pooling_mode_max_tokens': True}
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
  with pytest.raises(ValueError, match='pooling_mode_max_tokens is not supported'):
    load_pretrained(folder)


def test_a_model_of_no_family_is_refused_and_nothing_is_written(tmp_path):
  shape = dict(vocab=11, width=16, depth=1, heads=2, feedforward=24, max_length=8)
  config = ModelConfig(**shape, position='alibi', tie='output')
  model = jax.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
  with pytest.raises(ValueError, match="architecture .* the nearest, gpt2, needs .*'alibi'"):
    save_pretrained(tmp_path / 'out', model)
  with pytest.raises(ValueError, match="model_type='bert' has no Decoder"):
    save_pretrained(tmp_path / 'out', model, model_type='bert')
  with pytest.raises(ValueError, match='no published family has the architecture of a Linear'):
    save_pretrained(tmp_path / 'out', nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
  assert not (tmp_path / 'out').exists()


def test_only_the_padding_token_of_config_json_is_padding(tmp_path, close):
  small = dict(vocab=50, width=16, depth=1, heads=2, feedforward=24, max_length=16)
  row = jnp.array([[7, 0, 9, 1]])
  ones = jnp.ones_like(row)

  def loaded(kind, preset, model_type):
    model = kind(ModelConfig(**preset | small), nnx.Rngs(0))
    save_pretrained(tmp_path / model_type, model, model_type=model_type)
    return load_pretrained(tmp_path / model_type)[0]

  gpt2 = loaded(Decoder, presets.GPT2, 'gpt2')
  close(gpt2(row), gpt2(row, segments=ones))
  roberta = loaded(Encoder, presets.ROBERTA_BASE, 'roberta')
  assert roberta.config.pad == 1
  close(roberta(row), roberta(row, segments=(row != 1).astype('int32')))
  bart = loaded(EncoderDecoder, presets.BART_BASE | dict(pad=1), 'bart')
  want = bart(row, row, input_segments=(row != 1).astype('int32'), target_segments=ones)
  close(bart(row, row), want)
