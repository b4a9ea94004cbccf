"""`model.pixel_order`: one fixed order of the pixels of every image."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from mixer import models
from mixer import pretrained
from mixer.core import errors
from mixer.models import catalog
from mixer.models import pixel_order
from mixer.pretrained import export
from mixer.training import start

NETWORKS = dict(
    Mixer=dict(name='Mixer-S/4', hidden_dim=8, num_blocks=1, tokens_mlp_dim=6,
               channels_mlp_dim=10),
    ViT=dict(name='ViT-S/4', hidden_dim=8, num_blocks=1, num_heads=2,
             channels_mlp_dim=10),
    BiT=dict(name='BiT-R14x1', hidden_dim=32, stem='small'))


def patches(order, height, width, patch):
  """The numbers of the pixels in each patch of an order, [patches, pixels]."""
  return order.reshape(height // patch, patch, width // patch, patch).swapaxes(
      1, 2).reshape(-1, patch * patch)


@pytest.mark.parametrize('kind', pixel_order.KINDS)
def test_an_order_holds_every_pixel_once_and_changes_with_the_seed(kind):
  order = pixel_order.order(f'{kind}:4:0', 12, 16)
  assert order.dtype == np.int32
  np.testing.assert_array_equal(np.sort(order), np.arange(12 * 16))
  assert not np.array_equal(order, np.arange(12 * 16))
  assert not np.array_equal(order, pixel_order.order(f'{kind}:4:1', 12, 16))
  np.testing.assert_array_equal(order, pixel_order.order(kind, 12, 16, 4))


def test_orders_are_the_same_on_every_machine():
  """Values that were computed once, with NumPy 2."""
  assert pixel_order.order('patches:2:0', 4, 4).tolist() == [0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15]
  assert pixel_order.order('all:1:7', 2, 4).tolist() == [6, 7, 4, 0, 1, 5, 3, 2]


def test_pixels_stay_in_their_patch_and_patches_stay_whole():
  """An image of 4x4 pixels with patches of 2x2, by hand."""
  whole = [{0, 1, 4, 5}, {2, 3, 6, 7}, {8, 9, 12, 13}, {10, 11, 14, 15}]
  first = [0, 2, 8, 10]
  within = patches(pixel_order.order('within:2:3', 4, 4), 4, 4, 2)
  assert [set(row) for row in within.tolist()] == whole
  # One inner order for all patches.
  inner = within[0]
  assert inner.tolist() != [0, 1, 4, 5]
  np.testing.assert_array_equal(within, inner + np.array(first)[:, None])
  moved = patches(pixel_order.order('patches:2:3', 4, 4), 4, 4, 2)
  assert moved[:, 0].tolist() != first
  np.testing.assert_array_equal(moved, moved[:, :1] + [0, 1, 4, 5])


def test_both_is_patches_then_within():
  once, twice, both = (pixel_order.order(f'{kind}:4:5', 12, 16)
                       for kind in ('patches', 'within', 'both'))
  np.testing.assert_array_equal(once[twice], both)
  outer, inner = pixel_order.parts('both:4:5', 12, 16)
  identity = patches(np.arange(12 * 16), 12, 16, 4)
  np.testing.assert_array_equal(
      patches(both, 12, 16, 4), identity[outer][:, inner])


@pytest.mark.parametrize('value,words', [
    ('bot', ('within, patches, both, all', "'bot'")),
    ('both:0', ('at least 2 pixels',)), ('within:1', ('at least 2 pixels',)),
    ('both:4:0:1', ('KIND[:PATCH[:SEED]]',)), ('both:-4', ('both:-4',)),
    ('all:4:x', ('all:4:x',)), ('', ('KIND',)),
])
def test_a_wrong_value_is_refused_with_what_was_expected(value, words):
  with pytest.raises(errors.UserError, match='model.pixel_order: ') as e:
    models.create(**NETWORKS['Mixer'], pixel_order=value)
  assert all(word in str(e.value) for word in words)


def test_patches_must_be_named_and_fill_the_image():
  with pytest.raises(errors.UserError, match='none of its own.*within:4'):
    models.create(**NETWORKS['BiT'], pixel_order='within')
  model = models.create(**NETWORKS['Mixer'], pixel_order='both:8')
  with pytest.raises(errors.UserError, match="'both:8'.*8x8.*12x12"):
    model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))


@pytest.mark.parametrize('name', [
    'Mixer', *(pytest.param(name, marks=pytest.mark.slow)
               for name in NETWORKS if name != 'Mixer')])
def test_a_network_sees_the_permuted_image(name):
  """Its logits are those of the plain network for an image whose pixels were
  permuted by hand; its card says so, and the plain network's does not."""
  plain = models.create(**NETWORKS[name], num_classes=5)
  model = models.create(**NETWORKS[name], num_classes=5, pixel_order='both:4:2')
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 8, 12, 3)).astype('f4')
  params = plain.init(jax.random.key(0), images)['params']
  # The head's kernel is zero at first, which would hide all differences.
  params = jax.tree.map(
      lambda x: x + .1 * rng.normal(size=x.shape).astype('f4'), params)
  by_hand = images.reshape(2, -1, 3)[
      :, pixel_order.order('both:4:2', 8, 12)].reshape(images.shape)
  logits = lambda model, x: jax.jit(model.apply)({'params': params}, x)[0]
  np.testing.assert_array_equal(logits(model, images), logits(plain, by_hand))
  assert not np.allclose(logits(model, images), logits(plain, images),
                         atol=1e-3)
  card = catalog.describe(model)
  assert card['pixel_order'] == 'both:4:2'
  assert models.create(**card) == model
  assert 'pixel_order' not in catalog.describe(plain)


def test_a_run_takes_the_order_of_its_start_weights_unless_it_names_one():
  plain = models.create(**NETWORKS['Mixer'])
  permuted = plain.clone(pixel_order='all')
  assert start._like(permuted, plain, ()) == permuted
  other = plain.clone(pixel_order='both')
  assert start._like(permuted, other, ('pixel_order',)) == other


def test_a_permuted_network_keeps_its_size_and_is_exported_with_its_card(
    tmp_path):
  network = small_networks.make(size=(16, 16), pixel_order='all')
  with pytest.raises(errors.UserError, match="pixel_order='all'"):
    pretrained.resize(network.model, network.params, image_size=32)
  path = str(tmp_path / 'network.npz')
  export.export(network, path, format='npz')
  again = pretrained.open_network(path)
  assert again.model.pixel_order == 'all'
  images = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype('f4')
  np.testing.assert_array_equal(small_networks.logits(again, images),
                                small_networks.logits(network, images))
  with pytest.raises(errors.UserError, match='timm would not permute'):
    export.export(network, str(tmp_path / 'x.safetensors'),
                  format='safetensors', layout='timm')
  assert not (tmp_path / 'x.safetensors').exists()
