"""Encoder, Decoder and EncoderDecoder."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional.activations import ACTIVATIONS
from transformer.functional.meshes import with_auto_axes
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.embeddings import Frames, Patches, Tokens, TokenTypes
from transformer.modules.layers import Linear, Norm, split_key
from transformer.modules.probe import Probe
from transformer.modules.stack import Memory, Output, Stack

__all__ = ['Decoder', 'Encoder', 'EncoderDecoder', 'Memory', 'Output', 'Stack', 'functionalize']


class Encoder(nnx.Module):
  """An encoder: inputs to states; every position attends to every other (BERT, ViT).

  Args:
    config: the architecture.
    rngs: for fresh parameters.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.embed = _embedding(config, rngs, lm_head=config.tie in ('output', 'all'))
    self.token_types = TokenTypes(config, rngs) if config.token_types else None
    self.stack = Stack(config, rngs, causal=config.causal)
    self.pooler: Any = _pooler(config, rngs)
    self.pooler_norm = Norm(config) if config.pooler_norm else None
    size = config.pooled_size
    self.projection = Linear(config, config.width, size, rngs) if size else None

  @with_auto_axes
  def __call__(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    *,
    segments: Int[Array, 'B S'] | None = None,
    token_types: Int[Array, 'B S'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T D']:
    """Return the state of each position.

    Args:
      inputs: tokens, patches or frames. T is S for tokens, S + `class_tokens` for patches without a
        stem, and (S + 1) // 2 for frames.
      segments: number of the packed example of each position, 0 for padding. None: one example in
        each row; tokens equal to `config.pad`, or after `config.end`, are padding.
      token_types: type of each token; 0 if None.
      key: turns dropout on.
    """
    return self.encode(inputs, segments, token_types, key)[0]

  @with_auto_axes
  def encode(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    segments: Int[Array, 'B S'] | None = None,
    token_types: Int[Array, 'B S'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> tuple[Float[Array, 'B T D'], Int[Array, 'B T']]:
    """Return the states and their segments; arguments as in a call."""
    x, segments = _embed(self.embed, self.stack, inputs, segments)
    if self.token_types is not None:
      types = jnp.zeros(x.shape[:2], jnp.int32) if token_types is None else token_types
      x += self.token_types(types)
    states = self.stack(x, segments, key=key).x
    return states, jnp.ones(x.shape[:2], jnp.int32) if segments is None else segments

  @with_auto_axes
  def encode_pooled(
    self, inputs: Int[Array, 'B S'] | Float[Array, 'B S X'], **kwargs: Any
  ) -> Float[Array, 'B _']:
    """Return one vector for each row, by `config.pooling`; arguments as in a call."""
    return self.pool(*self.encode(inputs, **kwargs))

  def pool(self, states: Float[Array, 'B T D'], segments: Int[Array, 'B T']) -> Float[Array, 'B _']:
    """Return one vector for the states of each row, by `config.pooling`, without padding."""
    pooled = self._pool(states, segments != 0)
    return pooled if self.projection is None else self.projection(pooled)

  def _pool(self, states, real):
    pooling, row = self.config.pooling, jnp.arange(states.shape[0])
    if pooling == 'probe':
      return self.pooler(states, real)
    if pooling == 'attention':
      scores = self.pooler(states)[..., 0].astype(jnp.float32)
      weights = jax.nn.softmax(jnp.where(real, scores, jnp.finfo(jnp.float32).min), axis=1)
      return jnp.einsum('bt,btd->bd', weights, states)
    if pooling == 'last':
      return states[row, real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)]
    if pooling == 'mean':
      return _mean(states, real)
    first = jnp.argmax(real, axis=1)
    if pooling == 'first_and_mean':
      others = _mean(states, real & (jnp.arange(real.shape[1])[None] != first[:, None]))
      return jnp.concatenate([states[row, first], others], axis=-1)
    pooled = _mean(states, real) if pooling == 'mean_pooler' else states[row, first]
    if self.pooler is None:
      return pooled
    pooled = ACTIVATIONS[self.config.pooler_activation](self.pooler(pooled))
    return pooled if self.pooler_norm is None else self.pooler_norm(pooled)


class Decoder(nnx.Module):
  """A decoder: tokens to logits of the next token; positions attend to earlier ones (GPT).

  Args:
    config: the architecture.
    rngs: for fresh parameters.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    tied = config.tie in ('output', 'all')
    self.embed = Tokens(config, rngs, lm_head=tied)
    self.stack = Stack(config, rngs, causal=True)
    self.output = None if tied else Tokens(config, rngs, lm_head=True)

  @with_auto_axes
  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    *,
    segments: Int[Array, 'B T'] | None = None,
    cache: Cache | None = None,
    key: Key[Array, ''] | None = None,
  ):
    """Return logits [B, T, N]; with a cache, (logits, new cache) for T tokens after those in it.

    Args:
      tokens: with padding on either side, if any.
      segments: number of the packed example of each token, 0 for padding. None: one example in each
        row; tokens equal to `config.pad` are padding.
      cache: from `init_cache` or an earlier call.
      key: turns dropout on.
    """
    out = self.stack(*_embed(self.embed, self.stack, tokens, segments), cache=cache, key=key)
    logits = self.lm_head.attend(out.x)
    return logits if cache is None else (logits, out.cache)

  @with_auto_axes
  def states(
    self,
    tokens: Int[Array, 'B T'],
    *,
    segments: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T D']:
    """Return the states before the logits; arguments as in a call."""
    return self.outputs(tokens, segments=segments, key=key).x

  @with_auto_axes
  def outputs(
    self,
    tokens: Int[Array, 'B T'],
    *,
    segments: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Output:
    """Return the states before the logits, and auxiliary losses; arguments as in a call."""
    return self.stack(*_embed(self.embed, self.stack, tokens, segments), key=key)

  @property
  def lm_head(self) -> Tokens:
    """The token table that computes the logits."""
    return self.output or self.embed

  def init_cache(self, rows: int, capacity: int, *, beams: int = 1) -> Cache:
    """Return an empty cache for `rows` texts of at most `capacity` tokens.

    `beams` neighboring rows share the slots of one prompt.
    """
    return Cache.empty(self.config, rows, capacity, beams)


class EncoderDecoder(nnx.Module):
  """The Transformer of Vaswani et al. 2017: inputs and targets to logits of the next target.

  Args:
    config: the architecture.
    rngs: for fresh parameters.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    # a tied table is stored once, so that each weight has one path
    tied, shared = config.tie in ('output', 'all'), config.tie in ('inputs', 'all')
    self.embed = Tokens(config, rngs, lm_head=tied)  # of the decoder
    self.input_embed = None if shared else _embedding(config, rngs)
    self.output = None if tied else Tokens(config, rngs, lm_head=True)
    self.encoder = Stack(config.encoder, rngs, causal=False, name='encoder')
    self.decoder = Stack(config.decoder, rngs, causal=True, cross=True, name='decoder')

  @with_auto_axes
  def __call__(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    targets: Int[Array, 'B T'],
    *,
    input_segments: Int[Array, 'B S'] | None = None,
    target_segments: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T N']:
    """Return the logits of the token after each of `targets` (teacher forcing).

    For a loss `Tokens.cross_entropy` of `states` needs less memory.

    Args:
      inputs: source tokens, patches or frames.
      targets: the true targets, shifted right by a start token.
      input_segments, target_segments: number of the packed example of each position, 0 for padding;
        a target attends only to inputs of its own segment. None: one example in each row; inputs
        equal to `config.pad` are padding. Padding of targets must be on the right.
      key: turns dropout on.
    """
    segments = dict(input_segments=input_segments, target_segments=target_segments)
    return self.lm_head.attend(self.states(inputs, targets, **segments, key=key))

  @with_auto_axes
  def states(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    targets: Int[Array, 'B T'],
    *,
    input_segments: Int[Array, 'B S'] | None = None,
    target_segments: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T D']:
    """Return the states before the logits; arguments as in a call."""
    encoder_key, decoder_key = split_key(key, 2)
    memory = self.encode(inputs, segments=input_segments, key=encoder_key)
    return self.decoder(self.embed(targets), target_segments, memory=memory, key=decoder_key).x

  @property
  def lm_head(self) -> Tokens:
    """The token table that computes the logits."""
    return self.output or self.embed

  @with_auto_axes
  def encode(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    *,
    segments: Int[Array, 'B S'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Memory:
    """Return the encoded inputs, for cross-attention; arguments as in `Encoder`."""
    x, segments = _embed(self.input_embed or self.embed, self.encoder, inputs, segments)
    return Memory(self.encoder(x, segments, key=key).x, segments)

  @with_auto_axes
  def decode(
    self,
    targets: Int[Array, 'B T'],
    memory: Memory,
    *,
    segments: Int[Array, 'B T'] | None = None,
    cache: Cache | None = None,
    key: Key[Array, ''] | None = None,
  ):
    """Return logits [B, T, N]; with a cache, (logits, new cache).

    Targets may have a multiple of the memory's rows: neighboring rows then share one of its rows.

    Args:
      targets: tokens, after those in the cache.
      memory: from `encode`.
      segments: 0 for padding; None if there is none.
      cache: from `init_cache` or an earlier call.
      key: turns dropout on.
    """
    out = self.decoder(self.embed(targets), segments, memory=memory, cache=cache, key=key)
    logits = self.lm_head.attend(out.x)
    return logits if cache is None else (logits, out.cache)

  def init_cache(self, rows: int, capacity: int, *, beams: int = 1) -> Cache:
    """Return an empty cache for `rows` targets of at most `capacity` tokens.

    `beams` neighboring rows share the slots of one sentence.
    """
    return Cache.empty(self.decoder.config, rows, capacity, beams)


def functionalize(model: nnx.Module, method: str = '__call__') -> tuple[Callable, Any]:
  """Return (apply, params): a method of the model as a pure function of its parameters.

  Args:
    model: any module.
    method: the name of the method that `apply` calls, such as 'states' or 'decode'.

  Returns:
    `apply(params, *args, **kwargs)`, with the signature and docstring of the method, and params, a
    nested dict of arrays as `jax.grad`, Optax and Linen modules take it.

  Raises:
    AttributeError: the model has no such method.

  >>> model = Decoder(ModelConfig(vocab=5, width=8, heads=2, depth=1), nnx.Rngs(0))
  >>> apply, params = functionalize(model)
  >>> apply(params, jnp.array([[1, 2]])).shape
  (1, 2, 5)
  """
  function = getattr(type(model), method)
  graph, state = nnx.split(model)

  def apply(params, *args, **kwargs):
    return function(nnx.merge(graph, nnx.State(params)), *args, **kwargs)

  signature = inspect.signature(function)
  _, *parameters = signature.parameters.values()
  first = inspect.Parameter('params', inspect.Parameter.POSITIONAL_ONLY)
  apply.__signature__ = signature.replace(parameters=[first, *parameters])  # type: ignore[attr-defined]
  apply.__doc__ = function.__doc__
  return apply, nnx.to_pure_dict(state)


def _pooler(config, rngs):
  if config.pooling == 'probe':
    return Probe(config, rngs)
  sizes = {'pooler': config.width, 'mean_pooler': config.width, 'attention': 1}
  size = sizes.get(config.pooling)
  return Linear(config, config.width, size, rngs) if size else None


def _mean(states, real):
  total = jnp.sum(jnp.where(real[..., None], states, 0), axis=1)
  return total / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)


def _embedding(config: ModelConfig, rngs: nnx.Rngs, *, lm_head: bool = False):
  """Return the embedding module for the inputs of an encoder."""
  if config.modality == 'tokens':
    return Tokens(config, rngs, lm_head=lm_head)
  return {'patches': Patches, 'frames': Frames}[config.modality](config, rngs)


def _embed(embed: Tokens | Patches | Frames, stack: Stack, inputs, segments):
  """Return (the embedded inputs, their segments or None if nothing is packed or padded)."""
  if not isinstance(embed, Tokens):
    return embed(inputs, segments)
  if segments is None:
    stack.positions.check(inputs.shape[1])
    if (pad := embed.config.pad) >= 0:
      segments = (inputs != pad).astype(jnp.int32)
    elif (end := embed.config.end) >= 0:
      ended = (inputs == end).astype(jnp.int32)
      segments = (jnp.cumsum(ended, axis=1) == ended).astype(jnp.int32)  # up to the first end
  return embed(inputs), segments
