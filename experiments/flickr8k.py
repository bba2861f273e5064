r"""Captions for photographs: Flickr8k (Hodosh et al. 2013), or 762 images of it, 5 captions each.

  python -m experiments.preparation.captions ../shared/data runs/captions
  python run.py --config=experiments/flickr8k.py:translation --config.data.dir=runs/captions
  python run.py --config=experiments/flickr8k.py --config.data.dir=FOLDER
  echo photo.jpg | python run.py --config=experiments/flickr8k.py --mode=predict

FOLDER holds train.tar.xz and val.tar.xz of images, or folders of the same names, and
train_captions.tsv and val_captions.tsv with columns image and caption. A like TFDS data set is
`coco_captions`: --config.data.name=coco_captions --config.data.dir= --config.data.train=train
--config.data.val='val[:10%]' --config.data.test='val[10%:]'. Without any file:
--config=experiments/flickr8k.py:shapes, drawn ones. A tenth of the training images is for choosing.

The decoder learns to write captions before it has anything to see, as that of a translator of
Multi30k's 28,591 German ones (with --config.init= and --config.optimizer.rates= it begins from
nothing); sentences of images that judge are left out. Convolutions then leave 8 x 8 patches; two
layers read them, two write. Every caption is an example.

Seed 0, beams of 4, chosen on a tenth of train: BLEU-1 49.4 and BLEU-4 12.0 there (77 images), 51.0
and 11.0 on val, 11 minutes of one CPU core after 14 for the translator. A constant caption has 36.1
and 6.8. From nothing: 49.3 and 13.6 on the tenth, 49.8 and 8.8 on val. A tenth is too little to
tell these apart by BLEU; a caption costs 48.9 nats there instead of 51.3. val was seen three times.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config(variant: str = 'captions') -> ConfigDict:
  if variant not in ('captions', 'translation', 'shapes'):
    raise ValueError(f'flickr8k.py:{variant} is unknown: give shapes, translation or captions')
  translation, shapes = variant == 'translation', variant == 'shapes'
  c = ConfigDict()
  c.experiment = {'captions': 'flickr8k'}.get(variant, f'flickr8k_{variant}')
  c.task, c.seed = 'seq2seq', 0
  c.init = 'runs/flickr8k_translation' if variant == 'captions' else ''
  c.data = dict(
    name='captions',
    dir='../shared/data/flickr8k_1000',
    inputs='image',
    targets='captions/text',
    train='train[:90%]',
    val='train[90%:]',
    test='val',
    limit=0,
    length=32,
    tokens=2048,
    buckets=1,
    packing=False,
  )
  c.inputs = dict(
    height=64,
    width=64,
    channels=3,
    patch=2,
    flip=True,
    shift=6,
    turn=10.0,
    zoom=0.15,
    erase=0,
    recolor=0.2,
  )
  c.tokenizer = dict(kind='bpe', vocab=1500, lowercase=True, split_digits=False, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    inputs='patches',
    features=2 * 2 * 3,
    stem=2,
    depth=2,
    decoder_depth=2,
    prenorm=True,
    position='learned',
    activation='gelu_tanh',
    tie='output',
    dropout=0.4,
    dtype='bfloat16',
  )
  c.loss = dict(label_smoothing=0.1, z_loss=0.0, start='bos')
  c.optimizer = dict(
    presets.MUON, learning_rate=5e-3, schedule='cosine', warmup_steps=200, clip=1.0
  )
  c.optimizer.weight_decay = 0.05
  if c.init:
    c.optimizer.rates = 'decoder/=0.2'
  c.train = dict(
    steps=1500,
    steps_per_call=1,
    microbatches=1,
    ema=0.99,
    average=1,
    log_every_steps=100,
    save_every_steps=250,
    keep=2,
    adapters='',
  )
  c.eval = dict(
    every_steps=250,
    limit=0,
    samples=6,
    metrics='bleu1_lowercase_words, bleu4_lowercase_words',
    best='bleu4_lowercase_words',
    by='',
  )
  c.decode = dict(presets.SEARCH, beams=4, alpha=1.0, length=32, rows=32)
  c.mesh = dict(presets.DATA_PARALLEL)
  if shapes:
    c.data.update(name='shapes', dir='', targets='caption', train='train', val='val', test='test')
  if translation:
    c.data.update(name='parallel', dir='runs/captions', inputs='de', targets='en')
    c.data.update(train='train', val='val', test='', length=64, buckets=4)
    c.inputs, c.tokenizer.vocab = {}, 4000
    c.model.update(inputs='tokens', features=0, stem=0, dropout=0.2)
    c.train.update(steps=3000, ema=0.0, save_every_steps=500)
    c.eval.update(every_steps=1000, limit=300, metrics='bleu', best='nll_per_token')
  return c
