"""Text to speech: predict the log-mel frames of a sound from a text, several in each step."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from transformer.data import audio
from transformer.data.corpora import Source
from transformer.data.pipeline import Columns, Ragged
from transformer.data.processors import TextProcessor, encode_columns
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean
from transformer.inference.attention_maps import Probe, cross_attention
from transformer.inference.batching import split_padding
from transformer.inference.checks import log_cut
from transformer.inference.decoding import Batching, check_positive
from transformer.inference.predict import run_batches
from transformer.modules import sites
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.speech import Synthesizer
from transformer.tasks.task import Batch, Metrics, OptionalKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesis(Batching):
  """Settings of the synthesis of sounds.

  Attributes:
    max_new_tokens: largest number of steps of a sound.
    stop: a sound ends when the predicted probability of its end is above this.
    iterations: iterations of Griffin and Lim's algorithm.
  """

  max_new_tokens: int = 128
  stop: float = 0.5
  iterations: int = 60

  def __post_init__(self):
    check_positive(self, 'batch_size', 'max_new_tokens', 'iterations')
    if not 0 < self.stop < 1:
      raise ValueError(f'decode.stop={self.stop} is a probability: give 0 < stop < 1, such as 0.5')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToSpeech:
  """Mean absolute error of the frames, cross-entropy of the end, and guided attention.

  An example is a recording as for speech recognition, with the roles exchanged: the encoder reads
  its 'targets', the decoder predicts its 'inputs'. Frames are scaled linearly so that the log of
  `floor` is -1 and that of magnitude 1 is 1.

  Attributes:
    tokenizer: text to tokens.
    decoding: settings of inference.
    max_length: largest number of tokens of a text, end token included, and of steps of a sound.
    rate, window, hop, mels, floor: of the frames; see audio.LogMel.
    frames_per_step: frames in each step, the reduction factor of Wang et al. 2017, section 3.3.
    prenet_dropout: dropout rate of modules.speech.Prenet.
    stop_weight: weight of the last step in the loss of the end, where other steps have weight 1; 5
      to 8 in Li et al. 2019, section 3.7.
    diagonal: weight of guided attention, a penalty for alignments away from the diagonal: Tachibana
      et al. 2018, https://arxiv.org/abs/1710.08969, section 4.1.
  """

  tokenizer: Tokenizer
  decoding: Synthesis
  max_length: int
  rate: int = 16_000
  window: float = 0.05
  hop: float = 0.0125
  mels: int = 80
  floor: float = 1e-4
  frames_per_step: int = 1
  prenet_dropout: float = 0.5
  stop_weight: float = 5.0
  diagonal: float = 0.0

  text_fields = ('targets',)
  metrics = {'mel_error': False, 'stop_nll': False, 'off_diagonal': False}
  supports_packing = False

  def __post_init__(self):
    if self.tokenizer.eos is None:
      raise ValueError('the tokenizer has no end token, which speech synthesis needs')
    if self.frames_per_step < 1 or not 0 <= self.prenet_dropout < 1:
      raise ValueError(
        f'loss.frames_per_step={self.frames_per_step} must be at least 1, and loss.prenet_dropout='
        f'{self.prenet_dropout} a rate: give 0 <= rate < 1'
      )
    if not self.stop_weight > 0 or not self.diagonal >= 0 or not self.floor < 1:
      raise ValueError(
        f'loss.stop_weight={self.stop_weight} must be positive, loss.diagonal={self.diagonal} not '
        f'negative, and loss.floor={self.floor} less than 1'
      )
    self.log_mel  # noqa: B018  checks the other settings

  @staticmethod
  def positions(max_length: int, max_new_tokens: int) -> int:
    """Return the number of positions that the model needs for inputs and outputs."""
    return max(max_length, max_new_tokens)

  @functools.cached_property
  def log_mel(self) -> audio.LogMel:
    """Return the transform of sounds to frames."""
    names = ('rate', 'window', 'hop', 'mels', 'floor')
    return audio.LogMel(**{name: getattr(self, name) for name in names})

  @property
  def processor(self) -> TextProcessor:
    """Return the processor of texts."""
    return TextProcessor(self.tokenizer, self.max_length)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Synthesizer:
    """Return a freshly initialized model."""
    size = self.frames_per_step * self.mels
    return Synthesizer(config, size, nnx.Rngs(key), prenet_dropout=self.prenet_dropout)

  def columns(self, source: Source) -> Columns:
    """Return the texts as tokens, and the sounds as steps of frames."""

    def steps(sounds: list[audio.Sound]) -> Ragged:
      return Ragged.from_sequences([self.steps(sound) for sound in sounds])

    texts = self.processor.encode_column
    return encode_columns(source, inputs=('targets', texts), targets=('inputs', steps))

  def steps(self, sound: audio.Sound) -> Float[np.ndarray, 'T X']:
    """Return the scaled frames of a sound, in steps; the last step is padded with silence."""
    frames = 1 - 2 * self.log_mel(audio.read(sound, self.rate)) / np.log(self.floor)
    padding = -len(frames) % self.frames_per_step
    frames = np.pad(frames, ((0, padding), (0, 0)), constant_values=-1)
    return frames.reshape(-1, self.frames_per_step * self.mels).astype(np.float32)

  def sound(self, steps: Float[np.ndarray, 'T X']) -> bytes:
    """Return the sound of these steps, as the bytes of a wav file."""
    frames = (1 - steps.reshape(-1, self.mels)) * np.log(self.floor) / 2
    limit = 10 * abs(np.log(self.floor))  # so that exp(frames) of a diverged model is finite
    frames = np.clip(frames, -limit, limit)
    samples = self.log_mel.inverse(frames, iterations=self.decoding.iterations)
    return audio.encode(samples, self.rate)

  def loss(self, model: Synthesizer, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the loss, and its parts as metrics, means over steps.

    mel_error is the mean absolute error of a band's log magnitude in nats, stop_nll the negative
    log-likelihood of the end in nats, off_diagonal the share of attention away from the diagonal.
    """
    frames, segments = batch['targets'], batch['targets_segments']
    real = (segments != 0).astype(jnp.float32)
    total = jnp.sum(real)
    (predicted, ends), values = sites.capture(model)(
      batch['inputs'],
      shift_right(frames),
      input_segments=batch['inputs_segments'],
      target_segments=segments,
      key=key,
    )
    last = real - jnp.pad(real[:, 1:], ((0, 0), (0, 1)))
    stop = optax.sigmoid_binary_cross_entropy(ends, last) * real
    distance = off_diagonal(batch['inputs_segments'] != 0, segments != 0)
    weights = jnp.mean(values['decoder']['cross'], axis=(0, 2))
    nats = abs(np.log(self.floor)) / 2  # nats in a unit of the scaled frames
    error = nats * jnp.mean(jnp.abs(predicted - frames), axis=-1) * real
    sums = jnp.sum(error), jnp.sum(stop), jnp.sum(weights * distance * real[..., None])
    weighted_stop = jnp.sum(stop * jnp.where(last == 1, self.stop_weight, 1))
    loss = sums[0] * 2 / abs(np.log(self.floor)) + weighted_stop + self.diagonal * sums[2]
    return Mean(loss, total), {k: Mean(x, total) for k, x in zip(self.metrics, sums, strict=True)}

  def example(self, example: dict[str, Any]) -> tuple[str, Any]:
    """Return the text and its recording."""
    sound = example['inputs']
    sound = audio.encode(sound, self.rate) if isinstance(sound, np.ndarray) else sound
    return example['targets'], sound

  def answer(self, model: Synthesizer, requests: Sequence[Sequence[int]]) -> list[bytes]:
    """Return the bytes of a wav file for each text."""
    return [self.sound(steps) for steps in self.synthesize(model, requests)]

  def synthesize(
    self, model: Synthesizer, requests: Sequence[Sequence[int]]
  ) -> list[Float[np.ndarray, 'T X']]:
    """Return the steps of the sound of each text, up to its predicted end."""
    sounds = run_batches(self, model, requests)
    log_cut((count < len(steps) for steps, count, _ in sounds), self.decoding)
    return [steps[:count] for steps, count, _ in sounds]

  def forward(self, model: Synthesizer, rows: Int[Array, 'B S']):
    """Return the result of `generate_steps` for each row."""
    return generate_steps(model, rows, self.decoding)

  def attention(self, model: Synthesizer, request: Sequence[int]) -> Probe:
    """Return the Probe of the attention of a sound's steps, labeled in seconds, to the text."""
    (steps,) = self.synthesize(model, [request])
    seconds = [f'{i * self.frames_per_step * self.hop:.2f}' for i in range(len(steps))]
    pictures = {'rows': steps.reshape(-1, self.mels)}
    return cross_attention(self, model, request, steps, seconds, pictures=pictures)


