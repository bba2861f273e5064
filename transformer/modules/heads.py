"""Models with a head on an encoder: masked tokens, classes, answer spans, CTC, embeddings."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional.activations import ACTIVATIONS
from transformer.functional.dropout import dropout
from transformer.functional.meshes import with_auto_axes
from transformer.modules.config import DualConfig, ModelConfig
from transformer.modules.embeddings import Tokens
from transformer.modules.layers import Linear, Norm, split_key
from transformer.modules.model import Encoder, EncoderDecoder


class MaskedTokens(nnx.Module):
  """An encoder with the logits of the token at each position (BERT).

  With `config.tie` the logits use the table of the embedding. Devlin et al. 2019,
  https://arxiv.org/abs/1810.04805, section 3.1 and its published code.

  Args:
    config: of the encoder.
    rngs: for fresh parameters.
    next_sentence: whether it also classifies if two sentences follow each other.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, next_sentence: bool = False):
    self.config = config
    self.encoder = Encoder(config, rngs)
    size = config.embedding_size or config.width
    self.hidden = Linear(config, config.width, size, rngs)
    self.norm = Norm(config, size)
    tied = config.tie in ('output', 'all')
    self.output = None if tied else Tokens(config, rngs, lm_head=True)
    self.next_sentence = Linear(config, config.width, 2, rngs) if next_sentence else None

  @with_auto_axes
  def __call__(self, tokens: Int[Array, 'B T'], **kwargs: Any) -> Float[Array, 'B T N']:
    """Return the logits; arguments as in the encoder."""
    return self.lm_head.attend(self.states(tokens, **kwargs))

  @with_auto_axes
  def states(self, tokens: Int[Array, 'B T'], **kwargs: Any) -> Float[Array, 'B T _']:
    """Return the states before the logits, of the size of the embeddings; arguments as there."""
    return self.transform(self.encoder(tokens, **kwargs))

  def transform(self, states: Float[Array, '*B D']) -> Float[Array, '*B _']:
    """Return norm(activation(x W + b)) for states x of the encoder."""
    return self.norm(ACTIVATIONS[self.config.activation](self.hidden(states)))

  @property
  def lm_head(self) -> Tokens:
    """The token table that computes the logits."""
    return self.output or self.encoder.embed


class Classifier(nnx.Module):
  """An encoder with logits of C classes from the pooled states of a row.

  Args:
    config: of the encoder.
    classes: C.
    rngs: for fresh parameters.
    bias: whether the logits have a bias; None for `config.bias`.
  """

  def __init__(
    self, config: ModelConfig, classes: int, rngs: nnx.Rngs, *, bias: bool | None = None
  ):
    self.config = config
    self.encoder = Encoder(config, rngs)
    self.out = Linear(config, config.pooled_width, classes, rngs, bias=bias)

  @with_auto_axes
  def __call__(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    *,
    key: Key[Array, ''] | None = None,
    **kwargs: Any,
  ) -> Float[Array, 'B C']:
    """Return the logits; arguments as in the encoder."""
    encoder_key, pooled_key = split_key(key, 2)
    pooled = self.encoder.encode_pooled(inputs, key=encoder_key, **kwargs)
    return self.out(dropout(pooled, self.config.dropout, pooled_key))


class MultipleChoice(Classifier):
  """An encoder with one logit for each choice of an example, such as a question with an answer.

  Devlin et al. 2019, section 4.4.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, bias: bool | None = None):
    super().__init__(config, 1, rngs, bias=bias)

  @with_auto_axes
  def __call__(  # type: ignore[override]
    self, inputs: Int[Array, 'B C S'], *, key: Key[Array, ''] | None = None, **kwargs: Any
  ) -> Float[Array, 'B C']:
    """Return the logits; arguments as in the encoder, with an axis of choices after the first."""
    rows = {name: x if x is None else x.reshape(-1, x.shape[-1]) for name, x in kwargs.items()}
    logits = super().__call__(inputs.reshape(-1, inputs.shape[-1]), key=key, **rows)
    return logits.reshape(inputs.shape[:2])


class TargetClassifier(nnx.Module):
  """An encoder-decoder with logits of C classes from the decoder's state at the end token.

  The decoder reads the same text as the encoder. Lewis et al. 2019,
  https://arxiv.org/abs/1910.13461, section 3.1.

  Args:
    config: of the encoder-decoder.
    classes: C.
    rngs: for fresh parameters.
    start: id of the token that the decoder's text begins with.
    end: id of the end token, whose last occurrence is used; the logits are NaN without one.
  """

  def __init__(self, config: ModelConfig, classes: int, rngs: nnx.Rngs, *, start: int, end: int):
    self.config, self.start, self.end = config, start, end
    self.model = EncoderDecoder(config, rngs)
    self.hidden = Linear(config, config.width, config.width, rngs, bias=True)
    self.out = Linear(config, config.width, classes, rngs, bias=True)

  @with_auto_axes
  def __call__(
    self,
    inputs: Int[Array, 'B S'],
    *,
    segments: Int[Array, 'B S'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B C']:
    """Return the logits.

    Args:
      inputs: texts with their end token.
      segments: 0 for padding; None: as `config.pad` says.
      key: turns dropout on.
    """
    keys = split_key(key, 3)
    targets = jnp.pad(inputs[:, :-1], ((0, 0), (1, 0)), constant_values=self.start)
    states = self.model.states(inputs, targets, input_segments=segments, key=keys[0])
    ends = inputs == self.end
    last = ends.shape[1] - 1 - jnp.argmax(ends[:, ::-1], axis=1)
    x = jnp.where(ends.any(axis=1)[:, None], states[jnp.arange(states.shape[0]), last], jnp.nan)
    x = jnp.tanh(self.hidden(dropout(x, self.config.dropout, keys[1])))
    return self.out(dropout(x, self.config.dropout, keys[2]))


class TokenClassifier(nnx.Module):
  """An encoder with logits of C classes at each position (Devlin et al. 2019, section 5.3)."""

  def __init__(self, config: ModelConfig, classes: int, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)
    self.out = Linear(config, config.width, classes, rngs)

  @with_auto_axes
  def __call__(
    self, inputs: Int[Array, 'B S'] | Float[Array, 'B S X'], **kwargs: Any
  ) -> Float[Array, 'B T C']:
    """Return the logits; arguments as in the encoder."""
    return self.out(self.encoder(inputs, **kwargs))


class ReplacedTokens(nnx.Module):
  """An encoder with the logit, at each position, that the token was replaced (ELECTRA).

  Clark et al. 2020, https://arxiv.org/abs/2003.10555, section 2.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)
    self.hidden = Linear(config, config.width, config.width, rngs)
    self.out = Linear(config, config.width, 1, rngs)

  @with_auto_axes
  def __call__(self, tokens: Int[Array, 'B T'], **kwargs: Any) -> Float[Array, 'B T']:
    """Return the logits; arguments as in the encoder."""
    states = self.encoder(tokens, **kwargs)
    return self.out(ACTIVATIONS[self.config.activation](self.hidden(states)))[..., 0]


