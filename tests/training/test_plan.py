"""A plan says what a step needs of each device, and what to change where that is too much."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.modules.config import ModelConfig
from transformer.training import plan, sharding
from transformer.training.experiment import Experiment
from transformer.training.plan import Plan
from transformer.training.programs import Programs, argument_names
from transformer.training.sections import Train
from transformer.training.step import State

BATCH = {'inputs': np.zeros((16, 4), np.int32)}


def programs(mesh):
  """Of a model that is one matrix, in parts."""
  split, whole = NamedSharding(mesh, P('fsdp')), NamedSharding(mesh, P())
  matrix = jax.ShapeDtypeStruct((64, 64), 'float32', sharding=split)
  step = jax.ShapeDtypeStruct((), 'int32', sharding=whole)
  like = State(step, {'kernel': matrix}, (matrix, matrix), None)

  def update(state, batch, key):
    x = batch['inputs'][0].astype(jnp.float32)
    kernel = state.model['kernel'] + jnp.sum(x @ state.model['kernel'][:4])
    return state._replace(model={'kernel': kernel}), {}

  shardings = jax.tree.map(lambda x: x.sharding, like)
  jitted = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))
  return Programs(None, None, jitted, None, like, mesh)


def test_bytes_are_those_of_one_device():
  found = plan.of_step(programs(sharding.make_mesh(data=2, fsdp=4)), BATCH)
  assert found.parameters == 64 * 64 * 4 // 4 and found.optimizer == 2 * found.parameters
  assert found.batch == 16 * 4 * 4 // 8 and found.average == 0
  parts = (found.parameters, found.optimizer, found.average, found.batch, found.temporaries)
  assert found.total == sum(parts) and found.fits and found.collectives
  assert 'a step needs' in str(found) and plan.table([found]).count('\n') == 2


def test_a_step_that_the_compiler_refuses_is_a_plan_that_does_not_fit():
  made = programs(sharding.make_mesh())
  text = 'RESOURCE_EXHAUSTED: ... Used 20.00G of 15.75G hbm. Exceeded hbm capacity by 4.25G.'

  def lower(*_):
    raise jax.errors.JaxRuntimeError(text)

  found = plan.of_step(made._replace(update=types.SimpleNamespace(lower=lower)), BATCH)
  assert (
    found.refused and not found.fits and found.total == 20 * 2**30 and 'of 15.75 GiB' in str(found)
  )


@dataclasses.dataclass
class Settings:
  train: Train
  mesh: dict


def experiment(microbatches=1, remat='none', **mesh):
  model = ModelConfig(vocab=8, width=8, heads=2, depth=1, feedforward=8, max_length=8, remat=remat)
  train = Train(steps=1, microbatches=microbatches)
  return Experiment(Settings(train, mesh), None, model, sharding.make_mesh(**mesh))


def test_what_costs_least_time_comes_first():
  found = [flags for flags, _ in plan.changes(experiment(), BATCH)]
  one, fsdp = '--config.train.microbatches=2', '--config.mesh.fsdp=8'
  block = '--config.model.remat=block'
  assert found[:3] == [one, '--config.model.remat=products', block]
  assert found[-1] == f'{one} {block} {fsdp}' and f'{block} {fsdp}' in found
  changed = dict(plan.changes(experiment(), BATCH))
  assert changed[one].settings.train.microbatches == 2 and changed[one].model.remat == 'none'
  assert changed[fsdp].mesh.shape['fsdp'] == 8 and changed[block].model.remat == 'block'
  assert not [flags for flags, _ in plan.changes(experiment(2, 'block', fsdp=8), BATCH)]


def plan_of(change, fits):
  return Plan(change, 1, 1, 0, 1, 1, 4, 3, fits, not fits, [])


def test_changes_are_tried_until_one_fits(monkeypatch):
  tried = []

  def of_step(programs, batch, change=''):
    tried.append(change)
    return plan_of(change, fits=len(tried) == 3)

  monkeypatch.setattr(plan, 'make_programs', lambda experiment: None)
  monkeypatch.setattr(plan, 'of_step', of_step)
  assert [p.change for p in plan.cheapest(experiment(), BATCH)] == tried and len(tried) == 3


@pytest.mark.parametrize('name', ['v5e', 'v5e:4', 'v5e:0x1x1', 'v5e:axbxc', ''])
def test_a_topology_that_is_none_is_refused(name):
  with pytest.raises(ValueError, match='--topology=.* is malformed: write KIND:XxYxZ'):
    plan.topology_devices(name)


@pytest.mark.slow
def test_a_step_is_planned_for_a_tpu_that_is_not_there():
  pytest.importorskip('libtpu', reason="needs the TPU's compiler: pip install -e '.[tpu-compile]'")
  devices = plan.topology_devices('v5e:2x2x1')
  found = plan.of_step(programs(sharding.make_mesh(fsdp=4, over=devices)), BATCH)
  assert found.fits and found.parameters == 64 * 64 * 4 // 4 and found.collectives
  assert found.capacity == int(15.75 * 2**30)


def test_arguments_of_a_step_have_names():
  state = State(0, {'kernel': 1}, (2,), None)
  assert argument_names(state, {'inputs': 3}, 4) == [
    'state/step', 'state/model/kernel', 'state/optimizer/0', 'batch/inputs', 'key/'
  ]  # fmt: skip
