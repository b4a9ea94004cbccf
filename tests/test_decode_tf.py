"""Decoding on the host: which files are refused, which pixels come, and in
which order."""
import itertools
import os
import random
import resource
import threading
import time

import numpy as np
from pictures import encode
from pictures import photos
from PIL import Image
import pytest

from mixer.core import errors
from mixer.images import decode_pillow
from mixer.images import decode_tf
from mixer.images import options

CROPS = list(options.CROPS)
WHOLE = [crop for crop in CROPS if crop != 'inception']   # seen by these
EPSILON = 1e-3   # of a level: two orders of the same float32 sums


def keys_of(count, seed=0):
  """int32 [count, 2]: random keys of examples."""
  return np.random.default_rng(seed).integers(
      -2**31, 2**31, (count, 2), np.int32)


def cut(files, size, crop, *, keys=None, channels=3, interpolation=None,
        **settings):
  """uint8 [n, *size, channels]: encoded files as `batches` crops them."""
  keys = keys_of(len(files)) if keys is None else keys
  load = lambda number, lo, hi: (files[lo:hi], keys[lo:hi], {})
  batch, = decode_tf.batches(
      load, {}, first=0, last=1, batch_size=len(files), image_size=size,
      channels=channels, crop=crop,
      interpolation=interpolation or options.CROPS[crop], **settings)
  out = batch['image']
  assert out.shape == (len(files), *size, channels) and list(batch) == ['image']
  assert out.dtype == np.uint8
  return out


def place(height, width, form='PNG', **settings):
  """A file whose red is the row and whose green is the column of a pixel.

  If there are more than 256 rows or columns, the level is their share of the
  whole.
  """
  y, x = np.mgrid[:height, :width]
  level = lambda i, n: i if n <= 256 else np.round(i * (255 / (n - 1)))
  image = np.stack([level(y, height), level(x, width), 0 * x], -1)
  return encode(image.astype(np.uint8), form, **settings)


def photo(number, width, height):
  return Image.fromarray(photos()[number]).resize(
      (width, height), Image.Resampling.LANCZOS)


# Files that are refused.


def _damaged():
  """[(name, file)]: real photos as they are, cut short, and with wrong bytes.
  """
  rng = np.random.default_rng(0)
  good = dict(quality=85)
  sound = {
      'baseline': encode(photo(0, 53, 37), 'JPEG', **good),
      'full colours': encode(photo(1, 40, 56), 'JPEG', **good, subsampling=0),
      'progressive': encode(photo(0, 53, 37), 'JPEG', **good, progressive=True),
      'restarts': encode(
          photo(1, 56, 40), 'JPEG', **good, restart_marker_blocks=2),
      'progressive, restarts': encode(
          photo(0, 56, 40), 'JPEG', **good, progressive=True,
          restart_marker_rows=1),
      'grey': encode(photo(1, 53, 37).convert('L'), 'JPEG', **good),
      'grey, progressive': encode(
          photo(1, 37, 53).convert('L'), 'JPEG', **good, progressive=True),
      'with more behind': encode(photo(0, 53, 37), 'JPEG') + bytes(99),
      'two pictures': encode(photo(0, 53, 37), 'MPO', save_all=True,
                             append_images=[photo(1, 40, 30)]),
      'PNG': encode(photo(0, 23, 31), 'PNG'),
      'PNG, grey': encode(photo(1, 31, 23).convert('L'), 'PNG'),
  }
  out = list(sound.items())
  for name, file in sound.items():
    if name in ('with more behind', 'two pictures'):
      continue   # a cut may be behind all that counts
    for _ in range(14):
      out.append((f'{name}, cut', file[:rng.integers(1, len(file))]))
    for _ in range(24):
      damaged = bytearray(file)
      for at in rng.integers(2, len(file), rng.integers(1, 4)):
        damaged[at] = rng.integers(256)
      out.append((f'{name}, wrong', bytes(damaged)))
    if 'PNG' not in name:
      out.append((f'{name}, no end', file[:-2]))
  return out


