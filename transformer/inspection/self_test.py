"""A self-test of attention, caches and search on this machine; `run.py --mode=doctor` runs it."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from transformer.functional import attention as equations
from transformer.functional import kernels, masks, search
from transformer.inspection import environment, reference_float64
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, EncoderDecoder
from transformer.modules.positions import SCHEMES

# Relative to the largest expected magnitude. Products of 16-bit numbers are summed in 32 bits, so
# that the error comes only from rounding operands and results, and does not grow with the length.
TOLERANCE = {'float32': 2e-5, 'bfloat16': 2e-2, 'float16': 4e-3}
# {name: (query heads, key/value heads)}; the first is the function for one head
PATHS = {
  'attention': (1, 1),
  'multi-head attention': (4, 4),
  'grouped attention': (4, 2),
  'multi-query attention': (4, 1),
}
IMPLEMENTATIONS = tuple(kernels.IMPLEMENTATIONS)
POSITIONS = tuple(SCHEMES)
B, T, S, K, V = 2, 5, 7, 8, 6
TINY: dict[str, Any] = dict(
  vocab=17, width=16, depth=2, heads=4, kv_heads=2, feedforward=32, max_length=16, unroll=1
)

Check = dict[str, Any]


def run() -> dict[str, Any]:
  """Test every attention path on the default device, and log and return a report.

  float32 is tested with float32 products. By default accelerators multiply float32 numbers in fewer
  bits, which is no defect; the error of that is in 'precision'.

  Returns:
    JSON: 'passed' (every check passed), 'failed' (names of those that did not), 'versions',
    'devices', 'precision', 'advice' (lines), 'checks' ({'name', 'error', 'tolerance', 'passed'},
    and maybe 'note') and 'seconds'. Errors are relative to the largest expected magnitude; None if
    there is none.
  """
  began = time.perf_counter()
  refused = {
    dtype: reason for dtype in TOLERANCE if (reason := environment.why_not_compiled(dtype))
  }
  dtypes = [dtype for dtype in TOLERANCE if dtype not in refused]
  groups: dict[str, Any] = {
    f'{path} {dtype}': _check_attention for path in PATHS for dtype in dtypes
  }
  if 'bfloat16' in dtypes:
    groups |= {f'{name} implementation bfloat16': _check_implementation for name in IMPLEMENTATIONS}
  groups |= {f'cached {position}': _check_cache for position in POSITIONS}
  groups['greedy'] = _check_greedy
  checks = []
  for group, test in groups.items():
    # float16, too: by default a TPU multiplies it as bfloat16
    default = group.endswith('bfloat16')
    with contextlib.nullcontext() if default else jax.default_matmul_precision('float32'):
      checks += _run_group(group, test)
  failed = [check['name'] for check in checks if not check['passed']]
  precision = environment.matmul_precision()
  report = {
    'passed': not failed,
    'failed': failed,
    'versions': environment.versions(),
    'devices': environment.devices(),
    'precision': precision,
    'advice': [*refused.values(), *environment.advice_for(precision)],
    'checks': checks,
    'seconds': round(time.perf_counter() - began, 1),
  }
  logging.info('%s', table(report))
  return report


def table(report: dict[str, Any]) -> str:
  """Return the report as text: the largest error of each group of checks, and failed checks."""
  versions = [f'{name} {version}' for name, version in report['versions'].items()]
  lines = ['', *(', '.join(versions[i : i + 6]) for i in range(0, len(versions), 6))]
  for device in report['devices']:
    memory = f', {device["memory_limit_gib"]} GiB each' if device['memory_limit_gib'] else ''
    lines.append(f'{device["count"]} x {device["kind"]} ({device["platform"]}{memory})')
  default, full = (report['precision']['product_error'][x] for x in ('default', 'float32'))
  setting = report['precision']['default_matmul_precision']
  lines.append(f'matmul precision {setting}: error {default:.0e}, at float32 {full:.0e}')
  lines += ['', f'{"":32}checks  largest error  tolerance']
  groups: dict[str, list[Check]] = {}
  for check in report['checks']:
    groups.setdefault(check['name'].split(':')[0], []).append(check)
  for name, checks in groups.items():
    errors = [check['error'] for check in checks if check['error'] is not None]
    largest = max(errors, default=float('nan'))
    tolerance = max(check['tolerance'] for check in checks)
    state = 'ok' if all(check['passed'] for check in checks) else 'FAILED'
    lines.append(f'{name:32}{len(checks):6}  {largest:13.1e}  {tolerance:9.0e}  {state}')
  for check in report['checks']:
    if not check['passed']:
      lines.append(f'FAILED {check["name"]}: {check.get("note") or check["error"]}')
  lines += ['', *report['advice']]
  lines.append(f'{"passed" if report["passed"] else "FAILED"} ({report["seconds"]} s)')
  return '\n'.join(lines)


def _run_group(group: str, test: Callable[[str], Iterator[Check]]) -> list[Check]:
  """Return the checks of a group; an exception becomes a failed check."""
  checks = []
  try:
    for check in test(group):
      checks.append(check)
  except Exception as error:
    logging.debug('raised here', exc_info=True)
    note = f'{type(error).__name__}: {error}'[:500]
    name = f'{group}: runs'
    checks.append(dict(name=name, error=None, tolerance=0.0, passed=False, note=note))
  return checks


def _compare(name: str, actual: Any, expected: Any, tolerance: float) -> Check:
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  numbers = np.isfinite(expected)
  if not np.array_equal(np.isfinite(actual), numbers):
    note = 'NaN or Inf instead of a number, or a number instead of NaN or Inf'
    return dict(name=name, error=None, tolerance=tolerance, passed=False, note=note)
  scale = max(np.abs(expected[numbers]).max(initial=0), 1e-3)
  error = float(np.abs(actual - expected)[numbers].max(initial=0) / scale)
  return dict(name=name, error=error, tolerance=tolerance, passed=error <= tolerance)


def _check_attention(group: str) -> Iterator[Check]:
  """Yield checks of output, weights and gradients of one path in one dtype, for kinds of masks."""
  path, dtype = group.rsplit(' ', 1)
  H, G = PATHS[path]
  rows = 1 if path == 'attention' else B
  rng = np.random.default_rng(0)

  def draw(*shape, dtype=dtype):  # with NumPy, because JAX would compile for every shape
    return rng.normal(size=shape).astype(jnp.dtype(dtype))

  q, k, v = draw(rows, T, H, K), draw(rows, S, G, K), draw(rows, S, G, V)
  g, bias = draw(rows, T, H, V), draw(1, H, T, S, dtype='float32')
  mask = rng.random((rows, 1, T, S)) < 0.6
  mask[..., 0] = True
  empty = mask & (np.arange(T) % 2 == 0)[:, None]
  hidden = mask & (np.arange(S) != 3)
  bad_k, bad_v = k.copy(), v.copy()
  bad_k[:, 3], bad_v[:, 3] = np.nan, np.inf
  partly = mask.copy()
  partly[..., 0, 3], partly[..., 1, 3] = False, True

  cases = [
    ('mask and bias', k, v, mask, bias),
    ('rows that may attend to nothing', k, v, empty, bias),
    ('masked NaN and Inf', bad_k, bad_v, hidden, bias),
    ('NaN masked for some rows', bad_k, v, partly, bias),
  ]
  if dtype == 'float32':  # only one dtype, because it needs one more compilation
    cases.append(('no mask', k, v, None, None))
  # a new function each time, because jit would use a program compiled before
  run = jax.jit(functools.partial(_one_head if path == 'attention' else _many_heads))
  for case, k_, v_, mask_, bias_ in cases:
    (output, weights), gradients = jax.device_get(run(q, k_, v_, g, mask_, bias_))
    expected = reference_float64.multi_head_attention(
      *(q, k_, v_, g),
      mask=np.ones((1, 1, T, S), bool) if mask_ is None else mask_,
      bias=np.zeros((1, 1, T, S)) if bias_ is None else bias_,
    )

    def check(name, actual, expected, tolerance=TOLERANCE[dtype], case=case):
      return _compare(f'{group}: {case}, {name}', actual, expected, tolerance)

    yield check('output', output, expected.output)
    yield check('weights', weights, expected.weights)
    if case == 'NaN masked for some rows':
      continue  # the gradient is NaN, which is correct
    for name, actual in zip(('dq', 'dk', 'dv', 'dbias'), gradients, strict=True):
      if actual is not None:
        gradient = getattr(expected, name)
        if name == 'dbias':
          gradient = gradient.sum(axis=0, keepdims=True)
        yield check(f'gradient {name}', actual, gradient)
    if case == 'rows that may attend to nothing':
      for name, actual in (('output', output[:, 1::2]), ('gradient dq', gradients[0][:, 1::2])):
        yield check(f'{name} exactly 0', actual, np.zeros(actual.shape), tolerance=0.0)


def _check_implementation(group: str) -> Iterator[Check]:
  """Yield checks of an implementation of attention on packed rows; none if it is not available."""
  name, N, rng = group.split()[0], 16, np.random.default_rng(0)
  q, k, v, g = (rng.normal(size=(B, N, H, K)).astype(jnp.bfloat16) for H in (4, 2, 2, 4))
  segments = jnp.asarray([[1] * 9 + [2] * 5 + [0] * 2, [1] * N])
  mask = masks.segments(segments, segments) & masks.causal()

  def run(q, k, v, g):
    attend = functools.partial(kernels.dot_product_attention, mask=mask, implementation=name)
    output, pull = jax.vjp(attend, q, k, v)
    return output, *pull(g)

  try:
    results = jax.device_get(jax.jit(run)(q, k, v, g))
  except ValueError as error:
    if 'cannot compute this attention' not in str(error):
      raise
    logging.info('%s', error)
    return
  allowed = np.asarray(mask.dense(N, N)).reshape(B, 1, N, N)
  expected = reference_float64.multi_head_attention(
    *(q, k, v, g), mask=allowed, bias=np.zeros((1, 1, N, N))
  )
  for field, actual in zip(('output', 'dq', 'dk', 'dv'), results, strict=True):
    name = f'{group}: packed rows, {field}'
    yield _compare(name, actual, getattr(expected, field), TOLERANCE['bfloat16'])


def _one_head(q, k, v, g, mask, bias):
  """Return `_with_gradient` of `attention`, the function for one row and one head."""

  def apply(q, k, v, bias):
    q, k, v = q[0, :, 0], k[0, :, 0], v[0, :, 0]
    kwargs = {name: x[0, 0] for name, x in (('mask', mask), ('bias', bias)) if x is not None}
    output = equations.attention(q, k, v, **kwargs)
    weights = equations.attention_weights(q, k, **kwargs)
    return output[None, :, None], weights[None, None]

  return _with_gradient(apply, q, k, v, bias, g)


def _many_heads(q, k, v, g, mask, bias):
  def apply(q, k, v, bias):
    weights = equations.multi_head_attention_weights(q, k, mask=mask, bias=bias)
    return equations.multi_head_attention(q, k, v, mask=mask, bias=bias), weights

  return _with_gradient(apply, q, k, v, bias, g)


def _with_gradient(apply, q, k, v, bias, g):
  """Return (output, weights) and the gradient of sum(output * g)."""
  output, pull, weights = jax.vjp(apply, q, k, v, bias, has_aux=True)
  return (output, weights), pull(g)


def _random_model(initialize: Callable[[], nnx.Module]) -> nnx.Module:
  """Return a model with random parameters, also biases, without compiling its initializers."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), jax.eval_shape(initialize)
  )


