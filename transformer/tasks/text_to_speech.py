"""Text to speech: a text to the log-mel frames of a sound, several of them in each step."""

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
    max_new_tokens: most steps of a sound.
    stop: probability of the end above which a sound ends.
    iterations: of Griffin and Lim's algorithm.
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
  its 'targets', the decoder makes its 'inputs'. Frames are scaled: `floor` is -1, magnitude 1 is 1.

  Attributes:
    tokenizer: text to tokens.
    decoding: settings of inference.
    max_length: longest text in tokens, end token included; also longest sound in steps.
    rate, window, hop, mels, floor: of the frames; see audio.LogMel.
    frames_per_step: frames in each step, the reduction factor of Wang et al. 2017, section 3.3.
    prenet_dropout: see modules.speech.Prenet.
    stop_weight: weight of the last step, relative to another, in the loss of the end; 5 to 8 in Li
      et al. 2019, section 3.7.
    diagonal: weight of guided attention, which prefers alignments near the diagonal: Tachibana et
      al. 2018, https://arxiv.org/abs/1710.08969, section 4.1.
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
    self.log_mel  # noqa: B018  raises what is wrong with the rest

  @staticmethod
  def positions(max_length: int, max_new_tokens: int) -> int:
    """Return how many positions the model needs, of inputs and of outputs."""
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
    """Return the frames of a sound, in steps; the last step is filled up with silence."""
    frames = 1 - 2 * self.log_mel(audio.read(sound, self.rate)) / np.log(self.floor)
    short = -len(frames) % self.frames_per_step
    frames = np.pad(frames, ((0, short), (0, 0)), constant_values=-1)
    return frames.reshape(-1, self.frames_per_step * self.mels).astype(np.float32)

  def sound(self, steps: Float[np.ndarray, 'T X']) -> bytes:
    """Return a sound of these steps, as a wav file."""
    frames = (1 - steps.reshape(-1, self.mels)) * np.log(self.floor) / 2
    loudest = 10 * abs(np.log(self.floor))  # a diverged model still makes a sound
    frames = np.clip(frames, -loudest, loudest)
    made = self.log_mel.inverse(frames, iterations=self.decoding.iterations)
    return audio.encode(made, self.rate)

  def loss(self, model: Synthesizer, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the loss, and its parts, means over steps.

    These are the error of a band's magnitude in nats, that of the end in nats, and a share.
    """
    frames, segments = batch['targets'], batch['targets_segments']
    real = (segments != 0).astype(jnp.float32)
    total = jnp.sum(real)
    (made, ends), inside = sites.capture(model)(
      batch['inputs'],
      shift_right(frames),
      input_segments=batch['inputs_segments'],
      target_segments=segments,
      key=key,
    )
    last = real - jnp.pad(real[:, 1:], ((0, 0), (0, 1)))
    stop = optax.sigmoid_binary_cross_entropy(ends, last) * real
    off = off_diagonal(batch['inputs_segments'] != 0, segments != 0)
    seen = jnp.mean(inside['decoder']['cross'], axis=(0, 2))
    nats = abs(np.log(self.floor)) / 2  # of a unit of the frames' scale
    error = nats * jnp.mean(jnp.abs(made - frames), axis=-1) * real
    sums = jnp.sum(error), jnp.sum(stop), jnp.sum(seen * off * real[..., None])
    weighted_stop = jnp.sum(stop * jnp.where(last == 1, self.stop_weight, 1))
    loss = sums[0] * 2 / abs(np.log(self.floor)) + weighted_stop + self.diagonal * sums[2]
    return Mean(loss, total), {k: Mean(x, total) for k, x in zip(self.metrics, sums, strict=True)}

  def example(self, example: dict[str, Any]) -> tuple[str, Any]:
    """Return the text, and its recording."""
    sound = example['inputs']
    sound = audio.encode(sound, self.rate) if isinstance(sound, np.ndarray) else sound
    return example['targets'], sound

  def answer(self, model: Synthesizer, requests: Sequence[Sequence[int]]) -> list[bytes]:
    """Return a wav file of each text."""
    return [self.sound(steps) for steps in self.synthesize(model, requests)]

  def synthesize(
    self, model: Synthesizer, requests: Sequence[Sequence[int]]
  ) -> list[Float[np.ndarray, 'T X']]:
    """Return the steps of each text's sound, up to its predicted end."""
    found = run_batches(self, model, requests)
    log_cut((count < len(steps) for steps, count, _ in found), self.decoding)
    return [steps[:count] for steps, count, _ in found]

  def forward(self, model: Synthesizer, rows: Int[Array, 'B S']):
    """Return the steps of each row, how many count, and NaN if one is not finite."""
    return generate_steps(model, rows, self.decoding)

  def attention(self, model: Synthesizer, request: Sequence[int]) -> Probe:
    """Return how the steps of a text's sound attend to it; the steps by their seconds."""
    (steps,) = self.synthesize(model, [request])
    seconds = [f'{i * self.frames_per_step * self.hop:.2f}' for i in range(len(steps))]
    pictures = {'rows': steps.reshape(-1, self.mels)}
    return cross_attention(self, model, request, steps, seconds, pictures=pictures)


def shift_right(steps: Float[Array, 'B T X']) -> Float[Array, 'B T X']:
  """Return the inputs of the decoder: each step one place later, and 0 first.

  >>> shift_right(jnp.array([[[1.], [2.]]]))[0, :, 0]
  Array([0., 1.], dtype=float32)
  """
  return jnp.pad(steps[:, :-1], ((0, 0), (1, 0), (0, 0)))


def off_diagonal(inputs: Bool[Array, 'B S'], targets: Bool[Array, 'B T']) -> Float[Array, 'B T S']:
  """Return the distance from the diagonal, 1 - exp(-(s / S - t / T)^2 / 2 g^2), with g = 0.2.

  Args:
    inputs, targets: which positions are real, the first ones of each row.

  Tachibana et al. 2018, equation 7.

  >>> off_diagonal(jnp.ones((1, 2), bool), jnp.ones((1, 2), bool)).round(2)
  Array([[[0.  , 0.96],
          [0.96, 0.  ]]], dtype=float32)
  """

  def place(real):
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    return jnp.arange(real.shape[1]) / count

  distance = place(inputs)[:, None, :] - place(targets)[:, :, None]
  return 1 - jnp.exp(-(distance**2) / (2 * 0.2**2))


class Synthesized(NamedTuple):
  """The sounds so far, one a row."""

  position: Int[Array, '']
  before: Float[Array, 'B X']
  steps: Float[Array, 'B T X']
  counts: Int[Array, ' B']
  finished: Bool[Array, ' B']
  cache: Cache


def generate_steps(
  model: Synthesizer, rows: Int[Array, 'B S'], decoding: Synthesis
) -> tuple[Float[Array, 'B T X'], Int[Array, ' B'], Float[Array, ' B']]:
  """Return the steps [B, T, X] of each row, how many count, and a NaN if one is not finite."""
  tokens, segments = split_padding(rows)
  B, X = len(rows), model.out.kernel.shape[1]
  memory = model.encode(tokens, segments)
  ones = jnp.ones((B, 1), jnp.int32)

  def unfinished(sounds: Synthesized):
    return (sounds.position < decoding.max_new_tokens) & ~jnp.all(sounds.finished)

  def extend(sounds: Synthesized) -> Synthesized:
    made, ends, cache = model.decode(sounds.before[:, None], memory, sounds.cache, ones)
    return Synthesized(
      position=sounds.position + 1,
      before=made[:, 0],
      steps=sounds.steps.at[:, sounds.position].set(made[:, 0]),
      counts=sounds.counts + ~sounds.finished,
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
  done = jax.lax.while_loop(unfinished, extend, start)
  finite = jnp.all(jnp.isfinite(done.steps), axis=(1, 2))
  return done.steps, done.counts, jnp.where(finite, 0.0, jnp.nan)
