"""Evaluation crops: the same pixels with TensorFlow and without."""
import itertools
import logging
import os
import subprocess
import sys

import numpy as np
from pictures import encode
from pictures import photos
from pictures import write
from PIL import Image
import pytest

from mixer.data import pipeline
from mixer.images import decode_pillow
from mixer.images import decode_tf
from mixer.images import eval_crops
from mixer.images import options

WAYS = list(itertools.product(options.EVALUATION_CROPS, options.INTERPOLATIONS))
# Smaller and larger than the result, odd, narrow, a line, a single pixel.
SHAPES = ((37, 53), (120, 75), (375, 500), (64, 64), (1, 1), (3, 5), (9, 700),
          (700, 9), (1, 300), (64, 2))
SIZES = ((28, 28), (56, 56), (21, 35), (160, 96))


def photo(number, height, width, mode='RGB'):
  return Image.fromarray(photos()[number]).resize(
      (width, height), Image.Resampling.LANCZOS).convert(mode)


def hosted(files, size, crop, interpolation, channels):
  """uint8 [n, *size, channels]: files as the host decodes and crops them."""
  keys = np.zeros((len(files), 2), np.int32)
  batch, = decode_tf.batches(
      lambda number, lo, hi: (files[lo:hi], keys[lo:hi], {}), {}, first=0,
      last=1, batch_size=len(files), image_size=size, channels=channels,
      crop=crop, interpolation=interpolation)
  return batch['image']


def assert_same(ours, theirs):
  """Checks that two results have the same pixels.

  They are equal to the bit where the host's compiler fuses no multiply-add, as
  in TensorFlow's wheels for x86; elsewhere few pixels differ, by one level.
  """
  assert ours.dtype == theirs.dtype == np.uint8 and ours.shape == theirs.shape
  difference = np.abs(ours.astype(int) - theirs)
  assert difference.max() <= 1 and difference.mean() < .01
  if os.uname().machine == 'x86_64':
    assert difference.max() == 0


# Equality with the host's pipeline.


