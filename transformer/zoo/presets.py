"""Known architectures, each with its paper: dicts of arguments of ModelConfig.

They have all arguments except those of _GIVEN, which depend on the tokenizer, the input or the run.
"""

import dataclasses

from transformer.modules.config import ModelConfig

_GIVEN = ('vocab', 'modality', 'features', 'stem', 'layers', 'pad', 'platform')


def _size(width, depth, heads, feedforward):
  """Return the four sizes that papers name their models by."""
  return dict(width=width, depth=depth, heads=heads, feedforward=feedforward)


# Vaswani et al. 2017, table 3, base: 65 M parameters with its 37,000 joint tokens.
TRANSFORMER_BASE = {
  field.name: field.default for field in dataclasses.fields(ModelConfig) if field.name not in _GIVEN
}

# Vaswani et al. 2017, table 3, big: 213 M parameters.
TRANSFORMER_BIG = dict(TRANSFORMER_BASE, width=1024, heads=16, feedforward=4096, dropout=0.3)

# Wu et al. 2021, https://arxiv.org/abs/2105.14462, Transformer-Tiny for Multi30k.
TRANSFORMER_TINY = dict(
  TRANSFORMER_BASE, width=128, depth=4, heads=4, feedforward=256, max_length=256, dropout=0.3
)

# Devlin et al. 2019, https://arxiv.org/abs/1810.04805: 110 M and 340 M with the pooler, tanh(W x +
# b) of the first state x. The `MaskedTokens` of the published models also have bias_output=True.
BERT_BASE = TRANSFORMER_BASE | _size(768, 12, 12, 3072)
BERT_BASE |= dict(position='learned', token_types=2, norm_epsilon=1e-12, norm_embedding=True)
BERT_BASE |= dict(activation='gelu_erf', scale_embedding=False, pooling='pooler')
BERT_BASE |= dict(attention_dropout=0.1)
BERT_LARGE = BERT_BASE | _size(1024, 24, 16, 4096)

# Turc et al. 2019, https://arxiv.org/abs/1908.08962, table 1: 4.4 M, 11.3 M, 29.1 M and 41.7 M.
BERT_TINY = BERT_BASE | _size(128, 2, 2, 512)
BERT_MINI = BERT_BASE | _size(256, 4, 4, 1024)
BERT_SMALL = BERT_BASE | _size(512, 4, 8, 2048)
BERT_MEDIUM = dict(BERT_SMALL, depth=8)

# Liu et al. 2019, https://arxiv.org/abs/1907.11692, table 9: 125 M and 355 M.
ROBERTA_BASE = dict(BERT_BASE, token_types=1, norm_epsilon=1e-5)
ROBERTA_LARGE = ROBERTA_BASE | _size(1024, 24, 16, 4096)

# Wang et al. 2020, https://arxiv.org/abs/2002.10957: 22 M and 33 M, with the mean of the states as
# in sentence-transformers (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084).
MINILM_L6 = dict(BERT_BASE, width=384, depth=6, feedforward=1536, pooling='mean')
MINILM_L12 = dict(MINILM_L6, depth=12)

# Radford et al. 2019, Language models are unsupervised multitask learners, table 2. Its numbers of
# parameters are wrong; the published models have 124 M, 355 M, 774 M and 1558 M.
GPT2 = TRANSFORMER_BASE | _size(768, 12, 12, 3072)
GPT2 |= dict(max_length=1024, norm_epsilon=1e-5, prenorm=True)
GPT2 |= dict(position='learned', activation='gelu_tanh', tie='output', scale_embedding=False)
GPT2 |= dict(attention_dropout=0.1)
GPT2_MEDIUM = GPT2 | _size(1024, 24, 16, 4096)
GPT2_LARGE = GPT2 | _size(1280, 36, 20, 5120)
GPT2_XL = GPT2 | _size(1600, 48, 25, 6400)

# Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.7: 60 M, 220 M, 770 M, 3 B, 11 B.
T5_SMALL = dict(TRANSFORMER_BASE, norm='rms', prenorm=True, position='relative', bias=False)
T5_SMALL |= dict(scale_embedding=False, scale_attention=False, scale_logits=True)
T5_BASE = T5_SMALL | _size(768, 12, 12, 3072)
T5_LARGE = T5_SMALL | _size(1024, 24, 16, 4096)
T5_3B = dict(T5_LARGE, heads=32, head_size=128, feedforward=16384)
T5_11B = dict(T5_LARGE, heads=128, head_size=128, feedforward=65536)

# Shazeer 2020, https://arxiv.org/abs/2002.05202; sizes as in Xue et al. 2021, 2010.11934.
T5_1_1_SMALL = dict(T5_SMALL, activation='gelu_tanh', gated=True, tie='inputs', scale_logits=False)
T5_1_1_BASE = T5_1_1_SMALL | _size(768, 12, 12, 3072) | dict(feedforward=2048)
T5_1_1_LARGE = T5_1_1_SMALL | _size(1024, 24, 16, 4096) | dict(feedforward=2816)
T5_1_1_XL = dict(T5_1_1_LARGE, width=2048, heads=32, feedforward=5120)
T5_1_1_XXL = dict(T5_1_1_LARGE, width=4096, heads=64, feedforward=10240)
T5_1_1_SMALL |= dict(depth=8, heads=6, head_size=64, feedforward=1024)

