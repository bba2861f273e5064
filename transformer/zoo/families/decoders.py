"""Decoders: GPT-2, OPT, BLOOM and GPT-NeoX; those of Llama's shape are in llamas.py."""

import re

import numpy as np

from transformer.modules.heads import Classifier
from transformer.modules.model import Decoder
from transformer.zoo.families.family import Family, value
from transformer.zoo.families.rotary import express_rotary, partial_rotary, rotary
from transformer.zoo.families.rows import Row, fused, layers, shifted

QKV = [f'stack/blocks/attention/{part}' for part in ('query', 'key', 'value')]


def _tie(theirs, default):
  return dict(tie='output' if value(theirs, 'tie_word_embeddings', default) else 'none')


def _express_tie(config):
  return dict(tie_word_embeddings=config.tie in ('output', 'all'))


def below_score(rows: list[Row], kind: type) -> list[Row]:
  """Return the rows of a decoder, or for a Classifier those of its encoder and its head `score`."""
  if kind is not Classifier:
    return rows
  encoder = [row._replace(ours=tuple(f'encoder/{path}' for path in row.ours)) for row in rows]
  return encoder + layers({'out': 'score'})[:1]  # without a bias


def _gpt2_derive(theirs, names, kind):
  inner = dict(feedforward=value(theirs, 'n_inner', 4 * theirs['n_embd']))
  if kind is Classifier:
    inner |= dict(causal=True, pooling='last')
  # a GPT2Model has no output layer: it is read as a model with tied tables
  return inner | _tie({} if theirs.get('architectures') == ['GPT2Model'] else theirs, True)


# Radford et al. 2019, Language models are unsupervised multitask learners
GPT2 = Family(
  architectures={
    'GPT2LMHeadModel': Decoder,
    'GPT2Model': Decoder,
    'GPT2ForSequenceClassification': Classifier,
  },
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
  rows=lambda config, kind, theirs: below_score(
    [
      *fused(QKV, 'h.{}.attn.c_attn', transposed=False),
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
    kind,
  ),
  derive=_gpt2_derive,
  express=lambda config: dict(n_inner=config.feedforward) | _express_tie(config),
  prefix='transformer.',
  aliases={'lm_head.weight': 'wte.weight'},
  ignored=re.compile(r'h\.\d+\.attn\.(masked_)?bias'),
  heads=re.compile(r'score\..*'),
)


def _opt_derive(theirs, names, kind):
  width, inner = theirs['hidden_size'], value(theirs, 'word_embed_proj_dim', 768)
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


def _interleaved(name, config):
  """Return rows of a tensor with query, key and value of head 1, then of head 2, ..."""
  H, K = config.heads, config.key_size

  def row(parameter, weight, after):
    def read(x):
      return [y.reshape(H * K, *after).T for y in x.reshape(H, 3, K, *after).swapaxes(0, 1)]

    def write(*parts):
      parts = [y.T.reshape(H, 1, K, *after) for y in parts]
      return np.concatenate(parts, axis=1).reshape(3 * H * K, *after)

    return Row(tuple(f'{path}/{parameter}' for path in QKV), f'{name}.{weight}', read, write)

  return [row('kernel', 'weight', (config.width,)), row('bias', 'bias', ())]


def _neox_derive(theirs, names, kind):
  rope = value(theirs, 'rope_parameters', {}) or value(theirs, 'rope_scaling', {})
  theta = value(theirs, 'rotary_emb_base', 10_000.0)
  parallel = 'two_norms' if value(theirs, 'use_parallel_residual', True) else 'none'
  fields = rotary(theirs, rope, theta) | partial_rotary(theirs, 0.25) | dict(parallel=parallel)
  return fields | _tie(theirs, False)


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
  rows=lambda config, kind, theirs: [
    *_interleaved('h.{}.self_attention.query_key_value', config),
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
  ],
  derive=lambda theirs, names, kind: (
    dict(feedforward=4 * theirs['hidden_size']) | _tie(theirs, True)
  ),
  express=_express_tie,
  prefix='transformer.',
  aliases={'lm_head.weight': 'word_embeddings.weight'},
)


# Black et al. 2022, https://arxiv.org/abs/2204.06745; Pythia has the same shape
GPT_NEOX = Family(
  architectures={'GPTNeoXForCausalLM': Decoder},
  fields={
    'vocab': ('vocab_size', 50432),
    'width': ('hidden_size', 6144),
    'depth': ('num_hidden_layers', 44),
    'heads': ('num_attention_heads', 64),
    'feedforward': ('intermediate_size', 24576),
    'max_length': ('max_position_embeddings', 2048),
    'activation': ('hidden_act', 'gelu'),
    'norm_epsilon': ('layer_norm_eps', 1e-5),
    'dropout': ('hidden_dropout', 0.0),
    'attention_dropout': ('attention_dropout', 0.0),
  },
  fixed=dict(norm='layer', prenorm=True, position='rotary', scale_embedding=False),
  only=dict(attention_bias=True),
  rows=lambda config, kind, theirs: [
    *_interleaved('layers.{}.attention.query_key_value', config),
    *layers(
      {
        'embed': 'embed_in',
        'stack/blocks/attention_norm': 'layers.{}.input_layernorm',
        'stack/blocks/attention/out': 'layers.{}.attention.dense',
        'stack/blocks/feedforward_norm': 'layers.{}.post_attention_layernorm',
        'stack/blocks/feedforward/hidden': 'layers.{}.mlp.dense_h_to_4h',
        'stack/blocks/feedforward/out': 'layers.{}.mlp.dense_4h_to_h',
        'stack/norm': 'final_layer_norm',
        'output': 'embed_out',
      }
    ),
  ],
  derive=_neox_derive,
  express=lambda config: (
    express_rotary(config.pattern[0])
    | _express_tie(config)
    | dict(
      use_parallel_residual=config.parallel == 'two_norms',
      rotary_emb_base=config.rotary_base,
      rotary_pct=(config.rotary_size or config.key_size) / config.key_size,
    )
  ),
  prefix='gpt_neox.',
  aliases={'embed_out.weight': 'embed_in.weight'},
  ignored=re.compile(r'layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)'),
)
