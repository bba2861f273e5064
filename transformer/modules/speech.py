"""Text to speech: an encoder of tokens and a decoder of frames of a sound."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional.dropout import dropout
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.embeddings import Tokens
from transformer.modules.layers import Linear, split_key
from transformer.modules.stack import Memory, Stack


class Prenet(nnx.Module):
  """relu(relu(x W) V) O: the embedding of the previous frames, for the decoder.

  It is narrow and has much dropout, so that the decoder must attend to the text and cannot merely
  continue the frames. Wang et al. 2017, https://arxiv.org/abs/1703.10135, section 3.2; O, which
  centers the nonnegative values on zero, is from Li et al. 2019, section 3.3.

  Args:
    config: of the decoder.
    features: X, numbers in a step.
    rate: dropout rate, in training only. (Shen et al. 2018 also use dropout in synthesis.)
    rngs: for fresh parameters.
  """

  def __init__(self, config: ModelConfig, features: int, rate: float, rngs: nnx.Rngs):
    self.rate = rate
    self.hidden = Linear(config, features, config.width // 2, rngs)
    self.second = Linear(config, config.width // 2, config.width // 2, rngs)
    self.out = Linear(config, config.width // 2, config.width, rngs)

  def __call__(
    self, x: Float[Array, 'B T X'], key: Key[Array, ''] | None = None
  ) -> Float[Array, 'B T D']:
    for layer, layer_key in zip((self.hidden, self.second), split_key(key, 2), strict=True):
      x = dropout(jax.nn.relu(layer(x)), self.rate, layer_key)
    return self.out(x)


class Synthesizer(nnx.Module):
  """A Transformer whose decoder reads and writes frames instead of tokens.

  Li et al. 2019, https://arxiv.org/abs/1809.08895, without the convolutions at both ends; with
  several frames in a step, as in Wang et al. 2017, section 3.3.

  Args:
    config: of both stacks; `vocab` is that of the text.
    features: X, numbers in a step of the decoder.
    rngs: for fresh parameters.
    prenet_dropout: dropout rate of the Prenet.
  """

  def __init__(
    self, config: ModelConfig, features: int, rngs: nnx.Rngs, *, prenet_dropout: float = 0.5
  ):
    self.config = config
    self.embed = Tokens(config, rngs)
    self.encoder = Stack(config.encoder, rngs, causal=False, name='encoder')
    self.prenet = Prenet(config, features, prenet_dropout, rngs)
    self.decoder = Stack(config.decoder, rngs, causal=True, cross=True, name='decoder')
    self.out = Linear(config, config.width, features, rngs)
    self.stop = Linear(config, config.width, 1, rngs)

  def __call__(
    self,
    tokens: Int[Array, 'B S'],
    previous: Float[Array, 'B T X'],
    *,
    input_segments: Int[Array, 'B S'] | None = None,
    target_segments: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> tuple[Float[Array, 'B T X'], Float[Array, 'B T']]:
    """Return the frames of each step, and the logit that it is the last one (teacher forcing).

    Args:
      tokens: the text.
      previous: for each step the true frames of the previous step.
      input_segments, target_segments: 0 for padding; None if there is none.
      key: turns dropout on.
    """
    encoder_key, prenet_key, decoder_key = split_key(key, 3)
    memory = Memory(
      self.encoder(self.embed(tokens), input_segments, key=encoder_key).x, input_segments
    )
    x = self.prenet(previous, prenet_key)
    x = self.decoder(x, target_segments, memory=memory, key=decoder_key).x
    return self.out(x), self.stop(x)[..., 0]

  def encode(self, tokens: Int[Array, 'B S'], segments: Int[Array, 'B S']) -> Memory:
    """Return the encoded text, with the keys and values of cross-attention."""
    states = self.encoder(self.embed(tokens), segments).x
    return self.decoder.prepare(Memory(states, segments))

  def decode(
    self,
    previous: Float[Array, 'B T X'],
    memory: Memory,
    cache: Cache,
    segments: Int[Array, 'B T'],
  ) -> tuple[Float[Array, 'B T X'], Float[Array, 'B T'], Cache]:
    """Return the next frames, the logits that they are the last ones, and the new cache."""
    out = self.decoder(self.prenet(previous), segments, memory=memory, cache=cache)
    return self.out(out.x), self.stop(out.x)[..., 0], out.cache  # type: ignore[return-value]

  def init_cache(self, rows: int, capacity: int) -> Cache:
    """Return an empty cache for `rows` sounds of at most `capacity` steps."""
    return Cache.empty(self.decoder.config, rows, capacity)
