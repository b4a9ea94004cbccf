"""Lists the image files of a folder that has a subfolder for each class."""
import collections
import os
import pathlib
import stat

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.data import label_names
from mixer.data import listing
from mixer.data import split_names
from mixer.images import decode_pillow

_SKIPPED = ('__MACOSX', '@eaDir')   # left by macOS's zip and by Synology
# Tiny-ImageNet lists its validation images in a file: name, class, box.
_ANNOTATIONS = 'val_annotations.txt'
_LOOKED_INTO = 20   # class folders that are searched for splits
_LAYOUT = ('expected PATH/train/CLASS/image.jpg, with PATH/validation and '
           'PATH/test laid out in the same way, or just PATH/CLASS/image.jpg')


def load(path: str) -> listing.Listing:
  """Lists PATH/train/CLASS/... and other splits, or PATH/CLASS/... as 'train'.

  Folders of splits may have any usual name, such as 'Training', 'val2017' or
  'test_set'. The first split has all classes; it is 'train', if there is one.
  Records are ordered by split, class, and path below PATH.

  Raises:
    UserError: if the folder is laid out in another way, a class is empty, or a
      split has a class that the first split lacks.
  """
  root = listing.local(path)
  if not os.path.isdir(root):
    raise errors.UserError(f'data.name: no folder {root!r}; {_LAYOUT}')
  ignored: collections.Counter[str] = collections.Counter()
  found: list[tuple[int, str, int]] = []
  sizes, classes = dict[str, int](), dict[str, int]()
  split_folders = _split_folders(root, ignored)
  first = next(iter(split_folders))
  for split, where in split_folders.items():
    names, loose = _scan(where)
    if split == first:
      _check_classes(root, where, names, loose)
      classes = dict(zip(names, range(len(names))))
      label_names.check_folders(where, names)
    # Tiny-ImageNet has val/images with a list of labels beside it, and
    # test/images without labels.
    if names and (names != ['images'] or 'images' in classes):
      records = _labelled(root, where, names, classes, first, ignored)
    elif _ANNOTATIONS in loose:
      loose.remove(_ANNOTATIONS)
      records = _annotated(root, where, names, classes, ignored)
    else:
      log.info('%r has no class folders, so its images have no labels: it is '
               'left out', where)
      continue
    ignored.update(map(_suffix, loose))
    found += sorted(records)
    if split == first:
      label_names.check_below(where, root, (path for _, path, _ in found))
    sizes[split] = len(records)
  _log_ignored(root, ignored)
  labels, paths, bytes_of = zip(*found)
  return listing.make(
      root, list(paths), np.array(labels, np.int32)[:, None], None,
      tuple(classes), sizes, np.array(bytes_of))


def images(path: str) -> list[str]:
  """Returns the images in a folder and below it, as training finds them.

  Hidden files and folders are skipped, links are followed, and other files are
  counted in the log.

  Args:
    path: of the folder; may begin with '~'.

  Returns:
    Sorted paths that begin with `path`; none if there are no images.

  Raises:
    UserError: if a folder cannot be read.
  """
  root = files.absolute(path)
  ignored: collections.Counter[str] = collections.Counter()
  found = [os.path.join(os.path.expanduser(path), name)
           for name, _ in _images(root, root, ignored, key='')]
  _log_ignored(root, ignored)
  return sorted(found)


def _log_ignored(root, ignored):
  if ignored:
    kinds = ', '.join(f'{n} {kind!r}' for kind, n in ignored.most_common(10))
    count = ignored.total()
    log.info('%r: %s ignored: no images or, in a data set, in no class folder: '
             '%s', root, f'{count} files are' if count > 1 else '1 file is',
             kinds)


def _split_folders(root, ignored):
  """{split: its folder}, in the order of the records."""
  names, loose = _scan(root)
  found: dict[str, list[str]] = {}
  for name in names:
    found.setdefault(split_names.of(name), []).append(name)
  others = found.pop('', [])
  if not found:
    return {'train': root}   # its subfolders are the classes
  for split, several in found.items():
    if len(several) > 1:
      raise errors.UserError(
          f'data.name: {root!r} has two folders for the split {split!r}, '
          f'{several}; move or rename one')
  if others and 'train' not in found:
    raise errors.UserError(
        f'data.name: {root!r} has {others[:5]} beside '
        f"{sum(found.values(), [])}, which are names of splits, and no folder "
        "'train'; put all classes into a folder 'train', or move away what is "
        'no split')
  if others:
    log.info('%r: these folders are no splits and are ignored: %s', root,
             others[:10])
  ignored.update(map(_suffix, loose))
  return {split: os.path.join(root, *found[split])
          for split in listing.STORED if split in found}


