"""Profile of training steps: a trace, the time by kind of operation, and the MFU."""

import collections
import dataclasses
import itertools
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.pipeline import Batch
from transformer.inspection import compiled, operations
from transformer.training import sharding
from transformer.training.experiment import Experiment
from transformer.training.programs import entered, make_programs

WARM_UP = 2  # steps before the measurement
SIZE, PRODUCTS = 4096, 8  # of the matrices that measure the peak, and the number of products
# kinds of instructions that run others, whose time would be counted twice, or do nothing
CONTROL = re.compile(r'while|conditional|call|tuple|parameter|get-tuple-element|async|Thunk')


def step_operations(experiment: Experiment, batch: Batch) -> int:
  """Return the number of operations in a training step's matrix products, forward and backward.

  It is three times that of the forward pass (https://arxiv.org/abs/2204.02311, appendix B). The
  attention scores of all pairs of positions are counted, even if a kernel skips some, and what
  rematerialization computes again is not counted.

  Args:
    experiment: gives task and model.
    batch: of all processes; only its shapes matter.
  """
  plain = dataclasses.replace(experiment.model, platform='cpu', remat='none')
  model = jax.eval_shape(experiment._replace(model=plain).init, jax.random.key(0))
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
  return 3 * operations.count(
    lambda model, batch: experiment.task.loss(model, batch, None)[0].sum, model, shapes
  )


def measured_peak() -> float:
  """Measure the operations per second of large bfloat16 matrix products on one device."""
  a = jax.random.normal(jax.random.key(0), (SIZE, SIZE), jnp.bfloat16)
  chain = jax.jit(lambda a: jax.lax.fori_loop(0, PRODUCTS, lambda _, x: (x @ a) * SIZE**-0.5, a))
  chain(a).block_until_ready()
  began = time.perf_counter()
  chain(a).block_until_ready()
  return PRODUCTS * 2 * SIZE**3 / (time.perf_counter() - began)


def profile(experiment: Experiment, folder: Any, steps: int) -> dict[str, Any]:
  """Train from random parameters under JAX's profiler, and return the times.

  Args:
    experiment: the run.
    folder: for the trace, which TensorBoard and Perfetto can open.
    steps: the number of steps that are traced.

  Returns:
    'steps', 'seconds_per_step', 'operations_per_step', 'operations_per_second_and_device',
    'mfu_datasheet' and 'mfu_measured' (shares of the peak, None if that is unknown),
    'time_by_kind' (see `by_kind`) and 'trace' (the folder).
  """
  programs, mesh = make_programs(experiment), experiment.mesh
  batches = experiment.batches(experiment.settings.data.train)
  state, key = programs.start(jax.random.key(0)), jax.random.key(0)
  largest = max(range(len(batches.groups)), key=lambda g: batches.groups[g][2] * batches.counts[g])
  shapes = {name: rows.shape[1:] for name, rows in batches.empty(largest).items()}
  same_shape = (batches[i] for i in itertools.count())  # the shape with the most rows
  same_shape = (b for b in same_shape if {n: x.shape[1:] for n, x in b.items()} == shapes)

  def train(count):
    nonlocal state
    for batch in itertools.islice(same_shape, count):
      stacked = sharding.shard_batch({n: x[None] for n, x in batch.items()}, mesh, stacked=True)
      with entered(mesh):
        state, _ = programs.update(state, stacked, key)
    jax.block_until_ready(state)

  train(WARM_UP)
  began = time.perf_counter()
  train(steps)
  seconds = (time.perf_counter() - began) / steps
  with jax.profiler.trace(str(folder)):
    train(steps)
  text = programs.compile_update(batches.empty(largest)).as_text()
  work = step_operations(experiment, batches.empty(largest))
  device, rate = mesh.devices.flat[0], work / seconds / mesh.size
  peak = compiled.peak(device)
  measured = measured_peak() if device.platform != 'cpu' else 0.0
  return {
    'steps': steps,
    'seconds_per_step': seconds,
    'operations_per_step': work,
    'operations_per_second_and_device': rate,
    'mfu_datasheet': rate / peak if peak else None,
    'mfu_measured': rate / measured if measured else None,
    'time_by_kind': by_kind(newest_trace(folder), compiled.kinds(text)),
    'trace': str(folder),
  }


def newest_trace(folder: Any) -> Any:
  """Return the newest trace in a folder, as jax.profiler.ProfileData."""
  files = sorted(folder.rglob('*.xplane.pb'), key=lambda file: file.stat().st_mtime)
  return jax.profiler.ProfileData.from_file(str(files[-1]))


def by_kind(trace: Any, kinds: dict[str, str]) -> dict[str, float]:
  """Return {kind of operation: its share of the devices' time}, the largest first.

  Args:
    trace: of JAX's profiler.
    kinds: {name of an instruction: its kind}; see compiled.kinds.
  """
  planes = [plane for plane in trace.planes if plane.name.startswith('/device:')]
  planes = planes or [plane for plane in trace.planes if plane.name == '/host:CPU']
  times: collections.Counter = collections.Counter()
  for plane in planes:
    for line in plane.lines:
      for event in line.events:
        name = event.name.split(' ')[0].lstrip('%')
        if name in kinds and not CONTROL.match(kinds[name]):
          times[kinds[name]] += event.duration_ns
  whole = sum(times.values()) or 1
  return {kind: float(np.round(t / whole, 4)) for kind, t in times.most_common()}
