"""What every experiment trains is exported, or refused with the reason."""

import importlib
import inspect
import json
import re

import jax
import jax.numpy as jnp
import pytest
from processes import ROOT

from transformer.data import tokenizers
from transformer.training import experiment, sharding
from transformer.training.checks import check
from transformer.zoo.pretrained import load_pretrained, save_pretrained

WRITTEN = {'chat', 'published', 'tinyshakespeare', 'wikitext2'}
FILES = sorted((ROOT / 'experiments').glob('[a-z]*.py'))


def experiments():
  """(module, argument of get_config) of each experiment, as their docstrings name the arguments."""
  for file in FILES:
    arguments = re.findall(rf'{file.name}:(\w+)', file.read_text(encoding='utf-8'))
    yield from ((file.stem, argument) for argument in dict.fromkeys(arguments or ['']))


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(['abcdefghij klmnop'], kind='characters', vocab=40, sentinels=20)


@pytest.mark.parametrize('name, argument', experiments())
def test_an_experiment_is_exported_or_refused(name, argument, tokenizer, tmp_path):
  get_config = importlib.import_module(f'experiments.{name}').get_config
  takes = inspect.signature(get_config).parameters
  c = get_config(*[argument][: len(takes)] if argument else [])
  if c.loss.get('classes') == ():  # those of the training examples
    c.loss.classes = ('a', 'b')
  c.model.update(width=16, feedforward=16, depth=1, head_size=c.model.head_size and 8)
  run = experiment.make_experiment(check(c), tokenizer, sharding.make_mesh())
  shapes = jax.eval_shape(run.init, jax.random.key(0))
  model = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  if name in WRITTEN:
    save_pretrained(tmp_path, model, tokenizer)
    assert json.loads((tmp_path / 'config.json').read_text())['vocab_size'] == tokenizer.size
    assert type(load_pretrained(tmp_path)[0]) is type(model)
  else:
    with pytest.raises(ValueError, match='no published family has the architecture of'):
      save_pretrained(tmp_path, model, tokenizer)
