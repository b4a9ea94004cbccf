"""Figure 4: training on permuted images, and the Mixer's exact counterpart."""
import jax
import numpy as np
import pytest
import small_networks
import studies

from mixer.experiments import permutation
from mixer.models import pixel_order

FOUND = dict(
    networks=dict(Mixer=100, BiT=120), metric='eval/test/accuracy', patch=4,
    seeds=2, error=dict(Mixer=.01, BiT=None),
    exact=dict(difference=1e-6, units=5.0, bits=21),
    rows=[dict(network=name, order=order, steps=[5, 10],
               curves=[[.1, .5], [.2, .6]], accuracy=[.5, .6], mean=.55,
               spread=.07, drop=drop, keeps=drop < .2)
          for name in ('Mixer', 'BiT')
          for order, drop in (('original', 0.), ('both', .1), ('all', .4))])


def small():
  """(a Mixer for 12x8 pixels with random parameters, images)."""
  network = small_networks.make(size=(12, 8), patch_size=4)
  images = np.random.default_rng(1).uniform(-1, 1, (3, 12, 8, 3))
  return network.model, network.params, images


def test_the_counterpart_computes_the_same_tokens_in_another_order():
  """In float64, to 13 digits: every token of every block. A network whose
  parameters stay, or are moved by other permutations, is not the same."""
  model, params, images = small()
  order = 'both:4:3'
  patches, within = pixel_order.parts(order, 12, 8)
  with jax.enable_x64(True):
    model = model.clone(dtype='float64')
    params = jax.tree.map(lambda x: x.astype(np.float64), params)
    tokens = lambda model, params: np.asarray(
        model.apply({'params': params}, images)[1]['block_1'])
    before = tokens(model, params)
    assert before.dtype == np.float64
    after = tokens(model.clone(pixel_order=order), permutation.counterpart(
        params, patches, within))
    np.testing.assert_allclose(after, before[:, patches], rtol=0,
                               atol=1e-13 * np.abs(before).max())
    for wrong in (params, permutation.counterpart(params, patches, within[::-1])
                  , permutation.counterpart(params, patches[::-1], within)):
      other = tokens(model.clone(pixel_order=order), wrong)
      assert np.abs(other - before[:, patches]).max() > 1e-3


def test_the_exact_statement_holds_to_a_few_units_in_the_last_place():
  model, params, _ = small()
  found = permutation.exact(model, params, (12, 8), 'both:4:3')
  assert found['units'] < 64 and found['bits'] >= 18
  other = permutation.exact(model, params, (12, 8), 'within:4:3')
  assert other['bits'] >= 18


def test_the_error_of_a_difference_pools_the_variance_of_all_groups():
  """Variances 0.02 and 0.0 over two seeds: the mean variance is 0.01."""
  assert permutation.error([[.5, .7], [.4, .4]]) == pytest.approx(.1)
  assert permutation.error([[.5], [.4]]) is None


@pytest.mark.parametrize('accuracy,error,expected', [
    ([.58, .58], .01, True), ([.56, .56], .01, False),
    ([.65, .65], .01, True), ([.1, .1], None, None),
    # All seeds of all orders may agree, as when every image is recognised.
    ([.6, .6], 0., True), ([.5, .5], 0., False)])
def test_accuracy_is_kept_if_it_falls_by_at_most_three_errors(
    accuracy, error, expected):
  assert permutation.keeps(accuracy, [.5, .7], error) is expected


def test_the_table_shows_drops_beside_the_papers_and_the_exact_statement(
    capsys):
  permutation.show(FOUND)
  text = capsys.readouterr().out
  for words in ('patches and pixels within', '55.00% ±7.07', '40.0%',
                'about 45%', 'about 75%', '21 of 24 bits'):
    assert words in text


def test_the_figure_has_a_panel_for_each_network_and_a_curve_for_each_order():
  axes = permutation.draw(FOUND).axes
  assert [axis.get_title() for axis in axes] == ['Mixer', 'BiT']
  assert [len(axis.lines) for axis in axes] == [3, 3]
  assert axes[0].get_xlabel() == 'training steps'


@pytest.mark.slow   # whole runs
def test_the_study_goes_on_by_the_same_command(tmp_path):
  found = studies.run_twice(
      tmp_path, 'permutation', '--config.run.total_steps=10',
      '--config.run.eval_every=2', '--networks=Mixer', '--seeds=1', runs=3)
  assert [(row['network'], row['order']) for row in found['rows']] == [
      ('Mixer', order) for order in ('original', 'both', 'all')]
  assert all(row['steps'] == [2, 4, 6, 8, 10] for row in found['rows'])
  assert found['exact']['bits'] >= 16
  for kind in ('png', 'svg'):
    assert (tmp_path / f'permutation.{kind}').stat().st_size > 10_000
