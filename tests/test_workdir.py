"""A workdir belongs to one run and one config, and notes bad images once."""
import errno
import json
import os

import pytest

from mixer.core import errors
from mixer.core import workdir
from mixer.training import resume


def test_a_workdir_serves_one_run_at_a_time(tmp_path):
  with workdir.claimed(str(tmp_path)):
    with pytest.raises(errors.UserError, match='in use by another run'):
      with workdir.claimed(str(tmp_path)):
        pass
  with workdir.claimed(str(tmp_path)):
    pass


def test_without_file_locks_a_workdir_is_used_and_a_line_says_so(
    tmp_path, monkeypatch, caplog):
  """Some network file systems have none."""
  def none(file, how):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  caplog.set_level('INFO', 'mixer')
  monkeypatch.setattr(workdir.fcntl, 'flock', none)
  with workdir.claimed(tmp_path / 'run'):
    assert (tmp_path / 'run').is_dir()
  line, = caplog.messages
  assert 'cannot be locked' in line and 'only one run' in line


def test_a_refused_command_leaves_no_workdir(tmp_path):
  path = tmp_path / 'runs' / 'one'
  for _ in '12':
    with pytest.raises(errors.UserError, match='wrong'):
      with workdir.claimed(path):
        (path / workdir.COMPILED).mkdir()   # as the compiler does
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
  resume.agree(str(tmp_path), old)
  resume.agree(str(tmp_path), {'run': {'seed': 1, 'log_every': 9},
                                'data': {'dir': '/b'}, 'evals': {'x': {}}})
  with pytest.raises(errors.UserError, match='run.seed was 1, is 2'):
    resume.agree(str(tmp_path), {'run': {'seed': 2}, 'data': {}})


def test_the_config_of_a_run_is_read_back(tmp_path):
  assert workdir.config_of(tmp_path) is None
  resume.agree(tmp_path, {'run': {'seed': 1}, 'shots': (1, 5)})
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
  """And not before the run has been accepted."""
  for again in (False, True):
    report = workdir.BadImages(tmp_path)
    report({'file': 'a.jpg'})
    assert (tmp_path / 'bad_images.jsonl').exists() == again
    report.begin()
    for name in ('b.jpg', 'a.jpg'):
      report({'file': name})
  lines = (tmp_path / 'bad_images.jsonl').read_text().splitlines()
  assert list(map(json.loads, lines)) == [{'file': 'a.jpg'}, {'file': 'b.jpg'}]


def lengths(decay='cosine', warmup=0, start=None, **run):
  """A config of a schedule and a length."""
  return {'run': run, 'start': start or {},
          'schedule': dict(decay=decay, warmup_steps=warmup)}


@pytest.mark.parametrize('old, new', [
    (lengths('constant', total_steps=10), lengths('constant', total_steps=20)),
    (lengths('constant', total_steps=10), lengths('constant', total_epochs=3)),
    (lengths('constant', 9, total_steps=10),
     lengths('constant', 9, total_steps=20))])
def test_the_length_may_change_if_the_learning_rate_does_not_depend_on_it(
    old, new, tmp_path):
  resume.agree(tmp_path, old)
  resume.agree(tmp_path, new)


@pytest.mark.parametrize('epochs, fits', ((5, False), (6, True)))
def test_a_length_in_epochs_is_compared_with_the_warm_up(tmp_path, epochs, fits):
  """An epoch has two steps."""
  config = lambda epochs: lengths('constant', 10, total_epochs=epochs,
                                  batch_size=8)
  workdir.write_config(tmp_path, config(epochs), dict(data=dict(examples=16)))
  if fits:
    resume.check_config(tmp_path, config(7))
  else:
    with pytest.raises(errors.UserError, match='total_epochs was 5, is 7'):
      resume.check_config(tmp_path, config(7))


@pytest.mark.parametrize('decay, warmup', [('cosine', 0), ('linear', 0),
                                           ('constant', 10)])
@pytest.mark.parametrize('dont_load', [None, 'head/.*'])
def test_another_length_is_refused_with_the_flags_that_train_on(
    decay, warmup, dont_load, tmp_path):
  """A warm-up of at least the run's length is cut to a tenth of it. The head
  of the finished run is kept."""
  start = dict(dont_load=dont_load)
  resume.agree(tmp_path, lengths(decay, warmup, start, total_steps=10))
  with pytest.raises(errors.UserError) as refused:
    resume.agree(tmp_path, lengths(decay, warmup, start, total_steps=20))
  flags = f'add --workdir=NEW --config.start.weights={tmp_path}' + (
      ' --config.start.dont_load=' if dont_load else '') + ' to the command'
  assert 'run.total_steps was 10, is 20. ' in str(refused.value)
  assert flags in str(refused.value)
  # Another change besides has no such remedy.
  with pytest.raises(errors.UserError, match='Give the same config'):
    resume.agree(tmp_path, dict(
        lengths(decay, warmup, start, total_steps=20), loss=dict(name='x')))
