"""Is everything right on this machine? Versions, devices, and attention against the oracle."""

import contextlib
import functools
import importlib.metadata
import pathlib
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from transformer.functional import attention as equations
from transformer.functional import search
from transformer.inspection import oracle
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, EncoderDecoder

# Of the largest magnitude expected. Products of 16-bit numbers add in 32 bits, so the error of a
# 16-bit path is that of rounding its operands and results, whatever the lengths.
TOLERANCE = {'float32': 2e-5, 'bfloat16': 2e-2, 'float16': 4e-3}
# the equation for one head, then numbers of query heads and of key/value heads
PATHS = {
  'attention': (1, 1),
  'multi-head attention': (4, 4),
  'grouped attention': (4, 2),
  'multi-query attention': (4, 1),
}
POSITIONS = ('sinusoidal', 'learned', 'rotary', 'relative', 'alibi', 'none')
B, T, S, K, V = 2, 5, 7, 8, 6
TINY: dict[str, Any] = dict(
  vocab=17, width=16, depth=2, heads=4, kv_heads=2, feedforward=32, length=16, unroll=1
)

PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorflow-datasets'),
  *('tokenizers', 'jaxtyping', 'ml_collections', 'numpy', 'functional-transformer'),
)
PLUGINS = re.compile(r'jax[-_].*(plugin|pjrt)|libtpu')

Check = dict[str, Any]


def examine() -> dict[str, Any]:
  """Versions, devices, precision, and a self-test of every attention path on the default device.

  float32 is tested with float32 products, whatever the device's default: accelerators multiply
  float32 numbers in fewer bits unless told otherwise, which is a choice and no defect. What it
  costs stands under 'precision'.

  Returns:
    JSON: 'healthy' (every check passed), 'failed' (names of those that did not), 'versions',
    'devices', 'precision', 'advice' (lines), 'checks' ({'name', 'error', 'tolerance', 'passed'},
    and 'note' where there is more to say) and 'seconds'. Errors are relative to the largest
    magnitude expected; None where there is none. A readable copy goes to the log.
  """
  began = time.perf_counter()
  refused = {dtype: reason for dtype in TOLERANCE if (reason := why_not_compiled(dtype))}
  dtypes = [dtype for dtype in TOLERANCE if dtype not in refused]
  groups = {f'{path} {dtype}': _attention for path in PATHS for dtype in dtypes}
  groups |= {f'cached {position}': _cached for position in POSITIONS}
  groups['greedy'] = _greedy
  checks = []
  for group, examined in groups.items():
    # a TPU multiplies float16 as bfloat16 unless told otherwise, too
    plain = group.endswith('bfloat16')
    with contextlib.nullcontext() if plain else jax.default_matmul_precision('float32'):
      checks += _finished(group, examined)
  failed = [check['name'] for check in checks if not check['passed']]
  precision = _precision()
  report = {
    'healthy': not failed,
    'failed': failed,
    'versions': _versions(),
    'devices': _devices(),
    'precision': precision,
    'advice': [*refused.values(), *_advice(precision)],
    'checks': checks,
    'seconds': round(time.perf_counter() - began, 1),
  }
  logging.info('%s', table(report))
  return report


def why_not_compiled(dtype: str) -> str:
  """Why the default device cannot compute in a dtype, in one line, or '' if it can.

  XLA has no conversion of float16 for a CPU without F16C instructions (x86 before 2012).
  """
  try:
    jax.jit(lambda x: x.astype('float32') @ x.astype('float32'))(jnp.zeros((1, 1), dtype))
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    return f'{dtype} cannot be compiled for this device: use another dtype ({reason})'
  return ''


def table(report: dict[str, Any]) -> str:
  """The report for people: the worst error of each group of checks, and each check that failed."""
  versions = [f'{name} {version}' for name, version in report['versions'].items()]
  lines = ['', *(', '.join(versions[i : i + 6]) for i in range(0, len(versions), 6))]
  for device in report['devices']:
    memory = f', {device["memory_gib"]} GiB each' if device['memory_gib'] else ''
    lines.append(f'{device["count"]} x {device["kind"]} ({device["platform"]}{memory})')
  default, full = (report['precision']['product_error'][x] for x in ('default', 'float32'))
  setting = report['precision']['default_matmul_precision']
  lines.append(f'matmul precision {setting}: off by {default:.0e}, at float32 by {full:.0e}')
  lines += ['', f'{"":32}checks  worst error  tolerance']
  groups: dict[str, list[Check]] = {}
  for check in report['checks']:
    groups.setdefault(check['name'].split(':')[0], []).append(check)
  for name, checks in groups.items():
    known = [check for check in checks if check['error'] is not None]
    worst = max(check['error'] for check in known) if known else float('nan')
    tolerance = max(check['tolerance'] for check in checks)
    state = 'ok' if all(check['passed'] for check in checks) else 'FAILED'
    lines.append(f'{name:32}{len(checks):6}  {worst:11.1e}  {tolerance:9.0e}  {state}')
  for check in report['checks']:
    if not check['passed']:
      lines.append(f'FAILED {check["name"]}: {check.get("note") or check["error"]}')
  lines += ['', *report['advice']]
  lines.append(f'{"healthy" if report["healthy"] else "NOT HEALTHY"} ({report["seconds"]} s)')
  return '\n'.join(lines)


