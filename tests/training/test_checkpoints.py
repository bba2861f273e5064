"""The state on disk: back bit for bit, or an error that says what is damaged and what to do."""

import contextlib
import gc
import importlib.util
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fuzzing import mutate

from transformer.training import checkpoints as module
from transformer.training.checkpoints import Checkpoints, Kept, digest
from transformer.training.config import for_task
from transformer.training.step import State
from transformer.training.workdir import Workdir

LEFT_BEHIND = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def state_of(seed=0, width=6):
  """A state with the dtypes and shapes that training has; one array is large."""
  keys = jax.random.split(jax.random.key(seed), 3)
  model = {
    'blocks': {'kernel': jax.random.normal(keys[0], (2, width, 300))},
    'norm': {'scale': jnp.array([0.0, -0.0, jnp.nan, jnp.inf, 1e-45, 1.0])},
    'half': jax.random.normal(keys[1], (3, width)).astype(jnp.bfloat16),
  }
  optimizer = ({'mu': jax.random.normal(keys[2], (width,))}, jnp.asarray(seed, jnp.int32))
  return State(jnp.asarray(seed, jnp.int32), model, optimizer, None)


def like(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def same_bits(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(
    x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves
  )


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A workdir with checkpoints of steps 1 to 4, of which the last two are kept, and a best one."""
  workdir = tmp_path_factory.mktemp('run')
  with Checkpoints(workdir, keep=2) as checkpoints:
    for step in range(1, 5):
      checkpoints.save(state_of(step), step)
    checkpoints.save_best(state_of(2).model, 2, {'bleu': 30.0, 'nll': 1.5})
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  """A copy of it to damage."""
  return shutil.copytree(saved, tmp_path / 'run')


def steps(workdir, name='last'):
  return sorted(int(path.name) for path in (workdir / 'checkpoints' / name).iterdir())


def test_a_state_is_restored_to_the_last_bit(saved):
  with Checkpoints(saved) as checkpoints:
    assert checkpoints.last_step == 4
    assert same_bits(checkpoints.restore(like(state_of())), state_of(4))


def test_a_checkpoint_describes_itself(tmp_path):
  with Checkpoints(tmp_path, about={'config': {'width': 6}, 'tokenizer': {'größe': 'ß'}}) as each:
    each.save(state_of(3), 3, scores={'loss': 0.5})
  with Checkpoints(tmp_path) as checkpoints:
    arrays, about = checkpoints.read()
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*last/2: those of steps .3. are'):
      checkpoints.read(2)
  assert digest(arrays) == digest(state_of(3))
  assert about['run'] == {'config': {'width': 6}, 'tokenizer': {'größe': 'ß'}}
  assert (about['step'], about['format'], about['scores']) == (3, module.FORMAT, {'loss': 0.5})


@pytest.mark.skipif(importlib.util.find_spec('gcsfs') is not None, reason='gcsfs is installed')
def test_a_url_names_the_library_that_it_needs():
  with pytest.raises(ValueError, match='gs://bucket/run cannot be reached .*pip install gcsfs'):
    Checkpoints('gs://bucket/run')


def test_a_run_may_keep_its_checkpoints_elsewhere(tmp_path):
  """By the same paths that URLs have."""
  workdir = Workdir(tmp_path / 'run')
  config = for_task('masked_lm').to_dict()
  config['train'] |= {'checkpoint_dir': str(tmp_path / 'bucket')}
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text(json.dumps({'format': 2} | config))
  with Checkpoints(epath.Path(tmp_path) / 'bucket') as checkpoints:
    checkpoints.save(state_of(7), 7)
  assert workdir.last_step() == 7
  with Checkpoints(workdir.checkpoint_dir()) as checkpoints:
    assert same_bits(checkpoints.restore(like(state_of())), state_of(7))


def test_a_checkpoint_of_a_later_format_is_refused(workdir, monkeypatch):
  with monkeypatch.context() as later, Checkpoints(workdir, keep=2) as checkpoints:
    later.setattr(module, 'FORMAT', module.FORMAT + 1)
    checkpoints.save(state_of(5), 5)
  with pytest.raises(ValueError, match='has format 3, and this version reads 1 to 2: update'):
    read(workdir)


def test_a_parameter_that_was_renamed_is_restored(saved, monkeypatch):
  state = state_of()
  renamed = {'normal' if name == 'norm' else name: x for name, x in state.model.items()}
  target = like(state._replace(model=renamed))
  with Checkpoints(saved) as checkpoints:
    with pytest.raises(ValueError, match='normal.scale .* is missing; .*norm.scale .* is not'):
      checkpoints.restore(target)
    monkeypatch.setattr(module, 'RENAMED', {'normal': 'norm'})
    assert same_bits(checkpoints.restore(target), state_of(4))
    assert same_bits(checkpoints.restore(like(state)), state_of(4))


def test_the_best_one_is_kept(saved):
  """However many are saved after it."""
  assert steps(saved) == [3, 4] and steps(saved, 'best') == [2]
  with Checkpoints(saved) as checkpoints:
    assert checkpoints.best == (2, {'bleu': 30.0, 'nll': 1.5})
    assert same_bits(checkpoints.restore(like(state_of().model), which='best'), state_of(2).model)


def test_asking_for_the_best_one_again_keeps_no_memory(saved):
  """TensorStore 0.1.86 never frees the metadata that it returns."""
  with Checkpoints(saved) as checkpoints:
    best = checkpoints.best
    gc.collect()
    before = len(gc.get_objects())
    assert [checkpoints.best for _ in range(3)] == [best] * 3
    gc.collect()
    assert len(gc.get_objects()) < before + 10


def test_a_better_checkpoint_replaces_the_best_one(workdir):
  """Also one of the same step, such as an average of checkpoints."""
  with Checkpoints(workdir) as checkpoints:
    checkpoints.save_best(state_of(7).model, 2, {'bleu': 31.0})
    assert checkpoints.best == (2, {'bleu': 31.0})
    model = like(state_of().model)
    assert same_bits(checkpoints.restore(model, which='best'), state_of(7).model)
    checkpoints.save_best(state_of(8).model, 9, {'bleu': 32.0})
    assert same_bits(checkpoints.restore(model, which='best'), state_of(8).model)
  assert steps(workdir, 'best') == [9]


def test_a_checkpoint_can_be_read_while_it_is_saved(tmp_path):
  """Reading waits for the save in the background."""
  with Checkpoints(tmp_path, keep=3) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(state_of(step), step)
    assert same_bits(checkpoints.restore(like(state_of())), state_of(3))
  with Checkpoints(tmp_path / 'other', keep=3) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(state_of(step), step)
    checkpoints.average(like(state_of()), 3)


def test_saved_buffers_may_be_donated(tmp_path):
  """As the training step does right after."""
  state = state_of(5)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, 5)
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
  with Checkpoints(tmp_path) as checkpoints:
    assert same_bits(checkpoints.restore(like(state_of())), state_of(5))


def test_a_step_is_saved_once(workdir):
  with Checkpoints(workdir, keep=2) as checkpoints:
    checkpoints.save(state_of(9), 4)
    assert same_bits(checkpoints.restore(like(state_of())), state_of(4))


class Info:
  def __init__(self, step):
    self.step = step


def kept_of(policy, saves):
  """The steps left after saving these in turn."""
  left = []
  for step in saves:
    left.append(step)
    keep = policy.should_preserve([Info(s) for s in left], context=None)
    left = [s for s, k in zip(left, keep, strict=True) if k]
  return left


@pytest.mark.parametrize('keep', [1, 2, 5])
@pytest.mark.parametrize('steps', [40, 43])
def test_stopped_runs_keep_the_same_checkpoints(keep, steps, rng):
  """The checkpoint that a signal made at another step is deleted."""
  regular = [*range(5, steps, 5), steps]
  expected = kept_of(Kept(keep), regular)
  assert expected == regular[-keep:]
  for _ in range(20):
    odd = rng.choice(np.arange(1, steps), size=3, replace=False).tolist()
    policy = Kept(keep, {*odd} - {*regular})
    assert kept_of(policy, sorted({*regular, *odd})) == expected


@pytest.mark.parametrize(
  'keep, before, after, left',
  [
    (5, [10, 20, 30, 40, 50], [60], [20, 30, 40, 50, 60]),  # now saved every 12
    (5, [10, 20], [24, 36], [10, 20, 24, 36]),
    (3, [10, 20, 30], [31], [20, 30, 31]),
    (2, [10, 20, 30, 40, 50], [60], [50, 60]),  # train.keep_checkpoints was lowered
    (9, [10, 20, 30], [40, 50], [10, 20, 30, 40, 50]),  # or raised
  ],
)
def test_going_on_with_other_intervals_keeps_the_last_checkpoints(keep, before, after, left):
  assert kept_of(Kept(keep), [*before, *after]) == left


def test_checkpoints_count_as_they_are(workdir):
  """Those of a resumed run, whatever its interval is now; but not one of a stop."""
  with Checkpoints(workdir, keep=3) as checkpoints:
    checkpoints.save(state_of(5), 5, extra=True)
  assert steps(workdir) == [3, 4, 5]
  with Checkpoints(workdir, keep=3) as checkpoints:
    assert checkpoints.last_step == 5
    checkpoints.save(state_of(8), 8)
    assert checkpoints.averaged_steps(2) == [4, 8]
  assert steps(workdir) == [3, 4, 8]


@pytest.mark.parametrize('name', ['x[1]', 'lr=[0.1]*?', 'a\\b', 'plain'])
def test_a_path_that_orbax_would_take_for_a_pattern_is_saved_and_restored(tmp_path, name):
  """Saved whole, where it belongs, and found again."""
  folder = tmp_path / name / 'run'
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(state_of(1), 1)
    checkpoints.save_best(state_of(2).model, 2, {})
  with Checkpoints(folder) as checkpoints:
    assert same_bits(checkpoints.restore(like(state_of())), state_of(1))
    assert same_bits(checkpoints.restore(like(state_of().model), which='best'), state_of(2).model)
    with pytest.raises(ValueError) as error:
      checkpoints.restore(like(state_of(width=8)))
  assert f'checkpoint {folder}/checkpoints/last/1 is of another' in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert steps(folder) == [1] and steps(folder, 'best') == [2]


@contextlib.contextmanager
def largest_file(size):
  """Let no file grow larger, as a full disk does."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_save_is_one_line_and_leaves_the_others(workdir):
  """What fails in the background is said at the next save, or at the end."""
  with pytest.raises(
    OSError, match='no checkpoint could be saved in .*Those before it are whole'
  ) as e:
    with largest_file(50_000), Checkpoints(workdir, keep=2) as checkpoints:
      checkpoints.save(state_of(5, width=99), 5)
  assert '\n' not in str(e.value)
  assert same_bits(read(workdir), state_of(4))


@pytest.mark.parametrize('error', [PermissionError('no'), MemoryError('RESOURCE_EXHAUSTED')])
def test_errors_of_memory_and_permission_are_not_called_damage(saved, error, monkeypatch):
  def fails(*args):
    raise error

  with Checkpoints(saved) as checkpoints:
    monkeypatch.setattr(module, '_checksums', fails)
    with pytest.raises(type(error), match=str(error)):
      checkpoints.restore(like(state_of()))


def test_the_average_is_the_mean_of_the_last(workdir):
  """Of the last n, or of as many as there are; in the dtype of each array."""
  states = {step: jax.tree.map(np.asarray, state_of(step)) for step in (3, 4)}
  with Checkpoints(workdir) as checkpoints:
    for n, of in ((1, (4,)), (2, (3, 4)), (5, (3, 4))):
      found = checkpoints.average(like(state_of()), n)
      expected = jax.tree.map(
        lambda *x: np.mean([np.float64(v) for v in x], axis=0), *[states[s] for s in of]
      )
      for a, b, was in zip(*map(jax.tree.leaves, (found, expected, state_of())), strict=True):
        assert a.dtype == was.dtype
        if jnp.issubdtype(a.dtype, jnp.floating):
          exact = 1e-2 if a.dtype == jnp.bfloat16 else 1e-6
          np.testing.assert_allclose(np.float64(a), b, rtol=exact, atol=exact)


def test_a_folder_without_checkpoints_is_named(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.last_step is None and checkpoints.best is None
    for read in (
      lambda: checkpoints.restore(like(state_of())),
      lambda: checkpoints.restore(like(state_of()), which='best'),
      lambda: checkpoints.average(like(state_of()), 2),
    ):
      with pytest.raises(FileNotFoundError, match=f'no checkpoint in {tmp_path}.*: train first'):
        read()


def test_a_run_that_stopped_before_its_first_validation_says_so(workdir):
  shutil.rmtree(workdir / 'checkpoints' / 'best')
  with Checkpoints(workdir) as checkpoints:
    with pytest.raises(FileNotFoundError, match='until the first validation'):
      checkpoints.restore(like(state_of().model), which='best')


def test_a_checkpoint_of_another_width_names_paths_and_shapes(saved):
  """Names paths and both shapes."""
  with Checkpoints(saved) as checkpoints:
    with pytest.raises(ValueError) as error:
      checkpoints.restore(like(state_of(width=8)))
  text = str(error.value)
  assert f'checkpoint {saved / "checkpoints" / "last" / "4"} is of another model' in text
  assert 'model.blocks.kernel has shape (2, 6, 300), not (2, 8, 300)' in text
  assert 'optimizer.0.mu has shape (6,), not (8,)' in text
  assert 'another --workdir' in text


def test_a_checkpoint_with_other_arrays_names_them(saved):
  state = state_of()
  state.model['more'] = state.model.pop('half')
  with Checkpoints(saved) as checkpoints:
    with pytest.raises(
      ValueError, match='more .3, 6. is missing; .*half .3, 6. is not of this model'
    ):
      checkpoints.restore(like(state))


def files(workdir):
  """Return all files of the last checkpoint that are not empty, the largest first."""
  found = (workdir / 'checkpoints' / 'last' / '4').rglob('*')
  return sorted((f for f in found if f.is_file()), key=lambda f: -f.stat().st_size)


def read(workdir):
  with Checkpoints(workdir) as checkpoints:
    return checkpoints.restore(like(state_of()))


def is_found(workdir):
  """Return whether the damage is an error; if not, the state must be right."""
  try:
    assert same_bits(read(workdir), state_of(4))
    return False
  except ValueError as error:
    assert f'checkpoint {workdir / "checkpoints" / "last" / "4"} is damaged: ' in str(error)
    assert 'Move that folder elsewhere to resume from the one before' in str(error)
    assert isinstance(error, module.Damaged)
    return True
  finally:
    gc.collect()  # Orbax leaves coroutines that raised; here they are ours to ignore


@LEFT_BEHIND
@pytest.mark.parametrize(
  'how', ['flip', *(pytest.param(how, marks=pytest.mark.slow) for how in ('truncate', 'delete'))]
)
def test_a_damaged_file_is_found(workdir, how):
  """For every file: the state is right, or there is an error."""
  found = 0
  for file in files(workdir):
    whole = file.read_bytes()
    if how == 'truncate':
      file.write_bytes(whole[: len(whole) // 2])
    elif how == 'flip':
      middle = len(whole) // 2
      file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    else:
      file.unlink()
    found += is_found(workdir)
    file.write_bytes(whole)
  assert found >= 4
  assert same_bits(read(workdir), state_of(4))


@pytest.mark.parametrize('cause', [MemoryError(), PermissionError(), KeyboardInterrupt()])
def test_what_is_no_damage_is_raised_as_it_is(cause):
  """Orbax raises its own error from any other."""
  with pytest.raises(type(cause)), module._damage_named(epath.Path('run')):
    raise KeyError('incompatible handler') from cause


@LEFT_BEHIND
def test_a_checkpoint_is_named_that_orbax_cannot_open(workdir):
  (file,) = (file for file in files(workdir) if file.name == '_CHECKPOINT_METADATA')
  whole = file.read_text()
  file.write_text(whole.replace('item_handlers', 'item_hand;ers'))
  assert is_found(workdir)
  file.write_text(whole)


@LEFT_BEHIND
@pytest.mark.slow
def test_many_damaged_checkpoints_are_restored_right_or_named(workdir, rng, pytestconfig):
  for _ in range(pytestconfig.getoption('damaged')):
    of_all = files(workdir)
    file = of_all[rng.integers(len(of_all))]
    whole = file.read_bytes()
    file.write_bytes(mutate(whole, rng))
    is_found(workdir)
    file.write_bytes(whole)


@LEFT_BEHIND
def test_one_changed_bit_of_a_large_array_is_found(workdir):
  """Orbax alone does not detect it: its checksums are of its indices."""
  file = files(workdir)[0]
  whole = bytearray(file.read_bytes())
  found = 0
  for place in np.linspace(0, len(whole) - 1, 7, dtype=int):
    whole[place] ^= 1
    file.write_bytes(whole)
    found += is_found(workdir)
    whole[place] ^= 1
  assert found >= 5


def test_missing_checksums_are_damage(workdir):
  file = workdir / 'checkpoints' / 'last' / '4' / '_CHECKPOINT_METADATA'
  whole = json.loads(file.read_text())
  sums = whole['custom_metadata']['checksums']
  other = {path.replace('model.half', 'model.other'): value for path, value in sums.items()}
  for about in ({'checksums': {}}, {}, None, {'checksums': other}):
    file.write_text(json.dumps(whole | {'custom_metadata': about}))
    assert is_found(workdir)


def test_after_moving_a_damaged_checkpoint_the_one_before_is_restored(workdir, tmp_path):
  """As the message says."""
  shutil.move(workdir / 'checkpoints' / 'last' / '4', tmp_path)
  assert same_bits(read(workdir), state_of(3))


def test_a_damaged_checkpoint_can_be_set_aside(workdir):
  """And the same step be saved again; the last one stays."""
  with Checkpoints(workdir, keep=2) as checkpoints:
    assert checkpoints.set_aside()
    assert checkpoints.last_step == 3 and not checkpoints.set_aside()
    assert same_bits(checkpoints.restore(like(state_of())), state_of(3))
    checkpoints.save(state_of(4), 4)
    assert checkpoints.set_aside()
  assert steps(workdir) == [3]
  assert {f.name for f in (workdir / 'checkpoints' / 'damaged').iterdir()} == {'4-1', '4-2'}


def test_the_files_of_a_killed_save_are_ignored(workdir):
  half = workdir / 'checkpoints' / 'last' / '5.orbax-checkpoint-tmp'
  shutil.copytree(workdir / 'checkpoints' / 'last' / '4', half)
  (half / 'state' / 'manifest.ocdbt').unlink()
  with Checkpoints(workdir, keep=2) as checkpoints:
    assert checkpoints.last_step == 4
    assert same_bits(checkpoints.restore(like(state_of())), state_of(4))
    checkpoints.save(state_of(5), 5)
  with Checkpoints(workdir) as checkpoints:
    assert checkpoints.last_step == 5
    assert same_bits(checkpoints.restore(like(state_of())), state_of(5))


def test_digest_changes_exactly_with_the_bits():
  state = state_of()
  assert digest(state) == digest(jax.tree.map(jnp.copy, state)) != digest(state_of(1))
  for change in (
    lambda m: m['norm'].update(scale=m['norm']['scale'].at[0].set(-0.0)),
    lambda m: m.update(half=-m['half']),
    lambda m: m['blocks'].update(kernel=m['blocks']['kernel'].reshape(2, 300, 6)),
    lambda m: m['norm'].update(gain=m['norm'].pop('scale')),
    lambda m: m.update(half=m['half'].astype(jnp.float32)),
  ):
    other = jax.tree.map(lambda x: x, state)
    change(other.model)
    assert digest(other) != digest(state)


def test_digest_is_of_paths_not_of_order():
  a, b = jnp.ones(2), jnp.zeros(2)
  assert digest({'a': a, 'b': b}) == digest({'b': b, 'a': a}) != digest({'a': b, 'b': a})
