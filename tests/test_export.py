"""mixer.export: every format is read as others read it, and compared."""
import json
import os
import pathlib
import subprocess
import sys

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from mixer import export as command
from mixer import models
from mixer import pretrained
from mixer.core import cards
from mixer.core import command as commands
from mixer.core import errors
from mixer.core import trees
from mixer.images import eval_crops
from mixer.models import catalog
from mixer.pretrained import export
from mixer.pretrained import formats
from mixer.pretrained import network as networks

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASSES = ('cat', 'dog', 'owl', 'bee', 'ant')
PHOTO = datasets.load_sample_images().images[1][::2, ::2]   # 214 x 320


def make(size=(32, 32), num_classes=5, loss='softmax', crop='resmall',
         interpolation='bilinear', **more):
  """A small network at random."""
  model = models.create('Mixer-S/8', num_classes=num_classes, **dict(dict(
      hidden_dim=16, num_blocks=2, tokens_mlp_dim=8, channels_mlp_dim=24),
                                                                  **more))
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(
      (1, *size, model.in_channels)))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: rng.normal(0, .3, x.shape).astype('f4'), shapes)
  card = cards.make(
      catalog.describe(model), image_size=size, data='photos', loss=loss,
      crop=crop, class_names=CLASSES if num_classes else None,
      interpolation=interpolation)
  return networks.Network(model, params, card, 'a network')


def saved(network, path):
  """As a file with its card, a --checkpoint."""
  formats.save(str(path), network.params)
  pathlib.Path(f'{path}.json').write_text(json.dumps(network.card))
  return path


def logits(network, images):
  return np.asarray(jax.jit(network.model.apply)(
      {'params': network.params}, images)[0])


def probabilities(network, images):
  """Of uint8 images of the network's size."""
  x = logits(network, (images.astype(np.float32) - 127.5) / 127.5)
  if network.card['loss'] == 'sigmoid':
    return 1 / (1 + np.exp(-x))
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def load(path):
  """images -> outputs, of an exported program."""
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


def exported_file(network, path, format, **options):
  out = export.export(network, str(path), format=format, **options)
  assert out['bytes'] == os.path.getsize(path)
  assert sorted(os.listdir(path.parent)) == [path.name, path.name + '.json']
  return out['difference']


@pytest.fixture
def called(monkeypatch, capsys):
  """Runs the command in this process; returns (exit code, stdout, stderr)."""
  def call(*args):
    monkeypatch.setattr(sys, 'argv', ['export', *map(str, args)])
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS.flags_by_module_dict()['mixer.export']:
      name.unparse()
    monkeypatch.setattr(os, '_exit', sys.exit)
    with pytest.raises(SystemExit) as end:
      commands.run(command.main)
    out = capsys.readouterr()
    return end.value.code or 0, out.out, out.err
  return call


@pytest.mark.parametrize('format,layout', (
    ('npz', 'official'), ('safetensors', 'official'), ('safetensors', 'timm')))
def test_weights(tmp_path, format, layout):
  """Bit by bit, and the card makes the same network of them."""
  network = make((16, 48), approximate_gelu=False, loss='sigmoid')
  path = tmp_path / f'w.{format}'
  assert exported_file(network, path, format, layout=layout) == 0
  again = pretrained.open_network(str(path))
  assert again.card == json.loads(json.dumps(network.card))
  assert again.card['class_names'] == list(CLASSES)
  before, after = map(trees.flatten, (network.params, again.params))
  assert before.keys() == after.keys()
  assert all(np.array_equal(before[k], after[k]) for k in before)
  x = np.ones((1, 16, 48, 3), np.float32)
  assert np.array_equal(logits(network, x), logits(again, x))


@pytest.mark.parametrize('format', export.PROGRAMS)
@pytest.mark.parametrize('options', (
    dict(), dict(size=(16, 24), in_channels=1, approximate_gelu=False),
    dict(num_classes=0)))
