r"""Retrieval of the paragraph that answers a question: a dual encoder on SQuAD, and BM25.

  python run.py --config=experiments/retrieval_squad.py
  python run.py --mode=evaluate --workdir=runs/retrieval_squad --config.decode.bm25=0.75   # both
  echo 'who discovered oxygen?' | python run.py --mode=predict --workdir=runs/retrieval_squad

Data, in data/: the folders of squad.py. The collection is the 1,017 visible paragraphs of the dev
set of SQuAD 1.1. Training uses the questions of SQuADShifts, questions generated from statements
(data/cloze.py) and pieces of paragraphs (Lee et al. 2019). Validation uses 12 articles, the test
the other 12, on which BM25 alone has a recall@5 of 93.1 (on all: 92.0).

Result (seed 0, 49 minutes on one CPU core): recall@5 70.6 on validation, best after 1,250 steps,
and 76.3 on the test (recall@1 45.5 and 50.5). Learned weights of words (pooling=attention) matter
most: after 500 steps, recall@5 on validation is 55.5 with them and 42.9 with the mean. A random
projection of tf-idf vectors to 512 numbers has 72 (45 without idf weights). The recorded run set
pooling=attention by a flag, because at its commit this file still had the mean.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets

TRAIN = 'squad/train_shifts_new_wiki+squad/train_shifts_amazon+squad/train_shifts_reddit'


def get_config(size: str = 'full') -> ConfigDict:
  if size not in ('full', 'tiny'):
    raise ValueError(f'retrieval_squad.py:{size} is unknown: give full or tiny')
  c = config.for_task('retrieval')
  c.experiment = 'retrieval_squad'
  c.data.update(
    name='squad', dir=config.data_dir(''), max_length=192, batch_tokens=64 * 192, buckets=1
  )
  c.data.train = f'{TRAIN}+cloze:wikitext2/train+cloze:squad/train_shifts_new_wiki'
  c.data.update(val='squad/dev_visible[:12]', test=('squad/dev_visible[12:]',))
  c.tokenizer.update(kind='wordpiece', vocab=8000, lowercase=True, sentinels=1)
  c.model.update(presets.TRANSFORMER_TINY, token_types=2, width=512, depth=1, head_size=32)
  c.model.update(feedforward=256, max_length=192, prenorm=True, norm='rms', position='rotary')
  c.model.update(activation='gelu_tanh', pooling='attention', dropout=0.1, dtype='auto')
  c.loss.update(symmetric=True, cloze=0.25, piece=16)
  c.optimizer.update(name='muon', learning_rate=5e-3, warmup_steps=200, weight_decay=0.1)
  c.optimizer.lr_multipliers = (('embed', 0.3),)
  c.train.update(steps=2000, log_every_steps=50, save_every_steps=250)
  c.eval.update(every_steps=250, limit=1000, best='recall_at_5')
  c.eval.metrics = ('recall_at_1', 'recall_at_5', 'reciprocal_rank')
  c.decode.update(collection=config.data_dir('squad/dev_visible.json.gz'), batch_size=64)
  if size == 'tiny':
    c.experiment, c.train.steps, c.decode.collection = 'retrieval_tiny', 100, 'facts:val'
    c.data.update(name='facts', train='train', val='val', test=())
  return c
