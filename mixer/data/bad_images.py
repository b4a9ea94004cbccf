"""Reads the examples of a split and leaves out images that cannot be decoded.

Whether an image is bad must not depend on its random crop, and a crop decodes
an image only as far as it reaches. So every image is decoded in full the first
time it is read, unless it is known to have passed, and the result is remembered
in one byte for each record.
"""
from collections.abc import Callable
import threading

import numpy as np

from mixer.core import errors
from mixer.core.log import log
from mixer.data import checks
from mixer.data import order
from mixer.data import splits
from mixer.data.sources import Source
from mixer.images import decode_pillow

# What is known of an image: nothing yet; TensorFlow can decode it; only Pillow
# decodes it as people see it; nothing can.
_UNSEEN, _PLAIN, _ODD, _BAD = range(4)
_LISTED = 10   # names in an error message; the report has all
_TRIES = 1000   # positions that are tried in place of a bad image


class CheckedReader:
  """Reads the examples of a split by position; a bad image is None.

  Args:
    source: the data set.
    split: a split of it.
    key: config section of the split, for messages.
    most: number of images that may be bad before `check` raises an error; None
      for any number.
    max_pixels: largest allowed height times width; a larger image is bad.
    report: called once for every bad image with a dict of 'section', 'image'
      and 'reason'; or None.

  Attributes:
    source, split, key: as given.
    bad: {record: (name, reason)} of the bad images found so far.
  """

  def __init__(self, source: Source, split: splits.Split, *,
               key: str, most: int | None, max_pixels: int,
               report: Callable[[dict[str, str]], None] | None = None):
    self.source, self.split, self.key = source, split, key
    self._most, self._max_pixels, self._report = most, max_pixels, report
    # Stored pieces are in order, so their last positions have the last records.
    last = max(int(p.records(np.array(p.stop - p.start - 1)))
               for p in source.stored.values())
    self._state = np.zeros(last + 1, np.uint8)
    self._check = checks.Checks(source, last + 1, len(split))
    self._lock = threading.Lock()
    self.bad: dict[int, tuple[str, str]] = {}

  def __len__(self) -> int:
    return len(self.split)

  def read(self, position: np.ndarray
           ) -> tuple[list[bytes | None], dict[str, np.ndarray]]:
    """Returns (encoded images, targets) as `Source.read` does.

    Args:
      position: int64 [n], in [0, len); of a set that is read in sequence they
        ascend and lie in one shard.
    """
    records = self.split.records(position)
    found, targets = self.source.read(records)
    return [self._admit(int(r), file)
            for r, file in zip(records, found)], targets

  def pixels(self, record: int, file: bytes | decode_pillow.BadImage
             ) -> np.ndarray | None:
    """Decodes an image with Pillow; None if it is bad.

    Args:
      record: its number.
      file: as the source reads it.

    Returns:
      uint8 [height, width, channels].
    """
    try:
      if isinstance(file, decode_pillow.BadImage):
        raise file
      return decode_pillow.pixels(
          file, channels=self.source.channels, max_pixels=self._max_pixels,
          upright=self.source.upright)
    except decode_pillow.BadImage as e:
      self._note(record, str(e))
      return None

  def substitute(self, seed: int, epoch: int, position: int,
                 usable: Callable[[int], bool]) -> int:
    """Returns the position that replaces one whose image is bad.

    It is a function of the arguments, so every process and every restart finds
    the same one.

    Args:
      seed: of the run.
      epoch: of the bad image.
      position: of the bad image.
      usable: position -> whether its image is good.

    Raises:
      RunError: if no good image is found.
    """
    for attempt in range(_TRIES):
      other = order.key(seed, 3, epoch, position, attempt) % len(self)
      if usable(other):
        return other
    self.check()
    raise self.no_good_image(f'{_TRIES} tries')

  def check(self) -> None:
    """Raises a RunError if more images are bad than may be."""
    if self._most is None or len(self.bad) <= self._most:
      return
    listed = [f'{name} ({why})' for name, why in list(self.bad.values())]
    rest = len(listed) - _LISTED
    raise errors.RunError(
        f'{self.key}.max_bad_fraction: {len(listed)} '
        f'image{"s" if len(listed) > 1 else ""} cannot be decoded, and at most '
        f'{self._most} of the split may be bad: '
        f'{", ".join(listed[:_LISTED])}'
        f'{f" and {rest} more" if rest > 0 else ""} (bad_images*.jsonl in '
        'the workdir lists all that were found); raise the limit, as in '
        f'--config.{self.key}.max_bad_fraction=0.05, or repair or remove them, '
        'which takes a new --workdir if this one has checkpoints')

  def no_good_image(self, where: str) -> errors.RunError:
    """Returns the error for a split without good images in some place."""
    return errors.RunError(
        f'{self.source.name} {self.split.spec}: no image can be decoded in '
        f'{where}; repair the images or choose another split')

  def _admit(self, record, file):
    """An encoded image that TensorFlow can decode, or None."""
    state = self._state[record]
    if state == _BAD:
      return None
    try:
      if isinstance(file, decode_pillow.BadImage):
        raise file
      if state == _UNSEEN:
        state = self._state[record] = self._look(record, file)
      if state == _ODD:
        return decode_pillow.as_png(file, channels=self.source.channels,
                                    max_pixels=self._max_pixels,
                                    upright=self.source.upright)
      return file
    except decode_pillow.BadImage as e:
      self._note(record, str(e))

  def _look(self, record, file):
    if not decode_pillow.is_plain(file, max_pixels=self._max_pixels,
                                  upright=self.source.upright):
      return _ODD   # `_admit` decodes it in full, now and every time
    self._check(record, file)
    return _PLAIN

  def _note(self, record, reason):
    name = self.source.name_of(record)
    with self._lock:
      self._state[record] = _BAD
      if record in self.bad:
        return
      self.bad[record] = name, reason
    # A file name may hold bytes that are not valid text and cannot be printed.
    printable = name.encode(errors='backslashreplace').decode()
    log.warning('%s: %s cannot be decoded (%s) and is left out', self.key,
                printable, reason)
    if self._report:
      self._report(dict(section=self.key, image=name, reason=reason))
