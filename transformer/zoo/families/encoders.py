"""Encoders of text: BERT, DistilBERT, RoBERTa, ELECTRA, MPNet and ModernBERT."""

import re

from transformer.modules.heads import (
  Classifier,
  MaskedTokens,
  MultipleChoice,
  ReplacedTokens,
  Spans,
  TokenClassifier,
)
from transformer.modules.model import Encoder
from transformer.zoo.families.family import Family, value
from transformer.zoo.families.llamas import INNER, QKV, all_layers, repeated
from transformer.zoo.families.rotary import rotary
from transformer.zoo.families.rows import fused, layers, plain, shifted


def _architectures(name):
  return {
    f'{name}Model': Encoder,
    f'{name}ForMaskedLM': MaskedTokens,
    f'{name}ForSequenceClassification': Classifier,
    f'{name}ForTokenClassification': TokenClassifier,
    f'{name}ForQuestionAnswering': Spans,
    f'{name}ForMultipleChoice': MultipleChoice,
  }


def below_heads(body, heads):
  """Return the `rows` of a family of encoders.

  Args:
    body: rows of the encoder, or a function from config.json to them.
    heads: {our class: rows of its head}.
  """

  def rows(config, kind, theirs):
    prefix = '' if kind is Encoder else 'encoder/'
    table = body(theirs) if callable(body) else body
    encoder = [row._replace(ours=tuple(prefix + path for path in row.ours)) for row in table]
    return encoder + heads.get(kind, [])

  return rows


def _tie(theirs, kind):
  untied = kind is MaskedTokens and not value(theirs, 'tie_word_embeddings', True)
  return 'none' if untied else 'all'


def _express_tie(config):
  return dict(tie_word_embeddings=config.tie in ('output', 'all'))


def pooling_of(names):
  """Return the pooling of an encoder with tensors of these names."""
  return 'pooler' if 'pooler.dense.weight' in names else 'first'


