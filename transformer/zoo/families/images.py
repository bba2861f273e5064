"""Encoders of images (ViT, DeiT, DINOv2), and dual encoders of texts and images (CLIP, SigLIP)."""

import math
import re

from transformer.modules.heads import Classifier, DualEncoder
from transformer.modules.model import Encoder
from transformer.zoo.families.encoders import below_heads, pooling_of
from transformer.zoo.families.family import CONFIGS, Family, value
from transformer.zoo.families.rows import Row, fused, layers, plain, wrapped


def _square(theirs, key, default):
  """Return a size in config.json: a number, or a list of two equal numbers."""
  size = theirs.get(key)
  if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
    return value({key: size[0]}, key, default)
  return value(theirs, key, default)


def _sides(theirs, patch):
  """Return the side of an image and of a patch, in pixels, and the number of channels."""
  size = _square(theirs, 'image_size', 224), _square(theirs, 'patch_size', patch)
  return (*size, value(theirs, 'num_channels', 3))


def _patches(theirs, patch, tokens=1):
  """Return the fields of ModelConfig for patches of an image after `tokens` class tokens."""
  image, patch, channels = _sides(theirs, patch)
  return dict(
    vocab=1,
    features=patch * patch * channels,
    class_tokens=tokens,
    max_length=(image // patch) ** 2 + tokens,
  )


def _express_patches(config):
  """Return the keys for image size, patch size and channels; 3 channels if that is possible."""
  patch, channels = 1, config.features
  for count in (3, 1):
    side = math.isqrt(config.features // count)
    if side * side * count == config.features:
      patch, channels = side, count
      break
  side = math.isqrt(config.max_length - config.class_tokens)
  return dict(image_size=side * patch, patch_size=patch, num_channels=channels)


def _projection(theirs, patch, name):
  """Return the rows of the convolution that embeds patches."""
  _, side, channels = _sides(theirs, patch)
  kernel = Row(
    ('embed/projection/kernel',),
    f'{name}.weight',
    lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
    lambda x: x.reshape(side, side, channels, -1).transpose(3, 2, 0, 1),
  )
  return [kernel, *plain({'embed/projection/bias': f'{name}.bias'})]


_LAYERS = {
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


def _body(names, patch=16):
  """Return a function from config.json to the rows of a vision transformer.

  Args:
    names: {our layer: theirs}, for `layers`.
    patch: default of patch_size.
  """
  return lambda theirs: [
    *_projection(theirs, patch, 'embeddings.patch_embeddings.projection'),
    wrapped('embed/class_token', 'embeddings.cls_token', axes=2),
    wrapped('embed/distillation_token', 'embeddings.distillation_token', axes=2),
    wrapped('stack/positions/table', 'embeddings.position_embeddings'),
    *layers(names),
  ]


_HEADS = {Classifier: layers({'out': 'classifier'})}

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
  rows=below_heads(_body(_LAYERS), _HEADS),
  derive=lambda theirs, names, kind: (
    _patches(theirs, 16) | dict(pooling='first' if kind is Classifier else pooling_of(names))
  ),
  express=_express_patches,
  prefix='vit.',
  heads=re.compile(r'(pooler|classifier)\..*'),
)

# Touvron et al. 2021, https://arxiv.org/abs/2012.12877
DEIT = VIT._replace(
  architectures={'DeiTModel': Encoder, 'DeiTForImageClassification': Classifier},
  derive=lambda theirs, names, kind: VIT.derive(theirs, names, kind) | _patches(theirs, 16, 2),
  prefix='deit.',
  ignored=re.compile(r'embeddings\.mask_token'),  # used only in masked image modeling
)


def _dinov2_inner(width, ratio, gated):
  inner = int(width * ratio)
  return (int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner


def _dinov2_derive(theirs, names, kind):
  gated, ratio = value(theirs, 'use_swiglu_ffn', False), value(theirs, 'mlp_ratio', 4)
  fields = dict(gated=gated, feedforward=_dinov2_inner(theirs['hidden_size'], ratio, gated))
  fields |= dict(pooling='first_and_mean' if kind is Classifier else 'first')
  return fields | _patches(theirs, 14) | (dict(activation='silu') if gated else {})


def _dinov2_express(config):
  fits = (r for r in range(1, 33) if _dinov2_inner(config.width, r, gated) == config.feedforward)
  gated = config.gated
  return _express_patches(config) | dict(use_swiglu_ffn=gated, mlp_ratio=next(fits, 4))


def _dinov2_body(theirs):
  names = _LAYERS | {
    'stack/blocks/attention_norm': 'encoder.layer.{}.norm1',
    'stack/blocks/feedforward_norm': 'encoder.layer.{}.norm2',
    'stack/blocks/feedforward/hidden': 'encoder.layer.{}.mlp.fc1',
    'stack/blocks/feedforward/out': 'encoder.layer.{}.mlp.fc2',
  }
  gated = []
  if value(theirs, 'use_swiglu_ffn', False):
    del names['stack/blocks/feedforward/hidden']
    names['stack/blocks/feedforward/out'] = 'encoder.layer.{}.mlp.weights_out'
    inner = [f'stack/blocks/feedforward/{part}' for part in ('hidden', 'gate')]
    gated = fused(inner, 'encoder.layer.{}.mlp.weights_in')
  scales = {
    f'stack/blocks/{sublayer}_layer_scale': f'encoder.layer.{{}}.layer_scale{i}.lambda1'
    for i, sublayer in enumerate(('attention', 'feedforward'), 1)
  }
  return _body(names, 14)(theirs) + gated + plain(scales)


# Oquab et al. 2023, https://arxiv.org/abs/2304.07193
DINOV2 = VIT._replace(
  architectures={'Dinov2Model': Encoder, 'Dinov2ForImageClassification': Classifier},
  fields={name: keys for name, keys in VIT.fields.items() if name != 'feedforward'}
  | {'norm_epsilon': ('layer_norm_eps', 1e-6)},
  fixed=VIT.fixed | dict(layer_scale=True),
  only=dict(qkv_bias=True),
  rows=below_heads(_dinov2_body, _HEADS),
  derive=_dinov2_derive,
  express=_dinov2_express,
  prefix='dinov2.',
  ignored=DEIT.ignored,
)

_TOWER = {
  'stack/blocks/attention_norm': 'encoder.layers.{}.layer_norm1',
  'stack/blocks/attention/query': 'encoder.layers.{}.self_attn.q_proj',
  'stack/blocks/attention/key': 'encoder.layers.{}.self_attn.k_proj',
  'stack/blocks/attention/value': 'encoder.layers.{}.self_attn.v_proj',
  'stack/blocks/attention/out': 'encoder.layers.{}.self_attn.out_proj',
  'stack/blocks/feedforward_norm': 'encoder.layers.{}.layer_norm2',
  'stack/blocks/feedforward/hidden': 'encoder.layers.{}.mlp.fc1',
  'stack/blocks/feedforward/out': 'encoder.layers.{}.mlp.fc2',
  'stack/positions': 'embeddings.position_embedding',
}
_TEXTS = _TOWER | {'embed': 'embeddings.token_embedding', 'stack/norm': 'final_layer_norm'}
_PICTURES = _TOWER | {'stack/norm': 'post_layernorm'}
_FIELDS = {
  'width': ('hidden_size', 768),
  'depth': ('num_hidden_layers', 12),
  'heads': ('num_attention_heads', 12),
  'feedforward': ('intermediate_size', 3072),
  'activation': ('hidden_act', 'quick_gelu'),
  'norm_epsilon': ('layer_norm_eps', 1e-5),
  'attention_dropout': ('attention_dropout', 0.0),
}
# all linear layers of CLIP have a bias, except the patch embedding and the projection of the output
_BIASES = dict(bias=False) | dict.fromkeys(
  ('bias_qkv', 'bias_attention', 'bias_feedforward', 'bias_norm'), True
)


def _clip_text_derive(theirs, names, kind):
  # old files have the wrong eos_token_id=2 for the largest id
  end, projected = value(theirs, 'eos_token_id', 49407), 'text_projection.weight' in names
  return dict(
    pooled_size=value(theirs, 'projection_dim', 512) if projected else 0,
    end=theirs['vocab_size'] - 1 if end == 2 else end,
  )


# Radford et al. 2021, https://arxiv.org/abs/2103.00020
CLIP_TEXT = Family(
  architectures={'CLIPTextModel': Encoder, 'CLIPTextModelWithProjection': Encoder},
  fields=_FIELDS
  | {
    'vocab': ('vocab_size', 49408),
    'width': ('hidden_size', 512),
    'heads': ('num_attention_heads', 8),
    'feedforward': ('intermediate_size', 2048),
    'max_length': ('max_position_embeddings', 77),
  },
  fixed=_BIASES
  | dict(
    norm='layer',
    prenorm=True,
    position='learned',
    tie='output',
    scale_embedding=False,
    causal=True,
    pooling='last',
    dropout=0.0,
    pad=-1,  # pad_token_id of config.json is the id of a word
  ),
  only={},
  rows=lambda *_: layers(_TEXTS | {'projection': 'text_projection'}),
  derive=_clip_text_derive,
  express=lambda config: dict(
    eos_token_id=config.end, projection_dim=config.pooled_size or config.width
  ),
  prefix='text_model.',
)
CLIP_VISION = Family(
  architectures={'CLIPVisionModel': Encoder, 'CLIPVisionModelWithProjection': Encoder},
  fields=_FIELDS,
  fixed=VIT.fixed | _BIASES | dict(norm_embedding=True, pooling='first', dropout=0.0),
  only={},
  rows=lambda config, kind, theirs: [
    *_projection(theirs, 32, 'embeddings.patch_embedding'),
    *plain({'embed/class_token': 'embeddings.class_embedding'}),
    *layers(
      _PICTURES | {'stack/embedding_norm': 'pre_layrnorm', 'projection': 'visual_projection'}
    ),
  ],
  derive=lambda theirs, names, kind: (
    _patches(theirs, 32)
    | dict(
      pooled_size=value(theirs, 'projection_dim', 512) if 'visual_projection.weight' in names else 0
    )
  ),
  express=lambda config: (
    _express_patches(config) | dict(projection_dim=config.pooled_size or config.width)
  ),
  prefix='vision_model.',
)

# Zhai et al. 2023, https://arxiv.org/abs/2303.15343
SIGLIP_TEXT = CLIP_TEXT._replace(
  architectures={'SiglipTextModel': Encoder},
  fields=CLIP_TEXT.fields
  | {
    'vocab': ('vocab_size', 32000),
    'width': ('hidden_size', 768),
    'heads': ('num_attention_heads', 12),
    'feedforward': ('intermediate_size', 3072),
    'max_length': ('max_position_embeddings', 64),
    'activation': ('hidden_act', 'gelu_pytorch_tanh'),
    'norm_epsilon': ('layer_norm_eps', 1e-6),
  },
  # trained with texts padded to one length, without a mask for padding
  fixed=CLIP_TEXT.fixed | dict.fromkeys(_BIASES, True) | dict(causal=False),
  rows=lambda *_: layers(_TEXTS | {'projection': 'head'}),
  derive=lambda theirs, names, kind: dict(
    pooled_size=value(theirs, 'projection_size', theirs['hidden_size'])
  ),
  express=lambda config: dict(projection_size=config.pooled_size),
)
_PROBE = [
  wrapped('pooler/query', 'head.probe', axes=2),
  *(
    row._replace(theirs=f'head.attention.in_proj_{name}')
    for row, name in zip(
      fused([f'pooler/attention/{part}' for part in ('query', 'key', 'value')], ''),
      ('weight', 'bias'),
      strict=True,
    )
  ),
  *layers(
    {
      'pooler/attention/out': 'head.attention.out_proj',
      'pooler/norm': 'head.layernorm',
      'pooler/feedforward/hidden': 'head.mlp.fc1',
      'pooler/feedforward/out': 'head.mlp.fc2',
    }
  ),
]
SIGLIP_VISION = CLIP_VISION._replace(
  architectures={'SiglipVisionModel': Encoder},
  fields=_FIELDS
  | {
    'activation': ('hidden_act', 'gelu_pytorch_tanh'),
    'norm_epsilon': ('layer_norm_eps', 1e-6),
  },
  fixed=VIT.fixed | dict(pooling='probe', dropout=0.0),
  only=dict(vision_use_head=True),
  rows=lambda config, kind, theirs: [
    *_projection(theirs, 16, 'embeddings.patch_embedding'),
    *layers(_PICTURES),
    *_PROBE,
  ],
  derive=lambda theirs, names, kind: _patches(theirs, 16, 0),
  express=_express_patches,
)


def _dual(architecture, text, image, shape):
  """Return a family of dual encoders.

  Args:
    architecture: their class.
    text, image: the families of the towers.
    shape: of logit_scale and logit_bias in the files.
  """

  def rows(config, kind, theirs):
    table = [
      Row((name,), f'logit_{name}', lambda x: (x.reshape(()),), lambda x: x.reshape(shape))
      for name in ('scale', 'bias')
    ]
    for side, tower in ('text', text), ('image', image):
      names = tower.rows(getattr(config, side), Encoder, theirs.get(CONFIGS[side]) or {})
      table += [
        row._replace(
          ours=tuple(f'{side}/encoder/{path}' for path in row.ours),
          theirs=row.theirs if '_projection.' in row.theirs else tower.prefix + row.theirs,
        )
        for row in names
      ]
    return table

  return Family(
    architectures={architecture: DualEncoder},
    fields={},
    fixed={},
    only={},
    rows=rows,
    towers={'text': text, 'image': image},
    ignored=re.compile(r'(.*\.)?position_ids'),
  )


CLIP = _dual('CLIPModel', CLIP_TEXT, CLIP_VISION, ())
SIGLIP = _dual('SiglipModel', SIGLIP_TEXT, SIGLIP_VISION, (1,))
