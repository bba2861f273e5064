"""The Transformer in JAX: functions on arrays, models, and what trains, evaluates and loads them.

One glossary of axis letters, in signatures, einsums and comments alike:

  B  batch                       H  query heads
  T  target (query) positions    G  key/value heads (groups), a divisor of H
  S  source (key) positions      K  key size of a head
  D  model width                 V  value size of a head
  F  feed-forward width          L  layers
  N  vocabulary                  C  classes, or rows of a memory that rows of a batch share
  E  experts

`functional/` has pure functions on arrays, `modules/` parameters and models, `zoo/` known models,
`data/` corpora and batches, `tasks/` objectives, `inference/` generation, `evaluation/` metrics,
`training/` the loop, `inspection/` attention maps and a self-test.

`import transformer` imports JAX, Flax and Optax and nothing else. Some names, those of `_LAZY`, are
imported when they are first used; the objectives need the extra `train`:
pip install 'functional-transformer[train]'.
"""

from typing import TYPE_CHECKING, Any

from transformer.functional import losses as losses
from transformer.functional import masks as masks
from transformer.functional import positions as positions
from transformer.functional.attention import attention as attention
from transformer.functional.attention import attention_weights as attention_weights
from transformer.functional.attention import multi_head_attention as multi_head_attention
from transformer.functional.attention import (
  multi_head_attention_weights as multi_head_attention_weights,
)
from transformer.functional.kernels import dot_product_attention as dot_product_attention
from transformer.functional.masks import AttentionMask as AttentionMask
from transformer.functional.search import beam_search as beam_search
from transformer.functional.search import greedy as greedy
from transformer.functional.search import repeat_rows as repeat_rows
from transformer.functional.search import sample as sample
from transformer.modules.adapters import adapt as adapt
from transformer.modules.adapters import merge as merge
from transformer.modules.config import ModelConfig as ModelConfig
from transformer.modules.model import Decoder as Decoder
from transformer.modules.model import Encoder as Encoder
from transformer.modules.model import EncoderDecoder as EncoderDecoder
from transformer.modules.model import Output as Output
from transformer.modules.model import functionalize as functionalize
from transformer.modules.sites import observe as observe

if TYPE_CHECKING:  # for type checkers and editors; at run time see `_LAZY`
  from transformer.inference.decoding import Decoding as Decoding
  from transformer.inference.generate import generate as generate
  from transformer.tasks.classification import Classification as Classification
  from transformer.tasks.ctc import CTC as CTC
  from transformer.tasks.ctc import JointCTC as JointCTC
  from transformer.tasks.language_model import LanguageModel as LanguageModel
  from transformer.tasks.masked_lm import MaskedLM as MaskedLM
  from transformer.tasks.question_answering import QuestionAnswering as QuestionAnswering
  from transformer.tasks.retrieval import Retrieval as Retrieval
  from transformer.tasks.seq2seq import Seq2Seq as Seq2Seq
  from transformer.tasks.span_corruption import SpanCorruption as SpanCorruption
  from transformer.tasks.text_to_speech import TextToSpeech as TextToSpeech
  from transformer.tasks.token_classification import TokenClassification as TokenClassification
  from transformer.training import optimizers as optimizers
  from transformer.training.checkpoints import Checkpoints as Checkpoints
  from transformer.training.step import State as State
  from transformer.training.step import init_state as init_state
  from transformer.training.step import train_step as train_step
  from transformer.zoo import presets as presets
  from transformer.zoo.pretrained import load_pretrained as load_pretrained
  from transformer.zoo.pretrained import save_pretrained as save_pretrained

__version__ = '0.2.0'

# Names that are imported when they are first used (PEP 562), and where they are.
_LAZY = {
  'CTC': 'transformer.tasks.ctc',
  'Checkpoints': 'transformer.training.checkpoints',
  'Classification': 'transformer.tasks.classification',
  'Decoding': 'transformer.inference.decoding',
  'JointCTC': 'transformer.tasks.ctc',
  'LanguageModel': 'transformer.tasks.language_model',
  'MaskedLM': 'transformer.tasks.masked_lm',
  'QuestionAnswering': 'transformer.tasks.question_answering',
  'Retrieval': 'transformer.tasks.retrieval',
  'Seq2Seq': 'transformer.tasks.seq2seq',
  'SpanCorruption': 'transformer.tasks.span_corruption',
  'State': 'transformer.training.step',
  'TextToSpeech': 'transformer.tasks.text_to_speech',
  'TokenClassification': 'transformer.tasks.token_classification',
  'generate': 'transformer.inference.generate',
  'init_state': 'transformer.training.step',
  'load_pretrained': 'transformer.zoo.pretrained',
  'optimizers': 'transformer.training',
  'presets': 'transformer.zoo',
  'save_pretrained': 'transformer.zoo.pretrained',
  'train_step': 'transformer.training.step',
}


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  try:
    # as `from module import name` does it: an attribute, or else a module of the package
    value = getattr(__import__(_LAZY[name], fromlist=[name]), name)
  except ModuleNotFoundError as error:
    if (error.name or '').startswith('transformer'):
      raise
    raise ImportError(
      f'transformer.{name} needs {error.name}, which is not installed: '
      "pip install 'functional-transformer[train]'"
    ) from error
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *_LAZY})
