"""An experiment brings its own task, metric and data source."""

import json
import re

import jax
import numpy as np
import pytest
from parameters import drawn

from transformer.data.lookup import is_reference, lookup, reference
from transformer.tasks.seq2seq import Seq2Seq
from transformer.training import config, optimizers
from transformer.training.checks import check
from transformer.training.experiment import reopen
from transformer.training.start import start_run
from transformer.training.workdir import Workdir

FILE = '''
from __future__ import annotations

import dataclasses

from transformer.evaluation.text import Score
from transformer.tasks.seq2seq import Seq2Seq
from transformer.training import config


def mean_length(predictions, references):
  return Score(sum(map(len, predictions)) / len(predictions), 'mean length')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doubled(Seq2Seq):
  """Twice the loss.

  Attributes:
    factor: of the loss.
  """

  factor: float = 2.0

  def loss(self, model, batch, key):
    loss, metrics = super().loss(model, batch, key)
    return loss._replace(sum=self.factor * loss.sum), metrics


def letters(dir, split, inputs, targets):
  return [{'inputs': letter, 'targets': letter.upper() + split[0]} for letter in 'abcdefgh']


def get_config():
  c = config.for_task(Doubled)
  c.experiment = 'doubled'
  c.data.update(name=config.reference(letters), test=('test',), max_length=8, batch_tokens=32)
  c.tokenizer.kind = 'characters'
  c.model.update(width=16, depth=1, heads=2, feedforward=16, max_length=8, dropout=0.0)
  c.optimizer.update(name='sgd', learning_rate=1e-3, clip=0.0)
  c.train.update(steps=2, save_every_steps=2, log_every_steps=1)
  c.eval.update(every_steps=2, metrics=('exact_match', config.reference(mean_length)))
  c.decode.max_new_tokens = 4
  return c
'''


@pytest.fixture
def file(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(FILE)
  return file


def test_parts_of_a_file_are_found_again(file, tmp_path):
  """The stored config names them, and a run that is reopened has them."""
  values = lookup('config', f'{file}:get_config', {})().to_dict()
  assert values['task'] == f'{file}:Doubled' and values['data']['name'] == f'{file}:letters'
  assert values['loss']['factor'] == 2.0
  workdir = Workdir(tmp_path / 'run')
  prepared = start_run(values, workdir)
  assert prepared.source('val')[1] == {'inputs': 'b', 'targets': 'Bv'}
  run = reopen(workdir.read_config(), workdir)
  assert type(run.task) is type(prepared.task) is lookup('', f'{file}:Doubled', {})
  model = drawn(lambda: run.init(jax.random.key(0)))
  batch = jax.tree.map(jax.numpy.asarray, run.batches('train')[0])
  plain = Seq2Seq(tokenizer=run.task.tokenizer, decoding=run.task.decoding, max_length=8)
  losses = jax.jit(lambda: [task.loss(model, batch, None)[0].sum for task in (run.task, plain)])
  twice, once = losses()
  np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
  # a model that was trained on more devices is used on those that there are
  stored = json.loads((workdir.path / 'config.json').read_text())
  stored['mesh']['fsdp'] = 3
  (workdir.path / 'config.json').write_text(json.dumps(stored))
  assert reopen(workdir.read_config(), workdir).mesh.shape['data'] == 8
  with pytest.raises(ValueError, match='fsdp=5'):  # but flags are obeyed
    reopen(workdir.read_config() | {'mesh': stored['mesh'] | {'fsdp': 5}}, workdir)


def test_what_an_own_task_lacks_is_named(tmp_path):
  file = tmp_path / 'half.py'
  file.write_text('class Half:\n  init = columns = loss = metrics = None\n')
  with pytest.raises(ValueError, match=r"half.py:Half' has no answer, attention, example"):
    config.find_task(f'{file}:Half')
  assert all(config.find_task(name) is task for name, task in config.TASKS.items())


def test_an_own_optimizer_and_schedule_are_used(file, tmp_path):
  own = tmp_path / 'own.py'
  own.write_text(
    'import optax\n'
    'def scaled(*, momentum: float = 0.5, factor: float = 3.0):\n'
    '  return optax.scale(momentum * factor)\n'
    'def late(step, *, steps):\n'
    '  return step / steps\n'
  )
  values = lookup('config', f'{file}:get_config', {})()
  values.optimizer.update(name=f'{own}:scaled', schedule=f'{own}:late', momentum=2.0)
  settings = check(values.to_dict())
  assert check(settings.as_dict()) == settings  # as a stored config is read
  optimizer, rate = optimizers.build(**settings.optimizer, steps=10, width=1)
  assert rate(4) == settings.optimizer['learning_rate'] * 5 / 10
  params = {'kernel': jax.numpy.ones(2)}
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], -6 * rate(0))
  values.optimizer.epsilon = 1e-8
  with pytest.raises(ValueError, match=f'epsilon=1e-08 is read neither by .*{own.name}:scaled'):
    check(values.to_dict())


