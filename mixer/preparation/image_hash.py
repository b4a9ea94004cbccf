"""Images that look the same: a perceptual hash and its exact nearest search.

The hash is the difference hash (dHash) of rows and of columns: a grey image of
9 x 8 pixels has in each row 8 steps that go up or do not, one of 8 x 9 as many
in its columns; 128 bits in all. Copies that were re-encoded, resized or
brightened differ in few of them, different images in about half.
"""
import numpy as np
from PIL import Image

_PAIRS = 2**22   # compared at once


def hash_of(pixels_HWC, *, flip=False):
  """The hash uint64 [2] of an image uint8 [H, W, C], or its mirror image."""
  image = Image.fromarray(pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1
                          else pixels_HWC).convert('L')
  if flip:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  small = lambda *size: np.asarray(image.resize(size, Image.Resampling.LANCZOS))
  rows, columns = small(9, 8), small(8, 9)
  bits = (rows[:, 1:] > rows[:, :-1], columns[1:] > columns[:-1])
  return np.packbits(np.stack(bits)).view(np.uint64)


def nearest(hashes, others, within):
  """The nearest of others uint64 [m, 2] to each of hashes uint64 [n, 2].

  Returns:
    (bits in which they differ, which one it is, how many differ in at most
    `within` bits): int [n] each.
  """
  step = max(1, _PAIRS // len(others))
  parts = [[], [], []]
  for i in range(0, len(hashes), step):
    distances = sum(np.bitwise_count(
        hashes[i:i + step, None, j] ^ others[None, :, j]) for j in range(2))
    for part, found in zip(parts, (
        distances.min(1), distances.argmin(1), (distances <= within).sum(1))):
      part.append(found)
  return tuple(map(np.concatenate, parts))
