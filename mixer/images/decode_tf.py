"""Encoded files to uint8 images on the host: tf.data decodes, crops, resizes.

The only module that needs TensorFlow for input; it is imported when a data
set is too large for the device. TensorFlow never touches an accelerator.
"""
import functools
import importlib.util
import os

import numpy as np

from mixer.core import errors
from mixer.core.log import log
from mixer.images import decode_pillow
from mixer.images import eval_crops

# How an image becomes one of the size asked for, and the interpolation that
# goes with it unless another is given.
CROPS = dict(inception='bilinear', bit='bilinear', resmall='area',
             resize_crop='bilinear', resize='bilinear')
INTERPOLATIONS = eval_crops.INTERPOLATIONS
_GROUP = 16   # records read by one call into Python
# Luminance of red, green and blue (ITU-R BT.601), in 2**-16, as in Pillow.
_LUMA = (19595, 38470, 7471)


def batches(load, like, *, first, last, batch_size, image_size, channels, crop,
            interpolation, min_area=0.05, in_order=False):
  """Decoded batches, in order, whatever the number of threads.

  Args:
    load: (batch number, row, row + n) -> (encoded files [n], keys int32 [n,
      2], rest), rest a tuple of arrays [n, ...], handed on as they are.
    like: rest of no rows, for its kinds and shapes.
    first, last: batch numbers to make, [first, last).
    batch_size: b, images of one batch on this process.
    image_size: (height, width) of the result.
    channels: of the result.
    crop: 'inception', an area of at least `min_area` of the image and an
      aspect of 3/4 to 4/3, drawn from the key (GoogLeNet's; the paper, section
      3); 'bit', the whole image to 8/7 of the size, then a crop at random
      (BiT's for fine-tuning, section 3); 'resmall', the shorter side to 8/7 of
      the size, then the centre, and 'resize_crop', the whole image to 8/7,
      then the centre (the paper's two evaluations, appendix C); 'resize', the
      whole image, aspect ignored. Evaluation's three give the pixels of
      `views.view`.
    interpolation: 'bilinear' without antialiasing, as the official code
      does; 'bilinear_antialias' and 'bicubic' with it, as Pillow and timm do;
      or 'area'.
    min_area: of the Inception crop.
    in_order: whether `load` must be called for one row after the other.

  Yields:
    (images uint8 [b, height, width, channels], rest).
  """
  tf = _tensorflow()
  group = batch_size if in_order else next(
      g for g in range(min(_GROUP, batch_size), 0, -1) if batch_size % g == 0)
  parts = batch_size // group
  threads = os.cpu_count() or 1
  failed = []   # tf.data turns errors of ours into its own, tracebacks and all

  def read(i):
    number, part = divmod(int(i), parts)
    try:
      files, keys, rest = load(number, part * group, (part + 1) * group)
    except Exception as e:
      failed.append(e)
      raise
    return np.array(files, object), keys, *rest

  kinds = [tf.string, tf.int32] + [tf.as_dtype(x.dtype) for x in like]
  shapes = [(group,), (group, 2)] + [(group, *x.shape[1:]) for x in like]

  def read_group(i):
    out = tf.numpy_function(read, [i], kinds)
    for x, shape in zip(out, shapes):
      x.set_shape(shape)
    return tuple(out)

  def decode(file, key, *rest):
    return _pixels(tf, file, key, image_size, channels, crop, interpolation,
                   min_area), *rest

  ds = tf.data.Dataset.range(first * parts, last * parts)
  ds = ds.map(read_group, num_parallel_calls=1 if in_order else threads,
              deterministic=True)
  # More calls than threads: those that wait for an earlier one count as well.
  ds = ds.unbatch().map(decode, num_parallel_calls=4 * threads,
                        deterministic=True)
  ds = ds.batch(batch_size, drop_remainder=True).prefetch(2)
  try:
    for image, *rest in _with_threads(tf, ds).as_numpy_iterator():
      yield image, tuple(rest)
  except tf.errors.OpError as e:
    if failed:
      raise failed[0] from None
    raise errors.RunError(
        f'an image cannot be decoded ({_message(e)}), though it could before: '
        'did a file change during the run? Start it again') from e


