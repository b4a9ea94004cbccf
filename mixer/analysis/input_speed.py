"""Measures how fast examples are read: our pipelines, peers, bare decoding.

Each round runs every candidate once. The clock of a pipeline starts at its
first batch, so the time to start it does not count. "Decoding alone" gets the
same files and crops in memory, decodes them and does nothing else, so no
pipeline can be faster.
"""
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import concurrent.futures
import contextlib
import importlib
import io
import itertools
import os
import time
from typing import Any

import ml_collections
import numpy as np
import psutil

from mixer.analysis import peers
from mixer.analysis import step_speed
from mixer.core import errors
from mixer.data import pipeline
from mixer.evaluation import suite
from mixer.images import decode_tf
from mixer.images import options
from mixer.training import assembly

PEERS = ('big_vision', 'pillow')
_BARE_IMAGES = 512   # of an evaluation split, for its decoding alone

# Runs a candidate once; returns its images per second.
Rate = Callable[[], float]


def opened(config: ml_collections.ConfigDict
           ) -> tuple[pipeline.Data, pipeline.Data]:
  """Opens the training split of a config, and one evaluation's, to measure.

  Raises:
    UserError: if the config is wrong or has no evaluation, or if the images of
      one of the two are kept on the device.
  """
  settings = assembly.check(config)
  sections, _ = suite.sections(config.to_dict())
  names = [key for key in sections if key.startswith('evals.')]
  if not names:
    raise errors.UserError('evals: the config has none, and input measures an '
                           'evaluation too; add one')
  name = 'evals.validation' if 'evals.validation' in names else names[0]
  for key in ('data', name):
    if sections[key].get('on_device'):
      raise errors.UserError(
          f'{key}.on_device: the images are decoded only once, so there is no '
          f'input pipeline to measure; add --config.{key}.on_device=False')
  data, evals, _ = suite.open_splits(config.to_dict(), settings.image_size)
  chosen = data, evals[name.removeprefix('evals.')]
  for split in chosen:
    if split.resident is not None:
      raise errors.UserError(
          f'{split.key}.name: {split.source.name} is in the memory of the '
          'device, so it has no input pipeline to measure; give a data set of '
          'image files')
  return chosen


def measure(data: pipeline.Data, held_out: pipeline.Data, *, batch_size: int,
            images: int, rounds: int, seconds: float, compare: Sequence[str],
            directory: str | None) -> dict[str, Any]:
  """Times the pipelines of a config, the peers', and decoding alone.

  Args:
    data: the training split, decoded on the host.
    held_out: an evaluation split.
    batch_size: images in a batch.
    images: images in a round, about.
    rounds, seconds: limits, as for `step_speed.in_turn`.
    compare: names from PEERS.
    directory: holds the peers' checkouts.

  Returns:
    A dict ready for JSON.

  Raises:
    UserError: if a peer is unknown or cannot be imported, or would have other
      work.
  """
  for name in compare:
    if name not in PEERS:
      raise errors.unknown('--compare', name, PEERS)
    _check_comparable(name, data)
  candidates = _ours(data, held_out, batch_size, images)
  steps = _steps(images, batch_size)
  for name in compare:
    make = dict(big_vision=_big_vision, pillow=_pillow)[name]
    candidates[name] = make(data, batch_size, steps, directory)

  # The first run compiles the pipelines, and decodes every image in full to
  # check it. Both happen once in a training, so they are not timed.
  for run in candidates.values():
    run()
  memory = [_resident_bytes()]
  rates: dict[str, list[float]] = {name: [] for name in candidates}
  for turn in step_speed.in_turn(
      list(candidates), rounds=rounds, seconds=seconds):
    for name in turn:
      rates[name].append(candidates[name]())
    memory.append(_resident_bytes())
  return _report(rates, memory, batch_size, compare)


def _check_comparable(name: str, data: pipeline.Data) -> None:
  """Raises a UserError if a peer would not cut the same images as `data`."""
  for key, value in dict(crop='inception', min_area=0.05,
                         interpolation=options.CROPS['inception']).items():
    if data.cut[key] != value:
      raise errors.UserError(
          f'--compare: {name} has only data.{key}={value!r}, and the config '
          f'has {data.cut[key]!r}; add --config.data.{key}={value}')
  height, width = data.image_size
  if name == 'big_vision' and (
      height != width or data.source.directory is None):
    raise errors.UserError(
        f'--compare: {name} reads only TFDS sets and cuts only squares, got '
        f'{data.source.name} and {height}x{width}; leave {name} out')


