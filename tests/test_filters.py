"""experiments/filters: the units of a network, measured and drawn."""
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import small_networks

from mixer import models
from mixer.analysis import figures
from mixer.analysis import units
from mixer.core import errors
from mixer.experiments import filters
from mixer.models import catalog
from mixer.pretrained import formats


def saved(path, network):
  """The path of a file of weights, with its card."""
  formats.save(str(path), network.params)
  pathlib.Path(f'{path}.json').write_text(json.dumps(network.card))
  return str(path)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """A file of weights of a random Mixer on 3 x 4 patches."""
  made = small_networks.make(size=(24, 32), tokens_mlp_dim=9)
  return saved(tmp_path_factory.mktemp('weights') / 'mixer.npz', made)


def test_the_result_has_the_images_and_the_measures_of_each_layer(file):
  made = small_networks.make(size=(24, 32), tokens_mlp_dim=9)
  found = json.loads(json.dumps(filters.run(None, '', checkpoint=file)))
  assert [row['layer'] for row in found['layers']] == [0, 1]
  row = found['layers'][1]
  own = units.token_units(made.model, made.params, 1, (24, 32))
  assert row['units'] == 9 and row['shape'] == [3, 4]
  assert row['opposition'] == units.opposition(own)
  images = filters._images(row)[0]
  first = own[units.sort_and_pair(own)[0]]
  np.testing.assert_allclose(images / 127, first / np.abs(first).max(),
                             atol=0.5 / 127 + 1e-6)
  assert found['stem']['shape'] == [8, 8, 3] and found['stem']['units'] == 16


def test_fewer_units_are_whole_pairs_over_all_frequencies():
  one = np.random.default_rng(0).standard_normal((21, 5, 5))
  order = units.sort_and_pair(one)
  drawn = filters._images(filters._drawn(one, order, 6))
  largest = np.abs(one).max((1, 2), keepdims=True)
  wanted = (one / largest)[order[[0, 1, 8, 9, 18, 19]]]
  np.testing.assert_allclose(drawn / 127, wanted, atol=0.51 / 127)


def test_the_figure_has_a_panel_for_each_layer_and_the_stem(file, tmp_path):
  found = filters.run(None, '', checkpoint=file, layers=['1'], units=4)
  figure = filters.draw(found)
  assert len(figure.axes) == 2
  row, = found['layers']
  assert figure.axes[0].get_title() == (
      f'block 1: opposition {row["opposition"]:.2f} (random '
      f'{row["random"]:.2f}, smooth {row["smooth"]:.2f})')
  for path in figures.save(figure, str(tmp_path), 'filters'):
    assert (tmp_path / path).stat().st_size > 1000


@pytest.mark.parametrize('flags,words', [
    (dict(layers=['1', 'x']), ('--layers', "'1,x'")),
    (dict(layers=['2']), ('layer 2', '0 to 1')),
    (dict(checkpoint=None), ('--checkpoint', 'release')),
])
def test_a_mistake_is_refused(file, flags, words):
  with pytest.raises(errors.UserError) as e:
    filters.run(None, '', **dict(dict(checkpoint=file), **flags))
  for word in words:
    assert word in str(e.value)


def test_of_a_network_without_token_mixing_the_stem_alone_is_shown(
    tmp_path, caplog):
  mixer = small_networks.make()
  model = models.create('ViT-S/8', num_classes=5, hidden_dim=16, num_blocks=1,
                        channels_mlp_dim=8, num_heads=2)
  params = jax.tree.map(lambda x: np.ones(x.shape, 'f4'), jax.eval_shape(
      model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))['params'])
  path = saved(tmp_path / 'vit.npz', dataclasses.replace(
      mixer, params=params, card=dict(mixer.card,
                                      model=catalog.describe(model))))
  found = filters.run(None, '', checkpoint=path)
  assert found['layers'] == [] and found['stem']['units'] == 16
  assert 'ViT-S/8' in caplog.text and 'no token-mixing units' in caplog.text
  assert len(filters.draw(found).axes) == 1
  with pytest.raises(errors.UserError, match='no token-mixing units'):
    filters.run(None, '', checkpoint=path, layers=['0'])


def test_the_layers_that_cannot_be_shown_are_left_out(tmp_path, caplog):
  """The last of a pyramid's three blocks mixes fewer tokens than there are
  patches."""
  made = small_networks.make(token_mixing='pyramid', num_blocks=3)
  path = saved(tmp_path / 'pyramid.npz', made)
  found = filters.run(None, '', checkpoint=path)
  assert [row['layer'] for row in found['layers']] == [0, 1]
  message, = caplog.messages
  assert 'layer 2' in message and message.endswith('it is left out')


def test_a_stem_for_pixels_in_another_order_is_said_in_one_line(
    tmp_path, caplog):
  for order, lines in (('patches', 0), ('both', 1)):
    made = small_networks.make(pixel_order=f'{order}:8:0')
    filters.run(None, '', checkpoint=saved(tmp_path / f'{order}.npz', made))
    assert len(caplog.messages) == lines, caplog.messages
