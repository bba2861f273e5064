"""Input processors: texts to tokens, images to patches, sounds to frames."""

import contextlib
import dataclasses
import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from transformer.data import audio, images
from transformer.data.audio import LogMel
from transformer.data.pipeline import Ragged
from transformer.data.tokenizers import Tokenizer
from transformer.functional import augmentation
from transformer.functional.spec_augment import change_tempo, mask_frames

Row = Sequence[int] | np.ndarray  # what is read of one line, before it is padded
Line = str | bytes | np.ndarray  # a text, a path, the content of a file, or the thing itself


@runtime_checkable
class Processor(Protocol):
  """One kind of inputs."""

  @property
  def features(self) -> int:
    """Numbers in a patch or frame, 0 for tokens."""

  @property
  def longest(self) -> int:
    """No row is longer."""

  @property
  def positions(self) -> int:
    """Most vectors that the encoder makes of a row."""

  def field(self, lines: Iterable[Any]) -> Ragged | np.ndarray:
    """What the pipeline holds of all lines."""

  def input(self, line: Any, *, cut: bool = False) -> Row:
    """What is read of one line; `cut` takes what can be read of one that is refused otherwise.

    Raises:
      ValueError: what is wrong with it, and the cure.
    """

  def encode(self, rows: Array, segments: Array, key: Key[Array, ''] | None) -> tuple[Array, Array]:
    """What the encoder takes of a batch, and the segments of it; with a key, varied at random."""

  def pieces(self, row: Any) -> list[str]:
    """For pictures, what the encoder's states of a row stand for."""


