"""Text to the frames of a sound: an encoder of tokens, and a decoder that reads its own frames."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional.dropout import dropout
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.embeddings import Tokens
from transformer.modules.layers import Linear, split_key
from transformer.modules.model import Memory, Stack


class Prenet(nnx.Module):
  """relu(relu(x W) V) O: what the decoder sees of the frames before.

  Narrow and with much dropout, so that it cannot just go on as they went and has to ask the text.
  Wang et al. 2017, https://arxiv.org/abs/1703.10135, section 3.2; O is that of Li et al. 2019,
  section 3.3, and puts what was never negative around zero, as positions are.

  Args:
    config: of the decoder.
    features: numbers in a step.
    rate: of dropout, which is on where a key is given: in training, and not when frames are made.
      (Shen et al. 2018 leave it on to make them at random.)
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
  """The Transformer whose decoder reads and writes frames instead of tokens.

  Li et al. 2019, https://arxiv.org/abs/1809.08895, without the convolutions on both ends; several
  frames a step as in Wang et al. 2017, section 3.3.

  Args:
    config: of both stacks; `vocab` is that of the text.
    features: numbers in what the decoder reads and writes in a step.
    rngs: for fresh parameters.
    prenet_dropout: its rate.
  """

  def __init__(
    self, config: ModelConfig, features: int, rngs: nnx.Rngs, *, prenet_dropout: float = 0.5
  ):
    self.config = config
    self.embed = Tokens(config, rngs)
    length = config.source_length or config.length
    self.encoder = Stack(config, rngs, depth=config.depth, causal=False, cross=False, length=length)
    self.prenet = Prenet(config, features, prenet_dropout, rngs)
    depth = config.decoder_depth or config.depth
    self.decoder = Stack(config, rngs, depth=depth, causal=True, cross=True)
    self.out = Linear(config, config.width, features, rngs)
    self.stop = Linear(config, config.width, 1, rngs)

  def __call__(
    self,
    tokens: Int[Array, 'B S'],
    before: Float[Array, 'B T X'],
    *,
    input_segments: Int[Array, 'B S'],
    target_segments: Int[Array, 'B T'],
    key: Key[Array, ''] | None = None,
    capture: bool = False,
  ) -> tuple[Float[Array, 'B T X'], Float[Array, 'B T'], dict[str, Any]]:
    """Teacher forcing: every step's frames, and the logit that it is the last.

    Args:
      tokens: the text.
      before: what the decoder reads: the true frames, one step late.
      input_segments, target_segments: 0 is padding.
      key: turns dropout on.
      capture: also return what happens inside, `Output.layers` of 'encoder' and 'decoder'.
    """
    encoder_key, prenet_key, decoder_key = split_key(key, 3)
    encoder = self.encoder(self.embed(tokens), input_segments, key=encoder_key, capture=capture)
    decoder = self.decoder(
      self.prenet(before, prenet_key),
      target_segments,
      memory=Memory(encoder.x, input_segments),
      key=decoder_key,
      capture=capture,
    )
    inside = {'encoder': encoder.layers, 'decoder': decoder.layers}
    return self.out(decoder.x), self.stop(decoder.x)[..., 0], inside

  def encode(self, tokens: Int[Array, 'B S'], segments: Int[Array, 'B S']) -> Memory:
    """The text as the decoder sees it at every step."""
    states = self.encoder(self.embed(tokens), segments).x
    return self.decoder.prepare(Memory(states, segments))

  def decode(
    self,
    before: Float[Array, 'B T X'],
    memory: Memory,
    cache: Cache,
    segments: Int[Array, 'B T'],
  ) -> tuple[Float[Array, 'B T X'], Float[Array, 'B T'], Cache]:
    """The frames after those in the cache and `before`, the logits of the end, and the cache."""
    out = self.decoder(self.prenet(before), segments, memory=memory, cache=cache)
    return self.out(out.x), self.stop(out.x)[..., 0], out.cache  # type: ignore[return-value]

  def init_cache(self, rows: int, capacity: int) -> Cache:
    """An empty cache for `rows` sounds of at most `capacity` steps."""
    return Cache.empty(self.config, self.decoder.depth, rows, capacity)