def test_programs(tmp_path, format, options):
  """Logits, of any number of images."""
  network = make(**options)
  path = tmp_path / f'p.{format}'
  assert exported_file(network, path, format) < 1e-5
  program = load(str(path))
  shape = 5, *network.image_size, network.model.in_channels
  x = np.random.default_rng(0).uniform(-1, 1, shape).astype('f4')
  wanted = logits(network, x)
  for count in (5, 2):
    np.testing.assert_allclose(program(x[:count]), wanted[:count], atol=1e-5)
  card = json.loads((tmp_path / f'p.{format}.json').read_text())
  assert card['input']['dtype'] == 'float32'
  assert card['input']['range'] == [-1, 1]
  assert card['output']['name'] == (
      'logits' if network.model.num_classes else 'pre_logits')
  assert {k: card[k] for k in network.card} == json.loads(
      json.dumps(network.card))


@pytest.mark.parametrize('format', export.PROGRAMS)
@pytest.mark.parametrize('loss', ('softmax', 'sigmoid'))
def test_programs_of_bytes(tmp_path, format, loss):
  network = make(loss=loss, num_blocks=1)
  path = tmp_path / f'p.{format}'
  exported_file(network, path, format, preprocess=True)
  program = load(str(path))
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  got = program(images)
  np.testing.assert_allclose(got, probabilities(network, images), atol=1e-5)
  assert (abs(got.sum(1) - 1) < 1e-5).all() == (loss == 'softmax')
  card = json.loads((tmp_path / f'p.{format}.json').read_text())
  assert card['input'] == dict(
      name='images', dtype='uint8', shape=['B', 32, 32, 3], range=[0, 255],
      whole_photos=False)
  assert card['output'] == dict(name='probabilities', dtype='float32',
                                shape=['B', 5])


@pytest.mark.parametrize('format,crop,interpolation', (
    ('stablehlo', 'resmall', 'bilinear'), ('stablehlo', 'resize', 'bicubic'),
    ('onnx', 'resize_crop', 'area'), ('onnx', 'resmall', 'bilinear')))
def test_programs_of_photos(tmp_path, format, crop, interpolation):
  """The crop inside is evaluation's."""
  network = make((32, 40), crop=crop, interpolation=interpolation,
                 num_blocks=1)
  path = tmp_path / f'p.{format}'
  size = PHOTO.shape[:2]
  exported_file(network, path, format, preprocess=True, input_size=size)
  photos = np.stack([PHOTO, PHOTO[:, ::-1], PHOTO[::-1]])
  shown = np.stack([eval_crops.view(
      photo, size=(32, 40), crop=crop, interpolation=interpolation)
                    for photo in photos])
  got = load(str(path))(photos)
  np.testing.assert_allclose(got, probabilities(network, shown), atol=1e-4)
  card = json.loads((tmp_path / f'p.{format}.json').read_text())
  assert card['input']['shape'] == ['B', *size, 3]
  assert card['input']['whole_photos']


def test_crops_are_whole_levels():
  """Of a photo, as it is shown, but for a few last bits."""
  for interpolation in eval_crops.INTERPOLATIONS:
    network = make((48, 40), interpolation=interpolation)
    maps = export._maps(network, PHOTO.shape[:2])
    got = np.asarray(export._shown(PHOTO[None].astype(np.float32), *maps)[0])
    wanted = eval_crops.view(PHOTO, size=(48, 40), crop='resmall',
                        interpolation=interpolation)
    assert np.abs(got - wanted).max() <= 1
    assert np.mean(got != wanted) < .01


@pytest.mark.parametrize('format', export.SUFFIXES)
def test_a_wrong_file_is_noticed(tmp_path, monkeypatch, format):
  """One parameter differs in what is written: no file is left, nor is one that
  was there replaced."""
  network = make()
  other = network.params['MixerBlock_1']['channel_mixing']['Dense_0']['bias']
  wrong = jax.tree.map(lambda x: x + .02 if x is other else x, network.params)
  path = tmp_path / f'w{export.SUFFIXES[format]}'
  path.write_text('older')
  if format in export.PROGRAMS:
    whole = export.function
    monkeypatch.setattr(export, 'function', lambda network, **options: whole(
        networks.Network(network.model, wrong, network.card, ''), **options))
  else:
    save = formats.save
    monkeypatch.setattr(formats, 'save', lambda path, params, layout: save(
        path, wrong, layout))
  with pytest.raises(errors.RunError, match='nothing was exported'):
    export.export(network, str(path), format=format)
  assert os.listdir(tmp_path) == [path.name]
  assert path.read_text() == 'older'


