"""Tries again to read a file after an error that may pass."""
from collections.abc import Callable
import errno
import time

from mixer.core import errors
from mixer.core.log import log
from mixer.images import decode_pillow

# Errors that may be gone tomorrow, so the file must not count as bad. Those of
# the second line are what a lost mount of a bucket or of another machine gives.
_TEMPORARY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT,
              errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ENOTCONN,
              errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO)
# A mount may give this one for a while, a damaged disk gives it for ever.
_EITHER = errno.EIO
_PAUSES = (0.1, 0.5, 2.0, 5.0)   # seconds before each new try


def again(read: Callable[[], bytes], path: str, error: OSError
          ) -> bytes | decode_pillow.BadImage:
  """Returns what a read gives that failed once, or why it cannot succeed.

  Args:
    read: reads the file, or a part of it.
    path: of the file.
    error: what the first try raised.

  Returns:
    The bytes; a `BadImage` if the file is lost or damaged.

  Raises:
    RunError: if an error that may pass did not in four more tries.
  """
  for pause in _PAUSES:
    if error.errno not in (*_TEMPORARY, _EITHER):
      break
    log.warning('cannot read %r: %s; trying again in %g s', path,
                error.strerror, pause)
    time.sleep(pause)
    try:
      return read()
    except OSError as e:
      error = e
  if error.errno not in _TEMPORARY:
    return decode_pillow.BadImage(error.strerror)
  raise errors.RunError(f'cannot read {path!r}: {error.strerror}, also after '
                        f'{len(_PAUSES)} more tries; start the run again when '
                        'it can be read')
