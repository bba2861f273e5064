"""A model is pretrained, fine-tuned by adapters, exported, loaded and trained further."""

import json
import types

import jax
import numpy as np
import pytest

from transformer.training import commands
from transformer.training.checkpoints import Checkpoints
from transformer.training.experiment import reopen, restore_best
from transformer.training.workdir import Workdir
from transformer.zoo import presets
from transformer.zoo.pretrained import load_pretrained

WORDS = 'good bad film very dull fine plot slow'.split()
SMALL = {
  'data.batch_tokens': 128,
  'data.max_length': 16,
  'data.buckets': 1,
  'model.width': 16,
  'model.heads': 2,
  'model.feedforward': 16,
  'model.max_length': 16,
  'model.depth': 1,
  'model.dtype': 'float32',
  'train.steps': 2,
  'train.save_every_steps': 2,
  'train.log_every_steps': 1,
  'train.steps_per_call': 1,
  'eval.every_steps': 2,
  'eval.samples': 1,
  'decode.batch_size': 2,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp('films'), np.random.default_rng(0)
  for split in ('train_phrases', 'dev'):
    lines = [' '.join(rng.choice(WORDS, 5)) for _ in range(24)]
    rows = [f'{int("good" in line)}\t{line}\n' for line in lines]
    (folder / f'{split}.tsv').write_text('label\tsentence\n' + ''.join(rows))
  for name in ('text', 'train', 'val'):
    lines = [' '.join(rng.choice(WORDS, 9)) for _ in range(40)]
    (folder / f'{name}.txt').write_text('\n'.join(lines))
  return folder


@pytest.fixture(scope='module')
def works(tmp_path_factory):
  """Where all runs are."""
  return tmp_path_factory.mktemp('works')


@pytest.fixture
def run(experiment, works):
  """run(config, name, mode, input, **changed): the lines that a command prints."""

  def command(config, name, mode='train', input='', devices=1, **changed):
    changed = dict(SMALL, **changed) if mode == 'train' else changed
    status, out, err = experiment(config, works / name, mode, input, devices, **changed)
    assert status == 0, err
    return out.splitlines()

  return command


@pytest.fixture
def pretrained(run, folder, works):
  """The folder of an encoder of masked tokens; on two devices, what starts from it on one."""
  if not (works / 'before').exists():
    run('sst2.py:pretrain', 'before', devices=2, **{'data.dir': folder})
  return works / 'before'


def best(works, name):
  workdir = Workdir(works / name)
  return restore_best(reopen(workdir.read_config(), workdir), workdir)[0]


@pytest.mark.slow
def test_masked_tokens_then_labels_by_adapters(run, pretrained, folder, works):
  """Only adapters and the new head move; the encoder is the pretrained one to the last bit."""
  tuned = {
    'data.dir': folder,
    'warm_start': pretrained,
    'train.adapters': 'query|value=2',
    'optimizer.lr_multipliers': '^out/=0.5',
    'optimizer.learning_rate': 0.1,
    'optimizer.warmup_steps': 0,
    'train.ema': 0.0,
  }
  run('sst2.py:finetune', 'after', **tuned)
  before, after = best(works, 'before'), best(works, 'after')
  attention = after.encoder.stack.blocks.attention
  old = before.encoder.stack.blocks.attention
  assert (attention.query.kernel[...] == old.query.kernel[...]).all()
  assert np.abs(attention.query.adapter.up[...]).max() > 0.01
  assert attention.out.adapter is None
  with Checkpoints(works / 'after') as checkpoints:
    assert checkpoints.last_step == 2
  lines = run('sst2.py:finetune', 'after', 'predict', 'good film\nbad plot\n')
  assert len(lines) == 2 and set(lines) <= {'0', '1'}


@pytest.fixture
def language_model(run, folder, works):
  """(keys of a GPT-2-shaped run, the folder where it is exported); the run is works/gpt."""
  gpt2 = {f'model.{key}': value for key, value in presets.GPT2.items()} | {
    key: value for key, value in SMALL.items() if key.startswith('model.')
  }
  changed = dict(gpt2, **{'data.dir': folder / 'text.txt', 'decode.max_new_tokens': 12})
  exported = works / 'gpt' / 'export'
  if not exported.exists():
    (line,) = run('tinyshakespeare.py', 'gpt', **changed)
    assert json.loads(line)['metrics'].keys() >= {'val/bits_per_byte', 'val/perplexity_per_word'}
    (line,) = run('tinyshakespeare.py', 'gpt', 'export')
    assert json.loads(line)['folder'] == str(exported)
  return changed, exported


def same_logits(close, model, other, tokenizer):
  tokens = jax.numpy.asarray([tokenizer.encode('very dull')])
  logits = jax.jit(lambda model: model(tokens))
  close(logits(model), logits(other))


@pytest.mark.slow
def test_a_run_starts_from_an_exported_model(run, language_model, works, close):
  changed, exported = language_model
  given = {'warm_start': exported, 'optimizer.learning_rate': 0.0}
  run('tinyshakespeare.py', 'again', **changed, **given)
  same_logits(close, best(works, 'again'), *load_pretrained(exported))


@pytest.mark.slow
def test_a_language_model_is_exported_and_generates(
  run, language_model, folder, works, close, capsys
):
  _, exported = language_model
  same_logits(close, best(works, 'gpt'), *load_pretrained(exported))
  found = run('tinyshakespeare.py', 'gpt', 'predict', 'very\ndull plot\n')
  assert len(found) == 2 and all(found)
  workdir, lines = Workdir(works / 'gpt'), folder / 'lines.txt'
  lines.write_text('very\ndull plot\n')
  task = reopen(workdir.read_config(), workdir).task
  flags = types.SimpleNamespace(input=str(lines))
  assert commands._stream(task, best(works, 'gpt'), flags) == 0  # as a terminal shows it
  assert capsys.readouterr().out.replace('\n', ' ').split() == ' '.join(found).split()


@pytest.mark.slow
def test_other_equations_are_an_error_that_names_the_key(experiment, pretrained, folder, works):
  changed = {'data.dir': folder, 'warm_start': pretrained, 'model.activation': 'relu'}
  status, _, err = experiment('sst2.py:finetune', works / 'refused', **dict(SMALL, **changed))
  assert status == commands.USAGE and '--config.model.activation=gelu_tanh' in err
