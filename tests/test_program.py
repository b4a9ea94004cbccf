"""Programs of StableHLO and ONNX, read as others read them."""
import json
import os
import pathlib

import jax
import numpy as np
import pictures
import pytest
import small_networks

from mixer.core import errors
from mixer.images import eval_crops
from mixer.images import options
from mixer.pretrained import export
from mixer.pretrained import export_check
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
      name='images', dtype='uint8', shape=['B', 32, 32, 3], layout='nhwc',
      range=[0, 255], whole_photos=False)
  assert card['output'] == dict(name='probabilities', dtype='float32',
                                shape=['B', 5])


@pytest.mark.parametrize('format', export.PROGRAMS)
@pytest.mark.parametrize('preprocess', (False, True))
def test_a_program_of_layout_nchw_takes_channels_first(
    tmp_path, format, preprocess):
  network = small_networks.make((16, 24), num_blocks=1)
  _, call, card = exported(network, tmp_path / f'p.{format}', layout='nchw',
                           preprocess=preprocess)
  assert card['input']['shape'] == ['B', 3, 16, 24]
  assert card['input']['layout'] == 'nchw'
  images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
  wanted = small_networks.probabilities(network, images)
  if not preprocess:
    images = (images.astype('f4') - 127.5) / 127.5
    wanted = small_networks.logits(network, images)
  np.testing.assert_allclose(call(images.transpose(0, 3, 1, 2)), wanted,
                             atol=1e-5)


@pytest.mark.parametrize('opset,ir', ((None, 9), (21, 10), (24, 10)))
def test_an_onnx_file_has_the_operators_that_were_asked_for(
    tmp_path, opset, ir):
  """By default those that ONNX Runtime reads since 1.17."""
  import onnx
  exported(small_networks.make(num_blocks=1), tmp_path / 'p.onnx',
           **({} if opset is None else dict(opset=opset)))
  made = onnx.load(tmp_path / 'p.onnx')
  onnx.checker.check_model(made, full_check=True)
  version, = (one.version for one in made.opset_import)
  assert (version, made.ir_version) == (opset or 20, ir)


@pytest.mark.parametrize('precision', ('float16', 'int8'))
@pytest.mark.parametrize('options', (
    dict(), dict(preprocess=True, input_size=(60, 80))))
def test_a_smaller_onnx_file_takes_and_gives_the_same(
    tmp_path, precision, options):
  """Weights have the precision, images and results keep their dtypes, and the
  crop its whole levels."""
  import onnx
  network = small_networks.make(hidden_dim=48, tokens_mlp_dim=32,
                                channels_mlp_dim=96)
  path = tmp_path / 'p.onnx'
  before = export.export(network, str(path), format='onnx', **options)['bytes']
  same = program.open_onnx(str(path))
  small, call, card = exported(network, path, precision=precision, **options)
  assert card['precision'] == precision
  made = onnx.load(path)
  onnx.checker.check_model(made, full_check=True)
  assert made.ir_version == 9
  held = {kind: sum(int(np.prod(x.dims)) for x in made.graph.initializer
                    if x.data_type == kind) for kind in (2, 10)}   # UINT8, half
  kernels = [x for x in jax.tree.leaves(network.params) if x.ndim == 2]
  if precision == 'int8':
    assert held[2] >= sum(x.size for x in kernels)
  else:
    assert held[10] == sum(x.size for x in jax.tree.leaves(network.params))
  assert path.stat().st_size < before
  shape = 4, *(options.get('input_size') or network.image_size), 3
  rng = np.random.default_rng(1)
  x = (rng.integers(0, 256, shape, np.uint8) if options else
       rng.uniform(-1, 1, shape).astype('f4'))
  got, wanted = call(x), same(x)
  assert got.dtype == np.float32
  limit = export_check.tolerance(network, 'float16')
  assert limit < .01
  off = np.abs(got - wanted).max() / max(1, np.abs(wanted).max())
  assert 0 < off < (limit if precision == 'float16' else .05)
  assert small < (limit if precision == 'float16' else .05)


def test_a_bit_of_the_paper_is_exported(tmp_path):
  """Its stem has a pool with padding, and its constants have many readers."""
  network = small_networks.make((40, 33), name='BiT-R14x1', hidden_dim=8)
  assert network.model.stem == 'imagenet'
  off, call, _ = exported(network, tmp_path / 'p.onnx', precision='float16',
                          preprocess=True)
  assert off < .01
  images = np.random.default_rng(0).integers(0, 256, (3, 40, 33, 3), np.uint8)
  np.testing.assert_allclose(
      call(images), small_networks.probabilities(network, images), atol=.01)


def test_float16_without_room_for_the_activations_is_refused(tmp_path):
  """Values above 65,504 become infinite."""
  network = small_networks.make(num_blocks=1)
  stem = dict(network.params['stem'], bias=np.full(16, 1e5, 'f4'))
  network = type(network)(network.model, dict(network.params, stem=stem),
                          network.card, 'a network')
  with pytest.raises(errors.RunError, match='nothing was exported'):
    export.export(network, str(tmp_path / 'p.onnx'), format='onnx',
                  precision='float16')
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('precision', ('float32', 'int8'))
def test_an_onnx_file_brings_its_card(tmp_path, precision):
  """Strangers read class names and preprocessing from the file itself."""
  import onnxruntime
  path = tmp_path / 'p.onnx'
  network = small_networks.make(num_blocks=1)
  _, _, card = exported(network, path, precision=precision)
  found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
  assert json.loads(found['class_names']) == list(small_networks.CLASSES)
  assert json.loads(found['image_size']) == [32, 32]
  assert found['network'] == network.title
  assert found['loss'] == 'softmax'
  given = json.loads(found['input'])
  assert given == card['input']
  assert given['mean'] == given['std'] == [.5, .5, .5]


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
