"""Finds out where a missing TFDS set is, or which sets have near names."""
from collections.abc import Iterator
import difflib
import glob
import os
import re

from mixer.core import files
from mixer.data import set_features

_DOWNLOAD = (
    'python -c "import tensorflow_datasets as t; '
    't.builder(\'NAME\', data_dir=\'DIR\').download_and_prepare()"')
_BY_HAND = f'run once: {_DOWNLOAD}, which says what to download by hand first'
_HOW_TO_PREPARE = {
    'imagenet2012': (
        'put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into '
        f'DIR/downloads/manual and run once: {_DOWNLOAD}'),
    'imagenet21k': (
        'make it once from the per-synset tars: python -m mixer.prepare build '
        '--source=tars:TARS --data_dir=DIR'),
    'jft': (
        'use a large data set of your own, because JFT is not public: '
        '--config.data.name=manifest:PATH, or prepare it once with python -m '
        'mixer.prepare build --source=manifest:PATH --name=jft --data_dir=DIR'),
    'resisc45': _BY_HAND,
    'diabetic_retinopathy_detection': _BY_HAND,
}
_DEFAULT = (f'let TFDS download and prepare it once: {_DOWNLOAD} '
            '(--config.data.name=digits needs no download)')
_INFO = 'dataset_info.json'   # lies in the directory of each version
_CHILDREN, _SHOWN = 100, 5   # directories to look into, names to show


def remedy(name: str, where: str) -> str:
  """Returns what to do, as the end of an error message.

  The set may lie some directories above or below, or another name may be meant,
  of a prepared set or of one that TFDS knows.

  Args:
    name: 'set' or 'set/config', perhaps with a version.
    where: the data_dir in which it was not found.
  """
  if os.path.exists(name):
    return f'give folder:{name} if it is a folder of classes'
  for place in _places(where):
    if set_features.directory(name, place):
      return f'set --config.data.dir={place}, which has it'
  import tensorflow_datasets as tfds
  builder, known = re.split('[/:]', name)[0], tfds.list_builders(
      with_community_datasets=False)
  near = _near(name, where)
  said = [f'prepared there: {", ".join(near)}'] if near else []
  if builder in known or builder in _HOW_TO_PREPARE:
    how = _HOW_TO_PREPARE.get(builder, _DEFAULT).replace('NAME', name)
    said.append('set --config.data.dir to its directory, or '
                + how.replace('DIR', where))
  elif close := difflib.get_close_matches(builder.lower(), known):
    said.append(f'TFDS knows {", ".join(close)}')
  elif not near:
    said.append('set --config.data.dir to its directory; TFDS knows no such '
                'set (--config.data.name=digits needs no download)')
  return '; '.join(said)


def _places(where: str) -> Iterator[str]:
  """Yields local directories above and directly below the data_dir."""
  if files.is_remote(where):
    return
  above = os.path.abspath(where)
  for _ in range(3):   # SET/CONFIG/VERSION
    above = os.path.dirname(above)
    yield above
  if os.path.isdir(where):
    with os.scandir(where) as found:
      below = sorted(entry.path for entry in found if entry.is_dir())
    yield from below[:_CHILDREN]


def _near(name: str, where: str) -> list[str]:
  """Returns prepared sets with such a name, as 'set/config:version'."""
  if files.is_remote(where):
    return []
  if os.path.exists(os.path.join(where, _INFO)):   # the directory of a version
    where = os.path.dirname(os.path.dirname(os.path.abspath(where)))
  prepared: dict[str, list[str]] = {}
  for pattern in ('*/*/', '*/*/*/'):
    for found in sorted(glob.glob(pattern + _INFO, root_dir=where)):
      start, version, _ = found.rsplit(os.sep, 2)
      prepared.setdefault(start, []).append(f'{start}:{version}')
  asked = name.partition(':')[0].lower()
  same = [x for x in prepared if x.partition('/')[0] == asked.partition('/')[0]]
  near = same or difflib.get_close_matches(asked, prepared)
  return [full for x in near for full in prepared[x]][:_SHOWN]
