"""Checks that an exported file gives the network's own outputs.

Weights have to be the same bits. A program has to give the same outputs for
random images, up to `tolerance`.

A program that crops cuts its pixels to whole levels, so a last bit of a float32
sum can move a pixel by a whole level. Its images are therefore drawn so that no
pixel of the crop is in doubt. Where that is impossible, as with weights of
thirds, the tolerance grows by what the doubtful pixels may change.
"""
import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import errors
from mixer.core import trees
from mixer.images import eval_crops
from mixer.pretrained import formats
from mixer.pretrained import network as networks
from mixer.pretrained import program

TOLERANCE = 1e-4   # of float32
# int8 has no bound by rounding: outputs so far off are lost. What it costs is
# measured on real images instead.
_LOST = 0.5
_BATCHES = 1, 3   # images of the two calls that a program is checked by
# How far from a whole level, in levels, a pixel of the crop is in doubt.
_DOUBT = 1e-4
_TRIES = 50   # to draw images without such a pixel


def weights(network: networks.Network, path: str) -> float:
  """Returns 0.0 if the weights in a file are the network's, bit for bit.

  Raises:
    RunError: if they are not.
  """
  wanted = trees.flatten(network.params)
  written = trees.flatten(formats.load(path))
  bits = lambda x: np.asarray(x, np.float32).view(np.uint32)
  wrong = [name for name in sorted(wanted.keys() | written.keys())
           if name not in wanted or name not in written
           or not np.array_equal(bits(wanted[name]), bits(written[name]))]
  if wrong:
    raise errors.RunError(
        f'the written weights differ from {network.name!r} in {len(wrong)} '
        f'tensors, the first is {wrong[0]}: nothing was exported')
  return 0.0


def tolerance(network: networks.Network, precision: str) -> float:
  """Returns the largest difference of outputs that a program may have.

  In float16, every array of parameters enters an operation that rounds its
  result by up to 2**-11. Independent errors add up like the root of their
  number.

  Args:
    network: that was written.
    precision: one of `program.PRECISIONS`.
  """
  operations = len(trees.flatten(network.params))
  return dict(float32=TOLERANCE, int8=_LOST,
              float16=TOLERANCE + 2**-11 * operations**.5)[precision]


def outputs(network: networks.Network, run: program.Run, path: str,
            options: program.Options) -> float:
  """Returns the largest difference between the outputs of a program and of the
  network.

  Logits are compared both relative to the largest of them and as probabilities,
  because a logit may be wrong although it is small as a probability.

  Args:
    network: that was written.
    run: runs what was written.
    path: for errors.
    options: of the program.

  Raises:
    RunError: if the difference is larger than allowed.
  """
  images, *shown = _images(network, sum(_BATCHES), options)
  as_output = lambda x: np.asarray(
      program.probabilities(network, jnp.asarray(x)))
  with _on_cpu():
    if options.layout == 'nchw':
      images = images.transpose(0, 3, 1, 2)
    got = np.concatenate([run(x) for x in np.split(images, _BATCHES[:-1])])
    logits = np.asarray(jax.jit(network.model.apply)(
        {'params': network.params}, np.concatenate(shown))[0])
    wanted, *extremes = np.split(as_output(logits), len(shown))
    worst = 0.0
    if not options.preprocess:
      worst = _largest(got, logits) / max(1.0, float(np.abs(logits).max()))
      got = as_output(got)
  worst = max(worst, _largest(got, wanted))
  allowed = tolerance(network, options.precision) + (
      _largest(*extremes) if extremes else 0)
  if not worst <= allowed < np.inf:
    raise errors.RunError(
        f'the program written to {path!r} differs from {network.name!r} by '
        f'{worst:.1e}, more than the allowed {allowed:.1e}: nothing was '
        'exported' + '; take --precision=float32' * (
            options.precision != 'float32'))
  return worst


def _largest(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the largest difference; infinite if one is not a number."""
  if a.shape != b.shape:
    return np.inf
  return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())


def _images(network: networks.Network, count: int,
            options: program.Options) -> tuple[np.ndarray, ...]:
  """Returns images for the program, then float32 images for the network.

  With an `input_size` there are three of the latter: the evaluation's crop, and
  that crop with every doubtful pixel cut to the lower and to the higher level.
  """
  height, width = options.input_size or network.image_size
  shape = count, height, width, network.model.in_channels
  rng = np.random.default_rng(0)
  if not options.preprocess:
    images = rng.uniform(-1, 1, shape).astype(np.float32)
    return images, images
  images = rng.integers(0, 256, shape, np.uint8)
  signed = lambda x: (x.astype(np.float32) - 127.5) / 127.5
  if options.input_size is None:
    return images, signed(images)
  maps = program.crop_maps(network, options.input_size)
  doubt = _DOUBT * ~_is_exact(*maps)[:, :, None]
  images, exact = _without_doubt(images, maps, doubt, rng)
  shown = np.stack([eval_crops.view(image, size=network.image_size,
                                    **network.card['preprocessing'])
                    for image in images])
  low, high = (np.floor(np.clip(exact + bits, 0, 255))
               for bits in (-doubt, doubt))
  if not np.all((low <= shown) & (shown <= high)):
    raise errors.RunError(f'{network.name!r}: the crop of {height}x{width} '
                          'images is not the one of evaluation')
  return images, signed(shown), signed(low), signed(high)


def _is_exact(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """Returns where a crop has no rounding that depends on the order of sums.

  Those are the pixels with a single product, and those whose weights are whole
  64ths, with which sums are exact in float32.

  Args:
    rows, columns: as `program.crop_maps` returns them.

  Returns:
    bool [height, width].
  """
  sixtyfourths, single = (
      test(rows)[:, None] & test(columns) for test in (
          lambda side: (side * 64 % 1 == 0).all(axis=1),
          lambda side: (side != 0).sum(axis=1) == 1))
  return sixtyfourths | single


def _without_doubt(images: np.ndarray, maps: tuple[np.ndarray, np.ndarray],
                   doubt: np.ndarray, rng: np.random.Generator) -> tuple[
                       np.ndarray, np.ndarray]:
  """Returns images whose crops have no pixel near a whole level, if it finds
  such, and their crops before these are cut, in float64.

  Args:
    images: uint8 [B, h, w, c] to start from; some pixels are drawn again.
    maps: as `program.crop_maps` returns them.
    doubt: [height, width, 1], how near to a whole level is too near.
    rng: draws the pixels.
  """
  rows, columns = (side.astype(float) for side in maps)
  for tries in range(_TRIES):
    exact = np.einsum('yh,bhwc,xw->byxc', rows, images, columns, optimize=True)
    b, y, x, c = np.nonzero(
        (np.abs(exact - np.round(exact)) < doubt)
        & (exact > -doubt) & (exact < 255 + doubt))
    if not b.size or tries == _TRIES - 1:
      break
    # The pixel with the largest weight changes the sum most.
    images[b, rows[y].argmax(1), columns[x].argmax(1), c] = rng.integers(
        0, 256, b.size)
  return images, exact


def _on_cpu() -> contextlib.AbstractContextManager:
  """Computes on the CPU, where products are whole float32 and ONNX Runtime
  computes too."""
  try:
    return jax.default_device(jax.devices('cpu')[0])
  except RuntimeError:   # JAX_PLATFORMS leaves the CPU out
    return contextlib.nullcontext()
