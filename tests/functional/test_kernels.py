"""Every implementation of attention is the specification on every mask that it can compute."""

import logging
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.functional import blockwise, kernels, masks, platforms, splash
from transformer.functional.attention import multi_head_attention
from transformer.functional.kernels import Call, dot_product_attention
from transformer.functional.masks import AttentionMask
from transformer.training.sharding import AXES, make_mesh

B, H, G, K = 2, 4, 2, 8
PACKED = jnp.array([[1, 1, 2, 2, 2, 0], [0, 1, 1, 1, 2, 2]])
PADDED = jnp.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
ORDER = jnp.array([[3, 1, 0, 2, 5, 4], [0, 1, 2, 3, 4, 5]])
RANDOM = jnp.asarray(np.random.default_rng(1).random((B, 1, 6, 6)) < 0.6)
EMPTY_ROWS = RANDOM.at[:, :, ::2].set(False)

MASKS = {
  'all': AttentionMask(),
  'causal': masks.causal(),
  'window': masks.sliding_window(2),
  'causal window': masks.causal() & masks.sliding_window(3),
  'one-sided window': masks.sliding_window((2, 0)),
  'prefix': masks.prefix(3),
  'padded': masks.segments(PADDED, PADDED),
  'padded sources': masks.padding(PADDED),
  'padded causal': masks.segments(PADDED, PADDED) & masks.causal(),
  'packed': masks.segments(PACKED, PACKED),
  'packed causal window': (
    masks.segments(PACKED, PACKED) & masks.causal() & masks.sliding_window(2)
  ),
  'by position': masks.causal(positions=(ORDER, ORDER)),
  'explicit': AttentionMask(explicit=RANDOM) & masks.causal(),
  'empty rows': AttentionMask(explicit=EMPTY_ROWS),
  'all padding': masks.segments(0 * PADDED, 0 * PADDED),
}
CROSS = {
  'all': AttentionMask(),
  'causal': masks.causal(),
  'packed': masks.segments(PACKED[:, 1:4], PACKED),
  'padded': masks.padding(PADDED),
}
# jax.nn's own equation, which takes the same arguments, stands in for cuDNN where there is no GPU
ON_CUDA = platforms.compute_capability(platforms.resolve(None)) >= 8
COMPUTE = {
  'reference': kernels.reference,
  'cudnn': partial(kernels.cudnn, backend='cudnn' if ON_CUDA else 'xla'),
  'blockwise': partial(kernels.blockwise, block=4),
}


def draw(rng, T=6, S=6, V=K, K=K, dtype='bfloat16'):
  shapes = [(B, T, H, K), (B, S, G, K), (B, S, G, V), (B, T, H, V)]
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def call_of(q, k, v, mask=None, bias=None, scale=None, platform='cuda'):
  return Call(q, k, v, mask or AttentionMask(), bias, scale, platform, assume_finite=False)


@partial(jax.jit, static_argnames='scale')
def compute(q, k, v, g, mask, scale):
  """(output and gradients of every implementation, those of the specification, the mask)."""

  def both_ways(f):
    y, pullback = jax.vjp(f, q, k, v)
    return y, *pullback(g)

  call, array = call_of(q, k, v, mask, scale=scale), mask.dense(q.shape[1], k.shape[1])
  array = array.reshape((1,) * (4 - array.ndim) + array.shape)
  found = {
    name: both_ways(lambda q, k, v, f=f: f(call._replace(q=q, k=k, v=v)))
    for name, f in COMPUTE.items()
  }
  return found, both_ways(partial(multi_head_attention, mask=array, scale=scale)), array


def compare(mask, q, k, v, g, close, scale=None):
  """Check every implementation and its gradients against the specification."""
  T, S = q.shape[1], k.shape[1]
  for name in COMPUTE:
    assert not kernels.IMPLEMENTATIONS[name].why_not(call_of(q, k, v, mask))
  of_all, wanted, array = compute(q, k, v, g, mask, scale)
  empty = ~np.broadcast_to(array, (B, H, T, S)).any(-1).swapaxes(1, 2)
  for found in of_all.values():
    for x, want in zip(found, wanted, strict=True):
      assert x.dtype == q.dtype
      close(x, want)
    for x in found[:2]:
      np.testing.assert_array_equal(np.asarray(x)[empty], 0)


