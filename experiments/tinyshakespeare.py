r"""A character language model of Shakespeare, in nanoGPT's CPU setting: 2,000 steps of 12 x 64.

  python run.py --config=experiments/tinyshakespeare.py --config.data.dir=FILE
  echo 'ROMEO:' | python run.py --config=experiments/tinyshakespeare.py --mode=predict

FILE is `input.txt` or `input.txt.gz` of https://github.com/karpathy/char-rnn. nanoGPT's loss on the
last tenth is 1.88 nats per character after 1.5 M characters of training. Ours, seed 0: 1.635 in
2 minutes on 2 CPU cores, compilation included. What differs: RMSNorm, rotary positions, SwiGLU, no
biases, 3 times the learning rate, and each window starts where the last one ended.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'tinyshakespeare', 'language_model', 0, ''
  c.data = dict(
    name='text',
    dir='../shared/data/tinyshakespeare/input.txt.gz',
    inputs='',
    targets='',
    train='train',
    val='val',
    test='',
    limit=0,
    length=64,
    tokens=768,
    buckets=1,
    packing=False,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='characters', vocab=80, lowercase=False, split_digits=False, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    feedforward=512,
    length=64,
    prenorm=True,
    norm='rms',
    position='rotary',
    activation='silu',
    gated=True,
    bias=False,
    dropout=0.0,
    dtype='bfloat16',
  )
  c.loss = dict(documents=False, overlap=0, label_smoothing=0.0, z_loss=0.0)
  c.optimizer = dict(
    presets.ADAM, learning_rate=3e-3, schedule='cosine', warmup_steps=100, clip=1.0
  )
  c.train = dict(
    steps=2000,
    steps_per_call=10,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=100,
    save_every_steps=500,
    keep=2,
    adapters='',
  )
  c.eval = dict(every_steps=500, limit=0, samples=2, metrics='', best='nll_per_token', by='')
  c.decode = dict(presets.SEARCH, beams=1, alpha=0.0, length=300, rows=4)
  c.decode.update(temperature=0.8)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
