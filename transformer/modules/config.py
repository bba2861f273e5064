"""The architecture as data: every family is a value of ModelConfig."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformer.functional import platforms
from transformer.functional.positions import SCALINGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """One layer of a repeating pattern: where it differs from the rest of the config.

  Attributes:
    window: that of this layer, 0 for none; None: as in the config.
    rotary_base: that of this layer, 0 for no rotation; None: as in the config.
    rotary_scaling: that of this layer, () for none; None: as in the config.
    attention_norm: that of this layer; None: as in the config.
  """

  window: int | None = None
  rotary_base: float | None = None
  rotary_scaling: tuple[Any, ...] | Mapping[str, Any] | None = None
  attention_norm: bool | None = None

  def __post_init__(self):
    if self.rotary_scaling is not None:
      _store_scaling(self)


def _store_scaling(config):
  """Store the arguments of a rotary scaling as sorted pairs, which can be hashed, or raise."""
  try:
    scaling = dict(config.rotary_scaling)
    if scaling:
      kwargs = {name: value for name, value in scaling.items() if name != 'kind'}
      inspect.signature(SCALINGS[scaling.get('kind')]).bind(2, 1.0, None, **kwargs)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'model.rotary_scaling={config.rotary_scaling}: give kind, one of {", ".join(SCALINGS)}, and '
      f'its arguments, as in dict(kind="linear", factor=2.0) ({error!r})'
    ) from error
  object.__setattr__(config, 'rotary_scaling', tuple(sorted(scaling.items())))


Activation = Literal[
  'relu', 'relu_squared', 'gelu_erf', 'gelu_tanh', 'gelu_10', 'quick_gelu', 'silu', 'tanh'
]
_POSITIVE = ('vocab', 'width', 'depth', 'heads', 'feedforward', 'max_length')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The architecture of a Transformer. The defaults are the base model of Vaswani et al. 2017.

  Attributes:
    vocab: N, the number of tokens in the vocabulary.
    modality: the encoder's input: tokens, patches of an image or frames of a sound.
    features: how many numbers are in a patch (rows x columns x channels) or a frame.
    class_tokens: learned vectors before the patches: none (SigLIP), one for the class (ViT), and
      one more for what is distilled (DeiT).
    stem: number of 3 x 3 convolutions over patches before the first layer; each halves height and
      width.
    token_types: types of tokens, each with a vector added to the embedding (BERT's sentences).
    width: D, size of the residual stream.
    depth: L, layers of the encoder, and of the decoder unless decoder_depth is given.
    decoder_depth: layers of the decoder; 0 means depth.
    heads: H, query heads.
    kv_heads: G, key/value heads, a divisor of heads; 0 means heads.
    head_size: K = V; 0 means width / heads.
    feedforward: F, hidden size of the feed-forward layer.
    experts: E feed-forward layers of which each token takes some; 0: one for all tokens.
    experts_per_token: how many; those that the router finds most probable.
    normalize_experts: whether the probabilities of a token's experts add up to 1.
    shared_expert: F of one more expert, which each token takes by a gate of its own; 0: none.
    embedding_size: size of the embeddings of an encoder, which a linear layer brings to the width
      (ELECTRA); 0 means width.
    max_length: the longest sequence; also the number of learned positions.
    max_source_length: the same for the encoder of an encoder-decoder; 0 means max_length.
    norm: LayerNorm, or RMSNorm without mean and bias.
    norm_epsilon: added to the variance.
    norm_embedding: normalize the embeddings before the first layer (BERT, BART).
    prenorm: x + f(norm(x)) and a final norm, instead of the paper's norm(x + f(x)).
    attention_norm: with prenorm, whether the input of attention is normalized (in ModernBERT's
      first layer it is not).
    sublayer_norm: with prenorm, what a sublayer normalizes: its input, its output, x + norm(f(x))
      (OLMo 2), or both, x + norm(f(norm(x))) (Gemma 2).
    layer_scale: multiply what each sublayer returns by a learned vector (DINOv2; Touvron et al.
      2021, https://arxiv.org/abs/2103.17239, equation 7).
    parallel: with prenorm, attention and feed-forward read the same x and are added to it together:
      after two norms (GPT-NeoX), or one of both (GPT-J); none: one after the other.
    qk_norm: normalize queries and keys before they are rotated: each head, by one scale for all of
      them (Qwen3), or all heads together (OLMo 2).
    position: sinusoidal and learned are added to the embedding (sinusoidal_halves: all sines before
      all cosines, as in Marian; sinusoidal_offset: with other wavelengths and positions from 2 on,
      as in M2M100), rotary rotates queries and keys, relative (T5) and alibi add a bias to the
      scores, learned_relative does both (MPNet); with none only the causal mask tells an order.
    rotary_base: base of the wavelengths of rotary positions; 0 for no rotation.
    rotary_size: how many numbers of each head are rotated, the first ones (GPT-NeoX); 0 means all.
    rotary_scaling: for texts longer than those trained on: the kind, a name of
      `functional.positions.SCALINGS`, and the arguments of that function, as
      dict(kind='linear', factor=2.0), or as pairs; () means none.
    relative_buckets: of relative positions.
    relative_per_layer: whether each layer has its own bias (umT5).
    relative_distance: from which on all distances share a bucket.
    window: attend only to positions fewer than this away; 0 means all.
    layers: a pattern that the layers repeat, such as local and global attention alternating:
      (dict(window=1024), dict(rotary_base=1e6)). Its length divides the depth; () means none.
    activation: of the feed-forward layer; gelu_erf is exact (BERT), gelu_tanh approximate (GPT-2);
      all are in `functional.activations`.
    gated: (activation(x W) * x G) O instead of activation(x W) O.
    bias: whether linear layers and LayerNorms have biases.
    bias_qkv: whether queries, keys and values have biases even if bias is False (Qwen2).
    bias_attention: the same of the output of attention.
    bias_feedforward: the same of the feed-forward layers.
    bias_norm: the same of LayerNorms.
    bias_output: whether logits have one (BERT, BART).
    tie: which embeddings are one table: none, inputs (encoder's and decoder's), output (decoder's
      input and output), all.
    scale_embedding: multiply embeddings by sqrt D, as the paper does.
    scale_attention: multiply scores by 1 / sqrt K; T5 does not.
    attention_scale: multiply scores by this instead, if it is not 0 (Gemma 2).
    attention_sinks: whether each head has a learned score of one more source, whose value is 0.
    soft_cap_attention: keeps scores between -cap and cap, by cap tanh(s / cap); 0: none (Gemma 2).
    soft_cap_logits: the same of the logits.
    scale_logits: multiply logits by 1 / sqrt D, as T5 does where the output is tied.
    causal: whether the positions of an Encoder see only those before them (CLIP's texts).
    pooling: how an encoder gives one vector for a sequence: the first state, the last, the mean of
      all, the first beside the mean of the others (DINOv2), their mean by weights
      softmax(w^T state) (attention; Yang et al. 2016, equations 5 to 7, without the layer in
      between), pooler, tanh(W first + b) (BERT), mean_pooler, the same of the mean (ModernBERT), or
      probe, attention of one learned query and a feed-forward layer (SigLIP).
    pooler_activation: of the pooler, in place of tanh.
    pooler_norm: normalize what the pooler gives (ModernBERT).
    pooled_size: of the pooled vector, to which a linear layer brings it (CLIP); 0: as it is.
    dropout: rate on embeddings and on the output of every sublayer and hidden feed-forward unit.
    attention_dropout: rate on attention weights.
    dtype: operands of matrix products; parameters, sums, norms and the residual are float32. auto:
      bfloat16 where the platform multiplies it faster, else float32; a run keeps what was chosen at
      its start.
    remat: what the backward pass computes again instead of storing: none, products (all of a block
      but its matrix products), or block (all of a block).
    pad: id of the padding token in calls without segments; -1: every token is real.
    end: id of the token that ends a text in calls without segments: what follows is padding (CLIP);
      -1: none.
    platform: what the model is compiled for, such as 'cuda'; '': JAX's default device; see
      `functional.platforms`.
    unroll: layers per iteration of the scan; 0 means all of them (fastest on a CPU), 1 keeps the
      compile time independent of depth. Decoding with a cache unrolls them all.
  """

  vocab: int
  modality: Literal['tokens', 'patches', 'frames'] = 'tokens'
  features: int = 0
  class_tokens: int = 1
  stem: int = 0
  token_types: int = 0
  width: int = 512
  depth: int = 6
  decoder_depth: int = 0
  heads: int = 8
  kv_heads: int = 0
  head_size: int = 0
  feedforward: int = 2048
  experts: int = 0
  experts_per_token: int = 0
  normalize_experts: bool = True
  shared_expert: int = 0
  embedding_size: int = 0
  max_length: int = 512
  max_source_length: int = 0
  norm: Literal['layer', 'rms'] = 'layer'
  norm_epsilon: float = 1e-6
  norm_embedding: bool = False
  prenorm: bool = False
  attention_norm: bool = True
  sublayer_norm: Literal['input', 'output', 'both'] = 'input'
  layer_scale: bool = False
  parallel: Literal['none', 'two_norms', 'one_norm'] = 'none'
  qk_norm: Literal['none', 'head', 'all'] = 'none'
  position: Literal[
    'sinusoidal',
    'sinusoidal_halves',
    'sinusoidal_offset',
    'learned',
    'rotary',
    'relative',
    'learned_relative',
    'alibi',
    'none',
  ] = 'sinusoidal'
  rotary_base: float = 10_000.0
  rotary_size: int = 0
  rotary_scaling: tuple[Any, ...] | Mapping[str, Any] = ()
  relative_buckets: int = 32
  relative_distance: int = 128
  relative_per_layer: bool = False
  window: int = 0
  layers: tuple[Layer | Mapping[str, Any], ...] = ()
  activation: Activation = 'relu'
  gated: bool = False
  bias: bool = True
  bias_qkv: bool = False
  bias_attention: bool = False
  bias_feedforward: bool = False
  bias_norm: bool = False
  bias_output: bool = False
  tie: Literal['none', 'inputs', 'output', 'all'] = 'all'
  scale_embedding: bool = True
  scale_attention: bool = True
  scale_logits: bool = False
  attention_scale: float = 0.0
  attention_sinks: bool = False
  soft_cap_attention: float = 0.0
  soft_cap_logits: float = 0.0
  causal: bool = False
  pooling: Literal[
    'first', 'last', 'mean', 'first_and_mean', 'attention', 'pooler', 'mean_pooler', 'probe'
  ] = 'first'
  pooler_activation: Activation = 'tanh'
  pooler_norm: bool = False
  pooled_size: int = 0
  dropout: float = 0.1
  attention_dropout: float = 0.0
  dtype: Literal['float32', 'bfloat16', 'float16', 'auto'] = 'float32'
  remat: Literal['none', 'products', 'block'] = 'none'
  unroll: int = 0
  pad: int = -1
  end: int = -1
  platform: str = ''

  def __post_init__(self):
    for name, value, hint in self._fields():
      choices = get_args(hint)
      if get_origin(hint) is Literal and value not in choices:
        raise ValueError(f'model.{name}={value!r} is none of {", ".join(map(repr, choices))}')
      least = 1 if name in _POSITIVE else 0
      if hint is int and name not in ('pad', 'end') and value < least:
        raise ValueError(f'model.{name}={value} must be at least {least}')
    for wrong, message in self._contradictions():
      if wrong:
        raise ValueError(message)
    if self.dtype == 'auto':
      chosen = platforms.matmul_dtype(platforms.resolve(self.platform or None))
      object.__setattr__(self, 'dtype', chosen)
    _store_scaling(self)
    self._check_layers()

  def _fields(self):
    return [(name, getattr(self, name), hint) for name, hint in get_type_hints(type(self)).items()]

  def _contradictions(self):
    """Yield (whether some values contradict each other, the error message)."""
    yield (
      (self.modality == 'tokens') != (self.features == 0),
      f'model.features={self.features} with model.modality={self.modality}: give the numbers in '
      'a patch or frame, and 0 for tokens',
    )
    yield (
      self.stem and (self.modality != 'patches' or self.width % 2**self.stem),
      f'model.stem={self.stem} convolves patches, each time to twice the width: it needs '
      f'model.modality=patches and a model.width that 2^{self.stem} divides, not {self.modality} '
      f'and {self.width}',
    )
    yield (
      self.class_tokens > 2,
      f'model.class_tokens={self.class_tokens}: there are at most 2, that of the class and that of '
      'what is distilled',
    )
    yield (
      self.modality != 'tokens' and self.tie in ('inputs', 'all'),
      f'model.tie={self.tie} needs tokens on both sides, but model.modality={self.modality}: set '
      'it to output or none',
    )
    for name in ('dropout', 'attention_dropout'):
      rate = getattr(self, name)
      yield not 0 <= rate < 1, f'model.{name}={rate} is a rate: give 0 <= rate < 1'
    yield (
      not self.head_size and self.width % self.heads,
      f'model.heads={self.heads} does not divide model.width={self.width}: choose a divisor of '
      f'{self.width}, or give model.head_size',
    )
    yield (
      self.heads % self.groups,
      f'model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}: choose a divisor',
    )
    yield (
      self.position.startswith('sinusoidal') and self.width % 2,
      f'model.position={self.position} needs an even model.width, not {self.width}',
    )
    yield (
      self.position == 'rotary' and not self.rotary_size and self.key_size % 2,
      f'model.position=rotary needs an even head size, not {self.key_size}',
    )
    yield (
      self.rotary_size % 2 or self.rotary_size > self.key_size,
      f'model.rotary_size={self.rotary_size} must be even, and at most the head size '
      f'{self.key_size}',
    )
    yield (
      not self.prenorm and (self.sublayer_norm != 'input' or self.parallel != 'none'),
      f'model.sublayer_norm={self.sublayer_norm} with model.parallel={self.parallel} needs '
      'model.prenorm=True',
    )
    yield (
      self.experts and not 1 <= self.experts_per_token <= self.experts,
      f'model.experts={self.experts} with model.experts_per_token={self.experts_per_token}: each '
      'token takes one expert or more, and at most all',
    )
    yield (
      self.experts and (self.bias or self.bias_feedforward),
      f'model.experts={self.experts} have no biases: set model.bias and model.bias_feedforward to '
      'False',
    )
    for name in ('attention_scale', 'soft_cap_attention', 'soft_cap_logits'):
      value = getattr(self, name)
      yield value < 0, f'model.{name}={value} must be positive, or 0 for none'

  def _check_layers(self):
    """Store the pattern as a tuple of Layer, or raise if it does not fit the depth."""
    try:
      layers = tuple(x if isinstance(x, Layer) else Layer(**x) for x in self.layers)
    except TypeError as error:
      raise ValueError(
        f'model.layers={self.layers} is not a tuple of layers: give each as dict(window=..., '
        f'rotary_base=...) ({error})'
      ) from error
    object.__setattr__(self, 'layers', layers)
    if any(layer.window is not None and layer.window < 0 for layer in layers):
      raise ValueError(f'model.layers={self.layers}: a window must be at least 0')
    for name in ('depth', 'decoder_depth'):
      if layers and getattr(self, name) % len(layers):
        raise ValueError(
          f'model.layers is a pattern of {len(layers)} layers, which does not divide '
          f'model.{name}={getattr(self, name)}: choose a multiple'
        )

  @property
  def encoder(self) -> 'ModelConfig':
    """The config of the encoder of an encoder-decoder."""
    return dataclasses.replace(self, max_length=self.max_source_length or self.max_length)

  @property
  def decoder(self) -> 'ModelConfig':
    """The config of the decoder of an encoder-decoder."""
    return dataclasses.replace(self, depth=self.decoder_depth or self.depth)

  @property
  def key_size(self) -> int:
    """K, size of a head."""
    return self.head_size or self.width // self.heads

  @property
  def pattern(self) -> tuple[Layer, ...]:
    """The layers of one period, with the values of the config where they have none of their own."""
    names = [field.name for field in dataclasses.fields(Layer)]
    layers: tuple[Any, ...] = self.layers or (Layer(),)
    return tuple(
      Layer(
        **{name: getattr(self if getattr(layer, name) is None else layer, name) for name in names}
      )
      for layer in layers
    )

  @property
  def pooled_width(self) -> int:
    """The size of the vector that an encoder gives for a sequence."""
    return self.pooled_size or self.width * (2 if self.pooling == 'first_and_mean' else 1)

  @property
  def groups(self) -> int:
    """G, number of key/value heads."""
    return self.kv_heads or self.heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualConfig:
  """The architecture of two encoders of one space.

  Attributes:
    text: of the encoder of texts.
    image: of the encoder of images.
    bias: whether a number is added to the similarities (SigLIP).
  """

  text: ModelConfig
  image: ModelConfig
  bias: bool = False
