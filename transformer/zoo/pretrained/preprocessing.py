"""The processor of a published model of images or sounds, from its preprocessor_config.json."""

from collections.abc import Mapping
from typing import Any

from transformer.data import whisper
from transformer.zoo.families.family import value

PREPROCESSOR = 'preprocessor_config.json'
# keys that change no pixel, or that are read below
_KNOWN = """
  do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean
  image_std do_convert_rgb image_processor_type feature_extractor_type processor_class data_format
  input_data_format default_to_square return_tensors device disable_grouping image_seq_length
""".split()
# of Whisper's: keys that change no frame or are read below, and the others with their only values
_KNOWN_OF_SOUNDS = """
  feature_extractor_type processor_class return_attention_mask padding_side mel_filters n_samples
  nb_max_frames chunk_length feature_size
""".split()
_ONLY_OF_SOUNDS: dict[str, Any] = dict(padding_value=0.0, dither=0.0, do_normalize=False)
_ONLY_OF_SOUNDS |= dict(sampling_rate=whisper.RATE, hop_length=whisper.HOP, n_fft=whisper.FFT)
_RESAMPLE = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')  # Pillow's numbers


def image_processor(model: Any, **changes: Any) -> Any:
  """Return the `data.processors.ImageProcessor` of a published model of images.

  Args:
    model: from `load_pretrained`, whose folder has a preprocessor_config.json.
    changes: attributes of the processor that replace those of the folder.

  Raises:
    ValueError: the folder has no such file, a key of it is not supported, or its images have
      another number of patches than the model has positions.
  """
  from transformer.data.processors import ImageProcessor

  published: Any = getattr(model, 'published', None)
  theirs = published.json(PREPROCESSOR) if published else {}
  if not theirs:
    raise ValueError(f'the model did not come with a {PREPROCESSOR}: make an ImageProcessor')
  config = model.config
  config = getattr(config, 'image', config)
  config_json = published.json('config.json')
  config_json = config_json.get('vision_config', config_json)
  patch = config_json.get('patch_size') or round((config.features / 3) ** 0.5)
  patch = patch[0] if isinstance(patch, list) else patch
  processor = ImageProcessor(
    **read_preprocessor(theirs) | dict(patch=patch, channels=config.features // patch**2) | changes
  )
  patches, learned = processor.positions - 1, config.max_length - config.class_tokens
  if patches != learned:
    raise ValueError(
      f'{PREPROCESSOR}: images of {processor.height} x {processor.width} pixels have {patches} '
      f'patches, but the model has learned {learned} positions, and between positions it cannot '
      'read: give height=, width= and scale= of images that have as many'
    )
  return processor


def sound_processor(model: Any, **changes: Any) -> Any:
  """Return the `data.processors.SoundProcessor` of a published Whisper.

  Args:
    model: from `load_pretrained`, whose folder has a preprocessor_config.json.
    changes: attributes of the processor that replace those of the folder.

  Raises:
    ValueError: the folder has no such file, a value of it is not supported, or its frames are not
      as many, or not as large, as the model reads.
  """
  from transformer.data.processors import SoundProcessor

  published: Any = getattr(model, 'published', None)
  theirs = published.json(PREPROCESSOR) if published else {}
  if not theirs:
    raise ValueError(f'the model did not come with a {PREPROCESSOR}: make a SoundProcessor')
  kind = theirs.get('feature_extractor_type')
  if kind != 'WhisperFeatureExtractor':
    raise ValueError(f'{PREPROCESSOR}: {kind} is not supported, only WhisperFeatureExtractor is')
  for key, given in theirs.items():
    if key not in _KNOWN_OF_SOUNDS and given != _ONLY_OF_SOUNDS.get(key):
      raise ValueError(f'{PREPROCESSOR}: {key}={given} is not supported')
  frames = value(theirs, 'chunk_length', 30) * whisper.RATE // whisper.HOP
  sizes = dict(max_length=frames, bands=value(theirs, 'feature_size', 80)) | changes
  processor = SoundProcessor(scaling='whisper', **sizes)
  read = dict(max_length=2 * model.config.max_source_length, bands=model.config.features)
  for name, size in read.items():
    if (found := getattr(processor, name)) != size:
      raise ValueError(
        f'{PREPROCESSOR}: {name} is {found}, but the model reads {size}: give {name}={size}'
      )
  return processor


def read_preprocessor(theirs: Mapping[str, Any]) -> dict[str, Any]:
  """Return the arguments of ImageProcessor for a preprocessor_config.json.

  Raises:
    ValueError: a key or value is not supported; names it.
  """
  if others := sorted(key for key, given in theirs.items() if given and key not in _KNOWN):
    raise ValueError(f'{PREPROCESSOR}: {", ".join(others)} is not supported')
  kind = str(theirs.get('image_processor_type') or theirs.get('feature_extractor_type'))
  shorter = kind.startswith(('CLIP', 'Bit'))  # a single size is that of the shorter side
  scale = _size(theirs, 'size', shorter)
  size = scale
  if value(theirs, 'do_center_crop', shorter or kind.startswith('DeiT')):
    size = _size(theirs, 'crop_size', False) or scale
  if len(size) != 2:
    raise ValueError(f'{PREPROCESSOR}: size={theirs.get("size")} gives images of several sizes')
  if not value(theirs, 'do_resize', True):
    raise ValueError(f'{PREPROCESSOR}: do_resize=False is not supported, only True is')
  factor = value(theirs, 'rescale_factor', 1 / 255) if value(theirs, 'do_rescale', True) else 1.0
  white = 255 * factor  # the value of white to which their mean and std refer; ours refer to 1
  normalization = dict(mean=(0.0,), std=(1 / white,))
  if value(theirs, 'do_normalize', True):
    mean, std = (value(theirs, f'image_{name}', [0.5]) for name in ('mean', 'std'))
    normalization = dict(mean=tuple(x / white for x in mean), std=tuple(x / white for x in std))
  resample = _RESAMPLE[value(theirs, 'resample', 3 if shorter or scale != size else 2)]
  normalization = {k: v[:1] if len(set(v)) == 1 else v for k, v in normalization.items()}
  return normalization | dict(height=size[0], width=size[1], scale=scale, resample=resample)


def _size(theirs, key, shorter):
  """Return (height, width), or (shorter side,), of a size in any of its forms."""
  size = theirs.get(key)
  if isinstance(size, Mapping):
    if {'height', 'width'} <= size.keys():
      return size['height'], size['width']
    if set(size) == {'shortest_edge'}:
      return (size['shortest_edge'],)
    raise ValueError(f'{PREPROCESSOR}: {key}={dict(size)} is not supported')
  size = value(theirs, key, 224)
  return (size,) if shorter else (size, size)
