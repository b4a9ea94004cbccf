"""Which images of a source can be used, found out at the first visit.

Whether an image is bad must not depend on the crop that is drawn, and a crop
is decoded only so far as it reaches. So every image is decoded in full the
first time it is read, and what came of it is remembered: a byte a record.
"""
import threading

import numpy as np

from mixer.core import errors
from mixer.core.log import log
from mixer.images import decode_pillow

_UNSEEN, _PLAIN, _ODD, _BAD = range(4)
_LISTED = 10   # names in an error; all are in the report


class Vetting:
  """Reads a split's images and leaves out what cannot be decoded.

  Args:
    source: `sources.Source`.
    key: of the config section, for messages.
    most: how many may be bad before `check` raises; None for any number.
    max_pixels: of an image.
    report: called with a dict for every bad image, once; or None.
  """

  def __init__(self, source, *, key, most, max_pixels, report=None):
    self._source, self.key = source, key
    self._most, self._max_pixels, self._report = most, max_pixels, report
    records = 1 + max(int(p.records(np.int64(p.stop - p.start - 1)))
                      for p in source.stored.values())
    self._state = np.zeros(records, np.uint8)
    self._lock = threading.Lock()
    self.bad = {}   # record -> (name, reason)

  def read(self, records):
    """As `Source.read`; an image that is bad is None."""
    found, labels, weights = self._source.read(records)
    files = [self._admit(int(r), file) for r, file in zip(records, found)]
    return files, labels, weights

  def pixels(self, record, file):
    """uint8 [height, width, channels], without TensorFlow; None if bad."""
    try:
      if isinstance(file, decode_pillow.BadImage):
        raise file
      return decode_pillow.pixels(
          file, channels=self._source.channels, max_pixels=self._max_pixels,
          upright=self._source.upright)
    except decode_pillow.BadImage as e:
      self._note(record, str(e))

  def check(self):
    """Raises RunError if more images are bad than may be."""
    if self._most is None or len(self.bad) <= self._most:
      return
    listed = [f'{name} ({why})' for name, why in list(self.bad.values())]
    rest = len(listed) - _LISTED
    raise errors.RunError(
        f'{self.key}.max_bad_fraction: {len(listed)} images cannot be decoded '
        f'and {self._most} of the split may be: {", ".join(listed[:_LISTED])}'
        f'{f" and {rest} more" if rest > 0 else ""} (bad_images*.jsonl in '
        'the workdir has all that were met); mend or remove them, or raise it, '
        f'as in --config.{self.key}.max_bad_fraction=0.05')

  def _admit(self, record, file):
    state = self._state[record]
    if state == _BAD:
      return None
    try:
      if isinstance(file, decode_pillow.BadImage):
        raise file
      if state == _UNSEEN:
        state = self._state[record] = self._look(file)
      if state == _ODD:
        return decode_pillow.bitmap(file, channels=self._source.channels,
                             max_pixels=self._max_pixels)
      return file
    except decode_pillow.BadImage as e:
      self._note(record, str(e))

  def _look(self, file):
    plain = decode_pillow.is_plain(file, max_pixels=self._max_pixels)
    if self._source.upright and not plain:
      return _ODD   # and decoded in full at every visit
    from mixer.images import decode_tf
    decode_tf.check(file)
    return _PLAIN

  def _note(self, record, reason):
    name = self._source.name_of(record)
    with self._lock:
      self._state[record] = _BAD
      if record in self.bad:
        return
      self.bad[record] = name, reason
    # A name on a disk may hold bytes that are no text and cannot be printed.
    printable = name.encode(errors='backslashreplace').decode()
    log.warning('%s: %s cannot be decoded (%s) and is left out', self.key,
                printable, reason)
    if self._report:
      self._report(dict(section=self.key, image=name, reason=reason))
