"""experiments/optimizers: SGD and Adam, tuned alike at equal budget."""
import json

import numpy as np
import pytest

from configs import digits
from mixer.core import errors
from mixer.experiments import optimizers
from mixer.experiments import runs


def tiny():
  c = digits.get_config()
  c.model.update(hidden_dim=16, num_blocks=1, tokens_mlp_dim=8,
                 channels_mlp_dim=32, stochastic_depth=0.0)
  c.run.update(total_steps=12, log_every=1, eval_every=0)
  return c.lock()


def planted():
  """What a run returns, with made up figures."""
  curve = lambda *values: dict(steps=[5, 10], values=list(values))
  one = lambda rate: dict(
      settings={}, rate=rate, tried=[dict(rate=.1, accuracy=.5),
                                     dict(rate=.3, accuracy=.6),
                                     dict(rate=1., accuracy=None)],
      runs=[dict(seed=seed, accuracy=.5 + .1 * seed, loss=curve(2., 1.),
                 accuracies=curve(.1, .5 + .1 * seed)) for seed in (0, 1)])
  return dict(metric='eval/test/accuracy', train='train[0:9]',
              dev='train[9:10]', optimizers=dict(sgd=one(.3), adam=one(.1)))


def test_both_optimizers_have_equally_many_rates():
  usual = optimizers.parse(())
  assert usual.keys() == optimizers.WEIGHT_DECAY.keys() == {'sgd', 'adam'}
  assert len(usual['sgd']) == len(usual['adam']) == 5
  assert optimizers.parse(['adam=3e-3,1e-3', 'sgd=0.1,0.3']) == dict(
      sgd=[.1, .3], adam=[1e-3, 3e-3])


@pytest.mark.parametrize('texts, words', [
    (['sgd=0.1'], '--rates.*equally many.*1 for sgd and 5 for adam'),
    (['lion=0.1'], "--rates.*'lion=0.1'"), (['sgd=-1'], "--rates.*'sgd=-1'"),
    (['sgd=a'], "'sgd=a'"), (['sgd'], "'sgd'"), (['sgd=nan'], "'sgd=nan'"),
    (['sgd=inf'], "'sgd=inf'")])
def test_wrong_rates_are_refused_before_the_first_run(tmp_path, texts, words):
  with pytest.raises(errors.UserError, match=words):
    optimizers.run(tiny(), str(tmp_path / 'w'), rates=texts)
  assert not (tmp_path / 'w').exists()


def test_held_out_training_images_choose():
  config = tiny()
  assert optimizers._held_out(config, runs.stored_splits(config)) == dict(
      train='train[0:1293]', dev='train[1293:1437]')


def test_a_curve_has_the_means_of_its_parts():
  found = optimizers._means(range(1, 201), np.arange(200.))
  assert len(found['steps']) == len(found['values']) == 50
  assert (found['steps'][0], found['values'][0]) == (4, 1.5)
  assert optimizers._means([10], [2.]) == dict(steps=[10], values=[2.])


def test_the_table_and_the_figure_have_both_optimizers(capsys):
  optimizers.show(planted())
  text = ' '.join(capsys.readouterr().out.split())
  for words in ('SGD 0.1 50.00% SGD 0.3 60.00% best SGD 1 diverged',
                'Adam 0.1 50.00% best, at the edge', 'SGD 0.3 55.00% ±7.07'):
    assert words in text, text
  tuning, loss, accuracy = optimizers.draw(planted()).axes
  assert [len(axes.lines) for axes in (tuning, loss, accuracy)] == [2, 2, 2]
  assert tuning.lines[0].get_xydata().tolist() == [[.1, .5], [.3, .6]]
  assert accuracy.lines[1].get_xydata().tolist() == [[5, .1], [10, .55]]


def test_accuracies_on_the_images_that_chose_the_rate_are_marked(capsys):
  said = 'on the images that chose the rate, so slightly too good'
  for tested, expected in (('train[9:10]', True), ('test', False),
                           (None, False)):
    found = dict(planted(), tested=tested)
    optimizers.show(found)
    assert (said in ' '.join(capsys.readouterr().out.split())) == expected
    title = optimizers.draw(found).axes[2].get_title()
    assert title == said.replace(', ', ',\n') * expected


@pytest.mark.parametrize('section,other,expected', [
    (None, None, ('train[1293:1437]', 'test')),
    (dict(train='train', dev='test'), None, ('test', 'test')),
    (dict(train='train', dev='test'), 'folder:x', ('test', None))])
def test_the_result_names_the_splits_that_chose_and_were_tested(
    monkeypatch, section, other, expected):
  monkeypatch.setattr(optimizers.sweep, 'sweep', lambda *_, **more: dict(
      runs=dict(a=dict(learning_rate=.1)), choice='a', retrain=True, metric=''))
  monkeypatch.setattr(runs, 'train', lambda *_, **more: {
      'eval/test/accuracy': .5})
  monkeypatch.setattr(runs, 'curves', lambda *_: ([1], [[.5]]))
  config = tiny().unlock()
  config.evals.test.name = other
  if section:
    config.sweep = section
  found = optimizers.run(config.lock(), '')
  assert (found['dev'], found['tested']) == expected


@pytest.mark.slow   # whole runs
def test_both_optimizers_are_tuned_and_train_with_the_best_rate(tmp_path):
  arguments = dict(rates=['sgd=0.1,0.3', 'adam=0.001,0.01'], seeds=2)
  config = tiny().unlock()
  config.optimizer.update(weight_decay=1e-4, clip_norm=5.0)
  found = optimizers.run(config, str(tmp_path), **arguments)
  for name, decay in (('sgd', 1e-4), ('adam', .1)):
    settings = found['optimizers'][name]['settings']
    assert (settings['weight_decay'], settings['clip_norm']) == (decay, 5.0)
  for name, rates in (('sgd', (.1, .3)), ('adam', (.001, .01))):
    one = found['optimizers'][name]
    assert [r['rate'] for r in one['tried']] == list(rates)
    assert one['rate'] == max(one['tried'], key=lambda r: r['accuracy'])['rate']
    assert [r['seed'] for r in one['runs']] == [0, 1]
    for folder, seed in (('final', 0), ('seed-1', 1)):
      kept = json.loads(
          (tmp_path / name / folder / 'config.json').read_text())
      assert kept['optimizer'] == one['settings']
      assert kept['optimizer']['name'] == name
      assert kept['schedule']['learning_rate'] == one['rate']
      assert kept['run']['seed'] == seed
      assert kept['data']['split'] == 'train'
      assert kept['run']['total_steps'] == 12
    assert one['runs'][0]['accuracies']['steps'][-1] == 12
    assert len(one['runs'][0]['loss']['values']) == 12
  assert optimizers.run(config, str(tmp_path), **arguments) == found
