"""Splits: which records a name means, and how one is held out."""
import itertools
import logging

import numpy as np
import pytest

from mixer.core import errors
from mixer.data import overlap
from mixer.data import splits
from mixer.experiments import runs

STORED = splits.whole({'train': 100, 'test': 30})


def records(spec, stored=None):
  """The record numbers that a split means, in its order."""
  split = splits.select(stored or STORED, spec, 'data.split')
  return split.records(np.arange(len(split))).tolist()


@pytest.mark.parametrize('spec,expected', (
    ('train', range(100)),
    ('test', range(100, 130)),
    ('train[:10]', range(10)),
    ('train[90:]', range(90, 100)),
    ('train[5:8]', range(5, 8)),
    ('train[-3:]', range(97, 100)),
    ('train[:-98]', range(2)),
    ('train[:99%]', range(99)),
    ('train[99%:]', range(99, 100)),
    ('train[-10%:]', range(90, 100)),
    ('test[:50%]', range(100, 115)),
    ('train[:2]+test[:2]', (0, 1, 100, 101)),
    ('test[:1] + train[98:]', (100, 98, 99)),
    ('train[:1]+train[:2]', (0, 0, 1)),
    ('train[95:1000]', range(95, 100)),
))
def test_slices_follow_the_syntax_of_tfds(spec, expected):
  """Counts, percentages, negative bounds and unions."""
  assert records(spec) == list(expected)


def test_percentages_round_as_in_tfds():
  """This includes sizes that percentages do not divide."""
  import tensorflow_datasets as tfds
  for size in (101, 1797, 1_281_167):
    stored = splits.whole({'train': size})
    info = tfds.core.splits.SplitInfo(
        name='train', shard_lengths=[size], num_bytes=0,
        filename_template=tfds.core.naming.ShardedFileTemplate(
            data_dir='/', dataset_name='x', split='train',
            filetype_suffix='tfrecord'))
    theirs = tfds.core.splits.SplitDict([info])
    for spec in ('train[:99%]', 'train[99%:]', 'train[33%:67%]',
                 'train[-1%:]', 'train[-50%:-5%]', 'train[:-1]', 'train[1:]'):
      instructions = theirs[spec].file_instructions
      ours = splits.select(stored, spec, 'data.split')
      assert len(ours) == sum(i.examples_in_shard if i.take == -1 else i.take
                              for i in instructions), (size, spec)
      first, = ours.records(np.array([0]))
      assert first == instructions[0].skip, (size, spec)


@pytest.mark.parametrize('first,second', (
    ('train[:99%]', 'train[99%:]'), ('train[51:]', 'train[:51]'),
    ('train[:-7]', 'train[-7:]'), ('train[33%:]', 'train[:33%]')))
@pytest.mark.parametrize('count', (100, 101, 1797))
def test_complementary_splits_partition_the_records(first, second, count):
  stored = splits.whole({'other': 13, 'train': count})
  both = records(first, stored) + records(second, stored)
  assert sorted(both) == list(range(13, 13 + count))


@pytest.mark.parametrize('spec,expected', (
    ('trian', ('data.split', "'trian'", "did you mean 'train'", 'test')),
    ('train+nope', ('data.split', "'nope'", 'train, test')),
    ('train[50]', ('data.split', "'train[50]'", "'train[:99%]'")),
    ('train[1:2', ('data.split', "'train[1:2'")),
    ('train[1.5%:]', ('data.split', "'train[1.5%:]'")),
    ('', ('data.split', "''")),
    ('train[7:7]', ('data.split', "'train[7:7]'", 'train: 100', 'test: 30')),
    ('train[60:40]', ('data.split', "'train[60:40]'", 'no examples')),
))
def test_errors_name_the_key_the_value_and_the_choices(spec, expected):
  with pytest.raises(errors.UserError) as error:
    records(spec)
  for part in expected:
    assert part in str(error.value)


@pytest.mark.parametrize('key,spec,stored,expected', (
    ('evals.val.split', 'validation', ('train', 'test'),
     ('set --config.evals.val.split=test, or ',
      "--config.data.split='train[:90%]' and --config.evals.val.split='train[90"
      "%:]'")),
    ('evals.test.split', 'test', ('train',), ("set --config.data.split='train",
                                              )),
    ('evals.x.split', 'val', ('train', 'validation'),
     ("expected 'validation'",)),
    ('data.split', 'train', ('validation',), ('can only be evaluated',)),
))
def test_a_missing_split_gets_the_settings_that_replace_it(
    key, spec, stored, expected):
  with pytest.raises(errors.UserError) as error:
    splits.select(splits.whole(dict.fromkeys(stored, 9)), spec, key)
  for part in expected:
    assert part in str(error.value)


def test_a_set_of_its_own_for_an_evaluation_is_named_whole():
  """The error for a set that nothing trains on names its `train` as a whole, and
  not a part of it to hold out."""
  with pytest.raises(errors.UserError) as error:
    splits.select(splits.whole(dict(train=9)), 'validation', 'evals.val.split',
                  ['validation'])
  assert 'set --config.evals.val.split=train' in str(error.value)
  assert 'data.split' not in str(error.value)


@pytest.mark.parametrize('count', (9, 10, 11, 1797))
@pytest.mark.parametrize('every', (2, 5, 10))
def test_every_nth_example_is_held_out(count, every):
  rest, held = splits.hold_out(splits.Piece(3, 0, count), every)
  stored = {'train': rest, 'test': held}
  assert records('test', stored) == list(range(3, 3 + count, every))
  assert records('train', stored) == [
      3 + i for i in range(count) if i % every]
  assert records('train[2:4]', stored) == records('train', stored)[2:4]
  assert records('test[-1:]', stored) == records('test', stored)[-1:]


