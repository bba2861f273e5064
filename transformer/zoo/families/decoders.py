"""Decoders: GPT-2, OPT, BLOOM, and Llama with those of its shape."""

import re

import numpy as np

from transformer.modules.model import Decoder
from transformer.zoo.families.family import Family, value
from transformer.zoo.families.rows import Row, around_one, fused, layers, shifted

_QKV = [f'stack/blocks/attention/{part}' for part in ('query', 'key', 'value')]


def _tie(theirs, default):
  return dict(tie='output' if value(theirs, 'tie_word_embeddings', default) else 'none')


def _express_tie(config):
  return dict(tie_word_embeddings=config.tie in ('output', 'all'))


def _gpt2_derive(theirs, names, kind):
  inner = dict(feedforward=value(theirs, 'n_inner', 4 * value(theirs, 'n_embd', 768)))
  # a body has no logits of its own: it is read as a model whose table gives them
  return inner | _tie({} if theirs.get('architectures') == ['GPT2Model'] else theirs, True)


# Radford et al. 2019, Language models are unsupervised multitask learners
GPT2 = Family(
  architectures={'GPT2LMHeadModel': Decoder, 'GPT2Model': Decoder},
  fields={
    'vocab': ('vocab_size', 50257),
    'width': ('n_embd|hidden_size', 768),
    'depth': ('n_layer|num_hidden_layers', 12),
    'heads': ('n_head|num_attention_heads', 12),
    'max_length': ('n_positions|max_position_embeddings|n_ctx', 1024),
    'activation': ('activation_function', 'gelu_new'),
    'norm_epsilon': ('layer_norm_epsilon', 1e-5),
    'scale_attention': ('scale_attn_weights', True),
    'dropout': ('resid_pdrop embd_pdrop', 0.1),
    'attention_dropout': ('attn_pdrop', 0.1),
  },
  fixed=dict(norm='layer', prenorm=True, position='learned', scale_embedding=False),
  only=dict(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
  rows=lambda config, kind, theirs: [
    *fused(_QKV, 'h.{}.attn.c_attn', transposed=False),
    *layers(
      {
        'embed': 'wte',
        'stack/positions': 'wpe',
        'stack/blocks/attention_norm': 'h.{}.ln_1',
        'stack/blocks/attention/out': 'h.{}.attn.c_proj',
        'stack/blocks/feedforward_norm': 'h.{}.ln_2',
        'stack/blocks/feedforward/hidden': 'h.{}.mlp.c_fc',
        'stack/blocks/feedforward/out': 'h.{}.mlp.c_proj',
        'stack/norm': 'ln_f',
        'output': 'lm_head',
      },
      transposed=False,
    ),
  ],
  derive=_gpt2_derive,
  express=lambda config: dict(n_inner=config.feedforward) | _express_tie(config),
  prefix='transformer.',
  aliases={'lm_head.weight': 'wte.weight'},
  ignored=re.compile(r'h\.\d+\.attn\.(masked_)?bias'),
)


def _opt_derive(theirs, names, kind):
  width, inner = value(theirs, 'hidden_size', 768), value(theirs, 'word_embed_proj_dim', 768)
  if width != inner:
    raise ValueError(
      f'config.json: word_embed_proj_dim={inner} is not supported, only hidden_size={width} is'
    )
  return _tie(theirs, True)


# Zhang et al. 2022, https://arxiv.org/abs/2205.01068
OPT = Family(
  architectures={'OPTForCausalLM': Decoder},
  fields={
    'vocab': ('vocab_size', 50272),
    'width': ('hidden_size', 768),
    'depth': ('num_hidden_layers', 12),
    'heads': ('num_attention_heads', 12),
    'feedforward': ('ffn_dim', 3072),
    'max_length': ('max_position_embeddings', 2048),
    'activation': ('activation_function', 'relu'),
    'dropout': ('dropout', 0.1),
    'attention_dropout': ('attention_dropout', 0.0),
  },
  fixed=dict(
    norm='layer', norm_epsilon=1e-5, prenorm=True, position='learned', scale_embedding=False
  ),
  only=dict(
    do_layer_norm_before=True,
    _remove_final_layer_norm=False,
    enable_bias=True,
    layer_norm_elementwise_affine=True,
  ),
  rows=lambda config, kind, theirs: [
    *layers(
      {
        'embed': 'embed_tokens',
        'stack/blocks/attention_norm': 'layers.{}.self_attn_layer_norm',
        'stack/blocks/attention/query': 'layers.{}.self_attn.q_proj',
        'stack/blocks/attention/key': 'layers.{}.self_attn.k_proj',
        'stack/blocks/attention/value': 'layers.{}.self_attn.v_proj',
        'stack/blocks/attention/out': 'layers.{}.self_attn.out_proj',
        'stack/blocks/feedforward_norm': 'layers.{}.final_layer_norm',
        'stack/blocks/feedforward/hidden': 'layers.{}.fc1',
        'stack/blocks/feedforward/out': 'layers.{}.fc2',
        'stack/norm': 'final_layer_norm',
        'output': 'lm_head',
      }
    ),
    shifted('stack/positions/table', 'embed_positions.weight'),
  ],
  derive=_opt_derive,
  express=lambda config: dict(word_embed_proj_dim=config.width) | _express_tie(config),
  pad=1,
  prefix='model.decoder.',
  aliases={'lm_head.weight': 'embed_tokens.weight'},
)


def _bloom_rows(config, kind, theirs):
  """Queries, keys and values of each head follow each other in one tensor."""
  H, K = config.heads, config.key_size
  name = 'h.{}.self_attention.query_key_value'

  def row(parameter, weight, after):
    def read(x):
      return [y.reshape(H * K, *after).T for y in x.reshape(H, 3, K, *after).swapaxes(0, 1)]

    def write(*parts):
      parts = [y.T.reshape(H, 1, K, *after) for y in parts]
      return np.concatenate(parts, axis=1).reshape(3 * H * K, *after)

    return Row(tuple(f'{path}/{parameter}' for path in _QKV), f'{name}.{weight}', read, write)

  return [
    row('kernel', 'weight', (config.width,)),
    row('bias', 'bias', ()),
    *layers(
      {
        'embed': 'word_embeddings',
        'stack/embedding_norm': 'word_embeddings_layernorm',
        'stack/blocks/attention_norm': 'h.{}.input_layernorm',
        'stack/blocks/attention/out': 'h.{}.self_attention.dense',
        'stack/blocks/feedforward_norm': 'h.{}.post_attention_layernorm',
        'stack/blocks/feedforward/hidden': 'h.{}.mlp.dense_h_to_4h',
        'stack/blocks/feedforward/out': 'h.{}.mlp.dense_4h_to_h',
        'stack/norm': 'ln_f',
        'output': 'lm_head',
      }
    ),
  ]


# BigScience 2022, https://arxiv.org/abs/2211.05100
BLOOM = Family(
  architectures={'BloomForCausalLM': Decoder},
  fields={
    'vocab': ('vocab_size', 250880),
    'width': ('hidden_size|n_embed', 64),
    'depth': ('n_layer|num_hidden_layers', 2),
    'heads': ('n_head|num_attention_heads', 8),
    'max_length': ('seq_length', 2048),
    'norm_epsilon': ('layer_norm_epsilon', 1e-5),
    'dropout': ('hidden_dropout', 0.0),
    'attention_dropout': ('attention_dropout', 0.0),
  },
  fixed=dict(
    activation='gelu_new',
    norm='layer',
    norm_embedding=True,
    prenorm=True,
    position='alibi',
    scale_embedding=False,
  ),
  only=dict(apply_residual_connection_post_layernorm=False),
  rows=_bloom_rows,
  derive=lambda theirs, names, kind: (
    dict(feedforward=4 * value(theirs, 'hidden_size', value(theirs, 'n_embed', 64)))
    | _tie(theirs, True)
  ),
  express=_express_tie,
  prefix='transformer.',
  aliases={'lm_head.weight': 'word_embeddings.weight'},
)


def _rope(theirs):
  """The base of rotary positions, where they are plain."""
  rope = value(theirs, 'rope_parameters', {}) or value(theirs, 'rope_scaling', {})
  scaling = rope.get('rope_type', rope.get('type', 'default'))
  if scaling != 'default':
    raise ValueError(f'config.json: rope_type={scaling!r} is not supported, only default is')
  if (part := rope.get('partial_rotary_factor', 1.0)) != 1:
    raise ValueError(f'config.json: partial_rotary_factor={part!r} is not supported, only 1.0 is')
  return float(value(rope, 'rope_theta', value(theirs, 'rope_theta', 10_000.0)))


def _llama_derive(theirs, names, kind):
  if set(theirs.get('layer_types') or ()) - {'full_attention'}:
    raise ValueError(
      f'config.json: layer_types={theirs["layer_types"]} is not supported, only full_attention is'
    )
  return dict(rotary_base=_rope(theirs)) | _tie(theirs, False)


# Touvron et al. 2023, https://arxiv.org/abs/2302.13971; SmolLM has the same shape
LLAMA = Family(
  architectures={'LlamaForCausalLM': Decoder},
  fields={
    'vocab': ('vocab_size', 32000),
    'width': ('hidden_size', 4096),
    'depth': ('num_hidden_layers', 32),
    'heads': ('num_attention_heads', 32),
    'kv_heads': ('num_key_value_heads', 0),
    'head_size': ('head_dim', 0),
    'feedforward': ('intermediate_size', 11008),
    'max_length': ('max_position_embeddings', 2048),
    'activation': ('hidden_act', 'silu'),
    'norm_epsilon': ('rms_norm_eps', 1e-6),
    'attention_dropout': ('attention_dropout', 0.0),
  },
  fixed=dict(
    norm='rms',
    prenorm=True,
    position='rotary',
    gated=True,
    bias=False,
    scale_embedding=False,
    dropout=0.0,
  ),
  only=dict(attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0),
  rows=lambda config, kind, theirs: layers(
    {
      'embed': 'embed_tokens',
      'stack/blocks/attention_norm': 'layers.{}.input_layernorm',
      'stack/blocks/attention/query': 'layers.{}.self_attn.q_proj',
      'stack/blocks/attention/key': 'layers.{}.self_attn.k_proj',
      'stack/blocks/attention/value': 'layers.{}.self_attn.v_proj',
      'stack/blocks/attention/out': 'layers.{}.self_attn.o_proj',
      'stack/blocks/feedforward_norm': 'layers.{}.post_attention_layernorm',
      'stack/blocks/feedforward/hidden': 'layers.{}.mlp.gate_proj',
      'stack/blocks/feedforward/gate': 'layers.{}.mlp.up_proj',
      'stack/blocks/feedforward/out': 'layers.{}.mlp.down_proj',
      'stack/norm': 'norm',
      'output': 'lm_head',
    }
  ),
  derive=_llama_derive,
  express=lambda config: dict(rope_theta=config.rotary_base) | _express_tie(config),
  prefix='model.',
  aliases={'lm_head.weight': 'embed_tokens.weight'},
  ignored=re.compile(r'layers\.\d+\.self_attn\.rotary_emb\.inv_freq'),
)

# Yang et al. 2024, https://arxiv.org/abs/2407.10671
QWEN2 = LLAMA._replace(
  architectures={'Qwen2ForCausalLM': Decoder},
  fields=LLAMA.fields
  | {
    'vocab': ('vocab_size', 151936),
    'feedforward': ('intermediate_size', 22016),
    'kv_heads': ('num_key_value_heads', 32),
    'max_length': ('max_position_embeddings', 32768),
  },
  fixed=LLAMA.fixed | dict(bias_qkv=True),
  only=dict(use_sliding_window=False),
)


def _windowed(default):
  """`derive` of a family whose layers all have one window; null stands for none."""

  def derive(theirs, names, kind):
    window = value(theirs, 'sliding_window', 0 if 'sliding_window' in theirs else default)
    return _llama_derive(theirs, names, kind) | dict(window=window)

  return derive


# Jiang et al. 2023, https://arxiv.org/abs/2310.06825
MISTRAL = LLAMA._replace(
  architectures={'MistralForCausalLM': Decoder},
  fields=LLAMA.fields
  | {
    'kv_heads': ('num_key_value_heads', 8),
    'feedforward': ('intermediate_size', 14336),
    'max_length': ('max_position_embeddings', 131072),
  },
  only={},
  derive=_windowed(4096),
  express=lambda config: LLAMA.express(config) | dict(sliding_window=config.window or None),
)

# Gemma Team 2024, https://arxiv.org/abs/2403.08295
GEMMA = LLAMA._replace(
  architectures={'GemmaForCausalLM': Decoder},
  fields=LLAMA.fields
  | {
    'vocab': ('vocab_size', 256000),
    'width': ('hidden_size', 3072),
    'depth': ('num_hidden_layers', 28),
    'heads': ('num_attention_heads', 16),
    'kv_heads': ('num_key_value_heads', 16),
    'head_size': ('head_dim', 256),
    'feedforward': ('intermediate_size', 24576),
    'max_length': ('max_position_embeddings', 8192),
    'activation': ('hidden_act', 'gelu_pytorch_tanh'),
  },
  fixed=LLAMA.fixed | dict(scale_embedding=True),
  only=dict(attention_bias=False, use_bidirectional_attention=False),
  rows=lambda config, kind, theirs: around_one(LLAMA.rows(config, kind, theirs)),
  derive=lambda theirs, names, kind: (
    _llama_derive({'tie_word_embeddings': True, **theirs}, names, kind)
    # the first configs say gelu and mean the approximate one
    | ({'activation': 'gelu_new'} if theirs.get('hidden_act') == 'gelu' else {})
  ),
  express=lambda config: (
    LLAMA.express(config)
    | ({'hidden_act': 'gelu_pytorch_tanh'} if config.activation == 'gelu_tanh' else {})
  ),
)


def _phi3_rows(config, kind, theirs):
  H, G, K = config.heads, config.groups, config.key_size
  inner = ['stack/blocks/feedforward/hidden', 'stack/blocks/feedforward/gate']
  alike = LLAMA.rows(config, kind, theirs)
  return [
    *(row for row in alike if not row.ours[0].startswith((*_QKV, *inner))),
    *fused(_QKV, 'layers.{}.self_attn.qkv_proj', (H * K, G * K, G * K)),
    *fused(inner, 'layers.{}.mlp.gate_up_proj'),
  ]


# Abdin et al. 2024, https://arxiv.org/abs/2404.14219
PHI3 = LLAMA._replace(
  architectures={'Phi3ForCausalLM': Decoder},
  fields={ours: keys for ours, keys in LLAMA.fields.items() if ours != 'head_size'}
  | {
    'vocab': ('vocab_size', 32064),
    'width': ('hidden_size', 3072),
    'feedforward': ('intermediate_size', 8192),
    'max_length': ('max_position_embeddings', 4096),
    'norm_epsilon': ('rms_norm_eps', 1e-5),
    'dropout': ('resid_pdrop embd_pdrop', 0.0),
  },
  only=dict(partial_rotary_factor=1.0),
  rows=_phi3_rows,
  derive=_windowed(0),
  express=MISTRAL.express,
)
