"""Every compilation is noted once, and one too many names what changed."""

import logging

import jax
import jax.numpy as jnp
import pytest

from transformer.inspection.compilations import Ledger


def test_every_compilation_is_noted_with_its_shapes():
  noted = []

  def double(x, key):
    return 2 * x

  call, key = jax.jit(double), jax.random.key(0)
  x, y = jnp.ones((2, 3)), jnp.ones(5, jnp.int32)
  with Ledger(noted.append) as ledger:
    for array in (x, x, y, x):
      call(array, key)
    mine = [entry for entry in ledger.entries if entry.function == 'double']
    assert [entry.shapes[0] for entry in mine] == ['float32[2,3]', 'int32[5]']
    assert all(entry.seconds > 0 for entry in mine) and noted == ledger.entries
    ledger.check('double', 2, ['x', 'key'])
    ledger.check('double', 0, ['x', 'key'])
    with pytest.raises(ValueError, match=r'compiled 2 times, more than train.max_compiles=1: x is '
                                         r'int32\[5\], before float32\[2,3\]'):  # fmt: skip
      ledger.check('double', 1, ['x', 'key'] if len(mine[0].shapes) == 2 else ['x'])
  count = len(noted)
  call(jnp.ones(7), key)
  assert len(noted) == count  # it is closed


def test_the_log_of_jax_is_as_before(caplog):
  with caplog.at_level(logging.DEBUG), Ledger():
    jax.jit(lambda x: x + 1)(jnp.ones(3))
  assert not [record for record in caplog.records if 'Compiling' in record.getMessage()]
