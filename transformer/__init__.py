"""The Transformer, complete and small, in JAX.

One glossary of axis letters, in signatures, einsums and comments alike:

  B  batch                       H  query heads
  T  target (query) positions    G  key/value heads (groups), a divisor of H
  S  source (key) positions      K  key size of a head
  D  model width                 V  value size of a head
  F  feed-forward width          L  layers
  N  vocabulary                  C  classes, or rows of a memory that rows of a batch share

`functional/` holds equations on arrays, `modules/` parameters and models, `data/` the host's
side, `tasks/` what is learnt, `training/` the loop, `inspection/` ways to look inside, `zoo/` known
models.
"""

from transformer.functional import losses as losses
from transformer.functional import masks as masks
from transformer.functional import positions as positions
from transformer.functional.attention import attention as attention
from transformer.functional.attention import attention_weights as attention_weights
from transformer.functional.attention import multi_head_attention as multi_head_attention
from transformer.functional.attention import (
  multi_head_attention_weights as multi_head_attention_weights,
)
from transformer.functional.search import beam_search as beam_search
from transformer.functional.search import greedy as greedy
from transformer.functional.search import sample as sample
from transformer.modules.config import ModelConfig as ModelConfig
from transformer.modules.model import Decoder as Decoder
from transformer.modules.model import Encoder as Encoder
from transformer.modules.model import EncoderDecoder as EncoderDecoder
from transformer.modules.model import functionalize as functionalize
from transformer.zoo.pretrained import load_pretrained as load_pretrained
from transformer.zoo.pretrained import save_pretrained as save_pretrained
