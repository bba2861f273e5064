r"""Translation, English to German, WMT14: the base model of Vaswani et al. 2017, table 3.

  pip install -e '.[prepare]'       # once, to download and prepare the data set
  python -c "import tensorflow_datasets as tfds; tfds.builder('wmt14_translate/de-en') \
    .download_and_prepare(file_format='array_record')"
  python run.py --config=experiments/wmt14_en_de_base.py --workdir=runs/wmt14

Paper: BLEU 27.3 on newstest2014, 100,000 steps of 25,000 + 25,000 tokens, 12 h on 8 P100, the
last 5 checkpoints averaged, beam 4, length penalty 0.6. Not run yet: it needs a network
and an accelerator.
Deviations: sacreBLEU of detokenised text instead of compound-split tokenised BLEU.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'wmt14_en_de_base', 'seq2seq', 0, ''
  c.data = dict(
    name='wmt14_translate/de-en',
    dir='',
    inputs='en',
    targets='de',
    train='train',
    val='validation',
    test='test',
    limit=0,
    length=256,
    tokens=25_000,
    buckets=8,
    packing=False,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='bpe', vocab=37_000, lowercase=False, split_digits=False, sentinels=0)
  c.model = dict(presets.TRANSFORMER_BASE, dtype='bfloat16', unroll=1)
  c.loss = dict(label_smoothing=0.1, z_loss=0.0, start='bos')
  c.optimizer = dict(presets.ADAM, learning_rate=1.0, schedule='noam', warmup_steps=4000, clip=0.0)
  c.train = dict(
    steps=100_000,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=5,
    log_every_steps=100,
    save_every_steps=1500,
    keep=5,
    adapters='',
  )
  c.eval = dict(
    every_steps=5000, limit=500, samples=4, metrics='bleu,chrf', best='nll_per_token', by=''
  )
  c.decode = dict(presets.SEARCH, beams=4, alpha=0.6, length=256, rows=64)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
