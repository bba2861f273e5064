"""How published models are called: for each family its config and its tensors, in both directions.

A family is data: which of their keys say what of our `ModelConfig`, and rows (our parameters,
their tensor, how one becomes the other). `pretrained` reads and writes with it.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier, MaskedTokens, Spans
from transformer.modules.model import Decoder, Encoder, EncoderDecoder

# the first name of each is the one that is written
ACTIVATIONS = {
  'gelu': 'gelu_erf',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}


class Row(NamedTuple):
  """Parameters of ours that are one tensor of theirs.

  Attributes:
    ours: paths; in a stack of layers, what follows is done for each layer.
    theirs: name, with {} for the number of the layer; None if their files leave it out as 0.
    read: their array -> ours, one for each path.
    write: ours -> their array.
  """

  ours: tuple[str, ...]
  theirs: str | None
  read: Callable[[np.ndarray], Sequence[np.ndarray]]
  write: Callable[..., np.ndarray]


class Family(NamedTuple):
  """What is known of a family.

  Attributes:
    architectures: their classes and ours.
    fields: ours -> (their keys, default): the first key counts, all are written, and sizes given by
      several must agree.
    fixed: what all models of the family have in common.
    only: their keys whose other values have no counterpart here.
    derive: (their config, names in their files, our class) -> fields that take more than a key.
    express: our config -> the keys of these fields.
    rows: (our config, our class) -> the table, in names without prefix.
    prefix: of the names of the body, in files of a model with a head.
    outside: beginnings of names that are not the body's.
    aliases: name -> the name that it is a copy of, if a file holds both.
    ignored: names in files that hold nothing learnt, or nothing used.
  """

  architectures: dict[str, type]
  fields: dict[str, tuple[str, Any]]
  fixed: dict[str, Any]
  only: dict[str, Any]
  derive: Callable[[Mapping[str, Any], Collection[str], type], dict[str, Any]]
  express: Callable[[ModelConfig], dict[str, Any]]
  rows: Callable[[ModelConfig, type], list[Row]]
  prefix: str = ''
  outside: tuple[str, ...] = ()
  aliases: Mapping[str, str] = {}
  ignored: re.Pattern = re.compile(r'(.*\.)?position_ids')


def same(ours: str, theirs: str | None, both: Callable = lambda x: x) -> list[Row]:
  """One parameter, by a transform that is its own inverse."""
  return [Row((ours,), theirs, lambda x: (both(x),), both)]


def linears(ours: str, theirs: str, names: Mapping[str, str], *, transposed=True) -> list[Row]:
  """Kernels and biases: PyTorch's Linear has its kernel as [outputs, inputs]."""
  return [
    row
    for one, other in names.items()
    for row in (
      *same(f'{ours}{one}/kernel', f'{theirs}{other}.weight', np.transpose if transposed else id_),
      *same(f'{ours}{one}/bias', f'{theirs}{other}.bias'),
    )
  ]


def norms(ours: str, theirs: str, names: Mapping[str, str]) -> list[Row]:
  """Scales and biases."""
  return [
    row
    for one, other in names.items()
    for row in (
      *same(f'{ours}{one}/scale', f'{theirs}{other}.weight'),
      *same(f'{ours}{one}/bias', f'{theirs}{other}.bias'),
    )
  ]


def fused(ours: Sequence[str], theirs: str) -> list[Row]:
  """Parameters side by side in one tensor."""
  return [
    Row(
      tuple(ours),
      theirs,
      lambda x: np.split(x, len(ours), axis=-1),
      lambda *parts: np.concatenate(parts, axis=-1),
    )
  ]


def shifted(ours: str, theirs: str) -> list[Row]:
  """A table of positions that begins with two rows for padding, which are never read here."""
  return [Row((ours,), theirs, lambda x: (x[2:],), lambda x: np.pad(x, ((2, 0), (0, 0))))]


def wrapped(ours: str, theirs: str, axes: int = 1) -> list[Row]:
  """A tensor with leading axes of size 1."""
  return [Row((ours,), theirs, lambda x: (x.reshape(x.shape[axes:]),), lambda x: x[(None,) * axes])]


def id_(x):
  """x."""
  return x


# ------------------------------------------------------------------------------------ encoders

