r"""Image classification on CIFAR-10: ten classes of pictures of 32 x 32 pixels.

  python run.py --config=experiments/cifar10.py
  echo picture.jpg | python run.py --config=experiments/cifar10.py --mode=predict

Data, in data/cifar10_jpeg: train.tar.xz and test_visible.tar.xz of <class>/<file>, or folders of
these names. Any labeled images work if loss.classes has their classes. The validation set is 5 % of
the training images. TFDS: --config.data.name=cifar10 --config.data.dir= --config.data.test=test.
Without files: --config=experiments/cifar10.py:shapes generates pictures of four shapes.

The model is a ViT (Dosovitskiy et al. 2021) of 5 layers of width 128 after two convolutions, which
reduce the image to 8 x 8 positions (Hassani et al. 2021, CCT; Xiao et al. 2021). Augmentation:
flips, shifts, changes of color, and an erased square.

Result (seed 0, on JPEG copies), accuracy: 83.7 % on validation and 84.9 % on test_visible, 30
epochs in 112 minutes on one CPU core (62, 72, 77, 80 and 82 % on validation after 1,000, 3,000,
5,000, 7,000 and 9,000 steps).
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets

CLASSES = 'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'


def get_config(corpus: str = '') -> ConfigDict:
  if corpus not in ('', 'shapes'):
    raise ValueError(f'cifar10.py:{corpus} is unknown: give shapes, or nothing')
  c = config.for_task('classification', modality='patches')
  c.experiment = 'cifar10'
  c.data.update(name='images', dir=config.data_dir('cifar10_jpeg'), source='image')
  c.data.update(target='label', train='train[:95%]', val='train[95%:]', test=('test_visible',))
  c.data.update(max_length=1, batch_tokens=128, buckets=1)
  c.processor.update(height=32, width=32, channels=3, patch=1)
  c.processor.update(flip=True, shift=4, erase=8, recolor=0.2)
  c.tokenizer.update(kind='characters', vocab=32)
  c.model.update(presets.VIT_S16, features=3, stem=2, max_length=65, width=128, depth=5, heads=4)
  c.model.update(feedforward=256, activation='gelu_tanh', pooling='mean', dropout=0.0)
  c.model.dtype = 'auto'
  c.loss.update(classes=CLASSES, label_smoothing=0.1)
  c.optimizer.update(name='muon', learning_rate=1e-2, warmup_steps=200, weight_decay=0.05)
  c.train.steps = 11_000
  c.eval.update(every_steps=1000, metrics=('accuracy',), best='accuracy')
  c.decode.batch_size = 128
  if corpus:
    c.experiment = 'cifar10_shapes'
    c.data.update(name='shapes', dir='', train='train', val='val', test=('test',))
    c.loss.classes = ('circle', 'square', 'triangle', 'cross')
  return c
