"""Writes a folder, a manifest or ImageNet-21k's tars as a TFDS set, with Beam.

Images do not travel between workers: what is grouped by shard is where their
bytes lie, and the worker of a shard reads, checks and writes them. So a machine
can make a set far larger than its memory. Records lie in the order of a hash of
their names, whatever the number of shards: the first n of a split are a random
sample of it.
"""
import functools
import io
import json
import os
import shutil

import numpy as np
from PIL import Image

from mixer.core import errors
from mixer.core import files
from mixer.images import decode_pillow
from mixer.preparation import beam_runner
from mixer.preparation import image_lists
from mixer.preparation import shard_files

_VERSION = '1.0.0'
_LISTED = 10   # bad images in an error; all are in the file
_LOSSY = (b'\xff\xd8', b'RIFF')   # how JPEG and WebP begin


def build(source, *, name, data_dir, form, shards, max_pixels, max_bad_fraction,
          runner, options):
  """Makes the set `name` in data_dir.

  Args:
    source: one of `entries.KINDS`.
    name: of the new set.
    data_dir: of TFDS.
    form: one of `records.FORMATS`.
    shards: of each split, or None for as many as TFDS would make.
    max_pixels: of an image; larger ones are bad.
    max_bad_fraction: of all images; with more of them bad there is no set.
    runner, options: of Beam.

  Returns:
    (the new directory, {split: {'in', 'records', 'bad', 'shards', 'bytes'}}).

  Raises:
    UserError: if the source is not as it must be, or the set is there already.
    RunError: if too many images are bad, or counts do not agree.
  """
  beam_runner.load()
  root = os.path.join(shard_files.local(data_dir, '--data_dir'), name)
  path = os.path.join(root, _VERSION)
  with shard_files.new_directory(path) as partial:
    plan = image_lists.plan(source)
    shards = shards or _shards_for(plan)
    work = os.path.join(partial, 'work')
    os.mkdir(work)
    beam_runner.run(
        functools.partial(
            _pipeline, plan=plan, shards=shards, work=work,
            write=functools.partial(
                write_shard, work=work, form=form, several=plan.several,
                max_pixels=max_pixels)),
        runner=runner, options=options, work=work,
        shards=shards * len(plan.sizes))
    found = beam_runner.reports(work)
    table = _count(found, plan.sizes, work)
    _judge([bad for part in found for bad in part['bad']], table,
           max_bad_fraction, os.path.join(root, 'bad.jsonl'))
    shards = {split: shard_files.install(
        work, [part for part in found if part['split'] == split], partial, name,
        split, form) for split in table}
    shutil.rmtree(work)
    _describe(partial, plan, name=name, form=form, shards=shards)
    files.write(os.path.join(partial, shard_files.NOTE), json.dumps(dict(
        source=source, fingerprint=plan.fingerprint,
        max_pixels=max_pixels, splits=table), indent=2))
  return path, table


def admit(file, max_pixels):
  """An image file as it is stored: as it is if it is plain, else upright RGB.

  Raises:
    BadImage: if any part of it cannot be decoded.
  """
  pixels = decode_pillow.pixels(file, max_pixels=max_pixels)
  if decode_pillow.is_plain(file, max_pixels=max_pixels):
    return file
  out = io.BytesIO()
  if file.startswith(_LOSSY):
    Image.fromarray(pixels).save(out, 'JPEG', quality=95, subsampling=0)
  else:
    Image.fromarray(pixels).save(out, 'PNG')
  return out.getvalue()


def write_shard(grouped, *, work, form, several, max_pixels):
  """Writes a shard, and beside it what became of its entries.

  Args:
    grouped: ((split, shard), its packed `entries.Entry`s).
    work: directory for both.
    form, several, max_pixels: as for `build` and `entries.Plan`.
  """
  (split, shard), packed = grouped
  members = sorted(map(image_lists.unpack, packed), key=lambda e: (e.hash, e.name))
  bad = []

  def load(i):
    try:
      if i and members[i].name == members[i - 1].name:
        raise decode_pillow.BadImage('it is listed more than once')
      return admit(members[i].read(), max_pixels)
    except decode_pillow.BadImage as e:
      return e

  def good():
    files_of = beam_runner.in_threads(load, range(len(members)))
    for entry, file in zip(members, files_of):
      if isinstance(file, decode_pillow.BadImage):
        bad.append(dict(split=split, name=entry.name, reason=str(file)))
      else:
        yield _example(file, entry, several)

  path = os.path.join(work, f'{split}-{shard}')
  count, size = shard_files.write(path, form, good())
  beam_runner.report(path, dict(split=split, shard=shard, records=count, bytes=size,
                            bad=bad))


