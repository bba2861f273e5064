r"""Speech synthesis: sentences by one speaker, text to sound.

  python run.py --config=experiments/kathleen.py --config.data.dir=../shared/data/kathleen16k
  echo 'I had faith in them.' | python run.py --workdir=runs/kathleen --mode=predict  # a wav file
  echo 'I had faith in them.' | python run.py --workdir=runs/kathleen --mode=attend   # a diagonal

The folder holds `train.tar.xz` and `train.tsv` of rhasspy's dataset-voice-kathleen (of the same
kind in TFDS: `ljspeech`): 176 sentences of one to two seconds, 5.5 minutes in all, 16 kHz. The
first 152 are to learn from, the next 12 to choose by, the last 12 to report.

Seed 0, 19 minutes of one CPU core: it goes through unseen sentences from left to right, a clear
diagonal in `attend`, and stops in time (99.7 % of the recordings' length; whole steps of their own
frames make 101.5), but says them badly: mel cepstral distortion 6.87 dB on the 12 that choose and
7.16 on the last 12, where the recordings' own frames made sound again have 1.84 and a recording of
another sentence 8.29. Two frames a step instead of four, so that more is seen of what was just said
and less of the text: 7.57 and 7.46 after 6,000 steps. Checkpoints are chosen by the error of
frames, for the distortion likes what is blurred.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'kathleen', 'text_to_speech', 0, ''
  c.data = dict(
    name='recordings',
    dir='../shared/data/kathleen16k',
    inputs='utt_id',
    targets='text',
    train='train[:152]',
    val='train[152:164]',
    test='train[164:]',
    limit=0,
    length=96,
    tokens=1536,
    buckets=2,
    packing=False,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='characters', vocab=96, lowercase=True, split_digits=True, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    depth=3,
    feedforward=512,
    length=96,
    prenorm=True,
    activation='gelu_tanh',
    tie='none',
    dropout=0.2,
    dtype='bfloat16',
  )
  c.loss = dict(
    rate=16_000,
    window=0.05,
    hop=0.0125,
    mels=80,
    floor=1e-4,
    together=4,
    prenet_dropout=0.5,
    stop_weight=5.0,
    diagonal=1.0,
  )
  c.optimizer = dict(
    presets.MUON, learning_rate=4e-3, schedule='cosine', warmup_steps=200, clip=1.0
  )
  c.train = dict(
    steps=4000,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=100,
    save_every_steps=500,
    keep=2,
    adapters='',
  )
  c.eval = dict(
    every_steps=500,
    limit=0,
    samples=0,
    metrics='mel_cepstral_distortion, length_ratio',
    best='mel_error',
    by='',
  )
  c.decode = dict(rows=12, length=96, stop=0.5, iterations=60)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
