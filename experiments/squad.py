r"""Answers to questions as pieces of a paragraph: SQuAD, learnt from 27,626 questions.

  python run.py --config=experiments/squad.py:pretrain --config.data.dir=../shared/data
  python run.py --config=experiments/squad.py --config.data.dir=../shared/data
  python run.py --workdir=runs/squad --mode=predict --input=FILE   # lines QUESTION<TAB>PARAGRAPH

The folder holds squad/train_shifts_*.json.gz (SQuADShifts, Miller et al. 2020),
squad/dev_visible.json.gz (half of SQuAD 1.1's dev, Rajpurkar et al. 2016) and
wikitext2/train.txt.gz. With a network: --config.data.name=squad/v1.1 (TFDS), splits train and
validation. `:tiny` learns from sentences made on the spot.

The first run mixes the questions with 84,000 made of statements (data/cloze.py): these teach what
27,626 are too few for, to find the words of a question in a paragraph and to point at what is
missing. Chosen on 12 of the 24 visible articles, reported on the other 12.

Seed 0, one CPU core: F1 32.2 where it is chosen after the first run (40 minutes), 39.1 after the
second (14 minutes), which begins with it, and then F1 44.2, exact match 29.4 on the reported half;
the best-overlapping sentence has 20.3 on both halves. On the first 300 to 400 questions of the one
that chooses, 200 steps on the real questions alone gave 10.3, 300 steps of the mixture 18.5.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets

TRAIN = 'squad/train_shifts_new_wiki+squad/train_shifts_amazon+squad/train_shifts_reddit'
MADE = 'cloze:wikitext2/train+cloze:' + TRAIN.replace('+', '+cloze:')


def get_config(stage: str = 'finetune') -> ConfigDict:
  if stage not in ('pretrain', 'finetune', 'tiny'):
    raise ValueError(f'squad.py:{stage} is unknown: give pretrain, finetune or tiny')
  pretrain, tiny = stage == 'pretrain', stage == 'tiny'
  c = ConfigDict()
  c.experiment, c.seed = {'finetune': 'squad'}.get(stage, f'squad_{stage}'), 0
  c.task, c.init = 'question_answering', '' if pretrain or tiny else 'runs/squad_pretrain'
  c.data = dict(
    name='facts' if tiny else 'squad',
    dir='../shared/data',
    inputs='inputs',
    targets='targets',
    train='train' if tiny else f'{TRAIN}+{MADE}' if pretrain else TRAIN,
    val='val' if tiny else 'squad/dev_visible[:12]',
    test='test' if tiny else '' if pretrain else 'squad/dev_visible[12:]',
    limit=0,
    length=320,
    tokens=8192,
    buckets=3,
    packing=False,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='wordpiece', vocab=8000, lowercase=True, split_digits=False, sentinels=1)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    types=3,
    feedforward=512,
    length=320,
    prenorm=True,
    norm='rms',
    position='rotary',
    activation='gelu_tanh',
    dropout=0.1,
    dtype='bfloat16',
  )
  c.loss = dict(stride=128)
  c.optimizer = dict(
    presets.MUON,
    learning_rate=8e-3 if pretrain else 2e-3,
    schedule='cosine',
    warmup_steps=100,
    clip=1.0,
  )
  c.optimizer.weight_decay = 0.1
  c.train = dict(
    steps=100 if tiny else 2000 if pretrain else 600,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=50,
    save_every_steps=250,
    keep=2,
    adapters='',
  )
  c.eval = dict(
    every_steps=500,
    limit=0 if tiny else 500,
    samples=4,
    metrics='squad_exact_match,squad_f1',
    best='squad_f1',
    by='',
  )
  c.decode = dict(rows=32, longest=24)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
