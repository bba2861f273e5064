"""Which device holds what: the same training on every mesh, parameters really in parts."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from transformer.functional.losses import cross_entropy
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, Encoder, EncoderDecoder
from transformer.training import optimizers, sharding
from transformer.training.checkpoints import Checkpoints, digest
from transformer.training.experiment import Experiment, with_shardings
from transformer.training.optimizers import parameter_path
from transformer.training.programs import entered
from transformer.training.sharding import RULES
from transformer.training.step import init_state, train_step
from transformer.zoo import presets

CONFIG = ModelConfig(
  vocab=24, width=16, heads=4, depth=2, feedforward=32, dropout=0.25, prenorm=True, unroll=1
)
MESHES = [(1, 2, 2, 2), (2, 2, 2, 1), (2, 1, 2, 2), (8, 1, 1, 1), (1, 4, 2, 1)]
KEY = jax.random.key(0)


def mesh_of(sizes):
  return sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)))


def one_device():
  return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), sharding.AXES)


def batch(seed):
  """Rows of unequal lengths, one of them empty."""
  rng = np.random.default_rng(seed)
  lengths = np.append(rng.integers(1, 17, 7), 0)[:, None]
  inside = np.arange(16) < lengths
  tokens = np.where(inside, rng.integers(3, 24, (8, 16)), 0)
  return {'tokens': tokens.astype(np.int32), 'segments': inside.astype(np.int32)}


def loss(model, batch, key):
  shifted = jnp.pad(batch['tokens'][:, :-1], ((0, 0), (1, 0)), constant_values=1)
  logits = model(shifted, segments=batch['segments'], key=key)
  return cross_entropy(logits, batch['tokens'], batch['segments'].astype(jnp.float32)), {}


def optimizer():
  return optimizers.build(
    name='adamw',
    learning_rate=0.01,
    schedule='constant',
    warmup_steps=0,
    b1=0.9,
    b2=0.98,
    epsilon=1e-3,  # large, or rounding decides the sign of updates of parameters without gradient
    weight_decay=0.1,
    clip=1.0,
    steps=10,
    width=16,
  )[0]


def fresh(key):
  return init_state(Decoder(CONFIG, nnx.Rngs(key)), optimizer(), ema=0.9)


@functools.cache
def first_state():
  return jax.jit(fresh)(KEY)


@functools.cache
def after_two_steps(sizes):
  """(losses, state) of two updates with dropout, on this mesh or on one device."""
  mesh = one_device() if sizes is None else mesh_of(sizes)
  like = with_shardings(jax.eval_shape(fresh, KEY), mesh)
  placed = jax.tree.map(lambda x: x.sharding, like)
  state = jax.device_put(first_state(), placed)
  step = functools.partial(train_step, loss=loss, optimizer=optimizer(), ema=0.9)
  update = jax.jit(step, out_shardings=(placed, None))
  found = []
  for i in range(2):
    state, metrics = update(state, sharding.shard_batch(batch(i), mesh), KEY)
    found.append((float(metrics['loss'].value), float(metrics['gradient_norm'])))
  return found, state


SLOW = [pytest.param(sizes, marks=pytest.mark.slow) for sizes in MESHES[1:]]


@pytest.fixture(params=[MESHES[0], *SLOW], ids=str)
def sizes(request):
  return request.param


def test_initial_parameters_are_the_same_on_a_mesh():
  placed = sharding.shardings(jax.eval_shape(fresh, KEY), mesh_of((2, 2, 2, 1)))
  there = jax.jit(fresh, out_shardings=placed)(KEY)
  for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(first_state()), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_training_is_the_same_on_every_mesh(sizes):
  """Loss, gradient (its norm, and Adam's moments of it) and parameters, with dropout on."""
  found, state = after_two_steps(sizes)
  expected, alone = after_two_steps(None)
  np.testing.assert_allclose(found, expected, rtol=2e-5)
  paths = jax.tree_util.tree_leaves_with_path(alone)
  for (path, b), a in zip(paths, jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=parameter_path(path))


TINY = dict(vocab=24, width=16, heads=4, depth=1, feedforward=32, dropout=0.0, unroll=1)
KINDS = {  # each with another mesh
  'bert': (Encoder, presets.BERT_BASE, (1, 2, 2, 2)),
  'llama': (Decoder, presets.LLAMA_7B | dict(kv_heads=2), (2, 1, 2, 2)),
  'alibi': (Decoder, presets.GPT2 | dict(position='alibi'), (1, 2, 1, 4)),
  'mixtral': (Decoder, presets.LLAMA_7B | dict(experts=4, experts_per_token=2), (4, 1, 2, 1)),
  't5': (EncoderDecoder, presets.T5_SMALL, (2, 2, 1, 2)),
  'transformer': (EncoderDecoder, presets.TRANSFORMER_BASE, (1, 1, 2, 4)),
}


EVERY_MESH = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(s) == 8]


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_model_is_the_same_on_a_mesh(kind, pytestconfig, bounded):
  """Loss and gradient, where devices share the rows of attention, too.

  `pytest -m slow -k every_kind --every-mesh --report` compares all meshes, and says how close.
  """
  build, preset, sizes = KINDS[kind]
  sizes_of_model = TINY | dict(attention_dropout=0.0, max_length=16)
  config = ModelConfig(**{**preset, **sizes_of_model})

  def start(key):
    return build(config, nnx.Rngs(key))

  def summed(model, batch):
    tokens, inside = batch['tokens'], batch['segments']
    if build is EncoderDecoder:
      y = model(tokens, tokens, input_segments=inside, target_segments=inside)
    else:
      y = model(tokens, segments=inside)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)) * inside[..., None])

  model = jax.jit(start)(KEY)

  def on(mesh):
    placed = jax.device_put(model, sharding.shardings(model, mesh))
    with entered(mesh):
      return jax.jit(jax.value_and_grad(summed))(placed, sharding.shard_batch(batch(0), mesh))

  alone, wanted = jax.tree.map(np.asarray, on(one_device()))
  scale = max(np.abs(x).max() for x in jax.tree.leaves(wanted))
  for mesh in EVERY_MESH if pytestconfig.getoption('every_mesh') else [sizes]:
    together, gradient = on(mesh_of(mesh))
    assert float(together) == pytest.approx(float(alone), rel=2e-5, abs=2e-4)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True)
    error = max(np.abs(np.asarray(a) - b).max() for a, b in pairs)
    bounded(f'gradient on {mesh}', error / scale, below=2e-5)
    bounded(f'loss on {mesh}', abs(float(together) - alone) / max(abs(alone), 1), below=2e-4)


