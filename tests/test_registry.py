"""The registry of released weights: names, addresses, and sourced facts."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer import pretrained
from mixer.core import errors
from mixer.models import catalog
from mixer.pretrained import fetch
from mixer.pretrained import formats
from mixer.pretrained import network as networks
from mixer.pretrained import registry

ADDRESSES = [(release, address) for release in registry.RELEASES
             for address in (release.url, *release.also)]


def test_names_and_addresses_are_unique():
  names = registry.names()
  assert len(names) == len(set(names)) == 13
  addresses = [address for _, address in ADDRESSES]
  assert len(addresses) == len(set(addresses))
  for release in registry.RELEASES:
    assert registry.find(release.name) is release
    assert release.model in {*catalog.names(), 'Mixer-S/8'}


@pytest.mark.parametrize('address', [address for _, address in ADDRESSES])
def test_addresses_are_of_files_that_can_be_fetched_and_read(address):
  assert fetch.is_url(address)
  if address.startswith('hf://'):
    repository, revision, file = fetch._on_hub(address)
    assert re.fullmatch(r'timm/[\w.]+', repository) and revision is None
    assert file == 'model.safetensors'
  else:
    assert re.fullmatch(r'https://[\w.]+/[\w./-]+', address)
    assert address.endswith(formats.SUFFIXES)


def test_checksums_in_addresses_are_those_of_timms_files():
  found = {m[1] for _, address in ADDRESSES
           if (m := fetch._HASH_IN_NAME.search(address))}
  assert found == {'76587d61', '617b3de2', '92f9adc4', '846aa33c', '2a558a71',
                   '9229a591'}


@pytest.mark.parametrize('address,name', (
    ('gs://mixer_models/imagenet1k/Mixer-B_16.npz', 'Mixer-B/16-imagenet1k'),
    ('https://storage.googleapis.com/mixer_models/imagenet21k/Mixer-L_16.npz',
     'Mixer-L/16-imagenet21k'),
    ('gs://mixer_models/sam/Mixer-B_32.npz', 'Mixer-B/32-sam'),
    ('gs://mixer_models/gsam/Mixer-S_8.npz', 'Mixer-S/8-gsam'),
    ('hf://timm/mixer_b16_224.goog_in21k_ft_in1k', 'Mixer-B/16-imagenet1k'),
    ('hf://timm/mixer_l16_224.goog_in21k', 'Mixer-L/16-imagenet21k'),
    ('hf://timm/mixer_b16_224.miil_in21k', 'Mixer-B/16-imagenet21k-miil'),
    ('https://huggingface.co/timm/mixer_b16_224.goog_in21k_ft_in1k/resolve/main'
     '/model.safetensors?download=true', 'Mixer-B/16-imagenet1k'),
    ('https://huggingface.co/timm/mixer_b16_224.goog_in21k_ft_in1k/blob/main'
     '/model.safetensors', 'Mixer-B/16-imagenet1k'),
    ('https://github.com/rwightman/pytorch-image-models/releases/download/'
     'v0.1-vitjx/jx_mixer_b16_224-76587d61.pth', 'Mixer-B/16-imagenet1k'),
    ('downloads/jx_mixer_l16_224_in21k-846aa33c.pth',
     'Mixer-L/16-imagenet21k')))
def test_each_form_of_an_address_finds_its_release(address, name):
  assert registry.find(address).name == name


def test_other_names_and_addresses_find_no_release():
  for other in ('runs/x', 'w.npz', 'hf://me/mine', 'gs://me/Mixer-B_16.npz',
                'Mixer-B_16.npz', 'mine-76587d61.pth'):
    assert registry.find(other) is None
  with pytest.raises(errors.UserError, match="mean 'Mixer-B/16-imagenet1k'"):
    registry.find('Mixer-B/16-imagenet')


def test_facts_that_nobody_could_verify_are_marked():
  """An accuracy has its conditions, and is missing where none is known."""
  for release in registry.RELEASES:
    if isinstance(release.top1, float):
      assert release.num_classes == 1000 and release.conditions
    elif release.top1 is None:
      assert release.num_classes != 1000
    else:
      assert release.top1 == registry.UNVERIFIED
    assert release.source and release.data
  sam = [r for r in registry.RELEASES if 'sam' in r.name]
  assert len(sam) == 7
  for release in sam:
    assert release.top1 == release.loss == registry.UNVERIFIED
    assert 'an assumption' in release.note
    assert ('gsam' in release.name) == (release.source == registry.UNVERIFIED)


def test_the_note_warns_of_a_misleading_name():
  """timm's goog_in21k_ft_in1k weights were never trained on ImageNet-21k."""
  for letter in 'bl':
    release = registry.find(f'hf://timm/mixer_{letter}16_224.'
                            'goog_in21k_ft_in1k')
    assert release.data == 'ImageNet-1k'
    assert 'goog_in21k_ft_in1k, which they are not' in release.note
    assert f'mixer_{letter}16_224_in21k' in release.note