@pytest.mark.parametrize('channels', (1, 3))
@pytest.mark.parametrize('crop,interpolation', WAYS)
def test_view_gives_the_pixels_of_the_host_pipeline(
    crop, interpolation, channels):
  """The images are photos and noise with a white sky, which must stay as white,
  enlarged and reduced and at any aspect."""
  rng = np.random.default_rng(0)
  images = []
  for i, (height, width) in enumerate(SHAPES):
    image = np.array(photo(i % 2, height, width)) if i % 3 else (
        rng.integers(0, 256, (height, width, 3), np.uint8))
    image[:height // 3] = 255
    images.append(image[..., :channels])
  files = [encode(image.squeeze(-1) if channels == 1 else image, 'PNG')
           for image in images]
  for size in SIZES:
    theirs = hosted(files, size, crop, interpolation, channels)
    for image, expected in zip(images, theirs, strict=True):
      assert_same(eval_crops.view(image, size=size, crop=crop,
                                  interpolation=interpolation), expected)


FORMS = {
    'JPEG': dict(quality=90), 'JPEG, full': dict(quality=95, subsampling=0),
    'JPEG, half': dict(quality=50, subsampling=1),
    'JPEG, progressive': dict(quality=75, progressive=True), 'PNG': {}}


@pytest.mark.parametrize('channels', (1, 3))
@pytest.mark.parametrize('mode', ('RGB', 'L', 'CMYK'))
def test_decoding_and_cropping_give_the_pixels_of_the_host_pipeline(
    mode, channels):
  """The photos are in colour, grey and CMYK."""
  files = [encode(photo(i % 2, height, width, mode), form.partition(',')[0],
                  **settings)
           for form, settings in FORMS.items()
           if not (form == 'PNG' and mode == 'CMYK')
           for i, (height, width) in enumerate(((212, 319), (57, 83)))]
  for crop in options.EVALUATION_CROPS:
    interpolation = options.CROPS[crop]
    theirs = hosted(files, (56, 56), crop, interpolation, channels)
    for file, expected in zip(files, theirs, strict=True):
      ours = decode_pillow.pixels(file, channels=channels, upright=False)
      assert_same(eval_crops.view(ours, size=(56, 56), crop=crop,
                                  interpolation=interpolation), expected)


# Properties of the crops.


@pytest.mark.parametrize('crop,interpolation', WAYS)
def test_an_image_whose_size_does_not_change_is_not_copied(
    crop, interpolation):
  side = 64
  image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
  size = (side, side) if crop == 'resize' else (56, 56)
  out = eval_crops.view(image, size=size, crop=crop,
                        interpolation=interpolation)
  at = (side - size[0]) // 2
  assert np.shares_memory(out, image)
  np.testing.assert_array_equal(out, image[at:at + size[0], at:at + size[1]])


@pytest.mark.parametrize('crop,interpolation', WAYS)
def test_computing_in_strips_changes_nothing(monkeypatch, crop, interpolation):
  """Whatever their height, down to a row at a time."""
  image = np.asarray(photo(0, 213, 301))
  look = lambda: eval_crops.view(image, size=(48, 64), crop=crop,
                                 interpolation=interpolation)
  whole = look()
  for pixels in (1, 5000):
    monkeypatch.setattr(eval_crops, '_STRIP', pixels)
    np.testing.assert_array_equal(look(), whole)


@pytest.mark.parametrize('crop,interpolation', WAYS)
def test_weights_give_the_view_except_for_rounding(crop, interpolation):
  """Two matrices, cut to the rows and columns that are shown, give the same
  values except for last bits, which now and then decide on a level."""
  image, size = np.asarray(photo(1, 213, 301)), (56, 48)
  kept, whole, corner = eval_crops.geometry(
      image.shape[:2], size=size, crop=crop)
  assert kept == (213, 301)
  rows, columns = (
      eval_crops.weights(*sides, interpolation)[
          first:first + shown].astype(float)
      for *sides, first, shown in zip(kept, whole, corner, size))
  expected = np.einsum('yh,xw,hwc->yxc', rows, columns, image, optimize=True)
  out = eval_crops.view(image, size=size, crop=crop,
                        interpolation=interpolation)
  expected = expected.clip(0, 255)
  assert np.all(out >= np.floor(expected - 1e-3))
  assert np.all(out <= np.floor(expected + 1e-3))


@pytest.mark.parametrize('interpolation', options.INTERPOLATIONS)
@pytest.mark.parametrize('old,new', (
    (1, 1), (1, 7), (7, 1), (224, 224), (500, 224), (375, 256), (3, 100),
    (5000, 28)))
def test_weights_are_symmetric_and_their_rows_sum_to_one(
    interpolation, old, new):
  """The arrays are shared, so they are read-only."""
  matrix = eval_crops.weights(old, new, interpolation)
  assert matrix.shape == (new, old) and matrix.dtype == np.float32
  np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-4)
  # float32 places of pixels are off by some 1e-7 of the side, as in TensorFlow.
  np.testing.assert_allclose(matrix, matrix[::-1, ::-1],
                             atol=2e-7 * max(old, new) + 1e-6)
  if old == new:
    np.testing.assert_array_equal(matrix, np.eye(old))
  with pytest.raises(ValueError):
    matrix[0, 0] = 1


def test_weights_of_four_to_two_and_two_to_four_pixels():
  halves = [[.5, .5, 0, 0], [0, 0, .5, .5]]
  np.testing.assert_array_equal(eval_crops.weights(4, 2, 'area'), halves)
  np.testing.assert_array_equal(eval_crops.weights(4, 2, 'bilinear'), halves)
  np.testing.assert_array_equal(eval_crops.weights(2, 4, 'bilinear'), [
      [1, 0], [.75, .25], [.25, .75], [0, 1]])
  np.testing.assert_array_equal(eval_crops.weights(2, 4, 'area'), [
      [1, 0], [1, 0], [0, 1], [0, 1]])
  # Keys' at distances of .5 and 1.5, halved by the antialiasing to .25, .75.
  near, far = (1.5 * x**3 - 2.5 * x**2 + 1 for x in (.25, .75))
  beyond = -.5 * 1.25**3 + 2.5 * 1.25**2 - 4 * 1.25 + 2
  first = np.array([near, near, far, beyond]) / (2 * near + far + beyond)
  np.testing.assert_allclose(eval_crops.weights(4, 2, 'bicubic')[0], first,
                             atol=1e-6)


