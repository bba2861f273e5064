"""Language models: learn p(next token | tokens so far), and go on with any text."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key

from transformer.data import text as texts
from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Ragged
from transformer.data.tokenizers import Tokenizer
from transformer.evaluation.metrics import TEACHER_FORCED, of_logits, per_text, with_perplexity
from transformer.functional import search
from transformer.functional.losses import Mean
from transformer.inference.batching import PAD, bucket, padded, self_attention
from transformer.inference.decoding import Decoding, best, generate, row_keys
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
  """The objective. A text longer than `length` is learnt in windows of that many tokens.

  Attributes:
    tokenizer: text to tokens and back.
    decoding: for `predict` and `stream`.
    length: of a window. Generation never looks further back either.
    documents: each text is whole: it begins with the start token and ends with the end token. If
      not, it is a piece of an endless text: its first token is not predicted and it has no end.
    overlap: how many tokens of a window the one before has predicted already. They are read again
      and not judged, so that no other prediction (but of a text's first window) looks back on
      fewer; the work grows by length / (length - overlap). Usual for published perplexities, with
      training at 0: Press et al. 2021, https://arxiv.org/abs/2012.15832, section 2.
    label_smoothing, z_loss: of the training loss; see losses.cross_entropy.
  """

  tokenizer: Tokenizer
  decoding: Decoding
  length: int
  documents: bool = False
  overlap: int = 0
  label_smoothing: float = 0.0
  z_loss: float = 0.0

  reads = ('targets',)  # of an example
  packs = True
  figures = (*TEACHER_FORCED, 'perplexity_per_word', 'bits_per_byte')

  def __post_init__(self):
    if self.length < 2:
      raise ValueError(f'data.length={self.length} leaves nothing to look back on: give 2 or more')
    if not 0 <= self.overlap < self.length:
      raise ValueError(
        f'loss.overlap={self.overlap} of data.length={self.length}: give 0 or more, and fewer than '
        'the window has'
      )
    if self.decoding.beams > 1 and self.decoding.length >= self.length:
      raise ValueError(
        f'decode.length={self.decoding.length} with decode.beams={self.decoding.beams} must be '
        f'less than data.length={self.length}, for beams cannot move to a new window: shorten it, '
        'or set beams to 1'
      )
    if self.documents and None in (self.tokenizer.bos, self.tokenizer.eos):
      raise ValueError(
        'loss.documents=True needs a tokenizer with start and end tokens: set it to False'
      )

  def quick(self) -> 'LanguageModel':
    """The same task without beams."""
    return dataclasses.replace(self, decoding=dataclasses.replace(self.decoding, beams=1))

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Decoder:
    """A fresh model."""
    return Decoder(config, nnx.Rngs(key))

  def encode(self, text: str) -> list[int]:
    """Tokens of a text, start and end included where it is a document."""
    tokens = texts.encode(self.tokenizer, text)
    return [self.tokenizer.bos, *tokens, self.tokenizer.eos] if self.documents else tokens

  def features(self, source: Source) -> dict[str, Ragged]:
    """What is read and what is to be predicted there, the same one token later, in windows."""
    read, predicted = [], []
    stride = self.length - self.overlap
    for examples in chunks(source):
      for example in examples:
        tokens = np.asarray(self.encode(example['targets']), np.int32)
        steps = len(tokens) - 1
        # every window but the first has something new after what overlaps
        for start in range(0, max(steps - self.overlap, min(steps, 1)), stride):
          end = min(start + self.length, steps)
          later = tokens[start + 1 : end + 1].copy()
          later[: self.overlap if start else 0] = PAD
          read.append(tokens[start:end])
          predicted.append(later)
    if not read:
      raise ValueError('there is no text of two tokens or more: give the corpus some')
    return {'inputs': Ragged.of(read), 'targets': Ragged.of(predicted)}

  def loss(
    self, model: Decoder, batch: dict[str, Int[Array, 'B _']], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """The smoothed objective, and apart from it the plain negative log-likelihood, in nats."""
    smoothing = dict(label_smoothing=self.label_smoothing, z_loss=self.z_loss)
    states, targets, weights = self._teach(model, batch, key)
    loss, nll = model.readout.cross_entropy(states, targets, weights, **smoothing)
    return loss, {'nll_per_token': nll}

  def measure(self, model: Decoder, batch: dict[str, Int[Array, 'B _']]) -> dict[str, Mean]:
    """What teacher forcing says of a batch that is not learnt from."""
    states, *true = self._teach(model, batch, None)
    return of_logits(model.readout.attend(states), *true)

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split, per token, per word and per byte of its text."""
    whole = (example['targets'] for examples in chunks(source) for example in examples)
    return with_perplexity(totals) | per_text(totals['nll_per_token'], whole)

  def capture(
    self, model: Decoder, batch: dict[str, Int[Array, 'B _']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model as it learns from a batch: every layer."""
    return {'decoder': model.capture(batch['inputs'], batch['inputs_segments'])}

  def _teach(self, model, batch, key):
    segments = batch['inputs_segments']
    states = model.states(batch['inputs'], segments=segments, key=key)
    targets = batch['targets']
    judged = (segments != 0) & (targets != PAD)
    return states, jnp.maximum(targets, 0), judged.astype(jnp.float32)

  def example(self, example: dict[str, str]) -> tuple[str, str]:
    """The first words of a text, and how it goes on."""
    words = example['targets'][:400].split(' ')
    prompt = ' '.join(words[: min(8, len(words) // 2 or 1)])
    return prompt, example['targets'][len(prompt) : 400]

  def predict(self, model: Decoder, lines: Iterable[str], *, cut: bool = False) -> list[str]:
    """What comes after each line, in order; the same for a line whatever lines come with it.

    Args:
      model: what decodes.
      lines: the prompts.
      cut: answer nothing to an empty line instead of raising.

    Raises:
      ValueError: a line is empty, and texts have no start token.
      FloatingPointError: the model is not finite.
    """
    if isinstance(lines, str):
      raise ValueError('predict takes many lines: pass a list, [line] for a single one')
    lines = list(lines)
    if cut and not self.documents:
      some = iter(self.predict(model, [line for line in lines if line]))
      return [next(some) if line else '' for line in lines]
    prompts = [self.input(line) for line in lines]
    written = [list(prompt) for prompt in prompts]
    for steps, seen in self._rounds():
      going_on = [text for text in written if not (seen and text[-1] == self._eos)]
      decoding = dataclasses.replace(self.decoding, length=steps)
      outputs = best(
        functools.partial(_search, model, decoding, self._eos),
        [self._context(text, steps) for text in going_on],
        eos=self._eos,
        rows=self.decoding.rows,
        longest=self.length,
        left=True,
      )
      for text, output in zip(going_on, outputs, strict=True):
        text += output.tolist()
    return [
      self._continuation(text, len(prompt)) for text, prompt in zip(written, prompts, strict=True)
    ]

  def stream(self, model: Decoder, line: str) -> Iterator[str]:
    """What `predict` says comes after a line, piece by piece as it is found; without beams."""
    prompt = self.input(line)
    text, told = list(prompt), ''
    for steps, _ in self._rounds():
      context = self._context(text, steps)
      tokens = jnp.asarray(padded([context], bucket(len(context), self.length), left=True))
      cache, last, keys = _read(model, tokens, steps, self.decoding.seed)
      for position in range(steps):
        last, cache = _next(model, last, cache, keys, position, self.decoding)
        text.append(int(last[0]))
        so_far = self._continuation(text, len(prompt))
        if not so_far.endswith('\ufffd'):  # half a character
          yield so_far[len(told) :]
          told = so_far
        if text[-1] == self._eos:
          return

  def attend(self, model: Decoder, line: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How each token of a line attends to those before: (weights [L, H, T, T], pieces, pieces)."""
    tokens = self.input(line)[-self.length :]
    return self_attention(
      lambda rows: model.capture(rows.clip(0), (rows != PAD).astype(np.int32)),
      tokens,
      self.tokenizer.pieces(tokens),
      self.length,
    )

  def input(self, line: str) -> list[int]:
    """The tokens of a prompt.

    Raises:
      ValueError: there is none.
    """
    tokens = self.tokenizer.encode(line)
    if self.documents:
      return [self.tokenizer.bos, *tokens]
    if not tokens:
      raise ValueError('the line is empty: give it some text to go on from')
    return tokens

  @property
  def _eos(self) -> int:
    return self.tokenizer.eos if self.documents else -1

  def _rounds(self) -> Iterator[tuple[int, int]]:
    """(tokens to generate, tokens generated before) of each window that the output moves through.

    A window begins with what there is of the text, so far as it fits; half of it stays free.
    """
    step = self.decoding.length if self.decoding.beams > 1 else max(self.length // 2, 1)
    for seen in range(0, self.decoding.length, step):
      yield min(step, self.decoding.length - seen), seen

  def _context(self, text: Sequence[int], steps: int) -> Sequence[int]:
    return text[-(self.length - steps) :]

  def _continuation(self, text: Sequence[int], prompt: int) -> str:
    # decoded together, for what a token spells may depend on the one before
    start = 1 if self.documents else 0
    decode = self.tokenizer.decode
    return decode(text[start:])[len(decode(text[start:prompt])) :]


def _prefilled(model: Decoder, prompts, steps: int, beams: int = 1):
  """(cache of all tokens but the last, the last), of prompts padded on the left."""
  segments, tokens = (prompts != PAD).astype(jnp.int32), jnp.maximum(prompts, 0)
  B, S = prompts.shape
  cache = model.init_cache(B, S - 1 + steps)
  if S > 1:
    _, cache = model(tokens[:, :-1], segments=segments[:, :-1], cache=cache)
  return cache.take(jnp.repeat(jnp.arange(B), beams)), tokens[:, -1]


def _step(model: Decoder, tokens, cache):
  ones = jnp.ones((len(tokens), 1), jnp.int32)
  logits, cache = model(tokens[:, None], segments=ones, cache=cache)
  return logits[:, 0], cache


@functools.partial(jax.jit, static_argnums=(1, 2))
def _search(model: Decoder, decoding: Decoding, eos: int, prompts: Int[Array, 'B S']):
  cache, last = _prefilled(model, prompts, decoding.length, decoding.beams)
  step = functools.partial(_step, model)
  return generate(step, cache, last, prompts, decoding, eos=eos, reorder=Cache.take)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _read(model: Decoder, prompts: Int[Array, 'B S'], steps: int, seed: int):
  return *_prefilled(model, prompts, steps), row_keys(seed, prompts)


@functools.partial(jax.jit, static_argnums=5, donate_argnums=2)
def _next(model: Decoder, last, cache: Cache, keys, position, decoding: Decoding):
  logits, cache = _step(model, last, cache)
  if decoding.temperature:
    return search.draw(keys, logits, position, **decoding.filters), cache
  return search.argmax(logits), cache
