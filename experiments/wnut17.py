r"""Named entity recognition in messages of social media, WNUT-17.

  python run.py --config=experiments/wnut17.py
  echo 'Empire State Building = ESB .' | python run.py --workdir=runs/wnut17 --mode=predict
  python run.py --config=experiments/wnut17.py:entities   # generated sentences: no file

Data, in data/wnut17: train.conll.gz and dev.conll.gz (Derczynski et al. 2017), lines of a word, a
tab and its BIO tag. The last tenth of train is the validation set, dev the test set.

Result (seed 0, from random parameters, 42 minutes on two busy CPU cores): F1 of entities 25.5 on
the last tenth of train (226 entities, best after 1,500 steps) and 18.5 on dev (836 entities, 96 %
of them not in train). Published scores use pretrained embeddings.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets

TYPES = 'corporation', 'creative-work', 'group', 'location', 'person', 'product'


def get_config(variant: str = 'messages') -> ConfigDict:
  if variant not in ('messages', 'entities'):
    raise ValueError(f'wnut17.py:{variant} is unknown: give messages or entities')
  c = config.for_task('token_classification')
  c.experiment = 'wnut17'
  c.data.update(name='conll', dir=config.data_dir('wnut17'), max_length=128, batch_tokens=1024)
  c.data.update(train='train[:90%]', val='train[90%:]', test=('dev',), buckets=3)
  if variant == 'entities':
    c.data.update(name='entities', dir='', train='train', val='val', test=('test',))
  c.tokenizer.update(vocab=2000)
  c.model.update(presets.TRANSFORMER_TINY, feedforward=512, max_length=128, prenorm=True)
  c.model.update(position='rotary', activation='gelu_tanh', dropout=0.3, dtype='auto')
  c.loss.update(labels=('O', *(f'{mark}-{name}' for name in TYPES for mark in 'BI')))
  c.loss.label_smoothing = 0.1
  c.optimizer.update(name='muon', learning_rate=2e-3, warmup_steps=100, weight_decay=0.1)
  c.train.update(steps=2000, save_every_steps=250)
  c.eval.update(every_steps=250, metrics=('entity_f1',), best='entity_f1')
  return c
