"""The perceptual hash, and the search for the nearest."""
import io

import numpy as np
import photos
import pictures
from PIL import Image
import pytest

from mixer.preparation import image_hash


def expected_bits(image: np.ndarray, flip: bool = False) -> list[bool]:
  """Returns the hash as a loop over neighbouring grey pixels."""
  grey = Image.fromarray(image[:, ::-1] if flip else image).convert('L')
  rows = np.asarray(grey.resize((9, 8), Image.LANCZOS)).tolist()
  columns = np.asarray(grey.resize((8, 9), Image.LANCZOS)).T.tolist()
  in_rows = [row[i + 1] > row[i] for row in rows for i in range(8)]
  in_columns = [columns[j][i + 1] > columns[j][i]
                for i in range(8) for j in range(8)]
  return in_rows + in_columns


@pytest.mark.parametrize('flip', (False, True))
def test_hash_bits_are_comparisons_of_neighbouring_pixels(flip):
  for seed in range(20):
    image = np.ascontiguousarray(photos.crop(seed))
    value = image_hash.difference_hash(image, flip=flip)
    bits = np.unpackbits(value.view(np.uint8))
    assert bits.tolist() == expected_bits(image, flip)


def test_hash_of_a_grey_image_needs_one_channel():
  grey = photos.crop(0)[..., :1]
  np.testing.assert_array_equal(
      image_hash.difference_hash(grey),
      image_hash.difference_hash(grey.repeat(3, -1)))


@pytest.mark.parametrize('pairs', (1, 50, 2**22))
def test_nearest_is_exact(monkeypatch, pairs):
  """The result does not depend on how many pairs are compared at once."""
  monkeypatch.setattr(image_hash, '_PAIRS_AT_ONCE', pairs)
  rng = np.random.default_rng(0)
  hashes, others = (rng.integers(0, 2**64, (n, 2), np.uint64) for n in (37, 23))
  others[5], others[9] = hashes[3], hashes[3]
  others[5, 1] ^= 0b1011
  others[9, 0] ^= 1 << 63
  expected = [[(int(a[0] ^ b[0]).bit_count() + int(a[1] ^ b[1]).bit_count(), i)
               for i, b in enumerate(others)] for a in hashes]
  distance, index, matches = image_hash.nearest(hashes, others, 60)
  assert list(zip(distance, index)) == [min(row) for row in expected]
  assert matches.tolist() == [sum(d <= 60 for d, _ in row) for row in expected]
  assert (distance[3], index[3]) == (1, 9)


COPIES = {
    'quality 40': lambda i: Image.open(io.BytesIO(
        pictures.encode(i, quality=40))),
    'smaller': lambda i: i.resize((320, 240), Image.BICUBIC),
    'larger': lambda i: i.resize((500, 375), Image.BICUBIC),
    'brighter': lambda i: i.point(lambda v: min(255, v * 1.1)),
    'cropped': lambda i: i.crop((2, 2, 398, 298))}


@pytest.mark.parametrize('change', COPIES)
def test_copies_are_near_and_other_images_are_not(change):
  images = [photos.crop(seed, 300, 400) for seed in range(30)]
  hashes = np.array([image_hash.difference_hash(image) for image in images])
  copies = [np.asarray(COPIES[change](Image.fromarray(image)).convert('RGB'))
            for image in images]
  distance, index, _ = image_hash.nearest(
      np.array([image_hash.difference_hash(copy) for copy in copies]), hashes,
      16)
  near = distance <= 16
  # At quality 40, one crop of grey sky has hardly an edge left.
  assert near.sum() >= 29 and (index[near] == np.flatnonzero(near)).all()


def test_mirror_images_are_not_near():
  images = [photos.crop(seed, 300, 400) for seed in range(30)]
  hashes, flipped = (np.array([
      image_hash.difference_hash(image, flip=flip) for image in images])
      for flip in (False, True))
  assert (image_hash.nearest(flipped, hashes, 16)[0] > 16).all()
