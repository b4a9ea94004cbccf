"""Class probabilities for image files, without TensorFlow.

Pillow decodes the images, and `mixer.images.eval_crops` crops them as in
evaluation, so a file gets the probabilities that the evaluation gives it.
"""
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import functools
import glob
import itertools
import os
import pathlib
import sys
import typing

import jax
import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.data import folder
from mixer.images import augment
from mixer.images import decode_pillow
from mixer.images import eval_crops
from mixer.images import options
from mixer.pretrained import program

if typing.TYPE_CHECKING:
  from mixer.pretrained import network as networks

Found = Iterator[tuple[str, np.ndarray | decode_pillow.BadImage]]


def matches(arguments: Iterable[str]) -> list[str]:
  """Returns the files and folders that arguments of a command stand for.

  Args:
    arguments: paths, patterns such as 'photos/*.jpg' ('**' matches folders at
      any depth), and '-' for the lines of standard input, which are paths.

  Raises:
    UserError: if an argument is an address on the web or in a bucket, no file
      matches a pattern, or standard input has bytes of 0.
  """
  out: list[str] = []
  for path in arguments:
    if path == '-':
      lines = (os.fsdecode(line).rstrip('\r\n') for line in sys.stdin.buffer)
      out += filter(None, lines)
      if any('\0' in line for line in out):
        raise errors.UserError(
            'standard input: expected one path on each line, got bytes of 0, '
            'as of find -print0; use -print')
      continue
    path = os.path.expanduser(path)
    if files.is_remote(path):
      raise errors.UserError(
          f'{path!r} is an address; expected a file or folder of this machine, '
          'so download it first')
    # A file may be called '[1].jpg'.
    pattern = glob.escape(path) != path and not os.path.lexists(path)
    found = sorted(glob.glob(path, recursive=True)) if pattern else [path]
    if not found:
      raise errors.UserError(f'no file matches {path!r}')
    # '**' matches a folder and all that is in it.
    folders = {one.rstrip('/') for one in found if os.path.isdir(one)}
    out += [one for one in found if not folders.intersection(
        map(str, pathlib.PurePath(one).parents))]
  return out


def expand(paths: Iterable[str]) -> list[str]:
  """Returns paths of files: those given, and all images in folders given.

  Args:
    paths: of files and folders; `folder.images` lists a folder, as training
      does.

  Raises:
    UserError: if a folder holds no image or cannot be read.
  """
  out = []
  for path in paths:
    if not os.path.isdir(path):
      out.append(path)
      continue
    found = folder.images(path)
    if not found:
      raise errors.UserError(f'{path!r} holds no images '
                             f'({", ".join(decode_pillow.SUFFIXES)})')
    out += found
  return out


def best(network: 'networks.Network',
         paths: Iterable[str | os.PathLike[str]],
         top: int = 5) -> list[list[tuple[str, float]]]:
  """Returns the likeliest classes of image files, in the order of the paths.

  Args:
    network: the network.
    paths: of image files.
    top: how many classes to name.

  Returns:
    For each file, (class name, probability) of `top` classes, best first.

  Raises:
    UserError: if a file cannot be read, or the network has no classes.
  """
  if isinstance(paths, str | os.PathLike):   # else each letter would be a path
    paths = [paths]
  names, out = class_names(network), []
  for path, found in of_network(network, [os.fspath(p) for p in paths]):
    if isinstance(found, Exception):
      raise errors.UserError(f'{path!r} cannot be read: {found}')
    likeliest = np.argsort(-found, kind='stable')[:top]
    out.append([(names[i], float(found[i])) for i in likeliest])
  return out


def class_names(network: 'networks.Network') -> list[str]:
  """Returns a name for each class: its number if the card does not name it."""
  names = list(network.card['class_names'] or ())
  return names + [str(i) for i in range(len(names),
                                        network.model.num_classes or 0)]


def of_network(network: 'networks.Network', paths: Sequence[str], *,
               batch_size: int = 32,
               max_pixels: int = options.MAX_PIXELS) -> Found:
  """Returns what `predict` yields for a network, with its preprocessing.

  Args:
    network: the network.
    paths: of image files.
    batch_size, max_pixels: as for `predict`.

  Raises:
    UserError: if the network has no classes, or is not for image files.
  """
  channels = network.model.in_channels
  if not network.model.num_classes:
    raise errors.UserError(f'--checkpoint: {network.name!r} has no head, so no '
                           'classes; fine-tune it first')
  if channels not in (1, 3):
    raise errors.UserError(
        f'--checkpoint: {network.name!r} is for images of {channels} '
        'channels, and image files are read with 1 or 3; evaluate it on arrays '
        'with mixer.evaluate')
  return predict(
      paths, _compiled(network), image_size=network.image_size,
      channels=channels, batch_size=min(batch_size, max(1, len(paths))),
      max_pixels=max_pixels, **network.card['preprocessing'])


@functools.lru_cache(maxsize=1)
def _compiled(network):
  """Returns the function uint8 images [B, H, W, C] -> probabilities [B, K]."""
  params = jax.device_put(network.params)

  @jax.jit
  def probabilities(params, images):
    logits, _ = network.model.apply({'params': params},
                                    augment.normalise(images))
    return program.probabilities(network, logits)

  return lambda images: probabilities(params, images)


def predict(paths: Iterable[str],
            probabilities: Callable[[np.ndarray], jax.Array], *,
            image_size: tuple[int, int], channels: int, crop: str,
            interpolation: str, batch_size: int = 32,
            max_pixels: int = options.MAX_PIXELS) -> Found:
  """Yields (path, class probabilities float32 [K]) in the order of the paths.

  A file that cannot be read or decoded yields its error in place of the
  probabilities.

  Args:
    paths: of image files.
    probabilities: uint8 [B, *image_size, channels] -> [B, K]. It is always
      called with B = batch_size, so that it is compiled once.
    image_size: (height, width) of the network.
    channels: 1 or 3.
    crop, interpolation: as `eval_crops.view` takes them.
    batch_size: images at a time.
    max_pixels: largest height times width of an image; a larger one yields an
      error.
  """
  def load(path):
    try:
      with files.open_regular(path) as f:
        return decode_pillow.pixels(
            f.read(), channels=channels, max_pixels=max_pixels,
            then=functools.partial(eval_crops.view, size=image_size, crop=crop,
                                   interpolation=interpolation))
    except OSError as e:
      return decode_pillow.BadImage(e.strerror or str(e))
    except decode_pillow.BadImage as e:
      return e

  paths = iter(paths)
  with futures.ThreadPoolExecutor() as pool:
    take = lambda: [(path, pool.submit(load, path))
                    for path in itertools.islice(paths, batch_size)]
    ahead = take()
    while ahead:
      batch, ahead = ahead, take()   # decoded while this batch is classified
      loaded = [(path, x.result()) for path, x in batch]
      good = [x for _, x in loaded if not isinstance(x, decode_pillow.BadImage)]
      filled = np.zeros((batch_size, *image_size, channels), np.uint8)
      if good:
        filled[:len(good)] = good
        found = iter(np.asarray(probabilities(filled)))
      for path, x in loaded:
        yield path, x if isinstance(x, decode_pillow.BadImage) else next(found)
