"""The architecture of a model as data: every family of models is a ModelConfig."""

import dataclasses
import inspect
import itertools
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformer.functional import platforms
from transformer.functional.positions import SCALINGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """One layer of a repeating pattern of layers; None means as in the ModelConfig.

  Attributes:
    window: attention window of this layer, 0 for none.
    rotary_base: rotary base of this layer, 0 for no rotation.
    rotary_scaling: rotary scaling of this layer, () for none.
    attention_norm: whether this layer normalizes the input of attention.
  """

  window: int | None = None
  rotary_base: float | None = None
  rotary_scaling: tuple[Any, ...] | Mapping[str, Any] | None = None
  attention_norm: bool | None = None

  def __post_init__(self):
    if self.rotary_scaling is not None:
      _store_scaling(self)


def _store_scaling(config):
  """Check the rotary scaling of a config and store it as sorted pairs, which can be hashed."""
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
    vocab: N, number of tokens in the vocabulary.
    modality: input of the encoder: tokens, patches of an image or frames of a sound.
    features: X, numbers in a patch (rows x columns x channels) or in a frame; 0 for tokens.
    class_tokens: number of learned vectors before the patches: 0 (SigLIP), 1 for the class (ViT),
      or 2, with one for distillation (DeiT).
    stem: number of 3 x 3 convolutions over patches before the first layer; each halves height and
      width.
    token_types: number of token types, each with a vector added to the embedding (BERT's sentences
      A and B); 0 for none.
    width: D, size of the residual stream.
    depth: L, number of layers of the encoder, and of the decoder unless decoder_depth is given.
    decoder_depth: number of layers of the decoder; 0 means depth.
    heads: H, number of query heads.
    kv_heads: G, number of key/value heads, a divisor of heads; 0 means heads.
    head_size: K = V, size of a head; 0 means width / heads.
    feedforward: F, hidden size of the feed-forward layer.
    experts: E, number of feed-forward layers of which each token uses some; 0 for no experts.
    experts_per_token: number of experts that each token uses, those of highest router probability.
    normalize_experts: divide the probabilities of a token's experts by their sum.
    shared_expert: F of one more expert, which every token uses, times a gate; 0 for none.
    embedding_size: size of the embeddings of an encoder, which a linear layer projects to the width
      (ELECTRA); 0 means width.
    max_length: length of the longest sequence, and number of learned positions.
    max_source_length: the same for the encoder of an encoder-decoder; 0 means max_length.
    norm: LayerNorm, or RMSNorm without mean and bias.
    norm_epsilon: added to the variance.
    norm_embedding: normalize the embeddings before the first layer (BERT, BART).
    prenorm: x + f(norm(x)) and a final norm, instead of the paper's norm(x + f(x)).
    attention_norm: with prenorm, whether the input of attention is normalized (in ModernBERT's
      first layer it is not).
    sublayer_norm: with prenorm, what is normalized: the input of a sublayer, its output,
      x + norm(f(x)) (OLMo 2), or both, x + norm(f(norm(x))) (Gemma 2).
    layer_scale: multiply the output of each sublayer by a learned vector (DINOv2; Touvron et al.
      2021, https://arxiv.org/abs/2103.17239, equation 7).
    parallel: with prenorm, add attention(norm(x)) + feedforward(norm(x)) to x at once, with two
      norms (GPT-NeoX) or one shared norm (GPT-J); none: feed-forward reads the output of attention.
    qk_norm: normalize queries and keys before their rotation: head for each head, with one scale
      for all heads (Qwen3), or all for all heads together (OLMo 2).
    position: sinusoidal and learned positions are added to the embedding (sinusoidal_halves: all
      sines before all cosines, as in Marian; sinusoidal_offset: with other wavelengths and
      positions from 2 on, as in M2M100), rotary rotates queries and keys, relative (T5) and alibi
      add a bias to the scores, learned_relative does both (MPNet); with none only the causal mask
      shows the order.
    rotary_base: base of the wavelengths of rotary positions; 0 for no rotation.
    rotary_size: rotate only the first elements of each head, this many (GPT-NeoX); 0 means all.
    rotary_scaling: for texts longer than in training: kind, a name of
      `functional.positions.SCALINGS`, and the arguments of that function, as
      dict(kind='linear', factor=2.0), or as pairs; () for none.
    relative_buckets: number of buckets of relative positions.
    relative_distance: distances from this one on share the last bucket.
    relative_per_layer: whether each layer has its own relative bias (umT5).
    window: attend only to positions fewer than this away; 0 means all.
    layers: a pattern that the layers repeat, such as alternating local and global attention:
      (dict(window=1024), dict(rotary_base=1e6)). Its length must divide the depth; () for none.
    activation: of the feed-forward layer; gelu_erf is exact (BERT), gelu_tanh approximate (GPT-2);
      all are in `functional.activations`.
    gated: (activation(x W) * x G) O instead of activation(x W) O.
    bias: whether linear layers and LayerNorms have biases.
    bias_qkv: whether queries, keys and values have biases even if bias is False (Qwen2).
    bias_attention: whether the output of attention has a bias even if bias is False.
    bias_feedforward: whether feed-forward layers have biases even if bias is False.
    bias_norm: whether LayerNorms have biases even if bias is False.
    bias_output: whether the logits have a bias (BERT, BART).
    tie: which embeddings share one table: none, inputs (encoder's and decoder's), output (decoder's
      input and output), all.
    scale_embedding: multiply embeddings by sqrt D, as the paper does.
    scale_attention: multiply scores by 1 / sqrt K; T5 does not.
    attention_scale: multiply scores by this instead, if it is not 0 (Gemma 2).
    attention_sinks: whether each head has a learned score of an extra source with value 0.
    soft_cap_attention: bound the scores by cap tanh(score / cap); 0 for no bound (Gemma 2).
    soft_cap_logits: bound the logits in the same way.
    scale_logits: multiply logits by 1 / sqrt D, as T5 does where the output is tied.
    causal: whether each position of an Encoder attends only to itself and earlier ones (CLIP's
      texts).
    pooling: one vector for a sequence from an encoder: the first state, the last, the mean of all,
      the first joined with the mean of the others (DINOv2), attention, a mean with weights
      softmax(w^T state) (Yang et al. 2016, equations 5 to 7, without the layer in between), pooler,
      tanh(W first + b) (BERT), mean_pooler, the same of the mean (ModernBERT), or probe, attention
      of one learned query and a feed-forward layer (SigLIP).
    pooler_activation: of the pooler, in place of tanh.
    pooler_norm: normalize the output of the pooler (ModernBERT).
    pooled_size: project the pooled vector to this size by a linear layer (CLIP); 0 for no
      projection.
    dropout: rate on embeddings and on the output of every sublayer and hidden feed-forward unit.
    attention_dropout: rate on attention weights.
    dtype: operands of matrix products; parameters, sums, norms and the residual are float32. auto:
      bfloat16 where the platform multiplies it faster, else float32; a run keeps the choice made at
      its start.
    remat: what the backward pass computes again instead of storing: none, products (all of a block
      except its matrix products), or block (all of a block).
    pad: id of the padding token in calls without segments; -1 if every token is real.
    end: id of the token that ends a text in calls without segments; later tokens are padding
      (CLIP); -1 for none.
    platform: the one that the model is compiled for, such as 'cuda'; '' for JAX's default device;
      see `functional.platforms`.
    unroll: layers in one iteration of the scan; 0 means all of them (fastest on a CPU), with 1 the
      compile time does not depend on the depth. Decoding with a cache unrolls all layers.
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
      minimum = 1 if name in _POSITIVE else 0
      if hint is int and name not in ('pad', 'end') and value < minimum:
        raise ValueError(f'model.{name}={value} must be at least {minimum}')
    checks = (self._check_inputs, self._check_sizes, self._check_sublayers)
    for wrong, message in itertools.chain.from_iterable(check() for check in checks):
      if wrong:
        raise ValueError(message)
    if self.dtype == 'auto':
      chosen = platforms.matmul_dtype(platforms.resolve(self.platform or None))
      object.__setattr__(self, 'dtype', chosen)
    _store_scaling(self)
    self._check_layers()

  def _fields(self):
    return [(name, getattr(self, name), hint) for name, hint in get_type_hints(type(self)).items()]

  def _check_inputs(self):
    """Yield (whether values contradict each other, the error message), for inputs."""
    yield (
      (self.modality == 'tokens') != (self.features == 0),
      f'model.features={self.features} with model.modality={self.modality}: give how many numbers '
      'a patch or frame has, and 0 for tokens',
    )
    yield (
      self.stem and (self.modality != 'patches' or self.width % 2**self.stem),
      f'model.stem={self.stem} convolves patches and doubles the width each time: it needs '
      f'model.modality=patches and a model.width that 2^{self.stem} divides, not {self.modality} '
      f'and {self.width}',
    )
    yield (
      self.class_tokens > 2,
      f'model.class_tokens={self.class_tokens}: there are at most 2, one for the class and one for '
      'distillation',
    )
    yield (
      self.modality != 'tokens' and self.tie in ('inputs', 'all'),
      f'model.tie={self.tie} needs tokens on both sides, but model.modality={self.modality}: set '
      'it to output or none',
    )

  def _check_sizes(self):
    """Yield as `_check_inputs`, for rates and sizes."""
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

  def _check_sublayers(self):
    """Yield as `_check_inputs`, for norms, experts and scales."""
    yield (
      not self.prenorm and (self.sublayer_norm != 'input' or self.parallel != 'none'),
      f'model.sublayer_norm={self.sublayer_norm} with model.parallel={self.parallel} needs '
      'model.prenorm=True',
    )
    yield (
      self.experts and not 1 <= self.experts_per_token <= self.experts,
      f'model.experts={self.experts} with model.experts_per_token={self.experts_per_token}: each '
      'token uses at least one expert and at most all',
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
    """Store the pattern of layers as a tuple of Layer; raise if it does not divide the depth."""
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
    """The layers of one period, each None replaced by the value of the config."""
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
    """Size of the pooled vector of a sequence."""
    return self.pooled_size or self.width * (2 if self.pooling == 'first_and_mean' else 1)

  @property
  def groups(self) -> int:
    """G, number of key/value heads."""
    return self.kv_heads or self.heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualConfig:
  """The architecture of a text encoder and an image encoder with one embedding space.

  Attributes:
    text: the text encoder.
    image: the image encoder.
    bias: whether a learned number is added to the similarities (SigLIP).
  """

  text: ModelConfig
  image: ModelConfig
  bias: bool = False
