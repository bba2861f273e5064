r"""A subword language model of WikiText-2 (Merity et al. 2017), with perplexity per word.

  python run.py --config=experiments/wikitext2.py

Data, in data/wikitext2: train.txt and valid.txt (or .gz) with <unk> and spaces as published (TFDS:
`wiki40b` is similar). Perplexity is per word for any tokenizer, with a vocabulary of 33,278 words
and line ends counted as words, as in https://arxiv.org/abs/1609.07843. Published on test: 100.3
(LSTM of width 200, tied) to 65.8 (AWD-LSTM).

Result (seed 0, six epochs in 100 minutes on one CPU core): perplexity 111.2 on valid, 3.63 nats per
token (291, 181, 139, 116 and 111 after 800, 1,600, ... steps). With --mode=evaluate
--config.loss.overlap=128, which gives each token a context of at least 128: 102.3. Trials of 500
steps
of 2,048 tokens, width 128, 4 layers, 2,000 tokens in the vocabulary, in nats per token: AdamW at
3e-3 4.55, at 1e-2 4.38; Muon at 3e-3 4.39, 8e-3 4.03, 1.6e-2 4.00, 3e-2 4.07.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = config.for_task('language_model')
  c.experiment = 'wikitext2'
  c.data.update(
    name='text', dir=config.data_dir('wikitext2'), val='valid', max_length=256, buckets=1
  )
  c.tokenizer.vocab = 8000
  c.model.update(presets.TRANSFORMER_TINY, width=192, depth=6, feedforward=512, prenorm=True)
  c.model.update(norm='rms', position='rotary', activation='silu', gated=True, bias=False)
  c.model.update(tie='output', scale_embedding=False, dropout=0.1, dtype='auto')
  c.optimizer.update(name='muon', learning_rate=1.2e-2, warmup_steps=200)
  c.optimizer.update(weight_decay=0.1, b2=0.95)
  c.train.update(steps=4000, log_every_steps=50, save_every_steps=200)
  c.eval.update(every_steps=800, samples=2)
  c.decode.update(temperature=0.8, batch_size=4)
  return c
