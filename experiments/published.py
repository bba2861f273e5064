r"""A published model, fine-tuned: classes by a BERT, or translations and summaries by a T5 or BART.

  python run.py --config=experiments/published.py:classify,FOLDER --config.data.dir=my.tsv \
    --workdir=runs/mine
  python run.py --workdir=runs/mine --mode=predict --input=new-texts.txt
  python run.py --workdir=runs/mine --mode=export

FOLDER is a published encoder with its tokenizer.json (BERT, RoBERTa, DistilBERT, ELECTRA, MPNet,
ModernBERT, ...), or for `published.py:write,FOLDER` an encoder-decoder. my.tsv has the columns
text<TAB>label or inputs<TAB>targets, as labelled_texts.py and pairs.py say. What is exported the
`transformers` library loads. Without FOLDER a small model of BERT's or T5's shape is trained.

All parameters are trained; with `classify,FOLDER,lora` adapters of rank 8 and the new head, with
`classify,FOLDER,frozen` the head alone, and with `write,FOLDER,frozen` the decoder alone.
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

    found = read_model_config(folder, classify=classify)
    c.model.update({k: v for k, v in found.items() if k in c.model})
    c.data.max_length = min(c.data.max_length, found['max_length'])
    if not classify:
      c.decode.max_new_tokens = min(c.decode.max_new_tokens, found['max_length'])
      # T5, Marian and Pegasus start from padding, BART and M2M100 from the end token
      padded = found['norm'] == 'rms' or found['position'] == 'sinusoidal_halves'
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