def shift_right(steps: Float[Array, 'B T X']) -> Float[Array, 'B T X']:
  """Return the inputs of the decoder: steps shifted right, with 0 first.

  >>> shift_right(jnp.array([[[1.], [2.]]]))[0, :, 0]
  Array([0., 1.], dtype=float32)
  """
  return jnp.pad(steps[:, :-1], ((0, 0), (1, 0), (0, 0)))


def off_diagonal(inputs: Bool[Array, 'B S'], targets: Bool[Array, 'B T']) -> Float[Array, 'B T S']:
  """Return the distance from the diagonal, 1 - exp(-(s / S - t / T)^2 / 2 g^2), with g = 0.2.

  Args:
    inputs, targets: which positions are real; padding is on the right.

  Tachibana et al. 2018, equation 7.

  >>> off_diagonal(jnp.ones((1, 2), bool), jnp.ones((1, 2), bool)).round(2)
  Array([[[0.  , 0.96],
          [0.96, 0.  ]]], dtype=float32)
  """

  def relative_position(real):
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    return jnp.arange(real.shape[1])[None] / count

  distance = relative_position(inputs)[:, None, :] - relative_position(targets)[:, :, None]
  return 1 - jnp.exp(-(distance**2) / (2 * 0.2**2))


class Synthesized(NamedTuple):
  """The state of a synthesis, one sound in each row."""

  position: Int[Array, '']
  before: Float[Array, 'B X']
  steps: Float[Array, 'B T X']
  counts: Int[Array, ' B']
  finished: Bool[Array, ' B']
  cache: Cache