# Devlin et al. 2019, https://arxiv.org/abs/1810.04805; Liu et al. 2019, 1907.11692
_BERT_FIELDS = {
  'vocab': ('vocab_size', 30522),
  'width': ('hidden_size', 768),
  'depth': ('num_hidden_layers', 12),
  'heads': ('num_attention_heads', 12),
  'feedforward': ('intermediate_size', 3072),
  'types': ('type_vocab_size', 2),
  'activation': ('hidden_act', 'gelu'),
  'norm_epsilon': ('layer_norm_eps', 1e-12),
  'dropout': ('hidden_dropout_prob', 0.1),
  'attention_dropout': ('attention_probs_dropout_prob', 0.1),
}
_BERT_FIXED = dict(
  norm='layer', norm_embedding=True, prenorm=False, position='learned', scale_embedding=False
)
_BERT_ONLY = dict(
  position_embedding_type='absolute',
  is_decoder=False,
  add_cross_attention=False,
  embedding_size=None,
)
_BERT_BLOCK = {
  'attention/query': 'attention.self.query',
  'attention/key': 'attention.self.key',
  'attention/value': 'attention.self.value',
  'attention/out': 'attention.output.dense',
  'feedforward/hidden': 'intermediate.dense',
  'feedforward/out': 'output.dense',
}
_BERT_NORMS = {
  'attention_norm': 'attention.output.LayerNorm',
  'feedforward_norm': 'output.LayerNorm',
}


def _bert_body(positions):
  return [
    *same('embed/table', 'embeddings.word_embeddings.weight'),
    *same('types/table', 'embeddings.token_type_embeddings.weight'),
    *positions('stack/positions/table', 'embeddings.position_embeddings.weight'),
    *norms('stack/embedding_norm', 'embeddings.LayerNorm', {'': ''}),
    *linears('stack/blocks/', 'encoder.layer.{}.', _BERT_BLOCK),
    *norms('stack/blocks/', 'encoder.layer.{}.', _BERT_NORMS),
  ]


def _bert_rows(config, kind):
  body = [*_bert_body(same), *linears('', '', {'pooler': 'pooler.dense'})]
  head = {
    MaskedTokens: [
      *linears('', 'cls.', {'hidden': 'predictions.transform.dense'}),
      *norms('', 'cls.', {'norm': 'predictions.transform.LayerNorm'}),
      *linears('', 'cls.', {'next_sentence': 'seq_relationship'}),
    ],
    Classifier: linears('', '', {'out': 'classifier'}),
    Spans: linears('', '', {'out': 'qa_outputs'}),
  }
  return [*_within(kind, [*body, *same('embed/bias', 'cls.predictions.bias')]), *head.get(kind, [])]


def _roberta_rows(config, kind):
  pooler = 'classifier.dense' if kind is Classifier else 'pooler.dense'
  body = [*_bert_body(shifted), *linears('', '', {'pooler': pooler})]
  head = {
    MaskedTokens: [
      *linears('', 'lm_head.', {'hidden': 'dense'}),
      *norms('', 'lm_head.', {'norm': 'layer_norm'}),
    ],
    Classifier: linears('', '', {'out': 'classifier.out_proj'}),
    Spans: linears('', '', {'out': 'qa_outputs'}),
  }
  return [*_within(kind, [*body, *same('embed/bias', 'lm_head.bias')]), *head.get(kind, [])]


def _within(kind, rows):
  """The rows of an encoder where `kind` holds it."""
  if kind is Encoder:
    return rows
  return [row._replace(ours=tuple(f'encoder/{path}' for path in row.ours)) for row in rows]


def _summary(names):
  return 'pooler' if 'pooler.dense.weight' in names else 'first'