def test_dropout_was_on_in_the_comparison_of_meshes():
  """Otherwise the test above would not show that its bits are the same on every mesh."""
  one = jax.tree.map(jnp.asarray, batch(0))
  kept = float(jax.jit(loss)(first_state().model, one, None)[0].value)
  assert abs(after_two_steps(None)[0][0][0] - kept) > 1e-3


def test_parameters_are_sharded(sizes):
  """By the table, moments and averages like their parameters."""
  state = after_two_steps(sizes)[1]
  _, fsdp, tensor, _ = sizes
  parts = {
    r'attention/query/kernel$': (2, 16 // fsdp, 16 // tensor),
    r'attention/out/kernel$': (2, 16 // tensor, 16 // fsdp),
    r'feedforward/hidden/kernel$': (2, 16 // fsdp, 32 // tensor),
    r'feedforward/hidden/bias$': (2, 32 // tensor),
    r'feedforward/out/kernel$': (2, 32 // tensor, 16 // fsdp),
    r'feedforward/out/bias$': (2, 16),
    r'embed/table$': (24 // tensor, 16 // fsdp),
    r'attention_norm/scale$': (2, 16),
  }
  seen = dict.fromkeys(parts, 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    for pattern, shape in parts.items():
      if re.search(pattern, parameter_path(path)):
        seen[pattern] += 1
        assert {s.data.shape for s in leaf.addressable_shards} == {shape}, parameter_path(path)
        assert len(leaf.addressable_shards) == 8
  assert all(count >= 4 for count in seen.values()), seen  # model, two moments, average


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'lion', 'sgd'])
def test_rules_cover_every_path_of_the_state(name):
  """Every large matrix has a rule of its own, in every variant; statistics that are smaller too."""
  mesh = mesh_of((2, 2, 2, 1))
  chain, _ = optimizers.build(
    **dict(name=name, learning_rate=1.0, schedule='constant', warmup_steps=0),
    **dict(weight_decay=0.1, clip=1.0, steps=1, width=128),
  )
  for variant in (dict(tie='none', gated=True, norm='rms'), dict(position='learned', bias=False)):
    config = dataclasses.replace(CONFIG, width=128, feedforward=256, **variant)
    make = lambda key, c=config: init_state(EncoderDecoder(c, nnx.Rngs(key)), chain, ema=0.9)
    state = jax.eval_shape(make, KEY)
    placed = sharding.shardings(state, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), where in zip(leaves, jax.tree.leaves(placed), strict=True):
      assert where.mesh == mesh and len(where.spec) <= len(leaf.shape)
      where.shard_shape(leaf.shape)  # raises where an axis does not divide
      path = parameter_path(path)
      matrix = path.endswith(('/kernel', 'embed/table', 'output/table'))
      if matrix and leaf.size >= 24 * 128:
        whole = re.search(r'v_row|v_col', path)  # of adafactor: vectors, not worth a rule
        assert whole or {'fsdp', 'tensor'} <= set(where.spec), (path, where.spec)


def test_an_axis_that_the_mesh_does_not_divide_is_not_sharded():
  tree = {'blocks': {'query': {'kernel': jax.ShapeDtypeStruct((2, 15, 16), 'float32')}}}
  (where,) = jax.tree.leaves(sharding.shardings(tree, mesh_of((2, 2, 2, 1))))
  assert where.spec == P(None, None, 'tensor')


def test_a_vocabulary_that_the_mesh_does_not_divide_is_said():
  mesh = mesh_of((2, 2, 2, 1))
  assert not sharding.whole_tables(24, mesh)
  assert 'mesh.tensor=2 does not divide the 25 tokens' in sharding.whole_tables(25, mesh)


def test_the_last_rule_matches_every_path():
  assert RULES[-1] == (r'.*', P())


def test_batches_are_sharded():
  mesh = mesh_of((2, 1, 2, 2))
  placed = sharding.shard_batch({'x': np.arange(32).reshape(4, 8)}, mesh)['x']
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 4)}
  np.testing.assert_array_equal(placed, np.arange(32).reshape(4, 8))
  stacked = sharding.shard_batch({'x': np.arange(32).reshape(1, 4, 8)}, mesh, stacked=True)['x']
  assert {s.data.shape for s in stacked.addressable_shards} == {(1, 2, 4)}
  labels = sharding.shard_batch({'label': np.arange(4)}, mesh)['label']  # without positions
  assert {s.data.shape for s in labels.addressable_shards} == {(2,)}
  assert sharding.batch_parts(mesh) == 2
  assert sharding.batch_parts(mesh_of((2, 2, 2, 1))) == 4


@pytest.mark.parametrize(
  'sizes, devices, shares',
  [
    ((8, 1, 1, 1), 4, [(0, 2), (1, 2)]),
    ((2, 2, 2, 1), 4, [(0, 2), (1, 2)]),
    ((4, 1, 2, 1), 1, [(i // 2, 4) for i in range(8)]),  # two processes compute the same rows
    ((1, 1, 8, 1), 4, [(0, 1), (0, 1)]),
    ((1, 1, 4, 2), 4, [(0, 1), (0, 1)]),
  ],
)
def test_processes_share_the_rows_of_their_devices(sizes, devices, shares):
  of = lambda device: device.id // devices
  assert [sharding.share(mesh_of(sizes), i, of) for i in range(len(shares))] == shares


def test_processes_whose_rows_are_no_share_are_refused():
  with pytest.raises(ValueError, match='process 0 would compute the parts .* no equal share'):
    sharding.share(mesh_of((8, 1, 1, 1)), 0, lambda device: device.id % 2)


def test_rows_of_an_image_that_a_mesh_does_not_divide_are_refused():
  experiment = Experiment(settings=None, task=None, model=None, mesh=mesh_of((1, 1, 1, 8)))
  experiment._check_lengths([32])
  with pytest.raises(ValueError, match=r'mesh.sequence=8 does not divide .* \[28\].*height'):
    experiment._check_lengths([28])


def test_data_takes_the_devices_that_are_left():
  assert mesh_of((-1, 2, 2, 1)).shape == dict(data=2, fsdp=2, tensor=2, sequence=1)


@pytest.mark.parametrize(
  'sizes, message',
  [
    ((3, 1, 1, 1), 'mesh data=3 x fsdp=1 x tensor=1 x sequence=1 is not 8, the number of devices'),
    ((-1, 3, 1, 1), 'mesh data=-1 x fsdp=3 .* is not 8'),
    ((4, 4, 1, 1), 'mesh data=4 x fsdp=4 .* is not 8'),
    ((-2, 1, 1, 1), 'mesh data=-2 .* is not 8'),
    ((-1, 0, 1, 1), 'mesh.fsdp=0 must be at least 1'),
    ((-1, -1, -1, 1), 'mesh.fsdp=-1 must be at least 1'),
  ],
)
def test_wrong_meshes_are_an_error(sizes, message):
  with pytest.raises(ValueError, match=message):
    mesh_of(sizes)


@pytest.mark.parametrize('there', [(2, 1, 2, 2), None], ids=str)
def test_a_checkpoint_of_one_mesh_restores_on_another(tmp_path, there):
  """Bit for bit, and in the parts of the mesh where it is read."""
  state = after_two_steps((2, 2, 2, 1))[1]
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, 2)
  mesh = one_device() if there is None else mesh_of(there)
  like = with_shardings(jax.eval_shape(fresh, KEY), mesh)
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(like)
  assert digest(restored) == digest(state)
  for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
