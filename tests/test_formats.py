"""Files of weights: they are read back exactly, and other files are refused."""
import hashlib
import json
import os
import pathlib
import pickle
import platform
import re
import subprocess
import sys
import urllib.request

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors
import small_networks

from mixer import models
from mixer import pretrained
from mixer.core import errors
from mixer.core import trees
from mixer.models import catalog
from mixer.pretrained import export
from mixer.pretrained import formats

ROOT = pathlib.Path(__file__).resolve().parent.parent
TORCH_PINS = ROOT / 'launch' / 'requirements-torch.txt'
SMALL = dict(patch_size=8, hidden_dim=16, num_blocks=2, tokens_mlp_dim=8,
             channels_mlp_dim=24)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype('f4')
# The logits that google-research/vision_transformer's own module gives with the
# parameters of `golden()`; made by
#   from vit_jax import models_mixer as m
#   m.MlpMixer(types.SimpleNamespace(size=(8, 8)), num_classes=5, num_blocks=2,
#              hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24
#              ).apply({'params': params}, images, train=False)
GOLDEN = [[-0.3037858009338379, -0.2846144139766693, 0.10805097222328186,
           0.24072536826133728, 0.10109949111938477],
          [-0.08553158491849899, -0.4184933602809906, 0.10609441995620728,
           0.16740617156028748, 0.01619867980480194]]


def make(size=32, num_classes=5, **more):
  """(a small model, {name: shape} of its parameters)."""
  model = models.create('Mixer-S/8', num_classes=num_classes,
                        **dict(SMALL, **more))
  height, width = (size, size) if isinstance(size, int) else size
  images = jnp.zeros((1, height, width, model.in_channels))
  return model, trees.flatten(
      jax.eval_shape(model.init, jax.random.key(0), images)['params'])


def golden(**more):
  """(model, {name: array}, images), random values drawn in order of names."""
  model, shapes = make(**more)
  rng = np.random.default_rng(0)
  flat = {name: rng.normal(0, .3, shapes[name].shape).astype(np.float32)
          for name in sorted(shapes)}
  return model, flat, rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


def logits(model, params, images=IMAGES):
  return np.asarray(model.apply({'params': params}, images)[0])


def assert_same(a, b):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype == np.float32
    assert np.array_equal(a[name].view(np.uint32), b[name].view(np.uint32))


@pytest.fixture
def saved(tmp_path):
  """A function that saves {name: array} in a named file and returns its path."""
  def save(name, flat):
    path = str(tmp_path / name)
    if name.endswith('.npz'):
      np.savez(path, **flat)
    else:
      safetensors.save_file(flat, path)
    return path
  return save


