"""The order of a set that is read in sequence, as arithmetic, without files."""
import collections
import itertools

import numpy as np
import pytest

from mixer.data import order
from mixer.data import sequential_order
from mixer.data import splits

# Examples of each shard, split by split; some are empty, in all places.
SHARDS = dict(train=(0, 5, 0, 7, 1, 12, 0), test=(3, 4, 0, 6), extra=(0, 2))
STORED = splits.whole({name: sum(n) for name, n in SHARDS.items()})
ENDS = np.cumsum(sum(SHARDS.values(), ()))
SPECS = ('train', 'test', 'extra', 'train+test', 'test+train', 'train[2:11]',
         'train[5:12]', 'train[-1:]', 'train[:50%]+test[50%:]+extra[1:]',
         'train[:3]+train[:7]', 'test[3:4]+test[3:4]')
# (lengths of runs, readers, window): shares that the window divides and does
# not divide, a share smaller than the window, one example for each reader, and
# one example in all.
PLANS = (
    ((20, 21, 20), 8, 3), ((20, 21, 20), 8, 7), ((16, 16), 8, 4),
    ((20, 21, 20), 8, 1000), ((20, 21, 20), 5, 1), ((61,), 4, 5),
    ((1,) * 13, 3, 2), ((3, 5), 8, 1), ((3, 5), 8, 4), ((4, 5), 8, 2),
    ((1,), 1, 1), ((1,), 1, 9), ((2, 1), 2, 3), ((7, 1, 40, 2, 11), 6, 4))


def selected(spec, every=0):
  """A split of STORED. With `every`, names get a suffix: 0 for all examples but
  each `every`-th, 1 for these."""
  stored = STORED
  if every:
    held = {name: splits.hold_out(piece, every)
            for name, piece in STORED.items()}
    stored = {f'{name}{part}': pieces[part] for name, pieces in held.items()
              for part in (0, 1)}
  return splits.select(stored, spec, 'data.split')


def runs_of_lengths(lengths):
  ends = np.cumsum(lengths)
  return np.stack([ends - lengths, ends], axis=1)


def plan_of(lengths, readers, window, seed=0):
  return sequential_order.Windows(
      runs_of_lengths(lengths), readers, window, seed)


