"""Every kind of source gives the same batches again, in any number of
processes, from any step on, and counts every example once.

The same pictures lie in TFRecord, in ArrayRecord, in a folder, in a manifest
and in an array. 'sequential' reads the TFRecords in sequence; 'few' does with
so few that a reader gives a batch two examples, of two epochs.
"""
import collections
import gc
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from mixer.core import errors
from mixer.data import order
from mixer.data import pipeline
from mixer.data import rows as loading
from mixer.data import sequential_order
from mixer.data import shards as prepared

ROOT = pathlib.Path(__file__).resolve().parent.parent
COUNT, CLASSES, SIDE, WINDOW = 61, 5, 12, 8
SIZES = dict(tfrecord=8, array_record=8, folder=8, manifest=8, arrays=8,
             sequential=4, few=8)   # of batches
KINDS = tuple(SIZES)
RANDOM, SEQUENTIAL = KINDS[:5], KINDS[5:]
EVERY_KIND = pytest.mark.parametrize('kind', KINDS)
EVERY_SOURCE = pytest.mark.parametrize('kind', KINDS[:6])
FORMS = pytest.mark.parametrize('form', ('tfrecord', 'array_record'))


# The sets.


def draw_pictures():
  """[(encoded, label)], sorted by label: photos of different sizes."""
  photos = datasets.load_sample_images().images
  rng = np.random.default_rng(0)
  out = []
  for i in range(COUNT):
    height, width = rng.integers(16, 48, 2)
    y, x = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
    file = io.BytesIO()
    Image.fromarray(photos[i % 2][y:y + height, x:x + width]).save(
        file, 'PNG' if i == 7 else 'JPEG')
    out.append((file.getvalue(), i * CLASSES // COUNT))
  return out


def prepare(data_dir, form, pictures, weighted=False):
  """The TFDS set 'crops' of three shards."""
  import tensorflow_datasets as tfds
  os.environ['NO_GCE_CHECK'] = 'true'
  tfds.display_progress_bar(enable=False)
  tfds.core.utils.gcs_utils._is_gcs_disabled = True
  label = tfds.features.ClassLabel(num_classes=COUNT if weighted else CLASSES)
  target = dict(label=label) if not weighted else dict(
      labels=tfds.features.Sequence(label),
      weights=tfds.features.Sequence(np.float32))

  class Crops(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Photos made by the test."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      image = tfds.features.Image(shape=(None, None, 3))
      return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(dict(target, image=image)))

    def _split_generators(self, dl_manager):
      del dl_manager
      return dict(train=self._generate_examples())

    def _generate_examples(self):
      for i, (file, *targets) in enumerate(pictures):
        yield i, dict(zip(target, targets), image=file)

  Crops(data_dir=data_dir, file_format=form).download_and_prepare(
      download_config=tfds.download.DownloadConfig(
          num_shards=3, try_download_gcs=False))
  return dict(name='crops', dir=data_dir)


def write_files(root, pictures):
  """As PATH/CLASS/..., and a manifest of the same files in the same order."""
  lines = ['path,label']
  for i, (file, label) in enumerate(pictures):
    path = f'c{label}/{i:02}.{"png" if file[:1] != bytes([255]) else "jpg"}'
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(file)
    lines.append(f'{root.name}/{path},c{label}')
  listed = root.parent / 'listed.csv'
  listed.write_text('\n'.join(lines))
  return dict(name=f'folder:{root}'), dict(name=f'manifest:{listed}')


def write_arrays(path, pictures):
  images = [Image.open(io.BytesIO(file)).resize((SIDE, SIDE))
            for file, _ in pictures]
  np.savez(path, images=np.stack(images),
           labels=np.array([label for _, label in pictures]))
  return dict(name=f'arrays:{path}')


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  """Indexes are not kept in the cache of whoever runs the tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(scope='module')
def pictures():
  return draw_pictures()


@pytest.fixture(scope='module')
def sets(pictures, tmp_path_factory):
  """{kind: what `open_data` is told}."""
  root = tmp_path_factory.mktemp('sets')
  folder, manifest = write_files(root / 'files', pictures)
  tfrecord = prepare(str(root / 'tfrecord'), 'tfrecord', pictures)
  sequential = dict(tfrecord, access='sequential')
  made = dict(
      tfrecord=tfrecord, folder=folder, manifest=manifest,
      array_record=prepare(str(root / 'array_record'), 'array_record',
                           pictures),
      arrays=write_arrays(root / 'arrays.npz', pictures),
      sequential=sequential, few=dict(sequential, split='train[17:24]'))
  assert set(made) == set(KINDS)
  return {kind: {'split': 'train', 'image_size': SIDE, 'window': WINDOW,
                 'crop': 'bit', **one} for kind, one in made.items()}


def reopened(settings, **more):
  """A split as a new process would open it: nothing is remembered."""
  pipeline._open.cache_clear()
  return pipeline.open_data(**{**settings, **more})


def whole(data, batches):
  """Batches with what the device would look up by position."""
  for batch in batches:
    yield batch if data.resident is None else {
        **batch, **{k: v[batch['position']] for k, v in data.resident.items()}}


def train(data, size, first, last, seed=0, slots=None):
  return list(whole(data, data.train_batches(
      seed=seed, batch_size=size, first=first, last=last,
      slots=slots or (0, size))))


def evaluate(data, size):
  return list(whole(data, data.eval_batches(
      batch_size=size, slots=(0, size))))


def loaded(data, size, first, last, seed=0):
  """Training batches before they are decoded, with 'file' for 'image'."""
  if data.resident is not None:
    return [{**batch, 'file': batch['image']}
            for batch in train(data, size, first, last, seed)]
  load, *_ = loading.training(
      data, seed=seed, batch_size=size, first=first, slots=(0, size))
  out = []
  for step in range(first, last):
    files, keys, (epoch, record, bad, labels, *weights) = load(step, 0, size)
    out.append(dict(zip(['weights'], weights), epoch=epoch, record=record,
                    bad=bad, labels=labels, key=keys,
                    file=np.array(files, object)))
  return out


def judged(data, size, processes=1, process=0):
  """Evaluation batches before they are decoded: (mask, bad, files, labels)."""
  slots, of_all = (process * size, (process + 1) * size), size * processes
  if data.resident is not None:
    return [(b['mask'], b['bad'], b['image'], b['labels']) for b in whole(
        data, data.eval_batches(batch_size=of_all, slots=slots))]
  count, load, _ = loading.evaluation(data, batch_size=of_all, slots=slots)
  loads = [load(number, 0, size) for number in range(count)]
  return [(mask, bad, files, labels)
          for files, _, (mask, bad, _, labels) in loads]


def counted(data, size, processes=1):
  """How often an evaluation counts each (file, label); all processes must make
  as many batches, of as many rows."""
  parts = [judged(data, size, processes, p) for p in range(processes)]
  assert len({len(part) for part in parts}) == 1
  out = collections.Counter()
  for mask, bad, files, labels in sum(parts, []):
    assert len(mask) == len(bad) == len(files) == len(labels) == size
    assert not bad.any()
    out.update((bytes(files[i]), int(labels[i, 0]))
               for i in np.flatnonzero(mask))
  return out


def digest(batches):
  """sha256 of all keys and arrays of all batches."""
  out = hashlib.sha256()
  for batch in batches:
    for key, array in sorted(batch.items()):
      out.update(repr((key, array.dtype.str, array.shape)).encode())
      out.update(np.ascontiguousarray(array))
  return out.hexdigest()


def assert_equal(one, other):
  assert len(one) == len(other)
  for a, b in zip(one, other):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def records_by_epoch(batches):
  out = collections.defaultdict(list)
  for batch in batches:
    for epoch, record in zip(batch['epoch'], batch['record']):
      out[int(epoch)].append(int(record))
  return out


def straddle(batches):
  return any(np.unique(batch['epoch']).size > 1 for batch in batches)


# Promise: the batch at step t is a function of (seed, t).


@EVERY_KIND
def test_batches_are_the_same_again_and_after_a_restart(sets, kind):
  """Steps 0 to 50, of several epochs; the second run stops at 25, and what
  starts then has opened everything anew."""
  size, last = SIZES[kind], 4 if kind == 'few' else 51
  settings = dict(sets[kind], crop='inception')
  through = train(reopened(settings), size, 0, last)
  assert len(through) == last and through[-1]['epoch'].min() >= 3
  assert straddle(through) == (kind != 'sequential')   # there all end together
  restarted = [batch for first, end in ((0, last // 2), (last // 2, last))
               for batch in train(reopened(settings), size, first, end)]
  assert digest(through) == digest(restarted)
  assert records_by_epoch(through[:2]) != records_by_epoch(
      loaded(reopened(settings), size, 0, 2, seed=1))
  assert set(through[0]) - {'position'} == {
      'epoch', 'record', 'bad', 'image', 'labels'}


@EVERY_KIND
def test_a_run_may_begin_at_any_step(sets, kind):
  """Inside a window and an epoch, and at the ends of both."""
  size, data = SIZES[kind], reopened(sets[kind])
  steps = (1,) if kind == 'few' else (1, 8, 14)
  through = loaded(data, size, 0, steps[-1] + 2)
  for step in steps:
    assert_equal(loaded(data, size, step, step + 2), through[step:step + 2])


PROCESS = """
import json, sys
import numpy as np
from mixer.data import pipeline
process, out, sets = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
made = {}
for kind, (settings, size, first, last) in sets.items():
  data = pipeline.open_data(**settings)
  for processes in (2, 4):
    share = size // processes
    slots = process * share, (process + 1) * share
    if process < processes:
      for t, batch in enumerate(data.train_batches(
          seed=0, batch_size=size, first=first, last=last, slots=slots)):
        for key, array in batch.items():
          made[f'{kind} {processes} {t} {key}'] = array
np.savez(out, **made)
"""


def test_processes_make_the_batches_of_one(sets, tmp_path):
  """Two and four real ones, which open all kinds at once, the index too; their
  rows, one process after the other, are the batches of one."""
  given = {kind: (settings, SIZES[kind], 6, 9)
           for kind, settings in sets.items()}
  outs = [tmp_path / f'{p}.npz' for p in range(4)]
  env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / 'cache'),
             TF_USE_LEGACY_KERAS='1')   # which is not there: Keras takes 1 s
  children = [subprocess.Popen(
      [sys.executable, '-c', PROCESS, str(p), str(out), json.dumps(given)],
      cwd=ROOT, env=env) for p, out in enumerate(outs)]
  assert [child.wait(timeout=300) for child in children] == [0] * 4
  assert len(os.listdir(tmp_path / 'cache' / 'mlp-mixer')) == 1
  made = [np.load(out) for out in outs]
  for kind, (settings, size, first, last) in given.items():
    data = reopened(settings)
    batches = list(data.train_batches(
        seed=0, batch_size=size, first=first, last=last, slots=(0, size)))
    assert len(batches) == last - first
    assert kind == 'sequential' or straddle(batches)
    for processes in (2, 4):
      assert_equal(batches, [
          {key: np.concatenate([made[p][f'{kind} {processes} {t} {key}']
                                for p in range(processes)]) for key in batch}
          for t, batch in enumerate(batches)])


@EVERY_SOURCE
def test_the_number_of_threads_changes_nothing(sets, kind, monkeypatch):
  digests = set()
  for threads in (1, 7):
    monkeypatch.setattr(os, 'cpu_count', lambda n=threads: n)
    digests.add(digest(train(reopened(sets[kind]), SIZES[kind], 0, 10)))
  assert len(digests) == 1


@pytest.mark.parametrize('kind', RANDOM)
def test_an_epoch_visits_every_example_once(sets, kind):
  """The batch size does not divide their number: the batch that ends an epoch
  begins the next; all kinds have one order."""
  batches = loaded(reopened(sets[kind]), 8, 0, 23)
  by_epoch = records_by_epoch(batches)
  for epoch in range(3):
    assert sorted(by_epoch[epoch]) == list(range(COUNT))
  assert len({tuple(by_epoch[epoch]) for epoch in range(3)}) == 3
  assert straddle(batches)
  for step, batch in enumerate(batches):
    epoch, position = order.batch(0, step, 8, COUNT)
    np.testing.assert_array_equal(batch['epoch'], epoch)
    np.testing.assert_array_equal(batch['record'], position)
    assert not batch['bad'].any()


@pytest.mark.parametrize('kind,size,readers', (
    ('sequential', 8, 8), ('few', 9, 3)))
def test_an_epoch_in_sequence_visits_most_examples_once(
    sets, kind, size, readers):
  """All but N mod R, and others are left out in another epoch."""
  data = reopened(sets[kind])
  stored = range(COUNT) if kind == 'sequential' else range(17, 24)
  rest = len(stored) % readers
  epochs, given = 5, len(stored) - rest
  by_epoch = records_by_epoch(
      loaded(data, size, 0, epochs * given // size + 2))
  left_out = []
  for epoch in range(epochs):
    assert len(by_epoch[epoch]) == len(set(by_epoch[epoch])) == given
    left_out.append(frozenset(stored) - set(by_epoch[epoch]))
    assert len(left_out[-1]) == rest > 0
  assert len(set(left_out)) > 2
  assert not frozenset.intersection(*left_out)


@EVERY_SOURCE
def test_files_and_labels_belong_to_their_records(sets, pictures, kind):
  """Whatever the source: each picture as it was stored, with its label."""
  data = reopened(sets[kind])
  stored = dict(pictures) if kind != 'arrays' else {
      image.tobytes(): label for image, (_, label) in zip(
          data.resident['image'], pictures)}
  assert len(stored) == COUNT
  of_record = {}
  for batch in loaded(data, SIZES[kind], 0, 8):
    for file, label, record in zip(
        batch['file'], batch['labels'], batch['record']):
      assert label.tolist() == [stored[bytes(file)]]
      assert of_record.setdefault(int(record), bytes(file)) == bytes(file)
  assert len(set(of_record.values())) == len(of_record)


# Promise: one set, one order, whatever it is stored in.


@pytest.mark.parametrize('one,other', (
    ('tfrecord', 'array_record'), ('folder', 'manifest')))
def test_what_is_stored_otherwise_gives_the_same_batches(sets, one, other):
  """One set in TFDS's two formats; the same files found and listed."""
  a, b = reopened(sets[one]), reopened(sets[other])
  assert_equal(train(a, 8, 0, 10), train(b, 8, 0, 10))
  assert_equal(evaluate(a, 20), evaluate(b, 20))
  if one == 'tfrecord':
    assert a.source.fingerprint == b.source.fingerprint
    assert a.fingerprint(8, 0) == b.fingerprint(8, 0)


def test_evaluation_is_the_same_at_random_and_in_sequence(sets):
  """In one process its rows come in the order of the files either way."""
  one, other = (evaluate(reopened(sets[kind]), 20)
                for kind in ('tfrecord', 'sequential'))
  for batches in one, other:
    for batch in batches:   # what does not count may be anything
      for key in batch:
        if key != 'mask':
          batch[key] = batch[key][batch['mask']]
  assert_equal(one, other)


# Promise: to resume costs seconds, whatever the step.


@pytest.mark.parametrize('kind', RANDOM)
def test_step_one_million_is_arithmetic(sets, kind):
  batch, = loaded(reopened(sets[kind]), 8, 10**6, 10**6 + 1)
  epoch, position = order.batch(0, 10**6, 8, COUNT)
  np.testing.assert_array_equal(batch['epoch'], epoch)
  np.testing.assert_array_equal(batch['record'], position)
  assert epoch.max() == 131_147


@pytest.mark.parametrize('kind', SEQUENTIAL)
def test_step_one_million_in_sequence_reads_a_window(sets, kind, monkeypatch):
  """Of each reader: that in which the step lies and the one ahead, for which a
  shard at most is passed over; and the batch is the plan's."""
  calls, read = [], prepared.Sequence.__call__

  def counted(self, records):
    if len(records):
      calls.append((int(records[0]), int(records[-1]) + 1))
    return read(self, records)

  monkeypatch.setattr(prepared.Sequence, '__call__', counted)
  data, size, step = reopened(sets[kind]), SIZES[kind], 10**6
  shards = data.source.shards
  readers = sequential_order.readers_for(size, len(data))
  each = size // readers
  plan = sequential_order.Windows(
      sequential_order.runs_of(data.split, shards.ends), readers, WINDOW, 0)
  batch, = loaded(data, size, step, step + 1)

  def records(begin, end):
    return data.split.records(np.arange(begin, end)).tolist()

  needed, ahead, expected = [], [], []
  for reader in range(readers):
    place = range(step * each, (step + 1) * each)
    first, last = plan.at(place[0])[0], plan.at(place[-1])[0]
    for number in range(first, last + 2):
      _, parts, _ = plan.read(reader, number)
      (needed if number <= last else ahead).extend(parts)
    for number, offset in map(plan.at, place):
      epoch, parts, places = plan.read(reader, number)
      passed = sum(shards.locate(records(*part)[-1])[1] + 1 for part in parts)
      assert passed <= WINDOW + max(map(shards.length, range(3)))
      read_here = sum((records(*part) for part in parts), [])
      expected.append((epoch, read_here[places[offset]]))
  np.testing.assert_array_equal(
      np.stack([batch['epoch'], batch['record']], 1), expected)
  needed, ahead = (collections.Counter(
      (records(*part)[0], records(*part)[-1] + 1) for part in parts)
                   for parts in (needed, ahead))
  assert needed <= collections.Counter(calls) <= needed + ahead


# Promise: a checkpoint's data is the run's, or it cannot resume.


def test_fingerprints_differ_where_the_order_does(sets):
  """In the batch size, the seed, the split, the set, and how it is read."""
  data = {kind: reopened(sets[kind]) for kind in KINDS}
  prints = {
      **{kind: d.fingerprint(8, 0) for kind, d in data.items()
         if kind != 'array_record'},
      'size': data['tfrecord'].fingerprint(16, 0),
      'seed': data['tfrecord'].fingerprint(8, 1),
      'split': reopened(sets['tfrecord'], split='train[:60]').fingerprint(8, 0),
      'window': reopened(sets['sequential'], window=4).fingerprint(8, 0),
      'size in sequence': data['sequential'].fingerprint(16, 0),
      'seed in sequence': data['sequential'].fingerprint(8, 1),
      'carved': reopened(sets['tfrecord'], wanted=('validation',)).fingerprint(
          8, 0)}
  texts = {json.dumps(p, sort_keys=True) for p in prints.values()}
  assert len(texts) == len(prints)   # and they can be stored
  for kind in KINDS:
    assert reopened(sets[kind]).fingerprint(8, 0) == data[kind].fingerprint(
        8, 0)
  for kind in RANDOM:   # which have no window
    assert data[kind].fingerprint(8, 0) == reopened(
        sets[kind], window=4).fingerprint(8, 0)


# Promise: every example of an evaluation is counted exactly once.


@EVERY_KIND
@pytest.mark.parametrize('processes', (1, 2, 4))
def test_evaluation_counts_every_example_once(sets, kind, processes):
  """By one, two and four processes, at any batch size."""
  data = reopened(sets[kind])
  for size in (1, 7, len(data), len(data) + 5):
    found = counted(data, size, processes)
    assert len(found) == found.total() == len(data)   # no two are alike


@EVERY_SOURCE
def test_evaluation_decodes_what_it_counts(sets, kind):
  """Row by row: the image of each file, beside its label."""
  import tensorflow as tf

  def decoded(file):
    image = tf.io.decode_jpeg(file, 3, dct_method='INTEGER_ACCURATE') if (
        tf.io.is_jpeg(file)) else tf.io.decode_image(file, channels=3)
    return tf.cast(tf.image.resize(image, (SIDE, SIDE)), tf.uint8)

  data = reopened(sets[kind], crop='resize')
  batches = evaluate(data, 7)
  assert len(batches) == 9
  for batch, (mask, bad, files, labels) in zip(batches, judged(data, 7)):
    assert set(batch) - {'position'} == {'image', 'labels', 'mask', 'bad'}
    np.testing.assert_array_equal(batch['mask'], mask)
    np.testing.assert_array_equal(batch['bad'], bad)
    np.testing.assert_array_equal(batch['labels'], labels)
    images = files if kind == 'arrays' else list(map(decoded, files))
    np.testing.assert_array_equal(batch['image'], images)


@EVERY_SOURCE
def test_slices_are_parts_of_the_whole(sets, kind):
  """The halves of a split, and their union in another order."""
  halves = ['train[:50%]', 'train[50%:]']
  first, second, both, everything = (
      counted(reopened(sets[kind], split=split), 9)
      for split in (*halves, '+'.join(reversed(halves)), 'train'))
  assert first.total() + second.total() == COUNT == len(everything)
  assert abs(first.total() - second.total()) == 1
  assert first + second == both == everything
  by_epoch = records_by_epoch(
      loaded(reopened(sets[kind], split='train[10:30]'), 4, 0, 10))
  assert len(by_epoch) == 2
  for records in by_epoch.values():
    assert sorted(records) == list(range(10, 30))


@EVERY_SOURCE
def test_a_split_that_is_missing_is_carved(sets, kind):
  """Every tenth example, for evaluation; training never shows it, nor lacks
  another, however it is read."""
  wanted = 'validation', 'train'
  held, rest = (reopened(sets[kind], split=split, wanted=wanted)
                for split in wanted)
  everything = counted(reopened(sets[kind], split='train'), 30)
  assert (len(held), len(rest)) == (7, 54)
  for processes in (1, 4):
    found = [counted(data, 6, processes) for data in (held, rest)]
    assert [part.total() for part in found] == [7, 54]
    assert found[0] + found[1] == everything
  by_epoch = records_by_epoch(loaded(rest, 6, 0, 18))
  for epoch in range(2):   # 6 divides 54: nothing is left out in sequence
    assert sorted(by_epoch[epoch]) == [r for r in range(COUNT) if r % 10]
  batch, = evaluate(held, 7)
  assert batch['mask'].all()


# TFRecord's index.


@pytest.fixture
def scans(monkeypatch):
  """The shards that were scanned, one after the other."""
  out, scan = [], prepared._scan

  def counted_scan(shards, shard):
    out.append(shard)
    return scan(shards, shard)

  monkeypatch.setattr(prepared, '_scan', counted_scan)
  return out


@pytest.fixture
def copied(sets, tmp_path, monkeypatch):
  """A copy of the TFRecord set and a cache, both new."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  shutil.copytree(sets['tfrecord']['dir'], tmp_path / 'set')
  return dict(sets['tfrecord'], dir=str(tmp_path / 'set'))


def shard_of(settings, number):
  """The path of a shard."""
  path, = pathlib.Path(settings['dir']).glob(
      f'crops/*/crops-train.*-{number:05d}-of-00003')
  return path


def all_records(settings):
  source = reopened(settings).source
  return source.read(np.arange(COUNT))[:2]


def index_of(tmp_path):
  path, = (tmp_path / 'cache' / 'mlp-mixer').iterdir()
  return path


def test_the_index_is_made_once_and_kept(copied, scans, tmp_path):
  """In the user's cache; the next opening reads no file through."""
  first = all_records(copied)
  assert sorted(scans) == [0, 1, 2]
  kept = index_of(tmp_path)
  written = kept.stat()
  second = all_records(copied)
  assert len(scans) == 3 and index_of(tmp_path) == kept
  assert kept.stat().st_mtime_ns == written.st_mtime_ns
  assert first[0] == second[0]
  np.testing.assert_array_equal(first[1], second[1])


def records_in(path):
  import tensorflow as tf
  return list(tf.data.TFRecordDataset([str(path)]).as_numpy_iterator())


def write_records(path, records):
  import tensorflow as tf
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in records:
      writer.write(record)


@pytest.mark.parametrize('changed', ('size', 'time'))
def test_the_index_is_made_anew_when_a_shard_changes(
    copied, scans, tmp_path, changed):
  """A shard of other records, of another size at the old time, or of the old
  size: what is read are the new ones."""
  before, _ = all_records(copied)
  path = shard_of(copied, 0)
  old, records = path.stat(), records_in(path)
  order_of = list(range(len(records)))[::-1]
  if changed == 'size':
    order_of[0] = order_of[1]
  expected = [before[i] for i in order_of] + before[len(records):]
  write_records(path, [records[i] for i in order_of])
  times = old.st_atime_ns, old.st_mtime_ns + (changed == 'time')
  os.utime(path, ns=times)
  assert (path.stat().st_size != old.st_size) == (changed == 'size')
  after, _ = all_records(copied)
  assert after == expected != before
  assert sorted(scans) == [0, 0, 1, 1, 2, 2]
  assert len(list((tmp_path / 'cache' / 'mlp-mixer').iterdir())) == 2


def test_without_a_cache_the_index_is_made_every_time(
    copied, scans, tmp_path, monkeypatch, caplog):
  """Where it cannot be written, one line says so; all else is the same."""
  expected = all_records(copied)[0]
  (tmp_path / 'file').write_text('where a directory should be')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  with caplog.at_level(logging.INFO, 'mixer'):
    for times in (2, 3):
      assert all_records(copied)[0] == expected
      assert sorted(scans) == sorted([0, 1, 2] * times)
  assert len(re.findall('cannot be kept', caplog.text)) == 2


@pytest.mark.parametrize('kept', (0, 1, 6, 60, 127, 128, 200, -8, -1))
def test_an_index_that_is_cut_short_is_made_anew(
    copied, scans, tmp_path, kept):
  """At any length, as a full disk or a crash leaves it."""
  expected = all_records(copied)[0]
  path = index_of(tmp_path)
  content = path.read_bytes()
  path.write_bytes(content[:kept])
  assert all_records(copied)[0] == expected
  assert len(scans) == 6 and index_of(tmp_path).read_bytes() == content


def test_an_index_that_is_no_index_is_made_anew(copied, scans, tmp_path):
  expected = all_records(copied)[0]
  path = index_of(tmp_path)
  whole = path.read_bytes()
  offsets = np.load(path)
  wrong = [bytes(len(whole)), bytes(range(256)) * 3,
           whole[:300] + bytes(len(whole) - 300)]
  for array in (offsets[:-1], offsets[::-1], np.roll(offsets, 1), 9 * offsets,
                offsets.astype(float)):
    file = io.BytesIO()
    np.save(file, array)
    wrong.append(file.getvalue())
  for content in wrong:
    path.write_bytes(content)
    assert all_records(copied)[0] == expected
  assert len(scans) == 3 * (1 + len(wrong))


# Bytes that changed.


@pytest.fixture
def flip(sets, tmp_path):
  """kind -> (a copy of its set with a bit of an image flipped, the number of
  that record, its shard)."""
  def make(kind):
    copy = dict(sets[kind], dir=str(tmp_path / 'flipped'))
    shutil.copytree(sets[kind]['dir'], copy['dir'])
    path, source = shard_of(copy, 1), reopened(copy).source
    content = bytearray(path.read_bytes())
    for record in range(25, COUNT):
      (file,), *_ = source.read(np.array([record]))
      part = file[-40:-24]   # before it lie tables that all files share
      if content.count(part) == 1:
        content[content.index(part)] ^= 16
        path.write_bytes(content)
        return copy, record, path
    raise AssertionError('all images are compressed')
  return make


@FORMS
def test_a_flipped_bit_makes_a_bad_image_of_its_record(sets, flip, form):
  """In training another stands in for it, the same one from any step on; all
  other rows are what they were, bit for bit. It is reported once, by name."""
  steps, reports = 16, []
  settings, victim, path = flip(form)
  clean = train(reopened(sets[form]), 8, 0, steps)
  damaged = reopened(settings, report=reports.append)
  found = train(damaged, 8, 0, steps)
  times = 0
  for step, (one, other) in enumerate(zip(clean, found)):
    hit = one['record'] == victim
    np.testing.assert_array_equal(other['bad'], hit)
    np.testing.assert_array_equal(other['epoch'], one['epoch'])
    for key in set(one) - {'bad'}:
      np.testing.assert_array_equal(one[key][~hit], other[key][~hit])
    assert victim not in other['record']
    _, labels, _ = damaged.source.read(other['record'][hit])
    np.testing.assert_array_equal(other['labels'][hit], labels)
    if hit.any():
      times += 1
      assert_equal(train(reopened(settings), 8, step, step + 1), [other])
  assert times == 2   # 128 examples of 61
  report, = reports
  assert report['image'].startswith(f'{path} record ') and report['reason']
  assert reopened(sets[form]).fingerprint(8, 0) == damaged.fingerprint(8, 0)


@FORMS
def test_a_flipped_bit_is_counted_in_evaluation(sets, flip, form):
  """As one bad image; every other one counts, and is what it was."""
  settings, _, _ = flip(form)
  clean, found = (evaluate(reopened(one), 9) for one in (sets[form], settings))
  assert sum(batch['bad'].sum() for batch in found) == 1
  assert sum(batch['mask'].sum() for batch in found) == COUNT - 1
  for one, other in zip(clean, found):
    np.testing.assert_array_equal(one['mask'], other['mask'] | other['bad'])
    for key in ('image', 'labels'):
      np.testing.assert_array_equal(
          one[key][other['mask']], other[key][other['mask']])


@FORMS
def test_too_many_bad_records_stop_the_run(flip, form):
  """One of 61 is more than a hundredth."""
  settings, _, path = flip(form)
  with pytest.raises(errors.RunError, match=re.escape(str(path))):
    train(reopened(settings, max_bad_fraction=.01), 8, 0, 9)
  assert len(train(reopened(settings, max_bad_fraction=.02), 8, 0, 9)) == 9


def test_a_flipped_bit_is_one_bad_image_in_sequence_too(sets, flip):
  """Left out of evaluation, and another of its window stands in for it."""
  settings, victim, path = flip('sequential')
  found = evaluate(reopened(settings), 8)
  assert sum(batch['bad'].sum() for batch in found) == 1
  assert sum(batch['mask'].sum() for batch in found) == COUNT - 1
  clean = train(reopened(sets['sequential']), 8, 0, 16)
  damaged = reopened(settings)
  for one, other in zip(clean, train(damaged, 8, 0, 16), strict=True):
    hit = one['record'] == victim
    np.testing.assert_array_equal(other['bad'], hit)
    assert victim not in other['record']
    for key in set(one) - {'bad'}:
      np.testing.assert_array_equal(one[key][~hit], other[key][~hit])
  (name, why), = damaged.vetting.bad.values()
  assert name.startswith(f'{path} record ') and 'checksum' in why


def test_a_window_of_nothing_good_borrows_from_the_next(sets, flip):
  """With windows of one record, the bad one's has no other of its own."""
  settings, victim, _ = flip('sequential')
  batches = train(reopened(settings, window=1), 8, 0, 16)
  assert sum(batch['bad'].sum() for batch in batches) > 0
  assert victim not in np.concatenate([batch['record'] for batch in batches])
  assert_equal(train(reopened(settings, window=1), 8, 9, 10), batches[9:10])


def test_what_is_cut_short_stops_what_is_read_in_sequence(sets, tmp_path):
  """The file is named, and the record that it ends before."""
  copy = dict(sets['sequential'], dir=str(tmp_path / 'cut'))
  shutil.copytree(sets['sequential']['dir'], copy['dir'])
  path = shard_of(copy, 1)
  path.write_bytes(path.read_bytes()[:-100])
  for read in (lambda data: train(data, 8, 0, 9), lambda d: evaluate(d, 8)):
    with pytest.raises(errors.RunError, match='damaged.* record 20 of') as e:
      read(reopened(copy))
    assert str(path) in str(e.value)


@pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')
def test_readers_may_be_left_to_the_garbage_collector(sets):
  """In whichever thread it runs, one of their own too."""
  data = reopened(sets['sequential'])
  load, *_ = loading.training(
      data, seed=0, batch_size=4, first=0, slots=(0, 4))
  load(0, 0, 4)
  stream, = (cell.cell_contents for cell in load.__closure__)
  pool, box, go = stream.gi_frame.f_locals['pool'], [stream], threading.Event()
  del stream, load

  def last():
    go.wait()
    box.clear()
    gc.collect()

  done = pool.submit(last)
  del pool
  go.set()
  done.result()


@pytest.mark.parametrize('kept', (0, 100, .5, -1, None))
def test_a_damaged_array_record_is_named_when_opened(sets, tmp_path, kept):
  """One that is cut anywhere, or is missing: not only when it is read."""
  settings = dict(sets['array_record'], dir=str(tmp_path / 'set'))
  shutil.copytree(sets['array_record']['dir'], settings['dir'])
  path = shard_of(settings, 1)
  content = path.read_bytes()
  path.unlink()
  if kept is not None:
    kept = int(len(content) * kept) if kept == .5 else kept
    path.write_bytes(content[:kept])
  with pytest.raises(errors.UserError, match=re.escape(str(path))):
    reopened(settings)


# Weights of labels.


def targets_of(i):
  """One to three labels of picture i, the first its own, and their weights; of
  some all weights are 1, which a manifest need not say."""
  labels = [(i + 20 * step) % COUNT for step in range(1 + i % 3)]
  weights = [1 - (i + step) % 8 / 8 for step in range(len(labels))]
  return labels, weights if i % 4 else [1.] * len(labels)


@pytest.fixture(scope='module')
def weighted(pictures, tmp_path_factory):
  """{kind: what `open_data` is told}."""
  root = tmp_path_factory.mktemp('weighted')
  several = [(file, *targets_of(i)) for i, (file, _) in enumerate(pictures)]
  rows = []
  for i, (file, labels, weights) in enumerate(several):
    (root / f'{i}.jpg').write_bytes(file)
    rows.append(dict(path=f'{i}.jpg', labels=labels))
    if i % 4:
      rows[-1]['weights'] = weights
  (root / 'listed.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  manifest = dict(name=f'manifest:{root}/listed.jsonl')
  tfrecord, array_record = (
      prepare(str(root / form), form, several, weighted=True)
      for form in ('tfrecord', 'array_record'))
  return {kind: {'split': 'train', 'image_size': SIDE, 'window': WINDOW,
                 'crop': 'resize', **one} for kind, one in dict(
      manifest=manifest, tfrecord=tfrecord, array_record=array_record,
      sequential=dict(tfrecord, access='sequential'),
      resident=dict(manifest, on_device=True)).items()}


@pytest.mark.parametrize('kind', (
    'manifest', 'tfrecord', 'array_record', 'sequential', 'resident'))
def test_weights_come_with_their_labels(weighted, pictures, kind):
  """Each label's own, 0 where there is no label; the picture is theirs."""
  data, seen = reopened(weighted[kind]), set()
  batches = loaded(data, 8, 0, 8)
  for one, other in zip(train(data, 8, 0, 2), batches):
    for key in ('labels', 'weights', 'record'):
      np.testing.assert_array_equal(one[key], other[key])
  for batch in batches:
    assert batch['weights'].dtype == np.float32
    assert batch['weights'].shape == batch['labels'].shape
    for file, found, weights in zip(
        batch['file'], batch['labels'], batch['weights']):
      labels, expected = targets_of(found[0])
      rest = found.size - len(labels)
      assert found.tolist() == labels + [-1] * rest
      assert weights.tolist() == expected + [0] * rest
      assert kind == 'resident' or file == pictures[found[0]][0]
      seen.add(int(found[0]))
  assert len(seen) >= COUNT - COUNT % 8
