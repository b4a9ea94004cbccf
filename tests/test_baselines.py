"""models/vit and models/bit: the networks that the paper compares with."""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import scipy.ndimage

from mixer import models
from mixer.core import errors
from mixer.core import trees
from mixer.models import catalog
from mixer.models import recognition
from mixer.pretrained import formats
from mixer.pretrained import program
from mixer.training import resume

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Parameters with 1,000 classes, and giga multiply-adds, at 224 pixels.
SPECIFIED = {
    'ViT-B/32': (88_224_232, 4.41), 'ViT-B/16': (86_567_656, 17.56),
    'ViT-L/32': (306_535_400, 15.38), 'ViT-L/16': (304_326_632, 61.55),
    'ViT-H/14': (632_045_800, 167.30), 'BiT-R50x1': (25_549_352, 4.09),
    'BiT-R50x2': (97_988_712, 16.12), 'BiT-R152x1': (60_185_128, 11.51),
    'BiT-R152x2': (236_335_208, 45.81), 'BiT-R200x3': (568_633_000, 134.35),
    'BiT-R152x4': (936_533_224, 182.78)}


@pytest.mark.parametrize('name', SPECIFIED)
def test_parameters_and_products_are_those_of_the_papers(name):
  model = models.create(name)
  count, products = SPECIFIED[name]
  assert model.parameters(224) == count
  assert round(model.multiply_adds(224) / 1e9, 2) == products


@pytest.mark.parametrize('name,settings,size', [
    ('ViT-S/16', dict(num_blocks=2), 64),
    ('ViT-S/16', dict(num_blocks=1, pool='mean', num_classes=7), 48),
    ('ViT-S/8', dict(num_blocks=1, representation_dim=24), (16, 32)),
    ('BiT-R50x1', {}, 64), ('BiT-R50x1', dict(stem='small'), (33, 47)),
    ('BiT-R14x1', dict(hidden_dim=17), 64),
    ('BiT-R101x2', dict(num_classes=0), 95)])
def test_the_formulas_agree_with_xla(name, settings, size):
  model = models.create(name, **settings)
  height, width = (size, size) if isinstance(size, int) else size
  images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  assert trees.count(shapes['params']) == model.parameters(size)
  lowered = jax.jit(lambda v, x: model.apply(v, x)[0]).lower(shapes, images)
  ours = 2 * model.forward_flops(size)
  # XLA counts what is no product as well, and standardises kernels.
  assert 0.9 <= lowered.cost_analysis()['flops'] / ours < 1.25
  layers = dict(model.layers(size))
  modules = {n.rpartition('/')[0] for n in trees.flatten(shapes['params'])}
  for module in modules - {''}:
    assert any(module == n or module.startswith(f'{n}/') for n in layers), module


@pytest.mark.parametrize('order', ('both', 'both:2'))
def test_a_bit_with_permuted_pixels_is_made_again_from_its_card(order):
  model = models.create('BiT-R14x1', hidden_dim=8, patch_size=4,
                        pixel_order=order)
  for name in (None, 'BiT-R14x1'):
    assert models.create(**catalog.describe(model, name)) == model


def test_vit_heads_must_divide_the_width():
  with pytest.raises(errors.UserError) as e:
    models.create('ViT-S/2', hidden_dim=64)
  assert 'num_heads: 6' in str(e.value) and '64' in str(e.value)


def test_a_token_of_the_class_sees_every_patch_and_its_place():
  model = models.create('ViT-S/4', num_blocks=1, hidden_dim=12, num_heads=3,
                        channels_mlp_dim=8, num_classes=None)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 3)), 'float32')
  variables = model.init(jax.random.key(0), x)
  swapped = jnp.flip(x, axis=1).reshape(x.shape)
  same = lambda a, b: np.allclose(a, b, atol=1e-6)
  ours = lambda v, x: model.apply(v, x)[0]
  assert not same(ours(variables, x), ours(variables, swapped))
  patches = lambda x: x.reshape(1, 2, 4, 2, 4, 3)[:, ::-1].reshape(x.shape)
  assert not same(ours(variables, x), ours(variables, patches(x)))
  flat = dict(variables['params'])
  flat['pos_embedding'] = jnp.zeros_like(flat['pos_embedding'])
  blind = {'params': flat}   # without places, the order of patches is not seen
  assert same(ours(blind, x), ours(blind, patches(x)))


