"""The checkpoint of a workdir whose run goes on."""
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from mixer.core import checkpoint
from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.pretrained import origin
from mixer.training import resume


def run(path, steps):
  """A workdir with checkpoints, whose parameters and scores are the steps."""
  path.mkdir(exist_ok=True)
  resume.agree(str(path), {'checkpoint': {'best': 'score'}})
  checkpoints = checkpoint.Checkpoints(path / 'checkpoints', best='score')
  for step in steps:
    checkpoints.save(step, {'a': jnp.full((3,), step)}, {'step': step},
                     {'data': {}}, {'score': float(step)})
  checkpoints.wait()
  checkpoints.close()


@pytest.mark.parametrize('best', (False, True))
def test_a_checkpoint_that_is_removed_meanwhile_is_replaced_by_the_next(
    tmp_path, monkeypatch, best):
  """Also if some of its files are still there."""
  path, load = tmp_path / 'run', checkpoint_reader.load_params
  run(path, [1, 2])
  other = path / 'checkpoints' / '3'
  def late(where, average):
    if where.endswith('2'):   # as if the run has just saved and removed
      shutil.rmtree(path / 'checkpoints' / '2' / 'params')
      os.rename(tmp_path / 'later' / 'checkpoints' / '3', other)
    return load(where, average)
  run(tmp_path / 'later', [3])
  monkeypatch.setattr(checkpoint_reader, 'load_params', late)
  where, params = origin.read(str(path), best)
  assert where == str(other)
  np.testing.assert_array_equal(params['a'], [3, 3, 3])


def test_a_damaged_checkpoint_without_a_next_one_is_an_error(tmp_path):
  run(tmp_path, [1, 2])
  shutil.rmtree(tmp_path / 'checkpoints' / '2' / 'params')
  with pytest.raises(errors.UserError, match="checkpoints/2' cannot be read"):
    origin.read(str(tmp_path))
  shutil.rmtree(tmp_path / 'checkpoints')
  with pytest.raises(errors.UserError, match='neither a workdir'):
    origin.read(str(tmp_path))


def test_a_start_section_names_one_checkpoint(tmp_path, monkeypatch):
  run(tmp_path / 'run', [1, 2])
  section = dict(weights=str(tmp_path / 'run'), best=True)
  assert origin.resolved(section) == dict(
      weights=str(tmp_path / 'run' / 'checkpoints' / '2'), best=False)
  with pytest.raises(errors.UserError, match="checkpoints/1' is one checkpoint"):
    origin.read(str(tmp_path / 'run' / 'checkpoints' / '1'), best=True)
  (tmp_path / 'new' / 'checkpoints').mkdir(parents=True)
  with pytest.raises(errors.UserError,
                     match="^start.weights: '.*' holds no checkpoint yet"):
    origin.resolved(dict(weights=str(tmp_path / 'new'), best=False))
  monkeypatch.chdir(tmp_path / 'run')   # '' is no path
  assert origin.resolved(dict(weights='', best=False))['weights'] == ''
