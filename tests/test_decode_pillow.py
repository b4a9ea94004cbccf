"""Decoding of image files of every kind, sound and damaged, with Pillow."""
from concurrent import futures
import io
import pathlib
import resource
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib

import numpy as np
from pictures import encode
from pictures import exif
from pictures import photos
from pictures import png_chunk
from PIL import Image
import pytest

from mixer.images import decode_pillow
from mixer.images import options
from mixer.images import tiff as tiff_files

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 23, 31   # odd, so that rows of a BMP are padded
LOSSY, CMYK = 2.5, 6.0   # levels of 255 that a file may lose, on average
UPRIGHT = {   # EXIF orientation -> how stored pixels become upright ones
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x[::-1].transpose(1, 0, 2),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


def png(rows, *extra, width=WIDTH, height=HEIGHT, depth=8, color=2):
  """A PNG file by hand, of the kinds that Pillow does not write.

  Args:
    rows: array [height, ...], each row the bytes of a line.
    extra: chunks before the pixels.
    width, height, depth, color: of the header; color 0 is grey, 2 RGB, 4 grey
      with alpha, 6 RGB with alpha.
  """
  header = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
  lines = b''.join(b'\0' + row.tobytes() for row in rows)
  return (b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', header) + b''.join(extra)
          + png_chunk(b'IDAT', zlib.compress(lines)) + png_chunk(b'IEND', b''))


def tiff(bands, *, planar=1, deflate=False):
  """A TIFF file by hand, in RGB and with bands of no stated meaning.

  Args:
    bands: uint8 or uint16 [height, width, bands].
    planar: 1, or 2 for one band after the other.
    deflate: whether to compress the pixels.
  """
  height, width, count = bands.shape
  parts = [bands] if planar == 1 else list(np.moveaxis(bands, -1, 0))
  parts = [part.astype(part.dtype.newbyteorder('<')).tobytes()
           for part in parts]
  parts = [zlib.compress(part) if deflate else part for part in parts]
  at = 1000 + np.cumsum([0, *map(len, parts)])
  tags = {256: [width], 257: [height], 258: [8 * bands.itemsize] * count,
          259: [8 if deflate else 1], 262: [2], 273: at[:-1], 277: [count],
          278: [height], 279: [len(part) for part in parts],
          284: [planar],
          338: [0] * (count - 3)}
  head = b'II*\0' + struct.pack('<IH', 8, len(tags))
  end = len(head) + 12 * len(tags) + 4
  values = b''
  for tag, value in tags.items():
    raw = struct.pack(f'<{len(value)}I', *value)
    head += struct.pack('<HHI', tag, 4, len(value)) + (
        raw if len(raw) == 4 else struct.pack('<I', end + len(values)))
    values += raw if len(raw) > 4 else b''
  return (head + bytes(4) + values).ljust(1000, b'\0') + b''.join(parts)


def on_white(color, alpha):
  """float [H, W, 3]: colours [H, W, C] laid on white."""
  alpha = alpha[..., None] / 255
  return np.broadcast_to(color * alpha + 255 * (1 - alpha), (*alpha.shape[:2],
                                                             3))


def grey_of(image):
  return np.asarray(Image.fromarray(image).convert('L'))


def _photo():
  whole = Image.fromarray(photos()[0])
  return np.asarray(whole.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


READERS = (decode_pillow.is_plain, decode_pillow.pixels, decode_pillow.as_png)
RNG = np.random.default_rng(0)
PHOTO = _photo()
GREY = grey_of(PHOTO)
TURNED = np.ascontiguousarray(PHOTO[::-1, ::-1])
PALETTE = Image.fromarray(PHOTO).quantize(64)
COLORS = np.array(PALETTE.getpalette()).reshape(-1, 3)[np.asarray(PALETTE)]
ALPHA = np.tile(np.linspace(0, 255, WIDTH).round().astype(np.uint8),
                (HEIGHT, 1))   # the first column is clear, the last opaque
BINARY = GREY > 127
GREY_16 = RNG.integers(0, 2**16, (HEIGHT, WIDTH), np.uint16)
RGB_16 = RNG.integers(0, 2**16, (HEIGHT, WIDTH, 3), np.uint16)
RGBA = np.dstack([PHOTO, ALPHA])


def three(grey):
  """Grey levels as RGB."""
  return np.repeat(np.asarray(grey)[..., None], 3, -1)


def high(array):
  return (array >> 8).astype(np.uint8)


def _with_one_color_clear():
  """(a photo with one transparent colour, the pixels as seen)."""
  clear = np.all(PHOTO == PHOTO[5, 7], -1)
  return (png(PHOTO, png_chunk(b'tRNS', struct.pack('>3H', *PHOTO[5, 7]))),
          np.where(clear[..., None], 255, PHOTO))


def _with_one_grey_clear():
  return (png(GREY, png_chunk(b'tRNS', struct.pack('>H', GREY[5, 7])), color=0),
          three(np.where(GREY == GREY[5, 7], 255, GREY)))


def _palette_with_alpha():
  alpha = np.arange(256) * 4 % 256
  return (encode(PALETTE, 'PNG', transparency=bytes(alpha.tolist())),
          on_white(COLORS, alpha[np.asarray(PALETTE)]))


def _gif_with_one_color_clear():
  clear = np.asarray(PALETTE) == 3
  return (encode(PALETTE, 'GIF', transparency=3),
          np.where(clear[..., None], 255, COLORS))


def _bmp_without_alpha():
  clear = np.dstack([PHOTO, np.zeros_like(ALPHA)])
  file = bytearray(encode(clear, 'BMP'))
  # Pillow writes no mask of alpha, and so reads none. Other tools write one.
  header = struct.pack('<IiiHHIIIIII', 108, WIDTH, HEIGHT, 1, 32, 3, 0, 0, 0, 0,
                       0) + struct.pack('<4I', 0xff0000, 0xff00, 0xff,
                                        0xff000000) + bytes(52)
  pixels = file[54:]
  return (b'BM' + struct.pack('<IHHI', 122 + len(pixels), 0, 0, 122) + header
          + pixels)


def _kinds():
  """{kind: (file, the pixels as seen, allowed mean difference, is it plain)}.
  """
  photo = Image.fromarray(PHOTO)
  good = dict(quality=95, subsampling=0)
  jpeg = lambda image=PHOTO, **more: encode(image, 'JPEG', **good, **more)
  animated = dict(save_all=True, append_images=[Image.fromarray(TURNED)])
  turned = UPRIGHT[6](PHOTO)
  seen = on_white(PHOTO, ALPHA)
  nibbles = RNG.integers(0, 256, (HEIGHT, WIDTH + 1 >> 1), np.uint8)
  fours = np.stack([nibbles >> 4, nibbles & 15], -1).reshape(HEIGHT, -1)
  return {
      'JPEG': (jpeg(), PHOTO, LOSSY, True),
      'JPEG, colours halved': (
          encode(PHOTO, 'JPEG', quality=95), PHOTO, 2 * LOSSY, True),
      'JPEG, grey': (jpeg(GREY), three(GREY), LOSSY, True),
      'JPEG, CMYK': (jpeg(photo.convert('CMYK')), PHOTO, CMYK, False),
      'JPEG, progressive': (jpeg(progressive=True), PHOTO, LOSSY, True),
      'JPEG, with restarts': (
          jpeg(restart_marker_blocks=2), PHOTO, LOSSY, True),
      'JPEG, of two pictures': (
          encode(PHOTO, 'MPO', **good, **animated), PHOTO, LOSSY, True),
      'JPEG, turned': (jpeg(exif=exif(6)), turned, LOSSY, False),
      'JPEG, with EXIF that asks for no turn': (
          jpeg(exif=exif(1)), PHOTO, LOSSY, True),
      'JPEG, with broken EXIF': (
          jpeg(exif=b'Exif\0\0garbage!'), PHOTO, LOSSY, True),
      'JPEG, with an undefined orientation': (
          jpeg(exif=exif(9)), PHOTO, LOSSY, False),
      'PNG': (encode(PHOTO, 'PNG'), PHOTO, 0, True),
      'PNG, grey': (encode(GREY, 'PNG'), three(GREY), 0, True),
      'PNG, grey of 4 bits': (
          png(nibbles, depth=4, color=0), three(fours[:, :WIDTH] * 17), 0,
          True),
      'PNG, of 1 bit': (encode(BINARY, 'PNG'), three(BINARY * 255), 0, False),
      'PNG, RGBA': (encode(RGBA, 'PNG'), seen, 1, False),
      'PNG, grey with alpha': (
          encode(Image.fromarray(np.dstack([GREY, ALPHA])), 'PNG'),
          on_white(GREY[..., None], ALPHA), 1, False),
      'PNG, palette': (encode(PALETTE, 'PNG'), COLORS, 0, False),
      'PNG, palette with alpha': (*_palette_with_alpha(), 1, False),
      'PNG, one colour clear': (*_with_one_color_clear(), 0, False),
      'PNG, one grey clear': (*_with_one_grey_clear(), 0, False),
      'PNG, grey of 16 bits': (
          encode(GREY_16, 'PNG'), three(high(GREY_16)), 0, False),
      'PNG, RGB of 16 bits': (
          png(RGB_16.astype('>u2'), depth=16), high(RGB_16), 0, False),
      'PNG, turned': (encode(PHOTO, 'PNG', exif=exif(6)), turned, 0, False),
      'GIF': (encode(PALETTE, 'GIF'), COLORS, 0, False),
      'GIF, animated': (encode(PALETTE, 'GIF', **animated), COLORS, 0, False),
      'GIF, one colour clear': (*_gif_with_one_color_clear(), 0, False),
      'BMP': (encode(PHOTO, 'BMP'), PHOTO, 0, False),
      'BMP, grey': (encode(GREY, 'BMP'), three(GREY), 0, False),
      'BMP, of 1 bit': (encode(BINARY, 'BMP'), three(BINARY * 255), 0, False),
      'BMP, palette': (encode(PALETTE, 'BMP'), COLORS, 0, False),
      'WebP, lossless': (
          encode(PHOTO, 'WEBP', lossless=True), PHOTO, 0, False),
      'WebP, lossy': (
          encode(PHOTO, 'WEBP', quality=95), PHOTO, 3 * LOSSY, False),
      'WebP, with alpha': (
          encode(RGBA, 'WEBP', lossless=True, exact=True), seen, 1, False),
      'WebP, animated': (
          encode(PHOTO, 'WEBP', lossless=True, **animated), PHOTO, 0, False),
      'TIFF': (encode(PHOTO, 'TIFF'), PHOTO, 0, False),
      'TIFF, LZW': (encode(PHOTO, 'TIFF', compression='tiff_lzw'), PHOTO, 0,
                    False),
      'TIFF, with alpha': (encode(RGBA, 'TIFF'), seen, 1, False),
      'TIFF, grey of 16 bits': (
          encode(GREY_16, 'TIFF'), three(high(GREY_16)), 0, False),
      'TIFF, floats': (encode(GREY / np.float32(255), 'TIFF'), three(GREY), 0,
                       False),
      'TIFF, turned': (encode(PHOTO, 'TIFF', tiffinfo={274: 6}), turned, 0,
                       False),
      'AVIF': (encode(PHOTO, 'AVIF', quality=95), PHOTO, 2 * LOSSY, False),
      'BMP, alpha all zero': (_bmp_without_alpha(), PHOTO, 0, False),
      'WebP, turned': (encode(PHOTO, 'WEBP', lossless=True, exif=exif(6)),
                      turned, 0, False),
  }


KINDS = _kinds()


def tensorflow(file, channels=3):
  """The first picture of a file as TensorFlow decodes it, or None."""
  import tensorflow as tf
  try:
    return tf.io.decode_image(
        file, channels=channels, expand_animations=False).numpy()
  except tf.errors.OpError:
    return None


def assert_tensorflow_agrees(file, ours):
  """Checks pixels against TensorFlow's.

  Of a JPEG they are equal if TensorFlow uses the exact transform; with its
  default they are equal within a few levels.
  """
  import tensorflow as tf
  if file[:2] != b'\xff\xd8':
    np.testing.assert_array_equal(ours, tensorflow(file))
    return
  exact = tf.io.decode_jpeg(file, channels=3, dct_method='INTEGER_ACCURATE')
  np.testing.assert_array_equal(ours, exact)
  off, most = distance(ours, tensorflow(file))
  assert off < 3 and most <= 16


def distance(one, other):
  """(mean, largest) difference in levels of two images of one shape."""
  assert one.shape == other.shape
  difference = np.abs(one.astype(float) - other)
  return difference.mean(), difference.max()


def refused(what, *args, **kwargs):
  """The reason of the BadImage that `what` raises: one short line."""
  with pytest.raises(decode_pillow.BadImage) as error:
    what(*args, **kwargs)
  reason = str(error.value)
  assert 0 < len(reason) <= 200 and reason.splitlines() == [reason]
  return reason


# Pixels.


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_is_decoded_upright_and_opaque_with_8_bits(kind):
  """Three channels, and the first of several pictures."""
  file, expected, mean, _ = KINDS[kind]
  out = decode_pillow.pixels(file)
  assert out.dtype == np.uint8 and out.shape == (*expected.shape[:2], 3)
  if not mean:
    np.testing.assert_array_equal(out, expected)
  off, most = distance(out, expected)
  assert off <= mean
  assert most <= 1 or mean > 1   # alpha is but rounded


@pytest.mark.parametrize('kind', KINDS)
def test_one_channel_is_the_luminance_of_three(kind):
  file, *_ = KINDS[kind]
  out = decode_pillow.pixels(file, channels=1)
  assert out.dtype == np.uint8 and out.shape[2] == 1
  weights = np.array([.299, .587, .114])   # ITU-R 601, as Pillow's
  assert distance(out[..., 0], decode_pillow.pixels(file) @ weights)[1] <= 1


def sbit(*bits):
  return png_chunk(b'sBIT', bytes(bits))


@pytest.mark.parametrize('name,file,expected', (
    ('12 bits in a grey PNG', encode(GREY_16 >> 4, 'PNG'), GREY_16 >> 8),
    ('12 bits in a grey TIFF', encode(GREY_16 >> 4, 'TIFF'), GREY_16 >> 8),
    ('12 bits in a PNG in colour',
     png((RGB_16 >> 4).astype('>u2'), depth=16), RGB_16 >> 8),
    ('8 bits in a PNG in colour',
     png(PHOTO.astype('>u2'), depth=16), PHOTO),
    ('14 bits in a PNG with alpha',
     png(np.dstack([RGB_16 >> 2, GREY_16 | 65535]).astype('>u2'), depth=16,
         color=6), RGB_16 >> 8),
    ('10 bits in a grey PNG with alpha',
     png(np.dstack([GREY_16 >> 6, GREY_16 | 65535]).astype('>u2'), depth=16,
         color=4), GREY_16 >> 8),
    ('a dark PNG that says 12 bits',
     png((GREY_16 >> 8).astype('>u2'), sbit(12), depth=16, color=0),
     GREY_16 >> 12),
    ('a PNG that says 12 bits, scaled to 16',
     png(GREY_16.astype('>u2'), sbit(12), depth=16, color=0), GREY_16 >> 8),
    ('a dark TIFF that says 12 bits',
     encode(GREY_16 >> 8, 'TIFF', tiffinfo={281: 4095}), GREY_16 >> 12),
    ('32 bits in a TIFF',
     encode(Image.fromarray(GREY_16.astype(np.int32)), 'TIFF'), GREY_16 >> 8),
))
@pytest.mark.parametrize('upright', (True, False))
def test_samples_of_more_than_8_bits_are_scaled_by_their_range(
    name, file, expected, upright):
  """Also for data sets that ignore EXIF. No 12 bits are read as 0 to 15."""
  del name
  expected = three(expected) if expected.ndim == 2 else expected
  np.testing.assert_array_equal(
      decode_pillow.pixels(file, upright=upright), expected)
  assert not decode_pillow.is_plain(file, upright=upright)


BANDS = np.random.default_rng(0).integers(0, 2**16, (9, 14, 7), np.uint16)


@pytest.mark.parametrize('deflate', (False, True))
@pytest.mark.parametrize('bits', (8, 12, 16))
@pytest.mark.parametrize('count', (3, 4))
def test_a_tiff_in_colour_is_scaled_and_a_band_that_may_be_a_mask_is_left_out(
    count, bits, deflate, caplog):
  tiff_files._say_once.cache_clear()
  caplog.set_level('WARNING', logger='mixer')
  bands = BANDS[..., :count] >> 16 - bits
  file = tiff(bands.astype(np.uint8 if bits == 8 else np.uint16),
              deflate=deflate)
  np.testing.assert_array_equal(
      decode_pillow.pixels(file), bands[..., :3] >> bits - 8)
  assert ('images of 4 bands: 3 are read' in caplog.text) == (count == 4)


@pytest.mark.parametrize('file, reason', (
    (tiff(BANDS[..., :5].astype(np.uint8)), '5 bands, of which 3 would'),
    (tiff(BANDS[..., :6].astype(np.uint8), deflate=True), '6 bands, of which'),
    (tiff(BANDS[..., :5]), 'a TIFF image of a kind'),
    (tiff(BANDS.astype(np.uint8)), 'a TIFF image of a kind'),
    (tiff(BANDS[..., :3], planar=2), 'one after the other')))
def test_a_tiff_of_which_bands_would_be_lost_or_wrong_is_refused(file, reason):
  """The reason says how to give images of many bands."""
  for what in (decode_pillow.is_plain, decode_pillow.pixels):
    said = refused(what, file)
    assert reason in said and ('arrays:' in said or 'convert' in said)



@pytest.mark.parametrize('samples,reason', (
    (GREY.astype(np.int32) - 5, 'samples from -5'),
    (GREY.astype(np.float32) * 9, 'expected floats from 0 to 1'),
    (np.full((3, 3), np.nan, np.float32), 'expected floats from 0 to 1')))
def test_samples_without_a_known_scale_are_refused(samples, reason):
  samples = samples - samples.min() - 5 if samples.dtype == np.int32 else samples
  assert reason in refused(
      decode_pillow.pixels, encode(Image.fromarray(samples), 'TIFF'))


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('form', ('JPEG', 'PNG', 'WEBP'))
def test_exif_rotation_is_applied_unless_upright_is_false(form, orientation):
  """All eight EXIF orientations, to the pixel."""
  settings = dict(JPEG=dict(quality=95), WEBP=dict(lossless=True)).get(form, {})
  stored = decode_pillow.pixels(encode(PHOTO, form, **settings))
  file = encode(PHOTO, form, exif=exif(orientation), **settings)
  np.testing.assert_array_equal(
      decode_pillow.pixels(file), UPRIGHT[orientation](stored))
  np.testing.assert_array_equal(
      decode_pillow.pixels(file, upright=False), stored)
  np.testing.assert_array_equal(
      decode_pillow.pixels(file, channels=1)[..., 0],
      grey_of(np.ascontiguousarray(UPRIGHT[orientation](stored))))
  assert decode_pillow.is_plain(file) == (orientation == 1 and form != 'WEBP')


def test_the_eight_orientations_give_different_images():
  """The test above can therefore tell them apart."""
  seen = {(turn(PHOTO).shape, turn(PHOTO).tobytes())
          for turn in UPRIGHT.values()}
  assert len(seen) == 8


def test_a_progressive_jpeg_has_the_same_pixels():
  """Its coefficients are the same, in another order."""
  one, other = (decode_pillow.pixels(encode(PHOTO, 'JPEG', progressive=p))
                for p in (False, True))
  np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('kind', [k for k in KINDS if 'alpha' in k
                                  or 'RGBA' in k])
def test_transparent_pixels_become_white_and_opaque_ones_stay(kind):
  file, expected, *_ = KINDS[kind]
  out = decode_pillow.pixels(file)
  white = np.all(np.asarray(expected) == 255, -1)
  assert white.any() and np.all(out[white] == 255)
  if 'palette' not in kind:
    np.testing.assert_array_equal(out[:, -1], expected[:, -1])


@pytest.mark.parametrize('kind,stored', (
    ('PNG, RGBA', PHOTO), ('PNG, grey with alpha', three(GREY)),
    ('PNG, palette with alpha', COLORS), ('PNG, one colour clear', PHOTO),
    ('PNG, one grey clear', three(GREY)), ('GIF, one colour clear', COLORS),
    ('WebP, with alpha', PHOTO), ('PNG, turned', PHOTO),
    ('WebP, turned', PHOTO)))
def test_rotation_and_transparency_can_be_ignored(kind, stored):
  """The colours are then those stored, whatever the alpha channel."""
  np.testing.assert_array_equal(
      decode_pillow.pixels(KINDS[kind][0], upright=False), stored)


@pytest.mark.parametrize('kind', [
    k for k in KINDS if k.startswith(('JPEG', 'PNG'))])
def test_without_upright_the_pixels_are_those_of_tensorflow(kind):
  """A TFDS set therefore looks the same on the device and decoded on the host.
  """
  file, *_ = KINDS[kind]
  assert_tensorflow_agrees(file, decode_pillow.pixels(file, upright=False))


# Plain files, which every decoder decodes alike.


@pytest.mark.parametrize('kind', KINDS)
def test_plain_files_are_decoded_alike_by_tensorflow(kind):
  """Only the rounding of the two JPEG decoders differs."""
  file, _, _, plain = KINDS[kind]
  assert decode_pillow.is_plain(file) is plain
  if plain:
    assert_tensorflow_agrees(file, decode_pillow.pixels(file))


@pytest.mark.parametrize('kind', (
    'JPEG, turned', 'PNG, RGBA', 'PNG, grey with alpha',
    'PNG, palette with alpha',
    'PNG, one colour clear', 'PNG, one grey clear', 'PNG, turned',
    'GIF, one colour clear', 'BMP, of 1 bit', 'BMP, palette',
    'WebP, with alpha', 'WebP, turned'))
def test_some_files_that_are_not_plain_are_decoded_differently_by_tensorflow(
    kind):
  """The test above can therefore fail."""
  file, *_ = KINDS[kind]
  ours, theirs = decode_pillow.pixels(file), tensorflow(file)
  assert theirs is None or ours.shape != theirs.shape or (
      distance(ours, theirs)[1] > 16)


@pytest.mark.parametrize('settings', (
    dict(quality=30), dict(quality=75), dict(quality=95, subsampling=0),
    dict(quality=90, subsampling=1), dict(quality=90, subsampling=2)))
@pytest.mark.parametrize('height,width', ((1, 1), (1, 40), (16, 16), (37, 53)))
def test_plain_photos_of_every_shape_are_decoded_alike_by_tensorflow(
    settings, height, width):
  """They have full or halved colours, and whole or partial blocks."""
  photo = Image.fromarray(photos()[1])
  file = encode(photo.resize((width, height)), 'JPEG', **settings)
  assert decode_pillow.is_plain(file)
  assert_tensorflow_agrees(file, decode_pillow.pixels(file))


# Files for TensorFlow.


@pytest.mark.parametrize('channels', (1, 3))
@pytest.mark.parametrize('kind', KINDS)
def test_as_png_keeps_every_pixel(kind, channels):
  """TensorFlow reads the result of `as_png` as `pixels`, for every kind."""
  file, *_ = KINDS[kind]
  expected = decode_pillow.pixels(file, channels=channels)
  file = decode_pillow.as_png(file, channels=channels)
  np.testing.assert_array_equal(tensorflow(file, channels), expected)
  np.testing.assert_array_equal(
      decode_pillow.pixels(file, channels=channels), expected)


@pytest.mark.parametrize('channels', (1, 3))
@pytest.mark.parametrize('height,width', (
    (1, 1), (1, 2), (2, 3), (5, 4), (3, 5), (1, 300), (300, 1)))
def test_as_png_keeps_every_pixel_of_images_of_every_width(
    height, width, channels):
  """The images include a single pixel, a single row and a single column."""
  image = RNG.integers(0, 256, (height, width, 4), np.uint8)
  file = encode(image, 'PNG')
  np.testing.assert_array_equal(
      tensorflow(decode_pillow.as_png(file, channels=channels), channels),
      decode_pillow.pixels(file, channels=channels))


@pytest.mark.parametrize('channels', (1, 3))
def test_the_blank_image_can_be_read_with_one_and_three_channels(channels):
  """It fills rows that do not count, of grey sets too."""
  np.testing.assert_array_equal(
      tensorflow(decode_pillow.BLANK, channels), np.zeros((1, 1, channels)))


# Files that are no images, and damaged images.


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_that_is_cut_short_is_refused(kind):
  """It is cut at every tenth of its length. A cut that loses nothing that is
  shown, such as later pictures of an animation, may be accepted."""
  file, *_ = KINDS[kind]
  whole, refusals = decode_pillow.pixels(file), 0
  for tenth in range(10):
    cut = file[:len(file) * tenth // 10]
    try:
      np.testing.assert_array_equal(decode_pillow.pixels(cut), whole)
      decode_pillow.as_png(cut), decode_pillow.is_plain(cut)
    except decode_pillow.BadImage:
      refusals += 1
      refused(decode_pillow.pixels, cut)
      refused(decode_pillow.as_png, cut)
      refused(decode_pillow.pixels, cut, upright=False, channels=1)
      try:
        decode_pillow.is_plain(cut)   # reads the header, which may be whole
      except decode_pillow.BadImage:
        refused(decode_pillow.is_plain, cut)
  several = 'animated' in kind or 'two' in kind
  assert refusals >= (4 if several else 9)


@pytest.mark.parametrize('kind', [k for k in KINDS if k.startswith('JPEG')
                                  and 'two' not in k])
def test_a_jpeg_without_its_end_marker_is_refused(kind):
  """It lacks the last two bytes, which are the marker, or the last one."""
  file, *_ = KINDS[kind]
  assert file[-2:] == b'\xff\xd9'
  refused(decode_pillow.pixels, file[:-2])
  refused(decode_pillow.pixels, file[:-1])


@pytest.mark.parametrize('name,file,reason', (
    ('empty', b'', 'empty'),
    ('web page', b'<html><title>404</title>\n</html>\n', 'but a web page'),
    ('text', b'404\n', 'not an image'),
    ('pointer', b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    ('HEIC', b'\0\0\0\x18ftypheic' + bytes(99), 'an HEIC image, which'),
    ('JPEG 2000', encode(PHOTO, 'JPEG2000'), 'a JPEG 2000 image, which'),
    ('JPEG XL', b'\xff\x0a' + bytes(99), 'a JPEG XL image, which'),
    ('zip', b'PK\x05\x06' + bytes(18), 'not an image'),
    ('zeros', bytes(4096), 'not an image'),
    ('PPM', encode(PHOTO, 'PPM'), 'not an image'),
    ('ICO', encode(PHOTO, 'ICO'), 'not an image'),
    ('JPEG marker', b'\xff\xd8\xff', 'not an image'),
    ('PNG marker', b'\x89PNG\r\n\x1a\n', 'not an image'),
))
def test_other_files_are_refused(name, file, reason):
  del name
  for what in READERS:
    assert reason in refused(what, file)


def _with_size(kind, width, height):
  """A file of a kind whose header claims another size."""
  file = bytearray(KINDS[kind][0])
  if kind == 'JPEG':
    at = file.index(b'\xff\xc0') + 5
    file[at:at + 4] = struct.pack('>HH', height, width)
  elif kind == 'GIF':
    at = file.index(b'\x2c', 13 + 3 * 64) + 5   # the picture's, then the whole
    file[at:at + 4] = file[6:10] = struct.pack('<HH', width, height)
  elif kind == 'BMP':
    file[18:26] = struct.pack('<ii', width, height)
  elif kind == 'WebP, animated':
    size = struct.pack('<II', width - 1, height - 1)
    file[24:30] = size[:3] + size[4:7]
  else:
    return png(PHOTO[:1], width=width, height=height)
  return bytes(file)


@pytest.mark.parametrize('kind', (
    'JPEG', 'PNG', 'GIF', 'BMP', 'WebP, animated'))
def test_a_decompression_bomb_is_refused_by_its_header(kind):
  """30,000 x 30,000 pixels, 2.7 GB, are never allocated."""
  bomb = _with_size(kind, 30_000, 30_000)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for what in READERS:
    refused(what, bomb)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 2**19   # KB


@pytest.mark.parametrize('kind,limit,words', (
    ('JPEG', 713, '712'), ('PNG', 713, '712'), ('GIF', 713, '712'),
    ('BMP', 713, '712'), ('WebP, lossless', 1569, '712 for WEBP'),
    ('AVIF', 1070, '712 for AVIF'),
    ('PNG, RGBA', 785, '712 with transparency')))
def test_the_caller_sets_the_largest_number_of_pixels(kind, limit, words):
  """An image with that many pixels passes, one with more does not; the reason
  has both numbers. Kinds that take more memory may have fewer pixels."""
  file, *_ = KINDS[kind]
  for what in READERS:
    what(file, max_pixels=limit)
    reason = refused(what, file, max_pixels=limit - 1)
    assert '31 x 23' in reason and words in reason


def test_a_palette_that_is_missing_makes_a_bad_image():
  file, *_ = KINDS['PNG, palette']
  start = file.index(b'PLTE') - 4
  length, = struct.unpack('>I', file[start:start + 4])
  file = file[:start] + file[start + 12 + length:]
  for what in READERS:
    assert refused(what, file)


def test_large_images_take_turns_and_shrink():
  """Six threads decode images of 64 million pixels and of 32 million, which
  together would hold 2.7 GB; the process grows by less than 1 GiB."""
  code = """if True:
      import concurrent.futures, io, resource
      import numpy as np
      from PIL import Image
      from mixer.images import decode_pillow
      def file(side):
        out = io.BytesIO()
        Image.new('RGB', (side, side), (9, 99, 200)).save(
            out, 'PNG', compress_level=1)
        return out.getvalue()

      shape = lambda pixels: (pixels.shape, (pixels[::99] == (9, 99, 200)).all())
      files = [file(8000)] * 2 + [file(5700)] * 6
      peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      before = peak()
      with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(
            lambda file: decode_pillow.pixels(file, then=shape), files))
      assert found == [((2667, 2667, 3), True)] * 2 + [
          ((5700, 5700, 3), True)] * 6, found
      print(peak() - before)"""
  run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                       capture_output=True, timeout=200)
  assert run.returncode == 0, run.stderr
  assert int(run.stdout) < 2**20   # KB


def test_threads_wait_until_enough_is_free():
  """Those that ask for more than there is are alone."""
  budget, lock, held, most = decode_pillow.Budget(10), threading.Lock(), [], []

  def work(count):
    with budget.taken(count):
      with lock:
        held.append(count)
        most.append(sum(held))
      time.sleep(0.005)
      with lock:
        held.remove(count)

  with futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(work, [4, 4, 4, 4, 25, 3, 3, 3, 3, 25, 4, 4]))
  assert len(most) == 12 and not held
  assert all(total <= 10 or total == 25 for total in most)


def test_what_was_taken_is_given_back_after_an_error():
  budget = decode_pillow.Budget(10)
  for _ in range(2):
    with pytest.raises(ZeroDivisionError), budget.taken(7):
      raise ZeroDivisionError


@pytest.mark.parametrize('how', (
    dict(), dict(lossless=True), dict(exif=exif()), dict(quality=1)))
def test_the_size_of_webp_is_in_its_header(how):
  """Small ones do not wait for their turn."""
  out = io.BytesIO()
  Image.new('RGB', (300, 2000)).save(out, 'WEBP', **how)
  assert decode_pillow._webp_size(out.getvalue()) == (300, 2000)
  assert decode_pillow._webp_size(
      b'no image of this kind, but of 30 bytes') == (0, 0)


@pytest.mark.parametrize('kind', (
    'JPEG', 'PNG', 'PNG, palette', 'WebP, lossless', 'PNG, grey of 16 bits'))
def test_a_large_image_is_averaged_over_squares(kind, monkeypatch):
  """It is not plain, so that all readers see the same pixels."""
  file, expected, *_ = KINDS[kind]
  for name in ('LARGE', 'SHRUNK'):
    monkeypatch.setattr(options, name, HEIGHT * WIDTH // 3)
  out = decode_pillow.pixels(file)
  assert out.shape == (12, 16, 3) and not decode_pillow.is_plain(file)
  means = np.asarray(expected, float)[:22, :30].reshape(11, 2, 15, 2, 3).mean(
      (1, 3))
  assert distance(out[:11, :15], means)[0] < 3


def test_the_limit_may_be_above_that_of_pillow():
  """A panorama of 200 million pixels, if the caller allows it."""
  file = png(np.zeros((1, 1), np.uint8), width=20_000, height=10_000, color=0)
  refused(decode_pillow.is_plain, file)
  assert 'truncated' in refused(decode_pillow.pixels, file, max_pixels=2**28)


@pytest.mark.parametrize('kind', (
    'JPEG', 'JPEG, turned', 'JPEG, CMYK', 'JPEG, progressive', 'PNG',
    'PNG, palette with alpha', 'GIF, animated', 'BMP, palette',
    'WebP, lossless', 'WebP, animated'))
def test_damaged_files_give_an_image_or_a_reason(kind):
  """There is never another exception, whichever bytes are wrong."""
  file, *_ = KINDS[kind]
  rng = np.random.default_rng(len(file))
  refusals = 0
  for _ in range(60):
    damaged = bytearray(file)
    for at in rng.integers(0, len(file), rng.integers(1, 5)):
      damaged[at] = rng.integers(256)
    for what in (decode_pillow.is_plain, decode_pillow.pixels):
      try:
        with warnings.catch_warnings():
          warnings.simplefilter('ignore')   # Pillow's, of EXIF
          what(bytes(damaged), max_pixels=10**6)
      except decode_pillow.BadImage as e:
        refusals += 1
        assert str(e).splitlines() == [str(e)]
  assert refusals


def test_one_line_joins_the_lines_of_an_error():
  """An error without text gives its type."""
  assert decode_pillow.one_line(ValueError('a\n  b\tc\r\n')) == 'a b c'
  assert decode_pillow.one_line(OSError()) == decode_pillow.one_line(
      OSError(' \n')) == 'OSError'
  assert len(decode_pillow.one_line(ValueError('x ' * 500))) <= 200
