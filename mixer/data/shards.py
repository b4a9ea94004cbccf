"""Data sets that TFDS prepared, by name: shards of TFRecord or ArrayRecord.

Records are numbered shard by shard, split by split. They are read at random:
ArrayRecord has an index, TFRecord gets one from a scan of the record headers,
which is kept in the user's cache. TFRecord in a bucket is read in sequence.
"""
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import resource
import struct
import time
import uuid

from etils import epath
import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.images import decode_pillow

_THREADS = 16
_MOST_LEFT = 256   # files left open by one who reads in sequence


@dataclasses.dataclass(frozen=True)
class Shards:
  """The files of a set.

  Attributes:
    paths: one a shard, in the order of the records.
    ends: int64, the number of the record after each shard's last.
  """
  paths: tuple
  ends: np.ndarray

  def locate(self, record):
    """(shard, number within it)."""
    shard = int(np.searchsorted(self.ends, record, side='right'))
    return shard, int(record - (self.ends[shard - 1] if shard else 0))

  def name_of(self, record):
    shard, at = self.locate(record)
    return f'{self.paths[shard]} record {at}'

  def length(self, shard):
    return int(self.ends[shard] - (self.ends[shard - 1] if shard else 0))


def integers(key):
  """features -> the integers of one of them."""
  return lambda features: features[key].int64_list.value