@dataclasses.dataclass(frozen=True)
class TextProcessor:
  """Lines of text.

  Attributes:
    tokenizer: text to tokens.
    longest: in tokens, with those that are added.
    start: begin with the start token; all end with the end token.
    cuts: too long a text of a corpus is cut; if not, it stays as it is, and can be left out.
  """

  tokenizer: Tokenizer
  longest: int
  start: bool = False
  cuts: bool = False

  features = 0

  @property
  def positions(self) -> int:
    """One for each token."""
    return self.longest

  def field(self, lines: Iterable[str]) -> Ragged:
    """The tokens of each line."""
    rows = self._encode(list(lines))
    return Ragged.of([self._cut(row) for row in rows] if self.cuts else rows)

  def input(self, line: str, *, cut: bool = False) -> list[int]:
    """The tokens of one line."""
    (tokens,) = self._encode([line])
    if cut:
      return self._cut(tokens)
    if len(tokens) == 1 + self.start or not line.strip():
      raise ValueError('the line is empty: give it some text')
    if len(tokens) > self.longest:
      raise ValueError(
        f'the line has {len(tokens)} tokens, more than the {self.longest} the model was trained '
        'for: shorten or split it'
      )
    return tokens

  def encode(
    self, rows: Int[Array, 'B S'], segments: Int[Array, 'B S'], key: Key[Array, ''] | None
  ) -> tuple[Int[Array, 'B S'], Int[Array, 'B S']]:
    """The tokens as they are."""
    if self.tokenizer.pad is not None:  # which published models find in their inputs
      segments = jnp.where(rows == self.tokenizer.pad, 0, segments)
    return rows, segments

  def pieces(self, row: Sequence[int]) -> list[str]:
    """What the tokens spell."""
    return self.tokenizer.pieces(row)

  def _encode(self, lines: list[str]) -> list[list[int]]:
    first = [self.tokenizer.bos] if self.start else []
    return [[*first, *tokens, self.tokenizer.eos] for tokens in self.tokenizer.encode_batch(lines)]

  def _cut(self, tokens: list[int]) -> list[int]:
    return [*tokens[: self.longest - 1], tokens[-1]] if len(tokens) > self.longest else tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageProcessor:
  """Processor of images: squares of pixels, row by row, each number between -1 and 1.

  Attributes:
    height, width: in pixels; what has another size is scaled to cover this one, and its middle is
      kept.
    channels: 1 is grey, 3 red, green and blue.
    patch: pixels on a side of a square.
    stem: convolutions that the model begins with; see ModelConfig.
    flip, shift, turn, zoom, erase, recolor: how training varies them: whether some are mirrored, by
      how many pixels they are moved, degrees they are turned, shares of 1 they are scaled, pixels
      on a side of a square that is hidden, and shares of 1 by which colours differ; see
      functional.augmentation.
  """

  height: int
  width: int
  channels: int
  patch: int
  stem: int = 0
  flip: bool = False
  shift: int = 0
  turn: float = 0.0
  zoom: float = 0.0
  erase: int = 0
  recolor: float = 0.0

  def __post_init__(self):
    for name, below in dict(shift=0, turn=0, erase=0, zoom=1, recolor=1).items():
      value = getattr(self, name)
      if value < 0 or (below and value >= below):
        limit = ' and below 1' if below else ''
        raise ValueError(f'inputs.{name}={value} must be at least 0{limit}')
    for name in ('height', 'width', 'channels', 'patch'):
      if getattr(self, name) < 1:
        raise ValueError(f'inputs.{name}={getattr(self, name)} must be at least 1')
    if self.height % self.patch or self.width % self.patch:
      raise ValueError(
        f'inputs.patch={self.patch} does not divide inputs.height={self.height} and '
        f'inputs.width={self.width}: choose a divisor of both'
      )
    if self.stem and self.height != self.width:
      raise ValueError(
        f'inputs.height={self.height} is not inputs.width={self.width}, as model.stem={self.stem} '
        'wants it: make them equal, or set model.stem=0'
      )

  @property
  def features(self) -> int:
    """Numbers in a patch."""
    return self.patch**2 * self.channels

  @property
  def longest(self) -> int:
    """Rows of pixels, which all images have."""
    return self.height

  @property
  def positions(self) -> int:
    """One for each patch that the stem leaves, and the first."""
    return 1 + math.prod(self._grid)

  @property
  def _grid(self) -> tuple[int, int]:
    """Rows and columns of patches that the encoder sees."""
    size = self.patch * 2**self.stem
    return -(-self.height // size), -(-self.width // size)

  def field(self, lines: Iterable[Line]) -> UInt8[np.ndarray, 'n H W C']:
    """The pixels of all images."""
    found, last = [], None
    for line in lines:
      if line is not last:  # the captions of an image are neighbours
        pixels, last = self.input(line), line
      found.append(pixels)
    return np.stack(found)

  def input(self, line: Line, *, cut: bool = False) -> UInt8[np.ndarray, 'H W C']:
    """The pixels of one image."""
    return images.read(line, self.height, self.width, self.channels)

  def encode(
    self, rows: UInt8[Array, 'B H W C'], segments: Int[Array, ' B'], key: Key[Array, ''] | None
  ) -> tuple[Float[Array, 'B S X'], Int[Array, 'B S']]:
    """The patches, with a key of images that are varied."""
    x = rows.astype(jnp.float32) / 255
    if key is not None:
      x = self._varied(x, key)
    x = patches(2 * x - 1, self.patch)
    return x, jnp.broadcast_to(segments[:, None], x.shape[:2])

  def _varied(self, x, key):
    keys = jax.random.split(key, 5)
    x = augmentation.recolor(keys[0], x, self.recolor)
    x = augmentation.turn(keys[1], x, self.turn, self.zoom)
    x = augmentation.shift(keys[2], x, self.shift)
    x = augmentation.flip(keys[3], x) if self.flip else x
    return augmentation.erase(keys[4], x, self.erase)

  def pieces(self, row: np.ndarray) -> list[str]:
    """Row and column of each patch."""
    rows, columns = self._grid
    return ['all', *(f'{i},{j}' for i in range(rows) for j in range(columns))]


def patches(images: Float[Array, 'B H W C'], size: int) -> Float[Array, 'B S X']:
  """The squares of each image, row by row: x_p of Dosovitskiy et al. 2021, section 3.1.

  >>> patches(jnp.arange(8.0).reshape(1, 2, 4, 1), 2)
  Array([[[0., 1., 4., 5.],
          [2., 3., 6., 7.]]], dtype=float32)
  """
  B, H, W, C = images.shape
  x = images.reshape(B, H // size, size, W // size, size, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundProcessor:
  """Processor of sounds: log-mel or ready-made frames, of each sound with mean 0 and variance 1.

  With a key they are varied as functional.spec_augment says.

  Attributes:
    longest: in frames.
    rate: samples a second, Hz; files of another rate are resampled.
    window: seconds that a frame sees; 0 if frames are ready-made, arrays or .npy files of them.
    hop: seconds from frame to frame.
    bands: mel bands; of ready-made frames, the numbers in each.
    tempo: most that a sound becomes faster or slower, as a share of its speed.
    time_masks, time_width: so many stretches of up to so many frames are left out,
    time_share: each at most this share of the sound.
    frequency_masks, frequency_width: so many stretches of up to so many bands are left out.
  """

  longest: int
  rate: int = 16_000
  window: float = 0.025
  hop: float = 0.010
  bands: int = 80
  tempo: float = 0.0
  time_masks: int = 0
  time_width: int = 0
  time_share: float = 1.0
  frequency_masks: int = 0
  frequency_width: int = 0

  def __post_init__(self):
    for name in ('time_masks', 'time_width', 'frequency_masks', 'frequency_width'):
      if getattr(self, name) < 0:
        raise ValueError(f'inputs.{name}={getattr(self, name)} must be at least 0')
    if not 0 <= self.tempo < 1 or not 0 <= self.time_share <= 1:
      raise ValueError(
        f'inputs.tempo={self.tempo} and inputs.time_share={self.time_share} are shares: give 0 <= '
        'tempo < 1 and 0 <= time_share <= 1'
      )
    try:
      _ = self.window and self._log_mel
    except ValueError as error:
      raise ValueError(f'inputs: {error}') from error

  @functools.cached_property
  def _log_mel(self) -> LogMel:
    return LogMel(rate=self.rate, window=self.window, hop=self.hop, mels=self.bands)

  @property
  def features(self) -> int:
    """Numbers in a frame."""
    return self.bands

  @property
  def positions(self) -> int:
    """One for every two frames."""
    return -(-self.longest // 2)

  def field(self, lines: Iterable[Line]) -> Ragged:
    """The frames of each sound."""
    return Ragged.of([self._read(line) for line in lines])

  def input(self, line: Line, *, cut: bool = False) -> Float[np.ndarray, 'S X']:
    """The frames of one sound."""
    frames = self._read(line)
    if len(frames) > self.longest and not cut:
      raise ValueError(
        f'the sound has {len(frames)} frames, more than the {self.longest} the model was trained '
        'for: split it'
      )
    return frames[: self.longest]

  def encode(
    self, rows: Float[Array, 'B S X'], segments: Int[Array, 'B S'], key: Key[Array, ''] | None
  ) -> tuple[Float[Array, 'B S X'], Int[Array, 'B S']]:
    """The frames; with a key, faster or slower and with gaps."""
    if key is None:
      return rows, segments
    tempo_key, masks_key = jax.random.split(key)
    if self.tempo:
      rows, segments = change_tempo(tempo_key, rows, segments, most=self.tempo)
    masked = mask_frames(
      masks_key,
      rows,
      segments,
      time_masks=self.time_masks,
      time_width=self.time_width,
      time_share=self.time_share,
      frequency_masks=self.frequency_masks,
      frequency_width=self.frequency_width,
    )
    return masked, segments

  def pieces(self, row: np.ndarray) -> list[str]:
    """The second at which every other frame is."""
    return [f'{i * self.hop:.2f}' for i in range(0, len(row), 2)]

  def _read(self, line: Line) -> np.ndarray:
    if isinstance(line, np.ndarray) and line.ndim == 2:
      frames = line.astype(np.float32)
    elif self.window:
      frames = self._log_mel(audio.read(line, self.rate))
    else:
      frames = _ready_made(line)
    if frames.shape[1] != self.bands:
      raise ValueError(
        f'the frames have {frames.shape[1]} numbers each: set inputs.bands={self.bands} to that'
      )
    # a band in which nothing ever happens stays 0
    return (frames - frames.mean(axis=0)) / np.maximum(frames.std(axis=0), 1e-3)


def _ready_made(file: Line) -> Float[np.ndarray, 'S X']:
  source: Any = io.BytesIO(file) if isinstance(file, bytes) else file
  frames = np.empty(0, np.float32)
  # of what is no such file
  with contextlib.suppress(ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
    frames = np.load(source, allow_pickle=False).astype(np.float32)
  if frames.ndim != 2 or not frames.size or not np.isfinite(frames).all():
    raise ValueError(
      f'{file if isinstance(file, str) else "the sound"} is no .npy file of an array [frames, '
      'numbers], all finite: the model hears nothing but ready-made frames (inputs.window=0)'
    )
  return frames


PROCESSORS: dict[str, Callable[..., Processor]] = {
  'tokens': TextProcessor,
  'patches': ImageProcessor,
  'frames': SoundProcessor,
}


def read(reader: Processor, lines: Iterable[Line], *, cut: bool = False) -> list[Row]:
  """What is read of each line.

  Raises:
    ValueError: the number of the first line that is refused, what is wrong with it, and the cure.
  """
  if isinstance(lines, str):
    raise ValueError('predict takes many lines: pass a list, [line] for a single one')
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(reader.input(line, cut=cut))
    except ValueError as error:
      raise ValueError(f'line {number}: {error}') from error
  return rows