def _check_cache(group: str) -> Iterator[Check]:
  """Yield a check that decoding with a cache = the full pass, with padding on the left or right."""
  config = ModelConfig(**TINY | {'position': group.removeprefix('cached ')}, pad=0)
  model = _random_model(lambda: Decoder(config, nnx.Rngs(0)))
  tokens = np.random.default_rng(0).integers(3, config.vocab, (B, S))
  tokens[0, -2:] = tokens[1, :2] = 0

  @jax.jit
  def both(model, tokens):
    def step(cache, column):
      logits, cache = model(column[:, None], cache=cache)
      return cache, logits[:, 0]

    _, one_by_one = jax.lax.scan(step, model.init_cache(B, S), tokens.T)
    return one_by_one.swapaxes(0, 1), model(tokens)

  one_by_one, at_once = (np.asarray(logits)[tokens != 0] for logits in both(model, tokens))
  yield _compare(f'{group}: = full pass', one_by_one, at_once, TOLERANCE['float32'])


def _check_greedy(group: str) -> Iterator[Check]:
  """Yield checks that greedy search = beam search with one beam, from an encoded input."""
  model = _random_model(lambda: EncoderDecoder(ModelConfig(**TINY, pad=0), nnx.Rngs(0)))
  inputs = np.random.default_rng(0).integers(3, TINY['vocab'], (B, S))
  inputs[0, -2:] = 0

  @jax.jit
  def both(model, inputs):
    memory = model.decoder.prepare(model.encode(inputs))

    def step(tokens, cache):
      logits, cache = model.decode(tokens[:, None], memory, cache=cache)
      return logits[:, 0], cache

    first, cache = jnp.ones(B, jnp.int32), model.init_cache(B, T)
    limits = dict(steps=T, eos=2)
    greedy = search.greedy(step, cache, first, **limits)
    return greedy, search.beam_search(step, cache, first, beams=1, reorder=Cache.take, **limits)

  (tokens, scores), (beam_tokens, beam_scores) = both(model, inputs)
  yield _compare(f'{group}: = beam 1, tokens', tokens, beam_tokens[:, 0], 0.0)
  yield _compare(f'{group}: = beam 1, scores', scores, beam_scores[:, 0], TOLERANCE['float32'])
