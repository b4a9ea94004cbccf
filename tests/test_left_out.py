"""The experiments on transfer: what they train on, and what they report."""
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


pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp('left_out'))
  return workdir, left_out.left_out(tiny(), workdir, classes=3, examples=20,
                                    tuning_steps=10, rates=(0.1, 0.3))


def test_the_classes_left_out_are_not_pretrained_on(found):
  """And of the others, training, choosing and testing share no image."""
  workdir, result = found
  base = np.load(os.path.join(workdir, 'base.npz'))
  others = np.load(os.path.join(workdir, 'others.npz'))
  assert result['classes'] == ['7', '8', '9']
  assert base['class_names'].tolist() == list('0123456')
  assert set(base['train_labels']) == set(base['test_labels']) == set(range(7))
  assert len(base['test_labels']) + len(others['test_labels']) == 360
  assert np.bincount(others['train_labels']).tolist() == [16] * 3
  assert np.bincount(others['dev_labels']).tolist() == [4] * 3
  seen = [x.tobytes() for part in ('train', 'dev', 'test')
          for x in others[f'{part}_images']]
  seen += [x.tobytes() for x in base['train_images']]
  assert len(set(seen)) == len(seen)


def test_both_start_where_they_should(found):
  """Fine-tuning from the pre-trained network with a new head, the other from
  nothing; every rate was tried, and the best on 'dev' is reported."""
  workdir, result = found
  for name, start in (('tuned', os.path.join(workdir, 'pretrained')),
                      ('scratch', None)):
    for rate in (0.1, 0.3):
      config = json.load(open(os.path.join(workdir, name, str(rate),
                                           'config.json')))
      assert config['start']['weights'] == start
      assert config['start']['dont_load'] == 'head/.*'
      assert config['schedule']['learning_rate'] == rate
      last = [json.loads(line) for line in open(os.path.join(
          workdir, name, str(rate), 'metrics.jsonl'))][-1]
      assert last['eval/dev/accuracy'] <= result[name]['dev']
    assert 0 <= result[name]['test'] <= 1
  assert result['fewshot']['pretrained'].keys() == set(left_out.SHOTS)
  for table in left_out.left_out_table(result):
    assert table.row_count == 2


def test_too_many_classes_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match='--classes: 9 of 10'):
    left_out.left_out(tiny(), str(tmp_path), classes=9)


def test_other_sizes(tmp_path):
  """Resampled and enlarged networks are what is evaluated and fine-tuned."""
  result = left_out.sizes(tiny(), str(tmp_path), image_sizes=(6, 16),
                          methods=('resample', None), tuning_steps=5)
  assert [(r['size'], r['method']) for r in result['rows']] == [
      (6, 'resample'), (6, 'resample'), (16, 'resample'), (16, 'block')]
  widths = {name: json.load(open(tmp_path / name / 'model.json'))['model']
            ['tokens_mlp_dim'] for name in (
                'first', 'tuned-16-resample', 'tuned-16-default', 'full-16')}
  assert widths == {'first': 8, 'tuned-16-resample': 8, 'tuned-16-default': 32,
                    'full-16': 8}
  assert left_out.sizes_table(result).row_count == 4
