"""experiments/left_out: what it trains on, and what it reports."""
import json
import os

import numpy as np
import pytest

from configs import digits
from mixer.core import errors
from mixer.experiments import left_out


def tiny():
  c = digits.get_config()
  c.model.update(hidden_dim=16, num_blocks=2, tokens_mlp_dim=8,
                 channels_mlp_dim=32)
  c.run.update(total_steps=30, eval_every=0, log_every=30)
  return c.lock()


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('left_out'))
  return path, left_out.run(tiny(), path, classes=3, examples=20,
                            tuning_steps=10, rates=(0.1, 0.3))


def test_classes_are_split_and_no_image_is_in_two_splits(tmp_path):
  base, others, names = left_out._split_classes(
      tiny(), str(tmp_path), classes=3, examples=20)
  base, others = np.load(base), np.load(others)
  assert names == ['7', '8', '9'] == others['class_names'].tolist()
  assert base['class_names'].tolist() == list('0123456')
  assert set(base['train_labels']) == set(base['test_labels']) == set(range(7))
  assert len(base['test_labels']) + len(others['test_labels']) == 360
  assert np.bincount(others['train_labels']).tolist() == [16] * 3
  assert np.bincount(others['dev_labels']).tolist() == [4] * 3
  seen = [x.tobytes() for part in ('train', 'dev', 'test')
          for x in others[f'{part}_images']]
  seen += [x.tobytes() for x in base['train_images']]
  assert len(set(seen)) == len(seen)


@pytest.mark.parametrize('other', [dict(classes=2), dict(examples=10)])
def test_other_classes_or_examples_need_another_workdir(tmp_path, other):
  """Runs of the same folder would be taken for finished ones."""
  usual = dict(classes=3, examples=20)
  split = lambda **more: left_out._split_classes(
      tiny(), str(tmp_path), **dict(usual, **more))
  files = split()[:2]
  before = [open(file, 'rb').read() for file in files]
  with pytest.raises(errors.UserError, match='--workdir.*--classes'):
    split(**other)
  split()
  assert [open(file, 'rb').read() for file in files] == before


@pytest.mark.slow   # whole runs
def test_tuned_runs_start_from_the_pre_trained_network_and_scratch_ones_do_not(
    found):
  """Both try every rate with a new head, and report the best on 'dev'."""
  path, result = found
  assert result['classes'] == ['7', '8', '9']
  for name, start in (('tuned', os.path.join(path, 'pretrained')),
                      ('scratch', None)):
    for rate in (0.1, 0.3):
      folder = os.path.join(path, name, str(rate))
      config = json.load(open(os.path.join(folder, 'config.json')))
      assert config['start']['weights'] == start
      assert config['start']['dont_load'] == 'head/.*'
      assert config['schedule']['learning_rate'] == rate
      last = [json.loads(line) for line in open(os.path.join(
          folder, 'metrics.jsonl'))][-1]
      assert last['eval/dev/accuracy'] <= result[name]['dev']
    assert 0 <= result[name]['test'] <= 1
  assert result['fewshot'].keys() == {'pretrained', 'untrained'}
  assert result['fewshot']['pretrained'].keys() == set(left_out.SHOTS)
  left_out.draw(result)


_SHOTS = dict(zip(left_out.SHOTS, (.11, .12, .13, .14)))
FOUND = dict(
    classes=['frog', 'horse'], pretrained=.5,
    fewshot=dict(pretrained=_SHOTS, untrained=dict.fromkeys(_SHOTS, .01)),
    tuned=dict(rate=.1, dev=.2, test=.3),
    scratch=dict(rate=.03, dev=.21, test=.31))


def test_the_tables_have_every_accuracy(capsys):
  left_out.show(FOUND)
  lines = [' '.join(line.split()) for line in
           capsys.readouterr().out.splitlines()]
  assert 'classes left out: frog, horse' in lines
  assert 'pretrained 11.00% 12.00% 13.00% 14.00%' in lines
  assert 'from the pre-trained network 0.1 20.00% 30.00%' in lines
  assert 'from scratch 0.03 21.00% 31.00%' in lines


def test_the_figure_has_every_accuracy_and_chance():
  few, full = left_out.draw(FOUND).axes
  assert [list(line.get_ydata()) for line in few.lines] == [
      [.11, .12, .13, .14], [.01] * 4, [.5, .5]]
  assert [bar.get_height() for bar in full.patches] == [.3, .31]


@pytest.mark.parametrize('classes', [1, 9])
def test_two_classes_at_least_are_left_out_and_stay(tmp_path, classes):
  with pytest.raises(errors.UserError, match=f'--classes.*2 to 8.*{classes}'):
    left_out.run(tiny(), str(tmp_path), classes=classes)


def test_a_config_without_evaluations_is_refused(tmp_path):
  config = tiny().unlock()
  config.evals = {}
  with pytest.raises(errors.UserError, match='evals'):
    left_out.run(config, str(tmp_path))


def test_some_images_must_be_left_to_train(tmp_path):
  """A fifth of 800 is more than the digits have of any class."""
  with pytest.raises(errors.UserError,
                     match="--examples: 800, but class '7' has 1.. training"):
    left_out.run(tiny(), str(tmp_path / 'new'), classes=3, examples=800)
  assert not (tmp_path / 'new').exists()
