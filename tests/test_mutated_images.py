"""Image files with random damage: an image or a reason, in time and memory.

Run more of them, or go on where a run ended, with

    MUTATED_IMAGES=10000:20000 ./launch/test.sh --slow tests/test_mutated_images.py

which takes the seeds 10,000 to 19,999. Each seed is one file.
"""
import os
import resource
import time
import warnings

import numpy as np
from pictures import encode
from pictures import photos
from PIL import Image
import pytest
from test_decode_pillow import KINDS

from mixer.images import decode_pillow

SEEDS = range(*map(int, os.environ.get('MUTATED_IMAGES', '0:10000').split(':')))
SECONDS, KILOBYTES = 10, 2**20


def seeds_of_files():
  """The files that are damaged, of every format and of several sizes."""
  photo = Image.fromarray(photos()[0])
  files = [file for file, *_ in KINDS.values()]
  for form in ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'AVIF'):
    files.append(encode(photo.resize((200, 150)), form))
  for compression in ('tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg'):
    files.append(encode(photo.resize((90, 70)), 'TIFF',
                        compression=compression))
  return files


def mutated(file, rng):
  """A file with bytes changed, cut out, put in twice, or its end lost."""
  out = bytearray(file)
  for _ in range(rng.integers(1, 4)):
    # Half of the damage is in the header.
    most = min(len(out), 64) if rng.random() < .5 else len(out)
    at, kind = int(rng.integers(most)), rng.integers(5)
    length = int(rng.integers(1, 9))
    if kind == 0:
      out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      out[at:at + length] = rng.bytes(length)
    elif kind == 2:
      out[at:at + length] = bytes([int(rng.integers(2)) * 255]) * length
    elif kind == 3:
      out[at:at] = out[at:at + 9 * length]
    else:
      del out[at:at + (length if rng.random() < .8 else len(out))]
    if not out:
      break
  return bytes(out)


@pytest.mark.slow   # 10,000 files
def test_damaged_files_give_an_image_or_a_reason_in_time_and_memory():
  """No other exception, none takes 10 seconds, and all together add less than
  1 GiB to the process."""
  files = seeds_of_files()
  peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for file in files:
    decode_pillow.pixels(file)
  before, refused = peak(), 0
  for seed in SEEDS:
    rng = np.random.default_rng(seed)
    file = mutated(files[seed % len(files)], rng)
    began = time.monotonic()
    for what in (decode_pillow.is_plain, decode_pillow.pixels):
      try:
        with warnings.catch_warnings():
          warnings.simplefilter('ignore')   # Pillow's, of EXIF
          what(file)
      except decode_pillow.BadImage as e:
        refused += what is decode_pillow.pixels
        assert str(e).splitlines() == [str(e)], seed
      except Exception as e:
        raise AssertionError(f'seed {seed}') from e
    assert time.monotonic() - began < SECONDS, seed
    assert peak() - before < KILOBYTES, seed
  assert 0 < refused < len(SEEDS)
