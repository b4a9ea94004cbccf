"""The order of examples: an even permutation that is a function of its seed."""
import numpy as np
import pytest

from mixer.data import order

# At 65,537 and 262,145, which are 4**j + 1, the index shuffles of other
# libraries lose an index.
SIZES = (1, 2, 3, 4, 5, 17, 257, 65_536, 65_537, 262_145)
# (examples, classes, batch size), like CIFAR-10 and ImageNet sorted by class.
SORTED_SETS = ((50_000, 10, 512), (1_281_167, 1000, 1024))
WORD = 2**64


@pytest.mark.parametrize('n', SIZES)
def test_permute_is_a_bijection(n):
  for seed in (0, 1):
    out = order.permute(np.arange(n), n, order.key(seed, 1, 0))
    np.testing.assert_array_equal(np.sort(out), np.arange(n))


def test_the_order_has_its_golden_values():
  """Saved runs resume in the order in which they began. A change here needs a
  new order.VERSION."""
  assert order.VERSION == 1
  assert [order.key(), order.key(0), order.key(0, 1), order.key(1, 0),
          order.key(7, 1, 2), order.key(-1)] == [
              2611923443488327891, 1353023281269748473, 7166724474709528521,
              6458798655468809317, 14366623017170096610, 12437055160611207659]
  assert order.permute(np.arange(17), 17, order.key(0, 1, 0)).tolist() == [
      3, 13, 9, 11, 2, 14, 12, 10, 0, 15, 8, 16, 4, 1, 5, 7, 6]
  assert order.permute(np.arange(8), 1_281_167, order.key(42, 1, 3)).tolist(
      ) == [392671, 1267285, 697594, 572291, 465345, 1103857, 551209, 847748]
  assert order.keys(3, [0, 0, 1], [5, 6, 5]).tolist() == [
      [820526409, -1143238510], [-1086280511, -1552267419],
      [-1373184870, 530990995]]
  epoch, position = order.batch(3, 2, 6, 17)
  assert epoch.tolist() == [0, 0, 0, 0, 0, 1]
  assert position.tolist() == [8, 13, 5, 0, 7, 3]


@pytest.mark.parametrize('n', (1, 2, 5, 17, 257, 65_537, 303_000_000))
def test_permute_equals_a_version_with_python_integers(n):
  key = order.key(5, 1, 7)
  some = np.unique(np.linspace(0, n - 1, 40).astype(np.int64))
  assert order.permute(some, n, key).tolist() == [
      _permute_one(int(i), n, key) for i in some]


