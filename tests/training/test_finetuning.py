"""The way of a model: pretrained, fine-tuned by adapters, exported, read back and gone on with."""

import json
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import sst2, tinyshakespeare
from transformer.training import commands
from transformer.training.checkpoints import Checkpoints
from transformer.training.experiment import reopen, restore_best
from transformer.training.workdir import Workdir
from transformer.zoo import presets
from transformer.zoo.pretrained import load_pretrained

WORDS = 'good bad film very dull fine plot slow'.split()
SMALL = {
  'data.tokens': 128,
  'data.length': 16,
  'data.buckets': 1,
  'model.width': 16,
  'model.heads': 2,
  'model.feedforward': 16,
  'model.length': 16,
  'model.depth': 2,
  'model.dtype': 'float32',
  'train.steps': 2,
  'train.save_every_steps': 2,
  'train.log_every_steps': 1,
  'train.steps_per_call': 1,
  'eval.every_steps': 2,
  'eval.samples': 1,
  'decode.rows': 2,
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
def run(folder, works, monkeypatch, capsys):
  """run(config, name, mode, **changed): the lines that a command prints, all in one process."""
  monkeypatch.setenv('TRANSFORMER_TUNE', '0')

  def command(config: ConfigDict, name: str, mode: str = 'train', input: str = '', **changed):
    config.update_from_flattened_dict(dict(SMALL, **changed))
    lines = folder / 'lines.txt'
    lines.write_text(input)
    flags = types.SimpleNamespace(
      config=config, mode=mode, workdir=str(works / name), input=str(lines)
    )
    assert commands.main(flags) == 0
    return capsys.readouterr().out.splitlines()

  return command


def best(works, name):
  workdir = Workdir(works / name)
  return restore_best(reopen(workdir.read_config(), workdir), workdir)[0]


def test_masked_tokens_then_labels_by_adapters(run, folder, works):
  """Only adapters and the new head move; the encoder is the pretrained one to the last bit."""
  run(sst2.get_config('pretrain'), 'before', **{'data.dir': str(folder)})
  tuned = {
    'data.dir': str(folder),
    'init': str(works / 'before'),
    'train.adapters': 'query|value=2',
    'optimizer.rates': '^out/=0.5',
    'optimizer.learning_rate': 0.1,
    'optimizer.warmup_steps': 0,
    'train.ema': 0.0,
  }
  run(sst2.get_config('finetune'), 'after', **tuned)
  before, after = best(works, 'before'), best(works, 'after')
  attention = after.encoder.stack.blocks.attention
  old = before.encoder.stack.blocks.attention
  assert (attention.query.kernel[...] == old.query.kernel[...]).all()
  assert np.abs(attention.query.adapter.up[...]).max() > 0.01
  assert attention.out.adapter is None
  with Checkpoints(works / 'after') as checkpoints:
    assert checkpoints.last_step == 2
  lines = run(sst2.get_config('finetune'), 'after', 'predict', 'good film\nbad plot\n', **tuned)
  assert len(lines) == 2 and set(lines) <= {'0', '1'}


def test_a_language_model_is_exported_and_gone_on_with(run, folder, works, close, capsys):
  gpt2 = {f'model.{key}': value for key, value in presets.GPT2.items()} | {
    key: value for key, value in SMALL.items() if key.startswith('model.')
  }
  changed = dict(gpt2, **{'data.dir': str(folder / 'text.txt'), 'decode.length': 12})
  (line,) = run(tinyshakespeare.get_config(), 'gpt', **changed)
  assert json.loads(line)['metrics'].keys() >= {'val/bits_per_byte', 'val/perplexity_per_word'}
  (line,) = run(tinyshakespeare.get_config(), 'gpt', 'export', **changed)
  model, tokenizer = load_pretrained(json.loads(line)['folder'])
  tokens = jax.numpy.asarray([tokenizer.encode('very dull')])
  close(model(tokens), best(works, 'gpt')(tokens))
  run(
    tinyshakespeare.get_config(),
    'again',
    **dict(changed, init=json.loads(line)['folder']),
    **{'optimizer.learning_rate': 0.0},
  )
  close(best(works, 'again')(tokens), model(tokens))
  prompts = 'very\ndull plot\n'
  found = run(tinyshakespeare.get_config(), 'gpt', 'predict', prompts, **changed)
  assert len(found) == 2 and all(found)
  workdir = Workdir(works / 'gpt')
  task = reopen(workdir.read_config(), workdir).task
  flags = types.SimpleNamespace(input=str(folder / 'lines.txt'))
  assert commands._stream(task, best(works, 'gpt'), flags) == 0  # as a terminal shows it
  assert capsys.readouterr().out.replace('\n', ' ').split() == ' '.join(found).split()


def test_other_equations_are_refused_by_key(run, folder, works, capsys):
  run(sst2.get_config('pretrain'), 'before', **{'data.dir': str(folder)})  # if it was not yet
  changed = {'data.dir': str(folder), 'init': str(works / 'before'), 'model.activation': 'relu'}
  with pytest.raises(SystemExit):
    run(sst2.get_config('finetune'), 'refused', **changed)
  assert '--config.model.activation=gelu_tanh' in capsys.readouterr().err
