"""experiments/invariance: networks trained on permuted images, or fixed."""
import pytest
import studies

from mixer.experiments import invariance


def row(name, order, trained, fixed):
  return dict(network=name, order=order, accuracy=trained, fixed=fixed,
              mean=sum(trained) / 2, spread=.01,
              keeps=True, fixed_keeps=False)


FOUND = dict(
    networks=dict(Mixer=100, BiT=120), patch=4, seeds=2,
    rows=[row(name, order, [.5, .52], [.1 * i, .2 * i])
          for name in ('Mixer', 'BiT')
          for i, order in enumerate(('original', 'within', 'patches', 'all'))])


def test_the_table_says_which_question_each_column_answers(capsys):
  invariance.show(FOUND)
  text = ' '.join(capsys.readouterr().out.split())
  for words in ('(1) Does it learn as well', '(2) Does it, trained on original',
                '(1) trained so', '(2) fixed network', '51.00% ±1.41',
                '3 standard errors'):
    assert words in text
  # Network, order, (1), whether it is kept, the paper's answer, (2), whether it
  # is kept, and the published mark.
  for line in ('Mixer original 51.00% ±1.41 0.00% ±0.00',
               'Mixer within patches 51.00% ±1.41 yes yes 15.00% ±7.07 no yes',
               'Mixer patches 51.00% ±1.41 yes yes 30.00% ±14.14 no no',
               'Mixer all pixels 51.00% ±1.41 yes no 45.00% ±21.21 no no',
               'BiT within patches 51.00% ±1.41 yes 15.00% ±7.07 no yes',
               'BiT all pixels 51.00% ±1.41 yes no 45.00% ±21.21 no no'):
    assert f' {line} ' in text, text


def test_the_figure_has_two_bars_for_each_order():
  figure = invariance.draw(FOUND)
  assert [axis.get_title() for axis in figure.axes] == ['Mixer', 'BiT']
  assert [len(axis.containers) for axis in figure.axes] == [4, 4]
  heights = [bar.get_height() for bar in figure.axes[0].patches]
  assert heights == pytest.approx([.51] * 4 + [0, .15, .3, .45])


@pytest.mark.slow   # whole runs
def test_the_study_goes_on_by_the_same_command(tmp_path):
  found = studies.run_twice(
      tmp_path, 'invariance', '--config.run.total_steps=60',
      '--config.run.eval_every=30', '--networks=Mixer', '--seeds=2', runs=8)
  original, *others = found['rows']
  assert [row['order'] for row in others] == ['within', 'patches', 'all']
  # A fixed network that can tell digits loses that when all pixels move.
  assert original['fixed'] == original['accuracy']
  assert max(others[2]['fixed']) < min(original['accuracy'])
  assert (tmp_path / 'invariance.png').stat().st_size > 10_000