def _ours(data: pipeline.Data, held_out: pipeline.Data, batch_size: int,
          images: int) -> dict[str, Rate]:
  steps = _steps(images, batch_size)
  train = lambda: data.train_batches(
      seed=0, batch_size=batch_size, first=0, last=steps + 1,
      slots=(0, batch_size))
  # At least four batches, since the first is not timed.
  small = min(batch_size, max(1, len(held_out) // 4))
  passes = max(1, images // len(held_out))

  def evaluate():
    # Closing it ends its thread, which would slow down the next candidate.
    with contextlib.closing(held_out.eval_batches(
        batch_size=small, slots=(0, small))) as batches:
      return _rate(itertools.islice(
          batches, _steps(images, small) + 1), None)

  return dict(
      train=lambda: _rate(train(), batch_size),
      eval=lambda: float(np.median([evaluate() for _ in range(passes)])),
      decode=_decoding(data, batch_size, steps),
      eval_decode=_evaluation_decoding(held_out))


def _steps(images: int, batch_size: int) -> int:
  return max(2, -(-images // batch_size))


def _report(rates: dict[str, list[float]], memory: list[int], batch_size: int,
            compare: Sequence[str]) -> dict[str, Any]:
  median = {name: float(np.median(r)) for name, r in rates.items()}
  ratio = lambda a, b: float(np.median(np.array(rates[a]) / rates[b]))
  out = {f'{name}_images_per_second': median[name]
         for name in ('train', 'eval', 'decode', 'eval_decode')}
  return dict(
      mode='input', batch_size=batch_size, threads=os.cpu_count(),
      rounds=len(memory) - 1, **out, train_of_decode=ratio('train', 'decode'),
      eval_of_decode=ratio('eval', 'eval_decode'), memory_bytes=memory,
      peers={name: dict(images_per_second=median[name],
                        ratio=ratio('train', name)) for name in compare})


def _rate(batches: Iterator[Any], size: int | None) -> float:
  """Returns images per second, counted from the first batch on.

  Args:
    batches: to read.
    size: images in each; None to count those that a batch's mask marks.
  """
  next(batches)
  began = time.perf_counter()
  count = sum(size or int(batch['mask'].sum()) for batch in batches)
  return count / (time.perf_counter() - began)


def _files(data: pipeline.Data, batch_size: int,
           steps: int) -> Iterator[tuple[Sequence[bytes], np.ndarray]]:
  """Yields the encoded files and the crops' keys of each training batch."""
  rows = data.training_rows(seed=0, batch_size=batch_size, first=0,
                            slots=(0, batch_size))
  try:
    for step in range(steps):
      files, keys, _ = rows.load(step, 0, batch_size)
      yield files, keys
  finally:
    rows.close()


def _decoding(data: pipeline.Data, batch_size: int, steps: int) -> Rate:
  """Decodes the files and crops that the training pipeline is timed with."""
  # A pipeline's clock starts after its first batch, so that one is left out.
  timed = list(itertools.islice(
      _files(data, batch_size, steps + 1), 1, None))
  files = list(itertools.chain.from_iterable(files for files, _ in timed))
  keys = np.concatenate([keys for _, keys in timed])
  return _timed(decode_tf.decode_only(
      files, keys, channels=data.source.channels, crop=data.cut['crop'],
      min_area=data.cut['min_area']), len(files))


def _evaluation_decoding(data: pipeline.Data) -> Rate:
  """Decodes the first files of an evaluation split."""
  count = min(len(data), _BARE_IMAGES)
  load = data.evaluation_rows(batch_size=count, slots=(0, count)).load
  files, _, _ = load(0, 0, count)
  return _timed(decode_tf.decode_only(
      files, np.zeros((len(files), 2), np.int32), crop=data.cut['crop'],
      channels=data.source.channels), len(files))


def _timed(run: Callable[[], None], count: int) -> Rate:
  def rate():
    began = time.perf_counter()
    run()
    return count / (time.perf_counter() - began)
  return rate


def _resident_bytes() -> int:
  return psutil.Process().memory_info().rss


def _big_vision(data: pipeline.Data, batch_size: int, steps: int,
                directory: str | None) -> Rate:
  """big_vision's training input: shuffled, cropped, flipped and scaled."""
  peers.importable('big_vision', 'big_vision.input_pipeline', directory)
  module = lambda name: importlib.import_module(f'big_vision.{name}')
  # Importing these registers the operations that the string below names.
  module('pp.ops_image')
  module('pp.ops_general')
  size = data.image_size[0]
  preprocess = module('pp.builder').get_preprocess_fn(
      f'decode_jpeg_and_inception_crop({size})|flip_lr|value_range(-1, 1)|'
      'keep("image", "label")')
  source = module('datasets.tfds').DataSource(
      'from_data_dir', data.split.spec, data_dir=data.source.directory)
  ds = module('input_pipeline').make_for_train(
      source.get_tfdata(ordered=False), preprocess, batch_size,
      shuffle_buffer_size=len(data))
  # Everything else is as big_vision sets it; the threads are as many as ours.
  options = type(ds.options())()
  options.threading.private_threadpool_size = os.cpu_count() or 1
  ds = ds.with_options(options)
  return lambda: _rate(
      itertools.islice(ds.as_numpy_iterator(), steps + 1), batch_size)


def _pillow(data: pipeline.Data, batch_size: int, steps: int,
            directory: str | None) -> Rate:
  """torchvision's RandomResizedCrop by Pillow, one thread for each core."""
  del directory
  from PIL import Image

  def one(file, key):
    image = Image.open(io.BytesIO(file)).convert('RGB')
    box = _random_box(image.size, np.random.default_rng(key.view(np.uint32)))
    return np.asarray(image.crop(box).resize(
        data.image_size[::-1], Image.Resampling.BILINEAR))

  def batches(pool):
    for files, keys in _files(data, batch_size, steps + 1):
      yield np.stack(list(pool.map(one, files, keys)))

  def rate():
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      return _rate(batches(pool), batch_size)

  return rate


def _random_box(size: tuple[int, int],
                rng: np.random.Generator) -> tuple[int, int, int, int]:
  """Draws (left, top, right, bottom): area 5% to 100%, aspect 3/4 to 4/3."""
  width, height = size
  for _ in range(10):
    area = width * height * rng.uniform(0.05, 1)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    if 0 < w <= width and 0 < h <= height:
      left = int(rng.integers(width - w + 1))
      top = int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  return 0, 0, width, height
