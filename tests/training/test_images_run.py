"""Images from a config to an answer: experiments on drawn shapes, trained and asked."""

import json
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import cifar10, flickr8k, mnist
from transformer.training import commands
from transformer.training.experiment import prepare, reopen, restore_best
from transformer.training.initial import with_given
from transformer.training.workdir import Workdir

SMALL = {
  'data.limit': 12,
  'data.tokens': 128,
  'data.test': '',
  'inputs.height': 16,
  'inputs.width': 16,
  'model.width': 16,
  'model.heads': 2,
  'model.feedforward': 16,
  'model.depth': 1,
  'model.dtype': 'float32',
  'train.steps': 2,
  'train.save_every_steps': 2,
  'train.log_every_steps': 1,
  'eval.every_steps': 2,
  'eval.limit': 4,
  'eval.samples': 1,
  'decode.rows': 4,
}
CAPTIONS = {
  'data.length': 16,
  'tokenizer.vocab': 270,
  'model.decoder_depth': 1,
  'decode.length': 6,
  'decode.beams': 1,
}


@pytest.mark.parametrize(
  'experiment, changed, metric',
  [
    (mnist, {}, 'accuracy'),
    (cifar10, {}, 'accuracy'),
    (flickr8k, CAPTIONS, 'bleu4_lowercase_words'),
  ],
)
def test_an_experiment_learns_answers_and_shows(
  experiment, changed, metric, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('TRANSFORMER_TUNE', '0')
  config = ConfigDict(experiment.get_config('shapes'))
  config.update_from_flattened_dict({**SMALL, **changed})

  def run(mode, lines=''):
    (tmp_path / 'lines').write_text(lines)
    flags = types.SimpleNamespace(
      config=config, workdir=str(tmp_path / 'run'), mode=mode, input=str(tmp_path / 'lines')
    )
    status = commands.main(flags)
    return status, capsys.readouterr()

  status, printed = run('train')
  assert status == 0, printed.err
  found = json.loads(printed.out.splitlines()[-1])['metrics']
  assert np.isfinite(found[f'val/{metric}'])

  pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'photo.jpg')
  (tmp_path / 'broken.png').write_bytes(b'nothing')
  status, printed = run('predict', f'{tmp_path}/photo.jpg\n{tmp_path}/broken.png\nnowhere.png\n')
  first, *rest = printed.out.split('\n')[:3]
  assert status == 2 and rest == ['', '']
  assert 'line 2: ' in printed.err and 'line 3: there is no file nowhere.png' in printed.err
  if experiment is not flickr8k:
    assert first in config.loss.classes.split(', ')

  status, printed = run('attend', f'{tmp_path}/photo.jpg\n')
  (picture,) = json.loads(printed.out)['pictures']
  assert status == 0 and picture['output'] == first
  assert 'all' in open(picture['html'], encoding='utf-8').read()


def test_a_captioner_begins_with_a_translators_decoder(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('TRANSFORMER_TUNE', '0')
  for split in ('train', 'val'):
    (tmp_path / f'{split}.de').write_text('ein Kreis\nein Kreuz\n' * 3)
    (tmp_path / f'{split}.en').write_text('a circle\na cross\n' * 3)

  def config_of(variant, changed):
    config = ConfigDict(flickr8k.get_config(variant))
    config.update_from_flattened_dict({**CAPTIONS, **changed})
    return config

  words, there = tmp_path / 'words', {'data.dir': str(tmp_path)}
  sizes = {name: SMALL[name] for name in SMALL if not name.startswith(('inputs.', 'data.test'))}
  flags = types.SimpleNamespace(
    config=config_of('translation', {**sizes, **there}), workdir=str(words), mode='train'
  )
  assert commands.main(flags) == 0, capsys.readouterr().err
  given = restore_best(reopen(Workdir(words).read_config(), Workdir(words)), Workdir(words))[0]

  config = config_of('shapes', {**SMALL, 'init': str(words)}).to_dict()
  captioner = prepare(config, Workdir(tmp_path / 'images'))
  found = with_given(captioner.init(jax.random.key(0)), captioner)
  pairs = zip(jax.tree.leaves(found.decoder), jax.tree.leaves(given.decoder), strict=True)
  assert all((np.asarray(ours) == theirs).all() for ours, theirs in pairs)


def test_an_unknown_variant_is_refused():
  for experiment in (mnist, cifar10, flickr8k):
    with pytest.raises(ValueError, match='shape is unknown: give shapes'):
      experiment.get_config('shape')
