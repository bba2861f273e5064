r"""Speech synthesis of a digit by a given speaker.

  python run.py --config=experiments/fsdd_tts.py
  echo 'george: seven' | python run.py --workdir=runs/fsdd_tts --mode=predict    # writes a wav file
  python run.py --config=experiments/fsdd_tts.py:keypad    # generated telephone tones: no file

Data, in data/fsdd: train.tar.xz and test_visible.tar.xz of the Free Spoken Digit Dataset (TFDS:
`spoken_digit`): 8 kHz, six speakers. Recordings 5-44 are for training, 45-49 for validation and 0-4
for the test.

Result (seed 0, 19 minutes on one CPU core): a classifier trained on real recordings recognizes
93.3 % of 60 synthesized texts, and 98.3 % of real recordings (`python -m experiments.studies.speech
runs/fsdd_tts runs/fsdd_digits`). Of the four texts that it does not recognize, two never stop. Mel
cepstral distortion: 4.60 dB on validation and 4.45 on test_visible. Length: 106 and 107 % of that
  of
the recordings; rounding up to steps of three frames alone gives 104 %. After 3,000 steps: 90.0 %,
4.58 and 4.44. The attention is not diagonal, because the order of speaker and digit does not
matter.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config(variant: str = 'speakers') -> ConfigDict:
  if variant not in ('speakers', 'keypad'):
    raise ValueError(f'fsdd_tts.py:{variant} is unknown: give speakers or keypad')
  c = config.for_task('text_to_speech')
  c.experiment = 'fsdd_tts'
  c.data.update(name='fsdd', dir=config.data_dir('fsdd'), target='speaker: digit')
  c.data.update(train='train[:2400]', val='train[2400:]', test=('test_visible',))
  c.data.update(max_length=32, batch_tokens=1024, buckets=1)
  if variant == 'keypad':
    c.data.update(name='keypad', dir='', target='targets')
    c.data.update(train='train', val='val', test=('test',))
  c.tokenizer.update(kind='characters', vocab=64, split_digits=True)
  c.model.update(presets.TRANSFORMER_TINY, depth=2, feedforward=512, max_length=32, prenorm=True)
  c.model.update(activation='gelu_tanh', tie='none', dropout=0.1, dtype='auto')
  c.loss.update(rate=8000, window=0.032, mels=40, frames_per_step=3)
  c.optimizer.update(name='muon', learning_rate=5e-3, warmup_steps=200)
  c.train.steps = 8000
  c.eval.update(limit=60, samples=0, metrics=('mel_cepstral_distortion', 'length_ratio'))
  c.eval.best = 'mel_cepstral_distortion'
  c.decode.update(batch_size=60, max_new_tokens=32)
  return c