def test_a_missing_split_is_held_out_from_the_only_one_and_logged(caplog):
  """It consists of every tenth example, and the stored split loses them."""
  stored = splits.whole({'train': 95})
  with caplog.at_level(logging.INFO, 'mixer'):
    out = splits.carve(
        stored, ['train[:90%]', 'validation', 'train[90%:]'], 'mine')
  assert records('validation', out) == list(range(0, 95, 10))
  assert sorted(records('train', out) + records('validation', out)) == list(
      range(95))
  assert "'validation' (10)" in caplog.text and 'mine' in caplog.text


@pytest.mark.parametrize('stored,wanted', (
    ({'train': 95}, ['train']),
    ({'train': 95}, ['train', 'a', 'b']),
    ({'validation': 95}, ['train', 'validation']),
    ({'train': 95, 'test': 5}, ['train', 'validation'])))
def test_nothing_is_held_out_if_all_splits_exist_or_the_choice_is_unclear(
    stored, wanted):
  stored = splits.whole(stored)
  assert splits.carve(stored, wanted, 'mine') == stored


def test_the_head_of_a_split_is_a_slice_of_it():
  """So it has all classes, where a set is not mixed."""
  stored = splits.whole({'test': 7, 'train': 1000}, mix=True)
  records = lambda split: split.records(np.arange(len(split))).tolist()
  select = lambda spec: splits.select(stored, spec, 'data.split')
  assert records(select('train').head(90)) == records(select('train[:90]'))
  assert records(select('train[10%:]').head(5)) == (
      records(select('train[10%:]'))[:5])
  assert records(select('test+train').head(9)) == [
      *range(7), *records(select('train[:2]'))]
  assert records(select('test').head(None)) == list(range(7))
  assert select('train').head(90).spec == 'train, 90 of 1000'


def test_slices_of_a_set_that_is_not_mixed_follow_one_permutation():
  """Slices of 1,000 examples that lie class by class have all classes."""
  stored = splits.whole({'test': 7, 'train': 1000}, mix=True)
  records = lambda spec: (lambda s: s.records(np.arange(len(s))))(
      splits.select(stored, spec, 'data.split'))
  rest, held = records('train[:90%]'), records('train[90%:]')
  assert sorted([*rest, *held]) == list(range(7, 1007))
  for part in (rest, held):
    assert len(np.unique((part - 7) // 100)) == 10   # of 10 classes
  np.testing.assert_array_equal(rest[:3], [280, 909, 815])
  # A whole split keeps its order, so that runs on it can be resumed.
  np.testing.assert_array_equal(records('train'), np.arange(7, 1007))
  np.testing.assert_array_equal(records('train[:100%]'), np.arange(7, 1007))
  assert splits.select(stored, 'train[1:]', 'data.split').mixed
  assert not splits.select(stored, 'train', 'data.split').mixed
  # Slices of a split whose tenth is held out leave the held-out examples out.
  carved = splits.carve(stored={'train': stored['train']},
                        wanted=('train[:50%]', 'test'), source='some')
  half = splits.select(carved, 'train[:50%]', 'data.split')
  found = half.records(np.arange(len(half)))
  assert len(set(found)) == 450 and not any((found - 7) % 10 == 0)


@pytest.mark.parametrize('spec', ('train', 'train[1%:]', 'train[:900]+test'))
@pytest.mark.parametrize('mix', (False, True))
def test_shares_of_a_split_are_nested_and_do_not_overlap(spec, mix):
  stored = splits.whole({'test': 40, 'train': 1000}, mix=mix)
  of = lambda begin, end: set(records(
      runs.share(stored, spec, begin, end, 'data.split'), stored))
  small, half, whole = of(0, .03), of(0, .5), of(0, 1)
  assert small < half < whole == set(records(spec, stored))
  assert of(0, .5) | of(.5, 1) == whole and not of(0, .5) & of(.5, 1)
  assert abs(len(small) - .03 * len(whole)) <= 1
  if mix:   # `small` lies anywhere in the split, not at its beginning
    assert max(small) - min(small) > 600


def test_a_share_without_examples_is_refused():
  with pytest.raises(errors.UserError, match='data.split.*holds no examples'):
    runs.share(STORED, 'train', 0, 0.004, 'data.split')


@pytest.mark.parametrize('mix', (False, True))
@pytest.mark.parametrize('carved', (False, True))
def test_the_overlap_of_two_splits_is_that_of_their_records(mix, carved):
  stored = splits.whole(dict(train=200), mix=mix)
  names = ['train', 'train[:90%]', 'train[80%:]', 'train[5:7]+train[190:]']
  if carved:
    stored = splits.carve(stored, ['train', 'val'], 'mine')
    names += ['val', 'val[:50%]+train[:3]']
  for one, other in itertools.product(names, repeat=2):
    a, b = (splits.select(stored, spec, 'x') for spec in (one, other))
    mine, theirs = (set(s.records(np.arange(len(s))).tolist()) for s in (a, b))
    assert overlap.count(a, b) == len(mine & theirs), (one, other)


def test_the_overlap_of_very_large_splits_takes_no_time():
  stored = splits.whole(dict(train=10**15))
  a, b = (splits.select(stored, spec, 'x') for spec in ('train[1%:]',
                                                       'train[:3%]'))
  assert overlap.count(a, b) == 2 * 10**13
