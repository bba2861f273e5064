r"""Dates as people write them, in 40 locales, to ISO 8601: the default experiment.

  python run.py                                  # the same as --config=experiments/dates.py
  echo 'de-DE: 3. März 2021' | python run.py --mode=predict

A bundled corpus, made by Babel from CLDR; test days never occur in training. Seed 0, one epoch of
60,000 lines, 2 minutes on 2 CPU cores: 99.65 % of 4,000 unseen dates exact, 97.8 % in locales never
trained on.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'dates', 'seq2seq', 0, ''
  c.data = dict(
    name='dates',
    dir='',
    inputs='inputs',
    targets='targets',
    train='train',
    val='val',
    test='test, test_unseen_locales',
    limit=0,
    length=64,
    tokens=1536,
    buckets=2,
    packing=False,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='bpe', vocab=2000, lowercase=False, split_digits=True, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    depth=2,
    decoder_depth=1,
    prenorm=True,
    position='rotary',
    length=64,
    dropout=0.0,
  )
  c.loss = dict(label_smoothing=0.0, z_loss=0.0, start='bos')
  c.optimizer = dict(
    presets.ADAM, learning_rate=4e-3, schedule='cosine', warmup_steps=100, clip=1.0
  )
  c.train = dict(
    steps=1200,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=50,
    save_every_steps=300,
    keep=2,
    adapters='',
  )
  c.eval = dict(
    every_steps=300, limit=200, samples=8, metrics='exact_match', best='exact_match', by='locale'
  )
  c.decode = dict(presets.SEARCH, beams=1, alpha=0.0, length=16, rows=64)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