def _finished(group: str, examined: Callable[[str], Iterator[Check]]) -> list[Check]:
  """The checks of a group; what a broken device or library raises is a finding like any other."""
  checks = []
  try:
    for check in examined(group):
      checks.append(check)
  except Exception as error:
    logging.debug('raised here', exc_info=True)
    note = f'{type(error).__name__}: {error}'[:500]
    name = f'{group}: runs'
    checks.append(dict(name=name, error=None, tolerance=0.0, passed=False, note=note))
  return checks


def _check(name: str, actual: Any, expected: Any, tolerance: float) -> Check:
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  numbers = np.isfinite(expected)
  if not np.array_equal(np.isfinite(actual), numbers):
    note = 'NaN or Inf where there should be a number, or the other way round'
    return dict(name=name, error=None, tolerance=tolerance, passed=False, note=note)
  scale = max(np.abs(expected[numbers]).max(initial=0), 1e-3)
  error = float(np.abs(actual - expected)[numbers].max(initial=0) / scale)
  return dict(name=name, error=error, tolerance=tolerance, passed=error <= tolerance)


def _attention(group: str) -> Iterator[Check]:
  """Output, weights and gradients of one path in one dtype, for every kind of mask."""
  path, dtype = group.rsplit(' ', 1)
  H, G = PATHS[path]
  rows = 1 if path == 'attention' else B
  rng = np.random.default_rng(0)

  def draw(*shape, dtype=dtype):  # in NumPy, for every jnp function is compiled for every shape
    return rng.normal(size=shape).astype(jnp.dtype(dtype))

  q, k, v = draw(rows, T, H, K), draw(rows, S, G, K), draw(rows, S, G, V)
  g, bias = draw(rows, T, H, V), draw(1, H, T, S, dtype='float32')
  mask = rng.random((rows, 1, T, S)) < 0.6
  mask[..., 0] = True
  empty = mask & (np.arange(T) % 2 == 0)[:, None]
  hidden = mask & (np.arange(S) != 3)
  dirty_k, dirty_v = k.copy(), v.copy()
  dirty_k[:, 3], dirty_v[:, 3] = np.nan, np.inf
  partly = mask.copy()
  partly[..., 0, 3], partly[..., 1, 3] = False, True

  cases = [
    ('mask and bias', k, v, mask, bias),
    ('rows that see nothing', k, v, empty, bias),
    ('NaN and Inf behind the mask', dirty_k, dirty_v, hidden, bias),
    ('NaN that some rows see', dirty_k, v, partly, bias),
  ]
  if dtype == 'float32':  # compiles once more, which is all the time that a case takes
    cases.append(('no mask', k, v, None, None))
  # a new function each time, or jit would answer with what it compiled for the last examination
  run = jax.jit(functools.partial(_one_head if path == 'attention' else _many_heads))
  for case, k_, v_, mask_, bias_ in cases:
    (output, weights), gradients = jax.device_get(run(q, k_, v_, g, mask_, bias_))
    truth = oracle.multi_head_attention(
      *(q, k_, v_, g),
      mask=np.ones((1, 1, T, S), bool) if mask_ is None else mask_,
      bias=np.zeros((1, 1, T, S)) if bias_ is None else bias_,
    )

    def check(what, actual, expected, tolerance=TOLERANCE[dtype], case=case):
      return _check(f'{group}: {case}, {what}', actual, expected, tolerance)

    yield check('output', output, truth.output)
    yield check('weights', weights, truth.weights)
    if case == 'NaN that some rows see':
      continue  # its gradient is NaN, and rightly so
    for name, actual in zip(('dq', 'dk', 'dv', 'dbias'), gradients, strict=True):
      if actual is not None:
        expected = getattr(truth, name)
        if name == 'dbias':
          expected = expected.sum(axis=0, keepdims=True)
        yield check(f'gradient {name}', actual, expected)
    if case == 'rows that see nothing':
      for name, actual in (('output', output[:, 1::2]), ('gradient dq', gradients[0][:, 1::2])):
        yield check(f'{name} exactly 0', actual, np.zeros(actual.shape), tolerance=0.0)


def _one_head(q, k, v, g, mask, bias):
  """`attention` with axes of size 1 around it."""

  def apply(q, k, v, bias):
    q, k, v = q[0, :, 0], k[0, :, 0], v[0, :, 0]
    how = {name: x[0, 0] for name, x in (('mask', mask), ('bias', bias)) if x is not None}
    output, weights = equations.attention(q, k, v, **how), equations.attention_weights(q, k, **how)
    return output[None, :, None], weights[None, None]

  return _with_gradient(apply, q, k, v, bias, g)


