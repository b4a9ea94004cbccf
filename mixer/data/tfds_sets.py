"""Sets that TFDS prepared, by their DatasetInfo: found, and understood."""
import os
import re

from mixer.core import errors
from mixer.data import listing
from mixer.data import shards

_FILE_NAMES = ('file_name', 'filename', 'image/file_name')   # of some set each
_VERSION = re.compile(r'(\d+|\*)\.(\d+|\*)\.(\d+|\*)')
_DOWNLOAD = (
    'python -c "import tensorflow_datasets as t; '
    't.builder(\'NAME\', data_dir=\'DIR\').download_and_prepare()"')
_BY_HAND = f'run once: {_DOWNLOAD}, which says what to fetch by hand before'
_HOW_TO_PREPARE = {
    'imagenet2012': (
        'put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into '
        f'DIR/downloads/manual and run once: {_DOWNLOAD}'),
    'imagenet21k': (
        'make it once from the per-synset tars: python -m mixer.prepare build '
        '--source=tars:TARS --data_dir=DIR'),
    'jft': (
        'give your own large set, which jft stands for: '
        '--config.data.name=manifest:PATH, or prepared once with python -m '
        'mixer.prepare build --source=manifest:PATH --name=jft --data_dir=DIR'),
    'resisc45': _BY_HAND,
    'diabetic_retinopathy_detection': _BY_HAND,
}
_DEFAULT = ('let TFDS download and prepare it once, if it knows it: '
            f'{_DOWNLOAD} (--config.data.name=digits needs none)')


def is_name(name):
  """Whether data.name is TFDS's: 'set', 'set/config', 'set:1.0.0'."""
  start, colon, version = name.partition(':')
  return start != 'digits' and (not colon or bool(_VERSION.fullmatch(version)))


def info_of(name, where):
  """The DatasetInfo of a set, of its newest version unless one is named.

  Args:
    name: 'set', 'set/config', either with ':1.0.0' or ':1.*.*'.
    where: the data_dir.

  Raises:
    UserError: if it is not there, with the way to get it.
  """
  import tensorflow_datasets as tfds
  try:
    builder = tfds.core.read_only_builder.builder_from_files(
        name, data_dir=where)
  except Exception as e:
    how = _HOW_TO_PREPARE.get(re.split('[/:]', name)[0], _DEFAULT)
    how = how.replace('NAME', name).replace('DIR', where)
    if os.path.exists(name):
      how = f'give folder:{name} if it is a folder of classes'
    raise errors.UserError(
        f'data.name: no prepared TFDS set {name!r} in {where!r}; set '
        f'--config.data.dir to where it is, or {how}') from e
  return builder.info


def parsing(name, info):
  """How its records are read, by its features 'image' and 'label' or 'labels'.

  Returns:
    (keyword arguments of a `prepared.Parser`, class names or None).

  Raises:
    UserError: if its features are others.
  """
  key = next((k for k in ('label', 'labels') if k in info.features), None)
  if 'image' not in info.features or key is None:
    raise errors.UserError(
        f"data.name: {name} has the features {sorted(info.features)}; expected "
        "'image' and 'label' or 'labels'")
  feature = info.features[key]
  width = listing.MAX_LABELS if hasattr(feature, 'feature') else 1
  feature = getattr(feature, 'feature', feature)
  channels = info.features['image'].shape[-1] or 3
  if not getattr(feature, 'num_classes', None) or channels not in (1, 3):
    raise errors.UserError(
        f'data.name: {name} has images of {channels} channels and {key} '
        f'of {type(feature).__name__}; expected 1 or 3, and ClassLabel')
  return dict(
      labels_of=shards.integers(key), width=width,
      num_classes=feature.num_classes, weighted='weights' in info.features
  ), tuple(feature.names) if feature.names else None


def relabelled(name, info, other):
  """What `relabel.Labels` change of a `prepared.Parser`: keyword arguments.

  Raises:
    UserError: if the set has no file names.
  """
  key = next((k for k in _FILE_NAMES if k in info.features), None)
  if key is None:
    raise errors.UserError(
        f'labels: {other.path!r} is looked up by file names, and {name} has '
        f'the features {sorted(info.features)}; expected {_FILE_NAMES[0]!r}')

  def labels_of(features):
    value, = features[key].bytes_list.value
    return other.of(value.decode(errors='replace'))

  return dict(labels_of=labels_of, width=other.width, fewest=0, weighted=False)