@pytest.mark.parametrize('settings', (
    dict(crop='inception', interpolation='area'),
    dict(crop='bit', interpolation='area'),
    dict(crop='resize', interpolation='nearest')))
def test_crops_and_interpolations_that_evaluation_lacks_are_refused(settings):
  with pytest.raises(ValueError, match='inception|bit|nearest'):
    eval_crops.view(np.zeros((9, 9, 3), np.uint8), size=(4, 4), **settings)


def test_view_needs_numpy_only():
  """A server of a model may have nothing else. Seen in a fresh interpreter."""
  code = 'from mixer.images import eval_crops; import sys; print(*sys.modules)'
  out = subprocess.run(
      [sys.executable, '-c', code], check=True, capture_output=True, text=True,
      timeout=60, cwd=os.path.dirname(os.path.dirname(__file__)))
  loaded = {name.split('.')[0] for name in out.stdout.split()}
  assert 'mixer' in loaded and not loaded & {'tensorflow', 'PIL', 'jax'}


# Images that are kept in memory.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """'folder:PATH' of real photos of many sizes, one a PNG, in two classes."""
  root = tmp_path_factory.mktemp('photos')
  for i in range(12):
    image = photo(i % 2, 40 + 17 * i, 260 - 13 * i, 'L' if i == 5 else 'RGB')
    form = 'PNG' if i == 7 else 'JPEG'
    write(root, {f'{"ab"[i % 2]}/{i}.{form.lower()}': encode(image, form)})
  return f'folder:{root}'


def opened(name, **settings):
  settings = dict(dict(split='train', image_size=(56, 48),
                       key='evals.validation'), **settings)
  return pipeline.open_data(name=name, **settings)


@pytest.mark.parametrize('crop,interpolation', (*WAYS, ('resmall', None)))
def test_an_evaluation_shows_the_same_on_the_device_and_on_the_host(
    folder, crop, interpolation):
  """Both also report the same cut, which is written to model.json."""
  settings = dict(crop=crop, interpolation=interpolation)
  resident = opened(folder, on_device=True, **settings)
  host = opened(folder, **settings)
  assert host.resident is None and resident.cut == host.cut
  assert resident.cut['crop'] == crop
  assert resident.cut['interpolation'] == (interpolation or 'area')
  batch, = host.eval_batches(batch_size=12, slots=(0, 12))
  assert batch['mask'].all() and not resident.bad.any()
  np.testing.assert_array_equal(batch['labels'], resident.resident['labels'])
  assert_same(resident.resident['image'], batch['image'])


@pytest.mark.parametrize('interpolation', (None, 'area', 'bicubic'))
@pytest.mark.parametrize('crop', ('inception', 'bit'))
def test_training_images_on_the_device_are_not_cropped(
    folder, caplog, crop, interpolation):
  """This is logged, and `cut` tells what was done, not what was asked for."""
  with caplog.at_level(logging.INFO, 'mixer'):
    data = opened(folder, key='data', crop=crop, interpolation=interpolation,
                  on_device=True)
  logged, = (message for message in caplog.messages
             if 'not cropped' in message)
  assert f'data.crop={crop!r}' in logged
  assert data.cut['crop'] == 'resize'
  assert data.cut['interpolation'] == (interpolation or 'bilinear')
  expected = opened(folder, crop='resize', on_device=True,
                    interpolation=interpolation)
  np.testing.assert_array_equal(
      data.resident['image'], expected.resident['image'])


def test_arrays_of_the_size_asked_for_are_not_changed(tmp_path):
  """Whatever the crop. Arrays of another size are cut as files are."""
  image = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
  path = tmp_path / 'set.npz'
  np.savez(path, images=image, labels=np.arange(6) % 2)
  for crop in options.EVALUATION_CROPS:
    settings = dict(crop=crop, interpolation='bicubic')
    same = opened(f'arrays:{path}', image_size=32, **settings)
    assert same.cut['crop'] == 'resize'
    np.testing.assert_array_equal(same.resident['image'], image)
    other = opened(f'arrays:{path}', image_size=21, **settings)
    assert other.cut['crop'] == crop
    for ours, pixels in zip(other.resident['image'], image, strict=True):
      np.testing.assert_array_equal(ours, eval_crops.view(
          pixels, size=(21, 21), **settings))
