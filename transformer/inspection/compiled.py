"""Facts about a compiled program: memory on a device, communication, and kinds of instructions."""

import math
import re
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import jax

GIB = 2**30
# By kind of device: memory in GiB that the compiler allows a program on a TPU, and dense bfloat16
# operations per second from datasheets.
MEMORY = {
  'TPU v4': 31.25,
  'TPU v5 lite': 15.75,
  'TPU v5': 95.74,
  'TPU v5p': 95.74,
  'TPU v6 lite': 31.25,
}
PEAK = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
  'NVIDIA L4': 121e12,
  'Tesla T4': 65e12,
  'Tesla V100': 125e12,
}
COLLECTIVES = 'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute'
_BITS = {'pred': 8, 'bf16': 16, 'f8e4m3fn': 8, 'f8e5m2': 8}


class Collective(NamedTuple):
  """The communication between devices by one kind of operation in a program.

  Attributes:
    kind: one of COLLECTIVES.
    times: number of executions; a loop without a constant number of iterations counts once.
    bytes: total size of the results on a device.
  """

  kind: str
  times: int
  bytes: int


def peak(device: Any) -> float:
  """Return a device's dense bfloat16 operations per second from its datasheet; 0 if unknown."""
  kind = device.device_kind
  return next((p for name, p in PEAK.items() if kind == name or kind.startswith(name + ' ')), 0.0)


def capacity(device: Any) -> int:
  """Return the bytes that a program may use on a device; 0 if unknown."""
  if device.device_kind in MEMORY:
    return int(MEMORY[device.device_kind] * GIB)
  try:
    return (device.memory_stats() or {}).get('bytes_limit', 0)
  except (jax.errors.JaxRuntimeError, NotImplementedError):  # the description of an absent device
    return 0


def bytes_a_device(tree: Any) -> int:
  """Return the size on one device of a tree of arrays or ShapeDtypeStructs, in bytes."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )


def memory(compiled: Any) -> dict[str, int]:
  """Return the memory of a compiled program on one device, in bytes.

  Returns:
    'arguments', 'outputs' (without those in the memory of a donated argument), 'temporaries' (at
    the peak) and 'total', the sum.
  """
  analysis = compiled.memory_analysis()
  parts = {
    'arguments': analysis.argument_size_in_bytes,
    'outputs': analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
  }
  return parts | {'total': sum(parts.values())}


def refused(error: Exception) -> tuple[bool, int, int] | None:
  """Parse a compiler's error about too little memory.

  Returns:
    Whether the needed bytes are those of temporaries only, the needed bytes, and the bytes of the
    device. None if it is another error.

  >>> refused(ValueError('XLA:TPU compile permanent error. Used 18.50G of 15.75G hbm. Exceeded'))
  (False, 19864223744, 16911433728)
  >>> refused(ValueError('required for HLO temporaries (20.5G) exceeds available HBM (15.75G).'))
  (True, 22011707392, 16911433728)
  """
  size = r'\(?([\d.]+)([KMG])\)?'
  match = re.search(
    f'(Used) {size} of {size} hbm|(temporaries) {size} exceeds .*?{size}', str(error)
  )
  if not match:
    return None
  kind, *sizes = filter(None, match.groups())
  unit = dict(K=2**10, M=2**20, G=2**30)
  needed, limit = (int(float(n) * unit[u]) for n, u in zip(sizes[::2], sizes[1::2], strict=True))
  return kind == 'temporaries', needed, limit


def collectives(text: str) -> list[Collective]:
  """Return the communication between devices in a compiled program.

  Args:
    text: of `compiled.as_text()`.
  """
  # {computation: (kind, result, channel)}
  inside: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
  # {computation: (called computation, its number of calls, or the condition of a loop with it)}
  calls: dict[str, list[tuple[str, int | str]]] = defaultdict(list)
  constants: dict[str, list[int]] = defaultdict(list)
  entry = name = ''
  for line in text.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.\-]+) (?:\([^=]*)?.*\{$', line):
      name = head[2]
      entry = name if head[1] else entry
    elif instruction := re.match(r'\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\(', line):
      result, operation = instruction.groups()
      kind = operation.removesuffix('-start')
      if kind in COLLECTIVES:
        channel = (re.findall(r'channel_id=(\d+)', line) or [f'{name} {len(inside[name])}'])[0]
        inside[name].append((kind, _result(result, operation), channel))
      if constant := re.search(r'= s32\[\]\S* constant\((\d+)\)', line):
        constants[name].append(int(constant[1]))
      known = re.search(r'known_trip_count[^\d]*(\d+)', line)
      condition = re.search(r'condition=%?([\w.\-]+)', line)
      rounds = int(known[1]) if known else condition[1] if condition else 1
      for other in re.findall(r'(?:body|calls|to_apply|\w+_computation)=%?([\w.\-]+)', line):
        calls[name].append((other, rounds))
      for others in re.findall(r'(?:branch|called)_computations=\{([^}]*)\}', line):
        calls[name] += [(other.strip(' %'), 1) for other in others.split(',')]
  counts: Counter = Counter()
  sizes: Counter = Counter()
  seen: set[str] = set()

  def add(computation: str, times: int):
    for kind, result, channel in inside[computation]:
      if channel in seen:  # an asynchronous one has several instructions
        continue
      seen.add(channel)
      counts[kind] += times
      sizes[kind] += times * _bytes(result)
    for other, rounds in calls[computation]:
      if isinstance(rounds, str):  # the only constant in the condition of the loop
        rounds = constants[rounds][0] if len(constants[rounds]) == 1 else 1
      add(other, times * rounds)

  add(entry, 1)
  return [Collective(kind, counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]]


def kinds(text: str) -> dict[str, str]:
  """Return {instruction: kind} of a compiled program, such as dot, copy or all-reduce.

  A fusion with a matrix product is 'dot fusion', any other 'fusion'; a kernel is 'custom-call'.

  Args:
    text: of `compiled.as_text()`.
  """
  kind_of, with_products, name = {}, set(), ''
  for line in text.splitlines():
    if head := re.match(r'(?:ENTRY )?%?([\w.\-]+) (?:\([^=]*)?.*\{$', line):
      name = head[1]
    elif instruction := re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(', line):
      kind = instruction[2]
      if kind in ('dot', 'convolution'):
        with_products.add(name)
      called = re.search(r'calls=%?([\w.\-]+)', line)
      kind_of[instruction[1]] = f'dot {kind}' if called and called[1] in with_products else kind
  return kind_of


def _result(shapes: str, operation: str) -> str:
  """Return the shapes of the results; the -start of an operation also lists its operands."""
  if not operation.endswith('-start') or not shapes.startswith('('):
    return shapes
  arrays = re.findall(r'\w+\[[\d,]*\]', shapes)
  return ' '.join(arrays[len(arrays) // 2 :]) if operation != 'all-reduce-start' else shapes


def _bytes(shapes: str) -> int:
  """Return the size of shapes such as f32[8,16], in bytes."""
  total = 0
  for dtype, sizes in re.findall(r'\b([a-z]+\d*\w*)\[([\d,]*)\]', shapes):
    bits = _BITS.get(dtype) or int((re.search(r'\d+', dtype) or ['0'])[0])
    total += math.prod(int(n) for n in sizes.split(',') if n) * bits // 8
  return total
