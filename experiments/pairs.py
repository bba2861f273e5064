r"""Your own pairs: translation, normalisation, spelling, anything from a line to a line.

  python run.py --config=experiments/pairs.py --config.data.dir=my.tsv --workdir=runs/mine
  python run.py --workdir=runs/mine --mode=predict --input=new-lines.txt

my.tsv has two columns, inputs<TAB>targets; my.jsonl has objects with these two keys; a folder has
train, val and test .tsv or .jsonl. One file is split by its inputs: 90 % train, 5 % val, 5 % test.
For 10,000 to 200,000 pairs of sentences; for fewer, raise model.dropout and lower tokenizer.vocab.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'pairs', 'seq2seq', 0, ''
  c.data = dict(
    name='pairs',
    dir='',
    inputs='inputs',
    targets='targets',
    train='train',
    val='val',
    test='test',
    limit=0,
    length=128,
    tokens=4096,
    buckets=4,
    packing=False,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='bpe', vocab=8000, lowercase=False, split_digits=True, sentinels=0)
  c.model = dict(presets.TRANSFORMER_TINY, width=256, feedforward=1024, prenorm=True)
  c.loss = dict(label_smoothing=0.1, z_loss=0.0, start='bos')
  c.optimizer = dict(
    presets.ADAM, learning_rate=2e-3, schedule='cosine', warmup_steps=500, clip=1.0
  )
  c.train = dict(
    steps=5000,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=50,
    save_every_steps=500,
    keep=2,
    adapters='',
  )
  c.eval = dict(
    every_steps=500,
    limit=500,
    samples=8,
    metrics='exact_match,bleu,chrf',
    best='nll_per_token',
    by='',
  )
  c.decode = dict(presets.SEARCH, beams=4, alpha=0.6, length=128, rows=32)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