@pytest.mark.parametrize('mask', MASKS)
def test_self_attention_is_the_specification_forward_and_backward(mask, rng, close):
  compare(MASKS[mask], *draw(rng), close, scale=0.7 if mask == 'prefix' else None)


@pytest.mark.parametrize('mask', CROSS)
def test_cross_attention_with_odd_lengths_is_the_specification(mask, rng, close):
  compare(CROSS[mask], *draw(rng, T=3), close)


SPLASH = {
  'packed causal window': masks.causal() & masks.sliding_window(40),
  'window': masks.sliding_window((3, 30)),
  'padded': AttentionMask(),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('mask', 'shape'), [('packed causal window', (2, 2)), ('padded', (2, 2)), ('window', (1, 1))]
)
def test_splash_attention_is_the_specification_in_its_interpreter(
  mask, shape, rng, close, monkeypatch
):
  """On a mesh every device has its examples and heads; padding to blocks of 128 is no source."""
  monkeypatch.setattr(splash, 'BLOCK', 128)  # some of the blocks are skipped
  T, S = (100, 140) if mask == 'window' else (140, 140)
  row = np.repeat([[1, 2, 3, 0], [0, 1, 1, 2]], 35, axis=1)
  row = jnp.asarray(row, 'int32')
  more = {'packed causal window': masks.segments(row, row), 'padded': masks.padding(row)}
  q, k, v, g = draw(rng, T=T, S=S, dtype='float32')
  sinks = jnp.asarray(rng.normal(size=H), 'float32') if mask == 'padded' else None
  call = call_of(q, k, v, SPLASH[mask] & more.get(mask, AttentionMask()), platform='tpu')
  call = call._replace(sinks=sinks, soft_cap=0.5 if mask == 'window' else 0.0)
  assert not kernels.why_not_splash(call)

  @jax.jit
  def run(q, k, v):
    y, pullback = jax.vjp(
      lambda q, k, v: kernels.splash(call._replace(q=q, k=k, v=v), interpret=True), q, k, v
    )
    want, want_pullback = jax.vjp(
      lambda q, k, v: kernels.reference(call._replace(q=q, k=k, v=v)), q, k, v
    )
    return (y, *pullback(g)), (want, *want_pullback(g))

  devices = jax.devices()[: math.prod(shape)]
  auto = (jax.sharding.AxisType.Auto,) * 2
  with jax.set_mesh(jax.make_mesh(shape, ('data', 'tensor'), auto, devices=devices)):
    for found, want in zip(*run(q, k, v), strict=True):
      close(found, want)


def test_splash_attention_lowers_for_a_tpu(rng):
  q, k, v, g = draw(rng, T=256, S=256, K=64, V=64)
  row = jnp.ones((B, 256), 'int32')
  mask = masks.segments(row, row) & masks.causal() & masks.sliding_window(100)

  def loss(q, k, v):
    return jnp.sum(
      dot_product_attention(q, k, v, mask, platform='tpu', implementation='splash') * g
    )

  lowered = (
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, v).lower(lowering_platforms=('tpu',))
  )
  assert lowered.as_text().count('tpu_custom_call') >= 3  # forward, of queries, of keys and values


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({}, ''),
    (dict(platform='cuda'), 'cuda is no TPU'),
    (dict(bias=jnp.zeros((1, H, 6, 6))), 'have a bias'),
    (dict(mask=masks.prefix(3)), 'a prefix'),
    (dict(mask=MASKS['by position']), 'the mask has positions'),
    (dict(mask=MASKS['explicit']), 'or an array'),
    (dict(q=jnp.ones((B, 9, H, K))), 'more targets (9) than sources (6)'),
  ],
  ids=str,
)
def test_splash_attention_says_why_it_cannot_compute_a_call(change, reason, rng):
  call = call_of(*draw(rng)[:3], masks.causal(), platform='tpu')._replace(**change)
  found = kernels.why_not_splash(call)
  assert reason in found and bool(found) == bool(reason)


