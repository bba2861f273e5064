"""Families of published models: the keys of their config.json and the names of their tensors.

A family is data: which keys of config.json give which fields of ModelConfig, and a table of rows,
which tensor of the file is which parameter. `pretrained` reads and writes models with it. To add a
family, write it next to a similar one and add it to FAMILIES. In all these files, `ours` is a name
or value of this package, and `theirs` one of the published files.
"""

from transformer.zoo.families import decoders, encoder_decoders, encoders, images, llamas

# {model_type of config.json: family}
FAMILIES = {
  'bert': encoders.BERT,
  'distilbert': encoders.DISTILBERT,
  'roberta': encoders.ROBERTA,
  'xlm-roberta': encoders.XLM_ROBERTA,
  'camembert': encoders.CAMEMBERT,
  'electra': encoders.ELECTRA,
  'mpnet': encoders.MPNET,
  'modernbert': encoders.MODERNBERT,
  'vit': images.VIT,
  'deit': images.DEIT,
  'dinov2': images.DINOV2,
  'clip': images.CLIP,
  'clip_text_model': images.CLIP_TEXT,
  'clip_vision_model': images.CLIP_VISION,
  'siglip': images.SIGLIP,
  'siglip_text_model': images.SIGLIP_TEXT,
  'siglip_vision_model': images.SIGLIP_VISION,
  'gpt2': decoders.GPT2,
  'opt': decoders.OPT,
  'bloom': decoders.BLOOM,
  'gpt_neox': decoders.GPT_NEOX,
  'llama': llamas.LLAMA,
  'mistral': llamas.MISTRAL,
  'qwen2': llamas.QWEN2,
  'qwen3': llamas.QWEN3,
  'qwen3_moe': llamas.QWEN3_MOE,
  'smollm3': llamas.SMOLLM3,
  'olmo2': llamas.OLMO2,
  'gemma': llamas.GEMMA,
  'gemma2': llamas.GEMMA2,
  'gemma3_text': llamas.GEMMA3,
  'phi3': llamas.PHI3,
  't5': encoder_decoders.T5,
  'mt5': encoder_decoders.MT5,
  'umt5': encoder_decoders.UMT5,
  'bart': encoder_decoders.BART,
  'mbart': encoder_decoders.MBART,
  'm2m_100': encoder_decoders.M2M100,
  'marian': encoder_decoders.MARIAN,
  'pegasus': encoder_decoders.PEGASUS,
  'whisper': encoder_decoders.WHISPER,
}
