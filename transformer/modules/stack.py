"""The layers of an encoder or decoder, run by a scan."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.functional import masks
from transformer.functional.dropout import dropout
from transformer.functional.masks import AttentionMask
from transformer.functional.positions import from_segments
from transformer.modules import sites
from transformer.modules.attention import View
from transformer.modules.block import Block
from transformer.modules.cache import Cache, LayerCache, dtype_of
from transformer.modules.config import ModelConfig
from transformer.modules.layers import Linear, Norm, split_key
from transformer.modules.positions import SCHEMES


class Memory(NamedTuple):
  """The sources of cross-attention.

  Attributes:
    states: the output of the encoder.
    segments: number of the packed example of each position, 0 for padding; None if nothing is
      packed or padded.
    keys_values: keys [L, B, G, K, S] and values [L, B, G, S, K] of every layer, 0 at padding; None
      until `Stack.prepare` computes them for decoding, which reads the memory at every step.
  """

  states: Float[Array, 'B S D']
  segments: Int[Array, 'B S'] | None = None
  keys_values: tuple[Array, Array] | None = None


class Output(NamedTuple):
  """The result of a stack.

  Attributes:
    x: the states after the last layer.
    cache: the cache with the new tokens added; None without a cache.
    aux: auxiliary losses by name, summed over the layers.
  """

  x: Float[Array, 'B T D']
  cache: Cache | None
  aux: dict[str, Array]


class Stack(nnx.Module):
  """The layers of an encoder or decoder: one Block whose parameters have a leading layer axis.

  Args:
    config: of this stack; see `ModelConfig.encoder` and `.decoder`.
    rngs: for fresh parameters.
    causal: whether a position attends only to itself and earlier ones.
    cross: whether layers cross-attend to a memory.
    name: prefix of its sites, where a model has several stacks.
  """

  def __init__(
    self,
    config: ModelConfig,
    rngs: nnx.Rngs,
    *,
    causal: bool,
    cross: bool = False,
    name: str = '',
  ):
    self.config, self.causal = config, causal
    self.prefix = f'{name}.' if name else ''
    self.positions = SCHEMES[config.position](config, rngs, causal=causal)
    self.blocks = jax.vmap(lambda key: Block(config, nnx.Rngs(key), cross=cross))(
      jax.random.split(rngs.params(), config.depth)
    )
    size = config.embedding_size or config.width
    self.embedding_norm = Norm(config, size) if config.norm_embedding else None
    projected = size != config.width
    if projected and (causal or cross):
      raise ValueError(
        f'model.embedding_size={size} with model.width={config.width} is possible only for an '
        'encoder without a decoder: set it to 0'
      )
    self.projection = Linear(config, size, config.width, rngs) if projected else None
    self.norm = Norm(config) if config.prenorm else None

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    segments: Int[Array, 'B T'] | None = None,
    *,
    memory: Memory | None = None,
    cache: Cache | None = None,
    key: Key[Array, ''] | None = None,
  ) -> Output:
    """Run all layers on embedded inputs.

    Args:
      x: embeddings without positions.
      segments: number of the packed example of each position, 0 for padding; None if nothing is
        packed or padded.
      memory: sources of cross-attention.
      cache: keys and values of earlier tokens.
      key: turns dropout on.

    Raises:
      ValueError: there are more positions than learned ones, or than the cache has room for.
    """
    if segments is None:
      self.positions.check(x.shape[1])
    if cache is None:
      positions = _column_numbers(x) if segments is None else from_segments(segments)
    else:
      segments = jnp.ones(x.shape[:2], jnp.int32) if segments is None else segments
      positions = cache.next_positions(segments)
    keys = split_key(key, 1 + self.config.depth)
    # the residual stream has at least 32 bits, even if the parameters were cast to 16
    x = self.positions.embed(x.astype(jnp.promote_types(x.dtype, jnp.float32)), positions)
    if self.embedding_norm is not None:
      x = self.embedding_norm(x)
    x = dropout(x, self.config.dropout, keys[0])
    if self.projection is not None:
      x = self.projection(x)
    x = sites.site(f'{self.prefix}embedding', x)
    layer_keys = None if key is None else keys[1:]
    has_window = cache is None and any(layer.window for layer in self.config.pattern)
    # a window counts columns, so padding inside a segment is moved to the end of the row
    if moves_padding := has_window and segments is not None:
      has_holes, order = _holes(segments, positions)
      x, segments, positions = _reordered_if(has_holes, order, x, segments, positions)
    x, cache, aux = self._layers(x, segments, positions, memory, cache, layer_keys)
    if moves_padding:
      (x,) = _reordered_if(has_holes, jnp.argsort(order, axis=1), x)
    if self.norm is not None:
      x = self.norm(x)
    if cache is not None:
      x = jnp.where(cache.overflows, jnp.nan, x)
    return Output(sites.site(f'{self.prefix}output', x), cache, aux)

  def prepare(self, memory: Memory) -> Memory:
    """Return the memory with the cross-attention keys and values of every layer."""
    keys_values = jax.vmap(lambda block: block.cross.keys_values(memory.states))(self.blocks)
    k, v = (x.swapaxes(2, 3) for x in keys_values)
    if memory.segments is not None:
      real = (memory.segments != 0)[:, None, :, None]
      k, v = (jnp.where(real, x, 0) for x in (k, v))
    k, v = (x.astype(dtype_of(self.config)) for x in (k, v))
    return memory._replace(keys_values=(k.mT, v))

  def _layers(self, x, segments, positions, memory, cache, keys):
    """Return (the states after all layers, the cache, the sum of aux)."""
    start, kv = None, (None,)  # kv: the keys and values of each layer; None without a cache
    if cache is not None:
      start, kv = cache.length, tuple(zip(cache.k, cache.v, strict=True))
      cache = cache.extend(segments, positions)
    views = self._views(positions, segments, cache)
    sources = positions if cache is None else cache.positions
    beams, cross = 1 if cache is None else cache.beams, None
    if memory is not None:
      cross = View(positions, _cross_mask(segments, memory, x.shape[:2]))

    def layer(carry, xs, view):
      x, (kv, *others) = carry
      block, keys_values, position_params, key = xs
      if position_params is not None:
        bias = self.positions.bias_of_layer(position_params, positions, sources)
        view = view._replace(bias=_side_by_side(bias, beams) if beams > 1 else bias)
      if kv is not None:
        # otherwise XLA slices each layer out of the stack at every step of a search, not once
        block, keys_values = jax.tree.map(jax.lax.optimization_barrier, (block, keys_values))
      source = None if memory is None else (keys_values or memory.states, cross)
      layer_cache = None if kv is None else LayerCache(*kv, start, segments != 0)
      x, layer_cache, aux = block(x, view, source, layer_cache, key=key)
      kv = None if layer_cache is None else (layer_cache.k, layer_cache.v)
      # a queue: each layer takes the first cache and appends its own, so the order is kept
      return (x, (*others, kv)), aux

    keys_values = None if memory is None else memory.keys_values
    run = self._one_by_one if sites.observing() else self._scan
    xs = (self.blocks, keys_values, self.positions.of_layers(), keys)
    (x, kv), aux = run(layer, (x, kv), xs, views)
    if cache is not None:
      k, v = zip(*kv, strict=True)
      cache = cache._replace(k=k, v=v)
    return x, cache, aux

  def _scan(self, layer, carry, xs, views):
    """Run the layers by a scan; one step runs one period of the pattern of layers."""
    period = len(views)

    def step(carry, xs):
      total: dict[str, Any] = {}
      for i, view in enumerate(views):
        own_xs = xs if period == 1 else jax.tree.map(lambda a, i=i: a[i], xs)
        carry, aux = _rematerialized(layer, self.config, view)(carry, own_xs)
        total = jax.tree.map(jnp.add, total, aux) if total else aux
      return carry, total

    if period > 1:
      xs = jax.tree.map(lambda a: a.reshape(-1, period, *a.shape[1:]), xs)
    cached = carry[1][0] is not None
    depth, unroll = self.config.depth, self.config.unroll
    unroll = depth if cached else unroll or depth
    carry, aux = jax.lax.scan(step, carry, xs, unroll=max(1, unroll // period))
    return carry, jax.tree.map(lambda a: a.sum(0), aux)

  def _one_by_one(self, layer, carry, xs, views):
    """Run the layers by a Python loop, so that each has its own sites."""
    total: dict[str, Any] = {}
    for i in range(self.config.depth):
      own_xs = jax.tree.map(lambda a, i=i: a[i], xs)
      scoped = sites.within(f'{self.prefix}blocks.{i}.', layer)
      run = _rematerialized(scoped, self.config, views[i % len(views)])
      (carry, aux), values = run(carry, own_xs)
      sites.record(values)
      total = jax.tree.map(jnp.add, total, aux) if total else aux
    return carry, total

  def _views(self, positions, segments, cache) -> list[View]:
    """Return the view of self-attention for each layer of the pattern.

    Without a cache, distances between positions of a segment equal those between its columns (see
    `_holes`), so the mask uses column numbers, which kernels support.
    """
    sources = positions if cache is None else cache.positions
    beams = 1 if cache is None else cache.beams
    T, S = positions.shape[1], sources.shape[1]
    mask_positions = None if cache is None else (positions, sources)
    common = AttentionMask()
    if segments is not None:
      common = masks.segments(segments, segments if cache is None else cache.segments)
    if self.causal:
      common &= masks.causal(positions=mask_positions)
    bias = self.positions.bias(positions, sources)
    if beams > 1 and bias is not None:
      bias = _side_by_side(bias, beams)

    def mask_of(window):
      mask = common
      if window:
        mask &= masks.sliding_window(window, positions=mask_positions)
      if beams > 1:  # the queries of all beams of a sentence are side by side
        mask = AttentionMask(explicit=_side_by_side(mask.dense(T, S), beams))
      return mask.with_array(beams * T, S)

    pattern = self.config.pattern
    by_window = {window: mask_of(window) for window in {layer.window for layer in pattern}}

    def rotate(layer):
      return lambda x, positions: self.positions.rotate(x, positions, layer)

    real = None if segments is None else segments != 0
    return [
      View(positions, by_window[x.window], bias, rotate(x), real, bool(x.attention_norm))
      for x in pattern
    ]


def _holes(segments, positions):
  """Return (whether a segment has padding inside, an order of columns with all padding last)."""
  previous = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
  has_holes = jnp.any((segments != 0) & (positions > 0) & (previous != segments))
  return has_holes, jnp.argsort(segments == 0, axis=1, stable=True)


def _reordered_if(condition, order, *arrays):
  """Return the arrays [B, T, ...] with columns in this order, if the condition holds."""

  def reorder(*arrays):
    take_columns = jax.vmap(lambda x, index: x[index])
    return tuple(take_columns(x, order) for x in arrays)

  return jax.lax.cond(condition, reorder, lambda *arrays: arrays, *arrays)


def _column_numbers(x):
  return jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])


def _cross_mask(segments, memory: Memory, shape) -> AttentionMask:
  """Return the mask of cross-attention; neighboring rows of targets may share a row of memory."""
  C, S, _ = memory.states.shape
  if segments is None and memory.segments is None:
    return AttentionMask()
  q = jnp.ones(shape, jnp.int32) if segments is None else segments
  k = jnp.ones((C, S), jnp.int32) if memory.segments is None else memory.segments
  q = q.reshape(C, q.shape[1] * (q.shape[0] // max(C, 1) or 1))
  return masks.segments(q, k).with_array(q.shape[1], S)


def _side_by_side(x, beams):
  """Reshape [B, H, T, S] to [B/W, H, W T, S], with the W beams of a sentence side by side."""
  B, H, T, S = x.shape
  return x.reshape(B // beams, beams, H, T, S).swapaxes(1, 2).reshape(-1, H, beams * T, S)


def _rematerialized(layer, config: ModelConfig, view: View):
  """Return f(carry, xs), the layer with this view and with rematerialization by config.remat."""

  def run(carry, xs):
    return layer(carry, xs, view)

  if config.remat == 'none':
    return run
  products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

  def policy(primitive, *avals, **kwargs):
    # cuDNN's attention is one primitive, and costs as much as a product
    return products(primitive, *avals, **kwargs) or 'dot_product_attention' in primitive.name

  return jax.checkpoint(
    run,
    policy=policy if config.remat == 'products' else None,
    # in an unrolled loop XLA would merge the first and the repeated computation
    prevent_cse=config.unroll != 1,
  )
