"""The check of exported files: what it compares, and what it refuses."""
import os

import jax
import numpy as np
import pytest
import small_networks

from mixer.core import errors
from mixer.images import options
from mixer.pretrained import export
from mixer.pretrained import export_check
from mixer.pretrained import formats
from mixer.pretrained import network as networks
from mixer.pretrained import program


def with_head_bias(value):
  """A network whose head has a bias of this value."""
  network = small_networks.make()
  head = dict(network.params['head'], bias=np.full(5, value, 'f4'))
  return networks.Network(network.model, dict(network.params, head=head),
                          network.card, 'a network')


def not_numbers(images):
  return np.full((len(images), 5), np.nan)


@pytest.mark.parametrize('format,more', (
    *((format, {}) for format in export.SUFFIXES),
    ('onnx', dict(precision='float16')), ('onnx', dict(precision='int8'))))
def test_a_wrong_parameter_in_the_file_is_noticed(
    tmp_path, monkeypatch, format, more):
  """No file is left, and one that was there stays."""
  network = small_networks.make()
  other = network.params['MixerBlock_1']['channel_mixing']['Dense_0']['bias']
  wrong = jax.tree.map(lambda x: x + .02 if x is other else x, network.params)
  path = tmp_path / f'w{export.SUFFIXES[format]}'
  path.write_text('older')
  if format in export.PROGRAMS:
    whole = program.function
    monkeypatch.setattr(program, 'function', lambda network, *args, **more: (
        whole(networks.Network(network.model, wrong, network.card, ''), *args,
              **more)))
  else:
    save = formats.save
    monkeypatch.setattr(formats, 'save', lambda path, params, layout: save(
        path, wrong, layout))
  with pytest.raises(errors.RunError, match='nothing was exported'):
    export.export(network, str(path), format=format, **more)
  assert os.listdir(tmp_path) == [path.name]
  assert path.read_text() == 'older'


def test_a_wrong_crop_is_noticed(tmp_path, monkeypatch):
  network = small_networks.make()
  maps = program.crop_maps
  monkeypatch.setattr(program, 'crop_maps', lambda network, size: [
      np.roll(side, 1, axis=1) for side in maps(network, size)])
  with pytest.raises(errors.RunError, match='crop'):
    export.export(network, str(tmp_path / 'p.stablehlo'), format='stablehlo',
                  preprocess=True, input_size=(60, 80))
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('preprocess', (False, True))
def test_outputs_that_are_not_numbers_are_refused(preprocess):
  for network in (small_networks.make(), with_head_bias(np.inf)):
    with pytest.raises(errors.RunError, match='differs from .* by (inf|nan)'):
      export_check.outputs(network, not_numbers, 'p',
                           program.Options(preprocess))


def test_doubtful_pixels_do_not_excuse_outputs_that_are_not_numbers():
  """Not even if the network's own outputs are not numbers."""
  network = with_head_bias(np.nan)
  with pytest.raises(errors.RunError, match='nothing was exported'):
    export_check.outputs(network, not_numbers, 'p',
                         program.Options(True, (36, 36)))


def test_a_crop_with_weights_of_thirds_is_checked_with_its_doubtful_pixels(
    tmp_path):
  """Thirds of levels are near to whole levels whatever the image."""
  network = small_networks.make((24, 24), crop='resize', num_blocks=1)
  *_, low, high = export_check._images(
      network, 4, program.Options(True, (8, 8)))
  assert (low != high).any()
  out = export.export(network, str(tmp_path / 'p.stablehlo'),
                      format='stablehlo', preprocess=True, input_size=(8, 8))
  assert out['difference'] < 1e-3


@pytest.mark.parametrize('size', ((36, 36), (72, 72), (60, 80), (33, 51)))
@pytest.mark.parametrize('interpolation', options.INTERPOLATIONS)
def test_images_of_the_check_have_no_doubtful_pixel(size, interpolation):
  """So the tolerance is the same as without a crop."""
  network = small_networks.make(interpolation=interpolation)
  images, shown, low, high = export_check._images(
      network, 4, program.Options(True, size))
  np.testing.assert_array_equal(low, high)
  maps = program.crop_maps(network, size)
  got = np.asarray(jax.jit(program.crop)(images.astype('f4'), *maps))
  np.testing.assert_array_equal((got - 127.5) / 127.5, shown)
