r"""Sentiment of film reviews, SST-2: masked language modelling, then fine-tuning on phrases.

  python -m experiments.preparation.text ../shared/data runs/text
  python run.py --config=experiments/sst2.py:pretrain --config.data.dir=runs/text
  python run.py --config=experiments/sst2.py:finetune --config.data.dir=../shared/data/sst2
  echo 'a gripping , funny film' | python run.py --workdir=runs/sst2_finetune --mode=predict

The folder holds `train_phrases.tsv` and `dev.tsv` (or .gz), columns label and sentence; it is
GLUE's SST-2 (Socher et al. 2013; TFDS: `glue/sst2`). The last run begins with the encoder of the
one before.

Seed 0, one CPU core: nll of masked tokens 3.07 on val after the first (52 minutes; 2,500 steps of
Muon have 3.64), and 82.3 on dev, which also chose the checkpoint, after the second (6 minutes). A
bag of words has 82.5. Seeds 1 to 4 of the second have 82.2, 83.0, 82.1 and 82.7: 872 sentences
tell no more. Not better: 15,000 steps of pretraining (2.89, then 82.1), 2,500 steps (82.3), a mean
for the summary (81.4), words hidden in training and masked phrases before (82.5), 300 steps on
whole sentences after (82.2).
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config(stage: str = 'finetune') -> ConfigDict:
  if stage not in ('pretrain', 'finetune'):
    raise ValueError(f'sst2.py:{stage} is unknown: give pretrain or finetune')
  pretrain = stage == 'pretrain'
  c = ConfigDict()
  c.experiment, c.seed = f'sst2_{stage}', 0
  c.task, c.init = ('masked_lm', '') if pretrain else ('classification', 'runs/sst2_pretrain')
  c.data = dict(
    name='text' if pretrain else 'pairs',
    dir='runs/text' if pretrain else '../shared/data/sst2',
    inputs='sentence',
    targets='label',
    train='train' if pretrain else 'train_phrases',
    val='val' if pretrain else 'dev',
    test='',
    limit=0,
    length=128 if pretrain else 64,
    tokens=4096 if pretrain else 2048,
    buckets=4,
    packing=pretrain,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='bpe', vocab=8000, lowercase=True, split_digits=False, sentinels=1)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    feedforward=512,
    length=128,
    prenorm=True,
    position='rotary',
    activation='gelu_tanh',
    summary='mean' if pretrain else 'attention',
    dropout=0.0 if pretrain else 0.3,
    dtype='bfloat16',
  )
  if pretrain:
    c.loss = dict(rate=0.2, whole_words=False, next_sentence=False)
  else:
    c.loss = dict(classes=tuple('0, 1'.split(', ')), label_smoothing=0.1, coarse_until='')
  c.optimizer = dict(
    presets.MUON,
    learning_rate=1e-2 if pretrain else 2e-3,
    schedule='cosine',
    warmup_steps=200,
    clip=1.0,
  )
  c.optimizer.weight_decay = 0.1
  c.train = dict(
    steps=8000 if pretrain else 1500,
    steps_per_call=1,
    microbatches=1,
    ema=0.0 if pretrain else 0.995,
    average=1,
    log_every_steps=100,
    save_every_steps=500,
    keep=2,
    adapters='',
  )
  c.eval = dict(
    every_steps=1000 if pretrain else 500,
    limit=0,
    samples=4,
    metrics='' if pretrain else 'exact_match',
    best='nll_per_token' if pretrain else 'accuracy',
    by='',
  )
  c.decode = dict(rows=32)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