def _many_heads(q, k, v, g, mask, bias):
  def apply(q, k, v, bias):
    how = dict(mask=mask, bias=bias)
    weights = equations.multi_head_attention_weights(q, k, **how)
    return equations.multi_head_attention(q, k, v, **how), weights

  return _with_gradient(apply, q, k, v, bias, g)


def _with_gradient(apply, q, k, v, bias, g):
  """((output, weights), the gradient of sum(output * g))."""
  output, pull, weights = jax.vjp(apply, q, k, v, bias, has_aux=True)
  return (output, weights), pull(g)


def _filled(initialise: Callable[[], nnx.Module]) -> nnx.Module:
  """A model of random numbers, biases too; no time goes into compiling initialisers."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), jax.eval_shape(initialise)
  )


def _cached(group: str) -> Iterator[Check]:
  """One token after the other through the cache = all at once, with padding on either side."""
  config = ModelConfig(**TINY | {'position': group.removeprefix('cached ')}, pad=0)
  model = _filled(lambda: Decoder(config, nnx.Rngs(0)))
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
  yield _check(f'{group}: = full pass', one_by_one, at_once, TOLERANCE['float32'])


def _greedy(group: str) -> Iterator[Check]:
  """Greedy search = beam search with one beam, from an encoded input."""
  model = _filled(lambda: EncoderDecoder(ModelConfig(**TINY, pad=0), nnx.Rngs(0)))
  inputs = np.random.default_rng(0).integers(3, TINY['vocab'], (B, S))
  inputs[0, -2:] = 0

  @jax.jit
  def both(model, inputs):
    memory = model.decoder.prepare(model.encode(inputs))

    def step(tokens, cache):
      logits, cache = model.decode(tokens[:, None], memory, cache=cache)
      return logits[:, 0], cache

    how = dict(steps=T, eos=2)
    first, cache = jnp.ones(B, jnp.int32), model.init_cache(B, T)
    greedy = search.greedy(step, cache, first, **how)
    return greedy, search.beam_search(step, cache, first, beams=1, reorder=Cache.take, **how)

  (tokens, scores), (beam_tokens, beam_scores) = both(model, inputs)
  yield _check(f'{group}: = beam 1, tokens', tokens, beam_tokens[:, 0], 0.0)
  yield _check(f'{group}: = beam 1, scores', scores, beam_scores[:, 0], TOLERANCE['float32'])


def _precision() -> dict[str, Any]:
  """What a float32 product is off by, as the device does it by default and at its best."""
  a, b = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
  exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
  errors = {}
  for name in ('default', 'float32'):
    with contextlib.nullcontext() if name == 'default' else jax.default_matmul_precision(name):
      product = np.asarray(jnp.matmul(jnp.asarray(a), jnp.asarray(b)), np.float64)
    errors[name] = float(np.abs(product - exact).max() / np.abs(exact).max())
  return {
    'default_matmul_precision': jax.config.values['jax_default_matmul_precision'] or 'default',
    'product_error': errors,
    'reduced': errors['default'] > 10 * errors['float32'],
  }


def _advice(precision: dict[str, Any]) -> list[str]:
  advice = []
  if precision['reduced']:
    error = precision['product_error']
    advice.append(
      f'float32 products are off by {error["default"]:.0e} here and not {error["float32"]:.0e}: by '
      'default this device multiplies in fewer bits (TF32 or bfloat16), which is faster. For full '
      'precision set JAX_DEFAULT_MATMUL_PRECISION=float32; training rarely needs it'
    )
  if jax.default_backend() == 'cpu':
    for device, extra in (('/dev/nvidia0', 'cuda12'), ('/dev/accel0', 'tpu')):
      if pathlib.Path(device).exists():
        advice.append(
          f'there is an accelerator ({device}) that JAX does not use: pip install "jax[{extra}]", '
          'and see that JAX_PLATFORMS is not set to cpu'
        )
  return advice


def _versions() -> dict[str, str]:
  plugins = {d.name for d in importlib.metadata.distributions() if PLUGINS.fullmatch(d.name)}
  versions = {'python': platform.python_version()}
  for name in (*PACKAGES, *sorted(plugins)):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  return versions


def _devices() -> list[dict[str, Any]]:
  def memory_gib(device):
    limit = (device.memory_stats() or {}).get('bytes_limit')
    return limit and round(limit / 2**30, 1)

  kinds = Counter((d.platform, d.device_kind, memory_gib(d)) for d in jax.local_devices())
  return [
    {'platform': platform, 'kind': kind, 'count': count, 'memory_gib': memory}
    for (platform, kind, memory), count in kinds.items()
  ]
