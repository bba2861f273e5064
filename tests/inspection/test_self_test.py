"""The self-test passes here, and fails for broken attention; the reference has its own gradient."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional import attention as equations
from transformer.functional import kernels
from transformer.functional.masks import AttentionMask
from transformer.inspection import environment, reference_float64, self_test
from transformer.modules.cache import Cache


@pytest.fixture
def brief(monkeypatch):
  """One path in one dtype, so that a run compiles little."""

  def choose(path='grouped attention', dtype='float32', positions=()):
    monkeypatch.setattr(self_test, 'PATHS', {path: self_test.PATHS[path]} if path else {})
    monkeypatch.setattr(
      self_test, 'TOLERANCE', {dtype: self_test.TOLERANCE[dtype], 'float32': 2e-5}
    )
    monkeypatch.setattr(self_test, 'POSITIONS', positions)
    monkeypatch.setattr(self_test, 'IMPLEMENTATIONS', ())

  return choose


@pytest.fixture(scope='module', params=[1, pytest.param(6, marks=pytest.mark.slow)])
def report(request):
  """(The report of some paths and positions, or of all; those)."""
  paths, positions = [*self_test.PATHS][-request.param :], self_test.POSITIONS[: request.param]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(self_test, 'PATHS', {path: self_test.PATHS[path] for path in paths})
    patch.setattr(self_test, 'POSITIONS', positions)
    return self_test.run(), paths, positions


def compiles(dtype):
  return not environment.why_not_compiled(dtype)


def test_this_machine_passes(report):
  report, paths, positions = report
  assert report['passed'] and not report['failed']
  assert all(check['error'] <= check['tolerance'] for check in report['checks'])
  groups = {check['name'].split(':')[0] for check in report['checks']}
  assert groups == {
    *(f'{path} {dtype}' for path in paths for dtype in self_test.TOLERANCE if compiles(dtype)),
    *(f'{name} implementation bfloat16' for name in ('blockwise', 'reference')),
    *(f'cached {position}' for position in positions),
    'greedy',
  }


def test_report_is_json_and_a_table(report):
  report, *_ = report
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  assert report['versions']['jax'] and report['versions']['functional-transformer']
  assert report['devices'][0]['platform'] == 'cpu'
  text = self_test.table(report)
  assert 'matmul precision default: error' in text
  assert 'multi-query attention bfloat16' in text and text.splitlines()[-1].startswith('passed')


def forgets_mask(attention):
  return lambda q, k, v, *, mask=None, bias=None: attention(q, k, v, bias=bias)


def forgets_scale(attention):
  return lambda q, k, v, **how: attention(q, k, v, **how, scale=1.0)


def one_percent_off(attention):
  return lambda q, k, v, **how: 1.01 * attention(q, k, v, **how)


def raises(attention):
  def broken(q, k, v, **how):
    raise NotImplementedError('no kernel for this device')

  return broken


@pytest.mark.parametrize('breaks', [forgets_mask, forgets_scale, one_percent_off, raises])
def test_a_broken_attention_fails(breaks, brief, monkeypatch):
  brief('grouped attention')
  sound = equations.multi_head_attention
  monkeypatch.setattr(equations, 'multi_head_attention', breaks(sound))
  monkeypatch.setattr(self_test, '_check_greedy', lambda group: iter(()))
  report = self_test.run()
  assert not report['passed']
  assert all(name.startswith('grouped attention float32: ') for name in report['failed'])
  whole = {name.split(': ')[1] for name in report['failed']}
  assert ('runs' if breaks is raises else 'mask and bias, output') in whole
  assert 'FAILED grouped attention float32: ' in self_test.table(report)
  json.dumps(report, allow_nan=False)


def test_a_broken_gradient_fails(brief, monkeypatch):
  brief('attention', 'bfloat16')
  sound = equations.attention
  monkeypatch.setattr(
    equations, 'attention', lambda q, k, v, **how: sound(q, jax.lax.stop_gradient(k), v, **how)
  )
  monkeypatch.setattr(self_test, '_check_greedy', lambda group: iter(()))
  failed = [name for name in self_test.run()['failed'] if 'bfloat16' in name]
  assert failed and all('gradient dk' in name for name in failed)


def test_a_wrong_implementation_is_named(brief, monkeypatch):
  brief('', 'bfloat16')
  monkeypatch.setattr(self_test, '_check_greedy', lambda group: iter(()))
  monkeypatch.setattr(self_test, 'IMPLEMENTATIONS', ('reference', 'blockwise'))
  unmasked = lambda call: kernels.reference(call._replace(mask=AttentionMask()))  # noqa: E731
  entry = kernels.IMPLEMENTATIONS['blockwise']._replace(compute=unmasked)
  monkeypatch.setitem(kernels.IMPLEMENTATIONS, 'blockwise', entry)
  failed = self_test.run()['failed']
  assert failed and all(name.startswith('blockwise implementation') for name in failed)


def test_a_dtype_that_cannot_be_compiled_is_advice_and_no_failure(brief, monkeypatch):
  brief('attention', 'float16')
  monkeypatch.setattr(self_test, '_check_greedy', lambda group: iter(()))
  monkeypatch.setattr(self_test, 'TOLERANCE', {'float32': 2e-5, 'float16': 4e-3})
  reason = 'float16 cannot be compiled for this device'
  monkeypatch.setattr(environment, 'why_not_compiled', lambda dtype: (dtype == 'float16') * reason)
  report = self_test.run()
  assert report['passed'] and reason in report['advice']
  assert {check['name'].split(':')[0] for check in report['checks']} == {'attention float32'}
  assert reason in self_test.table(report)


def test_lower_precision_is_advice_and_no_failure():
  lower = {
    'default_matmul_precision': 'default',
    'product_error': {'default': 3e-4, 'float32': 6e-7},
    'reduced': True,
  }
  (advice,) = (line for line in environment.advice_for(lower) if 'TF32' in line)
  assert 'JAX_DEFAULT_MATMUL_PRECISION=float32' in advice and '3e-04' in advice


def test_a_broken_cache_fails(brief, monkeypatch):
  brief(path='', positions=('learned',))
  # every token at position 0
  monkeypatch.setattr(Cache, 'next_positions', lambda self, segments: jnp.zeros_like(segments))
  monkeypatch.setattr(self_test, '_check_greedy', lambda group: iter(()))
  assert 'cached learned: = full pass' in self_test.run()['failed']


def test_the_reference_gradient_is_that_of_finite_differences(rng):
  q, k, v, g = (rng.normal(size=(1, n, h, 3)) for n, h in ((2, 2), (4, 1), (4, 1), (2, 2)))
  mask, bias = rng.random((1, 2, 2, 4)) < 0.7, rng.normal(size=(1, 2, 2, 4))
  how = dict(mask=mask, bias=bias)
  truth = reference_float64.multi_head_attention(q, k, v, g, **how)
  assert np.allclose(truth.weights.sum(-1), mask.any(-1))
  for name, x in (('dq', q), ('dk', k), ('dv', v), ('dbias', bias)):
    direction = rng.normal(size=x.shape)
    sums = []
    for sign in (1, -1):
      x += sign * 1e-5 * direction
      sums.append((reference_float64.multi_head_attention(q, k, v, g, **how).output * g).sum())
      x -= sign * 1e-5 * direction
    assert np.isclose((sums[0] - sums[1]) / 2e-5, (getattr(truth, name) * direction).sum())
