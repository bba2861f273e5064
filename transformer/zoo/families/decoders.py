"""Decoders: GPT-2, Llama and Qwen2."""

import re

from transformer.modules.model import Decoder
from transformer.zoo.families.family import Family
from transformer.zoo.families.rows import fused, layers


def _gpt2_rows(config, kind):
  qkv = [f'stack/blocks/attention/{part}' for part in ('query', 'key', 'value')]
  return [
    fused([f'{part}/kernel' for part in qkv], 'h.{}.attn.c_attn.weight'),
    fused([f'{part}/bias' for part in qkv], 'h.{}.attn.c_attn.bias'),
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
  ]


# Radford et al. 2019, Language models are unsupervised multitask learners
GPT2 = Family(
  architectures={'GPT2LMHeadModel': Decoder, 'GPT2Model': Decoder},
  fields={
    'vocab': ('vocab_size', 50257),
    'width': ('n_embd', 768),
    'depth': ('n_layer', 12),
    'heads': ('n_head', 12),
    'max_length': ('n_positions n_ctx', 1024),
    'activation': ('activation_function', 'gelu_new'),
    'norm_epsilon': ('layer_norm_epsilon', 1e-5),
    'scale_attention': ('scale_attn_weights', True),
    'dropout': ('resid_pdrop embd_pdrop', 0.1),
    'attention_dropout': ('attn_pdrop', 0.1),
  },
  fixed=dict(norm='layer', prenorm=True, position='learned', scale_embedding=False),
  only=dict(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
  rows=_gpt2_rows,
  derive=lambda theirs, names, kind: dict(
    feedforward=theirs.get('n_inner') or 4 * theirs.get('n_embd', 768),
    tie='output' if theirs.get('tie_word_embeddings', True) else 'none',
  ),
  express=lambda config: dict(
    n_inner=config.feedforward, tie_word_embeddings=config.tie in ('output', 'all')
  ),
  prefix='transformer.',
  aliases={'lm_head.weight': 'wte.weight'},
  ignored=re.compile(r'h\.\d+\.attn\.(masked_)?bias'),
)


def _llama_derive(theirs, names, kind):
  rope = theirs.get('rope_parameters') or theirs.get('rope_scaling') or {}
  scaling = rope.get('rope_type', rope.get('type', 'default'))
  if scaling != 'default':
    raise ValueError(f'config.json: rope_type={scaling!r} is not supported, only default is')
  if set(theirs.get('layer_types') or ()) - {'full_attention'}:
    raise ValueError(
      f'config.json: layer_types={theirs["layer_types"]} is not supported, only full_attention is'
    )
  return dict(
    rotary_base=float(rope.get('rope_theta', theirs.get('rope_theta', 10_000.0))),
    tie='output' if theirs.get('tie_word_embeddings', False) else 'none',
  )


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
  rows=lambda config, kind: layers(
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
  express=lambda config: dict(
    rope_theta=config.rotary_base, tie_word_embeddings=config.tie in ('output', 'all')
  ),
  prefix='model.',
  aliases={'lm_head.weight': 'embed_tokens.weight'},
  ignored=re.compile(r'layers\.\d+\.self_attn\.rotary_emb\.inv_freq'),
)

# Yang et al. 2024, https://arxiv.org/abs/2407.10671
QWEN2 = LLAMA._replace(
  architectures={'Qwen2ForCausalLM': Decoder},
  fields=LLAMA.fields
  | {'vocab': ('vocab_size', 151936), 'feedforward': ('intermediate_size', 22016)},
  fixed=LLAMA.fixed | dict(bias_qkv=True),
  only=dict(use_sliding_window=False),
)
