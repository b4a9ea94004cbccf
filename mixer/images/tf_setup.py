"""Loads TensorFlow with the accelerators hidden from it."""
import functools
import importlib.util
import os
import types

from mixer.core import errors
from mixer.core.log import log


def load() -> types.ModuleType:
  """Returns the module `tensorflow`, which then sees no GPU.

  Raises:
    UserError: if it is not installed.
  """
  hide_accelerators()
  try:
    import tensorflow as tf
  except ImportError as e:
    raise errors.UserError(
        'data: TensorFlow decodes images on the host, and it is not installed; '
        "run pip install '.[data]' in this project's folder or, if all images "
        'fit in memory, set --config.data.on_device=True') from e
  return tf


@functools.cache
def hide_accelerators() -> None:
  """Keeps TensorFlow, if it is installed, off the GPUs.

  Call this before anything else uses TensorFlow: by then it has allocated the
  GPUs' memory.
  """
  if importlib.util.find_spec('tensorflow'):
    # TensorFlow logs every image that it cannot decode; we report these images
    # ourselves. Importing jax has already set the level to 1.
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
      os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    import tensorflow as tf
    try:
      tf.config.set_visible_devices([], 'GPU')
    except RuntimeError as e:
      log.warning('TensorFlow was used before its GPUs were hidden: %s', e)
