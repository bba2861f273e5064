"""How a published model takes its images: preprocessor_config.json."""

from collections.abc import Mapping
from typing import Any

from transformer.zoo.families.family import value

PREPROCESSOR = 'preprocessor_config.json'
# what changes no pixel, or is looked at below
_KNOWN = """
  do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean
  image_std do_convert_rgb image_processor_type feature_extractor_type processor_class data_format
  input_data_format default_to_square return_tensors device disable_grouping image_seq_length
""".split()
_RESAMPLE = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')  # Pillow's numbers


def image_processor(model: Any, **changes: Any) -> Any:
  """Return the `data.processors.ImageProcessor` of a published model of images.

  Args:
    model: as `load_pretrained` gives it, with the preprocessor_config.json of its folder.
    changes: attributes of the processor that replace those of the folder.

  Raises:
    ValueError: the folder has no such file, it asks for what is not supported, or its images have
      another number of patches than the model has positions.
  """
  from transformer.data.processors import ImageProcessor

  published: Any = getattr(model, 'published', None)
  theirs = published.json(PREPROCESSOR) if published else {}
  if not theirs:
    raise ValueError(f'the model did not come with a {PREPROCESSOR}: make an ImageProcessor')
  config = model.config
  config = getattr(config, 'image', config)
  about = published.json('config.json')
  about = about.get('vision_config', about)
  patch = about.get('patch_size') or round((config.features / 3) ** 0.5)
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


def read_preprocessor(theirs: Mapping[str, Any]) -> dict[str, Any]:
  """Return the arguments of `ImageProcessor` that a preprocessor_config.json gives.

  Raises:
    ValueError: it asks for what is not supported, which is named.
  """
  if others := sorted(key for key, given in theirs.items() if given and key not in _KNOWN):
    raise ValueError(f'{PREPROCESSOR}: {", ".join(others)} is not supported')
  kind = str(theirs.get('image_processor_type') or theirs.get('feature_extractor_type'))
  shorter = kind.startswith(('CLIP', 'Bit'))  # for which a single size is that of the shorter side
  scale = _size(theirs, 'size', shorter)
  size = scale
  if value(theirs, 'do_center_crop', shorter or kind.startswith('DeiT')):
    size = _size(theirs, 'crop_size', False) or scale
  if len(size) != 2:
    raise ValueError(f'{PREPROCESSOR}: size={theirs.get("size")} gives images of several sizes')
  if not value(theirs, 'do_resize', True):
    raise ValueError(f'{PREPROCESSOR}: do_resize=False is not supported, only True is')
  factor = value(theirs, 'rescale_factor', 1 / 255) if value(theirs, 'do_rescale', True) else 1.0
  white = 255 * factor  # of which mean and std are shares
  found = dict(mean=(0.0,), std=(1 / white,))
  if value(theirs, 'do_normalize', True):
    mean, std = (value(theirs, f'image_{name}', [0.5]) for name in ('mean', 'std'))
    found = dict(mean=tuple(x / white for x in mean), std=tuple(x / white for x in std))
  resample = _RESAMPLE[value(theirs, 'resample', 3 if shorter or scale != size else 2)]
  found = {k: v[:1] if len(set(v)) == 1 else v for k, v in found.items()}
  return found | dict(height=size[0], width=size[1], scale=scale, resample=resample)


def _size(theirs, key, shorter):
  """(height, width) or (shorter side,) of a size in any of its forms."""
  size = theirs.get(key)
  if isinstance(size, Mapping):
    if {'height', 'width'} <= size.keys():
      return size['height'], size['width']
    if set(size) == {'shortest_edge'}:
      return (size['shortest_edge'],)
    raise ValueError(f'{PREPROCESSOR}: {key}={dict(size)} is not supported')
  size = value(theirs, key, 224)
  return (size,) if shorter else (size, size)
