"""Every kind of source keeps the same promises.

Batches are the same in every run, for any number of processes and from any step
on, and an evaluation counts every example once.

The same pictures are stored as TFRecord, as ArrayRecord, in a folder, in a
manifest and in an array. Kind 'sequential' reads the TFRecords in sequence;
'few' reads so few of them in sequence that a reader gives a batch two examples,
from two epochs.
"""
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys

from batches import assert_equal
from batches import evaluate
from batches import reopened
from batches import train
import numpy as np
import pictures
import pytest
import tfds_sets

from mixer.data import order
from mixer.data import sequential_order
from mixer.data import sources
from mixer.data import tfrecord_sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
COUNT, SIDE, WINDOW = tfds_sets.COUNT, 12, 8
SIZES = dict(tfrecord=8, array_record=8, folder=8, manifest=8, arrays=8,
             sequential=4, few=8)   # of batches
KINDS = tuple(SIZES)
RANDOM, SEQUENTIAL = KINDS[:5], KINDS[5:]
EVERY_KIND = pytest.mark.parametrize('kind', KINDS)
EVERY_SOURCE = pytest.mark.parametrize('kind', KINDS[:6])


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  """Keeps indexes out of the cache of whoever runs the tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(scope='module')
def drawn():
  return tfds_sets.draw_crops()


@pytest.mark.parametrize('name,directory,title', [
    ('cifar10', '/data/cifar10/3.0.2', 'cifar10:3.0.2'),
    ('cifar10:3.*.*', '/data/cifar10/3.0.2', 'cifar10:3.0.2'),
    ('set/config', '/data/set/config/1.0.0/', 'set/config:1.0.0'),
    ('vtab:dtd', '/data/dtd/3.0.1', 'vtab:dtd:3.0.1'),
    ('folder:/photos', None, 'folder:/photos')])
def test_the_title_of_a_source_names_the_version(name, directory, title):
  source = dataclasses.replace(sources.open_source('digits'), name=name,
                               directory=directory)
  assert source.title == title


@pytest.fixture(scope='module')
def sets(drawn, tmp_path_factory):
  """{kind: the settings of `open_data`}."""
  root = tmp_path_factory.mktemp('sets')
  folder, manifest = pictures.write_folder(root / 'files', drawn)
  tfrecord = tfds_sets.prepare_crops(str(root / 'tfrecord'), 'tfrecord', drawn)
  sequential = dict(tfrecord, access='sequential')
  made = dict(
      tfrecord=tfrecord, folder=folder, manifest=manifest,
      array_record=tfds_sets.prepare_crops(
          str(root / 'array_record'), 'array_record', drawn),
      arrays=pictures.write_arrays(root / 'arrays.npz', drawn, SIDE),
      sequential=sequential, few=dict(sequential, split='train[17:24]'))
  assert set(made) == set(KINDS)
  return {kind: {'split': 'train', 'image_size': SIDE, 'window': WINDOW,
                 'crop': 'bit', **one} for kind, one in made.items()}


def loaded(data, size, first, last, seed=0):
  """Training batches before they are decoded, with 'file' for 'image'."""
  if data.resident is not None:
    return [{**batch, 'file': batch['image']}
            for batch in train(data, size, first, last, seed)]
  load = data.training_rows(
      seed=seed, batch_size=size, first=first, slots=(0, size)).load
  out = []
  for step in range(first, last):
    files, keys, rest = load(step, 0, size)
    out.append(dict(rest, key=keys, file=np.array(files, object)))
  return out


def before_decoding(data, size, processes=1, process=0):
  """Evaluation batches before they are decoded, with 'file' for 'image'."""
  if data.resident is not None:
    return [{**batch, 'file': batch['image']}
            for batch in evaluate(data, size, processes, process)]
  rows = data.evaluation_rows(
      batch_size=size * processes,
      slots=(process * size, (process + 1) * size))
  out = []
  for number in range(rows.count):
    files, _, rest = rows.load(number, 0, size)
    out.append(dict(rest, file=files))
  return out


def counted(data, size, processes=1):
  """How often an evaluation counts each (file, label).

  All processes must make the same number of batches, of `size` rows each.
  """
  parts = [before_decoding(data, size, processes, p) for p in range(processes)]
  assert len({len(part) for part in parts}) == 1
  out = collections.Counter()
  for batch in sum(parts, []):
    assert {len(x) for x in batch.values()} == {size}
    assert not batch['bad'].any()
    out.update((bytes(batch['file'][i]), int(batch['labels'][i, 0]))
               for i in np.flatnonzero(batch['mask']))
  return out


def digest(batches):
  """sha256 of the names and arrays of all batches."""
  out = hashlib.sha256()
  for batch in batches:
    for key, array in sorted(batch.items()):
      out.update(repr((key, array.dtype.str, array.shape)).encode())
      out.update(np.ascontiguousarray(array))
  return out.hexdigest()


def records_by_epoch(batches):
  """{epoch: its records, in the order of the batches}."""
  out = collections.defaultdict(list)
  for batch in batches:
    for epoch, record in zip(batch['epoch'], batch['record']):
      out[int(epoch)].append(int(record))
  return out


def span_two_epochs(batches):
  return any(np.unique(batch['epoch']).size > 1 for batch in batches)


# Promise: the batch at step t is a function of (seed, t).


@EVERY_KIND
def test_batches_are_the_same_in_a_second_run_and_after_a_restart(sets, kind):
  """Steps 0 to 50, which are several epochs. The second run stops at step 25,
  and the one that goes on opens everything anew."""
  size, last = SIZES[kind], 4 if kind == 'few' else 51
  settings = dict(sets[kind], crop='inception')
  through = train(reopened(settings), size, 0, last)
  assert len(through) == last and through[-1]['epoch'].min() >= 3
  # In sequence, all readers end an epoch at the same step.
  assert span_two_epochs(through) == (kind != 'sequential')
  restarted = [batch for first, end in ((0, last // 2), (last // 2, last))
               for batch in train(reopened(settings), size, first, end)]
  assert digest(through) == digest(restarted)
  assert records_by_epoch(through[:2]) != records_by_epoch(
      loaded(reopened(settings), size, 0, 2, seed=1))
  assert set(through[0]) - {'position'} == {
      'epoch', 'record', 'bad', 'image', 'labels'}


@EVERY_KIND
def test_a_run_may_begin_at_any_step(sets, kind):
  """The steps lie inside of a window and an epoch, and at the ends of both."""
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


@pytest.mark.slow
def test_several_processes_together_make_the_batches_of_one(sets, tmp_path):
  """Two and four real processes open all kinds at the same time and share the
  cache. Their rows, one process after the other, are the batches of one
  process."""
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
    assert kind == 'sequential' or span_two_epochs(batches)
    for processes in (2, 4):
      assert_equal(batches, [
          {key: np.concatenate([made[p][f'{kind} {processes} {t} {key}']
                                for p in range(processes)]) for key in batch}
          for t, batch in enumerate(batches)])


@EVERY_SOURCE
def test_batches_do_not_depend_on_the_number_of_threads(
    sets, kind, monkeypatch):
  digests = set()
  for threads in (1, 7):
    monkeypatch.setattr(os, 'cpu_count', lambda n=threads: n)
    digests.add(digest(train(reopened(sets[kind]), SIZES[kind], 0, 10)))
  assert len(digests) == 1


@pytest.mark.parametrize('kind', RANDOM)
def test_an_epoch_visits_every_example_once(sets, kind):
  """The batch size does not divide the number of examples: the batch that ends
  an epoch also begins the next one. All kinds have the same order."""
  batches = loaded(reopened(sets[kind]), 8, 0, 23)
  by_epoch = records_by_epoch(batches)
  for epoch in range(3):
    assert sorted(by_epoch[epoch]) == list(range(COUNT))
  assert len({tuple(by_epoch[epoch]) for epoch in range(3)}) == 3
  assert span_two_epochs(batches)
  for step, batch in enumerate(batches):
    epoch, position = order.batch(0, step, 8, COUNT)
    np.testing.assert_array_equal(batch['epoch'], epoch)
    np.testing.assert_array_equal(batch['record'], position)
    assert not batch['bad'].any()


@pytest.mark.parametrize('kind,size,readers', (
    ('sequential', 8, 8), ('few', 9, 3)))
def test_an_epoch_in_sequence_leaves_out_the_remainder(
    sets, kind, size, readers):
  """It visits all examples but N mod R, and another epoch leaves out others."""
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
def test_each_record_has_its_own_file_and_label(sets, drawn, kind):
  """Every kind of source gives each picture as it was stored."""
  data = reopened(sets[kind])
  stored = dict(drawn) if kind != 'arrays' else {
      image.tobytes(): label for image, (_, label) in zip(
          data.resident['image'], drawn)}
  assert len(stored) == COUNT
  of_record = {}
  for batch in loaded(data, SIZES[kind], 0, 8):
    for file, label, record in zip(
        batch['file'], batch['labels'], batch['record']):
      assert label.tolist() == [stored[bytes(file)]]
      assert of_record.setdefault(int(record), bytes(file)) == bytes(file)
  assert len(set(of_record.values())) == len(of_record)


# Promise: a set has the same order in every format.


@pytest.mark.parametrize('one,other', (
    ('tfrecord', 'array_record'), ('folder', 'manifest')))
def test_one_set_in_two_formats_gives_the_same_batches(sets, one, other):
  """The formats are TFDS's two, and a folder and a manifest of the same files.
  """
  a, b = reopened(sets[one]), reopened(sets[other])
  assert_equal(train(a, 8, 0, 10), train(b, 8, 0, 10))
  assert_equal(evaluate(a, 20), evaluate(b, 20))
  if one == 'tfrecord':
    assert a.source.fingerprint == b.source.fingerprint
    assert a.fingerprint(8, 0) == b.fingerprint(8, 0)


def test_evaluation_is_the_same_at_random_and_in_sequence(sets):
  """The rows of one process come in the order of the files in either case."""
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
def test_step_one_million_needs_no_earlier_step(sets, kind):
  batch, = loaded(reopened(sets[kind]), 8, 10**6, 10**6 + 1)
  epoch, position = order.batch(0, 10**6, 8, COUNT)
  np.testing.assert_array_equal(batch['epoch'], epoch)
  np.testing.assert_array_equal(batch['record'], position)
  assert epoch.max() == 131_147


@pytest.mark.parametrize('kind', SEQUENTIAL)
def test_step_one_million_in_sequence_reads_only_a_window(
    sets, kind, monkeypatch):
  """Each reader reads the window of the step and the one ahead, and skips at
  most one shard for it. The batch is the one that the plan gives."""
  calls, read = [], tfrecord_sequence.SequentialReader.__call__

  def counted(self, records):
    if len(records):
      calls.append((int(records[0]), int(records[-1]) + 1))
    return read(self, records)

  monkeypatch.setattr(tfrecord_sequence.SequentialReader, '__call__', counted)
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


# Promise: a run cannot resume with other data.


def test_fingerprints_differ_where_the_order_does(sets):
  """The order depends on batch size, seed, split, set and the way of reading.
  """
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
  """One, two and four processes count them so, at any batch size."""
  data = reopened(sets[kind])
  for size in (1, 7, len(data), len(data) + 5):
    found = counted(data, size, processes)
    assert len(found) == found.total() == len(data)   # no two are alike


@EVERY_SOURCE
def test_evaluation_gives_the_image_of_each_file_beside_its_label(sets, kind):
  import tensorflow as tf

  def decoded(file):
    image = tf.io.decode_jpeg(file, 3, dct_method='INTEGER_ACCURATE') if (
        tf.io.is_jpeg(file)) else tf.io.decode_image(file, channels=3)
    return tf.cast(tf.image.resize(image, (SIDE, SIDE)), tf.uint8)

  data = reopened(sets[kind], crop='resize')
  batches = evaluate(data, 7)
  assert len(batches) == 9
  for batch, other in zip(batches, before_decoding(data, 7), strict=True):
    assert set(batch) - {'position'} == {'image', 'labels', 'mask', 'bad'}
    for key in 'mask', 'bad', 'labels':
      np.testing.assert_array_equal(batch[key], other[key])
    images = other['file']
    if kind != 'arrays':
      images = list(map(decoded, images))
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
  first, second = (sorted(records) for records in by_epoch.values())
  assert first == second and len(set(first)) == 20
  # TFDS mixes the examples when it prepares a set; other sources may lie class
  # by class, so slices of them are spread over the whole split.
  mixed = kind in ('folder', 'manifest', 'arrays')
  assert (first == list(range(10, 30))) != mixed


@EVERY_SOURCE
def test_a_missing_split_is_held_out_from_training(sets, kind):
  """It is every tenth example. Training never shows one of them, and lacks no
  other, however the set is read."""
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


# Weights of labels.


def targets_of(i):
  """One to three labels of picture i, the first its own, and their weights.
  Some have weights of 1 only, which a manifest need not give."""
  labels = [(i + 20 * step) % COUNT for step in range(1 + i % 3)]
  weights = [1 - (i + step) % 8 / 8 for step in range(len(labels))]
  return labels, weights if i % 4 else [1.] * len(labels)


@pytest.fixture(scope='module')
def weighted(drawn, tmp_path_factory):
  """{kind: the settings of `open_data`}, of sets with weights."""
  root = tmp_path_factory.mktemp('weighted')
  several = [(file, *targets_of(i)) for i, (file, _) in enumerate(drawn)]
  rows = []
  for i, (file, labels, weights) in enumerate(several):
    (root / f'{i}.jpg').write_bytes(file)
    rows.append(dict(path=f'{i}.jpg', labels=labels))
    if i % 4:
      rows[-1]['weights'] = weights
  (root / 'listed.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  manifest = dict(name=f'manifest:{root}/listed.jsonl')
  tfrecord, array_record = (
      tfds_sets.prepare_crops(str(root / form), form, several, weighted=True)
      for form in ('tfrecord', 'array_record'))
  return {kind: {'split': 'train', 'image_size': SIDE, 'window': WINDOW,
                 'crop': 'resize', **one} for kind, one in dict(
      manifest=manifest, tfrecord=tfrecord, array_record=array_record,
      sequential=dict(tfrecord, access='sequential'),
      resident=dict(manifest, on_device=True)).items()}


@pytest.mark.parametrize('kind', (
    'manifest', 'tfrecord', 'array_record', 'sequential', 'resident'))
def test_each_label_keeps_its_weight(weighted, drawn, kind):
  """The weight is 0 where there is no label."""
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
      assert kind == 'resident' or file == drawn[found[0]][0]
      seen.add(int(found[0]))
  assert len(seen) >= COUNT - COUNT % 8


def test_a_label_of_weight_0_is_none(drawn, tmp_path):
  """Training does not learn it, so no evaluation may take it for right."""
  targets = [([1, 2], [0., .5]), ([3], [0.]), ([2, 0], [1., 0.])]
  several = [(drawn[i][0], *one) for i, one in enumerate(targets)]
  (tmp_path / 'm.jsonl').write_text('\n'.join(
      json.dumps(dict(path=f'{i}.jpg', labels=labels, weights=weights))
      for i, (labels, weights) in enumerate(targets)))
  made = tfds_sets.prepare_crops(str(tmp_path), 'array_record', several,
                                 weighted=True)
  for i in range(3):
    (tmp_path / f'{i}.jpg').write_bytes(several[i][0])
  for settings in (made, dict(name=f'manifest:{tmp_path}/m.jsonl')):
    source = sources.open_source(settings['name'], data_dir=made['dir'])
    _, found = source.read(np.arange(3))
    assert sorted(zip(found['labels'][:, 0].tolist(),
                      found['weights'][:, 0].tolist())) == [
        (-1, 0), (2, .5), (2, 1)]
    assert not found['weights'][:, 1:].any()
    assert np.all(found['labels'][:, 1:] == -1)
