"""What the compiler says of a program, in bytes that can be computed by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.inspection import compiled
from transformer.inspection.compiled import Collective

MIB = 2**20


@functools.cache
def program():
  """Five rounds of a matrix product whose rows are summed over 8 devices."""
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  x = jax.ShapeDtypeStruct((64, 64), 'float32', sharding=NamedSharding(mesh, P(None, 'data')))
  w = jax.ShapeDtypeStruct((64, 64), 'float32', sharding=NamedSharding(mesh, P('data')))

  def f(x, w):
    return jax.lax.scan(lambda c, _: (jnp.tanh(x @ w + c), None), x @ w, None, length=5)[0]

  return jax.jit(f, out_shardings=NamedSharding(mesh, P())).lower(x, w).compile(), (x, w)


def test_memory_is_that_of_one_device():
  found = compiled.memory(program()[0])
  assert found['arguments'] == 2 * 64 * 64 * 4 // 8 == compiled.bytes_a_device(program()[1])
  assert found['outputs'] == 64 * 64 * 4
  assert found['total'] == found['arguments'] + found['outputs'] + found['temporaries']


def test_collectives_of_a_loop_are_counted_in_every_round():
  (found,) = compiled.collectives(program()[0].as_text())
  assert found.kind == 'all-reduce' and found.bytes % (64 * 64 * 4) == 0
  # the compiler may move the product out of the loop, and join both
  assert found.bytes // (64 * 64 * 4) in (1, 2, 6) and found.times in (1, 2, 6)


TEXT = """
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %r = f32[8,4]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
  %s = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%y), channel_id=2
  %again = bf16[8,4]{1,0} all-gather(%y), channel_id=2
}
ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%t), body=%body, config={"known_trip_count":{"n":"12"}}
  %d = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}
  ROOT %f = f32[8,4]{1,0} fusion(%d), kind=kLoop, calls=%other
}
"""


def test_the_rounds_of_a_loop_are_those_of_its_condition_where_the_compiler_does_not_say():
  condition = '%c (p: s32[]) -> pred[] {\n  %n = s32[]{:T(128)} constant(7)\n}\n'
  text = condition + TEXT.replace('config={"known_trip_count":{"n":"12"}}', 'condition=%c')
  assert [found.times for found in compiled.collectives(text)] == [7, 7]
  assert [found.times for found in compiled.collectives(text.replace('s32[]{', 'f32[]{'))] == [1, 1]


def test_the_text_of_a_program_is_read():
  assert compiled.collectives(TEXT) == [
    Collective('all-reduce', 12, 12 * 8 * 4 * 4),
    Collective('all-gather', 12, 12 * 8 * 4 * 2),
  ]
  kinds = compiled.kinds(TEXT)
  assert kinds['d'] == 'dot' and kinds['f'] == 'fusion' and kinds['r'] == 'all-reduce'


@pytest.mark.parametrize('text', ['INTERNAL: something else', 'Used 3 of 4 apples'])
def test_another_error_is_not_about_memory(text):
  assert compiled.refused(ValueError(text)) is None


def test_devices_that_are_not_known_have_no_figures():
  (device,) = jax.devices()[:1]
  assert compiled.peak(device) == 0 and compiled.capacity(device) == 0
  h100 = type('Device', (), dict(device_kind='NVIDIA H100 80GB HBM3'))
  assert compiled.peak(h100) == 989e12
  assert np.isclose(
    compiled.capacity(type('D', (), dict(device_kind='TPU v5 lite'))) / 2**30, 15.75
  )
