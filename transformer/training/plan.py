"""Memory plans: what a training step needs on each device, and the cheapest change that fits.

The numbers come from the compiler. For TPUs that this machine does not have, the TPU compiler of
libtpu is used: https://docs.jax.dev/en/latest/aot.html
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from transformer.functional import platforms
from transformer.inspection import compiled
from transformer.inspection.compiled import GIB
from transformer.training import sharding
from transformer.training.experiment import Experiment
from transformer.training.programs import Programs, make_programs

Batch = dict[str, np.ndarray]
REMAT = ('none', 'products', 'block')  # each stores less


class Plan(NamedTuple):
  """The memory of a training step on each device, in bytes.

  Attributes:
    change: the flags that change the config; '' for none.
    parameters, optimizer, average, batch: the arrays that exist between steps.
    temporaries: activations, gradients and all else, at the peak.
    total: the sum. If the compiler refused the step, only this is known, and temporaries are the
      rest.
    capacity: the memory of a device; 0 if unknown.
    fits: whether the compiler accepted the step and the total is within the capacity.
    refused: whether the compiler refused the step.
    collectives: the communication between devices.
  """

  change: str
  parameters: int
  optimizer: int
  average: int
  batch: int
  temporaries: int
  total: int
  capacity: int
  fits: bool
  refused: bool
  collectives: list[compiled.Collective]

  def as_dict(self) -> dict[str, Any]:
    """Return the plan as JSON types."""
    return self._asdict() | {'collectives': [c._asdict() for c in self.collectives]}

  def __str__(self) -> str:
    unit, size = ('GiB', GIB) if self.total >= GIB else ('MiB', GIB / 1024)
    sizes = {name: getattr(self, name) / size for name in Plan._fields[1:7]}
    capacity = f' of {self.capacity / size:.2f}' if self.capacity else ''
    parts = ', '.join(f'{name} {sizes[name]:.2f}' for name in Plan._fields[1:6] if sizes[name])
    return f'a step needs {sizes["total"]:.2f}{capacity} {unit} of each device: {parts}'


def topology_devices(name: str) -> list[Any]:
  """Return descriptions of the devices of a TPU topology, such as v5e:2x2x1.

  Raises:
    ValueError: the name is malformed, or the compiler does not know it or is missing.
  """
  kind, _, sizes = name.partition(':')
  try:
    shape = [int(n) for n in sizes.split('x')]
    count = math.prod(shape)
    if len(shape) != 3 or count < 1:
      raise ValueError
  except ValueError:
    raise ValueError(
      f'--topology={name} is malformed: write KIND:XxYxZ, such as v5e:1x1x1, v5e:4x4x1 or v5p:2x2x4'
    ) from None
  # without these, libtpu queries the network for the kind of machine
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  from jax.experimental import topologies

  host = f'{kind}:2x2x1'  # the smallest that the compiler knows
  try:
    topology = topologies.get_topology_desc(
      platform='tpu', topology_name=name if count >= 4 else host, chips_per_host_bounds=(2, 2, 1)
    )
  except Exception as error:  # of no narrower type
    reason = str(error).partition('\n')[0]
    raise ValueError(
      f"--topology={name} cannot be compiled for ({reason}): pip install -e '.[tpu-compile]', and "
      'let no other process use libtpu'
    ) from error
  return topology.devices[:count]


def on(experiment: Experiment, devices: list[Any] | None, **mesh: int) -> Experiment:
  """Return an experiment on other devices (None: all of this machine), with other mesh axes."""
  new_mesh = sharding.make_mesh(**experiment.settings.mesh | mesh, over=devices)
  platform = platforms.of_device(new_mesh.devices.flat[0])
  return experiment._replace(
    mesh=new_mesh, model=dataclasses.replace(experiment.model, platform=platform)
  )


def of_step(
  programs: Programs, batch: Batch, change: str = '', steps: int = 1, traffic: bool = True
) -> Plan:
  """Compile a training step, and return its plan.

  Args:
    programs: of a run.
    batch: of all processes; only its shapes matter.
    change: for the plan; has no effect here.
    steps: the number of steps in a call.
    traffic: whether to find the collectives, which takes long for large programs.
  """
  like, device = programs.like, programs.mesh.devices.flat[0]
  stored = {
    'parameters': compiled.bytes_a_device(like.model),
    'optimizer': compiled.bytes_a_device(like.optimizer),
    'average': compiled.bytes_a_device(like.average),
    'batch': compiled.bytes_a_device(sharding.shapes_of_batch(batch, programs.mesh, steps)),
  }
  capacity = compiled.capacity(device)
  try:
    program = programs.compile_update(batch, steps)
  except jax.errors.JaxRuntimeError as error:
    if (refusal := compiled.refused(error)) is None:
      raise
    only_temporaries, total, capacity = refusal
    total += only_temporaries * sum(stored.values())
    return Plan(
      change,
      **stored,
      temporaries=total - sum(stored.values()),
      total=total,
      capacity=capacity,
      fits=False,
      refused=True,
      collectives=[],
    )
  memory = compiled.memory(program)
  total = memory['total']
  sent = compiled.collectives(program.as_text()) if traffic and programs.mesh.size > 1 else []
  return Plan(
    change,
    **stored,
    temporaries=total - sum(stored.values()),
    total=total,
    capacity=capacity,
    fits=not capacity or total <= capacity,
    refused=False,
    collectives=sent,
  )


def changes(experiment: Experiment, batch: Batch) -> Iterator[tuple[str, Experiment]]:
  """Yield (flags, changed experiment) of changes that save memory, the least slowing first."""
  settings, mesh = experiment.settings, experiment.mesh
  now = settings.train.microbatches
  rows = len(next(iter(batch.values()))) // sharding.batch_parts(mesh)
  more = [m for m in range(2 * now, rows + 1) if rows % m == 0] or [now]
  candidates: list[dict[str, Any]] = [dict(microbatches=more[0]), dict(remat='products')]
  candidates += [dict(remat='block'), dict(remat='block', microbatches=more[-1])]
  if mesh.shape['data'] > 1:
    fsdp = mesh.shape['data'] * mesh.shape['fsdp']
    candidates += [dict(fsdp=fsdp), dict(fsdp=fsdp, remat='block')]
    candidates += [dict(fsdp=fsdp, remat='block', microbatches=more[-1])]
  for change in candidates:
    changed, flags = experiment, []
    if change.get('microbatches', now) != now:
      flags.append(f'--config.train.microbatches={change["microbatches"]}')
      train = dataclasses.replace(settings.train, microbatches=change['microbatches'])
      changed = changed._replace(settings=dataclasses.replace(settings, train=train))
    if REMAT.index(change.get('remat', 'none')) > REMAT.index(experiment.model.remat):
      flags.append(f'--config.model.remat={change["remat"]}')
      changed = changed._replace(model=dataclasses.replace(changed.model, remat=change['remat']))
    if 'fsdp' in change:
      flags.append(f'--config.mesh.fsdp={change["fsdp"]}')
      changed = on(changed, list(mesh.devices.flat), data=1, fsdp=change['fsdp'])
    if len(flags) == len(change):
      yield ' '.join(flags), changed


def largest_batch(experiment: Experiment) -> Batch:
  """Return a batch of empty rows in the largest shape that the experiment trains on."""
  batches = experiment.batches(experiment.settings.data.train)
  sizes = [size * max(shape) for shape, _, size in batches.groups]
  return batches.empty(int(np.argmax(sizes)))


def cheapest(experiment: Experiment, batch: Batch) -> list[Plan]:
  """Compile a step and its `changes` until one fits; return all plans, the fitting one last."""
  plans = [of_step(make_programs(experiment), batch)]
  for flags, changed in changes(experiment, batch):
    if plans[-1].fits:
      break
    logging.info('%s: too much. Compiling it with %s', plans[-1], flags)
    plans.append(of_step(make_programs(changed), batch, flags))
  return plans


def table(plans: list[Plan]) -> str:
  """Return plans as a Markdown table, in GiB for each device."""
  names = ('parameters', 'optimizer', 'average', 'batch', 'temporaries', 'total', 'capacity')
  lines = [
    '| change | ' + ' | '.join(names) + ' | fits | sent a step |',
    '|---' * (len(names) + 3) + '|',
  ]
  for plan in plans:
    sizes = ' | '.join(f'{getattr(plan, name) / GIB:.2f}' for name in names)
    sent = ', '.join(f'{c.times} {c.kind} {c.bytes / GIB:.2f} GiB' for c in plan.collectives)
    lines.append(f'| {plan.change or "none"} | {sizes} | {"yes" if plan.fits else "no"} | {sent} |')
  return '\n'.join(lines)
