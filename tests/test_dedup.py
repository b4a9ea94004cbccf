"""De-duplication, without Beam: what is found, removed, kept and counted."""
import pathlib

import numpy as np
import photos
import pictures
from PIL import Image
import pytest

from mixer.core import errors
from mixer.preparation import beam_runner
from mixer.preparation import dedup
from mixer.preparation import dedup_worker
from mixer.preparation import set_directory
from mixer.preparation import shard_files


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('tfds')
  photos.write_tfds_set(path)
  return str(path)


def search(train: dedup_worker.Images, tests: tuple[dedup_worker.Images, ...],
           work: pathlib.Path, *, stored: set_directory.StoredSet | None = None,
           flips: bool = False) -> tuple[list[dict], dict[str, dict]]:
  """Does what the pipeline of `dedup` does; returns (reports, counts)."""
  hashes = [
      part for i, test in enumerate(tests) for part in dedup_worker.hash_tests(
          (i, 0, len(test.records)), tests=tests, flips=flips)]
  jobs = list(dedup._jobs(train, stored))
  for job in jobs:
    dedup_worker.search(job, hashes, train=train, distance=16, work=str(work),
                        write=stored is not None)
  reports = beam_runner.read_reports(str(work))
  return reports, dedup._checked_counts(reports, jobs)


@pytest.mark.parametrize('flips,duplicates', (
    (False, {3, 31}), (True, {3, 31, 12})))
def test_planted_copies_are_removed_and_the_rest_stays(
    data_dir, tmp_path, flips, duplicates):
  """Records of the searched split that are copies go; others stay as they are.

  A mirror image is a copy only with `flips`. Image 50 is in the split 'test',
  which is not searched, so that its copy removes nothing.
  """
  small = lambda i: np.asarray(Image.fromarray(photos.crop(i)).resize((57, 43)))
  images = np.stack([small(i) for i in (3, 31, 50)] + [small(12)[:, ::-1]])
  np.savez(tmp_path / 't.npz', test_images=images, test_labels=np.zeros(4, int))
  test = dedup_worker.Images(
      '--against', f'arrays:{tmp_path}/t.npz', 'test', None)
  train = dedup_worker.Images('--source', 'pictures', 'train', data_dir)
  stored = set_directory.open_stored('pictures', data_dir)
  reports, counts = search(train, (test,), tmp_path, stored=stored, flips=flips)

  _, targets = train.source.read(
      np.arange(photos.NUM_TRAIN + photos.NUM_TEST))
  labels = targets['labels'][:, 0].tolist()   # the seed of each record's crop
  removed = {labels[line['record']]: line for report in reports
             for line in report['removed']}
  assert set(removed) == duplicates
  assert [removed[i]['match'] for i in (3, 31)] == [0, 1]
  assert counts['train'] == dict(
      records=photos.NUM_TRAIN, searched=photos.NUM_TRAIN, unreadable=0,
      removed=len(duplicates), kept=photos.NUM_TRAIN - len(duplicates))
  assert counts['test']['kept'] == photos.NUM_TEST
  for split, shards in stored.splits.items():
    first = 0 if split == 'train' else photos.NUM_TRAIN
    for i, (path, count) in enumerate(shards):
      expected = [raw for n, raw in enumerate(
          shard_files.read(path, 'tfrecord'), first)
          if labels[n] not in duplicates]
      kept = shard_files.read(f'{tmp_path}/{split}-{i}', 'tfrecord')
      assert list(kept) == expected
      first += count


def test_a_part_of_a_folder_can_be_searched(tmp_path):
  """An image that cannot be read is counted, and stays.

  The part has the images 2, 3, 4, 6, 7 and 8.
  """
  pictures.write(tmp_path / 'photos' / 'c', {
      f'{i}.jpg': pictures.encode(photos.crop(i)) if i != 4 else b''
      for i in range(10)})
  np.savez(tmp_path / 't.npz', labels=np.zeros(2, int),
           images=np.stack([photos.crop(2), photos.crop(9)]))
  test = dedup_worker.Images(
      '--against', f'arrays:{tmp_path}/t.npz', 'train', None)
  train = dedup_worker.Images(
      '--source', f'folder:{tmp_path}/photos', 'train[:6]', None)
  (report,), counts = search(train, (test,), tmp_path)
  assert counts == {'train[:6]': dict(
      records=6, searched=6, unreadable=1, removed=1, kept=5)}
  assert [line['record'] for line in report['removed']] == [2]
  assert report['removed'][0]['name'] == f'{tmp_path}/photos/c/2.jpg'


def test_a_source_is_opened_once_for_equal_images(tmp_path):
  """Beam gives every bundle of elements an unpickled copy."""
  np.savez(tmp_path / 't.npz', images=np.stack([photos.crop(2)]),
           labels=np.zeros(1, int))
  one, two = (dedup_worker.Images(
      '--source', f'arrays:{tmp_path}/t.npz', 'train', None) for _ in range(2))
  assert one is not two and one.source is two.source


def test_a_source_that_is_missing_is_an_error_with_its_flag(tmp_path):
  images = dedup_worker.Images(
      '--against', f'folder:{tmp_path}/none', 'train', None)
  with pytest.raises(errors.UserError, match='--against.*none'):
    _ = images.source
  images = dedup_worker.Images(
      '--against', 'nope', 'train', str(tmp_path), '--against_dir')
  with pytest.raises(errors.UserError, match='nope.*--against_dir'):
    _ = images.source


def test_lost_records_are_an_error():
  job = dedup_worker.Job('train', 0, 0, np.ones(5, bool))
  report = dict(split='train', before=5, searched=5, unreadable=0, records=5,
                removed=[{}])
  with pytest.raises(errors.RunError, match='5 were kept and 1 removed'):
    dedup._checked_counts([report], [job])
  with pytest.raises(errors.RunError, match='in 1 of 2 shards'):
    dedup._checked_counts([dict(report, removed=[])], [job, job])


def test_test_sets_without_a_readable_image_are_an_error():
  with pytest.raises(errors.RunError, match='--against: none of the test'):
    dedup_worker._table([])


@pytest.mark.parametrize('text,expected', (
    ('cifar10:test', ('cifar10', 'test')),
    ('folder:/a:b/c:validation', ('folder:/a:b/c', 'validation')),
    ('cifar10:test[:50%]', ('cifar10', 'test[:50%]')),
    ('x:a[1:2]+b[3:]', ('x', 'a[1:2]+b[3:]'))))
def test_names_and_splits_of_test_sets_may_contain_colons(text, expected):
  assert dedup.parse_test_set(text) == expected


@pytest.mark.parametrize('text', ('cifar10', ':test', 'cifar10:', 'x[1:2]'))
def test_a_test_set_without_name_or_split_is_an_error(text):
  with pytest.raises(errors.UserError, match='--against.*NAME:SPLIT'):
    dedup.parse_test_set(text)
