"""What an encoder says besides its states: tokens, a class, a span, a transcript, one vector."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional.dropout import dropout
from transformer.modules.config import ModelConfig
from transformer.modules.embeddings import Tokens
from transformer.modules.layers import ACTIVATIONS, Linear, Norm, split_key
from transformer.modules.model import Encoder, EncoderDecoder


class MaskedTokens(nnx.Module):
  """Logits of the token at each position, read through the encoder's own embedding.

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1 and its published code.

  Args:
    config: of the encoder.
    rngs: for fresh parameters.
    next_sentence: whether it is also told if two sentences follow each other.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, next_sentence: bool = False):
    self.config = config
    self.encoder = Encoder(config, rngs)
    self.hidden = Linear(config, config.width, config.width, rngs)
    self.norm = Norm(config)
    self.next_sentence = Linear(config, config.width, 2, rngs) if next_sentence else None

  def __call__(self, tokens: Int[Array, 'B T'], **how: Any) -> Float[Array, 'B T N']:
    """The logits; arguments as of the encoder."""
    return self.readout.attend(self.states(tokens, **how))

  def states(self, tokens: Int[Array, 'B T'], **how: Any) -> Float[Array, 'B T D']:
    """What the logits are read from."""
    return self.transform(self.encoder(tokens, **how))

  def transform(self, states: Float[Array, '*B D']) -> Float[Array, '*B D']:
    """norm(activation(x W + b)) of the encoder's states: all of them, or those that are masked."""
    return self.norm(ACTIVATIONS[self.config.activation](self.hidden(states)))

  @property
  def readout(self) -> Tokens:
    """The table that logits are read with."""
    return self.encoder.embed


class Classifier(nnx.Module):
  """Logits of C classes from the encoder's summary of a row."""

  def __init__(self, config: ModelConfig, classes: int, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)
    self.out = Linear(config, config.width, classes, rngs)

  def __call__(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    *,
    key: Key[Array, ''] | None = None,
    **how: Any,
  ) -> Float[Array, 'B C']:
    """The logits; arguments as of the encoder."""
    encoder_key, summary_key = split_key(key, 2)
    summary = self.encoder.summarize(inputs, key=encoder_key, **how)
    return self.out(dropout(summary, self.config.dropout, summary_key))


class Spans(nnx.Module):
  """Logits of where an answer starts and where it ends: two numbers for each position.

  Devlin et al. 2019, section 4.2.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)
    self.out = Linear(config, config.width, 2, rngs)

  def __call__(self, tokens: Int[Array, 'B T'], **how: Any) -> Float[Array, 'B T 2']:
    """The logits of starts [..., 0] and ends [..., 1]; arguments as of the encoder."""
    return self.out(self.encoder(tokens, **how))


class Transcriber(nnx.Module):
  """Logits of the token that each position says, or that it says none: the blank is a token, too.

  Graves et al. 2006, https://doi.org/10.1145/1143844.1143891, section 3.1.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)
    self.out = Linear(config, config.width, config.vocab, rngs)

  def __call__(
    self, inputs: Int[Array, 'B S'] | Float[Array, 'B S X'], **how: Any
  ) -> tuple[Float[Array, 'B T N'], Int[Array, 'B T']]:
    """The logits, and the segments of their positions; arguments as of the encoder."""
    states, segments = self.encoder.encode(inputs, **how)
    return self.out(states), segments


class Embedding(nnx.Module):
  """A text, image or sound as one vector of length 1, so that products are cosines."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs)

  def __call__(
    self, inputs: Int[Array, 'B S'] | Float[Array, 'B S X'], **how: Any
  ) -> Float[Array, 'B D']:
    """The encoder's summaries, divided by their length; arguments as of the encoder."""
    summary = self.encoder.summarize(inputs, **how).astype(jnp.float32)
    return summary * jax.lax.rsqrt(jnp.maximum(jnp.sum(summary**2, axis=-1, keepdims=True), 1e-12))


class AlignedEncoderDecoder(EncoderDecoder):
  """An encoder and decoder of which the encoder says, too, what is said: `align(states)` [B, T, N].

  Watanabe et al. 2017, https://doi.org/10.1109/JSTSP.2017.2763455, figure 1.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    self.align = Linear(config, config.width, config.vocab, rngs)
