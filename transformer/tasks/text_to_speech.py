"""Speech synthesis: a text to the log-mel frames of a sound, several of them at a time."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from transformer.data import audio
from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Fields, Ragged, joined
from transformer.data.processors import TextProcessor, read
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean
from transformer.inference.batching import Batching, bucket, in_batches, padded, separated
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.speech import Synthesizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesis(Batching):
  """How sounds are made.

  Attributes:
    length: most steps of a sound.
    stop: it ends where the end is more probable than this.
    iterations: of Griffin and Lim's algorithm.
  """

  length: int = 128
  stop: float = 0.5
  iterations: int = 60

  def __post_init__(self):
    super().__post_init__()
    for name in ('length', 'iterations'):
      if getattr(self, name) < 1:
        raise ValueError(f'decode.{name}={getattr(self, name)} must be at least 1')
    if not 0 < self.stop < 1:
      raise ValueError(f'decode.stop={self.stop} is a probability: give 0 < stop < 1, such as 0.5')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToSpeech:
  """The objective: |frames - true frames|, the end told from the rest, and maybe a diagonal.

  An example is a recording, as speech recognition reads it, the other way round: its 'targets' are
  read and its 'inputs' are made. Frames are scaled so that `floor` is -1 and a magnitude of 1 is 1.

  Attributes:
    tokenizer: text to tokens.
    decoding: for `predict`.
    length: longest text in tokens, end token included; also of a sound in steps.
    rate, window, hop, mels, floor: of the frames; see audio.LogMel.
    together: frames in a step, the reduction factor of Wang et al. 2017, section 3.3.
    prenet_dropout: see modules.speech.Prenet.
    stop_weight: how much more the last step counts than another in the loss of the end; Li et al.
      2019, section 3.7, have 5 to 8.
    diagonal: weight of guided attention, Tachibana et al. 2018, https://arxiv.org/abs/1710.08969,
      section 4.1: for sounds that follow their text from its beginning to its end.
  """

  tokenizer: Tokenizer
  decoding: Synthesis
  length: int
  rate: int = 16_000
  window: float = 0.05
  hop: float = 0.0125
  mels: int = 80
  floor: float = 1e-4
  together: int = 1
  prenet_dropout: float = 0.5
  stop_weight: float = 5.0
  diagonal: float = 0.0

  reads = ('targets',)  # as text, of an example
  figures = ('mel_error', 'stop_nll', 'off_diagonal')
  packs = False

  def __post_init__(self):
    if self.tokenizer.eos is None:
      raise ValueError('the tokenizer has no end token, which speech synthesis needs')
    if self.together < 1 or not 0 <= self.prenet_dropout < 1:
      raise ValueError(
        f'loss.together={self.together} must be at least 1, and loss.prenet_dropout='
        f'{self.prenet_dropout} a rate: give 0 <= rate < 1'
      )
    if not self.stop_weight > 0 or not self.diagonal >= 0 or not self.floor < 1:
      raise ValueError(
        f'loss.stop_weight={self.stop_weight} must be positive, loss.diagonal={self.diagonal} not '
        f'negative, and loss.floor={self.floor} less than 1'
      )
    self.log_mel  # noqa: B018  raises what is wrong with the rest

  @functools.cached_property
  def log_mel(self) -> audio.LogMel:
    """How a sound becomes frames."""
    names = ('rate', 'window', 'hop', 'mels', 'floor')
    return audio.LogMel(**{name: getattr(self, name) for name in names})

  @property
  def reader(self) -> TextProcessor:
    """How a text is read."""
    return TextProcessor(self.tokenizer, self.length)

  def quick(self) -> 'TextToSpeech':
    """The same task: there is nothing to search."""
    return self

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Synthesizer:
    """A fresh model."""
    size = self.together * self.mels
    return Synthesizer(config, size, nnx.Rngs(key), prenet_dropout=self.prenet_dropout)

  def features(self, source: Source) -> Fields:
    """The texts as tokens and the sounds as steps of frames, for the pipeline."""
    return joined(
      [
        {
          'inputs': self.reader.field([example['targets'] for example in examples]),
          'targets': Ragged.of([self.steps(example['inputs']) for example in examples]),
        }
        for examples in chunks(source)
      ]
    )

  def steps(self, sound: audio.Sound) -> Float[np.ndarray, 'T X']:
    """What the model is to make of a sound's text: the last step is filled up with silence."""
    frames = 1 - 2 * self.log_mel(audio.read(sound, self.rate)) / np.log(self.floor)
    short = -len(frames) % self.together
    frames = np.pad(frames, ((0, short), (0, 0)), constant_values=-1)
    return frames.reshape(-1, self.together * self.mels).astype(np.float32)

  def sound(self, steps: Float[np.ndarray, 'T X']) -> bytes:
    """What `steps` was made of, or sounds like it, as a wav file."""
    frames = (1 - steps.reshape(-1, self.mels)) * np.log(self.floor) / 2
    loudest = 10 * abs(np.log(self.floor))  # what diverges is still a sound
    frames = np.clip(frames, -loudest, loudest)
    made = self.log_mel.inverse(frames, iterations=self.decoding.iterations)
    return audio.encode(made, self.rate)

  def loss(
    self, model: Synthesizer, batch: dict[str, Array], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """What is minimised, a mean over steps, and its parts."""
    found = self._teach(model, batch, key)
    weight = found['mel_error'].weight
    # in the frames' own scale, which is about 1, and not in nats
    error = found['mel_error'].sum * 2 / abs(np.log(self.floor))
    total = error + found['weighted_stop_nll'].sum + self.diagonal * found['off_diagonal'].sum
    return Mean(total, weight), {name: found[name] for name in self.figures}

  def measure(self, model: Synthesizer, batch: dict[str, Array]) -> dict[str, Mean]:
    """What teacher forcing says of a batch that is not learnt from."""
    found = self._teach(model, batch, None)
    return {name: found[name] for name in self.figures}

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split: nats of a band's magnitude, nats of the end, a share."""
    return {name: float(mean.value) for name, mean in totals.items()}

  def _teach(self, model, batch, key):
    """Every figure as a Mean over steps."""
    frames, segments = batch['targets'], batch['targets_segments']
    real = (segments != 0).astype(jnp.float32)
    total = jnp.sum(real)
    made, ends, inside = model(
      batch['inputs'],
      one_step_late(frames),
      input_segments=batch['inputs_segments'],
      target_segments=segments,
      key=key,
      capture=True,
    )
    last = real - jnp.pad(real[:, 1:], ((0, 0), (0, 1)))
    stop = optax.sigmoid_binary_cross_entropy(ends, last) * real
    off = off_diagonal(batch['inputs_segments'] != 0, segments != 0)
    seen = jnp.mean(inside['decoder']['cross'], axis=(0, 2))
    scale = abs(np.log(self.floor)) / 2
    error = scale * jnp.mean(jnp.abs(made - frames), axis=-1) * real
    return {
      'mel_error': Mean(jnp.sum(error), total),
      'stop_nll': Mean(jnp.sum(stop), total),
      'weighted_stop_nll': Mean(jnp.sum(stop * jnp.where(last == 1, self.stop_weight, 1)), total),
      'off_diagonal': Mean(jnp.sum(seen * off * real[..., None]), total),
    }

  def capture(self, model: Synthesizer, batch: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """What happens inside the model as it learns from a batch."""
    return _capture(
      model,
      batch['inputs'],
      batch['targets'],
      batch['inputs_segments'],
      batch['targets_segments'],
    )

  def example(self, example: dict[str, Any]) -> tuple[str, Any]:
    """The text, and the recording of it."""
    sound = example['inputs']
    sound = audio.encode(sound, self.rate) if isinstance(sound, np.ndarray) else sound
    return example['targets'], sound

  def input(self, line: str) -> list[int]:
    """The tokens of a line.

    Raises:
      ValueError: it is empty or too long.
    """
    return list(self.reader.input(line))

  def predict(self, model: Synthesizer, lines: Iterable[str], *, cut: bool = False) -> list[bytes]:
    """A wav file of each line.

    Raises:
      ValueError: a line is empty or too long.
    """
    return [self.sound(steps) for steps in self.made(model, lines, cut=cut)]

  def made(
    self, model: Synthesizer, lines: Iterable[str], *, cut: bool = False
  ) -> list[Float[np.ndarray, 'T X']]:
    """The steps of each line's sound, as far as the model says that it goes.

    Raises:
      ValueError: as `predict`.
      FloatingPointError: the model is not finite.
    """
    rows = read(self.reader, lines, cut=cut)
    find = functools.partial(_synthesize, model, decoding=self.decoding)
    found = in_batches(find, rows, rows=self.decoding.rows, longest=self.length)
    if any(not np.isfinite(steps).all() for steps, _ in found):
      raise FloatingPointError('the model computes NaN for these lines: its training diverged')
    return [steps[:count] for steps, count in found]

  def attend(self, model: Synthesizer, line: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How the steps of a line's sound attend to it: (weights [L, H, T, S], seconds, pieces)."""
    tokens = self.input(line)
    (steps,) = self.made(model, [line])
    # padded, or each line would be compiled for anew
    text, text_segments = separated(jnp.asarray(padded([tokens], bucket(len(tokens), self.length))))
    sound, sound_segments = separated(jnp.asarray(padded([steps], self.decoding.length)))
    maps = _capture(model, text, sound, text_segments, sound_segments)
    weights = np.asarray(maps['decoder']['cross'])[:, 0, :, : len(steps), : len(tokens)]
    seconds = [f'{i * self.together * self.hop:.2f}' for i in range(len(steps))]
    return weights, seconds, self.reader.pieces(tokens)


def one_step_late(steps: Float[Array, 'B T X']) -> Float[Array, 'B T X']:
  """What the decoder reads: each step one place later, and 0 first.

  >>> one_step_late(jnp.array([[[1.], [2.]]]))[0, :, 0]
  Array([0., 1.], dtype=float32)
  """
  return jnp.pad(steps[:, :-1], ((0, 0), (1, 0), (0, 0)))


def off_diagonal(
  inputs: Bool[Array, 'B S'], targets: Bool[Array, 'B T'], width: float = 0.2
) -> Float[Array, 'B T S']:
  """1 - exp(-(s / S - t / T)^2 / 2 width^2): how far from the diagonal a step and a token are.

  Args:
    inputs, targets: which positions are real, the first ones of each row.
    width: where the diagonal begins to end.

  Tachibana et al. 2018, equation 7.

  >>> off_diagonal(jnp.ones((1, 2), bool), jnp.ones((1, 2), bool)).round(2)
  Array([[[0.  , 0.96],
          [0.96, 0.  ]]], dtype=float32)
  """

  def place(real):
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    return jnp.arange(real.shape[1]) / count

  distance = place(inputs)[:, None, :] - place(targets)[:, :, None]
  return 1 - jnp.exp(-(distance**2) / (2 * width**2))


class SoundProcessor(NamedTuple):
  """SoundProcessor in the making, one a row."""

  position: Int[Array, '']
  before: Float[Array, 'B X']
  steps: Float[Array, 'B T X']
  counts: Int[Array, ' B']
  finished: Bool[Array, ' B']
  cache: Cache


@functools.partial(jax.jit, static_argnames='decoding')
def _synthesize(model: Synthesizer, rows, *, decoding: Synthesis):
  """Steps [B, T, X] of each row, and how many of them count."""
  tokens, segments = separated(rows)
  B, X = len(rows), model.out.kernel.shape[1]
  memory = model.encode(tokens, segments)
  ones = jnp.ones((B, 1), jnp.int32)

  def unfinished(sounds: SoundProcessor):
    return (sounds.position < decoding.length) & ~jnp.all(sounds.finished)

  def extend(sounds: SoundProcessor) -> SoundProcessor:
    made, ends, cache = model.decode(sounds.before[:, None], memory, sounds.cache, ones)
    return SoundProcessor(
      position=sounds.position + 1,
      before=made[:, 0],
      steps=sounds.steps.at[:, sounds.position].set(made[:, 0]),
      counts=sounds.counts + ~sounds.finished,
      finished=sounds.finished | (jax.nn.sigmoid(ends[:, 0]) > decoding.stop),
      cache=cache,
    )

  start = SoundProcessor(
    position=jnp.int32(0),
    before=jnp.zeros((B, X)),
    steps=jnp.zeros((B, decoding.length, X)),
    counts=jnp.zeros(B, jnp.int32),
    finished=jnp.zeros(B, bool),
    cache=model.init_cache(B, decoding.length),
  )
  done = jax.lax.while_loop(unfinished, extend, start)
  return done.steps, done.counts


@jax.jit
def _capture(model: Synthesizer, tokens, steps, input_segments, target_segments):
  segments = dict(input_segments=input_segments, target_segments=target_segments)
  return model(tokens, one_step_late(steps), **segments, capture=True)[2]
