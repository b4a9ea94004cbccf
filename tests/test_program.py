"""Programs of StableHLO and ONNX, read as others read them."""
import json
import os
import pathlib

import jax
import numpy as np
import pictures
import pytest
import small_networks

from mixer.images import eval_crops
from mixer.images import options
from mixer.pretrained import export
from mixer.pretrained import program

PHOTO = pictures.photos()[1][::2, ::2]   # 214 x 320


def run(path):
  """A function that runs an exported file, whose interface its card tells."""
  if path.endswith('.onnx'):
    import onnxruntime
    session = onnxruntime.InferenceSession(
        path, providers=['CPUExecutionProvider'])
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    card = json.loads(pathlib.Path(path + '.json').read_text())
    assert given.name == card['input']['name'] == 'images'
    assert output.name == card['output']['name']
    assert given.shape == card['input']['shape']
    assert output.shape == card['output']['shape']
    return lambda images: session.run([output.name], {'images': images})[0]
  made = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
  assert made.platforms == ('cpu', 'cuda', 'rocm', 'tpu')
  return lambda images: np.asarray(made.call(images))


def exported(network, path, **options):
  """(difference that the check found, function that runs the file, card)."""
  out = export.export(network, str(path), format=path.suffix[1:], **options)
  assert out['bytes'] == os.path.getsize(path)
  card = json.loads(pathlib.Path(f'{path}.json').read_text())
  return out['difference'], run(str(path)), card


@pytest.mark.parametrize('format', export.PROGRAMS)
@pytest.mark.parametrize('options', (
    dict(), dict(size=(16, 24), in_channels=1, approximate_gelu=False),
    dict(num_classes=0)))
def test_a_program_gives_the_logits_of_any_number_of_images(
    tmp_path, format, options):
  network = small_networks.make(**options)
  difference, call, card = exported(network, tmp_path / f'p.{format}')
  assert difference < 1e-5
  shape = 5, *network.image_size, network.model.in_channels
  x = np.random.default_rng(0).uniform(-1, 1, shape).astype('f4')
  wanted = small_networks.logits(network, x)
  for count in (5, 2):
    np.testing.assert_allclose(call(x[:count]), wanted[:count], atol=1e-5)
  assert card['input']['dtype'] == 'float32'
  assert card['input']['range'] == [-1, 1]
  assert card['output']['name'] == (
      'logits' if network.model.num_classes else 'pre_logits')
  assert {k: card[k] for k in network.card} == json.loads(
      json.dumps(network.card))


def test_a_program_for_all_platforms_has_the_form_of_products_for_gpus(
    tmp_path):
  exported(small_networks.make(), tmp_path / 'p.stablehlo')
  made = jax.export.deserialize(bytearray(
      (tmp_path / 'p.stablehlo').read_bytes()))
  assert 'batching_dims = [0] x [0], contracting_dims = [2] x [1]' in (
      made.mlir_module())


@pytest.mark.parametrize('format', export.PROGRAMS)
@pytest.mark.parametrize('loss', ('softmax', 'sigmoid'))
def test_a_program_with_preprocess_gives_probabilities_of_uint8_images(
    tmp_path, format, loss):
  network = small_networks.make(loss=loss, num_blocks=1)
  _, call, card = exported(network, tmp_path / f'p.{format}', preprocess=True)
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  got = call(images)
  np.testing.assert_allclose(
      got, small_networks.probabilities(network, images), atol=1e-5)
  assert (abs(got.sum(1) - 1) < 1e-5).all() == (loss == 'softmax')
  assert card['input'] == dict(
      name='images', dtype='uint8', shape=['B', 32, 32, 3], range=[0, 255],
      whole_photos=False)
  assert card['output'] == dict(name='probabilities', dtype='float32',
                                shape=['B', 5])


@pytest.mark.parametrize('format,crop,interpolation', (
    ('stablehlo', 'resmall', 'bilinear'), ('stablehlo', 'resize', 'bicubic'),
    ('onnx', 'resize_crop', 'area'), ('onnx', 'resmall', 'bilinear')))
def test_a_program_with_input_size_crops_photos_as_evaluation_does(
    tmp_path, format, crop, interpolation):
  network = small_networks.make(
      (32, 40), crop=crop, interpolation=interpolation, num_blocks=1)
  size = PHOTO.shape[:2]
  _, call, card = exported(network, tmp_path / f'p.{format}', preprocess=True,
                           input_size=size)
  photos = np.stack([PHOTO, PHOTO[:, ::-1], PHOTO[::-1]])
  shown = np.stack([eval_crops.view(
      photo, size=(32, 40), crop=crop, interpolation=interpolation)
                    for photo in photos])
  np.testing.assert_allclose(
      call(photos), small_networks.probabilities(network, shown), atol=1e-4)
  assert card['input']['shape'] == ['B', *size, 3]
  assert card['input']['whole_photos']


def test_the_crop_has_the_levels_of_evaluation_but_for_a_few_last_bits():
  for interpolation in options.INTERPOLATIONS:
    network = small_networks.make((48, 40), interpolation=interpolation)
    maps = program.crop_maps(network, PHOTO.shape[:2])
    got = np.asarray(program.crop(PHOTO[None].astype(np.float32), *maps)[0])
    wanted = eval_crops.view(PHOTO, size=(48, 40), crop='resmall',
                             interpolation=interpolation)
    assert np.abs(got - wanted).max() <= 1
    assert np.mean(got != wanted) < .01