def published(params, renames):
  """Returns arrays by the names of a release, of those by ours."""
  out = {}
  for name, value in trees.flatten(params).items():
    for ours, theirs in renames:
      name = re.sub(f'^{ours}', theirs, name)
    out[name] = value
  return out


LAYOUTS = {
    'vision_transformer': ('ViT-S/4', [
        ('stem/', 'embedding/'), ('pos_emb', 'Transformer/posembed_input/pos_emb'),
        ('encoder', 'Transformer/encoder'), ('(.*)LayerNorm_1', r'\1LayerNorm_2'),
        ('(.*)Attention_0', r'\1Attention_1'), ('(.*)MlpBlock_0', r'\1MlpBlock_3')]),
    'big_vision ViT': ('ViT-S/4', [
        ('stem/', 'embedding/'), ('encoder', 'Transformer/encoder')]),
    'big_vision BiT': ('BiT-R14x1', [('stem/', 'root_block/conv_root/')]),
    'BiT': ('BiT-R14x1', [
        ('stem/', 'resnet/root_block/standardized_conv2d/'),
        ('norm-pre-head/scale', 'resnet/group_norm/gamma'),
        ('norm-pre-head/bias', 'resnet/group_norm/beta'),
        ('head/', 'resnet/head/conv2d/'),
        ('(block.*)/conv_proj/', r'resnet/\1/a/proj/standardized_conv2d_3/'),
        *((f'(block.*)/conv{i}/', rf'resnet/\1/{x}/standardized_conv2d/')
          for i, x in enumerate('abc', 1)),
        *((f'(block.*)/gn{i}/{ours}', rf'resnet/\1/{x}/group_norm/{theirs}')
          for i, x in enumerate('abc', 1)
          for ours, theirs in (('scale', 'gamma'), ('bias', 'beta')))])}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_released_layouts_are_read(layout, tmp_path):
  name, renames = LAYOUTS[layout]
  small = dict(num_blocks=1, hidden_dim=12, num_heads=3,
               channels_mlp_dim=8) if 'ViT' in name else {}
  model = models.create(name, num_classes=5, **small)
  draw = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(
      (1, 32, 32, 3)))['params']
  params = jax.tree.map(
      lambda x: draw.normal(size=x.shape).astype('float32'), shapes)
  flat = published(params, renames)
  if layout == 'big_vision ViT':   # it adds no place to the class token
    flat['pos_embedding'] = flat['pos_embedding'][:, 1:]
    params['pos_embedding'][:, 0] = 0
  if 'BiT' in layout:
    tensor = layout == 'BiT'   # the first release: the head is a convolution
    flat = {k: v[None, None] if tensor and 'head' in k and v.ndim == 2 else
            v[None, None, None] if not tensor and '/gn' in k or 'norm-' in k
            else v for k, v in flat.items()}
  np.savez(tmp_path / 'weights.npz', **flat)
  read = formats.load(str(tmp_path / 'weights.npz'))
  for name, value in trees.flatten(params).items():
    np.testing.assert_array_equal(trees.flatten(read)[name], value)
  assert trees.flatten(read).keys() == trees.flatten(params).keys()
  size = 224 if 'BiT' in layout else 32
  assert recognition.infer(read) == (model, (size, size))


