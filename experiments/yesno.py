r"""Speech recognition, yes or no eight times over: CTC on the words of 26 recordings, joined anew.

  python run.py --config=experiments/yesno.py --config.data.dir=../shared/data/yesno

The folder holds `train.tar.xz` and `test_visible.tar.xz`, Kaldi's split of OpenSLR 1 (TFDS:
`yes_no`): one speaker, 8 kHz, and a name that is the transcript: `1_0_0_1_0_1_1_1.wav`. All
recordings of train begin with no and all of test with yes, so that the words are cut out at the
silences and joined in any number and order; 5 whole recordings are left to choose by.

Seed 0: no word of 112 wrong, as Kaldi's monophone model; 2 minutes of one CPU core. Seed 3: one.
After half the steps no word of val is wrong with any of five seeds, and of test 0, 0, 0.9, 10.7 and
0.9 %: a first yes is heard twice. Adam at 2e-3 for 1,200 steps depends on the seed even more, 0, 8
or 74 %, for it may long hear repeated words as one. Words cut in the middle of the silences gave
8.0: the first one of a recording, always no, had the longest silence before it.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'yesno', 'ctc', 0, ''
  c.data = dict(
    name='yesno',
    dir='../shared/data/yesno',
    inputs='inputs',
    targets='targets',
    train='joined[:26]',
    val='train[26:]',
    test='test_visible',
    limit=0,
    length=400,
    tokens=2000,
    buckets=1,
    packing=False,
  )
  c.inputs = dict(
    rate=8000,
    window=0.032,
    hop=0.020,
    bands=24,
    tempo=0.15,
    time_masks=2,
    time_width=6,
    time_share=0.1,
    frequency_masks=1,
    frequency_width=5,
  )
  c.tokenizer = dict(kind='bpe', vocab=280, lowercase=False, split_digits=True, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    inputs='frames',
    features=24,
    width=64,
    depth=2,
    heads=2,
    feedforward=256,
    prenorm=True,
    position='rotary',
    activation='gelu_tanh',
    tie='output',
    dropout=0.1,
    dtype='bfloat16',
  )
  c.loss = {}
  c.optimizer = dict(
    presets.MUON, learning_rate=1e-2, schedule='cosine', warmup_steps=100, clip=1.0
  )
  c.optimizer.weight_decay = 0.1
  c.train = dict(
    steps=4000,
    steps_per_call=1,
    microbatches=1,
    ema=0.99,
    average=1,
    log_every_steps=100,
    save_every_steps=400,
    keep=2,
    adapters='',
  )
  c.eval = dict(every_steps=400, limit=0, samples=4, metrics='wer,cer', best='nll_per_token', by='')
  c.decode = dict(rows=8)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
