"""Fine-tuning: warm start, learning rates by parameter path, adapters."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from parameters import drawn
from processes import ROOT

from experiments import published
from transformer.data import tokenizers
from transformer.modules.adapters import adapt, merge
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier, MaskedTokens
from transformer.modules.model import Decoder, Encoder
from transformer.training import experiment, optimizers, sharding
from transformer.training.checks import check
from transformer.training.exports import published_files, published_settings
from transformer.training.optimizers import parameter_path
from transformer.training.warm_start import copy_parameters, warm_start
from transformer.zoo.families.rows import leaves
from transformer.zoo.pretrained import load_pretrained, save_pretrained

TINY = ModelConfig(vocab=11, width=16, depth=2, heads=2, feedforward=24, max_length=8, unroll=1)
TOKENS = jnp.array([[1, 2, 3], [4, 5, 0]])


def by_path(model):
  return {parameter_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(model)}


def test_a_head_starts_from_the_encoder_of_another_head():
  given = drawn(lambda: MaskedTokens(TINY, nnx.Rngs(0)))
  fresh = drawn(lambda: Classifier(TINY, 3, nnx.Rngs(1)), seed=1)
  found, before = by_path(copy_parameters(given, fresh)), by_path(fresh)
  for path, x in by_path(given.encoder).items():
    assert (found[f'encoder/{path}'] == x).all()
  assert (found['out/kernel'] == before['out/kernel']).all()


def test_the_last_layer_for_other_classes_is_not_copied():
  given = drawn(lambda: Classifier(TINY, 2, nnx.Rngs(0)))
  fresh = drawn(lambda: Classifier(TINY, 3, nnx.Rngs(1)), seed=1)
  found, before = by_path(copy_parameters(given, fresh)), by_path(fresh)
  for path, x in by_path(given).items():
    ours = before[path] if path.startswith('out/') else x
    assert (found[path] == ours).all()


def test_a_bare_encoder_is_copied_below_a_head():
  given = drawn(lambda: Encoder(TINY, nnx.Rngs(0)))
  found = copy_parameters(given, drawn(lambda: Classifier(TINY, 3, nnx.Rngs(1)), seed=1))
  run = jax.jit(lambda model: model(TOKENS))
  assert (run(found.encoder) == run(given)).all()


def test_the_first_rows_of_a_longer_table_are_copied():
  """Published tables have more rows than their tokenizers tokens."""
  given = drawn(lambda: Encoder(ModelConfig(**dict(vars(TINY), vocab=13)), nnx.Rngs(0)))
  found = copy_parameters(given, drawn(lambda: Encoder(TINY, nnx.Rngs(1)), seed=1))
  assert (found.embed.table[...] == given.embed.table[...][:11]).all()


def test_another_shape_or_kind_is_an_error():
  with pytest.raises(ValueError, match=r'encoder/embed/table is \[10, 16\] .*\[11, 16\] here'):
    other = ModelConfig(**dict(vars(TINY), vocab=10))
    makes = (lambda c=config: Classifier(c, 3, nnx.Rngs(0)) for config in (other, TINY))
    copy_parameters(*map(drawn, makes))
  with pytest.raises(ValueError, match='has none of stack/blocks/.*it has encoder/foreign'):
    copy_parameters({'foreign': jnp.zeros(3)}, drawn(lambda: Encoder(TINY, nnx.Rngs(1))))


@pytest.mark.parametrize('side, modality', [('text', 'tokens'), ('image', 'patches')])
def test_a_clip_gives_the_encoder_of_what_the_model_reads(side, modality):
  folder = ROOT / 'tests' / 'zoo' / 'golden' / 'clip'
  source = getattr(load_pretrained(folder)[0], side)
  settings = types.SimpleNamespace(warm_start=str(folder))
  run = experiment.Experiment(settings, None, source.config, None)
  assert run.model.modality == modality
  found = warm_start(drawn(lambda: Classifier(run.model, 3, nnx.Rngs(0))), run)
  for path, leaf in leaves(source).items():
    np.testing.assert_array_equal(leaves(found)[path], leaf, err_msg=path)
  with pytest.raises(ValueError, match='one of images, as CLIP has'):
    published.get_config(f'write,{folder}')


@pytest.mark.parametrize(
  'kind, name, reads',
  [
    ('write', 'whisper', 'frames'),
    ('transcribe', 'bart', 'tokens'),
    ('classify', 'vit', 'patches'),
  ],
)
def test_a_recipe_for_another_modality_is_refused(kind, name, reads):
  with pytest.raises(ValueError, match=f'and that in .*{name} reads {reads}'):
    published.get_config(f'{kind},{ROOT / "tests" / "zoo" / "golden" / name}')


SETTINGS = dict(
  learning_rate=0.1,
  schedule='constant',
  warmup_steps=0,
  steps=9,
  width=16,
  weight_decay=0.1,
  clip=0.0,
)


def moved(model, rates=(), steps=2):
  """Return by how much each parameter changes, by path, and the state of the optimizer."""
  optimizer, _ = optimizers.build(**dict(SETTINGS, lr_multipliers=rates))
  state, start = jax.jit(optimizer.init)(model), model

  def loss(model):
    return jnp.sum(optimizers.freeze(model, rates)(TOKENS) ** 2)

  @jax.jit
  def step(model, state):
    updates, state = optimizer.update(jax.grad(loss)(model), state, model)
    return optax.apply_updates(model, updates), state

  for _ in range(steps):
    model, state = step(model, state)
  return {
    path: float(jnp.abs(x - by_path(start)[path]).max()) for path, x in by_path(model).items()
  }, state


def test_learning_rates_by_path_freeze_and_slow_down():
  model = drawn(lambda: Encoder(TINY, nnx.Rngs(0)))
  everything, whole = moved(model)
  found, state = moved(model, (('embed/', 0.0), ('feedforward', 0.5)))
  for path, distance in found.items():
    if path.startswith('embed/'):
      assert distance == 0
    elif 'feedforward' in path:
      # the first step of Adam is its rate whatever the gradient; the second nearly so
      assert 0.3 * everything[path] < distance < 0.7 * everything[path]
    else:
      assert distance > 0.1
  sizes = [sum(x.size for x in jax.tree.leaves(s)) for s in (state, whole)]
  assert sizes[0] == sizes[1] - 2 * model.embed.table[...].size  # no statistics of what is frozen


def test_a_pattern_that_matches_nothing_is_an_error():
  """See test_training_config for rates that are no pairs."""
  with pytest.raises(ValueError, match="'embde' matches no parameter; there are .*embed/table"):
    optimizers.factors(drawn(lambda: Encoder(TINY, nnx.Rngs(0))), (('embde', 0.0),))


def test_a_new_adapter_changes_nothing_and_a_merged_one_changes_no_output(close):
  model = drawn(lambda: Decoder(TINY, nnx.Rngs(0)))
  run = jax.jit(lambda model: model(TOKENS))
  before = run(model)
  adapt(model, 'query|hidden', 3, jax.random.key(0))
  added = [path for path in by_path(model) if 'adapter' in path]
  assert len(added) == 4 and all('query' in p or 'hidden' in p for p in added)
  close(run(model), before)
  for layer in (model.stack.blocks.attention.query, model.stack.blocks.feedforward.hidden):
    assert layer.adapter.down.shape == (2, 16, 3)
    layer.adapter.up[...] = 0.3 * jax.random.normal(jax.random.key(1), layer.adapter.up.shape)
  after = run(model)
  assert not np.allclose(after, before, atol=1e-2)
  merge(model)
  assert not [path for path in by_path(model) if 'adapter' in path]
  close(run(model), after)


def test_only_adapters_are_trained():
  model = drawn(lambda: Encoder(TINY, nnx.Rngs(0)))
  adapt(model, 'query|value', 2, jax.random.key(0))
  found, state = moved(model, (('/adapter/', 1.0), ('', 0.0)))
  assert all((distance > 0) == ('adapter' in path) for path, distance in found.items())
  adapters = sum(x.size for path, x in by_path(model).items() if 'adapter' in path)
  assert sum(x.size for x in jax.tree.leaves(state)) < 3 * adapters


def test_adapters_that_match_nothing_are_an_error():
  model = drawn(lambda: Encoder(TINY, nnx.Rngs(0)))
  with pytest.raises(ValueError, match='no layer matches the pattern .*attention/query'):
    adapt(model, 'nothing', 2, jax.random.key(0))
  with pytest.raises(ValueError, match='rank 0'):
    adapt(model, 'query', 0, jax.random.key(0))


def test_an_export_has_the_settings_that_the_published_model_came_with(tmp_path):
  folder = tmp_path / 'whisper'
  folder.mkdir()
  files = {'config.json': {'model_type': 'whisper'}, 'generation_config.json': {'num_beams': 3}}
  files['preprocessor_config.json'] = {'feature_size': 6}
  for name, values in files.items():
    (folder / name).write_text(json.dumps(values))
  found = published_files(str(folder))
  assert {name for name, _ in found.files} == files.keys() - {'config.json'}
  assert found.json('generation_config.json') == {'num_beams': 3}
  (folder / 'checkpoints').mkdir()  # a run, of a tokenizer and a task of its own
  assert not published_files(str(folder)).files and not published_files('').files


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, kind, variant',
  [
    ('bert', 'classify', 'full'),
    ('bert', 'answer', 'lora'),
    ('distilbert', 'classify', 'lora'),
    ('modernbert', 'classify', 'frozen'),
    ('t5', 'write', 'full'),
    ('bart', 'write', 'frozen'),
    ('whisper', 'transcribe', 'frozen'),
  ],
)
def test_a_published_model_is_finetuned_by_its_recipe_and_exported(name, kind, variant, tmp_path):
  folder = ROOT / 'tests' / 'zoo' / 'golden' / name
  c = published.get_config(f'{kind},{folder},{variant}')
  c.model.dtype = 'float32'
  if kind == 'classify':
    c.loss.classes = ('a', 'b', 'c')
  letters = tokenizers.train(['abcdefghij klmnop'], kind='characters', vocab=40)
  if kind == 'transcribe':
    letters._tokenizer.add_special_tokens([c.loss.start, *c.loss.prefix])
    letters = tokenizers.Tokenizer(letters._tokenizer)
  run = experiment.make_experiment(check(c), letters, sharding.make_mesh())
  model = warm_start(run.init(jax.random.key(0)), run)
  source = load_pretrained(folder)[0]
  theirs = leaves(source)
  for path, leaf in leaves(model).items():
    if 'blocks/' in path and '/adapter/' not in path:
      other = path if path in theirs else path.removeprefix('encoder/')
      np.testing.assert_array_equal(leaf, theirs[other], err_msg=path)
  merge(model)
  if kind == 'transcribe':
    source_sound = {'inputs': np.zeros(900, np.float32), 'targets': 'a cab'}
    columns = run.task.columns([source_sound])
    names = ('<|en|>', '<|transcribe|>', '<|notimestamps|>')
    assert columns['targets'][0][:3].tolist() == [*map(letters.token_id, names)]
    (output,) = run.task.best(model, [columns['inputs'][0]])
    assert output[:3].tolist() == columns['targets'][0][:3].tolist()
  save_pretrained(tmp_path, model, letters, **published_settings(run.task, c.warm_start))
  about = json.loads((tmp_path / 'config.json').read_text())
  assert about['model_type'] == source.published.json('config.json')['model_type']
  assert type(load_pretrained(tmp_path)[0]) is type(model)
