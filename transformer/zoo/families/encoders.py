"""Encoders: BERT, RoBERTa and ViT."""

import math

from transformer.modules.heads import Classifier, MaskedTokens, Spans
from transformer.modules.model import Encoder
from transformer.zoo.families.family import Family
from transformer.zoo.families.rows import Row, layers, plain, shifted, wrapped


def _architectures(name):
  return {
    f'{name}Model': Encoder,
    f'{name}ForMaskedLM': MaskedTokens,
    f'{name}ForSequenceClassification': Classifier,
    f'{name}ForQuestionAnswering': Spans,
  }


def _within(kind, rows):
  """The rows of an encoder where `kind` holds it."""
  if kind is Encoder:
    return rows
  return [row._replace(ours=tuple(f'encoder/{path}' for path in row.ours)) for row in rows]


def _pooling(names):
  return 'pooler' if 'pooler.dense.weight' in names else 'first'


_BERT_LAYERS = {
  'embed': 'embeddings.word_embeddings',
  'types': 'embeddings.token_type_embeddings',
  'stack/positions': 'embeddings.position_embeddings',
  'stack/embedding_norm': 'embeddings.LayerNorm',
  'stack/blocks/attention/query': 'encoder.layer.{}.attention.self.query',
  'stack/blocks/attention/key': 'encoder.layer.{}.attention.self.key',
  'stack/blocks/attention/value': 'encoder.layer.{}.attention.self.value',
  'stack/blocks/attention/out': 'encoder.layer.{}.attention.output.dense',
  'stack/blocks/attention_norm': 'encoder.layer.{}.attention.output.LayerNorm',
  'stack/blocks/feedforward/hidden': 'encoder.layer.{}.intermediate.dense',
  'stack/blocks/feedforward/out': 'encoder.layer.{}.output.dense',
  'stack/blocks/feedforward_norm': 'encoder.layer.{}.output.LayerNorm',
  'pooler': 'pooler.dense',
}


def _bert_rows(config, kind):
  heads = {
    MaskedTokens: {
      'hidden': 'cls.predictions.transform.dense',
      'norm': 'cls.predictions.transform.LayerNorm',
      'next_sentence': 'cls.seq_relationship',
    },
    Classifier: {'out': 'classifier'},
    Spans: {'out': 'qa_outputs'},
  }
  body = layers(_BERT_LAYERS) + plain({'embed/bias': 'cls.predictions.bias'})
  return _within(kind, body) + layers(heads.get(kind, {}))