def refused(path):
  """The error for a file, one line that names it."""
  with pytest.raises(errors.UserError) as error:
    pretrained.open_network(path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('name,layout', (
    ('w.npz', 'official'), ('w.safetensors', 'official'),
    ('w.safetensors', 'timm')))
@pytest.mark.parametrize('num_classes', (5, 0))
def test_saved_weights_are_read_back_exactly(
    tmp_path, name, layout, num_classes):
  _, flat, _ = golden(num_classes=num_classes)
  flat['stem/bias'][:3] = np.nan, -0.0, np.inf
  params = trees.unflatten(flat)
  path = str(tmp_path / name)
  formats.save(path, params, layout)
  assert_same(formats.load(path), params)
  assert os.listdir(tmp_path) == [name]


def test_names_and_axes_are_those_of_each_layout(tmp_path):
  """The official code's and timm's."""
  _, flat, _ = golden()
  formats.save(str(tmp_path / 'w.npz'), trees.unflatten(flat))
  with np.load(tmp_path / 'w.npz') as f:
    assert set(f.files) == set(flat)
    assert len(f.files) == 6 + 12 * 2
  path = str(tmp_path / 'w.safetensors')
  formats.save(path, trees.unflatten(flat), 'timm')
  theirs = safetensors.load_file(path)
  assert {k: v.shape for k, v in theirs.items() if 'blocks.1' not in k} == {
      'stem.proj.weight': (16, 3, 8, 8), 'stem.proj.bias': (16,),
      'blocks.0.norm1.weight': (16,), 'blocks.0.norm1.bias': (16,),
      'blocks.0.mlp_tokens.fc1.weight': (8, 16),
      'blocks.0.mlp_tokens.fc1.bias': (8,),
      'blocks.0.mlp_tokens.fc2.weight': (16, 8),
      'blocks.0.mlp_tokens.fc2.bias': (16,),
      'blocks.0.norm2.weight': (16,), 'blocks.0.norm2.bias': (16,),
      'blocks.0.mlp_channels.fc1.weight': (24, 16),
      'blocks.0.mlp_channels.fc1.bias': (24,),
      'blocks.0.mlp_channels.fc2.weight': (16, 24),
      'blocks.0.mlp_channels.fc2.bias': (16,),
      'norm.weight': (16,), 'norm.bias': (16,),
      'head.weight': (5, 16), 'head.bias': (5,)}
  assert theirs['stem.proj.weight'][3, 2, 5, 6] == flat['stem/kernel'][
      5, 6, 2, 3]
  assert theirs['blocks.1.norm2.weight'][4] == flat[
      'MixerBlock_1/LayerNorm_1/scale'][4]


@pytest.mark.parametrize('inside', ('', 'params/', 'opt/target/'))
def test_official_weights_give_the_official_logits(saved, inside):
  """As published, and as in a training checkpoint of big_vision."""
  _, flat, images = golden()
  rest = {'opt/state/step': np.int32(7), 'chrono': np.zeros(2)}
  path = saved('w.npz', {inside + k: v for k, v in flat.items()}
               | (rest if inside else {}))
  network = pretrained.open_network(path)
  np.testing.assert_allclose(logits(network.model, network.params, images),
                             GOLDEN, atol=1e-5)


def test_the_layout_from_before_linen_is_translated(saved):
  """In it modules are numbered across classes, and the weights of MLPs have
  axes of one element."""
  _, flat, images = golden()
  old = {}
  for name, value in flat.items():
    name = name.replace('MixerBlock_', 'Mixer/encoderblock_')
    name = name.replace('LayerNorm_1', 'LayerNorm_2')
    if 'mixing' in name:
      name = re.sub(r'_mixing/Dense_(\d)/(\w+)', lambda m: (
          f'_mixing_phase_0/{m[2]}{int(m[1]) + 1}'), name)
      value = value[None] if 'kernel' in name else value[None, None]
    name = name.replace('pre_head_layer_norm', 'Mixer/encoder_norm')
    old[name.replace('stem/', 'embedding/')] = value
  assert 'Mixer/encoderblock_0/token_mixing_phase_0/kernel1' in old
  assert 'Mixer/encoderblock_1/LayerNorm_2/scale' in old
  network = pretrained.open_network(saved('w.npz', old))
  assert_same(network.params, trees.unflatten(flat))
  np.testing.assert_allclose(logits(network.model, network.params, images),
                             GOLDEN, atol=1e-5)
  del old['Mixer/encoder_norm/scale'], old['Mixer/encoder_norm/bias']
  assert 'encoder_norm' in refused(saved('cut.npz', old))


@pytest.mark.parametrize('dtype,tolerance', (
    (np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2), (np.float64, 0)))
def test_other_floating_point_dtypes_are_read_as_float32(
    saved, dtype, tolerance):
  _, flat, _ = golden()
  given = {k: v.astype(dtype) for k, v in flat.items()}
  if dtype == np.float64:
    path = saved('w.npz', given)
  else:
    path = saved('w.safetensors', given)
  assert_same(formats.load(path), trees.unflatten(
      {k: v.astype(np.float32) for k, v in given.items()}))
  np.testing.assert_allclose(formats.load(path)['stem']['kernel'],
                             flat['stem/kernel'], rtol=tolerance)


@pytest.mark.parametrize('size,more', (
    (32, {}), (24, dict(num_blocks=11, hidden_dim=12)), (32, dict(
        patch_size=(8, 4), tokens_mlp_dim=9, size=(32, 16))),
    (16, dict(num_classes=0, in_channels=1)),
    (8, dict(num_blocks=1, channels_mlp_dim=7, in_channels=4))))
def test_the_model_is_inferred_from_the_shapes_of_weights(saved, size, more):
  more = dict(more)
  size = more.pop('size', (size, size))
  model, shapes = make(size, **more)
  rng = np.random.default_rng(0)
  network = pretrained.open_network(saved('w.npz', {
      k: rng.normal(size=v.shape).astype('f4') for k, v in shapes.items()}))
  assert network.image_size == size
  for key in ('patch_size', 'hidden_dim', 'num_blocks', 'tokens_mlp_dim',
              'channels_mlp_dim', 'num_classes', 'in_channels'):
    assert getattr(network.model, key) == getattr(model, key), key
  assert network.card['class_names'] is None
  assert network.card['preprocessing'] == dict(crop='resmall',
                                               interpolation='bilinear')


def test_weights_for_images_that_are_not_square_need_their_size(saved):
  _, shapes = make((16, 48))
  path = saved('w.npz', {k: np.ones(v.shape, 'f4') for k, v in shapes.items()})
  assert 'card beside the file' in refused(path)
  assert '12 tokens' in refused(path)
  network = pretrained.open_network(path, from_size=(16, 48))
  assert network.image_size == (16, 48)
  with pytest.raises(errors.UserError, match='token_mixing'):
    pretrained.open_network(path, from_size=(16, 32))


def test_empty_tensors_are_refused(saved):
  _, shapes = make((16, 16))
  for name in ('stem/kernel', 'MixerBlock_0/token_mixing/Dense_0/kernel'):
    path = saved('w.npz', {k: np.ones(
        v.shape if k != name else (0, *v.shape[1:]), 'f4')
                           for k, v in shapes.items()})
    assert f'is not a Mixer: {name!r} is [0, ' in refused(path)


def test_a_card_beside_a_file_is_read_and_checked(saved):
  model, flat, _ = golden(approximate_gelu=False)
  path = saved('w.npz', flat)
  card = catalog.card(
      catalog.describe(model), image_size=(32, 32), class_names='abcde',
      data='letters', loss='sigmoid', crop='resize', interpolation='area')
  pathlib.Path(path + '.json').write_text(json.dumps(card))
  network = pretrained.open_network(path)
  assert network.card == json.loads(json.dumps(card))
  assert not network.model.approximate_gelu
  pathlib.Path(path + '.json').write_text(json.dumps(dict(card, model=dict(
      card['model'], hidden_dim=32))))
  assert 'its card says' in refused(path) and '/bias: (16,)' in refused(path)
  for key, value in (
      ('image_size', [0, 0]), ('class_names', 5), ('class_names', [1, 2]),
      ('class_names', list('abcdef')), ('model', 'Mixer'),
      ('model', dict(card['model'], num_classes='five')),
      ('model', dict(card['model'], name='Mixer-X/4')),
      ('model', dict(card['model'], widht=3))):
    pathlib.Path(path + '.json').write_text(json.dumps({**card, key: value}))
    assert key in refused(path) and 'w.npz' in refused(path), (key, value)
  pathlib.Path(path + '.json').write_text('{"model": 1}')
  assert 'lacks image_size' in refused(path)
  pathlib.Path(path + '.json').write_text('nonsense')
  assert "is not a network's card" in refused(path)


@pytest.mark.parametrize('name', ('w.npz', 'w.safetensors'))
@pytest.mark.parametrize('share', (0, .001, .01, .3, .9, .999))
def test_a_file_that_is_cut_short_is_refused(saved, name, share):
  _, flat, _ = golden()
  path = saved(name, flat)
  data = pathlib.Path(path).read_bytes()
  pathlib.Path(path).write_bytes(data[:int(share * len(data))])
  assert 'cannot be read as ' + name[2:] in refused(path)


def test_a_flipped_bit_is_noticed(saved):
  """Anywhere in npz, which has a checksum for each array; in safetensors only
  in the header."""
  _, flat, _ = golden()
  for name, what in (('w.npz', flat['stem/kernel'].tobytes()[:64]),
                     ('w.npz', flat['head/bias'].tobytes()),
                     ('w.safetensors', b'{"')):
    path = saved(name, flat)
    data = bytearray(pathlib.Path(path).read_bytes())
    data[data.index(what) + 1] ^= 0xff
    pathlib.Path(path).write_bytes(data)
    assert 'cannot be read' in refused(path)


class Trap:
  """An object that creates a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, 'w')


def test_pickled_objects_are_refused_without_running_them(tmp_path):
  sprung = tmp_path / 'sprung'
  trap = Trap(str(sprung))
  _, flat, _ = golden()
  inside = np.empty(1, object)
  inside[0] = trap
  np.savez(tmp_path / 'inside.npz', **dict(flat, **{'stem/bias': inside}))
  (tmp_path / 'pickle.npz').write_bytes(pickle.dumps(trap))
  (tmp_path / 'pickle.safetensors').write_bytes(pickle.dumps(trap))
  for name in ('inside.npz', 'pickle.npz', 'pickle.safetensors'):
    line = refused(str(tmp_path / name))
    if name.endswith('.npz'):
      assert 'pickled objects, which can run any code' in line
  assert not sprung.exists()
  pickle.loads((tmp_path / 'pickle.npz').read_bytes())
  assert sprung.exists()   # the trap works


@pytest.mark.parametrize('change,said', (
    (lambda flat: flat.update({'stem/bias': np.arange(16)}),
     "'stem/bias' has dtype int64"),
    (lambda flat: flat.update({'stem/bias': np.array(['a'] * 16)}),
     "'stem/bias' has dtype <U1"),
    (lambda flat: flat.update({'stem/bias': np.zeros(16, complex)}),
     "'stem/bias' has dtype complex128"),
    (lambda flat: flat.pop('MixerBlock_1/LayerNorm_0/scale'),
     'MixerBlock_1/LayerNorm_0/scale: missing, the model has (16,)'),
    (lambda flat: flat.update({'extra/kernel': np.zeros(3)}),
     'extra/kernel: (3,), the model has none'),
    (lambda flat: flat.update({'head/bias': np.zeros(6)}),
     'head/bias: (6,), the model has (5,)'),
    (lambda flat: flat.update({'stem/kernel': np.zeros((8, 8, 3))}),
     "'stem/kernel' is [8, 8, 3], expected a tensor of 4 axes"),
    (lambda flat: flat.update({'head': np.zeros(6)}), 'head: (6,)'),
    (lambda flat: [flat.pop(k) for k in list(flat) if 'Block_0' in k] and None,
     "not a Mixer: 'MixerBlock_0/token_mixing/Dense_0/kernel' is missing"),
    (lambda flat: flat.pop('MixerBlock_0/token_mixing/Dense_0/kernel'),
     "'MixerBlock_0/token_mixing/Dense_0/kernel' is missing"),
    (lambda flat: [flat.pop(k) for k in list(flat) if 'Block_1' in k] and None,
     None)))
def test_every_parameter_that_does_not_fit_is_named(saved, change, said):
  _, flat, _ = golden()
  change(flat)
  path = saved('w.npz', flat)
  if said is None:   # a network of one block
    assert pretrained.open_network(path).model.num_blocks == 1
  else:
    assert said in refused(path)


def test_other_networks_are_refused(saved, tmp_path):
  convnet = {'stages_0/blocks_0/norm/scale': np.ones(8),
             'head/bias': np.zeros(8), 'stem/kernel': np.zeros((4, 4, 3, 8))}
  line = refused(saved('convnet.npz', convnet))
  assert 'no known network (Mixer, ViT, BiT) has such parameters' in line
  assert 'head/bias, stages_0/blocks_0/norm/scale' in line
  _, flat, _ = golden()
  theirs = formats.to_timm(trees.unflatten(flat))
  line = refused(saved('w.safetensors', dict(theirs, cls_token=np.zeros(3))))
  assert "'cls_token' is not a parameter of timm's Mixer" in line
  assert 'no such file' in refused(str(tmp_path / 'none.npz'))
  (tmp_path / 'w.h5').write_text('')
  assert '.npz, .safetensors' in refused(str(tmp_path / 'w.h5'))
  with pytest.raises(errors.UserError, match='--best'):
    pretrained.open_network(saved('w.npz', flat), best=True)


def test_paths_that_cannot_be_saved_to_are_refused(tmp_path):
  params = trees.unflatten(golden()[1])
  for name, layout in (('w.npz', 'timm'), ('w.pth', 'official'),
                       ('w.bin', 'timm'), ('none/w.npz', 'official')):
    path = str(tmp_path / name)
    with pytest.raises(errors.UserError, match=re.escape(path)):
      formats.save(path, params, layout)
  assert os.listdir(tmp_path) == []


def test_a_pth_file_needs_torch(tmp_path, monkeypatch):
  (tmp_path / 'w.pth').write_bytes(b'')
  monkeypatch.setitem(sys.modules, 'torch', None)
  line = refused(str(tmp_path / 'w.pth'))
  assert 'needs torch' in line and 'pip install torch' in line


# Runs in an environment with torch and timm, and prints one JSON object.
_TORCH = r'''
import json, sys
import numpy as np
import torch
try:
  import torchvision
except RuntimeError:   # a build for CUDA, beside torch for CPUs: timm's Mixer
  # needs none of its operators, only their names
  for name in [m for m in sys.modules if m.startswith('torchvision')]:
    del sys.modules[name]
  kept = torch.library.Library('torchvision', 'DEF')
  for name in ('nms', 'qnms'):
    kept.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold)'
                ' -> Tensor')
import timm
from safetensors import torch as safetensors
from timm.models import mlp_mixer

where = sys.argv[1]
torch.manual_seed(0)
images = torch.from_numpy(np.load(f'{where}/images.npy').transpose(0, 3, 1, 2))
make = lambda: mlp_mixer.MlpMixer(
    num_classes=5, img_size=32, patch_size=8, num_blocks=2, embed_dim=16,
    mlp_ratio=(.5, 1.5)).eval()
model = make()
model.load_state_dict(safetensors.load_file(f'{where}/ours.safetensors'))
out = dict(ours=model(images).tolist())
model = make()
with torch.no_grad():
  for value in model.parameters():
    value.add_(torch.randn_like(value) * .3)
out['theirs'] = model(images).tolist()
state = {k: v.contiguous() for k, v in model.state_dict().items()}
safetensors.save_file(state, f'{where}/theirs.safetensors')
torch.save(state, f'{where}/theirs.pth')
torch.save(dict(state_dict={'module.' + k: v.half() for k, v in state.items()}),
           f'{where}/half.pth')
torch.save(model, f'{where}/whole.pth')
print(json.dumps(out))
'''


def builds_for_cpus():
  """pip's arguments for torch without CUDA, whose wheel is 2 GB smaller; none
  if that index cannot be reached."""
  url = 'https://download.pytorch.org/whl/cpu'
  try:
    urllib.request.urlopen(f'{url}/torch/', timeout=10).close()
  except OSError:
    return []
  return ['--extra-index-url', url]


def torch_python():
  """The path of a Python with torch and timm: this one, or that of .venv-torch,
  which is made once. A stamp, written last, tells that it is complete."""
  probe = 'import torch, timm, safetensors'
  if not subprocess.run([sys.executable, '-c', probe],
                        capture_output=True).returncode:
    return sys.executable
  where = ROOT / '.venv-torch'
  stamp, python = where / 'installed', where / 'bin' / 'python'
  wanted = f'{platform.python_version()} ' + hashlib.sha256(
      TORCH_PINS.read_bytes()).hexdigest()
  if not stamp.exists() or stamp.read_text() != wanted:
    subprocess.run([sys.executable, '-m', 'venv', '--clear', where], check=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', '-r', TORCH_PINS,
                    *builds_for_cpus()], check=True)
    stamp.write_text(wanted)
  return str(python)


@pytest.mark.slow
def test_timm_and_this_project_read_each_others_weights(tmp_path):
  """The logits equal those of timm's own module, both ways: exactly with the
  erf form of GELU, and up to the difference of the forms with the tanh form."""
  model, flat, images = golden()
  params = trees.unflatten(flat)
  formats.save(str(tmp_path / 'ours.safetensors'), params, 'timm')
  np.save(tmp_path / 'images.npy', images)
  out = subprocess.run([torch_python(), '-c', _TORCH, str(tmp_path)],
                       capture_output=True, text=True)
  assert out.returncode == 0, out.stderr
  out = json.loads(out.stdout.splitlines()[-1])
  exact = model.clone(approximate_gelu=False)
  np.testing.assert_allclose(logits(exact, params, images), out['ours'],
                             atol=1e-5)
  difference = np.abs(logits(model, params, images) - out['ours']).max()
  assert 2e-6 < difference < 5e-3
  print(f'erf {np.abs(logits(exact, params, images) - out["ours"]).max():.1e}, '
        f'tanh {difference:.1e}')
  names = ['theirs.safetensors']
  try:
    import torch
    del torch
    names += ['theirs.pth', 'half.pth']
    assert 'pickled objects' in refused(str(tmp_path / 'whole.pth'))
  except ImportError:
    assert 'pip install torch' in refused(str(tmp_path / 'theirs.pth'))
  for name in names:
    network = pretrained.open_network(str(tmp_path / name))
    assert network.model.num_classes == 5 and network.image_size == (32, 32)
    np.testing.assert_allclose(
        logits(network.model.clone(approximate_gelu=False), network.params,
               images), out['theirs'], atol=5e-3 if 'half' in name else 1e-5)


def test_prefixes_of_wrappers_are_no_part_of_a_name(tmp_path):
  """Prefixes of torch.compile, DataParallel and Lightning, in any order."""
  _, flat, _ = golden()
  path = str(tmp_path / 'w.safetensors')
  formats.save(path, trees.unflatten(flat), 'timm')
  theirs = safetensors.load_file(path)
  safetensors.save_file({f'model._orig_mod.module.{name}': value
                         for name, value in theirs.items()}, path)
  read, layout = formats.read(path)
  assert layout == 'timm'
  for name, value in trees.flatten(read).items():
    np.testing.assert_array_equal(value, flat[name])
  safetensors.save_file(theirs | {
      'module.head.bias': theirs['head.bias']}, path)
  with pytest.raises(errors.UserError, match="two arrays for 'head.bias'"):
    formats.read(path)


def test_torch_files_are_unwrapped_whatever_holds_their_tensors(tmp_path):
  torch = pytest.importorskip('torch')
  _, flat, _ = golden()
  state = {name: torch.from_numpy(value.copy())
           for name, value in formats.to_timm(trees.unflatten(flat)).items()}
  path = str(tmp_path / 'w.pth.tar')
  for holds in (state, dict(state_dict=state), dict(model=state, epoch=3),
                dict(model={f'_orig_mod.{k}': v for k, v in state.items()})):
    torch.save(holds, path)
    for name, value in trees.flatten(formats.load(path)).items():
      np.testing.assert_array_equal(value, flat[name])
  torch.save(dict(net=state, epoch=3), path)
  with pytest.raises(errors.UserError, match="holds net, epoch; expected"):
    formats.load(path)


@pytest.mark.parametrize('mixing, fits', (
    ('none', False), ('pooling', False), ('pyramid:2', False), ('tied', True),
    ('grouped:1', True)))
def test_only_the_papers_mixing_has_timms_names(tmp_path, mixing, fits):
  """timm's Mixer has one token-mixing MLP and cannot load other mixings."""
  network = small_networks.make(token_mixing=mixing)
  save = lambda: export.export(network, str(tmp_path / 'w.safetensors'),
                               format='safetensors', layout='timm')
  if fits:
    save()
    assert {'w.safetensors', 'w.safetensors.json'} <= set(os.listdir(tmp_path))
  else:
    with pytest.raises(errors.UserError, match=f"--layout: timm.*'{mixing}'"):
      save()
    assert not os.listdir(tmp_path)
