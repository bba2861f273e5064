r"""Speech recognition of 3 to 7 spoken digits: CTC, or attention with CTC.

  python run.py --config=experiments/fsdd.py                 # or fsdd.py:attention
  echo digits.wav | python run.py --workdir=runs/fsdd_ctc --mode=predict
  python run.py --config=experiments/fsdd.py:keypad      # generated telephone tones: needs no file

Data, in data/fsdd: train.tar.xz and test_visible.tar.xz of the Free Spoken Digit Dataset (TFDS:
`spoken_digit`): 8 kHz, six speakers. Recordings 5-44 are for training, 45-49 for validation and 0-4
for the test. In each set, digits of one speaker are joined, with pauses and noise.

Results (seed 0, one CPU core), word error rate in %: CTC has 0.72 on validation and 0.87 on
test_visible (recordings 0-4 of five speakers) after 15 minutes. Attention with a CTC loss has 0.89
and 1.10 after 20 minutes. CTC with characters instead of words as tokens, frames of 20 ms and 600
steps of Adam had 8.5; most errors were misspellings (sigxt).
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config(variant: str = 'ctc') -> ConfigDict:
  if variant not in ('ctc', 'attention', 'keypad'):
    raise ValueError(f'fsdd.py:{variant} is unknown: give ctc, attention or keypad')
  attention = variant == 'attention'
  c = config.for_task('joint_ctc' if attention else 'ctc', modality='frames')
  c.experiment = f'fsdd_{variant}'
  c.data.update(name='fsdd_strings', dir=config.data_dir('fsdd'), max_length=640, batch_tokens=4000)
  c.data.update(train='train[:2400]', val='train[2400:]', test=('test_visible',))
  if variant == 'keypad':
    c.data.update(name='keypad_strings', dir='', train='train', val='val', test=('test',))
  c.processor.update(rate=8000, window=0.032, hop=0.016, bands=40, tempo=0.15)
  c.processor.update(time_masks=2, time_width=12, time_share=0.1)
  c.processor.update(frequency_masks=1, frequency_width=8)
  c.tokenizer.update(vocab=400, split_digits=True)
  c.model.update(presets.TRANSFORMER_TINY, features=40, feedforward=512)
  c.model.update(decoder_depth=2 if attention else 0, prenorm=True, position='rotary')
  c.model.update(activation='gelu_tanh', tie='output', dropout=0.1, dtype='auto')
  c.optimizer.update(name='muon', learning_rate=1e-2, weight_decay=0.1)
  c.train.update(steps=4000, log_every_steps=50, save_every_steps=1000)
  c.eval.update(every_steps=1000, limit=200, metrics=('wer', 'cer'), best='wer')
  if attention:
    c.loss.update(label_smoothing=0.1, ctc=0.3)
    c.decode.update(beams=4, alpha=0.6, max_new_tokens=16)
  return c
