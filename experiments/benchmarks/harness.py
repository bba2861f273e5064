"""Time variants of the same work, each in its own process, alternately: A B A B.

Only one process works at a time and all are warm, so that a drift of the machine affects all alike.
Compare the ratio of medians of one run; absolute times change from day to day.
"""

import datetime
import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from absl import flags

ROUNDS = flags.DEFINE_integer('rounds', 5, 'measurements of each variant', lower_bound=1)
VARIANTS = flags.DEFINE_list('variants', [], 'only those whose names contain one of these')
PEER_PYTHON = flags.DEFINE_string('peer_python', sys.executable, 'interpreter that has the peers')
SAVE = flags.DEFINE_bool('save', False, 'write the result to results/')
WORKER = flags.DEFINE_string('worker', '', 'internal: run this variant')
RESULTS = pathlib.Path(__file__).parent / 'results'
MARK = '@@'  # begins a worker's own lines; libraries may print others


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
  """Run a worker: warm up, report it, then time `call` for each line of stdin.

  Args:
    call: does the work once, and returns when it is done.
    seconds: length of a measurement.
    memory: returns the peak memory so far, in MB.
    about: numbers to report beside the time, such as the loss.
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
    call()  # caches and threads are warm again
    started = time.perf_counter()
    for _ in range(repeats):
      call()
    took = (time.perf_counter() - started) / repeats
    _report(seconds=took, peak_mb=memory())


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

  def read(self) -> dict[str, Any]:
    """Return its next report.

    Raises:
      RuntimeError: the process ended; has the last line of its log.
    """
    for line in self.process.stdout:
      if line.startswith(MARK):
        return json.loads(line[len(MARK) :])
    self.process.wait()
    self.log.seek(0)
    raise RuntimeError(f'{self.name} failed: {"".join(self.log.readlines()[-1:]).strip()}')

  def measure(self):
    """Take one measurement."""
    self.process.stdin.write('\n')
    self.process.stdin.flush()
    found = self.read()
    self.seconds.append(found['seconds'])
    self.about['peak_mb'] = found['peak_mb']

  def close(self):
    """End the process."""
    self.process.stdin.close()
    self.process.wait()


def compare(commands: dict[str, Sequence[str]], *, rounds: int) -> dict[str, dict[str, Any]]:
  """Time all variants, alternately.

  Args:
    commands: the command line of each worker.
    rounds: measurements of each.

  Returns:
    For each variant its median, smallest and largest seconds, and its other numbers.
  """
  workers = []
  for name, command in commands.items():
    worker = Worker(name, command)
    try:
      worker.about = worker.read()  # one after the other: compiling does not overlap
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
  found: dict[str, dict[str, Any]],
  *,
  work: float,
  unit: str,
  module: str,
  save: bool,
  **about: Any,
):
  """Print a table to stderr and the result as a line of JSON to stdout, and maybe write a file.

  Args:
    case: its name.
    found: from `compare`; the names of variants that are not peers begin with 'ours'.
    work: units of work in a call.
    unit: of work per second, such as 'tokens/s'.
    module: the benchmark's name.
    save: write results/<case>.json.
    about: further entries of the result.
  """
  best = {
    side: max(
      (name for name in found if name.startswith('ours') == (side == 'ours')),
      key=lambda name: 1 / found[name]['median_s'],
      default=None,
    )
    for side in ('ours', 'peer')
  }
  width = max(map(len, found))
  for name, values in found.items():
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
    one, other = found[best['ours']], found[best['peer']]
    result['ratio'] = other['median_s'] / one['median_s']
    if other['peak_mb']:
      result['memory_ratio'] = one['peak_mb'] / other['peak_mb']
  write(result | about | {'variants': found, **machine(module)}, save=save)


def write(result: dict[str, Any], *, save: bool):
  """Print the result as a line of JSON to stdout, and maybe write it to results/<case>.json."""
  if save:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f'{result["case"]}.json').write_text(json.dumps(result, indent=1) + '\n')
  print(json.dumps(result))


def machine(module: str) -> dict[str, Any]:
  """Return the machine, the versions, the date and the command of a measurement."""
  text = pathlib.Path('/proc/cpuinfo').read_text() if platform.system() == 'Linux' else ''
  names = [line.split(':')[1].strip() for line in text.splitlines() if 'model name' in line]
  words = [word for word in sys.argv[1:] if 'peer_python' not in word]
  versions = {}
  for package in ('jax', 'flax', 'torch', 'transformers', 'ctranslate2'):
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      pass
  return {
    'machine': f'{len(names)} x {names[0]}' if names else platform.processor(),
    'versions': versions,
    'date': datetime.date.today().isoformat(),
    'command': ' '.join(['python', '-m', f'experiments.benchmarks.{module}', *words]),
  }