def numbers(plan, epoch):
  """The numbers of the windows of an epoch."""
  each = -(-plan.share // plan.window)
  return range(epoch * each, (epoch + 1) * each)


def in_order(plan, reader, number):
  """(epoch, positions of a window in the order in which they are used)."""
  epoch, parts, places = plan.read(reader, number)
  read = np.concatenate([np.arange(*part) for part in parts])
  return epoch, read[places]


def epoch_of(plan, epoch):
  """[readers, share]: all positions of an epoch in the order of their use."""
  return np.array([
      np.concatenate([in_order(plan, r, n)[1] for n in numbers(plan, epoch)])
      for r in range(plan.readers)])


# Runs.


@pytest.mark.parametrize('spec,every', (
    *((spec, 0) for spec in SPECS), ('train0', 10), ('train1', 10),
    ('train0+test0', 4), ('test1+train1[1:]', 2), ('train0[3:9]', 3),
    ('train1[-2:]+train0', 10)))
def test_runs_cover_every_position_once_within_a_shard(spec, every):
  """Splits may have slices, unions, held-out examples and empty shards. A run
  ends only where its shard, or its part of the split, ends."""
  split = selected(spec, every)
  runs = sequential_order.runs_of(split, ENDS)
  assert runs.dtype == np.int64 and np.all(runs[:, 0] < runs[:, 1])
  np.testing.assert_array_equal(
      np.concatenate([np.arange(*run) for run in runs]), np.arange(len(split)))
  shard = np.searchsorted(ENDS, split.records(np.arange(len(split))), 'right')
  pieces = np.repeat(np.arange(len(split.pieces)),
                     [p.stop - p.start for p in split.pieces])
  for first, last in runs:
    assert np.unique(shard[first:last]).size == 1
    assert np.all(np.diff(split.records(np.arange(first, last))) > 0)
  for cut in runs[1:, 0]:
    assert shard[cut - 1] != shard[cut] or pieces[cut - 1] != pieces[cut]


@pytest.mark.parametrize('every', (2, 10, 1000))
def test_runs_of_a_large_held_out_split_are_found(every):
  """There are a thousand shards and far more examples than could be tried one
  by one. If every 1000th is held out, some shards have none."""
  lengths = np.random.default_rng(0).integers(1, 2 * 10**6, 1000)
  ends = np.cumsum(lengths)
  for piece in splits.hold_out(splits.Piece(0, 0, int(ends[-1])), every):
    split = splits.Split('it', (piece,))
    runs = sequential_order.runs_of(split, ends)
    assert runs[0, 0] == 0 and runs[-1, 1] == len(split)
    np.testing.assert_array_equal(runs[1:, 0], runs[:-1, 1])
    first, last = (split.records(x) for x in (runs[:, 0], runs[:, 1] - 1))
    shard = np.searchsorted(ends, first, 'right')
    np.testing.assert_array_equal(shard, np.searchsorted(ends, last, 'right'))
    assert np.all(np.diff(shard) > 0)


# Readers.


@pytest.mark.parametrize('examples', (1, 2, 7, 60, 61, 63, 64, 65, 10**6))
def test_readers_are_the_largest_divisor_of_the_batch(examples):
  """There are at most 64 and at most as many as examples, so each reader has at
  least one."""
  for size in (*range(1, 200), 1000, 1024, 4096, 4099):
    readers = sequential_order.readers_for(size, examples)
    assert readers == max(r for r in range(1, 65)
                          if size % r == 0 and r <= examples)


# Windows.


@pytest.mark.parametrize('lengths,readers,window', PLANS)
def test_readers_share_an_epoch_without_repetition(lengths, readers, window):
  """They hold disjoint positions, the same number each, N - N mod R in all."""
  plan = plan_of(lengths, readers, window)
  total = sum(lengths)
  assert plan.share == total // readers
  for epoch in range(5):
    given = epoch_of(plan, epoch)
    assert given.shape == (readers, plan.share)
    assert np.unique(given).size == given.size == total - total % readers
    assert given.min() >= 0 and given.max() < total


@pytest.mark.parametrize('lengths,readers,window', PLANS)
def test_windows_are_permuted_and_all_but_the_last_are_full(
    lengths, readers, window):
  plan = plan_of(lengths, readers, window)
  for epoch, reader in itertools.product(range(3), range(readers)):
    sizes = []
    for number in numbers(plan, epoch):
      of_epoch, parts, places = plan.read(reader, number)
      sizes.append(sum(last - first for first, last in parts))
      assert of_epoch == epoch
      np.testing.assert_array_equal(np.sort(places), np.arange(sizes[-1]))
    assert sum(sizes) == plan.share
    assert set(sizes[:-1]) <= {window} and 0 < sizes[-1] <= window


@pytest.mark.parametrize('lengths,readers,window', PLANS)
def test_readers_read_consecutive_records(lengths, readers, window):
  """A part ascends and lies in one run. From the first window of the first
  reader to the last of the last, an epoch goes on where the part before ended,
  except from one shard to the next. So reads are long for any window."""
  plan = plan_of(lengths, readers, window)
  for epoch in range(5):
    parts = [part for reader in range(readers)
             for number in numbers(plan, epoch)
             for part in plan.read(reader, number)[1]]
    for first, last in parts:
      assert first < last
      assert any(a <= first and last <= b for a, b in plan.runs)
    breaks = sum(a[1] != b[0] for a, b in itertools.pairwise(parts))
    assert breaks <= len(lengths)   # one of them where the circle closes


@pytest.mark.parametrize('lengths,readers,window', PLANS)
def test_a_reader_may_start_at_any_example(lengths, readers, window):
  """It finds the example where a reader that starts at the beginning finds it.
  """
  plan = plan_of(lengths, readers, window)
  count = 3 * plan.share + 2
  walked = []
  for number in itertools.count():
    if len(walked) >= count:
      break
    epoch, given = in_order(plan, 0, number)
    walked += [(number, offset, epoch) for offset in range(len(given))]
  for i in range(count):
    number, offset = plan.at(i)
    assert (number, offset, i // plan.share) == walked[i]


def test_a_late_window_is_computed_at_once():
  """Example 10**12 of a reader, of a set of 300 million in 4096 shards."""
  plan = plan_of(np.full(4096, 73_976), 64, 4096)
  number, offset = plan.at(10**12)
  epoch, given = in_order(plan, 63, number)
  assert epoch == 10**12 // plan.share
  assert offset < len(given) == np.unique(given).size <= 4096


def test_windows_have_their_golden_values():
  """Saved runs resume in the order in which they began. A change here needs a
  new order.VERSION."""
  assert order.VERSION == 1
  plan = plan_of((4, 3, 6), 3, 3, seed=8)
  given = [[in_order(plan, reader, number)[1].tolist() for number in range(4)]
           for reader in range(3)]
  assert given == [
      [[6, 5, 7], [8], [7, 9, 8], [10]], [[9, 11, 10], [12], [0, 11, 12], [1]],
      [[0, 1, 2], [3], [4, 2, 3], [5]]]


def test_seeds_epochs_and_readers_have_different_orders():
  """They differ in the order of shards, the first record, and the places in
  each window, also for seed + 1 with epoch - 1."""
  lengths = (100,) * 20
  given, begins, rounds = [], set(), set()
  for seed, epoch in itertools.product(range(3), range(3)):
    plan = plan_of(lengths, 8, 50, seed)
    given.append(epoch_of(plan, epoch))
    parts = [part for reader in range(8) for number in numbers(plan, epoch)
             for part in plan.read(reader, number)[1]]
    begins.add(parts[0][0])
    shards = list(dict.fromkeys(first // 100 for first, _ in parts))
    zero = shards.index(0)
    rounds.add(tuple(shards[zero:] + shards[:zero]))
  assert len(begins) == len(rounds) == 9
  for one, other in itertools.combinations(given, 2):
    assert np.mean(one == other) < .02
  plan = plan_of(lengths, 8, 50)
  places = {tuple(plan.read(reader, number)[2])
            for reader in range(8) for number in range(20)}
  assert len(places) == 8 * 20


def test_each_example_is_left_out_equally_often():
  """3 readers leave out two of 29 examples. Over many epochs this concerns each
  as often as chance has it, whatever its shard and its place there."""
  plan = plan_of((9, 14, 6), 3, 100)
  left_out, epochs = np.zeros(29), 600
  for epoch in range(epochs):
    left_out[np.setdiff1d(np.arange(29), epoch_of(plan, epoch))] += 1
  expected = epochs * 2 / 29
  assert left_out.sum() == epochs * 2
  assert ((left_out - expected)**2).sum() / expected / 28 < 2.5


def class_counts(labels_of, plan, epoch, size, classes):
  """[batches, classes] of an epoch's whole batches."""
  each = size // plan.readers
  count = plan.share // each
  given = epoch_of(plan, epoch)[:, :count * each]
  batches = given.reshape(plan.readers, count, each).swapaxes(0, 1)
  cell = np.arange(count)[:, None] * classes + labels_of[
      batches.reshape(count, size)]
  return np.bincount(cell.ravel(), minlength=count * classes).reshape(
      count, classes)


def test_batches_of_sorted_data_have_the_class_counts_of_a_true_shuffle():
  """The 50,000 examples are sorted by class, and a hash distributed them over
  shards when they were written. Without that hash the counts differ, which
  shows that the test can fail."""
  n, classes, size = 50_000, 10, 512
  mean, spread = (n - size) / (n - 1), np.sqrt(2 / (classes - 1))
  written = np.random.default_rng(0).permutation(n)
  labels = np.arange(n) * classes // n
  plan = plan_of((521,) * 95 + (505,),
                 sequential_order.readers_for(size, n), 300)
  assert plan.readers == 64 and plan.runs[-1, 1] == n

  def fair(labels_of, epoch):
    counts = class_counts(labels_of, plan, epoch, size, classes)
    expected = size / classes
    ratio = ((counts - expected)**2).sum(1) / expected / (classes - 1)
    return (abs(ratio.mean() - mean) < 4 * spread / np.sqrt(len(ratio))
            and .75 < ratio.std() / spread < 1.25
            and ratio.max() < mean + 8 * spread)

  for epoch in range(2):
    assert fair(labels[written], epoch)
    assert not fair(labels, epoch)


def test_neighbours_in_a_file_are_separated_within_their_window():
  """Their mean distance is a third of the window, as in a true shuffle."""
  plan = plan_of((1000,) * 8, 4, 400)
  distances = collections.defaultdict(list)
  for reader, number in itertools.product(range(4), range(50)):
    _, _, places = plan.read(reader, number)
    place_of = np.argsort(places)
    distances[len(places)].append(np.abs(np.diff(place_of)).mean())
  for size, found in distances.items():
    assert abs(np.mean(found) / size - 1 / 3) < 4.5 * .24 / np.sqrt(
        size * len(found)) + 1 / size