def test_auto_leaves_a_kernel_on_several_devices_without_a_mesh_to_the_compiler(monkeypatch):
  x = jax.ShapeDtypeStruct((1, 512, H, K), 'float32')
  call = call_of(x, x, x, platform='tpu')
  assert kernels.choose(call) == 'reference'
  assert 'call it in jax.set_mesh' in kernels.why_slower_splash(call)
  with jax.set_mesh(jax.make_mesh((8,), ('data',))):
    assert kernels.choose(call) == 'splash'
  monkeypatch.setattr(platforms, 'several_devices', lambda: False)
  assert kernels.choose(call) == 'splash'


def test_blocks_cap_scores_and_have_sinks_as_the_specification(rng, close):
  q, k, v, g = draw(rng, dtype='float32')
  mask, sinks = MASKS['packed causal window'], jnp.asarray(rng.normal(size=H), 'float32')

  def gradients(f):
    y, pullback = jax.vjp(f, q, k, v, sinks)
    return y, *pullback(g)

  @jax.jit
  def run():
    call = call_of(q, k, v, mask)._replace(soft_cap=0.8)
    return [
      gradients(lambda q, k, v, sinks, f=f: f(call._replace(q=q, k=k, v=v, sinks=sinks)))
      for f in (COMPUTE['blockwise'], kernels.reference)
    ]

  for found, want in zip(*run(), strict=True):
    close(found, want)


def test_a_nan_reaches_the_rows_that_may_attend_to_it_and_no_other_by_blocks(rng):
  q, k, v, g = draw(rng, dtype='float32')
  for spoilt in (dict(k=k.at[:, 2, 0, 0].set(jnp.nan)), dict(v=v.at[:, 2, 0, 0].set(jnp.inf))):
    call = call_of(q, k, v, masks.causal() & masks.sliding_window(3))._replace(**spoilt)

    @jax.jit
    def run(q, k, v, call=call):
      f = lambda q, k, v: COMPUTE['blockwise'](call._replace(q=q, k=k, v=v))
      y, pullback = jax.vjp(f, q, k, v)
      return y, *pullback(g)

    y, dq, dk, dv = (np.isfinite(x).all((0, 3)) for x in run(call.q, call.k, call.v))
    seeing = np.zeros((6, H), bool)
    seeing[2:5, : H // G] = True  # the rows and heads that see the third source
    np.testing.assert_array_equal(y, ~seeing)
    np.testing.assert_array_equal(dq, ~seeing)
    for d in (dk, dv):  # sources that no spoilt row sees
      assert d[5, 0] and d[:, 1].all()


@pytest.mark.parametrize(
  ('mask', 'pairs'),
  [
    (masks.causal(), [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]),
    (masks.causal() & masks.sliding_window(2), [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]),
    (masks.sliding_window((1, 0)), [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]),
    (masks.prefix(3), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]),
    (masks.causal(positions=(ORDER, ORDER)), list(np.ndindex(3, 3))),
  ],
)
def test_blocks_that_the_mask_rules_out_are_skipped(mask, pairs):
  settings = blockwise._Settings(1.0, 0.0, (2, 2), (6, 6))
  assert blockwise._pairs(mask, settings).tolist() == [list(pair) for pair in pairs]


def test_blocks_are_for_long_sequences_without_a_bias(rng):
  x = jax.ShapeDtypeStruct((1, 2048, H, K), 'float32')
  call = call_of(x, x, x, platform='cpu')
  assert kernels.choose(call) == 'blockwise'
  assert (
    kernels.choose(call._replace(k=jax.ShapeDtypeStruct((1, 9, G, K), 'float32'))) == 'reference'
  )
  assert 'have a bias' in kernels.why_not_blockwise(call._replace(bias=BIAS))


