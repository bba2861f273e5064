r"""Your own recordings with transcripts: speech recognition by CTC.

  python run.py --config=experiments/recordings.py --config.data.dir=speech --workdir=runs/speech
  ls new/*.wav | python run.py --workdir=runs/speech --mode=predict

speech has sounds (wav, flac, ogg, mp3), maybe in folders, and one table, speech/NAME.tsv, of two
columns, file name<TAB>transcript; with a header, name its columns: --config.data.source=path
--config.data.target=sentence. 90 % of them are for training, 5 % for validation, 5 % for the test,
by a hash of the names. If speech has folders or archives train, val and test, with tables
train.tsv, val.tsv and test.tsv, these are the splits. The settings are for minutes to a few hours
of sentences of up to 10 seconds. For longer sentences raise data.max_length, in hundredths of a
second; for more hours model.width, model.depth and train.steps. Needs pip install -e '.[audio]'.

Tried with 1,204 recordings of a spoken digit by six speakers: the word error rate on validation is
31 and 11 % after 200 and 400 steps, which took 5 minutes on one CPU core.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = config.for_task('ctc', modality='frames')
  c.experiment = 'recordings'
  c.data.update(name='recordings', test=('test',), max_length=1000, batch_tokens=4000)
  c.processor.update(rate=16_000, bands=80, tempo=0.1)
  c.processor.update(time_masks=2, time_width=25, time_share=0.1)
  c.processor.update(frequency_masks=2, frequency_width=15)
  c.tokenizer.update(kind='characters', vocab=1000, lowercase=True)
  c.model.update(presets.TRANSFORMER_TINY, features=80, max_length=1000)
  c.model.update(feedforward=512, prenorm=True, position='rotary', activation='gelu_tanh')
  c.model.update(tie='output', dropout=0.1, dtype='auto')
  c.optimizer.update(name='muon', learning_rate=1e-2, weight_decay=0.1)
  c.train.update(steps=2000, save_every_steps=500)
  c.eval.update(every_steps=500, limit=500, metrics=('wer', 'cer'), best='wer')
  return c
