"""Input processors: texts to tokens, images to patches, sounds to frames."""

import dataclasses
import functools
import io
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from transformer.data import audio, images, whisper
from transformer.data.audio import LogMel
from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Column, Columns, Lazy, Ragged, concatenate
from transformer.data.reading import check_array, naming
from transformer.data.text import BLANK, with_blanks
from transformer.data.tokenizers import Tokenizer
from transformer.functional import augmentation
from transformer.functional.spec_augment import change_tempo, mask_frames

Line = str | bytes | np.ndarray  # a text, a path, the content of a file, or the array itself
Row = Sequence[int] | np.ndarray  # an encoded example without padding


@runtime_checkable
class Processor(Protocol):
  """The preprocessing of one modality of inputs."""

  @property
  def features(self) -> int:
    """Return the size of a patch or frame; 0 for tokens."""

  @property
  def max_length(self) -> int:
    """Return the length of the longest row."""

  @property
  def positions(self) -> int:
    """Return the largest number of positions that a row has in the encoder."""

  def encode_column(self, lines: Iterable[Any]) -> Column:
    """Return all inputs as one column of the data pipeline."""

  def encode_example(self, line: Any, *, truncate: bool = False) -> Row:
    """Return one input as a row.

    Args:
      line: a text, or an image or sound.
      truncate: whether to shorten an input that is too long, and to accept an empty one.

    Raises:
      ValueError: the input cannot be encoded; says why, and the cure.
    """

  def prepare_batch(
    self, rows: Array, segments: Array, key: Key[Array, ''] | None
  ) -> tuple[Array, Array]:
    """Return the encoder's inputs and their segments; runs on the device.

    Args:
      rows: a batch, [B, ...].
      segments: [B, S] or [B]; 0 is padding.
      key: for augmentation; None for none.
    """

  def labels(self, row: Any) -> list[str]:
    """Return the labels of the encoder's positions, for attention maps."""


@dataclasses.dataclass(frozen=True)
class TextProcessor:
  """Texts to tokens, with the end token or the template of a published tokenizer around them.

  Attributes:
    tokenizer: encodes texts.
    max_length: in tokens, with start and end.
    start: whether texts begin with the start token.
    truncate: whether `encode_column` truncates long texts; otherwise they are left out later.
    prefix: tokens before each text; () for those of a published tokenizer's template.
  """

  tokenizer: Tokenizer
  max_length: int
  start: bool = False
  truncate: bool = False
  prefix: tuple[int, ...] = ()

  features = 0

  @property
  def positions(self) -> int:
    """Return the largest number of tokens of a text."""
    return self.max_length

  def encode_column(self, lines: Iterable[str]) -> Ragged:
    """Return the tokens of each line."""
    rows = self._encode(list(lines))
    return Ragged.from_sequences([self._truncated(row) for row in rows] if self.truncate else rows)

  def encode_example(self, line: str, *, truncate: bool = False) -> list[int]:
    """Return the tokens of one line."""
    (tokens,) = self._encode([line])
    if truncate:
      return self._truncated(tokens)
    check_text('' if tokens == self._encode([''])[0] else line, tokens, self.max_length)
    return tokens

  def prepare_batch(
    self, rows: Int[Array, 'B S'], segments: Int[Array, 'B S'], key: Key[Array, ''] | None
  ) -> tuple[Int[Array, 'B S'], Int[Array, 'B S']]:
    """Return the tokens unchanged, with padding tokens in segment 0."""
    if self.tokenizer.pad is not None:  # inputs of published models may contain it
      segments = jnp.where(rows == self.tokenizer.pad, 0, segments)
    return rows, segments

  def labels(self, row: Sequence[int]) -> list[str]:
    """Return the spelling of each token."""
    return self.tokenizer.pieces(row)

  def _encode(self, lines: list[str]) -> list[list[int]]:
    first = [self.tokenizer.bos] if self.start else self.prefix or self.tokenizer.prefix
    last = self.tokenizer.suffix or [self.tokenizer.eos]
    return [[*first, *tokens, *last] for tokens in self.tokenizer.encode_batch(lines)]

  def _truncated(self, row: list[int]) -> list[int]:
    return [*row[: self.max_length - 1], row[-1]] if len(row) > self.max_length else row


