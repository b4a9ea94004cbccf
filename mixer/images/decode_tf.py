"""Decodes, crops and resizes encoded images on the host with tf.data.

TensorFlow is imported by the functions here, so only data sets that do not fit
on the device need it. It never touches an accelerator.
"""
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import os

import numpy as np

from mixer.core import errors
from mixer.images import decode_pillow
from mixer.images import options
from mixer.images import tf_setup

# load(batch number, first row, last row + 1) -> (encoded images, their keys,
# other arrays by name).
Load = Callable[[int, int, int], tuple[
    Sequence[bytes], np.ndarray, Mapping[str, np.ndarray]]]
_GROUP = 16   # records that one call into Python reads
_MANY = 3 * 2**23   # samples that are resized without making floats of them
# Luminance of red, green and blue (ITU-R BT.601) in units of 2**-16, as in
# Pillow.
_LUMA = (19595, 38470, 7471)


def batches(
    load: Load, like: Mapping[str, np.ndarray], *, first: int, last: int,
    batch_size: int, image_size: tuple[int, int], channels: int, crop: str,
    interpolation: str, min_area: float = 0.05, in_order: bool = False
) -> Iterator[dict[str, np.ndarray]]:
  """Yields decoded batches in order, whatever the number of threads.

  Args:
    load: (batch number, first, last) -> (files, keys, rest) of the rows
      [first, last) of a batch: encoded images [n], int32 keys [n, 2] of the
      random crops, and a dict of arrays [n, ...] that are handed on unchanged.
    like: empty arrays with the names, dtypes and trailing shapes of `rest`.
    first: number of the first batch.
    last: number of the last batch + 1.
    batch_size: b, the number of images in a batch on this process.
    image_size: (height, width) of the result.
    channels: number of channels of the result, 1 or 3.
    crop: what is shown of an image.
      'inception': an area of at least `min_area` of the image with an aspect
        ratio of 3/4 to 4/3, drawn with the key (GoogLeNet's crop; section 3 of
        the Mixer paper).
      'bit': the whole image is resized to 8/7 of the size, then cropped at
        random (BiT's crop for fine-tuning; section 3).
      'resmall': the shorter side is resized to 8/7 of the size, then the centre
        is cropped (evaluation; appendix C).
      'resize_crop': the whole image is resized to 8/7 of the size, then the
        centre is cropped (evaluation; appendix C).
      'resize': the whole image is resized, and the aspect ratio is ignored.
      The last three give the pixels of `eval_crops.view`.
    interpolation: 'bilinear' without antialiasing, as in the official code;
      'bilinear_antialias' and 'bicubic' with antialiasing, as in Pillow and
      timm; or 'area'.
    min_area: smallest share of the image that an Inception crop shows.
    in_order: whether `load` must be called for one row after the other.

  Yields:
    Dicts with 'image', uint8 [b, height, width, channels], and the arrays of
    `rest`, [b, ...].

  Raises:
    RunError: if an image cannot be decoded. An error that `load` raises is
      raised here unchanged.
  """
  tf = tf_setup.load()
  group = batch_size if in_order else next(
      g for g in range(min(_GROUP, batch_size), 0, -1) if batch_size % g == 0)
  parts = batch_size // group
  threads = os.cpu_count() or 1
  failed: list[Exception] = []   # tf.data would replace them by its own errors

  def read(i):
    number, part = divmod(int(i), parts)
    try:
      files, keys, rest = load(number, part * group, (part + 1) * group)
    except Exception as e:
      failed.append(e)
      raise
    return np.array(files, object), keys, *(rest[name] for name in like)

  dtypes = [tf.string, tf.int32] + [tf.as_dtype(x.dtype) for x in like.values()]
  shapes = [(group,), (group, 2)] + [
      (group, *x.shape[1:]) for x in like.values()]

  def read_group(i):
    file, key, *rest = tf.numpy_function(read, [i], dtypes)
    for x, shape in zip((file, key, *rest), shapes):
      x.set_shape(shape)
    return file, key, dict(zip(like, rest))

  def decode(file, key, rest):
    return dict(rest, image=_pixels(tf, file, key, image_size, channels, crop,
                                    interpolation, min_area))

  ds = tf.data.Dataset.range(first * parts, last * parts)
  ds = ds.map(read_group, num_parallel_calls=1 if in_order else threads,
              deterministic=True)
  # More calls than threads, because calls that only wait for an earlier one to
  # finish are counted too.
  ds = ds.unbatch().map(decode, num_parallel_calls=4 * threads,
                        deterministic=True)
  ds = ds.batch(batch_size, drop_remainder=True).prefetch(2)
  try:
    yield from _with_threads(tf, ds).as_numpy_iterator()
  except tf.errors.OpError as e:
    if failed:
      raise failed[0] from None
    raise errors.RunError(
        f'an image can no longer be decoded ({_message(e)}); it may have '
        'changed during the run: check the image files and start the run '
        'again') from e


def check(file: bytes) -> None:
  """Decodes all of an encoded image, as `batches` would.

  Raises:
    BadImage: if any part of it cannot be decoded, also one that no crop shows.
  """
  tf = tf_setup.load()
  jpeg = file[:3] == b'\xff\xd8\xff'
  try:
    if jpeg:
      # At 1/8 of the size every coefficient is still read, which is what fails
      # for damaged data, but few are transformed.
      tf.io.decode_jpeg(file, channels=3, ratio=8)
    else:
      tf.io.decode_image(file, channels=3, expand_animations=False)
  except tf.errors.OpError as e:
    raise decode_pillow.BadImage(
        'the JPEG data are damaged or end early' if jpeg else _message(e)
    ) from e


