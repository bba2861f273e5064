r"""A character language model of Shakespeare, in nanoGPT's CPU setting: 2,000 steps of 12 x 64.

  python run.py --config=experiments/tinyshakespeare.py
  echo 'ROMEO:' | python run.py --config=experiments/tinyshakespeare.py --mode=predict

Data: data/tinyshakespeare/input.txt.gz, from https://github.com/karpathy/char-rnn, or
--config.data.dir=input.txt.

nanoGPT has a loss of 1.88 nats per character on the last tenth after 1.5 M training characters.
Results here (seeds 0, 1 and 2; 5 minutes on 2 old CPU cores): 1.567, 1.558 and 1.557. Differences:
RMSNorm, rotary positions, SwiGLU, no biases, Muon with weight decay, and each window starts where
the last one ended. On one core Muon's learning rates 0.003, 0.005, 0.01 and 0.02 have 1.575, 1.575,
1.617 and 1.726 without weight decay, 0.005 and 0.01 have 1.563 and 1.585 with it. AdamW has 1.635
in half the time.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = config.for_task('language_model')
  c.experiment = 'tinyshakespeare'
  c.data.update(name='text', dir=config.data_dir('tinyshakespeare/input.txt.gz'))
  c.data.update(source='', target='', max_length=64, batch_tokens=12 * 64, buckets=1)
  c.tokenizer.update(kind='characters', vocab=80)
  c.model.update(presets.TRANSFORMER_TINY, feedforward=512, max_length=64, prenorm=True, norm='rms')
  c.model.update(position='rotary', activation='silu', gated=True, bias=False, dropout=0.0)
  c.model.dtype = 'auto'
  c.optimizer.update(name='muon', learning_rate=5e-3, weight_decay=0.1)
  c.train.update(steps=2000, steps_per_call=10)
  c.eval.samples = 2
  c.decode.update(temperature=0.8, max_new_tokens=300, batch_size=4)
  return c