@dataclasses.dataclass(frozen=True)
class BlankProcessor(TextProcessor):
  """Texts to tokens, with ___ in place of missing parts.

  Attributes:
    fillers: the tokens that encode the first ___, the second, ...
  """

  fillers: tuple[int, ...] = ()

  def encode_example(self, line: str, *, truncate: bool = False) -> list[int]:
    """Return the tokens of a line, with a filler in place of each ___."""
    blanks = line.count(BLANK)
    if not blanks and not truncate:
      raise ValueError(f'the line has nothing to fill in: write {BLANK} where text is missing')
    if blanks > len(self.fillers):
      raise ValueError(f'the line has {blanks} {BLANK}: write at most {len(self.fillers)}')
    tokens = with_blanks(self.tokenizer, line, self.fillers[:blanks])
    row = [*[self.tokenizer.bos] * self.start, *tokens, self.tokenizer.eos]
    if not truncate:
      check_text(line, row, self.max_length)
    return self._truncated(row)


def check_text(line: str, tokens: Sequence[int], max_length: int):
  """Raise ValueError if a line is empty, or has more tokens than the model was trained for."""
  if not line.strip():
    raise ValueError('the line is empty: give it some text')
  if len(tokens) > max_length:
    raise ValueError(
      f'the line has {len(tokens)} tokens, more than the {max_length} the model was trained '
      'for: shorten or split it'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageProcessor:
  """Images to square patches, row by row, normalized; with augmentation in training.

  Attributes:
    height, width: in pixels; an image of another size is scaled to cover this size and
      center-cropped.
    channels: 1 for gray, 3 for red, green and blue.
    patch: side of a patch, in pixels.
    stem: convolutions at the beginning of the model; see ModelConfig.
    scale, resample: how an image is scaled before it is center-cropped; see images.read.
    mean, std: of all channels or of each, for pixels in 0 to 1; patches have (x - mean) / std.
    flip: augmentation: mirror half of the images; see functional.augmentation.
    shift: augmentation: move by up to so many pixels.
    turn: augmentation: rotate by up to so many degrees.
    zoom: augmentation: scale by a factor from 1 - zoom to 1 + zoom.
    erase: augmentation: hide a square with sides of so many pixels.
    recolor: augmentation: change colors by factors from 1 - recolor to 1 + recolor.
  """

  height: int
  width: int
  channels: int
  patch: int
  stem: int = 0
  scale: tuple[int, ...] = ()
  resample: Literal['nearest', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos'] = 'bicubic'
  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.5,)
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
        raise ValueError(f'processor.{name}={value} must be at least 0{limit}')
    for name in ('height', 'width', 'channels', 'patch'):
      if getattr(self, name) < 1:
        raise ValueError(f'processor.{name}={getattr(self, name)} must be at least 1')
    if self.scale and (
      len(self.scale) > 2 or self.scale[0] < self.height or self.scale[-1] < self.width
    ):
      raise ValueError(
        f'processor.scale={self.scale} is less than processor.height={self.height} and '
        f'processor.width={self.width}: give the pixels of the shorter side, or of both'
      )
    for name in ('mean', 'std'):
      if len(getattr(self, name)) not in (1, self.channels):
        raise ValueError(
          f'processor.{name}={getattr(self, name)}: give one number, or one for each of '
          f'processor.channels={self.channels}'
        )
    if self.height % self.patch or self.width % self.patch:
      raise ValueError(
        f'processor.patch={self.patch} does not divide processor.height={self.height} and '
        f'processor.width={self.width}: choose a divisor of both'
      )
    if self.stem and self.height != self.width:
      raise ValueError(
        f'processor.height={self.height} is not processor.width={self.width}, which '
        f'model.stem={self.stem} needs: make them equal, or set model.stem=0'
      )

  @property
  def features(self) -> int:
    """Return the size of a patch."""
    return self.patch**2 * self.channels

  @property
  def max_length(self) -> int:
    """Return the number of rows of pixels, the same for all images."""
    return self.height

  @property
  def positions(self) -> int:
    """Return the number of patches after the stem, plus one for the class token."""
    return 1 + math.prod(self._grid)

  @property
  def _grid(self) -> tuple[int, int]:
    """Return the rows and columns of patches after the stem."""
    size = self.patch * 2**self.stem
    return -(-self.height // size), -(-self.width // size)

  def encode_column(self, lines: Iterable[Line]) -> Lazy:
    """Return the pixels [n, H, W, C] of all images, which are decoded when they are needed."""
    items = list(lines)
    shape = len(items), self.height, self.width, self.channels
    return Lazy(items, self.encode_example, shape, np.dtype(np.uint8))

  def encode_example(self, line: Line, *, truncate: bool = False) -> UInt8[np.ndarray, 'H W C']:
    """Return the pixels of one image."""
    size = self.height, self.width, self.channels
    return images.read(line, *size, scale=self.scale, resample=self.resample)

  def prepare_batch(
    self, rows: UInt8[Array, 'B H W C'], segments: Int[Array, ' B'], key: Key[Array, ''] | None
  ) -> tuple[Float[Array, 'B S X'], Int[Array, 'B S']]:
    """Return the patches, of augmented images if there is a key, and their segments."""
    x = rows.astype(jnp.float32) / 255
    if key is not None:
      x = self._augmented(x, key)
    if self.mean == self.std == (0.5,):
      x = 2 * x - 1
    else:
      mean, std = (
        jnp.array(of_channels)[None, None, None] for of_channels in (self.mean, self.std)
      )
      x = (x - mean) / std
    x = patches(x, self.patch)
    return x, jnp.broadcast_to(segments[:, None], x.shape[:2])

  def _augmented(self, x, key):
    keys = jax.random.split(key, 5)
    x = augmentation.recolor(keys[0], x, self.recolor)
    x = augmentation.turn(keys[1], x, self.turn, self.zoom)
    x = augmentation.shift(keys[2], x, self.shift)
    x = augmentation.flip(keys[3], x) if self.flip else x
    return augmentation.erase(keys[4], x, self.erase)

  def labels(self, row: np.ndarray) -> list[str]:
    """Return 'ROW,COLUMN' of each patch, after 'all' for the class token."""
    rows, columns = self._grid
    return ['all', *(f'{i},{j}' for i in range(rows) for j in range(columns))]


def encode_columns(
  source: Source, **encoders: tuple[str, Callable[[list[Any]], Column]]
) -> Columns:
  """Return the columns of examples.

  Args:
    source: the examples.
    encoders: NAME=(field of the examples, function from its values to the column NAME).
  """
  return concatenate(
    [
      {name: encode([x[field] for x in part]) for name, (field, encode) in encoders.items()}
      for part in chunks(source)
    ]
  )


def patches(images: Float[Array, 'B H W C'], size: int) -> Float[Array, 'B S X']:
  """Return the patches of each image, row by row: x_p of Dosovitskiy et al. 2021, section 3.1.

  >>> patches(jnp.arange(8.0).reshape(1, 2, 4, 1), 2)
  Array([[[0., 1., 4., 5.],
          [2., 3., 6., 7.]]], dtype=float32)
  """
  B, H, W, C = images.shape
  x = images.reshape(B, H // size, size, W // size, size, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundProcessor:
  """Sounds to log-mel frames, with augmentation in training; see functional.spec_augment.

  Attributes:
    max_length: in frames.
    scaling: 'standard': each band has mean 0 and variance 1 over time; 'whisper': as published
      Whisper models read sounds, followed by silence up to max_length (3000 for theirs).
    rate: sample rate, in Hz; files of another rate are resampled.
    window: length of a frame, in seconds; 0 if inputs are precomputed frames (arrays, .npy files).
    hop: distance from frame to frame, in seconds.
    bands: number of mel bands; the size of precomputed frames.
    tempo: augmentation: change the speed by a factor from 1 - tempo to 1 + tempo.
    time_masks: augmentation: number of intervals of time that are masked.
    time_width: the longest of them, in frames.
    time_share: the longest of them, as a share of the sound.
    frequency_masks: augmentation: number of intervals of bands that are masked.
    frequency_width: the widest of them, in bands.
  """

  max_length: int
  scaling: Literal['standard', 'whisper'] = 'standard'
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
        raise ValueError(f'processor.{name}={getattr(self, name)} must be at least 0')
    if not 0 <= self.tempo < 1 or not 0 <= self.time_share <= 1:
      raise ValueError(
        f'processor.tempo={self.tempo} and processor.time_share={self.time_share} are shares: give '
        '0 <= tempo < 1 and 0 <= time_share <= 1'
      )
    given = self.rate, self.window, self.hop
    theirs = whisper.RATE, whisper.FFT / whisper.RATE, whisper.HOP / whisper.RATE
    if self.scaling == 'whisper' and given != theirs:
      raise ValueError(
        f"processor.scaling='whisper' has rate, window and hop {theirs}, not {given}: set them so"
      )
    try:
      _ = self.window and self._log_mel
    except ValueError as error:
      raise ValueError(f'processor: {error}') from error

  @functools.cached_property
  def _log_mel(self) -> LogMel:
    return LogMel(rate=self.rate, window=self.window, hop=self.hop, mels=self.bands)

  @property
  def features(self) -> int:
    """Return the size of a frame."""
    return self.bands

  @property
  def positions(self) -> int:
    """Return the largest number of positions: one for every two frames."""
    return -(-self.max_length // 2)

  def encode_column(self, lines: Iterable[Line]) -> Ragged:
    """Return the frames of each sound."""
    frames = Ragged.from_sequences([self._read(line) for line in lines])
    padded = self.max_length if self.scaling == 'whisper' else 0
    return dataclasses.replace(frames, padded=padded)

  def encode_example(self, line: Line, *, truncate: bool = False) -> Float[np.ndarray, 'S X']:
    """Return the frames of one sound."""
    frames = self._read(line)
    if len(frames) > self.max_length and not truncate:
      raise ValueError(
        f'the sound has {len(frames)} frames, more than the {self.max_length} the model was '
        'trained for: split it'
      )
    return frames[: self.max_length]

  def prepare_batch(
    self, rows: Float[Array, 'B S X'], segments: Int[Array, 'B S'], key: Key[Array, ''] | None
  ) -> tuple[Float[Array, 'B N X'], Int[Array, 'B N']]:
    """Return the frames and segments; with a key, augmented.

    With scaling='whisper' silence replaces the padding, and the model attends to it.
    """
    frames, real = (rows, segments) if key is None else self._augmented(rows, segments, key)
    if self.scaling == 'standard':
      return frames, real
    silence = whisper.silence(rows, segments)
    frames = jnp.where((real != 0)[..., None], frames, silence)[:, : self.max_length]
    B, S, X = frames.shape
    after = jnp.broadcast_to(silence, (B, self.max_length - S, X))
    heard = jnp.any(segments != 0, axis=1, keepdims=True).astype(segments.dtype)
    frames = jnp.concatenate([frames, after], axis=1)
    return frames, jnp.broadcast_to(heard, (B, self.max_length))

  def _augmented(self, rows, segments, key):
    """Return the frames and segments after a random change of tempo, and with random masks."""
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

  def labels(self, row: np.ndarray) -> list[str]:
    """Return the time of every other frame as text, in seconds."""
    return [f'{i * self.hop:.2f}' for i in range(0, len(row), 2)]

  def _read(self, line: Line) -> np.ndarray:
    if isinstance(line, np.ndarray) and line.ndim == 2:
      frames = line.astype(np.float32)
    elif self.scaling == 'whisper':
      sound = audio.read(line, self.rate)
      # a longer sound keeps its length, so that it can be refused or left out
      size = max(self.max_length, -(-len(sound) // whisper.HOP))
      frames = whisper.log_mel(sound, self.bands, size)
    elif self.window:
      frames = self._log_mel(audio.read(line, self.rate))
    else:
      frames = _precomputed(line)
    if frames.shape[1] != self.bands:
      raise ValueError(
        f'the frames have {frames.shape[1]} numbers each: set processor.bands={self.bands} to that'
      )
    if self.scaling == 'whisper':
      return frames
    # a constant band stays 0
    return (frames - frames.mean(axis=0)) / np.maximum(frames.std(axis=0), 1e-3)


def _precomputed(file: Line) -> Float[np.ndarray, 'S X']:
  name = file if isinstance(file, str) else 'the sound'
  cure = 'the model takes precomputed frames alone (processor.window=0)'
  with naming(f'{name} is no .npy file of an array [frames, numbers], all finite', cure):
    content = file if isinstance(file, bytes) else pathlib.Path(file).read_bytes()  # type: ignore[arg-type]
    check_array(io.BytesIO(content), len(content))
    frames = np.load(io.BytesIO(content), allow_pickle=False)
    if frames.dtype.kind not in 'fiu' or frames.ndim != 2 or not frames.size:
      raise ValueError(f'it has {frames.dtype} {list(frames.shape)}')
    frames = frames.astype(np.float32)
    if not np.isfinite(frames).all():
      raise ValueError('some are not')
  return frames


PROCESSORS: dict[str, Callable[..., Processor]] = {
  'tokens': TextProcessor,
  'patches': ImageProcessor,
  'frames': SoundProcessor,
}
