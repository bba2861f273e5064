r"""Speech recognition, strings of 3 to 7 spoken digits: CTC, or a decoder that attends.

  python run.py --config=experiments/fsdd.py --config.data.dir=../shared/data/fsdd   # or :attention
  echo digits.wav | python run.py --workdir=runs/fsdd_ctc --mode=predict
  python run.py --config=experiments/fsdd.py:keypad      # a telephone's tones: needs no file

The folder holds `train.tar.xz` and `test_visible.tar.xz` of the Free Spoken Digit Dataset (TFDS:
`spoken_digit`): 8 kHz, six speakers. Recordings 5-44 are to learn from, 45-49 to choose by and 0-4
to report; of each set strings of one speaker are joined, with pauses and a noisy line.

CTC, seed 0: WER 0.72 on val and 0.87 on test_visible (strings of recordings 0-4 of five speakers),
15 minutes of one CPU core. Characters instead of words, every 20 ms, 600 steps with Adam had 8.5,
most of it misspelt (sigxt).

Attention with a CTC loss, seed 0: 0.89 on val and 1.10 on test_visible, 20 minutes.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config(variant: str = 'ctc') -> ConfigDict:
  if variant not in ('ctc', 'attention', 'keypad'):
    raise ValueError(f'fsdd.py:{variant} is unknown: give ctc, attention or keypad')
  attention, keypad = variant == 'attention', variant == 'keypad'
  c = ConfigDict()
  c.experiment, c.seed, c.init = f'fsdd_{variant}', 0, ''
  c.task = 'joint_ctc' if attention else 'ctc'
  c.data = dict(
    name='keypad_strings' if keypad else 'fsdd_strings',
    dir='' if keypad else '../shared/data/fsdd',
    inputs='inputs',
    targets='targets',
    train='train' if keypad else 'train[:2400]',
    val='val' if keypad else 'train[2400:]',
    test='test' if keypad else 'test_visible',
    limit=0,
    length=640,
    tokens=4000,
    buckets=4,
    packing=False,
  )
  c.inputs = dict(
    rate=8000,
    window=0.032,
    hop=0.016,
    bands=40,
    tempo=0.15,
    time_masks=2,
    time_width=12,
    time_share=0.1,
    frequency_masks=1,
    frequency_width=8,
  )
  c.tokenizer = dict(kind='bpe', vocab=400, lowercase=False, split_digits=True, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    inputs='frames',
    features=40,
    decoder_depth=2 if attention else 0,
    feedforward=512,
    prenorm=True,
    position='rotary',
    activation='gelu_tanh',
    tie='output',
    dropout=0.1,
    dtype='bfloat16',
  )
  c.loss = dict(label_smoothing=0.1, z_loss=0.0, start='bos', ctc=0.3) if attention else {}
  c.optimizer = dict(
    presets.MUON, learning_rate=1e-2, schedule='cosine', warmup_steps=100, clip=1.0
  )
  c.optimizer.weight_decay = 0.1
  c.train = dict(
    steps=4000,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=50,
    save_every_steps=1000,
    keep=2,
    adapters='',
  )
  c.eval = dict(every_steps=1000, limit=200, samples=4, metrics='wer,cer', best='wer', by='')
  c.decode = dict(rows=32)
  if attention:
    c.decode = dict(presets.SEARCH, beams=4, alpha=0.6, length=16, rows=32)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
