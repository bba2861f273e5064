r"""Copy, reverse or sort a sequence of digits: instant proof that the whole machine works.

  python run.py --config=experiments/algorithmic.py:reverse      # or copy, or sort

Sequences of 1 to 20 symbols; test sequences never occur in training, and those of the split
'longer' have 21 to 40. Seed 0, rotary positions, 1,000 unseen sequences each: all are exact; of the
longer ones 0.2 (copy), 0.2 (reverse) and 21.7 % (sort). Three minutes on one CPU core;
`python -m experiments.studies.positions` compares the schemes.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config(task: str = 'reverse') -> ConfigDict:
  if task not in ('copy', 'reverse', 'sort'):
    raise ValueError(f'algorithmic.py:{task} is unknown: give copy, reverse or sort')
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = f'algorithmic_{task}', 'seq2seq', 0, ''
  c.data = dict(
    name=task,
    dir='',
    inputs='inputs',
    targets='targets',
    train='train',
    val='val',
    test='test, longer',
    limit=0,
    length=80,
    tokens=2048,
    buckets=1,
    packing=True,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='characters', vocab=64, lowercase=False, split_digits=True, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY, depth=2, width=64, prenorm=True, position='rotary', dropout=0.0
  )
  c.loss = dict(label_smoothing=0.0, z_loss=0.0, start='bos')
  c.optimizer = dict(presets.MUON, learning_rate=4e-3, schedule='cosine', warmup_steps=50, clip=1.0)
  c.train = dict(
    steps=1200,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=50,
    save_every_steps=600,
    keep=2,
    adapters='',
  )
  c.eval = dict(
    every_steps=600, limit=200, samples=6, metrics='exact_match', best='exact_match', by=''
  )
  c.decode = dict(presets.SEARCH, beams=1, alpha=0.0, length=80, rows=256)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c


def sweep(add):
  """Which position scheme learns it."""
  for position in ('sinusoidal', 'learned', 'rotary', 'relative', 'alibi', 'none'):
    add({'model.position': position})