@pytest.mark.parametrize(
  'body, message',
  [
    ("[{'text': 'a', 'targets': 'b'}]", "'text': 'str'.*needs the texts inputs, targets"),
    ("[{'inputs': 'a', 'targets': 1}]", "'targets': 'int'.*needs the texts inputs, targets"),
    ('[]', 'returned no example for train'),
    ('(x for x in "ab")', 'returned a generator for .val.: return a list'),
  ],
)
def test_an_own_corpus_of_another_form_is_refused(body, message, file, tmp_path):
  file.write_text(re.sub(r'return \[\{.inputs.: letter.*', f'return {body}', FILE))
  values = lookup('config', f'{file}:get_config', {})().to_dict()
  with pytest.raises(ValueError, match=f'letters.*{message}'):
    start_run(values, Workdir(tmp_path / 'run'))


@pytest.mark.parametrize(
  'body, message',
  [
    ('1 / 0', 'ZeroDivisionError'),
    ('3.0', 'TypeError.*float'),
    ("Score('many', 'mean length')", "ValueError.*'many'"),
    ('Score(predictions[0].length, "")', "AttributeError.*'length'"),
  ],
)
def test_an_own_metric_that_fails_is_found_before_training(body, message, file, tmp_path):
  file.write_text(re.sub(r'return Score\(sum.*', f'return {body}', FILE))
  values = lookup('config', f'{file}:get_config', {})().to_dict()
  with pytest.raises(ValueError, match=f"eval.metrics=.*mean_length fails .*'Av'.*{message}"):
    start_run(values, Workdir(tmp_path / 'run'))


@pytest.mark.slow
def test_a_file_with_own_parts_is_run(commands, file, tmp_path):
  done = commands.run(f'--config={file}', f'--workdir={tmp_path}/run')
  assert done.returncode == 0, done.stderr.decode()
  metrics = json.loads(done.stdout.splitlines()[-1])['metrics']
  assert 'test/nll_per_token' in metrics and 0 <= metrics[f'test/{file}:mean_length'] <= 3
  done = commands.run('--mode=predict', f'--workdir={tmp_path}/run', input=b'a\nb\n')
  assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr.decode()


def test_a_task_of_a_file_has_the_checks_of_its_class(file):
  values = lookup('config', f'{file}:get_config', {})()
  values.model.position, values.decode.max_new_tokens = 'learned', 12
  with pytest.raises(ValueError, match='model.max_length=8 learned positions .* at least 12'):
    check(values.to_dict())


def test_parts_of_a_module_are_named_by_it():
  assert reference(Seq2Seq) == 'transformer.tasks.seq2seq:Seq2Seq'
  assert lookup('', 'transformer.tasks.seq2seq:Seq2Seq', {}) is Seq2Seq
  assert config.for_task(Seq2Seq).loss == config.for_task('seq2seq').loss


@pytest.mark.parametrize(
  'name, message',
  [
    ('seq3seq', "task='seq3seq' is none of .* did you mean 'seq2seq'"),
    ('no.such.module:Task', 'cannot be imported .No module named'),
    ('transformer.tasks.seq2seq:Task', "has no attribute 'Task'"),
    ('/nowhere/file.py:Task', 'cannot be imported .*nowhere'),
  ],
)
def test_a_name_of_nothing_is_an_error(name, message):
  with pytest.raises(ValueError, match=message) as error:
    lookup('config.task', name, config.TASKS)
  assert re.match('config.task=', str(error.value))


def test_a_version_of_a_tfds_data_set_is_no_module():
  assert not is_reference('my_set:1.0.0') and not is_reference('wmt14_translate/de-en')
  assert is_reference('package.module:function') and is_reference('/a/b.py:function')
