r"""Fine-tuning of a published model: a BERT for classification, a T5 or BART to generate texts.

  python run.py --config=experiments/published.py:classify,FOLDER --config.data.dir=my.tsv \
    --workdir=runs/mine
  python run.py --workdir=runs/mine --mode=predict --input=new-texts.txt
  python run.py --workdir=runs/mine --mode=export

FOLDER is a published encoder with its tokenizer.json (BERT, RoBERTa, DistilBERT, ELECTRA, MPNet,
ModernBERT, ...), or for `published.py:write,FOLDER` an encoder-decoder. my.tsv has the columns
text<TAB>label or inputs<TAB>targets, as in labelled_texts.py and pairs.py. The `transformers`
library can load the export. Without FOLDER a small model like BERT or T5 is trained from random
parameters.

All parameters are trained; with `classify,FOLDER,lora` only adapters of rank 8 and the new head,
with `classify,FOLDER,frozen` only the head, and with `write,FOLDER,frozen` only the decoder.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets

RATES = {'full': 5e-5, 'lora': 5e-4, 'frozen': 1e-3}
SMALL = dict(width=64, depth=2, heads=4, feedforward=128, max_length=128)


def get_config(argument: str = 'classify') -> ConfigDict:
  kind, folder, variant = (*argument.split(','), '', '')[:3]
  variant = variant or 'full'
  if kind not in ('classify', 'write') or variant not in RATES:
    raise ValueError(
      f'published.py:{argument} is unknown: give classify or write, then FOLDER, and full, lora or '
      'frozen, with commas between'
    )
  classify = kind == 'classify'
  c = config.for_task('classification' if classify else 'seq2seq')
  c.experiment = f'published_{kind}'
  c.data.update(name='pairs', test=('test',), max_length=128, batch_tokens=2048)
  c.optimizer.update(learning_rate=RATES[variant], schedule='linear', weight_decay=0.01)
  c.train.update(steps=1000, save_every_steps=250)
  c.eval.update(every_steps=250, limit=500)
  c.model.update(presets.BERT_BASE if classify else presets.T5_SMALL, dropout=0.1, **SMALL)
  if classify:
    c.model.pooling = 'pooler'
    c.eval.update(metrics=('accuracy',), best='accuracy')
  else:
    c.eval.metrics = ('bleu', 'chrf')
    c.decode.beams = 4
  if folder:
    from transformer.zoo.pretrained import read_model_config

    model = read_model_config(folder, classify=classify)
    c.model.update({k: v for k, v in model.items() if k in c.model})
    c.data.max_length = min(c.data.max_length, model['max_length'])
    if not classify:
      c.decode.max_new_tokens = min(c.decode.max_new_tokens, model['max_length'])
      # outputs of T5, Marian and Pegasus start with padding, of BART and M2M100 with the end token
      padded = model['norm'] == 'rms' or model['position'] == 'sinusoidal_halves'
      c.loss.start = 'pad' if padded else 'eos'
    c.warm_start = folder
  c.model.dtype = 'auto'
  if variant == 'lora':
    c.train.adapters = (('query|value', 8),)
    c.optimizer.lr_multipliers = (('^out/|pooler', 1.0),) if classify else ()
  elif variant == 'frozen':
    body = '^encoder/(embed|stack|token)' if classify else '^(encoder|embed|input_embed)/'
    c.optimizer.lr_multipliers = ((body, 0.0),)
  return c
