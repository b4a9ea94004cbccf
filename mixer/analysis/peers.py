"""Other people's Mixers, from their own checkouts, to be measured beside ours.

Nothing of theirs is here: their modules are imported from DIR/REPOSITORY and
get the same uint8 images, loss and optimizer.
"""
import importlib
import os
import sys

import jax
import jax.numpy as jnp
import optax

from mixer.analysis import step_speed
from mixer.core import errors
from mixer.images import augment
from mixer.models.grid import pair
from mixer.training import optimizers

_TORCH = ('timm', 'timm_compiled')   # as it is, and by torch.compile
NAMES = ('big_vision', 'vision_transformer', *_TORCH)


def make(name, mode, model, directory, images, labels):
  """run() of one step of a peer's network of the same shape as `model`.

  Args:
    name: one of NAMES.
    mode: 'train' or 'infer'.
    model: our network.
    directory: holds the checkouts under their repository names.
    images: uint8 [B, H, W, c].
    labels: int32 [B, 1].

  Raises:
    UserError: if it is unknown or cannot be imported.
  """
  if name not in NAMES:
    raise errors.unknown('--compare', name, NAMES)
  if model.dtype != jnp.float32 and name not in _TORCH:
    raise errors.UserError(f'--compare: {name} computes in float32 only; '
                           'compare with --precision=float32')
  if name in _TORCH:
    return _timm(mode, model, directory, images, labels,
                 compiled=name == 'timm_compiled')
  make_model = dict(big_vision=_big_vision,
                    vision_transformer=_vision_transformer)[name]
  network = make_model(model, directory)
  apply = lambda params, x, train: _first(
      network.apply({'params': params}, x, train=train))
  return _flax(network, apply, mode, images, labels)


def _big_vision(model, directory):
  module = importable('big_vision', 'big_vision.models.mlp_mixer', directory)
  return module.MlpMixer(**_shape(model), patch_size=pair(model.patch_size),
                         stoch_depth=model.stochastic_depth)


def _vision_transformer(model, directory):
  import ml_collections
  module = importable('vision_transformer', 'vit_jax.models_mixer', directory)
  patches = ml_collections.ConfigDict({'size': pair(model.patch_size)})
  return module.MlpMixer(**_shape(model), patches=patches)


def _flax(network, apply, mode, images, labels):
  x, y = jnp.asarray(images), jnp.asarray(labels[:, 0])
  init = jax.jit(lambda k: network.init(
      k, augment.normalise(x[:1]), train=False)['params'])
  params = init(jax.random.key(0))
  if mode == 'infer':
    forward = jax.jit(lambda p, x: apply(p, augment.normalise(x), False))
    return lambda: forward(params, x).block_until_ready()
  tx = optimizers.make(schedule=lambda step: 0.01)

  def step(state):
    params, opt_state = state

    def loss(params):
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
          apply(params, augment.normalise(x), True), y))

    grads = jax.grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return step_speed.repeated(jax.jit(step, donate_argnums=0),
                             (params, tx.init(params)))


def _timm(mode, model, directory, images, labels, compiled):
  timm = importable('pytorch-image-models', 'timm', directory)
  torch = importlib.import_module('torch')
  # timm writes the MLP widths as multiples of C.
  ratio = (model.tokens_mlp_dim / model.hidden_dim,
           model.channels_mlp_dim / model.hidden_dim)
  network = timm.models.mlp_mixer.MlpMixer(
      num_classes=model.num_classes, img_size=images.shape[1:3],
      in_chans=model.in_channels, patch_size=model.patch_size,
      num_blocks=model.num_blocks, embed_dim=model.hidden_dim, mlp_ratio=ratio)
  x = torch.from_numpy(images).permute(0, 3, 1, 2).float().sub(127.5).div(127.5)
  y = torch.from_numpy(labels[:, 0]).long()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  dtype = torch.bfloat16 if model.dtype == jnp.bfloat16 else torch.float32
  network, x, y = network.to(device), x.to(device).contiguous(), y.to(device)
  # XLA takes TF32 for float32 products on GPUs that have it.
  torch.set_float32_matmul_precision('high')
  if compiled:
    network = torch.compile(network)
  wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
  mixed = lambda: torch.autocast(device, dtype, enabled=dtype != torch.float32)
  sgd = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

  def infer():
    with torch.inference_mode(), mixed():
      network(x)
    wait()

  def train():
    with mixed():
      loss = torch.nn.functional.cross_entropy(network(x), y)
    sgd.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    sgd.step()
    wait()

  network.train(mode == 'train')
  return train if mode == 'train' else infer


def _shape(model):
  return dict(num_classes=model.num_classes, num_blocks=model.num_blocks,
              hidden_dim=model.hidden_dim, tokens_mlp_dim=model.tokens_mlp_dim,
              channels_mlp_dim=model.channels_mlp_dim)


def importable(repository, module, directory):
  """A module of a checkout; one that is installed serves as well."""
  path = os.path.join(directory or '', repository)
  if directory and os.path.isdir(path) and path not in sys.path:
    sys.path.insert(0, path)
  try:
    return importlib.import_module(module)
  except ImportError as e:
    raise errors.UserError(
        f'--compare: cannot import {module} ({e}); put a checkout at '
        f'{path!r} (--peers=DIR) and install what it needs') from e


def _first(out):
  return out[0] if isinstance(out, tuple) else out