def test_vit_positions_are_interpolated_between_the_corners():
  model = models.create('ViT-S/4', num_blocks=1, hidden_dim=12, num_heads=3)
  place = np.random.default_rng(0).normal(size=(1, 1 + 12, 12)).astype('float32')
  _, made = model.resized({'pos_embedding': place}, (3, 4), (7, 6), 'resample')
  made = made['pos_embedding']
  np.testing.assert_array_equal(made[:, :1], place[:, :1])
  wanted = scipy.ndimage.zoom(place[0, 1:].reshape(3, 4, 12), (7 / 3, 6 / 4, 1),
                              order=1)
  np.testing.assert_allclose(made[0, 1:].reshape(7, 6, 12), wanted, atol=1e-6)


@pytest.mark.parametrize('name', ['Mixer-S/4', 'ViT-S/4', 'BiT-R14x1'])
def test_a_run_resumes_with_the_network_that_it_trained(name, tmp_path):
  model = models.create(name, num_classes=3)
  card = dict(model=catalog.describe(model, name))
  (tmp_path / 'model.json').write_text(json.dumps(card))
  assert resume.as_trained(model, str(tmp_path)) == model


def start(command, *flags):
  """A process of a command."""
  return subprocess.Popen(
      [sys.executable, '-m', f'mixer.{command}', *map(str, flags)], cwd=ROOT,
      env=dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=''), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def done(command, *flags):
  """The output of a command that succeeds."""
  run = start(command, *flags)
  out, log = run.communicate(timeout=300)
  assert run.returncode == 0, log
  return out


@pytest.mark.slow   # processes of their own
@pytest.mark.parametrize('settings', [
    ('name=ViT-S/2', 'num_heads=2'), ('name=BiT-R14x1', 'stem=small'),
    ('token_mixing=pooling',)], ids=lambda settings: settings[0])
def test_a_network_goes_through_all_commands(settings, tmp_path):
  """It is trained, stopped, resumed, evaluated and exported, and both of its
  files give the probabilities of the run."""
  run, steps = tmp_path / 'run', 400
  train = ('main', '--config=configs/digits.py', f'--workdir={run}',
           '--noreport', '--config.run.batch_size=8',
           '--config.run.log_every=1', f'--config.run.total_steps={steps}',
           '--config.run.eval_every=0', *(f'--config.model.{x}' for x in (
               'hidden_dim=16', 'num_blocks=1', 'channels_mlp_dim=32',
               'stochastic_depth=0', *settings)))
  curves = run / 'metrics.jsonl'
  first = start(*train)
  while first.poll() is None and not (curves.exists() and curves.read_text()):
    time.sleep(.05)
  first.send_signal(signal.SIGTERM)
  _, log = first.communicate(timeout=300)
  assert first.returncode == 42, log
  assert json.loads(curves.read_text().splitlines()[-1])['step'] < steps
  done(*train)
  last = json.loads(curves.read_text().splitlines()[-1])
  assert last['step'] == steps
  done('evaluate', f'--checkpoint={run}', f'--json={tmp_path}/scores.json')
  found = json.loads((tmp_path / 'scores.json').read_text())
  assert found['evals']['test']['accuracy'] == pytest.approx(
      last['eval/test/accuracy'])

  photo = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  Image.fromarray(photo).save(tmp_path / 'x.png')
  def predicted(checkpoint):
    row, = json.loads(done(
        'predict', f'--checkpoint={checkpoint}', '--format=json', '--top_k=10',
        tmp_path / 'x.png'))
    return dict(zip(row['classes'], row['probabilities']))
  wanted = predicted(run)
  for format, suffix in (('safetensors', ''), ('onnx', '--preprocess')):
    done('export', f'--checkpoint={run}', f'--format={format}',
         f'--out={tmp_path}/x.{format}', *filter(None, [suffix]))
  assert predicted(tmp_path / 'x.safetensors') == wanted
  got, = program.open_onnx(str(tmp_path / 'x.onnx'))(
      photo[None, :, :, None])
  np.testing.assert_allclose(got, [wanted[str(i)] for i in range(10)],
                             atol=1e-5)
