"""analysis/scoring: which images the evaluations of a config have."""
import dataclasses

import numpy as np
import pytest
import small_networks

from configs import digits
from configs import recipe
from mixer import pretrained
from mixer.analysis import planning
from mixer.analysis import scoring
from mixer.analysis import training_images
from mixer.core import errors
from mixer.data import pipeline
from mixer.data import splits
from mixer.evaluation import suite
from mixer.experiments import runs
from mixer.experiments import sweep
from mixer.training import run


@pytest.fixture
def config(tmp_path):
  """The config of a run on a set with one stored split, `train`: every tenth
  image of it is held out as `validation`, which the run evaluates."""
  np.savez(tmp_path / 'a.npz', images=np.full((100, 8, 8), 255, np.uint8),
           labels=np.arange(100) % 2)
  c = digits.get_config()
  c.data.update(name=f'arrays:{tmp_path}/a.npz', split='train[:90%]')
  c.evals = {name: recipe.evaluation(split, crop='resize')
             for name, split in (('minival', 'train[90%:]'),
                                 ('validation', 'validation'))}
  c.run.update(batch_size=8, total_steps=1)
  return c


def records(split):
  return set(split.split.records(np.arange(len(split))).tolist())


@pytest.mark.parametrize('name', ('minival', 'validation'))
def test_a_part_of_the_evaluations_has_the_images_as_before(config, name):
  train, evals, _ = suite.open_splits(config.to_dict(), 8)
  assert not records(train) & set.union(*map(records, evals.values()))
  alone, few = suite.open_evaluations(
      scoring.alone(config.to_dict(), name), 8)
  assert alone.keys() == {name} and not few
  assert records(alone[name]) == records(evals[name])


def test_another_set_of_one_split_keeps_its_images_too(config, tmp_path):
  """An evaluation of another set than the training set's has the same images
  without the other evaluations, also if the training set is gone."""
  np.savez(tmp_path / 'b.npz', images=np.zeros((60, 8, 8), np.uint8),
           labels=np.arange(60) % 2)
  for section in config.evals.values():
    section['name'] = f'arrays:{tmp_path}/b.npz'
  config.evals.minival.split = 'train'
  _, evals, _ = suite.open_splits(config.to_dict(), 8)
  config.data.name = 'arrays:gone.npz'
  alone, _ = suite.open_evaluations(
      scoring.alone(config.to_dict(), 'minival'), 8)
  assert records(alone['minival']) == records(evals['minival'])
  assert len(evals['minival']) == 54


def test_a_wrong_name_of_a_held_out_split_is_refused(config):
  config.evals = {}
  config.data.held_out = 'vaildation+x'
  with pytest.raises(errors.UserError, match="data.held_out: .*'vaildation'"):
    suite.open_splits(config.to_dict(), 8)
  config.data.held_out = 'validation'
  train, *_ = suite.open_splits(config.to_dict(), 8)
  assert len(train) == 81
  assert runs.stored_splits(config).keys() == {'train', 'validation'}
  assert planning._look(config.to_dict())[0].examples == 81


def test_a_sweep_does_not_train_on_what_the_config_holds_out(config):
  """The runs of a sweep evaluate only the images that choose the settings."""
  _, evals, _ = suite.open_splits(config.to_dict(), 8)
  trial = sweep._trial(runs.edited(config), 'train[:50%]', 'train[50%:]')
  train, chosen, _ = suite.open_splits(trial.to_dict(), 8)
  assert chosen.keys() == {'dev'} and len(train) + len(chosen['dev']) == 90
  for split in (train, chosen['dev']):
    assert not records(split) & records(evals['validation'])
  usual = sweep._trial(digits.get_config(), 'train[:50%]', 'train[50%:]')
  assert usual.data.held_out is None   # the digits store both


