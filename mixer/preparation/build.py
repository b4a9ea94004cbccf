"""Builds a TFDS set from a folder, a manifest or ImageNet-21k's tars, on Beam.

Images do not travel between workers. Beam groups by shard only where each image
is stored, and the worker of a shard reads, checks and writes the images. So a
machine can build a set far larger than its memory.

Records are ordered by a hash of their names, whatever the number of shards. So
the first n records of a split are a random sample of it.
"""
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import json
import os
import shutil
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.data import checks
from mixer.images import decode_pillow
from mixer.images import tf_setup
from mixer.preparation import beam_runner
from mixer.preparation import image_lists
from mixer.preparation import plain_files
from mixer.preparation import set_directory
from mixer.preparation import shard_files

if TYPE_CHECKING:
  import apache_beam

_BAD_IMAGES_SHOWN = 10   # in an error; bad.jsonl lists all of them
_Counts = dict[str, dict[str, int]]


def build(source: str, *, name: str, data_dir: str, file_format: str,
          shards: int | None, max_pixels: int, max_bad_fraction: float,
          runner: str, options: Sequence[str],
          shorter_side: int | None = None) -> tuple[str, _Counts]:
  """Builds the set `name` in data_dir.

  Args:
    source: one of `image_lists.KINDS`.
    name: the name of the new set.
    data_dir: the TFDS directory to write to.
    file_format: one of `shard_files.FORMATS`.
    shards: number of shards of each split; None for as many as TFDS would make.
    max_pixels: height times width at most; a larger image is bad.
    max_bad_fraction: if a larger share of all images is bad, no set is built.
    runner: Beam's name of a runner.
    options: arguments for Beam's PipelineOptions.
    shorter_side: images whose shorter side has more pixels are stored resized
      to so many; None to store all in their own size.

  Returns:
    (the new set's directory, {split: {'in', 'records', 'bad', 'shards',
    'bytes', and 'resized', 'resized_from', 'resized_to': the number of resized
    images, and their bytes before and after}}).

  Raises:
    UserError: if the source is missing or malformed, or the set exists.
    RunError: if too many images are bad, or the counts do not add up.
  """
  beam_runner.import_beam()   # fails before the source is scanned
  _need_tensorflow()
  root = os.path.join(set_directory.local_path(data_dir, '--data_dir'), name)
  version = f'1.0.{shorter_side or 0}'
  path = os.path.join(root, version)
  with set_directory.create(path) as partial:
    images = image_lists.open_list(source)
    num_shards = shards or _default_shards(images, shorter_side)
    work = os.path.join(partial, 'work')
    os.mkdir(work)
    write = functools.partial(
        write_shard, work=work, file_format=file_format,
        multi_label=images.multi_label, max_pixels=max_pixels,
        shorter_side=shorter_side)
    beam_runner.run(
        functools.partial(_add_steps, images=images, shards=num_shards,
                          work=work, write=write),
        runner=runner, options=options, work=work,
        shards=num_shards * len(images.sizes))
    reports = beam_runner.read_reports(work)
    counts = _checked_counts(reports, images.sizes, work)
    _list_bad_images([bad for report in reports for bad in report['bad']],
                     sum(row['in'] for row in counts.values()),
                     max_bad_fraction, bad_list(path))
    written = {split: set_directory.move_shards(
        work, [report for report in reports if report['split'] == split],
        partial, name, split, file_format) for split in counts}
    shutil.rmtree(work)
    _write_metadata(partial, images, name=name, version=version,
                    file_format=file_format, shards=written)
    set_directory.write_provenance(
        partial, dict(source=source, fingerprint=images.fingerprint,
                      max_pixels=max_pixels, shorter_side=shorter_side,
                      splits=counts), contents=(images.fingerprint, written))
    files.write(checks.mark_of(partial), '')
  return path, counts