def test_a_wrong_crop_is_noticed(tmp_path, monkeypatch):
  network = make()
  crop = export._maps
  monkeypatch.setattr(export, '_maps', lambda network, size: [
      np.roll(side, 1, axis=1) for side in crop(network, size)])
  with pytest.raises(errors.RunError, match='crop'):
    export.export(network, str(tmp_path / 'p.stablehlo'), format='stablehlo',
                    preprocess=True, input_size=(60, 80))
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('preprocess', (False, True))
def test_what_is_no_number_differs(preprocess):
  for network in (make(), bad_head(np.inf)):
    with pytest.raises(errors.RunError, match='differs from .* by (inf|nan)'):
      export._compare(network, lambda x: np.full((len(x), 5), np.nan), 'p',
                        preprocess=preprocess, input_size=None)


def test_extremes_that_are_no_number_allow_nothing():
  network = bad_head(np.nan)
  with pytest.raises(errors.RunError, match='nothing was exported'):
    export._compare(network, lambda x: np.full((len(x), 5), np.nan), 'p',
                      preprocess=True, input_size=(36, 36))


def bad_head(value):
  network = make()
  head = dict(network.params['head'], bias=np.full(5, value, 'f4'))
  return networks.Network(network.model, dict(network.params, head=head),
                          network.card, 'a network')


def test_a_crop_whose_pixels_stay_in_doubt(tmp_path):
  """Thirds of whole levels are near to whole ones whatever the image."""
  network = make((24, 24), crop='resize', num_blocks=1)
  *_, low, high = export._images(network, 4, True, (8, 8))
  assert (low != high).any()
  exported_file(network, tmp_path / 'p.stablehlo', 'stablehlo', preprocess=True,
         input_size=(8, 8))


@pytest.mark.parametrize('size', ((36, 36), (72, 72), (60, 80), (33, 51)))
@pytest.mark.parametrize('interpolation', eval_crops.INTERPOLATIONS)
def test_crops_are_compared_where_no_pixel_is_in_doubt(size, interpolation):
  """So the tolerance is the same as without a crop, and last bits are no
  matter."""
  network = make(interpolation=interpolation)
  images, shown, low, high = export._images(network, 4, True, size)
  np.testing.assert_array_equal(low, high)
  maps = export._maps(network, size)
  got = np.asarray(jax.jit(export._shown)(images.astype('f4'), *maps))
  np.testing.assert_array_equal((got - 127.5) / 127.5, shown)


def test_too_large_for_the_format(tmp_path, monkeypatch):
  monkeypatch.setattr(export, '_MOST_BYTES', 1000)
  for format in export.PROGRAMS:
    with pytest.raises(errors.UserError, match='as safetensors'):
      export.export(make(), str(tmp_path / f'p.{format}'), format=format)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('format', export.SUFFIXES)
def test_the_command(tmp_path, called, format):
  """What it prints is short; of ONNX, whose library prints much, as a process
  of its own."""
  network = make()
  weights = saved(network, tmp_path / 'given.npz')
  path = str(tmp_path / f'out.{format}')
  args = f'--checkpoint={weights}', f'--format={format}', f'--out={path}'
  if format == 'onnx':
    out = subprocess.run([sys.executable, '-m', 'mixer.export', *args],
                         cwd=ROOT, capture_output=True, text=True)
    code, out, err = out.returncode, out.stdout, out.stderr
  else:
    code, out, err = called(*args)
  assert (code, err) == (0, '')
  first, second, third = out.splitlines()
  assert first.startswith(f'{weights}: Mixer-S/8, hidden_dim ')
  assert first.endswith('for 32x32 images, 5 classes')
  assert second.startswith(f'{path}: {format}, 0.0 MiB; read back, ')
  assert third == f'{path}.json: its card'
  if format in export.PROGRAMS:
    assert 'it differs by at most' in second
    x = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype('f4')
    np.testing.assert_allclose(load(path)(x), logits(network, x), atol=1e-5)
  else:
    assert 'every bit is the same' in second
    again = pretrained.open_network(path)
    assert again.card['class_names'] == list(CLASSES)


