r"""Translation, English to German, Multi30k: the text-only Transformer-Tiny of Wu et al. 2021.

  python run.py --config=experiments/multi30k_en_de.py --config.data.dir=../shared/data/multi30k

Paper: https://arxiv.org/abs/2105.14462, 41.02 BLEU on test_2016_flickr (lower-cased, Moses tokens).
Ours, seed 0, mean of the last 5 checkpoints, beam 5, alpha 1.3 chosen on val: 40.64 on
test_2016_flickr (val 41.40); cased detokenised sacreBLEU 40.27, chrF 64.84. 47 minutes on 2 CPU
cores. Deviations: cased text, rotary positions, pre-norm, dropout 0.25, packed rows and a cosine
schedule, which need 40 epochs where the paper takes about 150.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'multi30k_en_de', 'seq2seq', 0, ''
  c.data = dict(
    name='parallel',
    dir='../shared/data/multi30k',
    inputs='en',
    targets='de',
    train='train',
    val='val',
    test='test_2016_flickr',
    limit=0,
    length=64,
    tokens=2048,
    buckets=4,
    packing=True,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='bpe', vocab=6000, lowercase=False, split_digits=False, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY, prenorm=True, position='rotary', dropout=0.25, dtype='bfloat16'
  )
  c.loss = dict(label_smoothing=0.1, z_loss=0.0, start='bos')
  c.optimizer = dict(
    presets.ADAM, learning_rate=3e-3, schedule='cosine', warmup_steps=1000, clip=1.0
  )
  c.train = dict(
    steps=10_000,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=5,
    log_every_steps=100,
    save_every_steps=250,
    keep=5,
    adapters='',
  )
  c.eval = dict(
    every_steps=2500,
    limit=0,
    samples=4,
    metrics='bleu,chrf,bleu_lowercase_moses',
    best='bleu_lowercase_moses',
    by='',
  )
  c.decode = dict(presets.SEARCH, beams=5, alpha=1.3, length=96, rows=32)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
