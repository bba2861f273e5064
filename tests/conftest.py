"""JAX made strict, tolerances by dtype, what tests share, and where the time of a run goes."""

import atexit
import collections
import functools
import gc
import math
import os
import pathlib
import platform
import re
import resource
import shutil
import signal
import tempfile

import processes

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # before jax is imported, as the flags
os.environ['XLA_FLAGS'] = processes.xla_flags('--xla_force_host_platform_device_count=8')
# what one test compiles, others find, in all workers; .ci/run gives its runs one folder
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # in the process that starts the workers
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='compiled-by-tests-')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# `nohup` and a shell's `&` ignore these; tests of signals, and commands that tests start, do not.
for number, handler in (
  (signal.SIGINT, signal.default_int_handler),
  (signal.SIGHUP, signal.SIG_DFL),
):
  if signal.getsignal(number) is signal.SIG_IGN:
    signal.signal(number, handler)

collect_ignore = ['zoo/make_golden.py', 'training/make_golden_run.py']  # scripts

# Relative to the largest magnitude expected. No test loosens its own.
TOLERANCE = {'float32': 2e-5, 'bfloat16': 2e-2, 'float16': 4e-3}

DATA = pathlib.Path(
  os.environ.get('TRANSFORMER_DATA', pathlib.Path(__file__).parents[2] / 'shared' / 'data')
)


# Files go to workers whole, in this order and then that of their names: the longest first, or one
# worker is left alone with them at the end.
LONGEST = (
  'test_model.py',
  'test_audio.py',  # first of those for which Numba compiles, once for all, in a new environment
  'test_resume.py',
  'test_processes.py',
  'test_golden.py',
  'test_run.py',
  'test_seq2seq.py',
  'test_generate.py',
  'test_question_answering.py',
  'test_documentation.py',
  'test_text_to_speech.py',
  'test_platforms.py',
  'test_stack.py',
  'test_retrieval.py',
  'test_ctc.py',
  'test_finetuning.py',
  'test_meshes.py',
  'test_sharding.py',
  'test_language_model.py',
  'test_masked_lm.py',
  'test_checkpoints.py',
  'test_processors.py',
  'test_kernels.py',
  'test_batches.py',
)


def pytest_addoption(parser):
  group = parser.getgroup('transformer')
  group.addoption('--seed', type=int, default=0, help='The seed of the tests that train a model.')
  group.addoption(
    '--damaged', type=int, default=60, help='Damaged inputs of each kind, for the slow tests.'
  )
  group.addoption(
    '--every-mesh',
    action='store_true',
    help='Compare each kind of model on all 20 meshes of eight devices, not on one.',
  )
  group.addoption(
    '--report',
    action='store_true',
    help='At the end, print the processor, the seconds of each file, and what tests measured.',
  )


def pytest_collection_modifyitems(items):
  rank = {name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish():
  """Search for garbage seldom, and not among what was imported: it takes a tenth of the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 50, 100)


@functools.cache
def why_no_float16():
  """Return why this platform cannot compute in float16, or '' if it can."""
  from transformer.inspection import environment

  return environment.why_not_compiled('float16')


def pytest_runtest_setup(item):
  parameters = repr(getattr(getattr(item, 'callspec', None), 'params', ''))
  if re.search(r'(?<!b)float16', parameters) and why_no_float16():
    pytest.skip(why_no_float16())


def pytest_terminal_summary(terminalreporter, config):
  if not config.getoption('report'):
    return
  write, seconds, measured = terminalreporter.write_line, collections.Counter(), []
  for reports in terminalreporter.stats.values():
    for report in reports:
      if isinstance(report, pytest.TestReport):
        seconds[report.nodeid.split('::')[0]] += report.duration
        properties = report.user_properties if report.when == 'call' else ()
        measured += [(report.nodeid, *text) for name, text in properties if name == 'measured']
  terminalreporter.section('report')
  write(f'{processor()}; Python {platform.python_version()}, jax {jax.__version__}')
  for file, count in seconds.most_common():
    write(f'{count:8.1f} s  {file}')
  for test, name, value, bound in sorted(measured):
    write(f'{value:10.4g} {bound:9}  {name}, {test}')


def processor() -> str:
  """Return the number of cores, the processor's name and its widest vector instructions."""
  info = pathlib.Path('/proc/cpuinfo')
  fields = dict(
    (part.strip() for part in line.split(':', 1))
    for line in (info.read_text().splitlines() if info.exists() else ())
    if ':' in line
  )
  name = fields.get('model name') or platform.processor() or platform.machine()
  flags = set(fields.get('flags', '').split())
  widest = next((f for f in ('amx_bf16', 'avx512f', 'avx2', 'avx') if f in flags), 'no AVX')
  return f'{os.cpu_count()} x {name} ({widest})'


@pytest.fixture(scope='module', autouse=True)
def forget():
  """Drop compiled programs once they take gigabytes; until then the next file may use them."""
  yield
  statm = pathlib.Path('/proc/self/statm')
  pages = int(statm.read_text().split()[1]) if statm.exists() else math.inf
  if pages * resource.getpagesize() > 2 * 1024**3:
    jax.clear_caches()


@pytest.fixture(scope='session')
def commands(tmp_path_factory):
  """Starts `run.py`; see processes.Commands."""
  with processes.Commands(tmp_path_factory.mktemp('compiled')) as commands:
    yield commands


@pytest.fixture
def experiment(commands):
  """experiment(config, workdir, mode, input, **changed): (status, stdout, stderr) of `run.py`.

  Args:
    config: a file of experiments/, as 'sst2.py:pretrain'.
    workdir: of the run.
    mode: of `run.py`.
    input: text on its stdin.
    devices: how many it has.
    changed: keys of the config, such as **{'model.width': 16}.
  """

  def run(config, workdir, mode='train', input='', devices=1, **changed):
    done = commands.run(
      f'--config={processes.ROOT}/experiments/{config}',
      *(f'--workdir={workdir}', f'--mode={mode}'),
      *(f'--config.{key}={value}' for key, value in changed.items()),
      input=input.encode(),
      devices=devices,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()

  return run


@pytest.fixture(scope='session')
def seed(pytestconfig):
  """The seed of what a test trains: its bounds must hold for any."""
  return pytestconfig.getoption('seed')


@pytest.fixture
def bounded(record_property):
  """bounded(name, value, above=bound) or (..., below=bound): check a quantity that was learned.

  The value is reported with --report, so that one sees how far from its bound it is.
  """

  def check(name, value, *, above=None, below=None):
    value = float(value)
    bound = f'> {above:g}' if below is None else f'< {below:g}'
    record_property('measured', (name, value, bound))
    assert above is None or value > above, f'{name}: {value} is not above {above}'
    assert below is None or value < below, f'{name}: {value} is not below {below}'

  return check


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture(scope='session')
def close():
  """close(actual, expected): equal within the tolerance of actual's dtype, NaN and Inf included."""

  def check(actual, expected, dtype=None):
    actual = jnp.asarray(actual)
    tolerance = TOLERANCE[str(dtype or actual.dtype)]
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected[np.isfinite(expected)]).max(initial=0), 1e-3)
    np.testing.assert_allclose(
      np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * scale
    )

  return check


@pytest.fixture(scope='session')
def real_data():
  """real_data(name): the folder of a real data set; skips the test where there is none."""

  def folder(name):
    if not (DATA / name).is_dir():
      pytest.skip(
        f'needs the data set {DATA / name}: set TRANSFORMER_DATA to the folder that has it'
      )
    return DATA / name

  return folder