_BERT_LAYERS = {
  'embed': 'embeddings.word_embeddings',
  'token_types': 'embeddings.token_type_embeddings',
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


# Devlin et al. 2019, https://arxiv.org/abs/1810.04805
BERT = Family(
  architectures={'BertModel': Encoder, 'BertForPreTraining': MaskedTokens}
  | _architectures('Bert')
  | {'BertLMHeadModel': MaskedTokens},
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
    add_cross_attention=False,
    embedding_size=None,
  ),
  rows=below_heads(
    layers(_BERT_LAYERS) + plain({'embed/bias': 'cls.predictions.bias'}),
    {
      MaskedTokens: layers(
        {
          'hidden': 'cls.predictions.transform.dense',
          'norm': 'cls.predictions.transform.LayerNorm',
          'output': 'cls.predictions.decoder',
          'next_sentence': 'cls.seq_relationship',
        }
      ),
      Classifier: layers({'out': 'classifier'}),
      MultipleChoice: layers({'out': 'classifier'}),
      TokenClassifier: layers({'out': 'classifier'}),
      Spans: layers({'out': 'qa_outputs'}),
    },
  ),
  derive=lambda theirs, names, kind: dict(
    pooling=pooling_of(names),
    bias_output='cls.predictions.bias' in names,
    tie=_tie(theirs, kind),
    causal=value(theirs, 'is_decoder', False),
  ),
  express=lambda config: _express_tie(config) | dict(is_decoder=config.causal),
  pad=0,
  prefix='bert.',
  heads=re.compile(r'(pooler|cls|lm_head|classifier|qa_outputs)\..*'),
  aliases={
    'cls.predictions.decoder.weight': 'embeddings.word_embeddings.weight',
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
)


# Sanh et al. 2019, https://arxiv.org/abs/1910.01108
DISTILBERT = BERT._replace(
  architectures=_architectures('DistilBert'),
  fields={
    'vocab': ('vocab_size', 30522),
    'width': ('dim|hidden_size', 768),
    'depth': ('n_layers|num_hidden_layers', 6),
    'heads': ('n_heads|num_attention_heads', 12),
    'feedforward': ('hidden_dim', 3072),
    'max_length': ('max_position_embeddings', 512),
    'activation': ('activation', 'gelu'),
    'dropout': ('dropout', 0.1),
    'attention_dropout': ('attention_dropout', 0.1),
  },
  fixed=BERT.fixed | dict(norm_epsilon=1e-12, pooler_activation='relu'),
  only={},
  rows=below_heads(
    layers(
      {
        'embed': 'embeddings.word_embeddings',
        'stack/positions': 'embeddings.position_embeddings',
        'stack/embedding_norm': 'embeddings.LayerNorm',
        'stack/blocks/attention/query': 'transformer.layer.{}.attention.q_lin',
        'stack/blocks/attention/key': 'transformer.layer.{}.attention.k_lin',
        'stack/blocks/attention/value': 'transformer.layer.{}.attention.v_lin',
        'stack/blocks/attention/out': 'transformer.layer.{}.attention.out_lin',
        'stack/blocks/attention_norm': 'transformer.layer.{}.sa_layer_norm',
        'stack/blocks/feedforward/hidden': 'transformer.layer.{}.ffn.lin1',
        'stack/blocks/feedforward/out': 'transformer.layer.{}.ffn.lin2',
        'stack/blocks/feedforward_norm': 'transformer.layer.{}.output_layer_norm',
      }
    )
    + plain({'embed/bias': 'vocab_projector.bias'}),
    {
      MaskedTokens: layers(
        {'hidden': 'vocab_transform', 'norm': 'vocab_layer_norm', 'output': 'vocab_projector'}
      ),
      **dict.fromkeys(
        (Classifier, MultipleChoice),
        layers({'encoder/pooler': 'pre_classifier', 'out': 'classifier'}),
      ),
      TokenClassifier: layers({'out': 'classifier'}),
      Spans: layers({'out': 'qa_outputs'}),
    },
  ),
  derive=lambda theirs, names, kind: dict(
    pooling='pooler' if kind in (Classifier, MultipleChoice) else 'first',
    bias_output='vocab_projector.bias' in names,
    tie=_tie(theirs, kind),
  ),
  express=_express_tie,
  prefix='distilbert.',
  aliases={'vocab_projector.weight': 'embeddings.word_embeddings.weight'},
  heads=re.compile(r'(vocab_\w+|pre_classifier|classifier|qa_outputs)\..*'),
)

_ROBERTA_HEADS = {
  MaskedTokens: layers(
    {'hidden': 'lm_head.dense', 'norm': 'lm_head.layer_norm', 'output': 'lm_head.decoder'}
  ),
  Classifier: layers({'encoder/pooler': 'classifier.dense', 'out': 'classifier.out_proj'}),
  MultipleChoice: layers({'out': 'classifier'}),
  TokenClassifier: layers({'out': 'classifier'}),
  Spans: layers({'out': 'qa_outputs'}),
}

# Liu et al. 2019, https://arxiv.org/abs/1907.11692
ROBERTA = BERT._replace(
  architectures=_architectures('Roberta') | {'RobertaForCausalLM': MaskedTokens},
  fields=BERT.fields | {'vocab': ('vocab_size', 50265)},
  # positions begin after that of padding; the head always has this activation
  only=BERT.only | dict(pad_token_id=1, hidden_act='gelu'),
  rows=below_heads(
    [
      *layers(_BERT_LAYERS),
      *plain({'embed/bias': 'lm_head.bias'}),
      shifted('stack/positions/table', 'embeddings.position_embeddings.weight'),
    ],
    _ROBERTA_HEADS,
  ),
  derive=lambda theirs, names, kind: dict(
    max_length=value(theirs, 'max_position_embeddings', 512) - 2,
    pooling='pooler' if kind is Classifier else pooling_of(names),
    bias_output='lm_head.bias' in names,
    tie=_tie(theirs, kind),
    causal=value(theirs, 'is_decoder', False),
  ),
  express=lambda config: (
    BERT.express(config) | dict(max_position_embeddings=config.max_length + 2, pad_token_id=1)
  ),
  pad=1,
  prefix='roberta.',
  aliases={
    'lm_head.decoder.weight': 'embeddings.word_embeddings.weight',
    'lm_head.decoder.bias': 'lm_head.bias',
  },
)

# Conneau et al. 2020, https://arxiv.org/abs/1911.02116
XLM_ROBERTA = ROBERTA._replace(
  architectures=_architectures('XLMRoberta'),
  fields=ROBERTA.fields | {'vocab': ('vocab_size', 30522)},
)

# Martin et al. 2020, https://arxiv.org/abs/1911.03894
CAMEMBERT = XLM_ROBERTA._replace(architectures=_architectures('Camembert'))

# Clark et al. 2020, https://arxiv.org/abs/2003.10555
ELECTRA = BERT._replace(
  architectures={'ElectraForPreTraining': ReplacedTokens}
  | {name: kind for name, kind in _architectures('Electra').items() if kind is not MultipleChoice},
  fields=BERT.fields
  | {
    'width': ('hidden_size', 256),
    'embedding_size': ('embedding_size', 128),
    'heads': ('num_attention_heads', 4),
    'feedforward': ('intermediate_size', 1024),
  },
  fixed=BERT.fixed | dict(pooler_activation='gelu_erf'),
  # the head of its generator always has this activation
  only={key: only for key, only in BERT.only.items() if key != 'embedding_size'}
  | dict(hidden_act='gelu', is_decoder=False),
  rows=below_heads(
    layers(_BERT_LAYERS | {'stack/projection': 'embeddings_project'})
    + plain({'embed/bias': 'generator_lm_head.bias'}),
    {
      MaskedTokens: layers(
        {
          'hidden': 'generator_predictions.dense',
          'norm': 'generator_predictions.LayerNorm',
          'output': 'generator_lm_head',
        }
      ),
      ReplacedTokens: layers(
        {
          'hidden': 'discriminator_predictions.dense',
          'out': 'discriminator_predictions.dense_prediction',
        }
      ),
      Classifier: _ROBERTA_HEADS[Classifier],
      TokenClassifier: layers({'out': 'classifier'}),
      Spans: layers({'out': 'qa_outputs'}),
    },
  ),
  derive=lambda theirs, names, kind: dict(
    pooling='pooler' if kind is Classifier else 'first',
    bias_output='generator_lm_head.bias' in names,
    tie=_tie(theirs, kind),
  ),
  express=_express_tie,
  prefix='electra.',
  heads=re.compile(r'(generator|discriminator)_\w+\..*|(classifier|qa_outputs)\..*'),
  aliases={'generator_lm_head.weight': 'embeddings.word_embeddings.weight'},
)

# Song et al. 2020, https://arxiv.org/abs/2004.09297
MPNET = ROBERTA._replace(
  architectures=_architectures('MPNet'),
  fields={name: keys for name, keys in BERT.fields.items() if name != 'token_types'}
  | {'vocab': ('vocab_size', 30527)},
  fixed=BERT.fixed | dict(position='learned_relative'),
  only=dict(hidden_act='gelu', pad_token_id=1, relative_attention_num_buckets=32),
  rows=below_heads(
    [
      *layers(
        _BERT_LAYERS
        | {
          'stack/blocks/attention/query': 'encoder.layer.{}.attention.attn.q',
          'stack/blocks/attention/key': 'encoder.layer.{}.attention.attn.k',
          'stack/blocks/attention/value': 'encoder.layer.{}.attention.attn.v',
          'stack/blocks/attention/out': 'encoder.layer.{}.attention.attn.o',
          'stack/blocks/attention_norm': 'encoder.layer.{}.attention.LayerNorm',
          'stack/positions/relative': 'encoder.relative_attention_bias',
        }
      ),
      *plain({'embed/bias': 'lm_head.bias'}),
      shifted('stack/positions/table', 'embeddings.position_embeddings.weight'),
    ],
    _ROBERTA_HEADS,
  ),
  prefix='mpnet.',
)


def _modernbert_derive(theirs, names, kind):
  depth, local = theirs['num_hidden_layers'], value(theirs, 'local_attention', 128)
  every = value(theirs, 'global_attn_every_n_layers', 3)
  types = value(theirs, 'layer_types', []) or [
    'sliding_attention' if i % every else 'full_attention' for i in range(depth)
  ]
  rope = value(theirs, 'rope_parameters', {})
  each = {
    name: dict(window=window) | rotary(theirs, value(rope, name, {}), value(theirs, key, theta))
    for name, window, key, theta in (
      ('full_attention', 0, 'global_rope_theta', 160_000.0),
      ('sliding_attention', local // 2 + 1, 'local_rope_theta', 10_000.0),
    )
  }
  if not set(types) <= each.keys() or len(types) != depth:
    raise ValueError(
      f'config.json: layer_types={types} is not supported, only {depth} of {", ".join(each)} are'
    )
  # the first layer has no norm of its own, because the embeddings are normalized just before it
  fields = repeated([each[name] | dict(attention_norm=i > 0) for i, name in enumerate(types)])
  biased = dict.fromkeys(('bias_qkv', 'bias_attention'), value(theirs, 'attention_bias', False))
  fields |= biased | dict(bias_output='decoder.bias' in names, tie=_tie(theirs, kind))
  if kind is not Classifier:
    return fields | dict(pooling='first')
  poolings = {'cls': 'pooler', 'mean': 'mean_pooler'}
  if (pooling := value(theirs, 'classifier_pooling', 'cls')) not in poolings:
    raise ValueError(f'config.json: classifier_pooling={pooling!r} is not cls or mean')
  return fields | dict(pooling=poolings[pooling], pooler_norm=True)


def _modernbert_express(config):
  each = all_layers(config)
  keys = {'layer_types': []}
  for layer in each:
    name, key = ('full', 'global') if not layer.window else ('sliding', 'local')
    keys['layer_types'].append(f'{name}_attention')
    keys[f'{key}_rope_theta'] = layer.rotary_base
    if layer.window:
      keys['local_attention'] = 2 * (layer.window - 1)
  keys |= dict(attention_bias=config.bias_attention, decoder_bias=config.bias_output)
  keys |= dict(classifier_pooling='mean' if config.pooling == 'mean_pooler' else 'cls')
  return keys | _express_tie(config)


# Warner et al. 2024, https://arxiv.org/abs/2412.13663
MODERNBERT = Family(
  architectures={
    'ModernBertModel': Encoder,
    'ModernBertForMaskedLM': MaskedTokens,
    'ModernBertForSequenceClassification': Classifier,
  },
  fields={
    'vocab': ('vocab_size', 50368),
    'width': ('hidden_size', 768),
    'depth': ('num_hidden_layers', 22),
    'heads': ('num_attention_heads', 12),
    'feedforward': ('intermediate_size', 1152),
    'max_length': ('max_position_embeddings', 8192),
    'activation': ('hidden_activation', 'gelu'),
    'norm_epsilon': ('norm_eps', 1e-5),
    'bias_norm': ('norm_bias', False),
    'bias_feedforward': ('mlp_bias', False),
    'dropout': ('embedding_dropout mlp_dropout', 0.0),
    'attention_dropout': ('attention_dropout', 0.0),
  },
  fixed=dict(
    norm='layer',
    norm_embedding=True,
    prenorm=True,
    position='rotary',
    gated=True,
    bias=False,
    scale_embedding=False,
    pooler_activation='gelu_erf',
  ),
  only=dict(hidden_activation='gelu', classifier_activation='gelu', classifier_bias=False),
  rows=below_heads(
    [
      *layers(
        {
          'embed': 'embeddings.tok_embeddings',
          'stack/embedding_norm': 'embeddings.norm',
          'stack/blocks/attention/out': 'layers.{}.attn.Wo',
          'stack/blocks/feedforward_norm': 'layers.{}.mlp_norm',
          'stack/blocks/feedforward/out': 'layers.{}.mlp.Wo',
          'stack/norm': 'final_norm',
        }
      ),
      *(
        row._replace(without=(0,))
        for row in layers({'stack/blocks/attention_norm': 'layers.{}.attn_norm'})
      ),
      *fused(QKV, 'layers.{}.attn.Wqkv'),
      *fused(INNER, 'layers.{}.mlp.Wi'),
      *plain({'embed/bias': 'decoder.bias'}),
    ],
    {
      MaskedTokens: layers({'hidden': 'head.dense', 'norm': 'head.norm', 'output': 'decoder'}),
      Classifier: layers(
        {
          'encoder/pooler': 'head.dense',
          'encoder/pooler_norm': 'head.norm',
          'out': 'classifier',
        }
      ),
    },
  ),
  derive=_modernbert_derive,
  express=_modernbert_express,
  pad=50283,
  prefix='model.',
  heads=re.compile(r'(head|decoder|classifier)\..*'),
  aliases={'decoder.weight': 'embeddings.tok_embeddings.weight'},
)
