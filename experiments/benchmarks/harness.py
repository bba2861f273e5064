"""Timing of variants of the same work, each in its own process, alternately: A B A B.

Only one process works at a time and all are warm, so that changes in the speed of the machine
affect all variants equally. Compare the ratio of medians of one run; absolute times change from day
to day. Results are stored separately for each kind of processor.
"""

import datetime
import json
import pathlib
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from absl import flags

ROUNDS = flags.DEFINE_integer('rounds', 5, 'measurements of each variant', lower_bound=1)
VARIANTS = flags.DEFINE_list('variants', [], 'run only variants whose names contain one of these')
PEER_PYTHON = flags.DEFINE_string('peer_python', sys.executable, 'interpreter that has the peers')
SAVE = flags.DEFINE_bool('save', False, 'write the result to results/PROCESSOR/')
LIMIT = flags.DEFINE_float('limit', 180, 'seconds to a first result; slower variants are left out')
WORKER = flags.DEFINE_string('worker', '', 'internal: run this variant')
RESULTS = pathlib.Path(__file__).parent / 'results'
MARK = '@@'  # begins the lines that a worker prints; libraries may print other lines


def process_memory() -> float:
  """Return the peak memory of this process so far, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # in kB on Linux


def serve(
  call: Callable[[], Any],
  *,
  seconds: float = 1.0,
  memory: Callable[[], float] = process_memory,
  **about,
):
  """Run a worker: warm up, report the first call, then time `call` for each line of stdin.

  Args:
    call: does the work once, and returns when it is done.
    seconds: approximate duration of a measurement.
    memory: returns the peak memory so far, in MB.
    about: further values for the first report, such as the loss.
  """
  started = time.perf_counter()
  call()
  first = time.perf_counter() - started
  call()
  started = time.perf_counter()
  call()
  repeats = max(1, round(seconds / (time.perf_counter() - started)))
  _report(ready=True, first_call_s=first, **about)
  for _ in sys.stdin:
    call()  # warms up caches and threads
    started = time.perf_counter()
    for _ in range(repeats):
      call()
    per_call = (time.perf_counter() - started) / repeats
    _report(seconds=per_call, peak_mb=memory())


def _report(**values):
  print(MARK + json.dumps(values), flush=True)


class Worker:
  """The process of a variant."""

  def __init__(self, name: str, command: Sequence[str]):
    self.name, self.seconds, self.about = name, [], {}
    self.log = tempfile.TemporaryFile('w+')
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
    )

  def read(self, limit: float | None = None) -> dict[str, Any]:
    """Return the next report of the worker.

    Args:
      limit: seconds to wait, after which the process is killed; None for no limit.

    Raises:
      RuntimeError: the process ended; the message has the last line of its log, or the limit.
    """
    timer = threading.Timer(limit or threading.TIMEOUT_MAX, self.process.kill)
    timer.daemon = True
    timer.start()
    line = next((line for line in self.process.stdout if line.startswith(MARK)), None)
    timer.cancel()
    if line is not None:
      return json.loads(line[len(MARK) :])
    if self.process.wait() == -signal.SIGKILL and limit:
      raise RuntimeError(f'{self.name} is left out: it had no result after {limit:.0f} s')
    self.log.seek(0)
    raise RuntimeError(f'{self.name} failed: {"".join(self.log.readlines()[-1:]).strip()}')

  def measure(self):
    """Take one measurement."""
    self.process.stdin.write('\n')
    self.process.stdin.flush()
    report = self.read()
    self.seconds.append(report['seconds'])
    self.about['peak_mb'] = report['peak_mb']

  def close(self):
    """End the process."""
    self.process.stdin.close()
    self.process.wait()


def compare(
  commands: dict[str, Sequence[str]], *, rounds: int, limit: float | None = None
) -> dict[str, dict[str, Any]]:
  """Time all variants, alternately.

  Args:
    commands: {variant: the command line of its worker}.
    rounds: number of measurements of each.
    limit: seconds to the first report of each; None for --limit. Without bfloat16 instructions a
      step in bfloat16 can take minutes.

  Returns:
    {variant: median_s, min_s, max_s, and the other values of its reports}; without variants that
    failed or exceeded the limit.
  """
  workers = []
  for name, command in commands.items():
    worker = Worker(name, command)
    try:
      # wait here, so that workers compile one after the other
      worker.about = worker.read(LIMIT.value if limit is None else limit)
    except RuntimeError as error:
      print(error, file=sys.stderr)
      continue
    worker.about.pop('ready')
    print(f'{name}: first call {worker.about["first_call_s"]:.1f} s', file=sys.stderr)
    workers.append(worker)
  for _ in range(rounds):
    for worker in workers:
      worker.measure()
  for worker in workers:
    worker.close()
  return {
    worker.name: dict(
      median_s=statistics.median(worker.seconds),
      min_s=min(worker.seconds),
      max_s=max(worker.seconds),
      **worker.about,
    )
    for worker in workers
  }


def report(
  case: str,
  results: dict[str, dict[str, Any]],
  *,
  work: float,
  unit: str,
  module: str,
  save: bool,
  **about: Any,
):
  """Print a table to stderr and the result as a line of JSON to stdout; with `save` also write it.

  Args:
    case: name of the case.
    results: from `compare`; names of our variants begin with 'ours', the others are peers.
    work: units of work in a call.
    unit: of work per second, such as 'tokens/s'.
    module: name of the benchmark.
    save: whether to write results/PROCESSOR/<case>.json.
    about: further entries of the result.
  """
  best = {
    side: max(
      (name for name in results if name.startswith('ours') == (side == 'ours')),
      key=lambda name: 1 / results[name]['median_s'],
      default=None,
    )
    for side in ('ours', 'peer')
  }
  width = max(map(len, results))
  for name, values in results.items():
    values['per_s'] = work / values['median_s']
    print(
      f'{name:{width}}  {values["median_s"] * 1e3:9.2f} ms '
      f'[{values["min_s"] * 1e3:.2f} .. {values["max_s"] * 1e3:.2f}]  '
      f'{values["per_s"]:12,.0f} {unit}  {values["peak_mb"]:7,.0f} MB  '
      f'first call {values["first_call_s"]:6.1f} s',
      file=sys.stderr,
    )
  result = {'case': case, 'ours': best['ours'], 'peer': best['peer'], 'unit': unit}
  if best['ours'] and best['peer']:
    ours, peer = results[best['ours']], results[best['peer']]
    result['ratio'] = peer['median_s'] / ours['median_s']
    if peer['peak_mb']:
      result['memory_ratio'] = ours['peak_mb'] / peer['peak_mb']
  write(result | about | {'variants': results, **machine(module)}, save=save)


def write(result: dict[str, Any], *, save: bool, folder: str | None = None):
  """Print the result as a line of JSON to stdout; with `save` also write it to a file.

  Args:
    result: of a benchmark; has the key 'case'.
    save: whether to write results/<folder>/<case>.json.
    folder: None for that of this processor.
  """
  if save:
    file = RESULTS / (folder or processor()) / f'{result["case"]}.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + '\n')
  print(json.dumps(result))


def write_entries(case: str, key: str, found: list[dict], by: Sequence[str], **where: Any):
  """Write a result whose list `key` also has the earlier entries that no new one replaces.

  Args:
    case: name of the result.
    key: of the list.
    found: the new entries.
    by: the keys that two entries of the same thing share.
    where: save and folder, as in `write`.
  """
  file = RESULTS / where['folder'] / f'{case}.json'
  before = json.loads(file.read_text())[key] if file.is_file() else []
  new = [[entry[k] for k in by] for entry in found]
  kept = [entry for entry in before if [entry[k] for k in by] not in new]
  write({'case': case, key: kept + found, **machine(case)}, **where)


# {flag of /proc/cpuinfo: name}: the instructions that decide the speed of products, widest first
INSTRUCTIONS = {
  'amx_bf16': 'amx',
  'avx512_bf16': 'avx512-bf16',
  'avx512f': 'avx512',
  'avx2': 'avx2',
}


def processor() -> str:
  """Return the name of this kind of processor, such as amd-epyc-avx2.

  It has the model, whose generation a virtual machine may not show, and the widest instructions.
  """
  text = _cpu_info()
  cpu_flags = set(text.split())
  known = [name for flag, name in INSTRUCTIONS.items() if flag in cpu_flags]
  model = next(iter(_models(text)), platform.machine())
  model = re.sub(r'\((r|tm)\)|\bcpu\b|@.*|\d+-core|processor', '', model.lower())
  return '-'.join([*re.findall(r'[a-z0-9.]+', model), *known[:1]])


def _cpu_info() -> str:
  return pathlib.Path('/proc/cpuinfo').read_text() if platform.system() == 'Linux' else ''


def _models(text: str) -> list[str]:
  return [line.split(':')[1].strip() for line in text.splitlines() if 'model name' in line]


def machine(module: str) -> dict[str, Any]:
  """Return machine, processor, versions, date and command, for the result of a benchmark."""
  names = _models(_cpu_info())
  words = [word for word in sys.argv[1:] if 'peer_python' not in word]
  versions = {}
  for package in ('jax', 'flax', 'torch', 'transformers', 'ctranslate2'):
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      pass
  return {
    'machine': f'{len(names)} x {names[0]}' if names else platform.processor(),
    'processor': processor(),
    'versions': versions,
    'date': datetime.date.today().isoformat(),
    'command': ' '.join(['python', '-m', f'experiments.benchmarks.{module}', *words]),
  }
