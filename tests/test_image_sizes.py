"""experiments/image_sizes: networks resized, fine-tuned and from scratch."""
import json

import pytest

from configs import digits
from mixer.core import errors
from mixer.experiments import image_sizes


def tiny():
  c = digits.get_config()
  c.model.update(hidden_dim=16, num_blocks=2, tokens_mlp_dim=8,
                 channels_mlp_dim=32)
  c.run.update(total_steps=30, eval_every=0, log_every=30)
  return c.lock()


@pytest.mark.slow   # whole runs
def test_resized_networks_are_evaluated_and_fine_tuned(tmp_path):
  found = image_sizes.run(tiny(), str(tmp_path), sizes=(6, 16),
                          methods=('resample', None), tuning_steps=5)
  assert [(r['size'], r['method']) for r in found['rows']] == [
      (6, 'resample'), (6, 'resample'), (16, 'resample'), (16, 'block')]
  widths = {name: json.load(open(tmp_path / name / 'model.json'))['model']
            ['tokens_mlp_dim'] for name in (
                'first', 'tuned-16-resample', 'tuned-16-default', 'full-16')}
  assert widths == {'first': 8, 'tuned-16-resample': 8, 'tuned-16-default': 32,
                    'full-16': 8}


FOUND = dict(
    size='8x8', accuracy=.9, steps=30, tuning_steps=5, rows=[
        dict(size=6, method='resample', before=.1, tuned=.2, scratch=.3,
             full=.4),
        dict(size=16, method='block', before=.5, tuned=.6, scratch=.7,
             full=.8)])


def test_the_table_has_a_row_for_each_size_and_method(capsys):
  image_sizes.show(FOUND)
  lines = [' '.join(line.split()) for line in
           capsys.readouterr().out.splitlines()]
  assert 'trained at 8x8: 90.00% after 30 steps' in lines
  assert '6 resample 10.00% 20.00% 30.00% 40.00%' in lines
  assert '16 block 50.00% 60.00% 70.00% 80.00%' in lines


def test_the_figure_has_a_line_for_each_method():
  """Resized networks and long runs share the point of the first training."""
  axis, = image_sizes.draw(FOUND).axes
  lines = {line.get_label(): list(zip(*line.get_data()))
           for line in axis.lines}
  assert lines['resized, resample'] == [(6, .1), (8, .9)]
  assert lines['resized, block'] == [(8, .9), (16, .5)]
  assert lines['tuned, 5 steps, block'] == [(16, .6)]
  assert lines['scratch, 5 steps'] == [(6, .3), (16, .7)]
  assert lines['scratch, 30 steps'] == [(6, .4), (8, .9), (16, .8)]


@pytest.mark.parametrize('arguments,words', [
    (dict(sizes=[]), '--sizes.*--sizes=20,48'),
    (dict(sizes=['6', 'big']), "--sizes.*'6,big'"),
    (dict(sizes=[6], methods=['crop']), "--methods: 'crop'.*resample"),
    (dict(sizes=[6, 7]), '--sizes: 7: .*patch'),
    (dict(sizes=[16, '12'], methods=['block']), '--sizes: 12: method: block'),
])
def test_wrong_arguments_are_refused_before_the_first_run(
    tmp_path, arguments, words):
  with pytest.raises(errors.UserError, match=words):
    image_sizes.run(tiny(), str(tmp_path / 'w'), **arguments)
  assert not (tmp_path / 'w').exists()