@pytest.fixture(scope='module')
def verdicts():
  """([(name, file)] that `check` accepts, [(name, file)] that it refuses)."""
  accepted, refused = [], []
  for name, file in _damaged():
    try:
      decode_tf.check(file)
      accepted.append((name, file))
    except decode_pillow.BadImage as e:
      refused.append((name, file))
      reason = str(e)
      assert reason.splitlines() == [reason] and 0 < len(reason) <= 200
      assert '{{' not in reason and '[Op:' not in reason
  return accepted, refused


def test_check_accepts_exactly_the_files_that_decode_in_full(verdicts):
  """Hundreds of damaged photos are tried, because `check` skips most of the
  work."""
  import tensorflow as tf
  accepted, refused = verdicts
  assert len(accepted) > 120 and len(refused) > 150
  assert {name.split(',')[0] for name, _ in accepted if 'wrong' in name} >= {
      'baseline', 'progressive', 'restarts', 'grey'}

  def decodes(file):
    try:
      return tf.io.decode_image(file, channels=3).shape[2] == 3
    except tf.errors.InvalidArgumentError:
      return False

  assert [name for name, file in accepted if not decodes(file)] == []
  assert [name for name, file in refused if decodes(file)] == []


def test_check_refuses_files_that_are_cut_and_accepts_whole_ones(verdicts):
  for name, _ in verdicts[0]:
    assert 'no end' not in name and 'cut' not in name
  assert {name for name, _ in verdicts[0] if ', ' not in name} == {
      'baseline', 'full colours', 'progressive', 'restarts', 'grey', 'PNG',
      'with more behind', 'two pictures'}


@pytest.mark.parametrize('channels', (1, 3))
@pytest.mark.parametrize('crop', CROPS)
def test_files_that_check_accepts_decode_in_every_crop(
    verdicts, crop, channels):
  """Whatever the window. The pixels may be garbage, but there is no error."""
  files = [file for _, file in verdicts[0]]
  cut(files, (9, 12), crop, channels=channels)
  if crop == 'inception':
    for seed in range(1, 4):
      cut(files, (9, 12), crop, channels=channels, keys=keys_of(
          len(files), seed), min_area=1e-3)


@pytest.mark.parametrize('crop', WHOLE)
def test_files_that_check_refuses_fail_in_every_crop_of_the_whole(
    verdicts, crop):
  """The error is ours, in one line."""
  for _, file in verdicts[1][::31]:
    with pytest.raises(errors.RunError, match='can no longer be') as error:
      cut([file], (9, 12), crop)
    assert '{{' not in str(error.value) and '[[' not in str(error.value)


