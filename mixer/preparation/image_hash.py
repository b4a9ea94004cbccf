"""Finds images that look the same: a perceptual hash and exact nearest search.

The hash is the difference hash (dHash) along rows and along columns. The image
is reduced to 9 x 8 grey pixels, which gives 8 rows of 8 bits (is a pixel
brighter than its left neighbour?), and to 8 x 9 grey pixels, which gives 8
columns of 8 bits (brighter than the one above?): 128 bits in all. Copies that
were re-encoded, resized or brightened differ in few bits; unrelated images
differ in about half of them.
"""
import numpy as np
from PIL import Image

_PAIRS_AT_ONCE = 2**22   # keeps the memory of `nearest` below 50 MB


def difference_hash(pixels_HWC: np.ndarray, *, flip: bool = False
                    ) -> np.ndarray:
  """Returns the hash of an image, uint64 [2].

  Args:
    pixels_HWC: uint8 [height, width, 1 or 3].
    flip: whether to hash the mirror image instead.
  """
  image = Image.fromarray(pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1
                          else pixels_HWC).convert('L')
  if flip:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  reduced = lambda *size: np.asarray(
      image.resize(size, Image.Resampling.LANCZOS))
  rows, columns = reduced(9, 8), reduced(8, 9)
  bits = (rows[:, 1:] > rows[:, :-1], columns[1:] > columns[:-1])
  return np.packbits(np.stack(bits)).view(np.uint64)


def nearest(hashes: np.ndarray, others: np.ndarray, max_distance: int
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the nearest of `others` to each hash, by Hamming distance.

  It compares every pair, so the result is exact.

  Args:
    hashes: uint64 [n, 2].
    others: uint64 [m, 2], m > 0.
    max_distance: the largest number of differing bits that counts as a match.

  Returns:
    (the distance to the nearest, its index in `others`, how many of `others`
    are within max_distance): int [n] each.
  """
  step = max(1, _PAIRS_AT_ONCE // len(others))
  distances, indices, matches = [], [], []
  for i in range(0, len(hashes), step):
    some = hashes[i:i + step]
    bits = (np.bitwise_count(some[:, None, 0] ^ others[None, :, 0])
            + np.bitwise_count(some[:, None, 1] ^ others[None, :, 1]))
    distances.append(bits.min(1))
    indices.append(bits.argmin(1))
    matches.append((bits <= max_distance).sum(1))
  return (np.concatenate(distances), np.concatenate(indices),
          np.concatenate(matches))