@pytest.mark.parametrize('n,classes,size', SORTED_SETS)
def test_batches_of_sorted_data_have_the_class_counts_of_a_true_shuffle(
    n, classes, size):
  """Chi-squared over its degrees of freedom is that of draws without
  replacement, for all batches together and for each."""
  expected = size / classes
  shuffles = [order.permute(np.arange(n), n, order.key(seed, 1, epoch))
              for seed, epoch in ((0, 0), (0, 1), (1, 0))]
  shuffles.append(np.random.default_rng(0).permutation(n))  # for comparison
  count = n // size
  mean = (n - size) / (n - 1)
  spread = np.sqrt(2 / (classes - 1))
  for shuffle in shuffles:
    labels = (shuffle * classes // n)[:count * size].reshape(count, size)
    cell = np.arange(count)[:, None] * classes + labels
    counts = np.bincount(cell.ravel(), minlength=count * classes)
    chi2 = ((counts.reshape(count, classes) - expected)**2).sum(1) / expected
    ratio = chi2 / (classes - 1)
    assert abs(ratio.mean() - mean) < 4 * spread / np.sqrt(count)
    assert .8 < ratio.std() / spread < 1.2
    assert ratio.max() < mean + 8 * spread


@pytest.mark.parametrize('n', [n for n, _, _ in SORTED_SETS])
@pytest.mark.parametrize('lag', (1, 4096))
def test_neighbours_in_the_order_are_uncorrelated(n, lag):
  """The correlation at each lag is 0, give or take 1 / sqrt(n), and the mean
  distance is n / 3, as in a true shuffle."""
  for seed, epoch in ((0, 0), (0, 1), (1, 0)):
    p = order.permute(np.arange(n), n, order.key(seed, 1, epoch))
    first, second = p[:-lag].astype(float), p[lag:].astype(float)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / np.sqrt(n)
    distance = np.abs(first - second).mean() / n
    assert abs(distance - 1 / 3) < 4.5 * .3 / np.sqrt(n)


def test_epochs_and_seeds_have_unrelated_orders():
  """Positions agree no more often than in two true shuffles (about once), also
  for seed + 1 with epoch - 1."""
  n = 10_000
  orders = [order.permute(np.arange(n), n, order.key(seed, 1, epoch))
            for seed in range(3) for epoch in range(3)]
  for i, one in enumerate(orders):
    for other in orders[:i]:
      assert np.sum(one == other) < 10
      assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / np.sqrt(n)


@pytest.mark.parametrize('processes', (1, 2, 4))
def test_the_rows_of_all_processes_are_the_batch(processes):
  size, n = 24, 37
  share = size // processes
  for step in range(6):
    whole = order.batch(9, step, size, n)
    parts = [order.batch(9, step, size, n, (p * share, (p + 1) * share))
             for p in range(processes)]
    for i in range(2):
      np.testing.assert_array_equal(
          whole[i], np.concatenate([part[i] for part in parts]))


@pytest.mark.parametrize('n,size', ((37, 8), (10, 32), (64, 16), (1, 3)))
def test_each_epoch_visits_each_example_once(n, size):
  """A batch may span two epochs or hold several."""
  steps = 4 * n // size + 2
  batches = [order.batch(2, step, size, n) for step in range(steps)]
  epoch = np.concatenate([e for e, _ in batches])
  position = np.concatenate([p for _, p in batches])
  assert np.all(np.diff(epoch) >= 0)
  whole = (steps * size) // n
  assert whole >= 4
  for e in range(whole):
    np.testing.assert_array_equal(np.sort(position[epoch == e]), np.arange(n))
  if n > 5:   # and no two epochs in the same order
    assert len({tuple(position[epoch == e]) for e in range(whole)}) == whole
  spanning = [np.unique(e).size > 1 for e, _ in batches]
  assert any(spanning) == (n % size != 0)


def test_a_batch_does_not_depend_on_earlier_batches():
  """It is the same when it is asked for first, last, twice or in any order."""
  ascending = [order.batch(4, t, 16, 100) for t in range(12)]
  for t in (11, 3, 0, 7, 3, 11):
    for a, b in zip(order.batch(4, t, 16, 100), ascending[t]):
      np.testing.assert_array_equal(a, b)


def test_a_late_batch_of_a_huge_set_is_computed_at_once():
  """Step 10**9 over 3 billion examples is one call, because nothing is stored.
  """
  epoch, position = order.batch(0, 10**9, 4096, 3 * 10**9)
  assert set(epoch) == {1365}
  assert np.unique(position).size == 4096
  assert position.min() >= 0 and position.max() < 3 * 10**9


def test_keys_differ_in_each_argument():
  """Each (seed, epoch, record) has a key of its own."""
  index = np.arange(50)
  made = {}
  for seed in range(4):
    for epoch in range(4):
      keys = order.keys(seed, np.full(50, epoch), index)
      assert keys.dtype == np.int32 and keys.shape == (50, 2)
      for i, pair in enumerate(map(tuple, keys)):
        made[seed, epoch, i] = pair
  assert len(set(made.values())) == len(made) == 800
  for half in (0, 1):   # of 64 bits, both halves vary
    assert len({pair[half] for pair in made.values()}) > 795


def test_key_depends_on_words_and_their_places():
  words = [(), (0,), (0, 0), (0, 1), (1, 0), (1,), (2, -1), (1, 1), (2,)]
  assert len({order.key(*w) for w in words}) == len(words)


def _mix_one(x):
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
  return x ^ (x >> 31)


def _permute_one(i, n, key):
  """Six rounds on the two halves of the index, again while it is outside."""
  half = max(1, ((n - 1).bit_length() + 1) // 2)
  mask = 2**half - 1
  while True:
    left, right = i >> half, i & mask
    for r in range(1, 7):
      f = _mix_one(right ^ _mix_one((key + r * 0x9E3779B97F4A7C15) % WORD))
      left, right = right, left ^ (f & mask)
    i = (left << half) | right
    if i < n:
      return i