BERT = Family(
  architectures={
    'BertModel': Encoder,
    'BertForPreTraining': MaskedTokens,
    'BertForMaskedLM': MaskedTokens,
    'BertForSequenceClassification': Classifier,
    'BertForQuestionAnswering': Spans,
  },
  fields={**_BERT_FIELDS, 'length': ('max_position_embeddings', 512)},
  fixed=_BERT_FIXED,
  only=_BERT_ONLY,
  derive=lambda theirs, names, kind: dict(
    summary=_summary(names), bias_output='cls.predictions.bias' in names
  ),
  express=lambda config: {},
  rows=_bert_rows,
  prefix='bert.',
  outside=('cls.', 'classifier.', 'qa_outputs.'),
  aliases={
    'cls.predictions.decoder.weight': 'embeddings.word_embeddings.weight',
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
)


def _roberta_derive(theirs, names, kind):
  return dict(
    length=theirs.get('max_position_embeddings', 512) - 2,
    summary='pooler' if kind is Classifier else _summary(names),
    bias_output='lm_head.bias' in names,
  )


ROBERTA = Family(
  architectures={
    'RobertaModel': Encoder,
    'RobertaForMaskedLM': MaskedTokens,
    'RobertaForSequenceClassification': Classifier,
    'RobertaForQuestionAnswering': Spans,
  },
  fields=_BERT_FIELDS | {'vocab': ('vocab_size', 50265)},
  fixed=_BERT_FIXED,
  # its positions begin after that of padding, and its head has this activation whatever the body's
  only=_BERT_ONLY | dict(pad_token_id=1, hidden_act='gelu'),
  derive=_roberta_derive,
  express=lambda config: dict(max_position_embeddings=config.length + 2, pad_token_id=1),
  rows=_roberta_rows,
  prefix='roberta.',
  outside=('lm_head.', 'classifier.', 'qa_outputs.'),
  aliases={
    'lm_head.decoder.weight': 'embeddings.word_embeddings.weight',
    'lm_head.decoder.bias': 'lm_head.bias',
  },
)


def _vit_derive(theirs, names, kind):
  image, patch = theirs.get('image_size', 224), theirs.get('patch_size', 16)
  return dict(
    vocab=1,
    features=patch * patch * theirs.get('num_channels', 3),
    length=(image // patch) ** 2 + 1,
    summary='first' if kind is Classifier else _summary(names),
  )


def _vit_express(config):
  patch, channels = _patch(config)
  side = math.isqrt(config.length - 1)
  return dict(image_size=side * patch, patch_size=patch, num_channels=channels)


def _patch(config):
  """(side, channels) of a patch: of a colour or a grey picture."""
  for channels in (3, 1):
    side = math.isqrt(config.features // channels)
    if side * side * channels == config.features:
      return side, channels
  return 1, config.features


def _vit_rows(config, kind):
  side, channels = _patch(config)
  projection = Row(
    ('embed/projection/kernel',),
    'embeddings.patch_embeddings.projection.weight',
    lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
    lambda x: x.reshape(side, side, channels, -1).transpose(3, 2, 0, 1),
  )
  body = [
    projection,
    *same('embed/projection/bias', 'embeddings.patch_embeddings.projection.bias'),
    *wrapped('embed/first', 'embeddings.cls_token', axes=2),
    *wrapped('stack/positions/table', 'embeddings.position_embeddings'),
    *linears(
      'stack/blocks/',
      'encoder.layer.{}.',
      {
        'attention/query': 'attention.attention.query',
        'attention/key': 'attention.attention.key',
        'attention/value': 'attention.attention.value',
        'attention/out': 'attention.output.dense',
        'feedforward/hidden': 'intermediate.dense',
        'feedforward/out': 'output.dense',
      },
    ),
    *norms(
      'stack/blocks/',
      'encoder.layer.{}.',
      {'attention_norm': 'layernorm_before', 'feedforward_norm': 'layernorm_after'},
    ),
    *norms('stack/', '', {'norm': 'layernorm'}),
    *linears('', '', {'pooler': 'pooler.dense'}),
  ]
  return [*_within(kind, body), *linears('', '', {'out': 'classifier'})]


# Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929
VIT = Family(
  architectures={'ViTModel': Encoder, 'ViTForImageClassification': Classifier},
  fields={k: v for k, v in _BERT_FIELDS.items() if k not in ('vocab', 'types')}
  | {
    'dropout': ('hidden_dropout_prob', 0.0),
    'attention_dropout': ('attention_probs_dropout_prob', 0.0),
  },
  fixed=dict(
    inputs='patches',
    norm='layer',
    prenorm=True,
    position='learned',
    tie='output',
    scale_embedding=False,
  ),
  only=dict(qkv_bias=True, pooler_act='tanh'),
  derive=_vit_derive,
  express=_vit_express,
  rows=_vit_rows,
  prefix='vit.',
  outside=('classifier.',),
)

# ------------------------------------------------------------------------------------ decoders


def _gpt2_derive(theirs, names, kind):
  inner = theirs.get('n_inner') or 4 * theirs.get('n_embd', 768)
  return dict(
    feedforward=inner, tie='output' if theirs.get('tie_word_embeddings', True) else 'none'
  )


def _gpt2_rows(config, kind):
  blocks, layer = 'stack/blocks/', 'h.{}.'
  parts = ('attention/query', 'attention/key', 'attention/value')
  return [
    *same('embed/table', 'wte.weight'),
    *same('stack/positions/table', 'wpe.weight'),
    *same('output/table', 'lm_head.weight'),
    *fused([f'{blocks}{part}/kernel' for part in parts], layer + 'attn.c_attn.weight'),
    *fused([f'{blocks}{part}/bias' for part in parts], layer + 'attn.c_attn.bias'),
    *linears(
      blocks,
      layer,
      {
        'attention/out': 'attn.c_proj',
        'feedforward/hidden': 'mlp.c_fc',
        'feedforward/out': 'mlp.c_proj',
      },
      transposed=False,
    ),
    *norms(blocks, layer, {'attention_norm': 'ln_1', 'feedforward_norm': 'ln_2'}),
    *norms('stack/', '', {'norm': 'ln_f'}),
  ]


# Radford et al. 2019, Language models are unsupervised multitask learners
GPT2 = Family(
  architectures={'GPT2LMHeadModel': Decoder, 'GPT2Model': Decoder},
  fields={
    'vocab': ('vocab_size', 50257),
    'width': ('n_embd', 768),
    'depth': ('n_layer', 12),
    'heads': ('n_head', 12),
    'length': ('n_positions n_ctx', 1024),
    'activation': ('activation_function', 'gelu_new'),
    'norm_epsilon': ('layer_norm_epsilon', 1e-5),
    'scale_attention': ('scale_attn_weights', True),
    'dropout': ('resid_pdrop embd_pdrop', 0.1),
    'attention_dropout': ('attn_pdrop', 0.1),
  },
  fixed=dict(norm='layer', prenorm=True, position='learned', scale_embedding=False),
  only=dict(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
  derive=_gpt2_derive,
  express=lambda config: dict(
    n_inner=config.feedforward, tie_word_embeddings=config.tie in ('output', 'all')
  ),
  rows=_gpt2_rows,
  prefix='transformer.',
  outside=('lm_head.',),
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
    kv_heads=theirs.get('num_key_value_heads') or theirs.get('num_attention_heads', 32),
    head_size=theirs.get('head_dim') or 0,
    tie='output' if theirs.get('tie_word_embeddings', False) else 'none',
  )


def _llama_express(config):
  return dict(
    rope_theta=config.rotary_base,
    num_key_value_heads=config.groups,
    head_dim=config.key_size,
    tie_word_embeddings=config.tie in ('output', 'all'),
  )


def _llama_rows(config, kind):
  return [
    *same('embed/table', 'embed_tokens.weight'),
    *same('output/table', 'lm_head.weight'),
    *linears(
      'stack/blocks/',
      'layers.{}.',
      {
        'attention/query': 'self_attn.q_proj',
        'attention/key': 'self_attn.k_proj',
        'attention/value': 'self_attn.v_proj',
        'attention/out': 'self_attn.o_proj',
        'feedforward/hidden': 'mlp.gate_proj',
        'feedforward/gate': 'mlp.up_proj',
        'feedforward/out': 'mlp.down_proj',
      },
    ),
    *norms(
      'stack/blocks/',
      'layers.{}.',
      {'attention_norm': 'input_layernorm', 'feedforward_norm': 'post_attention_layernorm'},
    ),
    *norms('stack/', '', {'norm': 'norm'}),
  ]


# Touvron et al. 2023, https://arxiv.org/abs/2302.13971; SmolLM has the same shape
LLAMA = Family(
  architectures={'LlamaForCausalLM': Decoder},
  fields={
    'vocab': ('vocab_size', 32000),
    'width': ('hidden_size', 4096),
    'depth': ('num_hidden_layers', 32),
    'heads': ('num_attention_heads', 32),
    'feedforward': ('intermediate_size', 11008),
    'length': ('max_position_embeddings', 2048),
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
  derive=_llama_derive,
  express=_llama_express,
  rows=_llama_rows,
  prefix='model.',
  outside=('lm_head.',),
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

# ------------------------------------------------------------------------- encoder and decoder


def _t5_derive(theirs, names, kind):
  shape = theirs.get('feed_forward_proj', 'relu')
  gated, activation = shape.startswith('gated-'), shape.removeprefix('gated-')
  if shape == 'gated-gelu':  # means the approximate one, by an accident of history
    activation = 'gelu_new'
  tied = theirs.get('tie_word_embeddings', True)
  scaled = theirs.get('scale_decoder_outputs', tied)
  if 'scale_decoder_outputs' in theirs:  # transformers 5 says "tied" of all
    tied = 'lm_head.weight' not in names
  return dict(
    gated=gated,
    activation=_activation(activation),
    tie='all' if tied else 'inputs',
    scale_logits=scaled,
    decoder_depth=theirs.get('num_decoder_layers') or theirs.get('num_layers', 6),
  )


def _t5_express(config):
  gelus = {'gelu_tanh': 'gelu' if config.gated else 'gelu_new', 'gelu_erf': 'gelu'}
  name = gelus.get(config.activation, config.activation)
  return dict(
    feed_forward_proj=f'gated-{name}' if config.gated else name,
    tie_word_embeddings=config.tie == 'all',
    num_decoder_layers=config.decoder_depth or config.depth,
  )


def _t5_rows(config, kind):
  def block(side, cross):
    attention = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
    inner = {'hidden': 'wi_0', 'gate': 'wi_1', 'out': 'wo'}
    inner = inner if config.gated else {'hidden': 'wi', 'out': 'wo'}
    sublayers = [
      ('attention', 'SelfAttention', attention),
      ('feedforward', 'DenseReluDense', inner),
    ]
    if cross:
      sublayers.insert(1, ('cross', 'EncDecAttention', attention))
    for i, (ours, theirs, names) in enumerate(sublayers):
      layer = f'{side}.block.{{}}.layer.{i}.'
      yield from linears(f'{side}/blocks/{ours}/', f'{layer}{theirs}.', names)
      yield from norms(f'{side}/blocks/', layer, {f'{ours}_norm': 'layer_norm'})
    first = f'{side}.block.0.layer.0.SelfAttention.'
    yield from same(f'{side}/relative', f'{first}relative_attention_bias.weight')
    yield from norms(f'{side}/', f'{side}.', {'norm': 'final_layer_norm'})

  return [
    *same('embed/table', 'shared.weight'),
    *same('output/table', 'lm_head.weight'),
    *block('encoder', cross=False),
    *block('decoder', cross=True),
  ]


# Raffel et al. 2020, https://arxiv.org/abs/1910.10683; 1.1: Shazeer 2020, 2002.05202
T5 = Family(
  architectures={'T5ForConditionalGeneration': EncoderDecoder},
  fields={
    'vocab': ('vocab_size', 32128),
    'width': ('d_model', 512),
    'depth': ('num_layers', 6),
    'heads': ('num_heads', 8),
    'head_size': ('d_kv', 64),
    'feedforward': ('d_ff', 2048),
    'length': ('n_positions', 512),
    'norm_epsilon': ('layer_norm_epsilon', 1e-6),
    'dropout': ('dropout_rate', 0.1),
  },
  fixed=dict(
    norm='rms',
    prenorm=True,
    position='relative',
    bias=False,
    scale_embedding=False,
    scale_attention=False,
  ),
  only=dict(relative_attention_num_buckets=32, relative_attention_max_distance=128),
  derive=_t5_derive,
  express=_t5_express,
  rows=_t5_rows,
  aliases={
    'lm_head.weight': 'shared.weight',
    'encoder.embed_tokens.weight': 'shared.weight',
    'decoder.embed_tokens.weight': 'shared.weight',
  },
  # positions of cross-attention, which the first published files hold and nobody reads
  ignored=re.compile(r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias.*'),
)

_BART_FIELDS = {
  'vocab': ('vocab_size', 50265),
  'width': ('d_model', 1024),
  'depth': ('encoder_layers', 12),
  'decoder_depth': ('decoder_layers', 12),
  'heads': ('encoder_attention_heads decoder_attention_heads', 16),
  'feedforward': ('encoder_ffn_dim decoder_ffn_dim', 4096),
  'length': ('max_position_embeddings', 1024),
  'activation': ('activation_function', 'gelu'),
  'scale_embedding': ('scale_embedding', False),
  'dropout': ('dropout', 0.1),
  'attention_dropout': ('attention_dropout', 0.0),
}


def _bart_rows(config, kind):
  """Of all that descend from fairseq; what a model has not, it does not look for."""
  attention = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'out': 'out_proj'}
  rows = [
    *same('embed/table', 'shared.weight'),
    *wrapped('embed/bias', 'final_logits_bias'),
  ]
  for side in ('encoder', 'decoder'):
    sublayers = {'attention': 'self_attn'}
    if side == 'decoder':
      sublayers['cross'] = 'encoder_attn'
    names = {
      f'{one}/{part}': f'{other}.{name}'
      for one, other in sublayers.items()
      for part, name in attention.items()
    }
    rows += [
      *shifted(f'{side}/positions/table', f'{side}.embed_positions.weight'),
      *norms(f'{side}/', f'{side}.', {'embedding_norm': 'layernorm_embedding'}),
      *linears(
        f'{side}/blocks/',
        f'{side}.layers.{{}}.',
        names | {'feedforward/hidden': 'fc1', 'feedforward/out': 'fc2'},
      ),
      *norms(
        f'{side}/blocks/',
        f'{side}.layers.{{}}.',
        {f'{one}_norm': f'{other}_layer_norm' for one, other in sublayers.items()}
        | {'feedforward_norm': 'final_layer_norm'},
      ),
      *norms(f'{side}/', f'{side}.', {'norm': 'layer_norm'}),
    ]
  return rows


# Lewis et al. 2020, https://arxiv.org/abs/1910.13461
BART = Family(
  architectures={'BartForConditionalGeneration': EncoderDecoder, 'BartModel': EncoderDecoder},
  fields=_BART_FIELDS,
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
  derive=lambda theirs, names, kind: dict(bias_output='final_logits_bias' in names),
  express=lambda config: {},
  rows=_bart_rows,
  prefix='model.',
  outside=('lm_head.', 'final_logits_bias'),
  aliases={
    'lm_head.weight': 'shared.weight',
    'encoder.embed_tokens.weight': 'shared.weight',
    'decoder.embed_tokens.weight': 'shared.weight',
  },
)

# Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344; the Opus-MT models
MARIAN = BART._replace(
  architectures={'MarianMTModel': EncoderDecoder},
  fields=_BART_FIELDS | {'vocab': ('vocab_size decoder_vocab_size', 58101)},
  fixed=BART.fixed | dict(norm_embedding=False, position='sinusoidal_halves'),
  only=dict(
    normalize_before=False,
    normalize_embedding=False,
    add_final_layer_norm=False,
    static_position_embeddings=True,
    share_encoder_decoder_embeddings=True,
    tie_word_embeddings=True,
  ),
  # sinusoids, which need no file
  ignored=re.compile(r'(en|de)coder\.embed_positions\.weight'),
)


def _whisper_rows(config, kind):
  keys = ('attention/key/bias', 'cross/key/bias')
  rows = [
    row
    for row in _bart_rows(config, kind)
    if not row.ours[0].endswith(('positions/table', *keys)) and row.ours[0] != 'embed/table'
  ]
  convolutions = ('conv1', 'conv2')
  return [
    *rows,
    *same('embed/table', 'decoder.embed_tokens.weight'),
    *same('encoder/positions/table', 'encoder.embed_positions.weight'),
    *same('decoder/positions/table', 'decoder.embed_positions.weight'),
    *(
      row
      for name in convolutions
      for row in (
        *same(f'input_embed/{name}/kernel', f'encoder.{name}.weight', np.transpose),
        *same(f'input_embed/{name}/bias', f'encoder.{name}.bias'),
      )
    ),
    # a number added to all keys changes no softmax: theirs have none, ours is 0
    *(
      row
      for path in ('encoder/blocks/attention', 'decoder/blocks/attention', 'decoder/blocks/cross')
      for row in same(f'{path}/key/bias', None)
    ),
  ]


# Radford et al. 2022, https://arxiv.org/abs/2212.04356
WHISPER = Family(
  architectures={
    'WhisperForConditionalGeneration': EncoderDecoder,
    'WhisperModel': EncoderDecoder,
  },
  fields=_BART_FIELDS
  | {
    'vocab': ('vocab_size', 51865),
    'features': ('num_mel_bins', 80),
    'length': ('max_target_positions', 448),
    'source_length': ('max_source_positions', 1500),
    'dropout': ('dropout', 0.0),
  },
  fixed=dict(
    inputs='frames',
    norm='layer',
    norm_epsilon=1e-5,
    prenorm=True,
    position='learned',
    tie='output',
  ),
  # its convolutions have this activation whatever the layers'; what is read is not scaled, ours is
  only=dict(activation_function='gelu', scale_embedding=False, tie_word_embeddings=True),
  derive=lambda theirs, names, kind: {},
  express=lambda config: {},
  rows=_whisper_rows,
  prefix='model.',
  outside=('proj_out.',),
  aliases={'proj_out.weight': 'decoder.embed_tokens.weight'},
)

# by the `model_type` of their config.json
FAMILIES = {
  'bert': BERT,
  'roberta': ROBERTA,
  'xlm-roberta': ROBERTA._replace(
    architectures={
      name.replace('Roberta', 'XLMRoberta'): cls for name, cls in ROBERTA.architectures.items()
    }
  ),
  'vit': VIT,
  'gpt2': GPT2,
  'llama': LLAMA,
  'qwen2': QWEN2,
  't5': T5,
  'bart': BART,
  'marian': MARIAN,
  'whisper': WHISPER,
}


def read_config(theirs: Mapping[str, Any], names: Collection[str], kind: type) -> dict[str, Any]:
  """The fields of our `ModelConfig` that their config.json says.

  Args:
    theirs: config.json.
    names: of the tensors in their files, without prefix.
    kind: our class.

  Raises:
    ValueError: it says what this codebase cannot do.
  """
  family = FAMILIES[theirs['model_type']]
  for key, value in family.only.items():
    if theirs.get(key, value) not in (value, None):
      raise ValueError(f'config.json: {key}={theirs[key]!r} is not supported, only {value!r} is')
  found = dict(family.fixed)
  for ours, (keys, default) in family.fields.items():
    given = {key: theirs[key] for key in keys.split() if theirs.get(key) is not None}
    if len(set(given.values())) > 1 and 'dropout' not in ours:
      raise ValueError(f'config.json: {given} differ, which is not supported')
    value = next(iter(given.values()), default)
    found[ours] = _activation(value) if ours == 'activation' else value
    if isinstance(default, float):
      found[ours] = float(value)
  found |= family.derive(theirs, names, kind)
  # what follows from the rest is said as by default
  followed = dict(
    head_size=found['width'] // found['heads'],
    kv_heads=found['heads'],
    decoder_depth=found['depth'],
    source_length=found['length'],
  )
  return found | {name: 0 for name, value in followed.items() if found.get(name) == value}


def write_config(model_type: str, config: ModelConfig) -> dict[str, Any]:
  """The keys of their config.json that say what our config does."""
  family = FAMILIES[model_type]
  written = {'model_type': model_type}
  names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  for ours, (keys, _) in family.fields.items():
    value = getattr(config, ours)
    if ours == 'activation':
      value = names[value]
    if ours == 'decoder_depth':
      value = value or config.depth
    if ours == 'head_size':
      value = config.key_size
    if ours == 'source_length':
      value = value or config.length
    written |= dict.fromkeys(keys.split(), value)
  return written | family.express(config)


def _activation(name):
  if name not in ACTIVATIONS:
    raise ValueError(
      f'config.json: the activation {name!r} is not supported, only {", ".join(ACTIVATIONS)} are'
    )
  return ACTIVATIONS[name]
