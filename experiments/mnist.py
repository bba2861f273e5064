r"""MNIST: which digit a picture of 28 x 28 pixels shows.

  python run.py --config=experiments/mnist.py --config.data.dir=FOLDER
  echo digit.png | python run.py --config=experiments/mnist.py --mode=predict

FOLDER holds MNIST's four idx files, maybe .gz or .xz (LeCun et al. 1998). The TFDS data set is
`mnist`: --config.data.name=mnist --config.data.dir= --config.data.test=test. Without any file:
--config=experiments/mnist.py:shapes, drawn ones. The last tenth of the training images is val.

A ViT (Dosovitskiy et al. 2021) of 4 layers of width 64 behind two convolutions that leave 7 x 7
patches (Xiao et al. 2021); pictures are moved, turned and scaled a little.

Seed 0: 99.43 % on val and 99.38 % on t10k_even, 15 epochs in 15 minutes of one CPU core. Before,
with AdamW (3e-3), 8 epochs, no dropout and less variation: 99.27 and 99.28; after one epoch Muon
has 98.3 on val and AdamW 96.5.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config(corpus: str = '') -> ConfigDict:
  if corpus not in ('', 'shapes'):
    raise ValueError(f'mnist.py:{corpus} is unknown: give shapes, or nothing')
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'mnist', 'classification', 0, ''
  c.data = dict(
    name='idx',
    dir='../shared/data/mnist',
    inputs='image',
    targets='label',
    train='train[:90%]',
    val='train[90%:]',
    test='t10k_even',
    limit=0,
    length=1,
    tokens=128,
    buckets=1,
    packing=False,
  )
  c.inputs = dict(
    height=28,
    width=28,
    channels=1,
    patch=1,
    flip=False,
    shift=3,
    turn=15.0,
    zoom=0.15,
    erase=0,
    recolor=0.0,
  )
  c.tokenizer = dict(kind='characters', vocab=32, lowercase=False, split_digits=False, sentinels=0)
  c.model = dict(
    presets.VIT_S16,
    features=1,
    stem=2,
    width=64,
    depth=4,
    heads=2,
    feedforward=128,
    length=50,
    activation='gelu_tanh',
    summary='mean',
    dropout=0.1,
    dtype='bfloat16',
  )
  c.loss = dict(classes=tuple('0123456789'), label_smoothing=0.1, coarse_until='')
  c.optimizer = dict(
    presets.MUON, learning_rate=1e-2, schedule='cosine', warmup_steps=200, clip=1.0
  )
  c.optimizer.weight_decay = 0.05
  c.train = dict(
    steps=6330,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=100,
    save_every_steps=422,
    keep=2,
    adapters='',
  )
  c.eval = dict(
    every_steps=1266, limit=500, samples=4, metrics='exact_match', best='accuracy', by=''
  )
  c.decode = dict(rows=128)
  c.mesh = dict(presets.DATA_PARALLEL)
  if corpus:
    c.experiment = 'mnist_shapes'
    c.data.update(name='shapes', dir='', targets='label', train='train', val='val', test='test')
    c.loss.classes = tuple('circle, square, triangle, cross'.split(', '))
  return c
