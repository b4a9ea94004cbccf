"""Directories of data sets: made at once or not at all."""
import os
import pathlib

import pytest

from mixer.core import errors
from mixer.preparation import set_directory


def test_an_error_leaves_no_directory(tmp_path):
  path = tmp_path / 'set' / '1.0.0'
  with pytest.raises(ZeroDivisionError):
    with set_directory.create(str(path)):
      raise ZeroDivisionError
  assert not list(tmp_path.iterdir())


def test_a_directory_appears_when_it_is_complete(tmp_path):
  """What a killed command left behind is removed first."""
  path = tmp_path / 'set' / '1.0.0'
  left = tmp_path / 'set' / '1.0.0.partial' / 'work'
  left.mkdir(parents=True)
  (left / 'x').write_text('')
  with set_directory.create(str(path)) as partial:
    assert os.listdir(partial) == [] and not path.exists()
    (pathlib.Path(partial) / 'y').write_text('')
  assert [p.name for p in path.iterdir()] == ['y']


def test_one_command_at_a_time_makes_a_directory(tmp_path):
  path = str(tmp_path / 'set' / '1.0.0')
  with set_directory.create(path):
    with pytest.raises(errors.UserError, match='another command is making'):
      with set_directory.create(path):
        pass


def test_an_existing_directory_is_not_overwritten(tmp_path):
  with pytest.raises(errors.UserError, match='exists already'):
    with set_directory.create(str(tmp_path)):
      pass


def test_shards_are_numbered_without_the_empty_ones(tmp_path):
  reports = [dict(shard=i, records=i % 2, bytes=i) for i in range(4)]
  for i in range(4):
    (tmp_path / f'train-{i}').write_text(f'of {i}')
  moved = set_directory.move_shards(
      str(tmp_path), reports, str(tmp_path), 'mine', 'train', 'tfrecord')
  assert moved == [(1, 1), (1, 3)]
  for i, old in enumerate((1, 3)):
    assert (tmp_path / f'mine-train.tfrecord-0000{i}-of-00002').read_text() == (
        f'of {old}')
  with pytest.raises(errors.RunError, match="no record is left.*'train'"):
    set_directory.move_shards(str(tmp_path), reports[:1], str(tmp_path), 'mine',
                              'train', 'tfrecord')