def write_shard(grouped: tuple[tuple[str, int], Iterable[str]], *, work: str,
                file_format: str, multi_label: bool, max_pixels: int,
                shorter_side: int | None = None) -> None:
  """Writes a shard, and beside it a report with its bad images.

  Args:
    grouped: ((split, shard), packed `image_lists.Entry`s in any order).
    work: the directory to write to.
    file_format: one of `shard_files.FORMATS`.
    multi_label: whether the set stores 'labels' instead of 'label'.
    max_pixels: height times width of an image at most.
    shorter_side: as for `plain_files.plain_file`.
  """
  (split, shard), packed = grouped
  _need_tensorflow()   # before threads that would import it
  # Beam groups in no particular order.
  entries = sorted(map(image_lists.unpack, packed),
                   key=lambda e: (e.name_hash, e.name))
  bad = []
  sizes = dict(resized=0, resized_from=0, resized_to=0)

  def load(i):
    try:
      # Entries of the same name are neighbours: they have the same hash.
      if i and entries[i].name == entries[i - 1].name:
        raise decode_pillow.BadImage('it is listed more than once')
      file = entries[i].read()
      return (*plain_files.plain_file(file, max_pixels, shorter_side),
              len(file))
    except decode_pillow.BadImage as e:
      return e

  def records():
    images = beam_runner.map_in_threads(load, range(len(entries)))
    for entry, image in zip(entries, images):
      if isinstance(image, decode_pillow.BadImage):
        bad.append(dict(split=split, name=entry.name, reason=str(image)))
      else:
        file, resized, before = image
        if resized:
          sizes['resized'] += 1
          sizes['resized_from'] += before
          sizes['resized_to'] += len(file)
        yield _serialized_example(file, entry, multi_label)

  path = os.path.join(work, f'{split}-{shard}')
  count, size = shard_files.write(path, file_format, records())
  beam_runner.write_report(path, dict(
      split=split, shard=shard, records=count, bytes=size, bad=bad, **sizes))


def _serialized_example(file: bytes, entry: image_lists.Entry,
                        multi_label: bool) -> bytes:
  """Returns a record with the features that `_write_metadata` declares."""
  from tensorflow_datasets.proto import tf_example_pb2
  example = tf_example_pb2.Example()
  feature = example.features.feature
  feature['image'].bytes_list.value.append(file)
  feature['labels' if multi_label else 'label'].int64_list.value.extend(
      entry.labels)
  if entry.weights is not None:
    feature['weights'].float_list.value.extend(entry.weights)
  feature['file_name'].bytes_list.value.append(
      entry.name.encode('utf-8', 'surrogateescape'))
  # The features are a map, whose order protobuf leaves open by default.
  return example.SerializeToString(deterministic=True)


def _default_shards(images: image_lists.ImageList, shorter_side: int | None
                    ) -> int:
  """Returns TFDS's own number of shards: files of 64 MiB to 1 GiB."""
  from tensorflow_datasets.core.utils import shard_utils
  known = [n for n in images.sizes.values() if n is not None]
  size = images.num_bytes
  if shorter_side:   # about a byte for each pixel of a square
    size = min(size, sum(known) * shorter_side**2 or size)
  return shard_utils.ShardConfig.calculate_number_shards(
      size, max(known, default=2**20), uses_precise_sharding=False)


def _add_steps(pipeline: 'apache_beam.Pipeline', *,
               images: image_lists.ImageList, shards: int, work: str,
               write: Callable[[Any], None]) -> None:
  """Adds to a pipeline: list entries, group them by shard, write and count."""
  beam = beam_runner.import_beam()
  # Reshuffle lets Beam spread the parts over workers; without it, it would fuse
  # creating and listing into one step of one worker.
  entries = (pipeline | beam.Create(images.parts) | beam.Reshuffle()
             | 'List' >> beam.FlatMap(images.entries_of)
             | 'Assign' >> beam.Map(
                 functools.partial(_with_shard, shards=shards)))
  entries | beam.GroupByKey() | 'Write' >> beam.Map(write)
  # Counted apart from the writing, so that a lost element is noticed.
  (entries | 'Split' >> beam.Map(lambda item: item[0][0])
   | beam.combiners.Count.PerElement()
   | 'Count' >> beam.MapTuple(lambda split, count: files.write(
       os.path.join(work, f'{split}.count'), str(count))))