@pytest.mark.parametrize('tanh', (True, False))
def test_what_timm_will_compute_is_said(tmp_path, called, tanh):
  weights = saved(make(approximate_gelu=tanh), tmp_path / 'given.npz')
  code, out, _ = called(
      f'--checkpoint={weights}', '--format=safetensors', '--layout=timm',
      f'--out={tmp_path}/out.safetensors')
  assert code == 0
  last = out.splitlines()[-1]
  assert last.startswith('trained with the ' + ('tanh' if tanh else 'exact'))
  assert ('1e-3' in last) == tanh


@pytest.mark.parametrize('args,said', (
    (['--format=npz', '--out=DIR/w.onnx'], 'ends in .npz'),
    (['--format=onnx', '--out=DIR/w'], 'ends in .onnx'),
    (['--format=stablehlo', '--out=DIR/w.onnx'], 'ends in .stablehlo'),
    (['--format=npz', '--out=DIR/w.npz', '--layout=timm'], '--layout: timm'),
    (['--format=onnx', '--out=DIR/w.onnx', '--layout=timm'], '--layout: timm'),
    (['--format=npz', '--out=DIR/w.npz', '--preprocess'], '--preprocess'),
    (['--format=onnx', '--out=DIR/w.onnx', '--input_size=9x9'],
     'goes with --preprocess'),
    (['--format=onnx', '--out=DIR/w.onnx', '--preprocess', '--input_size=9'],
     'HEIGHTxWIDTH'),
    (['--format=npz', '--out=DIR/none/w.npz'], 'make it first'),
    (['--format=npz', '--out=gs://b/w.npz'], 'local folder'),
    (['--format=npz', '--out=/proc/w.npz'], 'cannot be written'),
    (['--format=h5', '--out=DIR/w.h5'], '--format'),
    (['--format=npz'], '--out'),
    (['--format=npz', '--out=DIR/w.npz', '--best'], '--best is for a workdir'),
))
def test_mistakes(tmp_path, called, args, said):
  weights = saved(make(), tmp_path / 'given.npz')
  before = sorted(os.listdir(tmp_path))
  code, _, err = called(f'--checkpoint={weights}', *(
      arg.replace('DIR', str(tmp_path)) for arg in args))
  line, = err.splitlines()
  assert code == 2 and line.startswith('error: ') and said in line
  assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize('format,library', (
    ('onnx', 'jax2onnx'), ('onnx', 'onnxruntime'),
    ('safetensors', 'safetensors')))
def test_a_library_that_is_missing(tmp_path, called, monkeypatch, format,
                                   library):
  weights = saved(make(), tmp_path / 'given.npz')
  monkeypatch.setitem(sys.modules, library, None)
  code, _, err = called(f'--checkpoint={weights}', f'--format={format}',
                        f'--out={tmp_path}/w.{format}')
  line, = err.splitlines()
  assert code == 2 and f'needs {library}' in line and "'.[export]'" in line


def test_a_check_that_fails_ends_in_1(tmp_path, called, monkeypatch):
  weights = saved(make(), tmp_path / 'given.npz')
  monkeypatch.setattr(export, 'TOLERANCE', -1)
  code, _, err = called(f'--checkpoint={weights}', '--format=stablehlo',
                        f'--out={tmp_path}/w.stablehlo')
  assert code == 1 and 'differs from' in err
  assert sorted(os.listdir(tmp_path)) == ['given.npz', 'given.npz.json']