def test_an_inception_crop_may_not_notice_damage():
  """This is why `check` exists: of a photo that is cut short, an Inception crop
  reads no further than it reaches."""
  whole = encode(photo(0, 128, 128), 'JPEG', quality=90)
  file = whole[:len(whole) * 3 // 4]
  with pytest.raises(decode_pillow.BadImage):
    decode_tf.check(file)
  passed, failed = [], []
  for key in keys_of(8):
    try:
      cut([file], (9, 12), 'inception', keys=key[None])
      passed.append(key)
    except errors.RunError:
      failed.append(key)
  assert passed and failed


@pytest.mark.parametrize('file', (b'', b'<html>404</html>', b'\xff\xd8\xff',
                                  b'\x89PNG\r\n\x1a\n'))
def test_check_refuses_files_that_are_no_images(file):
  with pytest.raises(decode_pillow.BadImage):
    decode_tf.check(file)


# The part of an image that is shown.


@pytest.mark.parametrize('size', ((56, 56), (28, 56), (35, 21)))
def test_bit_is_a_random_window_of_the_image_at_eight_sevenths(size):
  """Each image has exactly this size, so nothing is interpolated and the first
  pixel tells where the window is. Every place occurs, also the last one, and
  about equally often."""
  height, width = (s * 8 // 7 for s in size)
  spare = height - size[0], width - size[1]
  count = 60 * max(spare)
  out = cut([place(height, width)] * count, size, 'bit').astype(int)
  rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
  for image in out:
    top, left, _ = image[0, 0]
    np.testing.assert_array_equal(image[..., 0], top + rows + 0 * columns)
    np.testing.assert_array_equal(image[..., 1], left + columns + 0 * rows)
  for axis in (0, 1):
    found = np.bincount(out[:, 0, 0, axis], minlength=spare[axis] + 1)
    assert len(found) == spare[axis] + 1 and found.min() > 0
    expected = count / (spare[axis] + 1)
    assert np.all(np.abs(found - expected) < 5 * expected**.5)
  assert abs(np.corrcoef(out[:, 0, 0, :2].T)[0, 1]) < 5 / count**.5


@pytest.mark.parametrize('crop', ('bit', 'inception'))
def test_a_random_crop_is_a_function_of_its_key(crop):
  """It depends on both words of the key, and not on the rest of the batch."""
  file, keys = place(64, 64), keys_of(40)
  out = cut([file] * 40, (56, 56), crop, keys=keys)
  np.testing.assert_array_equal(
      cut([file] * 40, (56, 56), crop, keys=keys[::-1]), out[::-1])
  np.testing.assert_array_equal(
      cut([file] * 7, (56, 56), crop, keys=keys[3:10]), out[3:10])
  for word in (0, 1):
    other = keys.copy()
    other[:, word] += 1
    changed = cut([file] * 40, (56, 56), crop, keys=other)
    assert np.sum(np.any(changed != out, (1, 2, 3))) > 20


@pytest.mark.parametrize('size', ((56, 56), (28, 56), (35, 21)))
def test_resmall_and_resize_crop_show_the_centre(size):
  """The image is exactly 8/7 as large, so nothing is interpolated."""
  height, width = (s * 8 // 7 for s in size)
  top, left = (height - size[0]) // 2, (width - size[1]) // 2
  y, x = np.mgrid[:height, :width]
  expected = np.stack([y, x, 0 * x], -1)[top:top + size[0],
                                         left:left + size[1]]
  for crop in ('resize_crop', 'resmall'):
    out, = cut([place(height, width)], size, crop)
    np.testing.assert_array_equal(out, expected)


def test_resize_keeps_an_image_of_the_size_asked_for():
  """An image of the size asked for comes as it is."""
  image = np.asarray(photo(0, 48, 32))
  for name in options.INTERPOLATIONS:
    out, = cut([encode(image, 'PNG')], (32, 48), 'resize', interpolation=name)
    np.testing.assert_array_equal(out, image)


def shown(image):
  """The part of the image that an output of `place` shows.

  Returns ((first row, last row), (first column, last column)). Checks that rows
  and columns run straight through the output.
  """
  image = image.astype(float)
  assert np.all(np.ptp(image[..., 0], axis=1) <= 1)
  assert np.all(np.ptp(image[..., 1], axis=0) <= 1)
  assert np.all(np.diff(image[:, 0, 0]) >= -1)
  assert np.all(np.diff(image[0, :, 1]) >= -1)
  return image[[0, -1], 0, 0], image[0, [0, -1], 1]


@pytest.mark.parametrize('crop', WHOLE)
@pytest.mark.parametrize('size', ((21, 35), (28, 28)))
@pytest.mark.parametrize('height,width', ((100, 200), (200, 100)))
def test_each_crop_shows_the_part_that_its_definition_says(
    crop, size, height, width):
  """All of the image; the middle 7/8 of both sides; or, with resmall, 7/8 of
  the side that fits more tightly and as much of the other as fits."""
  (top, bottom), (left, right) = shown(cut([place(height, width)], size, crop)[
      0])
  larger = np.array([s * 8 // 7 for s in size])
  if crop == 'resize':
    share = np.ones(2)
  elif crop == 'resmall':
    share = size / np.max(larger / (height, width)) / (height, width)
  else:
    share = size / larger
  # Between the centres of the first and the last pixel lies one pixel less.
  extent = share * (height, width) * (1 - 1 / np.array(size))
  np.testing.assert_allclose((bottom - top, right - left), extent, atol=3)
  if crop != 'bit':
    middle = np.array([height, width]) / 2 - .5
    np.testing.assert_allclose(
        ((top + bottom) / 2, (left + right) / 2), middle, atol=5)


@pytest.mark.parametrize('size', ((21, 35), (35, 21)))
def test_an_inception_crop_keeps_its_aspect_for_any_output_shape(size):
  """The window is inside of the image, has an aspect of its own and not the
  output's, and has at least `min_area`."""
  side = 200
  for image in cut([place(side, side)] * 64, size, 'inception', min_area=.3):
    (top, bottom), (left, right) = shown(image)
    height = (bottom - top) / (1 - 1 / size[0])
    width = (right - left) / (1 - 1 / size[1])
    assert .65 < width / height < 1.5
    assert height * width > .3 * side**2 * .9


def test_a_jpeg_is_cropped_like_any_other_file():
  """Only the window of a JPEG is decoded. It has the same place and pixels as
  that of the whole image, decoded and saved as PNG."""
  import tensorflow as tf
  jpegs = [encode(photo(i % 2, 90 + i, 70 + 3 * i), 'JPEG', quality=90,
                  subsampling=0, progressive=bool(i % 3)) for i in range(24)]
  pngs = [encode(tf.io.decode_image(file, channels=3).numpy(), 'PNG')
          for file in jpegs]
  for area in (.02, .5):
    one, other = (cut(files, (20, 24), 'inception', min_area=area)
                  for files in (jpegs, pngs))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('crop', ('inception', 'bit', 'resmall', 'resize'))
def test_large_images_are_resized_without_floats_to_the_same_pixels(
    crop, monkeypatch):
  files = [encode(photo, form) for photo in photos()[:2]
           for form in ('JPEG', 'PNG')]
  sizes = (13, 17), (200, 300)   # smaller and larger than the images
  ask = lambda: [cut(files, size, crop, interpolation='bilinear')
                 for size in sizes]
  expected = ask()
  monkeypatch.setattr(decode_tf, '_MANY', 0)
  for ours, theirs in zip(ask(), expected):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('interpolation', options.INTERPOLATIONS)
@pytest.mark.parametrize('crop', CROPS)
def test_images_smaller_than_the_output_are_enlarged(crop, interpolation):
  """One colour stays that colour; a few pixels become a ramp."""
  dot = np.array([[[200, 30, 120]]], np.uint8)
  forms = [encode(dot, form) for form in ('PNG', 'BMP')]
  for image in cut(forms, (14, 21), crop, interpolation=interpolation):
    assert np.all(np.abs(image.astype(int) - dot) <= 1)
  small, = cut([place(3, 5)], (32, 48), crop, interpolation=interpolation)
  shown(small)
  assert small[..., 0].max() <= 2 and small[..., 1].max() <= 4


@pytest.mark.parametrize('form', ('PNG', 'JPEG'))
@pytest.mark.parametrize('crop', CROPS)
def test_panoramas_are_squeezed_and_resmall_shows_their_middle(crop, form):
  """Images of 5,000 x 20 pixels, horizontal and vertical."""
  settings = dict(JPEG=dict(quality=100, subsampling=0)).get(form, {})
  lying, standing = cut([place(20, 5000, form, **settings),
                         place(5000, 20, form, **settings)], (21, 28), crop)
  for image, long, short in ((lying, 1, 0), (standing, 0, 1)):
    first, *_, last = np.sort(image[..., long].mean(short))
    if crop == 'resmall':
      assert 120 < first <= last < 135
    else:
      assert first < 255 / 8 + 10 and last > 255 * 7 / 8 - 12
    shorter = image[..., short].astype(float)
    assert np.ptp(shorter) > 12 and shorter.max() < 25


def test_a_line_of_pixels_is_not_enlarged_to_gigabytes():
  """Resmall shows only the middle of an image one pixel high and very long."""
  lines = [place(1, 60_000), place(60_000, 1)]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  lying, standing = cut(lines, (28, 28), 'resmall')
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert np.all(np.abs(lying[..., 1].astype(int) - 127) <= 1)
  assert np.all(np.abs(standing[..., 0].astype(int) - 127) <= 1)
  assert after - before < 2**18   # KB


@pytest.mark.parametrize('crop', CROPS)
def test_grey_files_and_grey_outputs(crop):
  """A grey file decoded in colour is grey; a coloured file decoded in grey is
  about its luminance."""
  grey = photo(0, 40, 30).convert('L')
  for form in ('PNG', 'JPEG'):
    out, = cut([encode(grey, form)], (14, 21), crop)
    assert np.all(out == out[..., :1])
    one, = cut([encode(grey, form)], (14, 21), crop, channels=1)
    np.testing.assert_array_equal(one, out[..., :1])
    colored = encode(photo(0, 40, 30), form)
    difference = cut([colored], (14, 21), crop, channels=1)[0] - one.astype(int)
    assert np.abs(difference).mean() < 4


def test_inception_windows_have_the_area_and_aspect_asked_for():
  """The area is at least the one asked for, the aspect is 3/4 to 4/3, and
  windows differ."""
  side, size = 200, 16
  y, x = np.mgrid[:side, :side].astype(np.uint8)
  file = encode(np.stack([y, x, np.zeros_like(x)], -1), 'PNG')
  keys = np.arange(128, dtype=np.int32).reshape(64, 2)
  load = lambda number, lo, hi: ([file] * (hi - lo), keys[lo:hi], {})

  for min_area in (.05, .6):
    batch, = decode_tf.batches(
        load, {}, first=0, last=1, batch_size=64,
        image_size=(size, size), channels=3, crop='inception',
        interpolation='bilinear', min_area=min_area)
    image = batch['image'].astype(float)
    # From the first to the last row lie 1 - 1/size of the window's height.
    height = (image[:, -1, 0, 0] - image[:, 0, 0, 0]) * size / (size - 1)
    width = (image[:, 0, -1, 1] - image[:, 0, 0, 1]) * size / (size - 1)
    area, aspect = height * width / side**2, width / height
    assert area.min() > min_area * .93 and area.max() <= 1.05
    assert aspect.min() > .70 and aspect.max() < 1.40
    assert area.min() < min_area + .15 and area.max() > .85
    assert np.unique(image[:, 0, 0, :2], axis=0).shape[0] > 40


def test_resmall_shows_the_middle_and_resize_the_whole():
  """The middle 7/8 of the shorter side."""
  y, x = np.mgrid[:160, :240].astype(np.uint8)
  file = encode(np.stack([y, x, np.zeros_like(x)], -1), 'PNG')
  load = lambda number, lo, hi: ([file], np.zeros((1, 2), np.int32), {})

  def cut(crop):
    """uint8 [n, *size, channels]: encoded files as `batches` crops them."""
    batch, = decode_tf.batches(
        load, {}, first=0, last=1, batch_size=1, image_size=(56, 56),
        channels=3, crop=crop, interpolation=options.CROPS[crop])
    return batch['image'][0].astype(float)

  small = cut('resmall')
  # 64 rows of 2.5 pixels; the middle 56 begin with row 4, column 20.
  assert abs(small[0, 0, 0] - (4 * 2.5 + .75)) < 1
  assert abs(small[-1, 0, 0] - (59 * 2.5 + .75)) < 1
  assert abs(small[0, 0, 1] - (20 * 2.5 + .75)) < 1
  assert abs(small[0, -1, 1] - (75 * 2.5 + .75)) < 1
  whole = cut('resize')
  assert whole[0, 0, 0] < 3 and whole[-1, 0, 0] > 156
  assert whole[0, 0, 1] < 4 and whole[0, -1, 1] > 235


# Interpolation.


def test_default_interpolations_are_those_of_the_official_code():
  """Area for its evaluation, otherwise bilinear."""
  assert options.CROPS == dict(
      inception='bilinear', bit='bilinear', resmall='area',
      resize_crop='bilinear', resize='bilinear')


def bilinear(image, height, width):
  """float64 [height, width, C]: half-pixel centres, no antialiasing."""
  out = image.astype(float)
  for axis, size in enumerate((height, width)):
    at = (np.arange(size) + .5) * (out.shape[axis] / size) - .5
    low = np.floor(at)
    pick = lambda i: np.take(
        out, np.clip(i, 0, out.shape[axis] - 1).astype(int), axis)
    share = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    out = pick(low) * (1 - share) + pick(low + 1) * share
  return out


def assert_truncated_to_whole_levels(out, expected):
  """Checks against floor, which rounding errors of float32 may move by one."""
  assert np.all(out >= np.floor(expected - EPSILON))
  assert np.all(out <= np.floor(expected + EPSILON))


@pytest.mark.parametrize('size', (
    (13, 17), (37, 53), (80, 100), (10, 120), (1, 1)))
def test_bilinear_has_no_antialiasing_and_truncates(size):
  """The official code does the same."""
  image = np.asarray(photo(0, 53, 37))
  out, = cut([encode(image, 'PNG')], size, 'resize')
  expected = bilinear(image, *size)
  assert_truncated_to_whole_levels(out, expected)
  fraction = expected % 1
  if size not in ((37, 53), (1, 1)):   # there is something to cut
    assert np.mean((fraction > .5) & (fraction < 1 - EPSILON)) > .2


def test_bilinear_to_a_third_takes_every_third_pixel():
  """There is no antialiasing."""
  image = np.random.default_rng(0).integers(0, 256, (36, 48, 3), np.uint8)
  out, = cut([encode(image, 'PNG')], (12, 16), 'resize')
  np.testing.assert_array_equal(out, image[1::3, 1::3])


@pytest.mark.parametrize('size', (
    (13, 17), (60, 40), (160, 240), (100, 150), (30, 200)))
def test_bicubic_is_that_of_pillow(size):
  """Both have antialiasing. Ours truncates to whole levels, Pillow rounds
  twice."""
  picture = photo(1, 150, 100).point(lambda level: 64 + level // 2)
  out, = cut([encode(picture, 'PNG')], size, 'resize', interpolation='bicubic')
  expected = picture.resize(size[::-1], Image.Resampling.BICUBIC)
  difference = np.abs(out.astype(int) - np.asarray(expected))
  assert difference.max() <= 2 and difference.mean() < 1


@pytest.mark.parametrize('channels', (1, 3))
@pytest.mark.parametrize('side', (6, 16))
def test_bicubic_does_not_wrap_around_beside_an_edge(side, channels):
  """It overshoots there, and black must not become white. Tried with few pixels
  and with many, which TensorFlow converts by different code."""
  image = np.zeros((1 if side == 6 else side, side, 3), np.uint8)
  image[:, side // 2:] = 255
  size = len(image), 3 * side
  out, = cut([encode(image, 'PNG')], size, 'resize', channels=channels,
             interpolation='bicubic')
  middle = size[1] // 2
  assert out[:, :middle - 1].max() < 10 and out[:, middle + 1:].min() > 245


@pytest.mark.parametrize('factor', ((1, 1), (2, 2), (4, 3), (5, 1)))
def test_area_is_the_truncated_mean_of_blocks(factor):
  image = np.random.default_rng(0).integers(0, 256, (60, 36, 3), np.uint8)
  size = 60 // factor[0], 36 // factor[1]
  out, = cut([encode(image, 'PNG')], size, 'resize', interpolation='area')
  blocks = image.reshape(size[0], factor[0], size[1], factor[1], 3)
  assert_truncated_to_whole_levels(out, blocks.mean((1, 3)))


def test_resmall_uses_area():
  """An image twice as large becomes the centre of the means of its blocks."""
  image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
  out, = cut([encode(image, 'PNG')], (28, 28), 'resmall')
  means = image.reshape(32, 2, 48, 2, 3).mean((1, 3))
  assert_truncated_to_whole_levels(out, means[2:30, 10:38])


# The order of rows, errors, and the end.


class Own(Exception):
  """An error that no library raises."""


def numbered(batch_size, *, calls=None, fail_at=None, error=None, wait=0.):
  """`batches` of images and arrays that tell the batch and the row."""
  files = [encode(np.full((side, side, 3), level, np.uint8), 'PNG')
           for level in range(256)
           for side in [300 if level % 5 == 0 else 2]]   # some take longer

  def load(number, lo, hi):
    if calls is not None:
      calls.append((number, lo, hi))
    if wait:
      time.sleep(random.uniform(0, wait))
    if fail_at == number:
      raise error
    row = np.arange(lo, hi)
    rest = dict(
        one=(row + 1000 * number).astype(np.int32), two=(row + number) % 3 == 0,
        three=np.stack([row / 7, row * 0 + number], 1).astype(np.float32))
    return [files[(number + i) % 256] for i in row], keys_of(hi - lo), rest

  like = dict(one=np.zeros(0, np.int32), two=np.zeros(0, bool),
              three=np.zeros((0, 2), np.float32))
  settings = dict(batch_size=batch_size, image_size=(3, 3), channels=3,
                  crop='resize', interpolation='bilinear')
  return lambda first, last, **more: decode_tf.batches(
      load, like, first=first, last=last, **settings, **more)


def assert_numbered(batches, first, last, batch_size):
  count = 0
  for number, batch in zip(range(first, last), batches, strict=True):
    row = np.arange(batch_size)
    np.testing.assert_array_equal(
        batch['image'], np.broadcast_to(
            ((row + number) % 256)[:, None, None, None],
            (batch_size, 3, 3, 3)))
    one, two, three = (batch[name] for name in ('one', 'two', 'three'))
    assert (one.dtype, two.dtype, three.dtype) == (np.int32, bool, np.float32)
    np.testing.assert_array_equal(one, row + 1000 * number)
    np.testing.assert_array_equal(two, (row + number) % 3 == 0)
    np.testing.assert_array_equal(
        three, np.stack([row / 7, 0 * row + number], 1).astype(np.float32))
    count += 1
  assert count == last - first


@pytest.mark.parametrize('in_order', (False, True))
@pytest.mark.parametrize('batch_size', (1, 7, 34))
@pytest.mark.parametrize('threads', (1, 9))
def test_rows_come_in_order_with_their_arrays(
    monkeypatch, threads, batch_size, in_order):
  """There are one or many threads, and each row takes a different time."""
  monkeypatch.setattr(os, 'cpu_count', lambda: threads)
  batches = numbered(batch_size, wait=.004)
  assert_numbered(batches(3, 9, in_order=in_order), 3, 9, batch_size)


def test_a_batch_may_have_images_only():
  assert cut([place(4, 4)] * 3, (4, 4), 'resize').shape == (3, 4, 4, 3)


def test_each_row_is_loaded_once():
  """A call loads at most 16 rows."""
  calls = []
  for _ in numbered(34, calls=calls)(5, 8):
    pass
  rows = sorted((n, i) for n, lo, hi in calls for i in range(lo, hi))
  assert rows == list(itertools.product(range(5, 8), range(34)))
  assert max(hi - lo for _, lo, hi in calls) <= 16


def test_with_in_order_whole_batches_are_loaded_one_after_the_other():
  """A reader of files in sequence then never has to go back, or to do two
  things at a time."""
  calls, busy, file = [], threading.Lock(), place(2, 2)

  def load(number, lo, hi):
    assert busy.acquire(blocking=False)
    calls.append((number, lo, hi))
    time.sleep(random.uniform(0, .003))
    busy.release()
    return [file] * (hi - lo), keys_of(hi - lo), {}

  batches = decode_tf.batches(
      load, {}, first=2, last=30, batch_size=34, image_size=(2, 2), channels=3,
      crop='resize', interpolation='bilinear', in_order=True)
  assert sum(len(batch['image']) for batch in batches) == 28 * 34
  assert calls == [(number, 0, 34) for number in range(2, 30)]


@pytest.mark.parametrize('in_order', (False, True))
@pytest.mark.parametrize('error', (
    Own('three, two, one'), errors.RunError('it is broken'),
    errors.UserError('it is yours'), KeyError('labels'), OSError(5, 'Input')))
def test_an_error_of_load_is_raised_unchanged(error, in_order):
  """It is the same exception object, after the batches before it, and not an
  error of TensorFlow with a traceback in its message."""
  batches = numbered(6, fail_at=4, error=error)(0, 9, in_order=in_order)
  assert_numbered(itertools.islice(batches, 4), 0, 4, 6)
  with pytest.raises(type(error)) as raised:
    next(batches)
  assert raised.value is error
  assert list(batches) == []


def test_an_image_that_cannot_be_decoded_is_a_run_error():
  """The error is one line without the names of TensorFlow's nodes."""
  good = place(4, 4)
  files = [good, b'no image', good]
  with pytest.raises(errors.RunError) as error:
    cut(files, (4, 4), 'resize')
  text = str(error.value)
  assert text.startswith('an image can no longer be decoded (')
  assert '{{' not in text and '[[' not in text and '\n' not in text


def threads_alive():
  """The number of threads, of Python and of TensorFlow."""
  return len(os.listdir('/proc/self/task'))


def settled(value):
  """The result of `value()` once it no longer changes."""
  last, since = value(), time.monotonic()
  end = since + 10
  while time.monotonic() < min(end, since + .2):
    time.sleep(.01)
    if value() != last:
      last, since = value(), time.monotonic()
  return last


@pytest.mark.skipif(not os.path.isdir('/proc/self/task'),
                    reason='threads are counted as Linux lists them')
@pytest.mark.parametrize('in_order', (False, True))
def test_closing_early_leaves_no_thread_and_loads_nothing_more(in_order):
  def begin():
    calls = []
    batches = numbered(8, calls=calls, wait=.002)(0, 10**6, in_order=in_order)
    next(batches)
    return calls, batches

  _, batches = begin()   # starts the threads that TensorFlow keeps
  batches.close()
  before = settled(threads_alive)
  for _ in range(3):
    calls, batches = begin()
    batches.close()
    seen = settled(lambda: len(calls))
    assert settled(threads_alive) <= before
    assert len(calls) == seen


# Decoding without a pipeline.


@pytest.mark.parametrize('crop', CROPS)
def test_decode_only_decodes_every_file_in_every_run(crop):
  """The files are of every kind. A broken file is noticed wherever it is, so
  none is skipped."""
  import tensorflow as tf
  files = [encode(photo(i % 2, 30 + i, 40 - i), 'JPEG') for i in range(9)]
  files += [encode(photo(0, 20, 30), 'PNG'), encode(photo(0, 20, 30), 'BMP')]
  keys = keys_of(len(files))
  run = decode_tf.decode_only(files, keys, channels=3, crop=crop)
  assert run() is None and run() is None
  for i in (0, 5, 8):
    broken = [*files[:i], files[i][:-40], *files[i + 1:]]
    run = decode_tf.decode_only(broken, keys, channels=3, crop=crop,
                                min_area=1.)
    for _ in range(2):
      with pytest.raises(tf.errors.InvalidArgumentError):
        run()
