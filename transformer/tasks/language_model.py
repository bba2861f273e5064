"""Language modeling: predict each token from the earlier ones."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Ragged
from transformer.data.processors import TextProcessor
from transformer.data.text import Cut, encode_documents
from transformer.data.tokenizers import Tokenizer
from transformer.evaluation.likelihood import TEXT_METRICS, TOKEN_METRICS, token_metrics
from transformer.functional.losses import Mean
from transformer.inference.attention_maps import Probe, causal_attention
from transformer.inference.batching import PAD, bucket_length, pad_rows
from transformer.inference.checks import check_possible, check_rows, log_cut
from transformer.inference.decoding import Decoding
from transformer.inference.generate import continue_prompts, cut_at_end, stream_tokens
from transformer.inference.predict import map_batches
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder
from transformer.tasks.task import Batch, Metrics, OptionalKey


class PromptProcessor(TextProcessor):
  """Encodes prompts, without an end token; a prompt may be longer than a window."""

  @property
  def start_tokens(self) -> list[int]:
    """Return the tokens before the text: the start token, or those of a published template."""
    return [self.tokenizer.bos] if self.start else self.tokenizer.prefix

  def encode_example(self, line: str, *, truncate: bool = False) -> list[int]:
    """Return the tokens of a prompt."""
    tokens = self.tokenizer.encode(line)
    if not (tokens or self.start or truncate):
      raise ValueError('the line is empty: give it some text to continue')
    return [*self.start_tokens, *tokens]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
  """Cross-entropy of the next token, in windows of `max_length` tokens.

  Attributes:
    tokenizer: text to tokens and back.
    decoding: settings of inference.
    max_length: number of tokens of a window, which is also the context of generation.
    documents: whether each text is a whole document, with start and end token. If not, it is part
      of a longer text: its first token is not predicted, and it has no end token.
    overlap: number of tokens that a window shares with the previous one. They are read but not
      scored again, so that predictions outside the first window of a text have at least this much
      context. Time grows by max_length / (max_length - overlap). Usual in the evaluation of
      published models, with 0 in training: Press et al. 2021, https://arxiv.org/abs/2012.15832,
      section 2.
    label_smoothing, z_loss: of the training loss; see losses.cross_entropy.
    router_balance: weight of the balance loss of experts, summed over the layers.
  """

  tokenizer: Tokenizer
  decoding: Decoding
  max_length: int
  documents: bool = False
  overlap: int = 0
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  router_balance: float = 0.01

  text_fields: ClassVar[tuple[str, ...]] = ('targets',)
  metrics = {**TOKEN_METRICS, **TEXT_METRICS}
  supports_packing = True

  def __post_init__(self):
    if self.max_length < 2:
      raise ValueError(f'data.max_length={self.max_length} leaves no context: give 2 or more')
    if not 0 <= self.overlap < self.max_length:
      raise ValueError(
        f'loss.overlap={self.overlap} with data.max_length={self.max_length}: give at least 0 and '
        'less than data.max_length'
      )
    if self.decoding.beams > 1 and self.decoding.max_new_tokens >= self.max_length:
      raise ValueError(
        f'decode.max_new_tokens={self.decoding.max_new_tokens} with decode.beams='
        f'{self.decoding.beams} must be less than data.max_length={self.max_length}, because beams '
        'cannot move to a new window: lower it, or set beams to 1'
      )
    if self.documents and None in (self.tokenizer.bos, self.tokenizer.eos):
      raise ValueError(
        'loss.documents=True needs a tokenizer with start and end tokens: set it to False'
      )

  @property
  def processor(self) -> PromptProcessor:
    """Return the processor of prompts."""
    return PromptProcessor(self.tokenizer, self.max_length, start=self.documents)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Decoder:
    """Return a freshly initialized model."""
    return Decoder(config, nnx.Rngs(key))

  @property
  def cut(self) -> Cut:
    """Return how documents are cut into windows, whose last token is the first of the next."""
    step = self.max_length - self.overlap
    return Cut(self.max_length + 1, step, added=-1, whole=self.documents)

  def columns(self, source: Source) -> dict[str, Ragged]:
    """Return the windows, and as targets the next tokens, PAD where they are not scored."""
    inputs, targets = [], []
    stride = self.max_length - self.overlap
    for examples in chunks(source):
      texts = [example['targets'] for example in examples]
      for tokens in encode_documents(self.tokenizer, texts, whole=self.documents):
        steps = len(tokens) - 1
        # every window except the first has new tokens after the overlap
        for start in range(0, max(steps - self.overlap, min(steps, 1)), stride):
          end = min(start + self.max_length, steps)
          next_tokens = tokens[start + 1 : end + 1].copy()
          next_tokens[: self.overlap if start else 0] = PAD
          inputs.append(tokens[start:end])
          targets.append(next_tokens)
    if not inputs:
      raise ValueError('there is no text of two tokens or more: give the corpus some')
    return {'inputs': Ragged.from_sequences(inputs), 'targets': Ragged.from_sequences(targets)}

  def loss(self, model: Decoder, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the smoothed cross-entropy with the balance loss, and the plain one, in nats."""
    smoothing = dict(label_smoothing=self.label_smoothing, z_loss=self.z_loss)
    (states, _, aux), targets, weights = self._outputs(model, batch, key)
    loss, nll = model.lm_head.cross_entropy(states, targets, weights, **smoothing)
    metrics = {'nll_per_token': nll}
    if aux:
      balance = aux['router_balance'] * loss.weight
      loss = Mean(loss.sum + self.router_balance * balance, loss.weight)
      metrics['router_balance'] = Mean(balance, loss.weight)
    return loss, metrics

  def batch_metrics(self, model: Decoder, batch: Batch) -> Metrics:
    """Return the metrics of teacher forcing."""
    output, *targets = self._outputs(model, batch, None)
    return token_metrics(model.lm_head.attend(output.x), *targets)

  def _outputs(self, model, batch, key):
    """Return the output of the stack, the targets, and the weights of the targets."""
    segments, targets = batch['inputs_segments'], batch['targets']
    output = model.outputs(batch['inputs'], segments=segments, key=key)
    scored = (segments != 0) & (targets != PAD)
    return output, jnp.maximum(targets, 0), scored.astype(jnp.float32)

  def example(self, example: dict[str, str]) -> tuple[str, str]:
    """Return the first words of a text and the next ones, 400 characters in all."""
    words = example['targets'][:400].split(' ')
    prompt = ' '.join(words[: min(8, len(words) // 2 or 1)])
    return prompt, example['targets'][len(prompt) : 400]

  def answer(self, model: Decoder, requests: Sequence[Sequence[int]]) -> list[str]:
    """Return the continuation of each prompt; '' for an empty prompt."""
    texts = [list(prompt) for prompt in requests]
    for steps, before in self._windows():
      unfinished = [text for text in texts if text and not (before and text[-1] in self._ends)]
      decoding = self._decoding_after(model, before, steps)
      key = self.decoding.key

      def search(prompts, decoding=decoding, key=key):
        return continue_prompts(model, prompts, key, decoding, self._ends)

      contexts = [self._context(text, steps, model.config) for text in unfinished]
      outputs = map_batches(self, model, search, contexts, left=True)
      check_possible(scores[0] for _, scores in outputs)
      for text, (output, _) in zip(unfinished, outputs, strict=True):
        text += cut_at_end(output[0], self._ends).tolist()
    if self.documents:
      log_cut((text[-1] in self._ends for text in texts if text), self.decoding)
    return [
      self._continuation(text, len(prompt)) for text, prompt in zip(texts, requests, strict=True)
    ]

  def stream(self, model: Decoder, line: str) -> Iterator[str]:
    """Yield the continuation of a line piece by piece, as it is generated; without beams.

    Raises:
      ValueError, FloatingPointError: as `predict`.
    """
    prompt = self.processor.encode_example(line)
    text, shown, so_far = list(prompt), '', ''
    for steps, before in self._windows():
      context = self._context(text, steps, model.config)
      rows = pad_rows([context], bucket_length(len(context), self.max_length), left=True)
      decoding, key = self._decoding_after(model, before, steps), self.decoding.key
      for token in stream_tokens(model, rows, key, decoding, self._ends):
        text.append(token)
        so_far = self._continuation(text, len(prompt))
        ended = token in self._ends
        if ended or not so_far.endswith('\ufffd'):  # the end is not part of a character
          yield so_far[len(shown) :]
          shown = so_far
        if ended:
          return
    if so_far != shown:  # the output ends within a character
      yield so_far[len(shown) :]

  def attention(self, model: Decoder, request: Sequence[int]) -> Probe:
    """Return the Probe of attention between the last `max_length` tokens of a prompt."""
    return causal_attention(self, model, request[-self.max_length :])

  @property
  def _ends(self) -> tuple[int, ...]:
    return self.tokenizer.ends if self.documents else ()

  def _decoding_after(self, model: Decoder, before: int, steps: int) -> Decoding:
    """Return the settings for `steps` tokens after `before` ones.

    They forbid padding, the start token and sentinels.
    """
    tokenizer = self.tokenizer
    never = (tokenizer.pad, tokenizer.bos, *tokenizer.sentinels)
    return self.decoding.for_model(model, never, eos=tokenizer.ends).after(before, steps)

  def _windows(self) -> Iterator[tuple[int, int]]:
    """Yield (tokens to generate, tokens generated before) for each window of the output.

    Half of a window reads the end of the text so far, the other half is for new tokens.
    """
    step = self.decoding.max_new_tokens if self.decoding.beams > 1 else max(self.max_length // 2, 1)
    for before in range(0, self.decoding.max_new_tokens, step):
      yield min(step, self.decoding.max_new_tokens - before), before

  def _context(self, text: Sequence[int], steps: int, config: ModelConfig) -> Sequence[int]:
    context = text[-(self.max_length - steps) :]
    check_rows(config, [context], new=steps)
    return context

  def _continuation(self, text: Sequence[int], prompt: int) -> str:
    # decoded with the prompt, since the text of a token may depend on the previous token
    start = len(self.processor.start_tokens)
    decode = self.tokenizer.decode
    return decode(text[start:])[len(decode(text[start:prompt])) :]