def _check_classes(root, where, names, loose):
  """Refuses folders that are probably not the classes.

  Args:
    root: the folder that the user gave.
    where: the folder of a split, or `root`.
    names: of the folders in it.
    loose: names of the files beside them.
  """
  if names == ['images'] and _ANNOTATIONS in loose:
    raise errors.UserError(
        f'data.name: the classes of {os.path.join(where, _ANNOTATIONS)!r} are '
        'the folders of training; give the folder that holds both')
  if not names:
    among = ('' if where == root else
             f'; if {os.path.basename(where)!r} is a class, put all classes '
             "into a folder 'train'")
    raise errors.UserError(f'data.name: {where!r} has no class folders (and '
                           f'{len(loose)} files); {_LAYOUT}{among}')
  at = _around(where) if len(names) == 1 else None
  if at:
    raise errors.UserError(
        f'data.name: {where!r} holds one class folder, {names[0]!r}, but '
        f'{at!r} holds the folders {_scan(at)[0][:5]}; if these are the splits '
        f'or classes, give folder:{at}, or move them up into {where!r}')
  if where != root and len(names) > 1 and all(map(split_names.of, names)):
    raise errors.UserError(
        f'data.name: {where!r} holds {names}, which are names of splits; give '
        f'folder:{where}')
  if where == root and split_names.alike(names):
    raise errors.UserError(
        f'data.name: {root!r} holds {names[:5]}, which would be classes but '
        "are called after splits; rename them to 'train' and so on, or give "
        f'one of them, such as folder:{os.path.join(root, names[-1])}; '
        "if they are classes, put them into a folder 'train'")
  for name in names[:_LOOKED_INTO]:
    inside = list(filter(split_names.of, _scan(os.path.join(where, name))[0]))
    if len(set(map(split_names.of, inside))) > 1:
      raise errors.UserError(
          f'data.name: the class folder {os.path.join(where, name)!r} holds '
          f'{inside}, which are names of splits and would be mixed; move the '
          'splits above the classes, as in PATH/train/CLASS and '
          'PATH/test/CLASS')


def _around(path):
  """The first folder with splits or classes, below a folder that has one.

  Returns None if there are images on the way, or if no folder has several.
  """
  seen, top = set(), path
  while os.path.realpath(path) not in seen:
    seen.add(os.path.realpath(path))
    folders, files = _scan(path)
    if any(_suffix(name) in decode_pillow.SUFFIXES for name in files):
      return None
    if len(folders) != 1 or path != top and split_names.of(*folders):
      return path if folders else None
    path = os.path.join(path, *folders)
  return None


def _labelled(root, where, names, classes, first, ignored):
  """[(class, path, size)] of a split that has a folder for each class."""
  records = []
  for name in names:
    inside = os.path.join(where, name)
    if name not in classes:
      raise errors.UserError(
          f'data.name: {inside!r} is a class that {first!r} lacks; expected '
          f'one of its class folders, such as {next(iter(classes))!r}')
    of_class = _images(root, inside, ignored)
    if not of_class:
      raise errors.UserError(
          f'data.name: the class folder {inside!r} holds no image; add files '
          f"ending in one of {' '.join(decode_pillow.SUFFIXES)}, or remove the "
          'folder')
    records += [(classes[name], *image) for image in of_class]
  return records


def _annotated(root, where, names, classes, ignored):
  """[(class, path, size)] of a split whose labels are in a list beside it."""
  records, listed = [], os.path.join(where, _ANNOTATIONS)
  inside = os.path.join(where, *names)
  left = dict(_images(root, inside, ignored))
  with listing.open_text(listed) as f:
    for line, text in enumerate(f, 1):
      name, label = (text.rstrip('\r\n').split('\t') + [''])[:2]
      path = os.path.relpath(os.path.join(inside, name), root)
      if label not in classes:
        raise listing.wrong(listed, line, 'class', label,
                            'a class folder of training')
      if path not in left:
        raise listing.wrong(listed, line, 'file', name,
                            f'an image in {inside!r}, listed once')
      records.append((classes[label], path, left.pop(path)))
  ignored.update(map(_suffix, left))
  return records


def _images(root, inside, ignored, key='data.name: '):
  """[(path relative to root, size)] of the images in a folder."""
  # A link is not followed if it leads to a folder that the walk has visited or
  # to a parent of one.
  above = pathlib.PurePath(os.path.realpath(os.path.dirname(inside)))
  seen = set(map(str, (above, *above.parents)))
  if inside != root:
    seen.add(os.path.realpath(root))
  found: list[tuple[str, int]] = []
  if os.path.realpath(inside) in seen:
    return found
  seen.add(os.path.realpath(inside))
  refuse = lambda error: listing.cannot_read(error, key)
  for at, folders, names in os.walk(inside, onerror=refuse, followlinks=True):
    fresh: dict[str, str] = {}
    for name in sorted(filter(_visible, folders)):
      fresh.setdefault(os.path.realpath(os.path.join(at, name)), name)
    folders[:] = [n for real, n in fresh.items() if real not in seen]
    seen.update(fresh)
    prefix = os.path.relpath(at, root)
    for name in filter(_visible, names):
      size = (_size(f'{at}/{name}')
              if _suffix(name) in decode_pillow.SUFFIXES else None)
      if size is None:
        ignored[_suffix(name)] += 1
      else:
        found.append((f'{prefix}/{name}'.removeprefix('./'), size))
  return found


def _scan(path):
  """Names of the folders and of the files directly in a folder."""
  _, folders, names = next(os.walk(path, onerror=listing.cannot_read))
  return sorted(filter(_visible, folders)), list(filter(_visible, names))


def _visible(name):
  return not name.startswith('.') and name not in _SKIPPED


def _size(path):
  """The size of a file; None if it is a FIFO, a socket or a device."""
  try:
    found = os.stat(path)
  except OSError:   # a broken link, which becomes a bad image when it is read
    return -1
  return found.st_size if stat.S_ISREG(found.st_mode) else None


def _suffix(path):
  return os.path.splitext(path)[1].lower()
