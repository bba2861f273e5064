r"""Translation, English to German, WMT14: the base model of Vaswani et al. 2017, table 3.

  pip install -e '.[prepare]'       # once, to download and prepare the data set
  python -c "import tensorflow_datasets as tfds; tfds.builder('wmt14_translate/de-en') \
    .download_and_prepare(file_format='array_record')"
  python run.py --config=experiments/wmt14_en_de_base.py --workdir=runs/wmt14

Published: BLEU 27.3 on newstest2014 after 100,000 steps of 25,000 + 25,000 tokens, 12 hours on 8
P100, the last 5 checkpoints averaged, beam 4, length penalty 0.6. Not run here yet: it needs a
network and an accelerator. Deviation: sacreBLEU of detokenized text instead of tokenized BLEU with
split compounds.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = config.for_task('seq2seq')
  c.experiment = 'wmt14_en_de_base'
  c.data.update(name='wmt14_translate/de-en', source='en', target='de', val='validation')
  c.data.update(test=('test',), max_length=256, batch_tokens=25_000, buckets=8)
  c.tokenizer.vocab = 37_000
  c.model.update(presets.TRANSFORMER_BASE, dtype='bfloat16', unroll=1)
  c.loss.label_smoothing = 0.1
  c.optimizer.update(learning_rate=1.0, schedule='noam', warmup_steps=4000, clip=0.0)
  c.train.update(steps=100_000, average_checkpoints=5, keep_checkpoints=5, save_every_steps=1500)
  c.eval.update(every_steps=5000, limit=500, metrics=('bleu', 'chrf'))
  c.decode.update(beams=4, alpha=0.6, max_new_tokens=256, batch_size=64)
  return c
