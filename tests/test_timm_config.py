"""Predictions of weights beside timm's config.json are those of timm's module."""
import json
import logging
import math

import jax
import numpy as np
import pytest
import small_networks

from mixer import pretrained
from mixer.core import errors
from mixer.core import trees
from mixer.pretrained import formats

IMAGENET = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
HALF = dict(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])


def warnings(caplog):
  return [record.getMessage() for record in caplog.records
          if record.levelno >= logging.WARNING]


def saved(path, config):
  """Writes random weights in timm's layout, and beside them what `config` is;
  returns the parameters."""
  made = small_networks.make(size=(16, 16))
  formats.save(str(path / 'model.safetensors'), made.params, 'timm')
  (path / 'config.json').write_text(
      config if isinstance(config, str) else json.dumps(config))
  return trees.flatten(made.params)


def by_hand(flat, images, mean, std):
  """Logits of timm's formula for uint8 images of two blocks, in float64."""
  norm = lambda x, name: (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-6) * flat[f'{name}/scale'] + (
          flat[f'{name}/bias'])
  dense = lambda x, name: x @ flat[f'{name}/kernel'] + flat[f'{name}/bias']
  gelu = lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / 2**.5))
  mlp = lambda x, name: dense(gelu(dense(x, f'{name}/Dense_0')),
                              f'{name}/Dense_1')
  pixels = (images / 255 - np.array(mean)) / np.array(std)
  patches = pixels.reshape(len(images), 2, 8, 2, 8, 3).transpose(
      0, 1, 3, 2, 4, 5).reshape(len(images), 4, -1)
  x = patches @ flat['stem/kernel'].reshape(-1, 16) + flat['stem/bias']
  for i in range(2):
    name = f'MixerBlock_{i}'
    x = x + mlp(norm(x, f'{name}/LayerNorm_0').swapaxes(1, 2),
                f'{name}/token_mixing').swapaxes(1, 2)
    x = x + mlp(norm(x, f'{name}/LayerNorm_1'), f'{name}/channel_mixing')
  return dense(norm(x, 'pre_head_layer_norm').mean(1), 'head')


@pytest.mark.parametrize('pixels', (IMAGENET, HALF))
@pytest.mark.parametrize('wrapped', (True, False))
def test_mean_and_std_are_those_of_timm(tmp_path, pixels, wrapped):
  config = dict(pixels, input_size=[3, 16, 16])
  flat = saved(tmp_path, dict(
      architecture='mixer_b16_224', pretrained_cfg=config) if wrapped else (
          config))
  network = pretrained.open_network(tmp_path / 'model.safetensors')
  images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
  with jax.default_matmul_precision('highest'):
    ours = small_networks.logits(
        network, (images.astype(np.float32) - 127.5) / 127.5)
  np.testing.assert_allclose(ours, by_hand(flat, images, **pixels), 1e-4, 1e-4)
  other = by_hand(flat, images, **(HALF if pixels is IMAGENET else IMAGENET))
  assert np.abs(ours - other).max() > .05


@pytest.mark.parametrize('config, crop, interpolation', (
    (dict(crop_pct=0.875, interpolation='bilinear'),
     'resmall', 'bilinear_antialias'),
    (dict(crop_pct=0.875, crop_mode='squash', interpolation='bicubic'),
     'resize_crop', 'bicubic'),
    (dict(crop_pct=1.0, crop_mode='squash'), 'resize', 'bilinear'),
    (HALF, 'resmall', 'bilinear'),
))
def test_the_crop_and_the_interpolation_are_those_of_timm(
    tmp_path, caplog, config, crop, interpolation):
  saved(tmp_path, config)
  card = pretrained.open_network(tmp_path / 'model.safetensors').card
  assert card['preprocessing'] == dict(crop=crop, interpolation=interpolation)
  assert not warnings(caplog)   # nothing that was left out


def test_what_cannot_be_represented_is_said_in_one_line(tmp_path, caplog):
  saved(tmp_path, dict(crop_pct=0.9, interpolation='lanczos',
                       label_names=['cat', 'dog']))
  card = pretrained.open_network(tmp_path / 'model.safetensors').card
  assert card['class_names'] is None
  line, = warnings(caplog)
  for word in ('0.9', "'lanczos'", 'bilinear_antialias', 'not 5 names'):
    assert word in line


def test_label_names_are_the_class_names(tmp_path):
  saved(tmp_path, dict(label_names=list('abcde'),
                       pretrained_cfg=dict(HALF, label_names=None)))
  card = pretrained.open_network(tmp_path / 'model.safetensors').card
  assert card['class_names'] == list('abcde')


def test_a_card_or_another_config_json_counts_for_more_or_nothing(tmp_path):
  """A card has all that config.json tells, and other projects have such a
  file too."""
  flat = saved(tmp_path, dict(architectures=['ViT'], hidden_size=3))
  path = tmp_path / 'model.safetensors'
  open_it = lambda: trees.flatten(pretrained.open_network(path).params)
  np.testing.assert_array_equal(open_it()['stem/kernel'], flat['stem/kernel'])
  (tmp_path / 'config.json').write_text(json.dumps(IMAGENET))
  assert np.abs(open_it()['stem/kernel'] - flat['stem/kernel']).max() > .1
  path.with_name('model.safetensors.json').write_text(
      json.dumps(small_networks.make(size=(16, 16)).card))
  np.testing.assert_array_equal(open_it()['stem/kernel'], flat['stem/kernel'])


@pytest.mark.parametrize('config, words', (
    ('{"mean": ', 'is not JSON'),
    (dict(mean=[0.5, 0.5, 0.5]), 'std is None'),
    (dict(HALF, std=[0.0, 1.0, 1.0]), r'std is \[0.0, 1.0, 1.0\], expected 3'),
    (dict(HALF, mean=[0.1, 0.2]), r'mean is \[0.1, 0.2\], expected 3 numbers'),
    (dict(HALF, input_size=224), 'input_size is 224'),
    (dict(HALF, input_size=[3, 32, 16]), 'its shapes and config.json suggest'),
))
def test_a_damaged_config_json_is_refused(tmp_path, config, words):
  saved(tmp_path, config)
  with pytest.raises(errors.UserError, match=words):
    pretrained.open_network(tmp_path / 'model.safetensors')