def check(file):
  """Decodes all of an encoded file, as `batches` would.

  Raises:
    BadImage: if that fails, whatever part of it a crop would need.
  """
  tf = _tensorflow()
  jpeg = file[:3] == b'\xff\xd8\xff'
  try:
    if jpeg:   # every coefficient is read, which can fail; few are transformed
      tf.io.decode_jpeg(file, channels=3, ratio=8)
    else:
      tf.io.decode_image(file, channels=3, expand_animations=False)
  except tf.errors.OpError as e:
    raise decode_pillow.BadImage('the JPEG data are damaged or end early' if jpeg
                          else _message(e)) from e


def _tensorflow():
  hide_accelerators()
  try:
    import tensorflow as tf
  except ImportError as e:
    raise errors.UserError(
        'data: TensorFlow decodes images on the host, and it is not installed: '
        "pip install '.[data]' in this project's folder, or, if all fit in "
        'memory, --config.data.on_device=True') from e
  return tf


@functools.cache
def hide_accelerators():
  """Keeps TensorFlow, where it is installed, off the GPUs; before its first
  use, or it holds their memory already."""
  if importlib.util.find_spec('tensorflow'):
    # It logs every image that it cannot decode; we name them ourselves. The
    # import of jax has set 1 already.
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
      os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    import tensorflow as tf
    try:
      tf.config.set_visible_devices([], 'GPU')
    except RuntimeError as e:
      log.warning('TensorFlow was in use before: %s', e)


def _with_threads(tf, ds):
  """A dataset with a thread for every core, and no buffers but its own."""
  options = tf.data.Options()
  options.deterministic = True
  options.threading.private_threadpool_size = os.cpu_count() or 1
  options.experimental_optimization.inject_prefetch = False
  return ds.with_options(options)


def _message(error):
  text = error.message.partition(' [[')[0].rpartition('}}')[2]
  return decode_pillow.one_line(text.partition(' [Op:')[0])


