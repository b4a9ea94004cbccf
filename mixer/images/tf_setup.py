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
    UserError: if it is not installed, or cannot be imported.
  """
  problem = hide_accelerators()
  if problem:
    raise errors.UserError(
        f'data: TensorFlow decodes images on the host, and {problem}; run pip '
        "install '.[data]' in this project's folder or, if all images fit in "
        'memory, set --config.data.on_device=True')
  import tensorflow as tf
  return tf


@functools.cache
def hide_accelerators() -> str | None:
  """Keeps TensorFlow off the GPUs; returns why it cannot be used, if so.

  Call this before anything else uses TensorFlow: by then it has allocated the
  GPUs' memory.
  """
  if importlib.util.find_spec('tensorflow') is None:
    return 'it is not installed'
  # TensorFlow logs every image that it cannot decode; we report these images
  # ourselves. Importing jax has already set the level to 1.
  if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  try:
    import tensorflow as tf
  except Exception as e:   # a missing library or a wrong version, of any type
    return f'importing it fails ({type(e).__name__}: {str(e)[:200]})'
  try:
    tf.config.set_visible_devices([], 'GPU')
  except RuntimeError as e:
    log.warning('TensorFlow was used before its GPUs were hidden: %s', e)
  return None
