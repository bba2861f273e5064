"""Encoder-decoders: T5, mT5, umT5, BART, mBART, M2M100, Marian, Pegasus and Whisper."""

import re

from transformer.modules.heads import TargetClassifier
from transformer.modules.model import Encoder, EncoderDecoder
from transformer.zoo.families.family import Family, value
from transformer.zoo.families.rows import layers, plain, shifted, wrapped

_TABLES = {
  'lm_head.weight': 'shared.weight',
  'encoder.embed_tokens.weight': 'shared.weight',
  'decoder.embed_tokens.weight': 'shared.weight',
}
_T5_TABLES = _TABLES | {f'transformer.{k}': f'transformer.{v}' for k, v in _TABLES.items()}
_CLASSES = layers({'hidden': 'classification_head.dense', 'out': 'classification_head.out_proj'})


def _t5_derive(theirs, names, kind):
  shape = value(theirs, 'feed_forward_proj', 'relu')
  activation = shape.removeprefix('gated-')
  if shape == 'gated-gelu':  # for historical reasons this means the tanh approximation
    activation = 'gelu_new'
  tied = value(theirs, 'tie_word_embeddings', True)
  scaled = value(theirs, 'scale_decoder_outputs', tied)
  if 'scale_decoder_outputs' in theirs:  # transformers 5 writes tie_word_embeddings=true for all
    tied = 'lm_head.weight' not in names
  tied = tied or kind is TargetClassifier  # which has no logits of tokens
  return dict(
    gated=shape.startswith('gated-'),
    activation=activation,
    tie='all' if tied else 'inputs',
    scale_logits=scaled,
  )


def _t5_express(config):
  gelus = {'gelu_tanh': 'gelu' if config.gated else 'gelu_new', 'gelu_erf': 'gelu'}
  name = gelus.get(config.activation, config.activation)
  tied = config.tie == 'all'
  keys = dict(feed_forward_proj=f'gated-{name}' if config.gated else name)
  if config.scale_logits != tied:  # a key that older files do not have
    keys['scale_decoder_outputs'] = config.scale_logits
  return keys | dict(tie_word_embeddings=tied)


def _t5_rows(config, kind, theirs):
  attention = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
  inner = {'hidden': 'wi_0', 'gate': 'wi_1'} if config.gated else {'hidden': 'wi'}
  own = ('attention', 'SelfAttention', attention)
  cross = ('cross', 'EncDecAttention', attention)
  feedforward = ('feedforward', 'DenseReluDense', inner | {'out': 'wo'})
  rows = layers({'embed': 'shared', 'output': 'lm_head'})
  of_layer = '{}' if config.relative_per_layer else '0'
  for side, sublayers in ('encoder', (own, feedforward)), ('decoder', (own, cross, feedforward)):
    stack = 'stack' if kind is Encoder and side == 'encoder' else side
    for i, (ours, theirs, names) in enumerate(sublayers):
      layer = f'{side}.block.{{}}.layer.{i}.'
      rows += layers(names, f'{stack}/blocks/{ours}/', f'{layer}{theirs}.')
      rows += layers({f'{ours}_norm': 'layer_norm'}, f'{stack}/blocks/', layer)
    relative = f'{side}.block.{of_layer}.layer.0.SelfAttention.relative_attention_bias.weight'
    rows += plain({f'{stack}/positions/table': relative})
    rows += layers({f'{stack}/norm': f'{side}.final_layer_norm'})
  return _below_classes(rows, kind, 'transformer.')


def _below_classes(rows, kind, prefix=''):
  if kind is not TargetClassifier:
    return rows
  return _CLASSES + [
    row._replace(ours=tuple(f'model/{path}' for path in row.ours), theirs=f'{prefix}{row.theirs}')
    for row in rows
  ]


