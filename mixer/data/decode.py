"""Encoded files to uint8 images on the host: tf.data decodes, crops, resizes.

The only module that needs TensorFlow for input; it is imported when a data
set is too large for the device. TensorFlow never touches an accelerator.
"""
import functools
import importlib.util
import os

import numpy as np

from mixer.core import checks
from mixer.core.log import log

_GROUP = 16   # records read by one call into Python


def batches(read, requests, *, first, last, batch_size, image_size, channels,
            crop, min_area=0.05):
  """Decoded batches, in order, whatever the number of threads.

  Args:
    read: record numbers -> (encoded images, labels), as `sources.Source.read`.
    requests: batch number -> (record numbers [b], keys int32 [b, 2]).
    first, last: batch numbers to make, [first, last).
    batch_size: b, images of one batch on this process.
    image_size: (height, width) of the result.
    channels: of the result.
    crop: 'inception', an area of at least `min_area` of the image and an
      aspect of 3/4 to 4/3, drawn from the key (PAPER: GoogLeNet's, section
      3); 'resmall', the shorter side to 8/7 of the size, then the centre (the
      paper's appendix C); 'resize', the whole image, aspect ignored.
    min_area: of the Inception crop.

  Yields:
    (images uint8 [b, height, width, channels], labels int32 [b, L]).
  """
  import tensorflow as tf
  hide_accelerators()
  group = next(g for g in range(min(_GROUP, batch_size), 0, -1)
               if batch_size % g == 0)
  parts = batch_size // group
  requests = functools.lru_cache(maxsize=16)(requests)   # asked part by part
  threads = os.cpu_count() or 1

  failed = []   # tf.data turns errors of ours into its own, tracebacks and all

  def read_group(i):
    number, part = divmod(int(i), parts)
    records, keys = requests(number)
    here = slice(part * group, (part + 1) * group)
    try:
      images, labels = read(records[here])
    except Exception as e:
      failed.append(e)
      raise
    return np.array(images, object), labels, keys[here], records[here]

  def load(i):
    images, labels, keys, records = tf.numpy_function(
        read_group, [i], [tf.string, tf.int32, tf.int32, tf.int64])
    labels.set_shape([group, None])
    images.set_shape([group])
    keys.set_shape([group, 2])
    records.set_shape([group])
    return images, labels, keys, records

  def decode(image, label, key, record):
    del record
    pixels = _pixels(tf, image, key, image_size, channels, crop, min_area)
    return pixels, label

  ds = tf.data.Dataset.range(first * parts, last * parts)
  ds = ds.map(load, num_parallel_calls=max(2, threads // 4), deterministic=True)
  ds = ds.unbatch()
  ds = ds.map(decode, num_parallel_calls=threads, deterministic=True)
  ds = ds.batch(batch_size, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.deterministic = True
  options.threading.private_threadpool_size = threads
  options.experimental_optimization.inject_prefetch = False
  try:
    yield from ds.with_options(options).as_numpy_iterator()
  except tf.errors.OpError as e:
    if failed:
      raise failed[0] from None
    what = ' '.join(e.message.partition(' [[')[0].split())[-200:]
    raise checks.RunError(f'an image cannot be decoded: {what}') from e


def hide_accelerators():
  """Keeps TensorFlow, where it is installed, off the GPUs; before its first
  use, or it holds their memory already."""
  if importlib.util.find_spec('tensorflow'):
    import tensorflow as tf
    try:
      tf.config.set_visible_devices([], 'GPU')
    except RuntimeError as e:
      log.warning('TensorFlow was in use before: %s', e)


def _pixels(tf, image, key, size, channels, crop, min_area):
  """One encoded image as uint8 [*size, channels]."""
  if crop == 'inception':
    shape = tf.cond(tf.io.is_jpeg(image),
                    lambda: tf.image.extract_jpeg_shape(image),
                    lambda: tf.shape(_decode(tf, image, channels)))
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape, tf.zeros([0, 0, 4]), seed=key, area_range=(min_area, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3), min_object_covered=0.0,
        max_attempts=100, use_image_if_no_bounding_boxes=True)
    window = tf.concat([begin[:2], extent[:2]], 0)
    pixels = tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.image.decode_and_crop_jpeg(image, window, channels=channels),
        lambda: tf.slice(_decode(tf, image, channels), begin,
                         tf.concat([extent[:2], [channels]], 0)))
    return _resize(tf, pixels, size, 'bilinear')
  pixels = _decode(tf, image, channels)
  if crop == 'resize':
    return _resize(tf, pixels, size, 'bilinear')
  shape = tf.shape(pixels)[:2]
  wanted = tf.constant([s * 8 // 7 for s in size])
  scale = tf.reduce_max(tf.cast(wanted, tf.float64) /
                        tf.cast(shape, tf.float64))
  larger = tf.cast(tf.round(tf.cast(shape, tf.float64) * scale), tf.int32)
  pixels = _resize(tf, pixels, tf.maximum(larger, size), 'area')
  top = (tf.shape(pixels)[:2] - size) // 2
  return pixels[top[0]:top[0] + size[0], top[1]:top[1] + size[1]]


def _decode(tf, image, channels):
  pixels = tf.io.decode_image(image, channels=channels, expand_animations=False)
  pixels.set_shape([None, None, channels])
  return pixels


def _resize(tf, pixels, size, method):
  pixels = tf.image.resize(pixels, size, method=method)
  return tf.saturate_cast(tf.round(pixels), tf.uint8)
