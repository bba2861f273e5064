r"""Words of Wikipedia: WikiText-2 (Merity et al. 2017), a sub-word model judged by words.

  python run.py --config=experiments/wikitext2.py --config.data.dir=../shared/data/wikitext2

The folder holds `train.txt` and `valid.txt` (or .gz) with <unk> and spaces as published (TFDS:
`wiki40b` is of the same kind). Perplexity is per word, 33,278 types, line ends counted, as in
https://arxiv.org/abs/1609.07843, whatever the tokens; published on test: 100.3 (LSTM of 200, tied)
to 65.8 (AWD-LSTM).

Seed 0: 111.2 on valid, 3.63 nats per piece (291, 181, 139, 116, 111 after 800, 1,600, ... steps:
six epochs in 100 minutes of one CPU core). With --mode=evaluate --config.loss.overlap=128, where
each piece sees at least the 128 before it, 102.3. Pilots of 500 steps of 2,048 tokens, width 128,
4 layers, 2,000 pieces, in nats per piece: AdamW at 3e-3 4.55, at 1e-2 4.38; Muon at 3e-3 4.39, 8e-3
4.03, 1.6e-2 4.00, 3e-2 4.07.
"""

from ml_collections import ConfigDict

from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.experiment, c.task, c.seed, c.init = 'wikitext2', 'language_model', 0, ''
  c.data = dict(
    name='text',
    dir='../shared/data/wikitext2',
    inputs='inputs',
    targets='targets',
    train='train',
    val='valid',
    test='',
    limit=0,
    length=256,
    tokens=4096,
    buckets=1,
    packing=False,
  )
  c.inputs = {}
  c.tokenizer = dict(kind='bpe', vocab=8000, lowercase=False, split_digits=False, sentinels=0)
  c.model = dict(
    presets.TRANSFORMER_TINY,
    width=192,
    depth=6,
    feedforward=512,
    length=256,
    prenorm=True,
    norm='rms',
    position='rotary',
    activation='silu',
    gated=True,
    bias=False,
    tie='output',
    scale_embedding=False,
    dropout=0.1,
    dtype='bfloat16',
  )
  c.loss = dict(documents=False, overlap=0, label_smoothing=0.0, z_loss=0.0)
  c.optimizer = dict(
    presets.MUON, learning_rate=1.2e-2, schedule='cosine', warmup_steps=200, clip=1.0
  )
  c.optimizer.update(weight_decay=0.1, b2=0.95)
  c.train = dict(
    steps=4000,
    steps_per_call=1,
    microbatches=1,
    ema=0.0,
    average=1,
    log_every_steps=50,
    save_every_steps=200,
    keep=2,
    adapters='',
  )
  c.eval = dict(every_steps=800, limit=0, samples=2, metrics='', best='nll_per_token', by='')
  c.decode = dict(presets.SEARCH, beams=1, alpha=0.0, length=128, rows=4)
  c.decode.update(temperature=0.8)
  c.mesh = dict(presets.DATA_PARALLEL)
  return c
