"""Models with a head on an encoder: masked tokens, classes, answer spans, CTC, one vector."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional.activations import ACTIVATIONS
from transformer.functional.dropout import dropout
from transformer.functional.meshes import with_auto_axes
from transformer.modules.config import ModelConfig
from transformer.modules.embeddings import Tokens
from transformer.modules.layers import Linear, Norm, split_key
from transformer.modules.model import Encoder, EncoderDecoder


class MaskedTokens(nnx.Module):
  """An encoder with logits of the token at each position, by its own embedding if tied (BERT).

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1 and its published code.

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
    """Return the states that the logits are computed from, of the size of the embeddings."""
    return self.transform(self.encoder(tokens, **kwargs))

  def transform(self, states: Float[Array, '*B D']) -> Float[Array, '*B _']:
    """Return norm(activation(x W + b)) of the encoder's states, all of them or some."""
    return self.norm(ACTIVATIONS[self.config.activation](self.hidden(states)))

  @property
  def lm_head(self) -> Tokens:
    """The table that gives the logits."""
    return self.output or self.encoder.embed


class Classifier(nnx.Module):
  """An encoder with logits of C classes from the pooled states of a row."""

  def __init__(self, config: ModelConfig, classes: int, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)
    self.out = Linear(config, config.width, classes, rngs)

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
  """An encoder with the logit that a token was replaced, at each position (ELECTRA).

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
  """Logits of where an answer starts, [..., 0], and ends, [..., 1].

  Devlin et al. 2019, section 4.2.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, 2, rngs)


class Transcriber(TokenClassifier):
  """Logits of the token at each position, or of the blank (CTC).

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
  """A text, image or sound as one vector of length 1, so that inner products are cosines."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)

  @with_auto_axes
  def __call__(
    self, inputs: Int[Array, 'B S'] | Float[Array, 'B S X'], **kwargs: Any
  ) -> Float[Array, 'B D']:
    """Return the pooled states, divided by their length; arguments as in the encoder."""
    pooled = self.encoder.encode_pooled(inputs, **kwargs).astype(jnp.float32)
    return pooled * jax.lax.rsqrt(jnp.maximum(jnp.sum(pooled**2, axis=-1, keepdims=True), 1e-12))


class AlignedEncoderDecoder(EncoderDecoder):
  """An encoder-decoder whose encoder also gives logits for CTC: `align(states)` [B, T, N].

  Watanabe et al. 2017, https://doi.org/10.1109/JSTSP.2017.2763455, figure 1.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    self.align = Linear(config, config.width, config.vocab, rngs)
