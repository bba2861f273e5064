r"""Speech recognition on AN4 (spelled words, numbers and commands): CTC, or attention with CTC.

  python run.py --config=experiments/an4.py                # or an4.py:attention
  echo frames.npy | python run.py --workdir=runs/an4_ctc --mode=predict    # an array [frames, 13]

Data, in data/an4: train_mfcc.npz and train.tsv, 948 sentences of 74 speakers as 13 Sphinx cepstra,
100 frames per second. The test set is the first 100 rows (8 other speakers), and training uses rows
101-948, as in ESPnet's recipe, which has a WER of 11.0-11.8 from waveforms. All settings except the
number of steps were chosen by training without rows 101-204 (variant `choose`: a WER of 34.1 on
these rows after 1,500 steps).

Results (seed 0, one CPU core) on the first 100 rows: CTC has a WER of 14.7 and a CER of 7.9 after
25 minutes; attention 19.0 and 14.1 after 36 minutes (at step 3,500, the first checkpoint without an
error on the validation rows, which are also trained on).
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config(variant: str = 'ctc') -> ConfigDict:
  if variant not in ('ctc', 'attention', 'choose'):
    raise ValueError(f'an4.py:{variant} is unknown: give ctc, attention or choose')
  attention, choose = variant == 'attention', variant == 'choose'
  c = config.for_task('joint_ctc' if attention else 'ctc', modality='frames')
  c.experiment = f'an4_{variant}'
  c.data.update(name='frames', dir=config.data_dir('an4'), source='utt_id', target='text')
  c.data.update(train='train[204:]' if choose else 'train[100:]', val='train[100:204]')
  c.data.update(test=() if choose else ('train[:100]',), max_length=700, batch_tokens=4000)
  c.processor.update(window=0.0, bands=13, tempo=0.15)  # window=0: the frames are in the files
  c.processor.update(time_masks=2, time_width=25, time_share=0.1)
  c.processor.update(frequency_masks=2, frequency_width=2)
  c.tokenizer.update(kind='characters', vocab=64, split_digits=True)
  c.model.update(presets.TRANSFORMER_TINY, features=13, max_length=700)
  c.model.update(depth=6, decoder_depth=2 if attention else 0, feedforward=512, prenorm=True)
  c.model.update(position='rotary', activation='gelu_tanh', tie='output', dropout=0.2)
  c.model.dtype = 'auto'
  c.optimizer.update(name='muon', learning_rate=4e-3, weight_decay=0.1)
  c.train.steps = 4000
  c.eval.update(metrics=('wer', 'cer'), best='wer')
  if attention:
    c.loss.update(label_smoothing=0.1, ctc=0.3)
    c.decode.update(beams=4, alpha=0.6, max_new_tokens=64)
  return c
