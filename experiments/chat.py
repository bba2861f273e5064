r"""A chat model, fine-tuned on conversations (SFT), then on preferences between answers (DPO).

  python run.py --config=experiments/chat.py:sft,FOLDER --config.data.dir=sft --workdir=runs/sft
  python run.py --workdir=runs/sft --mode=export
  python run.py --config=experiments/chat.py:dpo,runs/sft/export --config.data.dir=dpo \
    --workdir=runs/dpo
  echo 'Hello' | python run.py --workdir=runs/dpo --mode=predict

FOLDER is a published decoder with its tokenizer, such as Llama, Qwen, SmolLM or Gemma, whose chat
template is used (`pip install 'functional-transformer[chat]'`). sft has train, val and test .jsonl
with objects {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}; the loss
is that of the assistant's messages. dpo has the same files of {"prompt", "chosen", "rejected"}.
Instead of a folder, a single file may be given, which is divided by a hash of its prompts. Without
FOLDER a small model is trained from random parameters.

All parameters are trained. To train only low-rank adapters:
--config.train.adapters="(('query|key|value|out', 16),)" --config.optimizer.learning_rate=2e-4. To
train only norms and biases: --config.optimizer.lr_multipliers="(('table', 0.0), ('kernel', 0.0))".

Tried: a random Llama of 1.3 M parameters on TREC's questions, which are answered by the name of
their class: after 300 steps of 2,048 tokens (6 minutes on one CPU core) 75.6 % of 500 other
questions are answered exactly. After 100 steps of DPO (8 minutes), for which the name of another
class is rejected, the right one of two names is preferred for 89.4 %. `transformers` gives the same
answers from the exports.

`chat.py:tiny` and then, after its export, `chat.py:tiny_dpo` need no files: they learn to add
digits, and to prefer the correct sum.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config(stage: str = 'tiny') -> ConfigDict:
  stage, _, folder = stage.partition(',')
  if stage not in ('sft', 'dpo', 'tiny', 'tiny_dpo'):
    raise ValueError(f'chat.py:{stage} is unknown: give sft,FOLDER or dpo,FOLDER, tiny or tiny_dpo')
  dpo, tiny = stage.endswith('dpo'), stage.startswith('tiny')
  c = config.for_task('transformer.tasks.' + ('preference:Preference' if dpo else 'chat:Chat'))
  c.experiment = f'chat_{stage}'
  c.data.update(test=('test',), max_length=64 if tiny else 1024, packing=not dpo)
  c.optimizer.update(schedule='cosine', warmup_steps=20, weight_decay=0.0)
  c.optimizer.learning_rate = (3e-4 if dpo else 3e-3) if tiny else (1e-6 if dpo else 1e-5)
  c.train.update(steps=100 if dpo else 300, log_every_steps=20)
  c.decode.max_new_tokens = 8 if tiny else 256
  c.eval.samples = 4
  if dpo:
    c.eval.best = 'preference_loss'
  c.model.update(presets.SMOLLM_135M, width=64, depth=2, heads=4, kv_heads=2, feedforward=128)
  c.model.update(max_length=64, tie='none')
  if tiny:
    c.data.update(name='transformer.data.chat:sums', batch_tokens=1024, buckets=1)
    c.tokenizer.update(kind='characters', vocab=80)
    c.eval.metrics = () if dpo else ('exact_match',)
    folder = 'runs/chat_tiny/export' if dpo else ''
  else:
    c.data.name = 'transformer.data.chat:' + ('preferences' if dpo else 'conversations')
    c.data.batch_tokens = 8192
    c.model.update(max_length=1024, remat='products', dtype='auto')
  if folder and not tiny:
    from transformer.zoo.pretrained import read_model_config

    published = read_model_config(folder).items()
    own = ('dtype', 'remat')
    c.model.update({k: v for k, v in published if k in c.model and k not in own})
  c.warm_start = folder
  if dpo:
    c.loss.reference = folder
  return c
