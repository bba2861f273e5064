"""Images from a config to an answer: experiments on drawn shapes, trained and asked."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import cifar10, flickr8k, mnist
from transformer.training.experiment import reopen, restore_best
from transformer.training.start import start_run
from transformer.training.warm_start import warm_start
from transformer.training.workdir import Workdir

SMALL = {
  'data.limit': 12,
  'data.batch_tokens': 1024,
  'data.test': '',
  'processor.height': 16,
  'processor.width': 16,
  'model.width': 16,
  'model.heads': 2,
  'model.feedforward': 16,
  'model.depth': 1,
  'model.dtype': 'float32',
  'model.dropout': 0.0,
  'train.steps': 2,
  'train.save_every_steps': 2,
  'train.log_every_steps': 1,
  'eval.every_steps': 2,
  'eval.limit': 4,
  'eval.samples': 1,
  'decode.batch_size': 4,
}
CAPTIONS = {
  'data.max_length': 16,
  'tokenizer.vocab': 270,
  'model.decoder_depth': 1,
  'decode.max_new_tokens': 6,
  'decode.beams': 1,
}


@pytest.mark.parametrize(
  'file, changed, metric',
  [
    pytest.param('mnist.py', {}, 'accuracy', marks=pytest.mark.slow),
    pytest.param('cifar10.py', {}, 'accuracy', marks=pytest.mark.slow),
    pytest.param('flickr8k.py', CAPTIONS, 'bleu4_lowercase_words', marks=pytest.mark.slow),
  ],
)
def test_an_experiment_trains_predicts_and_draws(file, changed, metric, experiment, tmp_path):
  def run(mode, input='', **changed):
    return experiment(f'{file}:shapes', tmp_path / 'run', mode, input, **changed)

  status, out, err = run('train', **SMALL, **changed)
  assert status == 0, err
  assert np.isfinite(json.loads(out.splitlines()[-1])['metrics'][f'val/{metric}'])

  pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'photo.jpg')
  (tmp_path / 'broken.png').write_bytes(b'nothing')
  status, out, err = run('predict', f'{tmp_path}/photo.jpg\n{tmp_path}/broken.png\nnowhere.png\n')
  first, *rest = out.split('\n')[:3]
  assert status == 2 and rest == ['', '']
  assert 'line 2: ' in err and 'line 3: there is no file nowhere.png' in err
  if file != 'flickr8k.py':
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert first in config['loss']['classes']

  status, out, err = run('attend', f'{tmp_path}/photo.jpg\n')
  assert status == 0, err
  (picture,) = json.loads(out)['pictures']
  assert picture['output'] == first
  assert 'all' in open(picture['html'], encoding='utf-8').read()


@pytest.mark.slow
def test_a_captioner_starts_from_the_decoder_of_a_translation_model(experiment, tmp_path):
  for split in ('train', 'val'):
    (tmp_path / f'{split}.de').write_text('ein Kreis\nein Kreuz\n' * 3)
    (tmp_path / f'{split}.en').write_text('a circle\na cross\n' * 3)
  words = tmp_path / 'words'
  sizes = {name: SMALL[name] for name in SMALL if not name.startswith(('processor.', 'data.test'))}
  changed = {**CAPTIONS, **sizes, 'data.dir': tmp_path}
  status, _, err = experiment('flickr8k.py:translation', words, **changed)
  assert status == 0, err
  source = restore_best(reopen(Workdir(words).read_config(), Workdir(words)), Workdir(words))[0]

  config = flickr8k.get_config('shapes')
  config.update_from_flattened_dict(
    {**CAPTIONS, **SMALL, 'data.test': (), 'warm_start': str(words)}
  )
  captioner = start_run(config.to_dict(), Workdir(tmp_path / 'images'))
  found = warm_start(jax.jit(captioner.init)(jax.random.key(0)), captioner)
  pairs = zip(jax.tree.leaves(found.decoder), jax.tree.leaves(source.decoder), strict=True)
  assert all((np.asarray(ours) == theirs).all() for ours, theirs in pairs)


def test_an_unknown_variant_is_an_error():
  for experiment in (mnist, cifar10, flickr8k):
    with pytest.raises(ValueError, match='shape is unknown: .*shapes'):
      experiment.get_config('shape')