def test_class_names_are_the_1000_of_imagenet_in_order_of_synsets():
  names = registry.class_names(registry.find('Mixer-B/16-imagenet1k'))
  synsets = [name.split(' ', 1)[0] for name in names]
  assert len(set(synsets)) == len(names) == 1000
  assert synsets == sorted(synsets)
  assert all(re.fullmatch(r'n\d{8} \S.*', name) for name in names)
  assert names[0] == 'n01440764 tench'
  assert names[-1].startswith('n15075141 ')
  for name in ('Mixer-B/16-imagenet21k', 'Mixer-B/16-imagenet21k-miil'):
    assert registry.class_names(registry.find(name)) is None


def saved(tmp_path, num_classes=1000):
  """(model, params, path) of a small network in a file."""
  model = models.create(
      'Mixer-B/16', num_classes=num_classes, patch_size=4, hidden_dim=8,
      num_blocks=1, tokens_mlp_dim=4, channels_mlp_dim=4)
  shapes = jax.eval_shape(model.init, jax.random.key(0),
                          jnp.zeros((1, 16, 16, 3)))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype('f4'), shapes)
  path = str(tmp_path / 'w.safetensors')
  formats.save(path, params, 'timm')
  return model, params, path


@pytest.mark.parametrize('name,folded', (
    ('Mixer-B/16-imagenet1k-miil', True), ('Mixer-B/16-imagenet1k', False),
    ('Mixer-B/16-sam', False)))
def test_a_release_has_its_classes_loss_and_preprocessing(
    tmp_path, monkeypatch, name, folded):
  """Weights for pixels in [0, 1] are changed to give the same logits for
  pixels in [-1, 1]."""
  model, params, path = saved(tmp_path)
  asked = []
  monkeypatch.setattr(fetch, 'local', lambda url: asked.append(url) or path)
  network = pretrained.open_network(name)
  release = registry.find(name)
  assert asked == [release.url]
  assert network.name == name and network.card['data'] == release.data
  assert network.card['model']['name'] == 'Mixer-B/4'   # its patches
  assert len(network.card['class_names']) == 1000
  assert network.card['preprocessing'] == dict(
      crop='resmall', interpolation='bilinear_antialias' if folded else 'area')
  assert network.card['loss'] == (
      'sigmoid' if name.endswith('imagenet1k') else 'softmax')
  assert network.model.approximate_gelu is not folded
  model = model.clone(approximate_gelu=not folded)
  unit = np.random.default_rng(1).uniform(0, 1, (2, 16, 16, 3)).astype('f4')
  signed = 2 * unit - 1
  theirs = model.apply({'params': params}, unit if folded else signed)[0]
  ours = network.model.apply({'params': network.params}, signed)[0]
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
  other = model.apply({'params': params}, signed if folded else unit)[0]
  assert np.abs(other - theirs).max() > .1


def test_another_address_of_a_release_gets_the_card_of_the_release(
    tmp_path, monkeypatch):
  _, _, path = saved(tmp_path)
  asked = []
  monkeypatch.setattr(fetch, 'local', lambda url: asked.append(url) or path)
  address = 'hf://timm/mixer_b16_224.goog_in21k_ft_in1k'
  network = pretrained.open_network(address)
  assert asked == [address] and network.name == 'Mixer-B/16-imagenet1k'
  with pytest.raises(errors.UserError, match='--best'):
    networks.open_network(address, best=True)


def test_a_local_file_of_a_release_is_checked_by_the_checksum_in_its_name(
    tmp_path):
  path = tmp_path / 'jx_mixer_b16_224-76587d61.pth'
  path.write_bytes(b'another file')
  with pytest.raises(errors.UserError, match='SHA-256.*its name says 76587d61'):
    pretrained.open_network(str(path))


def test_no_release_needs_torch():
  """The first address of each, which is fetched by name, is not a .pth file."""
  assert not [r.name for r in registry.RELEASES if r.url.endswith('.pth')]