# Devlin et al. 2019, https://arxiv.org/abs/1810.04805
BERT = Family(
  architectures={'BertModel': Encoder, 'BertForPreTraining': MaskedTokens} | _architectures('Bert'),
  fields={
    'vocab': ('vocab_size', 30522),
    'width': ('hidden_size', 768),
    'depth': ('num_hidden_layers', 12),
    'heads': ('num_attention_heads', 12),
    'feedforward': ('intermediate_size', 3072),
    'max_length': ('max_position_embeddings', 512),
    'token_types': ('type_vocab_size', 2),
    'activation': ('hidden_act', 'gelu'),
    'norm_epsilon': ('layer_norm_eps', 1e-12),
    'dropout': ('hidden_dropout_prob', 0.1),
    'attention_dropout': ('attention_probs_dropout_prob', 0.1),
  },
  fixed=dict(
    norm='layer', norm_embedding=True, prenorm=False, position='learned', scale_embedding=False
  ),
  only=dict(
    position_embedding_type='absolute',
    is_decoder=False,
    add_cross_attention=False,
    embedding_size=None,
  ),
  rows=_bert_rows,
  derive=lambda theirs, names, kind: dict(
    pooling=_pooling(names), bias_output='cls.predictions.bias' in names
  ),
  prefix='bert.',
  aliases={
    'cls.predictions.decoder.weight': 'embeddings.word_embeddings.weight',
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
)


def _roberta_rows(config, kind):
  heads = {
    MaskedTokens: {'hidden': 'lm_head.dense', 'norm': 'lm_head.layer_norm'},
    Classifier: {'encoder/pooler': 'classifier.dense', 'out': 'classifier.out_proj'},
    Spans: {'out': 'qa_outputs'},
  }
  body = [
    *layers(_BERT_LAYERS),
    *plain({'embed/bias': 'lm_head.bias'}),
    shifted('stack/positions/table', 'embeddings.position_embeddings.weight'),
  ]
  return _within(kind, body) + layers(heads.get(kind, {}))


# Liu et al. 2019, https://arxiv.org/abs/1907.11692
ROBERTA = BERT._replace(
  architectures=_architectures('Roberta'),
  fields=BERT.fields | {'vocab': ('vocab_size', 50265)},
  # its positions begin after that of padding, and its head has this activation whatever the body's
  only=BERT.only | dict(pad_token_id=1, hidden_act='gelu'),
  rows=_roberta_rows,
  derive=lambda theirs, names, kind: dict(
    max_length=theirs.get('max_position_embeddings', 512) - 2,
    pooling='pooler' if kind is Classifier else _pooling(names),
    bias_output='lm_head.bias' in names,
  ),
  express=lambda config: dict(max_position_embeddings=config.max_length + 2, pad_token_id=1),
  prefix='roberta.',
  aliases={
    'lm_head.decoder.weight': 'embeddings.word_embeddings.weight',
    'lm_head.decoder.bias': 'lm_head.bias',
  },
)

# Conneau et al. 2020, https://arxiv.org/abs/1911.02116
XLM_ROBERTA = ROBERTA._replace(architectures=_architectures('XLMRoberta'))


def _patch(config):
  """(side, channels) of a patch: of a colour or a grey picture."""
  for channels in (3, 1):
    side = math.isqrt(config.features // channels)
    if side * side * channels == config.features:
      return side, channels
  return 1, config.features


def _vit_derive(theirs, names, kind):
  image, patch = theirs.get('image_size', 224), theirs.get('patch_size', 16)
  return dict(
    vocab=1,
    features=patch * patch * theirs.get('num_channels', 3),
    max_length=(image // patch) ** 2 + 1,
    pooling='first' if kind is Classifier else _pooling(names),
  )


def _vit_express(config):
  patch, channels = _patch(config)
  side = math.isqrt(config.max_length - 1)
  return dict(image_size=side * patch, patch_size=patch, num_channels=channels)


def _vit_rows(config, kind):
  side, channels = _patch(config)
  projection = 'embeddings.patch_embeddings.projection'
  body = [
    Row(
      ('embed/projection/kernel',),
      f'{projection}.weight',
      lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
      lambda x: x.reshape(side, side, channels, -1).transpose(3, 2, 0, 1),
    ),
    *plain({'embed/projection/bias': f'{projection}.bias'}),
    wrapped('embed/first', 'embeddings.cls_token', axes=2),
    wrapped('stack/positions/table', 'embeddings.position_embeddings'),
    *layers(
      {
        'stack/blocks/attention_norm': 'encoder.layer.{}.layernorm_before',
        'stack/blocks/attention/query': 'encoder.layer.{}.attention.attention.query',
        'stack/blocks/attention/key': 'encoder.layer.{}.attention.attention.key',
        'stack/blocks/attention/value': 'encoder.layer.{}.attention.attention.value',
        'stack/blocks/attention/out': 'encoder.layer.{}.attention.output.dense',
        'stack/blocks/feedforward_norm': 'encoder.layer.{}.layernorm_after',
        'stack/blocks/feedforward/hidden': 'encoder.layer.{}.intermediate.dense',
        'stack/blocks/feedforward/out': 'encoder.layer.{}.output.dense',
        'stack/norm': 'layernorm',
        'pooler': 'pooler.dense',
      }
    ),
  ]
  return _within(kind, body) + layers({'out': 'classifier'})


# Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929
VIT = Family(
  architectures={'ViTModel': Encoder, 'ViTForImageClassification': Classifier},
  fields={
    'width': ('hidden_size', 768),
    'depth': ('num_hidden_layers', 12),
    'heads': ('num_attention_heads', 12),
    'feedforward': ('intermediate_size', 3072),
    'activation': ('hidden_act', 'gelu'),
    'norm_epsilon': ('layer_norm_eps', 1e-12),
    'dropout': ('hidden_dropout_prob', 0.0),
    'attention_dropout': ('attention_probs_dropout_prob', 0.0),
  },
  fixed=dict(
    modality='patches',
    norm='layer',
    prenorm=True,
    position='learned',
    tie='output',
    scale_embedding=False,
  ),
  only=dict(qkv_bias=True, pooler_act='tanh'),
  rows=_vit_rows,
  derive=_vit_derive,
  express=_vit_express,
  prefix='vit.',
)
