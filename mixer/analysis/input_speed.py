"""How fast examples come from files: our pipelines, and the decoding alone.

Each round runs everything once, in turn. A pipeline's clock starts at its
first batch, so that what it takes to start one is left out; the decoding alone
has the same files and crops in memory and does nothing else.
"""
import concurrent.futures
import importlib
import io
import itertools
import os
import time

import numpy as np
import psutil

from mixer.analysis import peers
from mixer.core import errors
from mixer.data import rows
from mixer.images import decode_tf

PEERS = ('big_vision', 'pillow')


def measure(data, held_out, *, batch_size, images, rounds, seconds, compare,
            directory):
  """Times the pipelines of a config.

  Args:
    data: `pipeline.Data` of training, decoded on the host.
    held_out: `pipeline.Data` of an evaluation.
    batch_size: images of a batch.
    images: of a round, about.
    rounds: at most so many.
    seconds: no round begins after so many, but three are always run.
    compare: names of PEERS.
    directory: holds the peers' checkouts.

  Returns:
    A JSON-ready dict.
  """
  for name in compare:
    if name not in PEERS:
      raise errors.unknown('--compare', name, PEERS)
  steps = max(2, -(-images // batch_size))
  train = lambda: data.train_batches(
      seed=0, batch_size=batch_size, first=0, last=steps + 1,
      slots=(0, batch_size))
  small = min(batch_size, max(1, len(held_out) // 4))
  passes = max(1, images // len(held_out))
  evaluate = lambda: held_out.eval_batches(
      batch_size=small, slots=(0, small))
  candidates = dict(
      train=lambda: _rate(train(), batch_size),
      eval=lambda: np.median([_rate(evaluate(), small)
                              for _ in range(passes)]),
      decode=_bare(data, batch_size, steps),
      eval_decode=_bare_evaluation(held_out))
  for name in compare:
    make = dict(big_vision=_big_vision, pillow=_pillow)[name]
    candidates[name] = make(data, batch_size, steps, directory)

  for run in candidates.values():   # compiles, and decodes all for the first
    run()                           # time, which checks every image
  memory = [_resident()]
  rates, end = {name: [] for name in candidates}, time.monotonic() + seconds
  while len(memory) <= min(3, rounds) or (
      len(memory) <= rounds and time.monotonic() < end):
    turn = len(memory) % len(candidates)   # nobody is always first
    names = list(candidates)
    for name in names[turn:] + names[:turn]:
      rates[name].append(candidates[name]())
    memory.append(_resident())
  return _report(rates, memory, batch_size, compare)


def _report(rates, memory, batch_size, compare):
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


def _rate(batches, size):
  """Images a second from the first batch on."""
  next(batches)
  began, count = time.perf_counter(), 0
  for count, _ in enumerate(batches, 1):
    pass
  return count * size / (time.perf_counter() - began)


def _bare(data, batch_size, steps):
  """The training pipeline's files and crops, only decoded."""
  load, *_ = rows.training(data, seed=0, batch_size=batch_size, first=0,
                              slots=(0, batch_size))
  load(0, 0, batch_size)   # which the pipelines' clocks leave out
  loaded = [load(step, 0, batch_size) for step in range(1, steps + 1)]
  files = list(itertools.chain.from_iterable(x[0] for x in loaded))
  keys = np.concatenate([x[1] for x in loaded])
  return _timed(decode_tf.bare(
      files, keys, channels=data.source.channels, crop=data.cut['crop'],
      min_area=data.cut['min_area']), len(files))


def _bare_evaluation(data):
  count = min(len(data), 512)
  _, load, _ = rows.evaluation(data, batch_size=count, slots=(0, count))
  files, _, _ = load(0, 0, count)
  return _timed(decode_tf.bare(
      files, np.zeros((len(files), 2), np.int32), crop=data.cut['crop'],
      channels=data.source.channels), len(files))


def _timed(run, count):
  def rate():
    began = time.perf_counter()
    run()
    return count / (time.perf_counter() - began)
  return rate


def _resident():
  return psutil.Process().memory_info().rss


def _big_vision(data, batch_size, steps, directory):
  """Its training input: shuffled files, crop, flip and scaling on the host."""
  peers.importable('big_vision', 'big_vision.input_pipeline', directory)
  module = lambda name: importlib.import_module(f'big_vision.{name}')
  module('pp.ops_image'), module('pp.ops_general')
  size = data.image_size[0]
  preprocess = module('pp.builder').get_preprocess_fn(
      f'decode_jpeg_and_inception_crop({size})|flip_lr|value_range(-1, 1)|'
      'keep("image", "label")')
  source = module('datasets.tfds').DataSource(
      'from_data_dir', data.split.spec, data_dir=data.source.directory)
  ds = module('input_pipeline').make_for_train(
      source.get_tfdata(ordered=False), preprocess, batch_size,
      shuffle_buffer_size=len(data))
  options = type(ds.options())()   # only the threads are ours
  options.threading.private_threadpool_size = os.cpu_count() or 1
  ds = ds.with_options(options)
  return lambda: _rate(
      itertools.islice(ds.as_numpy_iterator(), steps + 1), batch_size)


def _pillow(data, batch_size, steps, directory):
  """What torchvision's RandomResizedCrop does in a thread for every core."""
  del directory
  from PIL import Image
  load, *_ = rows.training(data, seed=0, batch_size=batch_size, first=0,
                              slots=(0, batch_size))

  def one(file, key):
    image = Image.open(io.BytesIO(file)).convert('RGB')
    box = _random_box(image.size, np.random.default_rng(key.view(np.uint32)))
    return np.asarray(image.crop(box).resize(
        data.image_size[::-1], Image.Resampling.BILINEAR))

  def batches(pool):
    for step in range(steps + 1):
      files, keys, _ = load(step, 0, batch_size)
      yield np.stack(list(pool.map(one, files, keys)))

  def rate():
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      return _rate(batches(pool), batch_size)

  return rate


def _random_box(size, rng):
  """(left, top, right, bottom): 5% to 100% of the area, aspect 3/4 to 4/3."""
  width, height = size
  for _ in range(10):
    area = width * height * rng.uniform(0.05, 1)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    if 0 < w <= width and 0 < h <= height:
      left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
      return left, top, left + w, top + h
  return 0, 0, width, height
