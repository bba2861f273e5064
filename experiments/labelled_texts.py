r"""Your own texts with labels: classification of emails, reviews, questions and the like.

  python run.py --config=experiments/labelled_texts.py --config.data.dir=my.tsv --workdir=runs/mine
  python run.py --workdir=runs/mine --mode=predict --input=new-texts.txt

my.tsv has two columns, text<TAB>label; with a header, name its columns: --config.data.source=text
--config.data.target=label. my.jsonl has objects with the keys inputs and targets. A single file is
divided by a hash of its texts: 90 % train, 5 % val, 5 % test; a folder has train, val and test .tsv
or .jsonl. The classes are the labels of the training texts. The settings are for some thousand
texts, and train in a few minutes on two CPU cores; for more texts raise train.steps. Long texts are
truncated to data.max_length tokens.

Tried with 3,999 positive and negative sentences of film reviews: the accuracy on validation is 68,
71 and 72 % after 200, 300 and 400 steps.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = config.for_task('classification')
  c.experiment = 'labelled_texts'
  c.data.update(name='pairs', test=('test',), max_length=128, batch_tokens=1024)
  c.tokenizer.update(vocab=8000, lowercase=True)
  c.model.update(presets.TRANSFORMER_TINY, feedforward=512, max_length=128, prenorm=True)
  c.model.update(position='rotary', activation='gelu_tanh', pooling='attention', dropout=0.3)
  c.model.dtype = 'auto'
  c.loss.label_smoothing = 0.1
  c.optimizer.update(name='muon', learning_rate=2e-3, weight_decay=0.1)
  c.train.update(steps=1000, ema=0.99, save_every_steps=250)
  c.eval.update(every_steps=250, metrics=('accuracy',), best='accuracy')
  return c