def generate_steps(
  model: Synthesizer, rows: Int[Array, 'B S'], decoding: Synthesis
) -> tuple[Float[Array, 'B T X'], Int[Array, ' B'], Float[Array, ' B']]:
  """Return (the steps of each row, how many come before its end, 0 or NaN if one is not finite)."""
  tokens, segments = split_padding(rows)
  B, X = len(rows), model.out.kernel.shape[1]
  memory = model.encode(tokens, segments)
  ones = jnp.ones((B, 1), jnp.int32)

  def unfinished(sounds: Synthesized):
    return (sounds.position < decoding.max_new_tokens) & ~jnp.all(sounds.finished)

  def extend(sounds: Synthesized) -> Synthesized:
    frames, ends, cache = model.decode(sounds.before[:, None], memory, sounds.cache, ones)
    return Synthesized(
      position=sounds.position + 1,
      before=frames[:, 0],
      steps=sounds.steps.at[:, sounds.position].set(frames[:, 0]),
      counts=jnp.where(sounds.finished, sounds.counts, sounds.counts + 1),
      finished=sounds.finished | (jax.nn.sigmoid(ends[:, 0]) > decoding.stop),
      cache=cache,
    )

  start = Synthesized(
    position=jnp.int32(0),
    before=jnp.zeros((B, X)),
    steps=jnp.zeros((B, decoding.max_new_tokens, X)),
    counts=jnp.zeros(B, jnp.int32),
    finished=jnp.zeros(B, bool),
    cache=model.init_cache(B, decoding.max_new_tokens),
  )
  end = jax.lax.while_loop(unfinished, extend, start)
  finite = jnp.all(jnp.isfinite(end.steps), axis=(1, 2))
  return end.steps, end.counts, jnp.where(finite, 0.0, jnp.nan)