# Raffel et al. 2020, https://arxiv.org/abs/1910.10683; 1.1: Shazeer 2020, 2002.05202
T5 = Family(
  architectures={
    'T5ForConditionalGeneration': EncoderDecoder,
    'T5EncoderModel': Encoder,
    'T5ForSequenceClassification': TargetClassifier,
  },
  fields={
    'vocab': ('vocab_size', 32128),
    'width': ('d_model', 512),
    'depth': ('num_layers', 6),
    'decoder_depth': ('num_decoder_layers', 0),
    'heads': ('num_heads', 8),
    'head_size': ('d_kv', 64),
    'feedforward': ('d_ff', 2048),
    'max_length': ('n_positions', 512),
    'norm_epsilon': ('layer_norm_epsilon', 1e-6),
    'dropout': ('dropout_rate', 0.1),
    'relative_buckets': ('relative_attention_num_buckets', 32),
    'relative_distance': ('relative_attention_max_distance', 128),
  },
  fixed=dict(
    norm='rms',
    prenorm=True,
    position='relative',
    bias=False,
    scale_embedding=False,
    scale_attention=False,
  ),
  only={},
  rows=_t5_rows,
  derive=_t5_derive,
  express=_t5_express,
  pad=0,
  aliases=_T5_TABLES,
  # positions of cross-attention, which the first published files have and no code reads
  ignored=re.compile(r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias.*'),
  heads=re.compile(r'(decoder|lm_head)\..*'),  # which a model that is only the encoder leaves out
)

# Xue et al. 2021, https://arxiv.org/abs/2010.11934: T5 1.1 with other defaults
MT5 = T5._replace(
  architectures={f'M{name}': kind for name, kind in T5.architectures.items()},
  fields=T5.fields
  | {
    'vocab': ('vocab_size', 250112),
    'depth': ('num_layers', 8),
    'heads': ('num_heads', 6),
    'feedforward': ('d_ff', 1024),
  },
  derive=lambda theirs, names, kind: _t5_derive(
    {'feed_forward_proj': 'gated-gelu', **theirs, 'scale_decoder_outputs': False}, names, kind
  ),
)

# Chung et al. 2023, https://arxiv.org/abs/2304.09151
UMT5 = MT5._replace(
  architectures={f'UM{name}': kind for name, kind in T5.architectures.items()},
  fixed=T5.fixed | dict(relative_per_layer=True),
  derive=lambda theirs, names, kind: _t5_derive(
    {'feed_forward_proj': 'gated-gelu', **theirs}, names, kind
  ),
)


def _fairseq(side):
  """Return the rows of the layers of one side, with the names that come from fairseq."""
  blocks = {
    'attention/query': 'self_attn.q_proj',
    'attention/key': 'self_attn.k_proj',
    'attention/value': 'self_attn.v_proj',
    'attention/out': 'self_attn.out_proj',
    'attention_norm': 'self_attn_layer_norm',
    'cross/query': 'encoder_attn.q_proj',
    'cross/key': 'encoder_attn.k_proj',
    'cross/value': 'encoder_attn.v_proj',
    'cross/out': 'encoder_attn.out_proj',
    'cross_norm': 'encoder_attn_layer_norm',
    'feedforward/hidden': 'fc1',
    'feedforward/out': 'fc2',
    'feedforward_norm': 'final_layer_norm',
  }
  ends = {'embedding_norm': 'layernorm_embedding', 'norm': 'layer_norm'}
  return [
    *layers(blocks, f'{side}/blocks/', f'{side}.layers.{{}}.'),
    *layers(ends, f'{side}/', f'{side}.'),
  ]


# Lewis et al. 2020, https://arxiv.org/abs/1910.13461
BART = Family(
  architectures={
    'BartForConditionalGeneration': EncoderDecoder,
    'BartModel': EncoderDecoder,
    'BartForSequenceClassification': TargetClassifier,
  },
  fields={
    'vocab': ('vocab_size', 50265),
    'width': ('d_model', 1024),
    'depth': ('encoder_layers', 12),
    'decoder_depth': ('decoder_layers', 12),
    'heads': ('encoder_attention_heads decoder_attention_heads', 16),
    'feedforward': ('encoder_ffn_dim decoder_ffn_dim', 4096),
    'max_length': ('max_position_embeddings', 1024),
    'activation': ('activation_function', 'gelu'),
    'scale_embedding': ('scale_embedding', False),
    'dropout': ('dropout', 0.1),
    'attention_dropout': ('attention_dropout', 0.0),
  },
  fixed=dict(
    norm='layer',
    norm_epsilon=1e-5,
    norm_embedding=True,
    prenorm=False,
    position='learned',
    tie='all',
  ),
  only=dict(
    normalize_before=False,
    normalize_embedding=True,
    add_final_layer_norm=False,
    static_position_embeddings=False,
    tie_word_embeddings=True,
  ),
  rows=lambda config, kind, theirs: _below_classes(
    [
      *layers({'embed': 'shared'}),
      wrapped('embed/bias', 'final_logits_bias'),
      shifted('encoder/positions/table', 'encoder.embed_positions.weight'),
      shifted('decoder/positions/table', 'decoder.embed_positions.weight'),
      *_fairseq('encoder'),
      *_fairseq('decoder'),
    ],
    kind,
  ),
  derive=lambda theirs, names, kind: dict(bias_output='final_logits_bias' in names),
  pad=1,
  prefix='model.',
  aliases=_TABLES,
  heads=re.compile(r'classification_head\..*|qa_outputs\..*'),
  start=2,
  end=2,
)

# Liu et al. 2020, https://arxiv.org/abs/2001.08210
MBART = BART._replace(
  architectures={'MBartForConditionalGeneration': EncoderDecoder},
  fixed=BART.fixed | dict(prenorm=True),
  only=BART.only | dict(normalize_before=True, add_final_layer_norm=True),
)

# Fan et al. 2020, https://arxiv.org/abs/2010.11125; NLLB Team 2022, 2207.04672
M2M100 = MBART._replace(
  architectures={'M2M100ForConditionalGeneration': EncoderDecoder},
  fields=BART.fields
  | {
    'vocab': ('vocab_size', 128112),
    'activation': ('activation_function', 'relu'),
    'scale_embedding': ('scale_embedding', True),
    'attention_dropout': ('attention_dropout', 0.1),
  },
  fixed=MBART.fixed | dict(norm_embedding=False, position='sinusoidal_offset'),
  only=dict(tie_word_embeddings=True, pad_token_id=1),
  express=lambda config: dict(pad_token_id=1),
  # sinusoids, which need no file
  ignored=re.compile(r'(en|de)coder\.embed_positions\.weights?'),
)


def _marian_derive(theirs, names, kind):
  vocab = theirs['vocab_size']
  if value(theirs, 'decoder_vocab_size', vocab) != vocab:
    raise ValueError(
      f'config.json: decoder_vocab_size={theirs["decoder_vocab_size"]} is not supported, only '
      f'vocab_size={vocab} is'
    )
  return BART.derive(theirs, names, kind)


# Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344; the Opus-MT models
MARIAN = BART._replace(
  architectures={'MarianMTModel': EncoderDecoder},
  fields=BART.fields | {'vocab': ('vocab_size', 58101)},
  fixed=BART.fixed | dict(norm_embedding=False, position='sinusoidal_halves'),
  only=BART.only
  | dict(
    normalize_embedding=False,
    static_position_embeddings=True,
    share_encoder_decoder_embeddings=True,
  ),
  derive=_marian_derive,
  express=lambda config: dict(decoder_vocab_size=config.vocab),
  pad=58100,
  # sinusoids, which need no file
  ignored=re.compile(r'(en|de)coder\.embed_positions\.weight'),
)

# Zhang et al. 2020, https://arxiv.org/abs/1912.08777
PEGASUS = MARIAN._replace(
  architectures={'PegasusForConditionalGeneration': EncoderDecoder},
  fields=BART.fields,
  fixed=MARIAN.fixed | dict(prenorm=True),
  only=MBART.only | dict(normalize_embedding=False, static_position_embeddings=True),
  derive=BART.derive,
  express=BART.express,
  pad=0,
)

# Radford et al. 2022, https://arxiv.org/abs/2212.04356
WHISPER = Family(
  architectures={
    'WhisperForConditionalGeneration': EncoderDecoder,
    'WhisperModel': EncoderDecoder,
  },
  fields=BART.fields
  | {
    'vocab': ('vocab_size', 51865),
    'width': ('d_model', 384),
    'depth': ('encoder_layers', 4),
    'decoder_depth': ('decoder_layers', 4),
    'heads': ('encoder_attention_heads decoder_attention_heads', 6),
    'feedforward': ('encoder_ffn_dim decoder_ffn_dim', 1536),
    'features': ('num_mel_bins', 80),
    'max_length': ('max_target_positions', 448),
    'max_source_length': ('max_source_positions', 1500),
    'dropout': ('dropout', 0.0),
  },
  fixed=dict(
    modality='frames',
    norm='layer',
    norm_epsilon=1e-5,
    prenorm=True,
    position='learned',
    tie='output',
  ),
  # its convolutions always have this activation, and inputs are not scaled where ours would be
  only=dict(activation_function='gelu', scale_embedding=False, tie_word_embeddings=True),
  rows=lambda config, kind, theirs: [
    *layers(
      {
        'input_embed/conv1': 'encoder.conv1',
        'input_embed/conv2': 'encoder.conv2',
        'encoder/positions': 'encoder.embed_positions',
        'embed': 'decoder.embed_tokens',
        'decoder/positions': 'decoder.embed_positions',
      }
    ),
    *_fairseq('encoder'),
    *_fairseq('decoder'),
    # a number added to all keys changes no softmax: theirs have none, ours is 0
    *plain(
      {
        'encoder/blocks/attention/key/bias': None,
        'decoder/blocks/attention/key/bias': None,
        'decoder/blocks/cross/key/bias': None,
      }
    ),
  ],
  pad=50256,
  prefix='model.',
  aliases={'proj_out.weight': 'decoder.embed_tokens.weight'},
)