class Spans(TokenClassifier):
  """An encoder with the logits that an answer starts, [..., 0], and ends, [..., 1], at a position.

  Devlin et al. 2019, section 4.2.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, 2, rngs)


class Transcriber(TokenClassifier):
  """An encoder with the logits of the token, or the blank, at each position (CTC).

  Graves et al. 2006, https://doi.org/10.1145/1143844.1143891, section 3.1.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, config.vocab, rngs)

  @with_auto_axes
  def __call__(  # type: ignore[override]
    self, inputs: Int[Array, 'B S'] | Float[Array, 'B S X'], **kwargs: Any
  ) -> tuple[Float[Array, 'B T N'], Int[Array, 'B T']]:
    """Return the logits and the segments of their positions; arguments as in the encoder."""
    states, segments = self.encoder.encode(inputs, **kwargs)
    return self.out(states), segments


class Embedding(nnx.Module):
  """An encoder that returns one vector of length 1, so that inner products are cosines."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)

  @with_auto_axes
  def __call__(
    self, inputs: Int[Array, 'B S'] | Float[Array, 'B S X'], **kwargs: Any
  ) -> Float[Array, 'B _']:
    """Return the pooled states, divided by their length; arguments as in the encoder."""
    pooled = self.encoder.encode_pooled(inputs, **kwargs).astype(jnp.float32)
    return pooled * jax.lax.rsqrt(jnp.maximum(jnp.sum(pooled**2, axis=-1, keepdims=True), 1e-12))


class DualEncoder(nnx.Module):
  """A text encoder and an image encoder with one embedding space, and their similarities.

  Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3 (CLIP); Zhai et al. 2023,
  https://arxiv.org/abs/2303.15343, algorithm 1 (SigLIP).
  """

  def __init__(self, config: DualConfig, rngs: nnx.Rngs):
    self.config = config
    self.text, self.image = Embedding(config.text, rngs), Embedding(config.image, rngs)
    self.scale = nnx.Param(jnp.asarray(math.log(1 / 0.07)))
    self.bias = nnx.Param(jnp.zeros(())) if config.bias else None

  @with_auto_axes
  def __call__(
    self,
    texts: Int[Array, 'B S'],
    images: Float[Array, 'C P X'],
    *,
    segments: Int[Array, 'B S'] | None = None,
  ) -> Float[Array, 'B C']:
    """Return e^scale cos(text, image) + bias for each text and each image.

    Args:
      texts: tokens.
      images: patches.
      segments: of the texts, 0 for padding; None: padding by `pad` or `end` of their config.
    """
    return self.similarities(self.text(texts, segments=segments), self.image(images))

  def similarities(
    self, texts: Float[Array, 'B D'], images: Float[Array, 'C D']
  ) -> Float[Array, 'B C']:
    """Return the logits for vectors of length 1, as from `text` and `image`."""
    logits = texts @ images.T * jnp.exp(self.scale[...])
    return logits if self.bias is None else logits + self.bias[...]


class AlignedEncoderDecoder(EncoderDecoder):
  """An encoder-decoder with CTC logits from its encoder's states: `align(states)` [B, T, N].

  Watanabe et al. 2017, https://doi.org/10.1109/JSTSP.2017.2763455, figure 1.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    self.align = Linear(config, config.width, config.vocab, rngs)
