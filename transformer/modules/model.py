"""Encoder, Decoder and EncoderDecoder: stacks of Blocks, run by one scan."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional import masks
from transformer.functional.masks import AttentionMask
from transformer.functional.positions import alibi_bias, from_segments, relative_buckets
from transformer.modules.cache import Cache, LayerCache, dtype_of
from transformer.modules.config import ModelConfig
from transformer.modules.embeddings import Frames, Patches, Positions, Tokens, Types
from transformer.modules.layers import Block, Linear, Norm, View, dropout, split_key

RELATIVE_BUCKETS, RELATIVE_DISTANCE = 32, 128  # Raffel et al. 2020, section 2.1


class Memory(NamedTuple):
  """What a decoder cross-attends to.

  Attributes:
    states: the encoder's output.
    segments: as for any tokens: 0 is padding, packed examples see only their own; None if nothing
      is packed or padded.
    keys_values: of every layer [L, B, G, S, K], 0 at padding, if they were made in advance: in
      decoding the same memory is read at every step.
  """

  states: Float[Array, 'B S D']
  segments: Int[Array, 'B S'] | None = None
  keys_values: tuple[Array, Array] | None = None


class Output(NamedTuple):
  """What a stack returns.

  Attributes:
    x: the states of the last layer.
    cache: the cache given, filled further; None if none was given.
    layers: with capture, of every layer: 'states' [L, B, T, D] and the attention weights 'self'
      [L, B, H, T, S] and 'cross'; None otherwise.
  """

  x: Float[Array, 'B T D']
  cache: Cache | None
  layers: dict[str, Array] | None


class Stack(nnx.Module):
  """The Blocks of an encoder or decoder: one Block whose parameters have a leading layer axis."""

  def __init__(
    self,
    config: ModelConfig,
    rngs: nnx.Rngs,
    *,
    depth: int,
    causal: bool,
    cross: bool,
    length: int | None = None,
  ):
    self.config, self.depth, self.causal = config, depth, causal
    self.positions = Positions(config, rngs, length=length or config.length)
    if config.position == 'relative':
      shape = (RELATIVE_BUCKETS, config.heads)
      self.relative = nnx.Param(config.width**-0.5 * jax.random.normal(rngs.params(), shape))
    self.blocks = jax.vmap(lambda key: Block(config, nnx.Rngs(key), cross=cross))(
      jax.random.split(rngs.params(), depth)
    )
    self.embedding_norm = Norm(config) if config.norm_embedding else None
    self.norm = Norm(config) if config.prenorm else None

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    segments: Int[Array, 'B T'] | None = None,
    *,
    memory: Memory | None = None,
    cache: Cache | None = None,
    key: Key[Array, ''] | None = None,
    capture: bool = False,
  ) -> Output:
    """Runs all layers on embedded inputs.

    Args:
      x: embeddings without positions.
      segments: which packed example each position belongs to, 0 for padding; None if nothing is
        packed or padded.
      memory: what to cross-attend to.
      cache: what was seen before; the new positions are added to it.
      key: turns dropout on.
      capture: also return every layer's states and attention weights.
    """
    start, cross = None, None
    if cache is None:
      if segments is None:
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
      else:
        positions = from_segments(segments)
      view = self._view(positions, positions, segments)
    else:
      if segments is None:
        segments = jnp.ones(x.shape[:2], jnp.int32)
      positions, start = cache.next_positions(segments), cache.length
      cache = cache.extend(segments, positions)
      view = self._view(positions, cache.positions, segments, cache)
    if memory is not None:
      cross = View(positions, _cross_mask(segments, memory, x.shape[:2]))

    def layer(carry, xs):
      x, (kv, *others) = carry
      block, keys_values, key = xs
      if kv is not None:
        # else XLA cuts the layers out of the stack at every step of a search, and not once before
        block, keys_values = jax.tree.map(jax.lax.optimization_barrier, (block, keys_values))
      seen = None if memory is None else (keys_values or memory.states, cross)
      of_layer = None if kv is None else LayerCache(*kv, start, segments != 0)
      x, of_layer, maps = block(x, view, seen, of_layer, key=key, weights=capture)
      kv = None if kv is None else (of_layer.k, of_layer.v)
      # each layer takes the first cache and puts it last, so that in the end they stand as before
      return (x, (*others, kv)), dict(maps, states=x) if capture else None

    embedding_key, *_ = keys = split_key(key, 1 + self.depth)
    x = self.positions(x, positions)
    if self.embedding_norm is not None:
      x = self.embedding_norm(x)
    x = dropout(x, self.config.dropout, embedding_key)
    keys_values = None if memory is None else memory.keys_values
    layer_keys = None if key is None else keys[1:]
    (x, kv), layers = jax.lax.scan(
      _rematerialized(layer, self.config),
      (x, (None,) if cache is None else tuple(zip(cache.k, cache.v, strict=True))),
      (self.blocks, keys_values, layer_keys),
      unroll=self.depth if cache is not None else self.config.unroll or self.depth,
    )
    if self.norm is not None:
      x = self.norm(x)
    if cache is not None:
      k, v = zip(*kv, strict=True)
      cache = cache._replace(k=k, v=v)
      x = jnp.where(cache.overflows, jnp.nan, x)
    return Output(x, cache, layers)

  def prepare(self, memory: Memory) -> Memory:
    """The memory with the cross-attention keys and values of every layer made in advance."""
    keys_values = jax.vmap(lambda block: block.cross.keys_values(memory.states))(self.blocks)
    k, v = (x.swapaxes(2, 3) for x in keys_values)
    if memory.segments is not None:
      k, v = (jnp.where((memory.segments != 0)[:, None, :, None], x, 0) for x in (k, v))
    k, v = (x.astype(dtype_of(self.config)) for x in (k, v))
    return memory._replace(keys_values=(k.mT, v))

  def _view(self, q_positions, k_positions, segments, cache=None) -> View:
    """What self-attention may see.

    Without a cache the positions of a segment are as far apart as its columns, so that the mask may
    count columns, which kernels understand.
    """
    mask, positions = AttentionMask(), cache and (q_positions, k_positions)
    if segments is not None:
      mask = masks.segments(segments, segments if cache is None else cache.segments)
    if self.causal:
      mask &= masks.causal(positions=positions)
    if self.config.window:
      mask &= masks.sliding_window(self.config.window, positions=positions)
    bias, beams = None, cache.beams if cache else 1
    T, S = q_positions.shape[1], k_positions.shape[1]
    if self.config.position == 'relative':
      buckets = relative_buckets(
        q_positions,
        k_positions,
        causal=self.causal,
        buckets=RELATIVE_BUCKETS,
        max_distance=RELATIVE_DISTANCE,
      )
      bias = self.relative[...][buckets].transpose(0, 3, 1, 2)
    if self.config.position == 'alibi':
      bias = alibi_bias(q_positions, k_positions, self.config.heads)
    if beams > 1:  # the queries of all beams of a sentence stand side by side
      mask = AttentionMask(explicit=_side_by_side(mask.dense(T, S), beams))
      bias = None if bias is None else _side_by_side(bias, beams)
    return View(q_positions, mask.with_array(beams * T, S), bias)


class Encoder(nnx.Module):
  """Inputs to states, every position seeing every other (BERT- and ViT-shaped)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.embed = _embedding(config, rngs, reads=True)
    self.types = Types(config, rngs) if config.types else None
    self.stack = Stack(config, rngs, depth=config.depth, causal=False, cross=False)
    pooled = {'pooler': config.width, 'attention': 1}.get(config.summary)
    self.pooler = Linear(config, config.width, pooled, rngs) if pooled else None

  def __call__(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    *,
    segments: Int[Array, 'B S'] | None = None,
    types: Int[Array, 'B S'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T D']:
    """The states of each position.

    Args:
      inputs: tokens, patches or frames. Of patches T is S + 1, of frames half of S.
      segments: 0 is padding. None: tokens are padded with `config.pad`, if the model has one, and
        every patch and frame is real.
      types: of tokens; 0 if not given.
      key: turns dropout on.
    """
    return self.encode(inputs, segments, types, key)[0]

  def summarize(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    *,
    segments: Int[Array, 'B S'] | None = None,
    types: Int[Array, 'B S'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B D']:
    """One vector for each row, as `config.summary` says; arguments as in a call."""
    return self.summary(*self.encode(inputs, segments, types, key))

  def summary(
    self, states: Float[Array, 'B T D'], segments: Int[Array, 'B T']
  ) -> Float[Array, 'B D']:
    """What `summarize` makes of the states of positions that are not padding."""
    real = segments != 0
    if self.config.summary == 'mean':
      total = jnp.sum(jnp.where(real[..., None], states, 0), axis=1)
      return total / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    first = states[jnp.arange(len(states)), jnp.argmax(real, axis=1)]
    if self.pooler is None:
      return first
    if self.config.summary == 'attention':
      scores = self.pooler(states)[..., 0].astype(jnp.float32)
      weights = jax.nn.softmax(jnp.where(real, scores, jnp.finfo(jnp.float32).min), axis=1)
      return jnp.einsum('bt,btd->bd', weights, states)
    return jnp.tanh(self.pooler(first))

  @jax.jit
  def capture(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    segments: Int[Array, 'B S'] | None = None,
    types: Int[Array, 'B S'] | None = None,
  ) -> dict[str, Array] | None:
    """What happens inside: `Output.layers`; arguments as in a call."""
    return self.stack(*self._embedded(inputs, segments, types), capture=True).layers

  def encode(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    segments: Int[Array, 'B S'] | None = None,
    types: Int[Array, 'B S'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> tuple[Float[Array, 'B T D'], Int[Array, 'B T']]:
    """The states, and the segments of their positions; arguments as in a call."""
    x, segments = self._embedded(inputs, segments, types)
    states = self.stack(x, segments, key=key).x
    return states, jnp.ones(x.shape[:2], jnp.int32) if segments is None else segments

  def _embedded(self, inputs, segments, types):
    x, segments = _embed(self.embed, inputs, segments)
    if self.types is not None:
      x += self.types(jnp.zeros(x.shape[:2], jnp.int32) if types is None else types)
    return x, segments


class Decoder(nnx.Module):
  """Tokens to logits of the next token, each position seeing those before it (GPT-shaped)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    tied = config.tie in ('output', 'all')
    self.embed = Tokens(config, rngs, reads=tied)
    self.stack = Stack(config, rngs, depth=config.depth, causal=True, cross=False)
    self.output = None if tied else Tokens(config, rngs, reads=True)

  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    *,
    segments: Int[Array, 'B T'] | None = None,
    cache: Cache | None = None,
    key: Key[Array, ''] | None = None,
  ):
    """Logits [B, T, N]; with a cache, (logits, cache): T tokens after those already in it.

    Args:
      tokens: with padding on either side, if any.
      segments: which packed example each token belongs to, 0 for padding. None: one example a row,
        whose padding is `config.pad`, if the model has one.
      cache: from `init_cache` or the call before.
      key: turns dropout on.
    """
    out = self.stack(
      self.embed(tokens), _segments(tokens, segments, self.config), cache=cache, key=key
    )
    logits = self.readout.attend(out.x)
    return logits if cache is None else (logits, out.cache)

  def states(
    self,
    tokens: Int[Array, 'B T'],
    *,
    segments: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T D']:
    """What the logits are read from; arguments as in a call."""
    return self.stack(self.embed(tokens), _segments(tokens, segments, self.config), key=key).x

  @jax.jit
  def capture(
    self, tokens: Int[Array, 'B T'], segments: Int[Array, 'B T'] | None = None
  ) -> dict[str, Array] | None:
    """What happens inside: `Output.layers`."""
    return self.stack(
      self.embed(tokens), _segments(tokens, segments, self.config), capture=True
    ).layers

  @property
  def readout(self) -> Tokens:
    """The table that logits are read with."""
    return self.output or self.embed

  def init_cache(self, rows: int, capacity: int, *, beams: int = 1) -> Cache:
    """An empty cache for `rows` texts of at most `capacity` tokens, `beams` rows a prompt."""
    return Cache.empty(self.config, self.config.depth, rows, capacity, beams)


class EncoderDecoder(nnx.Module):
  """Inputs to target logits: the Transformer of Vaswani et al. 2017."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    depth = config.decoder_depth or config.depth
    # a table is never stored twice: what is tied is used through the one that is stored
    tied, shared = config.tie in ('output', 'all'), config.tie in ('inputs', 'all')
    self.embed = Tokens(config, rngs, reads=tied)  # of the decoder
    self.input_embed = None if shared else _embedding(config, rngs)
    self.output = None if tied else Tokens(config, rngs, reads=True)
    length = config.source_length or config.length
    self.encoder = Stack(config, rngs, depth=config.depth, causal=False, cross=False, length=length)
    self.decoder = Stack(config, rngs, depth=depth, causal=True, cross=True)

  def __call__(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    targets: Int[Array, 'B T'],
    *,
    input_segments: Int[Array, 'B S'] | None = None,
    target_segments: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T N']:
    """Teacher forcing: the logits of the token after each of `targets`, all at once.

    They are `readout.attend(states(...))`; a loss can do without them (`Tokens.cross_entropy`).

    Args:
      inputs: source tokens, patches or frames.
      targets: what the decoder reads: the true targets, shifted right by a start token.
      input_segments, target_segments: which packed example each position belongs to, 0 for padding.
        None: one example a row; that of inputs is padded with `config.pad`, if the model has one,
        and targets on the right, where no earlier one sees it. A packed target sees only the inputs
        of its own segment.
      key: turns dropout on.
    """
    segments = dict(input_segments=input_segments, target_segments=target_segments)
    return self.readout.attend(self.states(inputs, targets, **segments, key=key))

  def states(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    targets: Int[Array, 'B T'],
    *,
    input_segments: Int[Array, 'B S'] | None = None,
    target_segments: Int[Array, 'B T'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T D']:
    """What the logits are read from; arguments as in a call."""
    encoder_key, decoder_key = split_key(key, 2)
    memory = self.encode(inputs, segments=input_segments, key=encoder_key)
    return self.decoder(self.embed(targets), target_segments, memory=memory, key=decoder_key).x

  @property
  def readout(self) -> Tokens:
    """The table that logits are read with."""
    return self.output or self.embed

  def encode(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    *,
    segments: Int[Array, 'B S'] | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Memory:
    """The inputs as the decoder sees them."""
    x, segments = _embed(self.input_embed or self.embed, inputs, segments)
    return Memory(self.encoder(x, segments, key=key).x, segments)

  def decode(
    self,
    targets: Int[Array, 'B T'],
    memory: Memory,
    *,
    segments: Int[Array, 'B T'] | None = None,
    cache: Cache | None = None,
    key: Key[Array, ''] | None = None,
  ):
    """Logits [B, T, N]; with a cache, (logits, cache).

    The rows of targets may be a multiple of those of the memory: neighbours share a sentence.
    """
    out = self.decoder(self.embed(targets), segments, memory=memory, cache=cache, key=key)
    logits = self.readout.attend(out.x)
    return logits if cache is None else (logits, out.cache)

  def init_cache(self, rows: int, capacity: int, *, beams: int = 1) -> Cache:
    """An empty cache for `rows` targets of at most `capacity` tokens, `beams` rows a sentence."""
    return Cache.empty(self.config, self.decoder.depth, rows, capacity, beams)

  @jax.jit
  def capture(
    self,
    inputs: Int[Array, 'B S'] | Float[Array, 'B S X'],
    targets: Int[Array, 'B T'],
    *,
    input_segments: Int[Array, 'B S'] | None = None,
    target_segments: Int[Array, 'B T'] | None = None,
  ) -> dict[str, Any]:
    """What happens inside the teacher-forced pass: `Output.layers` of 'encoder' and 'decoder'."""
    x, input_segments = _embed(self.input_embed or self.embed, inputs, input_segments)
    encoder = self.encoder(x, input_segments, capture=True)
    decoder = self.decoder(
      self.embed(targets),
      target_segments,
      memory=Memory(encoder.x, input_segments),
      capture=True,
    )
    return {'encoder': encoder.layers, 'decoder': decoder.layers}


def functionalize(model: nnx.Module, method: str = '__call__') -> tuple[Callable, Any]:
  """Return (apply, params): a method of the model as a pure function of its parameters.

  Args:
    model: any module.
    method: the name of the method that `apply` calls, such as 'states' or 'decode'.

  Returns:
    `apply(params, *args, **kwargs)`, with the signature and docstring of the method, and params, a
    nested dict of arrays: what `jax.grad`, Optax or a Linen module takes.

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


def _side_by_side(x, beams):
  """[B, H, T, S] as [B/W, H, W T, S]."""
  B, H, T, S = x.shape
  return x.reshape(B // beams, beams, H, T, S).swapaxes(1, 2).reshape(-1, H, beams * T, S)


def _cross_mask(segments, memory: Memory, shape) -> AttentionMask:
  """What targets may see of a memory, whose rows several neighbouring rows of targets may share."""
  C, S, _ = memory.states.shape
  if segments is None and memory.segments is None:
    return AttentionMask()
  q = jnp.ones(shape, jnp.int32) if segments is None else segments
  k = jnp.ones((C, S), jnp.int32) if memory.segments is None else memory.segments
  q = q.reshape(C, -1)
  return masks.segments(q, k).with_array(q.shape[1], S)


def _embedding(config: ModelConfig, rngs: nnx.Rngs, *, reads: bool = False):
  """What makes vectors of an encoder's inputs."""
  if config.inputs == 'tokens':
    return Tokens(config, rngs, reads=reads)
  return {'patches': Patches, 'frames': Frames}[config.inputs](config, rngs)


def _embed(embed: Tokens | Patches | Frames, inputs, segments):
  """The inputs as vectors, and which of these belong together."""
  if isinstance(embed, Tokens):
    return embed(inputs), _segments(inputs, segments, embed.config)
  return embed(inputs, segments)


def _rematerialized(layer, config: ModelConfig):
  """The layer, storing of its insides what config.remat says."""
  if config.remat == 'none':
    return layer
  products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

  def policy(primitive, *avals, **how):
    # cuDNN's attention is one primitive, and as dear as a product
    return products(primitive, *avals, **how) or 'dot_product_attention' in primitive.name

  return jax.checkpoint(
    layer,
    policy=policy if config.remat == 'products' else None,
    # a loop is barrier enough; unrolled, XLA would find the two computations and merge them
    prevent_cse=config.unroll != 1,
  )


def _segments(tokens, segments, config: ModelConfig):
  """The segments given; without any those of `config.pad`, None if the model has none."""
  if segments is not None or config.pad < 0:
    return segments
  return (tokens != config.pad).astype(jnp.int32)
