"""What the end of a run needs is tried before its first step."""

import PIL.Image
import pytest

from transformer.training import config
from transformer.training.start import start_run
from transformer.training.workdir import Workdir

PAIRS = dict(data__max_length=8, data__test=('test',), tokenizer__kind='characters')
LABELS = dict(PAIRS, task='classification', eval__metrics=('accuracy',))
IMAGES = dict(LABELS, data__name='images')
for name in ('height', 'width', 'patch'):
  IMAGES[f'processor__{name}'] = 4
IMAGES |= dict(
  processor__channels=1, model__modality='patches', model__features=16, model__tie='none'
)

# by what is wrong: changed settings, the lines of test.tsv, and the error
WRONG = {
  'an id beyond the tokens': (PAIRS | dict(decode__suppress=(999,)), 'a\tb\n', r'has ids \[999\]'),
  'ids of choices': (PAIRS | dict(decode__choices=((999,),)), 'a\tb\n', r'choices has ids \[999\]'),
  'a prefix that is a bad word': (
    PAIRS | dict(decode__prefix=(5,), decode__bad_words=((5,),)),
    'a\tb\n',
    'no output is possible',
  ),
  'a test that is too long': (PAIRS, 'aaaaaaaaaaaa\tb\n', 'every example of test is longer'),
  'a test without examples': (PAIRS, '', 'test'),
  'a label that is in the test alone': (LABELS, 'a\tc\n', "the label 'c' of 'a' is none of"),
  'an image of the test': (IMAGES, None, 'z.png cannot be read as an image'),
  'a metric of numbers': (
    LABELS | dict(eval__metrics=('pearson_correlation',)),
    'a\tb\n',
    'eval.metrics=pearson_correlation fails',
  ),
}


def write_images(folder):
  for split in ('train', 'val', 'test'):
    for label, shade in (('dark', 0), ('light', 200)):
      (folder / split / label).mkdir(parents=True)
      PIL.Image.new('L', (4, 4), shade).save(folder / split / label / 'a.png')
  (folder / 'test' / 'dark' / 'z.png').write_bytes(b'no image')


@pytest.mark.parametrize('name', WRONG)
def test_what_the_end_of_a_run_needs_is_tried_before_its_first_step(name, tmp_path):
  changes, test, message = WRONG[name]
  if test is None:
    write_images(tmp_path)
  else:
    for split, lines in (('train', 'a\ta\nb\tb\n' * 4), ('val', 'a\ta\n'), ('test', test)):
      (tmp_path / f'{split}.tsv').write_text(lines)
  changes = dict(changes)
  modality = changes.pop('model__modality', 'tokens')
  values = config.for_task(changes.pop('task', 'seq2seq'), modality=modality)
  values.experiment = 'tiny'
  values.data.update(name='pairs', dir=str(tmp_path), batch_tokens=32)
  values.model.update(width=8, depth=1, heads=2, feedforward=8, max_length=8)
  values.optimizer.learning_rate, values.train.steps = 1e-3, 2
  values.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  with pytest.raises((ValueError, OSError), match=message):
    start_run(values.to_dict(), Workdir(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'config.json').exists()