def stored_image(features):
  """The bytes of the image, as they were stored."""
  return features['image'].bytes_list.value[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parser:
  """Serialised records to images, labels and weights.

  What labels and images are is said by functions of a record's features, the
  map from name to tf.train.Feature of a tf.train.Example; of what TFDS nests,
  the names are joined by '/', and the values of all entries by one another.

  Attributes:
    width: L, the most labels of an example.
    num_classes: of the labels.
    name_of: record number -> where it is.
    labels_of: features -> the labels, a sequence of ints.
    image_of: features -> the encoded image; may raise `BadImage`.
    fewest: labels of an example.
    weighted: whether every label has a weight.
  """
  width: int
  num_classes: int
  name_of: object
  labels_of: object
  image_of: object = stored_image
  fewest: int = 1
  weighted: bool = False

  def __call__(self, records, serialised):
    """As `sources.Source.read`; an entry may be a `BadImage` instead.

    Raises:
      RunError: at a label outside the classes.
    """
    from tensorflow_datasets.proto import tf_example_pb2
    out, labels = [], np.full((len(records), self.width), -1, np.int32)
    weights = np.zeros(labels.shape, np.float32) if self.weighted else None
    for row, (record, raw) in enumerate(zip(records, serialised)):
      if isinstance(raw, decode_pillow.BadImage):
        out.append(raw)
        continue
      feature = tf_example_pb2.Example.FromString(raw).features.feature
      try:
        out.append(self.image_of(feature))
      except decode_pillow.BadImage as e:
        out.append(e)
      values = self.labels_of(feature)
      if not self.fewest <= len(values) <= self.width or not all(
          0 <= v < self.num_classes for v in values):
        raise errors.RunError(
            f'{self.name_of(record)} has the labels {list(values)}; expected '
            f'{self.fewest} to {self.width}, from 0 to {self.num_classes - 1}')
      labels[row, :len(values)] = values
      if self.weighted:
        weights[row, :len(values)] = feature['weights'].float_list.value
    return out, labels, weights


class Tfrecords:
  """TFRecord files read by record number, through the offsets of a scan.

  A record is length (8 bytes), its checksum (4), the data, and theirs (4). A
  file is open only while it is read: sets have more shards than a process may
  have open files.

  Raises:
    UserError: when made, if a file is missing or shorter than its set says.
  """

  def __init__(self, shards, name):
    import google_crc32c
    self._crc = google_crc32c.value
    self._shards = shards
    self._offsets = _offsets(shards, name)

  def __call__(self, records):
    shards = np.searchsorted(self._shards.ends, records, side='right')
    begins = self._offsets[records + shards].tolist()
    ends = self._offsets[records + shards + 1].tolist()
    return list(map(self._raw, shards.tolist(), begins, ends))

  def _raw(self, shard, begin, end):
    file = _open(self._shards.paths[shard])
    try:
      data = os.pread(file, end - begin - 12, begin + 12)
    finally:
      os.close(file)
    return _checked(self._crc, data)


class ArrayRecords:
  """ArrayRecord files read by record number; all stay open.

  Raises:
    UserError: when made, if a file is missing or shorter than its set says.
  """

  def __init__(self, shards, name):
    from array_record.python import array_record_module
    del name
    _allow_open_files(len(shards.paths))
    self._shards = shards
    make = array_record_module.ArrayRecordReader

    def open_one(shard):
      reader = make(shards.paths[shard])
      _check_length(shards, shard, reader.num_records())
      return reader

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      self._readers = list(pool.map(open_one, range(len(shards.paths))))

  def __call__(self, records):
    return [self._raw(int(r)) for r in records]

  def _raw(self, record):
    shard, at = self._shards.locate(record)
    try:
      return self._readers[shard].read([at])[0]
    except (ValueError, IndexError, RuntimeError) as e:
      return decode_pillow.BadImage(decode_pillow.one_line(e))


class Sequence:
  """TFRecord files read from some record on, as buckets want it."""

  def __init__(self, shards, name):
    import google_crc32c
    self._crc = google_crc32c.value
    self.shards = shards
    self._name = name
    self._left = {}   # (shard, next record): an open file that stands there

  def __call__(self, records):
    """Serialised records, by ascending numbers of one shard.

    Raises:
      RunError: if the file ends too early, or the length of a record is wrong.
    """
    if not len(records):
      return []
    shard, first = self.shards.locate(records[0])
    places = set((records - records[0] + first).tolist())
    out, path, last = [], self.shards.paths[shard], max(places)
    f, begin = self._left.pop((shard, first), None), first
    if f is None:
      f, begin = _open_anywhere(path), 0
    with contextlib.ExitStack() as stack:
      stack.callback(f.close)
      for place in range(begin, last + 1):
        header = f.read(12).ljust(12)
        length, = struct.unpack('<Q', header[:8])
        whole = _is_whole(self._crc, header[:8], header[8:])
        data = f.read(length + 4) if whole else b''
        if not whole or len(data) < length + 4:
          raise errors.RunError(
              f'{path!r} is damaged: it cannot be read from record {place} of '
              f'the {self.shards.length(shard)} that {self._name} lists')
        if place in places:
          out.append(_checked(self._crc, data))
      if last + 1 < self.shards.length(shard) and len(self._left) < _MOST_LEFT:
        stack.pop_all()   # whoever reads on finds the file where it stands
        self._left[shard, last + 1] = f
    return out


def _checked(crc, data):
  """A record without its checksum, or a `BadImage` if they do not match."""
  if _is_whole(crc, data[:-4], data[-4:]):
    return data[:-4]
  return decode_pillow.BadImage('the record does not match its checksum')


def _is_whole(crc, data, stored):
  value = crc(data)
  masked = (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF
  return struct.unpack('<I', stored.ljust(4))[0] == masked


def shards_of(info):
  """The `Shards` of all splits of a DatasetInfo."""
  pairs = [(str(path), length) for split in info.splits.values()
           for path, length in zip(split.filepaths, split.shard_lengths)]
  return Shards(tuple(p for p, _ in pairs),
                np.cumsum([n for _, n in pairs], dtype=np.int64))


def fingerprint(info, shards):
  """The same for one set in either format."""
  lengths = np.diff(shards.ends, prepend=0).tolist()
  listed = [(os.path.basename(path).replace('.array_record', '.tfrecord'), n)
            for path, n in zip(shards.paths, lengths)]
  return hashlib.sha256(
      repr((info.full_name, listed)).encode()).hexdigest()[:16]


def _offsets(shards, name):
  """Where records begin: int64 [records + shards], each shard's end included.

  Scanned once and kept in the cache by the names, sizes and times of the
  files; memory-mapped, so that it costs little memory.
  """
  stats = [_stat(path) for path in shards.paths]
  sizes = [s.st_size for s in stats]
  key = hashlib.sha256(repr(
      [(os.path.abspath(p), s.st_size, s.st_mtime_ns)
       for p, s in zip(shards.paths, stats)]).encode()).hexdigest()[:32]
  cache = os.path.join(files.cache(), f'offsets-{key}.npy')
  kept = _kept(cache, shards, sizes)
  if kept is not None:
    return kept
  began = time.monotonic()
  log.info('%s: finding the records of %d files, once', name, len(stats))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    parts = list(pool.map(lambda i: _scan(shards, i), range(len(stats))))
  offsets = np.concatenate(parts)
  log.info('%s: %d records in %.0f s', name, shards.ends[-1],
           time.monotonic() - began)
  try:
    os.makedirs(os.path.dirname(cache), exist_ok=True)
    part = f'{cache}.{uuid.uuid4().hex}'   # many machines may share a home
    with open(part, 'wb') as f:
      np.save(f, offsets)
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, cache)
  except OSError as e:
    log.info('%s cannot be kept (%s): the next run scans again', cache,
             e.strerror or e)
  kept = _kept(cache, shards, sizes)
  return offsets if kept is None else kept


def _kept(cache, shards, sizes):
  """The offsets in a file, or None if it is not there or not of these files."""
  try:
    out = np.asarray(np.load(cache, mmap_mode='r'))
  except (OSError, ValueError, EOFError):
    return None
  ends = shards.ends + np.arange(len(sizes))   # where the end of a file is
  begins = np.append(0, ends[:-1] + 1)
  if (out.dtype != np.int64 or out.shape != (ends[-1] + 1,)
      or np.any(out[begins]) or np.any(out[ends] > sizes)
      or np.any(np.delete(np.diff(out), ends[:-1]) < 16)):
    return None
  return out


def _scan(shards, shard):
  """Where the records of a file begin, and its end, by their headers."""
  file = _open(shards.paths[shard])
  try:
    size, at, out = os.fstat(file).st_size, 0, [0]
    while at + 16 <= size:
      length, = struct.unpack('<Q', os.pread(file, 8, at))
      if at + length + 16 > size:
        break
      at += length + 16
      out.append(at)
  finally:
    os.close(file)
  _check_length(shards, shard, len(out) - 1)
  return np.array(out, np.int64)


def _check_length(shards, shard, found):
  expected = shards.length(shard)
  if found != expected:
    raise errors.UserError(
        f'{shards.paths[shard]!r} is damaged or missing: {found} whole records '
        f'of the {expected} that its data set lists; prepare it again')


def _stat(path):
  try:
    return os.stat(path)
  except OSError as e:
    raise errors.UserError(f'cannot read {path!r}: {e.strerror}') from None


def _open(path):
  try:
    return os.open(path, os.O_RDONLY)
  except OSError as e:
    raise errors.UserError(f'cannot read {path!r}: {e.strerror}') from None


def _open_anywhere(path):
  try:
    return epath.Path(path).open('rb')
  except OSError as e:
    raise errors.RunError(f'cannot read {path!r}: {e.strerror or e}') from None


def _allow_open_files(count):
  """Raises the soft limit of open files where the hard one allows."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = len(os.listdir('/dev/fd')) + count + 512
  if soft != resource.RLIM_INFINITY and soft < wanted:
    if hard != resource.RLIM_INFINITY and hard < wanted:
      raise errors.UserError(
          f'{count} files must stay open, and the limit is {hard}; raise it '
          f'(ulimit -n {wanted})')
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