def decode_only(
    files: Sequence[bytes], keys: np.ndarray, *, channels: int, crop: str,
    min_area: float = 0.05) -> Callable[[], None]:
  """Makes a function that decodes and crops images and does nothing else.

  No input pipeline can be faster than this function, which a benchmark needs.

  Args:
    files: encoded images, in memory.
    keys: int32 [n, 2], the keys of their crops.
    channels: as in `batches`.
    crop: as in `batches`.
    min_area: as in `batches`.

  Returns:
    run(), which decodes all images once with as many threads as `batches`.
  """
  tf = tf_setup.load()
  encoded = np.array(files, object)
  if crop == 'inception':
    shapes = [tf.image.extract_jpeg_shape(file) if tf.io.is_jpeg(file)
              else tf.shape(_whole(tf, file, channels, crop)) for file in files]
    windows = np.array([_window(tf, shape, key, min_area).numpy()
                        for shape, key in zip(shapes, keys)])
    decode = lambda file, window: _cropped(
        tf, file, lambda shape: window, channels)
  else:
    windows = np.zeros((len(files), 4), np.int32)
    decode = lambda file, window: _whole(tf, file, channels, crop)
  ds = tf.data.Dataset.from_tensor_slices((encoded, windows))
  ds = _with_threads(tf, ds.map(
      lambda *x: tf.shape(decode(*x))[0], deterministic=True,
      num_parallel_calls=4 * (os.cpu_count() or 1)).batch(64))

  def run():
    for _ in ds.as_numpy_iterator():
      pass

  return run


def _with_threads(tf, ds):
  """A dataset with a thread per core and no buffers but those asked for."""
  settings = tf.data.Options()
  settings.deterministic = True
  settings.threading.private_threadpool_size = os.cpu_count() or 1
  settings.experimental_optimization.inject_prefetch = False
  return ds.with_options(settings)


def _message(error):
  """The text of a TensorFlow error without the names of its ops."""
  text = error.message.partition(' [[')[0].rpartition('}}')[2]
  return decode_pillow.one_line(text.partition(' [Op:')[0])


def _pixels(tf, file, key, size, channels, crop, interpolation, min_area):
  """One encoded image as uint8 [*size, channels]."""
  resize = lambda pixels, to: _resize(tf, pixels, to, interpolation)
  if crop == 'inception':
    window_of = lambda shape: _window(tf, shape, key, min_area)
    return resize(_cropped(tf, file, window_of, channels), size)
  pixels = _whole(tf, file, channels, crop)
  pixels.set_shape([None, None, channels])
  if crop == 'resize':
    return resize(pixels, size)
  larger = tf.constant([s * 8 // 7 for s in size])
  if crop == 'resmall':
    # An image that is one line of pixels would be enlarged to gigabytes, and
    # only its middle is shown.
    shape = tf.shape(pixels)[:2]
    kept = tf.minimum(shape, options.MAX_ASPECT * tf.reduce_min(shape))
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
  """All pixels of an image, for evaluation those of `decode_pillow.pixels`.

  Evaluation must see the pixels that prediction sees, which works without
  TensorFlow. For JPEG, TensorFlow's default is a fast inverse DCT: it is 7%
  faster, and on 200 photos of ImageNet it was 1.2 levels off on average and up
  to 25. The accurate DCT agrees with Pillow bit for bit. Grey is computed from
  the colours as Pillow does it; a JPEG's own luminance differs from that.
  """
  if crop not in options.EVALUATION_CROPS:
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


def _cropped(tf, file, window_of, channels):
  """The pixels of a window; of a JPEG nothing else is decoded.

  Everything that depends on the format is in one `tf.cond`, since another one
  takes a twentieth of the time of a photo of ImageNet. `window_of` gives the
  window of an image's shape.
  """
  def jpeg():
    window = window_of(tf.image.extract_jpeg_shape(file))
    return tf.image.decode_and_crop_jpeg(file, window, channels=channels)

  def other():
    whole = tf.io.decode_image(file, channels=channels, expand_animations=False)
    window = window_of(tf.shape(whole))
    return tf.slice(whole, tf.concat([window[:2], [0]], 0),
                    tf.concat([window[2:], [channels]], 0))

  return tf.cond(tf.io.is_jpeg(file), jpeg, other)


def _window(tf, shape, key, min_area):
  """(top, left, height, width) of an Inception crop, in pixels."""
  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
      shape, tf.zeros([0, 0, 4]), seed=key, area_range=(min_area, 1.0),
      aspect_ratio_range=(3 / 4, 4 / 3), min_object_covered=0.0,
      max_attempts=100, use_image_if_no_bounding_boxes=True)
  return tf.concat([begin[:2], extent[:2]], 0)


def _resize(tf, pixels, size, method):
  """A resized image, truncated to whole levels as in the official code."""
  antialias = method in ('bilinear_antialias', 'bicubic')
  method = method.removesuffix('_antialias')
  resize = lambda x: tf.image.resize(x, size, method=method,
                                     antialias=antialias)
  if method == 'bilinear':
    # TensorFlow's kernel is twice as fast on floats, which take four times the
    # memory; the result is the same.
    whole = pixels
    pixels = tf.cond(tf.size(whole) > _MANY, lambda: resize(whole),
                     lambda: resize(tf.cast(whole, tf.float32)))
  else:
    pixels = resize(pixels)
  if method == 'bicubic':   # which overshoots
    pixels = tf.clip_by_value(pixels, 0.0, 255.0)
  return tf.cast(pixels, tf.uint8)