def _example(file, entry, several):
  """A serialised record of the features in `_describe`."""
  from tensorflow_datasets.proto import tf_example_pb2
  out = tf_example_pb2.Example()
  feature = out.features.feature
  feature['image'].bytes_list.value.append(file)
  feature['labels' if several else 'label'].int64_list.value.extend(
      entry.labels)
  if entry.weights is not None:
    feature['weights'].float_list.value.extend(entry.weights)
  feature['file_name'].bytes_list.value.append(
      entry.name.encode('utf-8', 'surrogateescape'))
  return out.SerializeToString(deterministic=True)


def _shards_for(plan):
  """As many as TFDS would make: files of 64 MiB to 1 GiB."""
  from tensorflow_datasets.core.utils import shard_utils
  known = [n for n in plan.sizes.values() if n is not None]
  return shard_utils.ShardConfig.calculate_number_shards(
      plan.num_bytes, max(known, default=2**20), uses_precise_sharding=False)


def _pipeline(pipeline, *, plan, shards, work, write):
  beam = beam_runner.load()
  listed = (pipeline | beam.Create(plan.items) | beam.Reshuffle()
            | 'List' >> beam.FlatMap(plan.entries)
            | 'Assign' >> beam.Map(functools.partial(_assign, shards=shards)))
  listed | beam.GroupByKey() | 'Write' >> beam.Map(write)
  (listed | 'Split' >> beam.Map(lambda item: item[0][0])
   | beam.combiners.Count.PerElement()
   | 'Tell' >> beam.MapTuple(lambda split, count: files.write(
       os.path.join(work, f'{split}.count'), str(count))))


def _assign(entry, *, shards):
  return (entry.split, entry.hash * shards >> 64), entry.pack()


def _count(found, sizes, work):
  """{split: counts}; raises RunError if they do not agree."""
  table = {}
  for split, listed in sizes.items():
    mine = [part for part in found if part['split'] == split]
    row = {k: sum(part[k] for part in mine) for k in ('records', 'bytes')}
    row['in'] = int(files.read(os.path.join(work, f'{split}.count')) or 0)
    row['bad'] = sum(len(part['bad']) for part in mine)
    row['shards'] = sum(part['records'] > 0 for part in mine)
    if (row['in'] != row['records'] + row['bad']
        or listed not in (None, row['in'])):
      raise errors.RunError(
          f'{split}: {listed or row["in"]} images were listed, {row["in"]} '
          f'went in and {row["records"]} + {row["bad"]} bad ones came out; did '
          'the source change meanwhile?')
    table[split] = row
  return table


def _judge(bad, table, max_bad_fraction, path):
  """Lists the bad images in a file; raises RunError if they are too many."""
  if os.path.exists(path):
    os.remove(path)   # of an earlier try
  if bad:
    files.write(path, ''.join(json.dumps(b) + '\n' for b in bad))
  total = sum(row['in'] for row in table.values())
  if len(bad) <= max_bad_fraction * total:
    return
  some = ', '.join(f'{b["name"]} ({b["reason"]})' for b in bad[:_LISTED])
  raise errors.RunError(
      f'{len(bad)} of {total} images are bad, and a share of '
      f'{max_bad_fraction} may be: {some}'
      f'{", and so on" if len(bad) > _LISTED else ""}; all are in {path!r}. '
      'Mend or remove them, or raise --max_bad_fraction')


def _describe(directory, plan, *, name, form, shards):
  """Writes what TFDS must know: features, classes, files."""
  import tensorflow_datasets as tfds
  label = tfds.features.ClassLabel(names=plan.class_names)
  features = dict(image=tfds.features.Image(shape=(None, None, 3)),
                  file_name=tfds.features.Text())
  if plan.several:
    features['labels'] = tfds.features.Sequence(label)
  else:
    features['label'] = label
  if plan.weighted:
    features['weights'] = tfds.features.Sequence(np.float32)
  infos = [tfds.core.SplitInfo(
      name=split, shard_lengths=[count for count, _ in mine],
      num_bytes=sum(size for _, size in mine),
      filename_template=tfds.core.ShardedFileTemplate(
          data_dir=directory, dataset_name=name, split=split,
          filetype_suffix=form)) for split, mine in shards.items()]
  tfds.folder_dataset.write_metadata(
      data_dir=directory, features=features, split_infos=infos,
      version=_VERSION, check_data=False)
