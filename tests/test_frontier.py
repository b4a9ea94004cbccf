"""experiments/frontier: the Pareto front, and its figure."""
import pytest
import test_table

from mixer.experiments import frontier


@pytest.mark.parametrize('points,best', [
    ([], []),
    ([(1, .5)], [0]),
    ([(2, .6), (1, .5), (3, .55)], [1, 0]),        # the last is beaten
    ([(1, .5), (1, .6), (2, .6)], [1]),            # ties in one of the two
    ([(2, .7), (1, .5), (2, .7)], [1, 0, 2]),      # equal points are both best
    ([(-9, .1), (-1, .9), (-5, .05)], [0, 1]),     # speed: more is better
])
def test_points_that_no_other_point_beats(points, best):
  assert frontier.pareto(points) == best


def test_runs_on_the_front_are_named(tmp_path, capsys):
  runs = [test_table.write_run(tmp_path / 'good', values=(.8,)),
          test_table.write_run(tmp_path / 'bad', values=(.2, .3)),
          test_table.write_run(tmp_path / 'best', values=(.8, .9))]
  found = frontier.run(None, '', runs=runs)
  assert [row['best_for_cost'] for row in found['runs']] == [True, False, True]
  assert [row['best_for_speed'] for row in found['runs']] == [
      False, False, True]
  frontier.show(found)
  lines = [' '.join(line.split()) for line in
           capsys.readouterr().out.splitlines()]
  assert ('best Mixer-B/16 imagenet2012 TPU v3 90.00% 1 best 75 best' in lines)
  assert 'bad Mixer-B/16 imagenet2012 TPU v3 30.00% 1 75' in lines


def test_the_figure_needs_no_runs():
  found = frontier.run(None, '')
  assert len(found['published']) == 10 + 15 and found['runs'] == []
  left, right = frontier.draw(found).axes
  assert left.get_xscale() == right.get_xscale() == 'log'
  words = [text.get_text() for text in left.texts]
  assert 'HaloNet' in words and 'H/14' in words
