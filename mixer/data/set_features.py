"""Which feature classes the files of a prepared TFDS set name."""
import json
from typing import Any

from mixer.core import errors


def directory(name: str, where: str) -> Any | None:
  """Returns the directory of a prepared set's version, None if there is none.

  Args:
    name: of the set, 'set' or 'set/config', perhaps with a version.
    where: the data_dir.
  """
  import tensorflow_datasets as tfds
  # TFDS's search adds to the context of an error, so it needs one.
  try:
    with tfds.core.utils.error_utils.reraise_with_context(Exception):
      return tfds.core.read_only_builder._find_builder_dir(
          name, data_dir=where)
  except ValueError:   # the name has characters that no set's name has
    return None


def check(name: str, where: str) -> None:
  """Refuses a prepared set that names feature classes outside TFDS.

  TFDS imports the module of any class that a set's files name, and so would run
  code that came with the data.

  Args:
    name: of the set, 'set' or 'set/config', perhaps with a version.
    where: the data_dir.

  Raises:
    UserError: if a class is not one of TFDS's.
  """
  found = directory(name, where)
  if found is None:
    return
  for file, key in (('features.json', None), ('dataset_info.json', 'features')):
    path = found / file
    if not path.exists():
      continue
    content = json.loads(path.read_text())
    for named in _classes(content.get(key, {}) if key else content):
      if not named.startswith('tensorflow_datasets.'):
        raise errors.UserError(
            f'data.name: {str(path)!r} names the feature class {named!r}; '
            "expected classes of 'tensorflow_datasets.', because reading "
            'another would run its code; prepare the set again with features '
            'of TFDS')


def _classes(content):
  """Yields the names of feature classes in JSON, and in JSON inside of it."""
  for key, value in (content.items() if isinstance(content, dict)
                     else enumerate(content)):
    if key == 'json' and isinstance(value, str):
      value = json.loads(value)
    if isinstance(value, dict | list):
      yield from _classes(value)
    elif key in ('pythonClassName', 'python_class_name', 'type') and isinstance(
        value, str):
      yield value
