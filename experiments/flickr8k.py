r"""Image captioning on 762 + 113 of the 8,000 photographs of Flickr8k (Hodosh et al. 2013).

  python -m experiments.preparation.captions data runs/captions
  python run.py --config=experiments/flickr8k.py:translation
  python run.py --config=experiments/flickr8k.py
  echo photo.jpg | python run.py --workdir=runs/flickr8k --mode=predict

Data, in data/flickr8k_1000: train.tar.xz and val.tar.xz of images, or folders of these names, and
train_captions.tsv and val_captions.tsv with columns image and caption, five captions for each
image. The last tenth of train is the validation set, and val is the test set. To use all of
Flickr8k, put its images and captions into files of these names. TFDS has `coco_captions` in the
same form: --config.data.name=coco_captions --config.data.dir= --config.data.train=train
--config.data.val='val[:10%]' --config.data.test='val[10%:]'. Without files:
--config=experiments/flickr8k.py:shapes generates pictures.

The layers of both stacks, the token embeddings and the tokenizer are taken from a model that
translates the 28,591 German captions of Multi30k into English, without sentences that are similar
to a caption of the validation or test images. The decoder has 0.2 of the learning rate. To start
from random parameters, with a tokenizer of the captions:

  --config.warm_start= --config.optimizer.lr_multipliers=

Two convolutions of stride 2 reduce 32 x 32 patches to 8 x 8 positions for the encoder, which has
two layers, like the decoder. Every caption is an example.

Result (seed 0, beam 4, checkpoint chosen on validation, 77 images): BLEU-1 49.4 and BLEU-4 12.0 on
validation, 51.0 and 11.0 on test; 11 minutes on one CPU core, and 14 for the translation model. The
same caption for every image has 36.1 and 6.8. From random parameters: 49.3 and 13.6 on validation,
49.8 and 8.8 on test. The validation set is too small to compare the two by BLEU; the negative
log-likelihood of a caption in it is 48.9 nats with the warm start and 51.3 without. The test set
was evaluated three times.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config(variant: str = 'captions') -> ConfigDict:
  if variant not in ('captions', 'translation', 'shapes'):
    raise ValueError(f'flickr8k.py:{variant} is unknown: choose captions, translation or shapes')
  translation = variant == 'translation'
  c = config.for_task('seq2seq', modality='tokens' if translation else 'patches')
  c.experiment = 'flickr8k' if variant == 'captions' else f'flickr8k_{variant}'
  c.data.update(max_length=32, batch_tokens=2048, buckets=1)
  c.tokenizer.update(vocab=1500, lowercase=True)  # not used with a warm start
  c.model.update(presets.TRANSFORMER_TINY, depth=2, decoder_depth=2, prenorm=True)
  c.model.update(position='learned', activation='gelu_tanh', tie='output', dtype='auto')
  c.loss.label_smoothing = 0.1
  c.optimizer.update(name='muon', learning_rate=5e-3, warmup_steps=200, weight_decay=0.05)
  c.decode.update(beams=4, alpha=1.0, max_new_tokens=32)
  c.eval.samples = 6
  if translation:
    c.data.update(name='parallel', dir='runs/captions', source='de', target='en')
    c.data.update(max_length=64, buckets=4)
    c.tokenizer.vocab = 4000
    c.model.dropout = 0.2
    c.train.steps = 3000
    c.eval.update(every_steps=1000, limit=300, metrics=('bleu',))
    return c
  c.data.update(name='captions', dir=config.data_dir('flickr8k_1000'), source='image')
  c.data.update(target='captions/text', train='train[:90%]', val='train[90%:]', test=('val',))
  c.processor.update(height=64, width=64, channels=3, patch=2)
  c.processor.update(flip=True, shift=6, turn=10.0, zoom=0.15, recolor=0.2)  # pixels, degrees
  c.model.update(features=2 * 2 * 3, stem=2, dropout=0.4)
  c.train.update(steps=1500, ema=0.99, save_every_steps=250)
  c.eval.update(every_steps=250, metrics=('bleu1_lowercase_words', 'bleu4_lowercase_words'))
  c.eval.best = 'bleu4_lowercase_words'
  if variant == 'captions':
    c.warm_start = 'runs/flickr8k_translation'
    c.optimizer.lr_multipliers = (('decoder/', 0.2),)
  else:
    c.data.update(name='shapes', dir='', target='caption', train='train', val='val')
    c.data.test = ('test',)
  return c