def both_ways(q, k, v, g, mask, sinks, *, implementation):
  """The output and its gradients."""

  def attend(q, k, v, sinks):
    return dot_product_attention(
      q, k, v, mask, sinks=sinks, soft_cap=2.0, implementation=implementation
    )

  y, pullback = jax.vjp(attend, q, k, v, sinks)
  return y, *pullback(g)


@pytest.mark.parametrize(
  'mask, sizes',
  [
    ('packed causal window', (1, 2, 2, 2)),
    *(
      pytest.param(mask, sizes, marks=pytest.mark.slow)
      for mask, sizes in (
        ('by position', (2, 1, 1, 4)),
        ('explicit', (1, 2, 2, 2)),
        ('prefix', (1, 1, 1, 8)),
      )
    ),
  ],
)
def test_devices_that_share_rows_compute_the_specification(mask, sizes, rng, close):
  """Forward and gradient, each device its own targets; more sources than targets, too."""
  T, S = 16, 32 if mask == 'prefix' else 16
  shapes = [(B, T, H, K), (B, S, G, K), (B, S, G, K), (B, T, H, K), (H,)]
  q, k, v, g, sinks = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
  segments = jnp.asarray(np.sort(rng.integers(0, 3, (B, T))))
  order = jnp.asarray(rng.permuted(np.tile(np.arange(T), (B, 1)), axis=1))
  which = {
    'packed causal window': masks.segments(segments, segments)
    & masks.causal()
    & masks.sliding_window(5),
    'by position': masks.causal(positions=(order, order)),
    'explicit': AttentionMask(explicit=jnp.asarray(rng.random((1, H, 1, T)) < 0.6))
    & masks.causal(),
    'prefix': masks.prefix(3),
  }[mask]
  mesh = make_mesh(**dict(zip(AXES, sizes, strict=True)))
  heads = 'tensor' if sizes[2] > 1 else None
  rows = NamedSharding(mesh, P(('data', 'fsdp'), 'sequence', heads))
  compute = jax.jit(both_ways, static_argnames='implementation')
  with jax.set_mesh(mesh):
    placed = [jax.device_put(x, rows) for x in (q, k, v, g)]
    found = compute(*placed, which, sinks, implementation='auto')
  assert found[0].sharding.is_equivalent_to(rows, 4)
  wanted = compute(q, k, v, g, which, sinks, implementation='reference')
  for x, want in zip(found, wanted, strict=True):
    close(x, want)


@pytest.mark.slow
def test_devices_that_share_rows_need_a_share_of_the_memory():
  """Twelve layers with their backward pass, by the compiler's count for a device."""

  def layer(x, _):
    y = dot_product_attention(x, x, x, masks.causal(), implementation='auto')
    return jnp.tanh(x + y), None

  def loss(x):
    return jnp.sum(jax.lax.scan(layer, x, length=12)[0])

  temporaries = []
  for count in (1, 4):
    mesh = make_mesh(sequence=count, over=jax.devices()[:count])
    x = jax.ShapeDtypeStruct(
      (1, 8192, 1, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, 'sequence'))
    )
    with jax.set_mesh(mesh):
      compiled = jax.jit(jax.grad(loss)).lower(x).compile()
    temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
  assert temporaries[1] < 0.5 * temporaries[0], temporaries


def test_rows_are_shared_only_where_a_mesh_divides_them(rng):
  q, k, v, _ = draw(rng)
  assert 'no mesh' in kernels.why_not_sequence(call_of(q, k, v))
  with jax.set_mesh(make_mesh(sequence=4)):
    assert '4 devices do not divide 6 targets' in kernels.why_not_sequence(call_of(q, k, v))
    q, k, v = (jnp.repeat(x, 2, axis=1) for x in (q, k, v))
    assert not kernels.why_not_sequence(call_of(q, k, v))
    assert 'bias' in kernels.why_not_sequence(call_of(q, k, v, bias=jnp.zeros((1, H, 12, 12))))
    assert kernels.choose(call_of(q, k, v, platform='tpu')) == 'sequence'