def test_data_of_another_kind_do_not_inherit_how_a_run_reads(config):
  network = small_networks.make((8, 8), in_channels=1, interpolation='area')
  name = config.data.name
  found = scoring.requested(
      dict(data=dict(access='sequential', window=9), evals={}), network,
      data=name, fewshot='train')
  assert found['data'] == dict(name=name, window=9)
  with_config = scoring.requested(config.to_dict(), network, fewshot='train')
  for made in (found, with_config):
    assert {few['interpolation'] for few in made['fewshot'].values()} == {
        'area'}
  for given in ({}, dict(evals={})):
    with pytest.raises(errors.UserError, match='sections data and evals'):
      scoring.requested(given, network)


@pytest.mark.parametrize('split,count', (
    ('train[90%:]', 9), ('validation', 0), ('train[95%:]', 4),
    ('validation+train[80%:]', 18)))
def test_a_run_says_which_held_out_images_it_is_trained_on(
    config, split, count, caplog):
  """90 of 100 images are in `train`; the run trains on the first 90%."""
  config.data.split = 'train'
  config.evals.minival.split = split
  suite.open_splits(config.to_dict(), 8)
  said = [r.getMessage() for r in caplog.records if 'too' in r.getMessage()]
  assert [line.split(' ', 1)[1].split(' of')[0] for line in said] == (
      [str(count)] if count else [])
  assert all(line.startswith('evals.minival: ') for line in said)


@pytest.fixture
def network(config, tmp_path):
  config.model.update(hidden_dim=8, num_blocks=1, tokens_mlp_dim=8,
                      channels_mlp_dim=8)
  run.train(config, str(tmp_path / 'run'))
  return pretrained.open_network(tmp_path / 'run')


def warnings(network, config, caplog):
  caplog.clear()
  scoring.evaluate(network, config, batch_size=10)
  return [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']


def test_an_evaluation_says_what_the_network_was_trained_on(
    config, network, tmp_path, caplog):
  """A run on 81 of 100 images: 9 are its minival, 10 its validation set."""
  assert not warnings(network, scoring.config_of(network), caplog)
  name = config.data.name
  whole = scoring.requested(scoring.config_of(network, name), network,
                            data=name)
  line, = warnings(network, whole, caplog)
  assert line.startswith('evals.all: 81 of its 100 examples were trained on')
  assert 'held out' not in caplog.text   # nothing is, here
  # Known from the run's provenance alone, as of exported weights.
  exported = dataclasses.replace(network, name='weights.npz')
  assert warnings(exported, whole, caplog) == [line]
  # Without one image, others are held out.
  np.savez(tmp_path / 'a.npz', images=np.full((99, 8, 8), 255, np.uint8),
           labels=np.arange(99) % 2)
  pipeline._open.cache_clear()
  said = warnings(network, scoring.config_of(network), caplog)
  assert [line.split(':')[0] for line in said] == [
      'evals.minival', 'evals.validation']
  assert all('has changed since the network was trained' in x for x in said)


def test_a_run_on_a_whole_split_is_known_when_a_tenth_is_held_out_later(
    config, tmp_path, caplog):
  config.evals = {'all': recipe.evaluation('train', crop='resize')}
  config.data.split = 'train'
  config.model.update(hidden_dim=8, num_blocks=1, tokens_mlp_dim=8,
                      channels_mlp_dim=8)
  run.train(config, str(tmp_path / 'run'))
  config.evals = {'validation': recipe.evaluation('validation', crop='resize')}
  line, = warnings(pretrained.open_network(tmp_path / 'run'), config.to_dict(),
                   caplog)
  assert line.startswith('evals.validation: 10 of its 10 examples were trained')


@pytest.mark.parametrize('trained', (
    dict(split='train800val200', examples=1000), dict(split='train[:9'),
    dict(examples=3), {}))
def test_a_training_split_that_the_set_does_not_store_is_passed_over(trained):
  stored = splits.whole(dict(train=1000, test=10))
  assert training_images._training_split(stored, trained) is None
