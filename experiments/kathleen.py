r"""Speech synthesis of sentences, with the voice of one speaker.

  python run.py --config=experiments/kathleen.py
  echo 'I had faith in them.' | python run.py --workdir=runs/kathleen --mode=predict  # a wav file
  echo 'I had faith in them.' | python run.py --workdir=runs/kathleen --mode=attend   # a diagonal

Data, in data/kathleen16k: train.tar.xz and train.tsv of rhasspy's dataset-voice-kathleen (TFDS:
`ljspeech` is similar): 176 sentences of one to two seconds, 5.5 minutes in total, 16 kHz. The first
152 are for training, the next 12 for validation, the last 12 for the test.

Result (seed 0, 19 minutes on one CPU core): the attention to unseen sentences goes from left to
right (a clear diagonal in `attend`), and outputs end in time (99.7 % of the length of the
recordings; rounding up to whole steps alone gives 101.5 %), but the sound is poor: the mel cepstral
distortion is 6.87 dB on validation and 7.16 on the test. Frames of the recordings converted back to
sound have 1.84, and a recording of another sentence 8.29. With two frames per step instead of four,
the model depends more on the last frames and less on the text: 7.57 and 7.46 after 6,000 steps.
Checkpoints are chosen by the error of frames, because the distortion is lower for blurred frames.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = config.for_task('text_to_speech')
  c.experiment = 'kathleen'
  c.data.update(name='recordings', dir=config.data_dir('kathleen16k'), source='utt_id')
  c.data.update(target='text', train='train[:152]', val='train[152:164]', test=('train[164:]',))
  c.data.update(max_length=96, batch_tokens=1536, buckets=2)
  c.tokenizer.update(kind='characters', vocab=96, lowercase=True, split_digits=True)
  c.model.update(presets.TRANSFORMER_TINY, depth=3, feedforward=512, max_length=96, prenorm=True)
  c.model.update(activation='gelu_tanh', tie='none', dropout=0.2, dtype='auto')
  c.loss.update(rate=16_000, window=0.05, mels=80, frames_per_step=4, diagonal=1.0)
  c.optimizer.update(name='muon', learning_rate=4e-3, warmup_steps=200)
  c.train.steps = 4000
  c.eval.update(samples=0, metrics=('mel_cepstral_distortion', 'length_ratio'), best='mel_error')
  c.decode.update(batch_size=12, max_new_tokens=96)
  return c
