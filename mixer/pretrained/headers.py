"""Checks the headers of a file of weights before it is unpacked, and its card.

Files come from strangers: their sizes and counts are held to what the length of
the file and a network can be.
"""
from collections.abc import Iterable
import json
import os
from typing import Any
import zipfile

from mixer.core import errors
from mixer.core import files
from mixer.images import options

# A file may unpack to so many bytes, or to so many times its length.
_SMALL, _PACKED = 64 * 2**20, 100
# Of a network: tensors, parts of a name. An archive may hold other arrays too.
_TENSORS, _PARTS, _MEMBERS = 4096, 16, 16 * 4096
_HEADER = 10 * 2**20   # bytes of a safetensors header
# Of a card.
_KEYS = ('model', 'image_size', 'class_names', 'data', 'loss', 'preprocessing')
_LARGEST_SIDE = 16_384   # pixels


def stand_in(path: str) -> str | None:
  """Returns what a file is that was saved in place of weights, by its first
  bytes: 'a web page' or 'a Git LFS pointer'; None for any other file."""
  with files.open_regular(path) as f:
    begin = f.read(256).removeprefix(b'\xef\xbb\xbf').lstrip()
  if begin.startswith(b'<'):
    return 'a web page'
  return ('a Git LFS pointer'
          if begin.startswith(b'version https://git-lfs') else None)


def check_kind(path: str) -> None:
  """Raises a UserError if a path is not that of a regular file, or if the file
  is what `stand_in` looks for.

  Args:
    path: of a local file.
  """
  try:
    other = stand_in(path)
  except FileNotFoundError as e:
    raise errors.UserError(f'{path!r}: no such file') from e
  except OSError as e:
    raise errors.UserError(f'{path!r} cannot be read: {e.strerror}; expected a '
                           'file of weights') from e
  if other:
    raise errors.UserError(f'{path!r} is {other}, not a file of weights; fetch '
                           'the file itself')


def check_size(path: str) -> None:
  """Raises a UserError if a file holds more than its length can, by its header.

  Args:
    path: of a local file.
  """
  if path.endswith('.safetensors'):   # its library checks the rest
    with open(path, 'rb') as f:
      length = int.from_bytes(f.read(8), 'little')
    most = min(_HEADER, os.path.getsize(path) - 8)
    if length > most:
      raise errors.UserError(
          f'{path!r} cannot be read as safetensors: its header would have '
          f'{length:,} bytes, and can have {max(0, most):,}; it is cut short '
          'or damaged')
  elif zipfile.is_zipfile(path):   # npz, and .pth too
    with zipfile.ZipFile(path) as archive:
      members = archive.infolist()
    if len(members) > _MEMBERS:
      raise errors.UserError(f'{path!r} holds {len(members):,} arrays; '
                             f'expected {_MEMBERS:,} at most')
    check_total(path, sum(member.file_size for member in members))


def check_total(path: str, total: int) -> None:
  """Raises a UserError if a file unpacks to far more than its length.

  Args:
    path: of the file.
    total: bytes that it unpacks to.
  """
  if total > max(_SMALL, _PACKED * os.path.getsize(path)):
    raise errors.UserError(
        f'{path!r} would unpack to {total / 2**30:.1f} GiB, more than '
        f'{_PACKED} times its length; weights never shrink as much')


def check_names(path: str, names: Iterable[str]) -> None:
  """Raises a UserError if no network has such names of tensors.

  Args:
    path: of the file.
    names: of all its tensors.
  """
  names = list(names)
  if len(names) > _TENSORS:
    raise errors.UserError(f'{path!r} holds {len(names):,} tensors; expected '
                           f'the {_TENSORS:,} of a network at most')
  for name in names:
    if name.count('/') > _PARTS:
      raise errors.UserError(f'{path!r}: a name has {name.count("/")} slashes: '
                             f'{name[:40]}...; expected {_PARTS} at most')


def card(text: str, file: str) -> dict[str, Any]:
  """Returns the card that a file holds, see `models.catalog`.

  Args:
    text: what the file holds.
    file: its path, for errors.

  Raises:
    UserError: if it is not a card, naming the key and the value.
  """
  try:
    out = json.loads(text)
    missing = [key for key in _KEYS if key not in out]
  except (ValueError, TypeError, RecursionError) as e:
    raise errors.UserError(f"{file!r} is not a network's card: {e}") from e
  if missing:
    raise errors.UserError(f'{file!r} lacks {", ".join(missing)}; training and '
                           'mixer.export write whole cards')
  size, like = out['image_size'], out['preprocessing']
  names, model = out['class_names'], out['model']
  made = out.get('provenance')
  classes = model.get('num_classes', 1000) if isinstance(model, dict) else None
  for key, right in (
      ('model', isinstance(model, dict) and 'name' in model
       and isinstance(classes, int | None)),
      ('class_names', names is None or isinstance(names, list)
       and isinstance(classes, int) and len(names) <= classes
       and all(isinstance(name, str) for name in names)),
      ('image_size', isinstance(size, list) and len(size) == 2
       and all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE
               for side in size)),
      ('loss', out['loss'] in ('softmax', 'sigmoid')),
      ('preprocessing', isinstance(like, dict)
       and like.keys() == {'crop', 'interpolation'}
       and like['crop'] in options.EVALUATION_CROPS
       and like['interpolation'] in options.INTERPOLATIONS),
      ('provenance', made is None or isinstance(made, dict)
       and isinstance(made.get('versions', {}), dict))):
    if not right:
      value = repr(out[key])
      value = value if len(value) < 200 else f'{value[:200]}...'
      raise errors.UserError(f'{file!r}: {key} is {value}, which training and '
                             'mixer.export never write')
  return out