def test_an_array_computed_before_is_the_same_mask(rng):
  q, k, v, _ = draw(rng)
  mask = MASKS['packed causal window']
  want = jax.jit(dot_product_attention)(q, k, v, mask)
  found = jax.jit(lambda q, k, v: dot_product_attention(q, k, v, mask.with_array(6)))(q, k, v)
  np.testing.assert_array_equal(found, want)


BIAS = jnp.zeros((1, H, 6, 6))


@pytest.mark.parametrize(
  ('change', 'bias', 'platform', 'reason'),
  [
    ({}, None, 'cuda:9.0', ''),
    ({}, None, 'cuda', ''),
    (dict(T=4), None, 'cuda', ''),
    (dict(dtype='float16', K=128, V=128), None, 'cuda:8.0', ''),
    ({}, None, 'cpu', 'cpu is no NVIDIA GPU'),
    ({}, None, 'rocm', 'rocm is no NVIDIA GPU'),
    ({}, None, 'cuda:7.5', 'cuda:7.5 is no NVIDIA GPU of compute capability 8.0'),
    (dict(dtype='float32'), None, 'cuda', 'not float32: set model.dtype'),
    (dict(K=12, V=12), None, 'cuda', 'multiples of 8 up to 128, not 12'),
    (dict(K=136, V=136), None, 'cuda', 'multiples of 8 up to 128, not 136'),
    (dict(V=16), None, 'cuda', 'not 8 and 16'),
    ({}, BIAS, 'cuda', 'have a bias'),
    (dict(T=1), None, 'cuda', 'one target'),
  ],
  ids=str,
)
def test_cudnn_says_why_it_cannot_compute_a_call(change, bias, platform, reason, rng):
  q, k, v, _ = draw(rng, **change)
  call = call_of(q, k, v, masks.causal(), bias, platform=platform)
  found = kernels.why_not_cudnn(call)
  assert reason in found and bool(found) == bool(reason)
  assert kernels.choose(call) == ('reference' if reason else 'cudnn')
  if reason:
    with pytest.raises(ValueError, match='cudnn cannot compute this attention: '):
      dot_product_attention(
        q, k, v, call.mask, bias=bias, platform=platform, implementation='cudnn'
      )


def test_the_choice_is_logged_once_with_its_reason(rng, monkeypatch, caplog):
  q, k, v, _ = draw(rng)
  entry = kernels.IMPLEMENTATIONS['cudnn']._replace(compute=lambda call: call.q)
  monkeypatch.setitem(kernels.IMPLEMENTATIONS, 'cudnn', entry)
  kernels._log_once.cache_clear()
  with caplog.at_level(logging.INFO, kernels.__name__):
    for size, platform in ((6, 'cpu'), (6, 'cuda'), (5, 'cpu'), (5, 'cuda')):
      q, k, v = (x[:, :size] for x in (q, k, v))
      y = dot_product_attention(q, k, v, masks.causal(), platform=platform)
      assert (y is q) == (platform == 'cuda')
  kernels._log_once.cache_clear()
  assert [record.message for record in caplog.records] == [
    'attention on cpu is computed by reference; not cudnn: cpu is no NVIDIA GPU of compute '
    'capability 8.0 or more; not splash: cpu is no TPU; not blockwise: fewer scores than 2048 x '
    '2048',
    'attention on cuda is computed by cudnn',
  ]


def test_an_unknown_implementation_is_refused(rng):
  with pytest.raises(
    ValueError, match="'flash' is none of auto, sequence, cudnn, splash, blockwise, reference"
  ):
    dot_product_attention(*draw(rng)[:3], implementation='flash')


def test_the_platform_of_a_device_names_its_compute_capability():
  class Device:
    platform, compute_capability = 'gpu', '9.0'

  assert platforms.of_device(Device) == 'cuda:9.0'
  Device.compute_capability = 'gfx90a'
  assert platforms.of_device(Device) == 'rocm'
  assert platforms.resolve('tpu') == 'tpu'
  assert platforms.resolve('') == platforms.of_device(jax.devices()[0])
