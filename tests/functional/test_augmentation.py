"""Laws of random changes to images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from transformer.functional import augmentation


@pytest.fixture
def images(rng):
  return jnp.asarray(rng.uniform(size=(64, 6, 8, 3)), jnp.float32)


ALL = {
  'flip': augmentation.flip,
  'shift': lambda key, x: augmentation.shift(key, x, 2),
  'turn': lambda key, x: augmentation.turn(key, x, 20.0, 0.2),
  'erase': lambda key, x: augmentation.erase(key, x, 3),
  'recolor': lambda key, x: augmentation.recolor(key, x, 0.4),
}


@pytest.mark.parametrize('name', ALL)
def test_each_image_is_changed_in_its_own_way_by_the_key_alone(name, key, images, close):
  change = ALL[name]
  same = jnp.broadcast_to(images[:1], images.shape)
  found = change(key, same)
  assert found.shape == images.shape and found.dtype == images.dtype
  kinds = np.unique(np.round(np.asarray(found).reshape(len(found), -1), 5), axis=0)
  assert len(kinds) == 2 if name == 'flip' else len(kinds) > 15
  np.testing.assert_array_equal(found, change(key, same))
  close(jax.jit(change)(key, same), found)
  assert not np.array_equal(found, change(jax.random.key(1), same))


def test_nothing_is_changed_at_strength_0(key, images):
  for found in (
    augmentation.shift(key, images, 0),
    augmentation.turn(key, images, 0.0, 0.0),
    augmentation.erase(key, images, 0),
    augmentation.recolor(key, images, 0.0),
  ):
    np.testing.assert_array_equal(found, images)


def test_flip_mirrors_columns_of_about_half(key, images):
  found = np.asarray(augmentation.flip(key, images))
  mirrored = (found == np.asarray(images)[:, :, ::-1]).all(axis=(1, 2, 3))
  left = (found == np.asarray(images)).all(axis=(1, 2, 3))
  assert (mirrored ^ left).all() and 16 < mirrored.sum() < 48


def test_shift_is_one_of_all_moves(key, images):
  found = np.asarray(augmentation.shift(key, images, 1))
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  moves = set()
  for i, image in enumerate(found):
    (move,) = [
      (y, x)
      for y in range(3)
      for x in range(3)
      if np.array_equal(image, padded[i, y : y + 6, x : x + 8])
    ]
    moves.add(move)
  assert len(moves) == 9


def test_erased_is_one_square_of_the_mean(key, images, close):
  found = np.asarray(augmentation.erase(key, images, 3))
  changed = (found != np.asarray(images)).any(axis=-1)
  whole = 0
  for image, before, mask in zip(found, np.asarray(images), changed, strict=True):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert mask[np.ix_(rows, columns)].all() and mask.sum() == len(rows) * len(columns)
    assert np.ptp(rows) <= 2 and np.ptp(columns) <= 2
    close(image[mask], np.broadcast_to(before.mean(axis=(0, 1)), image[mask].shape), 'float32')
    whole += mask.sum() == 9
  assert whole > 20


def test_turn_equals_scipy(key, images, close):
  """A rotation by any angle that was drawn; a disc stays where it is."""
  found = augmentation.turn(key, images, 30.0, 0.0)
  turned, _ = jax.random.split(key)
  angles = np.radians(30) * np.asarray(
    jax.random.uniform(turned, (len(images), 1, 1), minval=-1, maxval=1)
  )
  for image, before, angle in zip(found[:4], np.asarray(images), angles[:, 0, 0], strict=False):
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.array([2.5, 3.5])
    for c in range(3):
      expected = scipy.ndimage.affine_transform(
        before[..., c], matrix, center - matrix @ center, order=1, mode='nearest'
      )
      close(image[..., c], expected)
  zoomed = augmentation.turn(key, images, 0.0, 0.5)
  assert not np.allclose(zoomed, images) and zoomed.min() >= images.min() - 1e-6
  even = jnp.full((2, 6, 8, 1), 0.3)
  close(augmentation.turn(key, even, 45.0, 0.3), even)


def test_recolor_of_gray_stays_gray_and_order_of_brightness_is_kept(key):
  gray = jnp.broadcast_to(jnp.linspace(0.1, 0.9, 8)[None, None, :, None], (16, 6, 8, 3))
  found = np.asarray(augmentation.recolor(key, gray, 0.5))
  assert np.ptp(found, axis=-1).max() < 1e-6
  assert (np.diff(found[:, 0, :, 0], axis=1) > 0).all()
  assert np.ptp(found.mean(axis=(1, 2, 3))) > 0.1
