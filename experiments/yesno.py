r"""Speech recognition of eight words, yes or no: CTC on recombined words of 26 recordings.

  python run.py --config=experiments/yesno.py

Data, in data/yesno: train.tar.xz and test_visible.tar.xz, Kaldi's split of OpenSLR 1 (TFDS:
`yes_no`): one speaker, 8 kHz, and file names that are the transcripts: `1_0_0_1_0_1_1_1.wav`. All
recordings of train begin with no and all of test with yes. Therefore recordings are cut at silences
into words, which are joined in random number and order; 5 whole recordings are the validation set.

Result (seed 0, 2 minutes on one CPU core): none of the 112 words of the test is wrong, as with
Kaldi's monophone model; with seed 3, one is. After half of the steps no word of validation is wrong
with any of five seeds, and of the test 0, 0, 0.9, 10.7 and 0.9 %, because a yes at the begin is
recognized twice. With Adam at 2e-3 and 1,200 steps, the error depends even more on the seed: 0, 8
or 74 %, because repeated words may be recognized as one. When recordings were cut in the middle of
the silences, the error was 8.0 %: the first word, always no, then had the longest silence before
it.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = config.for_task('ctc', modality='frames')
  c.experiment = 'yesno'
  c.data.update(
    name='yesno', dir=config.data_dir('yesno'), max_length=400, batch_tokens=2000, buckets=1
  )
  c.data.update(train='joined[:26]', val='train[26:]', test=('test_visible',))
  c.processor.update(rate=8000, window=0.032, hop=0.020, bands=24, tempo=0.15)
  c.processor.update(time_masks=2, time_width=6, time_share=0.1)
  c.processor.update(frequency_masks=1, frequency_width=5)
  c.tokenizer.update(vocab=280, split_digits=True)
  c.model.update(presets.TRANSFORMER_TINY, features=24, width=64, depth=2)
  c.model.update(heads=2, feedforward=256, prenorm=True, position='rotary')
  c.model.update(activation='gelu_tanh', tie='output', dropout=0.1, dtype='auto')
  c.optimizer.update(name='muon', learning_rate=1e-2, weight_decay=0.1)
  c.train.update(steps=4000, ema=0.99, save_every_steps=400)
  c.eval.update(every_steps=400, metrics=('wer', 'cer'))
  c.decode.batch_size = 8
  return c