# Lewis et al. 2020, https://arxiv.org/abs/1910.13461, sections 2 and 5: 6 and 12 layers a side.
BART_BASE = (
  TRANSFORMER_BASE | _size(768, 12, 12, 3072) | dict(depth=6, max_length=1024, norm_epsilon=1e-5)
)
BART_BASE |= dict(position='learned', norm_embedding=True)
BART_BASE |= dict(activation='gelu_erf', scale_embedding=False)
BART_LARGE = BART_BASE | _size(1024, 24, 16, 4096) | dict(depth=12)

# Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344, as the Opus-MT models
# (Tiedemann & Thottingal 2020) are made: 74 M with 58,101 tokens.
MARIAN = dict(TRANSFORMER_BASE, norm_epsilon=1e-5, position='sinusoidal_halves')
MARIAN |= dict(activation='silu', bias_output=True)

# Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, table 1: 86 M and 307 M; S as in
# Touvron et al. 2021, 2012.12877: 22 M. Patches of 16 x 16 pixels of 224 x 224, in three colours.
VIT_B16 = (
  TRANSFORMER_BASE | _size(768, 12, 12, 3072) | dict(modality='patches', features=16 * 16 * 3)
)
VIT_B16 |= dict(max_length=(224 // 16) ** 2 + 1, prenorm=True, position='learned')
VIT_B16 |= dict(activation='gelu_erf', tie='output', scale_embedding=False)
VIT_S16 = dict(VIT_B16, width=384, heads=6, feedforward=1536)
VIT_L16 = VIT_B16 | _size(1024, 24, 16, 4096)

# Radford et al. 2022, https://arxiv.org/abs/2212.04356, table 1: 39 M, 74 M, 244 M, 769 M, 1550 M.
WHISPER_SMALL = (
  TRANSFORMER_BASE | _size(768, 12, 12, 3072) | dict(modality='frames', features=80, dropout=0.0)
)
WHISPER_SMALL |= dict(max_length=448, max_source_length=1500, norm_epsilon=1e-5, prenorm=True)
WHISPER_SMALL |= dict(position='learned', activation='gelu_erf', tie='output')
WHISPER_SMALL |= dict(scale_embedding=False)
WHISPER_TINY = WHISPER_SMALL | _size(384, 4, 6, 1536)
WHISPER_BASE = WHISPER_SMALL | _size(512, 6, 8, 2048)
WHISPER_MEDIUM = WHISPER_SMALL | _size(1024, 24, 16, 4096)
WHISPER_LARGE = WHISPER_SMALL | _size(1280, 32, 20, 5120)

# Touvron et al. 2023, https://arxiv.org/abs/2302.13971, table 2: 6.7 B.
LLAMA_7B = TRANSFORMER_BASE | _size(4096, 32, 32, 11008)
LLAMA_7B |= dict(max_length=2048, norm='rms', prenorm=True, position='rotary', activation='silu')
LLAMA_7B |= dict(gated=True, bias=False, tie='none', scale_embedding=False, dropout=0.0)

# Allal et al. 2025, https://arxiv.org/abs/2502.02737 (SmolLM2): 135 M and 360 M.
SMOLLM_135M = dict(LLAMA_7B, width=576, depth=30, heads=9, kv_heads=3, feedforward=1536)
SMOLLM_135M |= dict(max_length=8192, norm_epsilon=1e-5, rotary_base=100_000.0, tie='output')
SMOLLM_360M = dict(SMOLLM_135M, width=960, depth=32, heads=15, kv_heads=5, feedforward=2560)

# Yang et al. 2024, https://arxiv.org/abs/2407.10671, table 1: 0.49 B.
QWEN2_0_5B = dict(LLAMA_7B, width=896, depth=24, heads=14, kv_heads=2, feedforward=4864)
QWEN2_0_5B |= dict(max_length=131_072, rotary_base=1e6, bias_qkv=True, tie='output')

# {first word of a preset's name: vocabulary size of the published models}, to be used as in
# ModelConfig(vocab=VOCABULARIES['GPT2'], **GPT2). Vaswani's is for English and German; a ViT has
# none.
VOCABULARIES = dict(TRANSFORMER=37_000, BERT=30_522, ROBERTA=50_265, MINILM=30_522, GPT2=50_257)
VOCABULARIES |= dict(T5=32_128, BART=50_265, MARIAN=58_101, VIT=1, WHISPER=51_865)
VOCABULARIES |= dict(LLAMA=32_000, SMOLLM=49_152, QWEN2=151_936)
