"""Families of published models: for each the keys of its config.json and the names of its tensors.

A family is data: which keys give which fields of our `ModelConfig`, and a table of rows. To add
one, write it beside a similar one and name it here; `pretrained` reads and writes with it.
"""

from transformer.zoo.families.decoders import GPT2, LLAMA, QWEN2
from transformer.zoo.families.encoder_decoders import BART, MARIAN, T5, WHISPER
from transformer.zoo.families.encoders import BERT, ROBERTA, VIT, XLM_ROBERTA

# by the `model_type` of their config.json
FAMILIES = {
  'bert': BERT,
  'roberta': ROBERTA,
  'xlm-roberta': XLM_ROBERTA,
  'vit': VIT,
  'gpt2': GPT2,
  'llama': LLAMA,
  'qwen2': QWEN2,
  't5': T5,
  'bart': BART,
  'marian': MARIAN,
  'whisper': WHISPER,
}
