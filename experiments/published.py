r"""Fine-tuning of a published model: classification, question answering, generation, speech.

  python run.py --config=experiments/published.py:classify,FOLDER --config.data.dir=my.tsv \
    --workdir=runs/mine
  python run.py --workdir=runs/mine --mode=predict --input=new-texts.txt
  python run.py --workdir=runs/mine --mode=export

`classify` takes a published encoder with its tokenizer.json (BERT, RoBERTa, DistilBERT, ELECTRA,
ModernBERT, ...) and my.tsv of text<TAB>label, as in labelled_texts.py; `write` an encoder-decoder
(T5, BART, Marian, ...) and inputs<TAB>targets, as in pairs.py; `answer` an encoder whose pairs
are [CLS] a [SEP] b [SEP] (BERT, DistilBERT, ELECTRA, ModernBERT) and a folder of train, val and
test .json in SQuAD's format; `transcribe` a Whisper and a folder of sounds with a table, as in
recordings.py. The `transformers` library can load the export. Without FOLDER a small model like
BERT, T5 or Whisper is trained from random parameters.

Whisper hears English and writes no times: for French give --config.loss.prefix="('<|fr|>',
'<|transcribe|>', '<|notimestamps|>')". It reads sounds of up to 30 seconds, each followed by
silence up to that length.

Tried: MiniLM (22 M parameters, all-MiniLM-L6-v2) on 4,452 of TREC's questions, 300 steps of 1,024
tokens: of 500 others, 91.8 % are right with all parameters (11 minutes on one CPU core), 88.2 with
adapters, 66.2 with the head alone; a bag of words has 85.2. A random T5 of 2 M parameters learns
Multi30k to 5.4 BLEU in 900 steps (20 minutes), and `transformers` writes the same texts with it.

All parameters are trained; with `classify,FOLDER,lora` only adapters of rank 8 and the new head,
with `classify,FOLDER,frozen` only the head, and with `write,FOLDER,frozen` or
`transcribe,FOLDER,frozen` only the decoder.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets

RATES = {'full': 5e-5, 'lora': 5e-4, 'frozen': 1e-3}
SMALL = dict(width=64, depth=2, heads=4, feedforward=128, max_length=128)
# task, head in place of the one that config.json names, metrics
KINDS = {
  'classify': ('classification', 'Classifier', ('accuracy',)),
  'answer': ('question_answering', 'Spans', ('squad_f1', 'squad_exact_match')),
  'write': ('seq2seq', '', ('bleu', 'chrf')),
  'transcribe': ('seq2seq', '', ('wer', 'cer')),
}


def get_config(argument: str = 'classify') -> ConfigDict:
  kind, folder, variant = (*argument.split(','), '', '')[:3]
  variant = variant or 'full'
  if kind not in KINDS or variant not in RATES:
    raise ValueError(
      f'published.py:{argument} is unknown: give {", ".join(KINDS)}, then FOLDER, and full, lora '
      'or frozen, with commas between'
    )
  task, head, metrics = KINDS[kind]
  c = config.for_task(task, modality='frames' if kind == 'transcribe' else 'tokens')
  c.experiment = f'published_{kind}'
  c.data.update(name='pairs', test=('test',), max_length=128, batch_tokens=2048)
  c.optimizer.update(learning_rate=RATES[variant], schedule='linear', weight_decay=0.01)
  c.train.update(steps=1000, save_every_steps=250)
  c.eval.update(every_steps=250, limit=500, metrics=metrics)
  c.model.update(presets.BERT_BASE if head else presets.T5_SMALL, dropout=0.1, **SMALL)
  if head:
    c.eval.best = metrics[0]
  elif kind == 'write':
    c.decode.beams = 4
  if kind == 'answer':
    c.data.update(name='squad', max_length=384, batch_tokens=4096)
    c.model.max_length = 384
  if kind == 'transcribe':
    c.data.update(name='recordings', max_length=3000, batch_tokens=8 * 3000)
    c.processor.scaling, c.eval.best = 'whisper', 'wer'
    c.model.update(presets.WHISPER_TINY, dropout=0.1, **SMALL)
  if folder:
    _start_from(c, folder, kind, head)
  if kind == 'transcribe' and folder and variant == 'full':
    c.optimizer.learning_rate = 1e-5  # a 40th of Whisper's own, for the small size (Radford et al.)
  if kind == 'answer':
    c.loss.stride = c.data.max_length // 3
  c.model.dtype = 'auto'
  if variant == 'lora':
    c.train.adapters = (('query|value', 8),)
    c.optimizer.lr_multipliers = (('^out/|pooler', 1.0),) if head else ()
  elif variant == 'frozen':
    body = '^encoder/(embed|stack|token)' if head else '^(encoder|embed|input_embed)/'
    c.optimizer.lr_multipliers = ((body, 0.0),)
  return c


def _start_from(c: ConfigDict, folder: str, kind: str, head: str):
  """Set the keys of a config that depend on the published model in a folder."""
  from transformer.zoo.pretrained import read_model_config

  model = read_model_config(folder, head=head)
  if model['modality'] != c.model.modality:
    raise ValueError(
      f'published.py:{kind} is for models of {c.model.modality}, and that in {folder} reads '
      f'{model["modality"]}: give another folder'
    )
  c.model.update({k: v for k, v in model.items() if k in c.model})
  c.warm_start = folder
  if kind == 'transcribe':
    only_english = model['vocab'] == 51_864  # whose outputs name no language and no task
    language = () if only_english else ('<|en|>', '<|transcribe|>')
    c.data.max_length = 2 * model['max_source_length']  # the second convolution has stride 2
    c.data.batch_tokens = 8 * c.data.max_length
    c.processor.bands = model['features']
    c.loss.update(start='<|startoftranscript|>', prefix=(*language, '<|notimestamps|>'))
  else:
    c.data.max_length = min(c.data.max_length, model['max_length'])
  if kind == 'write':
    # outputs of T5, Marian and Pegasus start with padding, of BART and M2M100 with the end token
    padded = model['norm'] == 'rms' or model['position'] == 'sinusoidal_halves'
    c.loss.start = 'pad' if padded else 'eos'
  if not head:
    c.decode.max_new_tokens = min(c.decode.max_new_tokens, model['max_length'])