def _with_shard(entry: image_lists.Entry, *, shards: int
                ) -> tuple[tuple[str, int], str]:
  """Returns ((split, shard), packed entry).

  Shards are equal ranges of the hash, so that their concatenation is ordered by
  hash for every number of shards.
  """
  return (entry.split, entry.name_hash * shards >> 64), entry.pack()


def _checked_counts(reports: Iterable[Mapping[str, Any]],
                    sizes: Mapping[str, int | None], work: str) -> _Counts:
  """Returns {split: counts}; raises RunError if images were lost or added."""
  counts = {}
  for split, listed in sizes.items():
    mine = [report for report in reports if report['split'] == split]
    row = {key: sum(report[key] for report in mine)
           for key in ('records', 'bytes', 'resized', 'resized_from',
                       'resized_to')}
    row['in'] = int(files.read(os.path.join(work, f'{split}.count')) or 0)
    row['bad'] = sum(len(report['bad']) for report in mine)
    row['shards'] = sum(report['records'] > 0 for report in mine)
    if (row['in'] != row['records'] + row['bad']
        or listed not in (None, row['in'])):
      raise errors.RunError(
          f'{split}: {listed or row["in"]} images were listed, {row["in"]} '
          f'were sent to the shards, and {row["records"]} were written and '
          f'{row["bad"]} found bad there; these numbers must agree. If the '
          'source changed meanwhile, build again')
    counts[split] = row
  return counts


def bad_list(path: str) -> str:
  """Returns the path of the list of a set's bad images: beside the directory of
  its version, `path`, so that it is there even when the set is not."""
  root, version = os.path.split(path)
  return os.path.join(
      root, 'bad.jsonl' if version == '1.0.0' else f'bad-{version}.jsonl')


def _need_tensorflow() -> None:
  problem = tf_setup.hide_accelerators()
  if problem:
    raise errors.UserError(
        f'build checks images with TensorFlow, as training does, and {problem}'
        '; run .venv-prepare/bin/pip install -r '
        'launch/requirements-prepare.txt')


def _list_bad_images(bad: Sequence[Mapping[str, str]], total: int,
                     max_bad_fraction: float, path: str) -> None:
  """Writes the list of bad images, if any; RunError if there are too many."""
  if os.path.exists(path):
    os.remove(path)   # written by an earlier try
  if bad:
    files.write(path, ''.join(json.dumps(b) + '\n' for b in bad))
  if len(bad) <= max_bad_fraction * total:
    return
  some = ', '.join(f'{b["name"]} ({b["reason"]})'
                   for b in bad[:_BAD_IMAGES_SHOWN])
  more = ', and so on' if len(bad) > _BAD_IMAGES_SHOWN else ''
  raise errors.RunError(
      f'{len(bad)} of {total} images are bad, more than the allowed share of '
      f'{max_bad_fraction}: {some}{more}; all of them are in {path!r}. Repair '
      'or remove them, or raise --max_bad_fraction')


def _write_metadata(directory: str, images: image_lists.ImageList, *, name: str,
                    version: str, file_format: str,
                    shards: Mapping[str, Sequence[tuple[int, int]]]) -> None:
  """Writes TFDS's metadata: features, classes and shards."""
  import tensorflow_datasets as tfds
  label = tfds.features.ClassLabel(names=images.class_names)
  features = dict(image=tfds.features.Image(shape=(None, None, 3)),
                  file_name=tfds.features.Text())
  if images.multi_label:
    features['labels'] = tfds.features.Sequence(label)
  else:
    features['label'] = label
  if images.weighted:
    features['weights'] = tfds.features.Sequence(np.float32)
  split_infos = [tfds.core.SplitInfo(
      name=split, shard_lengths=[count for count, _ in mine],
      num_bytes=sum(size for _, size in mine),
      filename_template=tfds.core.ShardedFileTemplate(
          data_dir=directory, dataset_name=name, split=split,
          filetype_suffix=file_format)) for split, mine in shards.items()]
  # `check_data` would read every record again; the counts are checked already.
  tfds.folder_dataset.write_metadata(
      data_dir=directory, features=features, split_infos=split_infos,
      version=version, check_data=False)
