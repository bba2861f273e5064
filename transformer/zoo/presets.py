"""Known architectures and settings as plain data: sections of a config, each with its paper."""

# Vaswani et al. 2017, table 3, base: 65 M parameters with its 37,000 joint tokens.
TRANSFORMER_BASE = dict(
  inputs='tokens',
  features=0,
  types=0,
  width=512,
  depth=6,
  decoder_depth=0,
  heads=8,
  kv_heads=0,
  head_size=0,
  feedforward=2048,
  length=512,
  source_length=0,
  norm='layer',
  norm_epsilon=1e-6,
  norm_embedding=False,
  prenorm=False,
  position='sinusoidal',
  rotary_base=10_000.0,
  window=0,
  activation='relu',
  gated=False,
  bias=True,
  bias_qkv=False,
  bias_output=False,
  tie='all',
  scale_embedding=True,
  scale_attention=True,
  scale_logits=False,
  summary='first',
  dropout=0.1,
  attention_dropout=0.0,
  dtype='float32',
  remat='none',
  unroll=0,
)

# Vaswani et al. 2017, table 3, big: 213 M parameters.
TRANSFORMER_BIG = dict(TRANSFORMER_BASE, width=1024, heads=16, feedforward=4096, dropout=0.3)

# Wu et al. 2021, https://arxiv.org/abs/2105.14462, Transformer-Tiny for Multi30k.
TRANSFORMER_TINY = dict(
  TRANSFORMER_BASE, width=128, depth=4, heads=4, feedforward=256, length=256, dropout=0.3
)

# Vaswani et al. 2017, section 5.3; learning rate, schedule and clipping are the experiment's.
ADAM = dict(name='adamw', b1=0.9, b2=0.98, epsilon=1e-9, weight_decay=0.0, rates='')

# The best output, not one drawn at random; beams and lengths are the experiment's.
SEARCH = dict(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)

# Every device holds the whole model and sees its share of each batch.
DATA_PARALLEL = dict(data=-1, fsdp=1, tensor=1, sequence=1)
