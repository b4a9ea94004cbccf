"""A workdir belongs to one run and one config, and notes bad images once."""
import json

import pytest

from mixer.core import errors
from mixer.core import workdir


def test_a_workdir_serves_one_run_at_a_time(tmp_path):
  with workdir.claimed(str(tmp_path)):
    with pytest.raises(errors.UserError, match='in use by another run'):
      with workdir.claimed(str(tmp_path)):
        pass
  with workdir.claimed(str(tmp_path)):
    pass


def test_a_refused_command_leaves_no_workdir(tmp_path):
  path = tmp_path / 'runs' / 'one'
  for _ in '12':
    with pytest.raises(errors.UserError, match='wrong'):
      with workdir.claimed(path):
        raise errors.UserError('wrong')
    assert not list(tmp_path.iterdir())


def test_a_refused_command_keeps_what_others_made(tmp_path):
  (tmp_path / 'notes').touch()
  with pytest.raises(errors.UserError):
    with workdir.claimed(tmp_path):
      raise errors.UserError('wrong')
  assert [p.name for p in tmp_path.iterdir()] == ['notes']
  with workdir.claimed(tmp_path):   # a run, which keeps its lock file
    pass
  with pytest.raises(errors.UserError):
    with workdir.claimed(tmp_path):
      raise errors.UserError('wrong')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock', 'notes']


def test_a_lock_file_that_is_removed_meanwhile_is_locked_again(
    tmp_path, monkeypatch):
  """Else the next run would lock a new file of that name, too."""
  flock, calls = workdir.fcntl.flock, []

  def slow(file, how):
    calls.append(file)
    if len(calls) == 1:   # a refused command ends just now
      (tmp_path / '.lock').unlink()
    flock(file, how)

  monkeypatch.setattr(workdir.fcntl, 'flock', slow)
  with workdir.claimed(tmp_path):
    with pytest.raises(errors.UserError, match='in use by another run'):
      with workdir.claimed(tmp_path):
        pass
  assert len(calls) == 3


def test_a_resumed_run_may_change_where_its_data_is_but_not_its_seed(tmp_path):
  old = {'run': {'seed': 1, 'log_every': 5}, 'data': {'dir': '/a'}}
  workdir.agree(str(tmp_path), old)
  workdir.agree(str(tmp_path), {'run': {'seed': 1, 'log_every': 9},
                                'data': {'dir': '/b'}, 'evals': {'x': {}}})
  with pytest.raises(errors.UserError, match='run.seed was 1, is 2'):
    workdir.agree(str(tmp_path), {'run': {'seed': 2}, 'data': {}})


def test_the_config_of_a_run_is_read_back(tmp_path):
  assert workdir.config_of(tmp_path) is None
  workdir.agree(tmp_path, {'run': {'seed': 1}, 'shots': (1, 5)})
  assert workdir.config_of(tmp_path) == {'run': {'seed': 1}, 'shots': [1, 5]}


@pytest.mark.parametrize('path, run', [
    ('/runs/b16/checkpoints/300', '/runs/b16'),
    ('/runs/b16/checkpoints/300/', '/runs/b16'),
    ('gs://bucket/b16/checkpoints/300', 'gs://bucket/b16'),
    ('/runs/b16', None),
    ('/runs/b16/checkpoints', None),
    ('/runs/b16/checkpoints/300.damaged', None),
    ('/runs/checkpoints/weights.npz', None),
    ('checkpoints/300', None),
    ('Mixer-B/16-imagenet1k', None),
])
def test_a_checkpoint_belongs_to_the_run_whose_workdir_it_is_in(path, run):
  assert workdir.run_of(path) == run


def test_a_bad_image_is_written_once_also_after_a_restart(tmp_path):
  for _ in range(2):
    report = workdir.BadImages(tmp_path)
    for name in ('a.jpg', 'b.jpg', 'a.jpg'):
      report({'file': name})
  lines = (tmp_path / 'bad_images.jsonl').read_text().splitlines()
  assert list(map(json.loads, lines)) == [{'file': 'a.jpg'}, {'file': 'b.jpg'}]