def _pixels(tf, file, key, size, channels, crop, interpolation, min_area):
  """One encoded image as uint8 [*size, channels]."""
  resize = lambda pixels, to: _resize(tf, pixels, to, interpolation)
  if crop == 'inception':
    return resize(_inception(tf, file, key, channels, min_area), size)
  pixels = _whole(tf, file, channels, crop)
  pixels.set_shape([None, None, channels])
  if crop == 'resize':
    return resize(pixels, size)
  larger = tf.constant([s * 8 // 7 for s in size])
  if crop == 'resmall':
    # A line of pixels would be enlarged to gigabytes, of which the middle is
    # all that is shown.
    shape = tf.shape(pixels)[:2]
    kept = tf.minimum(shape, eval_crops.LONGEST * tf.reduce_min(shape))
    pixels = tf.slice(pixels, tf.concat([(shape - kept) // 2, [0]], 0),
                      tf.concat([kept, [channels]], 0))
    shape = tf.cast(kept, tf.float64)
    scale = tf.reduce_max(tf.cast(larger, tf.float64) / shape)
    larger = tf.maximum(tf.cast(tf.round(shape * scale), tf.int32), larger)
  spare = larger - size
  if crop == 'bit':
    place = tf.random.stateless_uniform([2], key)
    top = tf.cast(place * tf.cast(spare + 1, tf.float32), tf.int32)
    top = tf.minimum(top, spare)
  else:
    top = spare // 2
  pixels = resize(pixels, larger)
  pixels = pixels[top[0]:top[0] + size[0], top[1]:top[1] + size[1]]
  return tf.ensure_shape(pixels, [*size, channels])


def _whole(tf, file, channels, crop):
  """All pixels; of an evaluation's crop those that `images.pixels` gives.

  What is evaluated must be what is predicted, without TensorFlow. Its default
  for JPEG is the fast inverse DCT, 7% faster; of 200 photos of ImageNet it was
  1.2 levels off on average and up to 25. The accurate one has Pillow's bits.
  Grey is what Pillow makes of colours, from which a JPEG's own differs.
  """
  if crop not in eval_crops.CROPS:
    return tf.io.decode_image(file, channels=channels, expand_animations=False)
  pixels = tf.cond(
      tf.io.is_jpeg(file),
      lambda: tf.io.decode_jpeg(file, channels=3,
                                dct_method='INTEGER_ACCURATE'),
      lambda: tf.io.decode_image(file, channels=3, expand_animations=False))
  if channels == 3:
    return pixels
  sums = tf.reduce_sum(tf.cast(pixels, tf.int32) * _LUMA, -1, keepdims=True)
  return tf.cast((sums + 2**15) // 2**16, tf.uint8)


def _inception(tf, file, key, channels, min_area):
  """The crop, in pixels of the image; of a JPEG nothing else is decoded."""
  return _cropped(tf, file, _window(tf, file, key, min_area), channels)


def _cropped(tf, file, window, channels):
  whole = lambda: tf.io.decode_image(file, channels=channels,
                                     expand_animations=False)
  return tf.cond(
      tf.io.is_jpeg(file),
      lambda: tf.image.decode_and_crop_jpeg(file, window, channels=channels),
      lambda: tf.slice(whole(), tf.concat([window[:2], [0]], 0),
                       tf.concat([window[2:], [channels]], 0)))


def _window(tf, file, key, min_area):
  """(top, left, height, width) of the crop."""
  shape = tf.cond(
      tf.io.is_jpeg(file), lambda: tf.image.extract_jpeg_shape(file),
      lambda: tf.shape(tf.io.decode_image(file, expand_animations=False)))
  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
      shape, tf.zeros([0, 0, 4]), seed=key, area_range=(min_area, 1.0),
      aspect_ratio_range=(3 / 4, 4 / 3), min_object_covered=0.0,
      max_attempts=100, use_image_if_no_bounding_boxes=True)
  return tf.concat([begin[:2], extent[:2]], 0)


def _resize(tf, pixels, size, method):
  """Resized, and cut to whole levels, as the official code does."""
  antialias = method in ('bilinear_antialias', 'bicubic')
  method = method.removesuffix('_antialias')
  if method == 'bilinear':   # TensorFlow's is twice as fast on floats
    pixels = tf.cast(pixels, tf.float32)
  pixels = tf.image.resize(pixels, size, method=method,
                           antialias=antialias)
  if method == 'bicubic':   # which overshoots
    pixels = tf.clip_by_value(pixels, 0.0, 255.0)
  return tf.cast(pixels, tf.uint8)


def bare(files, keys, *, channels, crop, min_area=0.05):
  """The decoding alone, fused with the crop: no pipeline can be faster.

  Args:
    files: encoded images, in memory.
    keys: int32 [n, 2], of their crops.
    channels, crop, min_area: as in `batches`.

  Returns:
    run(), which decodes them all once with as many threads as `batches`.
  """
  tf = _tensorflow()
  files = np.array(files, object)
  if crop == 'inception':
    windows = np.array([_window(tf, file, key, min_area).numpy()
                        for file, key in zip(files, keys)])
    decode = lambda file, window: _cropped(tf, file, window, channels)
  else:
    windows = np.zeros((len(files), 4), np.int32)
    decode = lambda file, window: _whole(tf, file, channels, crop)
  ds = tf.data.Dataset.from_tensor_slices((files, windows))
  ds = _with_threads(tf, ds.map(
      lambda *x: tf.shape(decode(*x))[0], deterministic=True,
      num_parallel_calls=4 * (os.cpu_count() or 1)).batch(64))

  def run():
    for _ in ds.as_numpy_iterator():
      pass

  return run
