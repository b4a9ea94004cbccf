"""Other people's Mixers, from their own checkouts, to measure beside ours.

This module contains none of their code. It imports their modules from
DIR/REPOSITORY, and gives them the same uint8 images, loss and optimizer. timm
gets the images as normalised floats, which are made before it is timed.
"""
from collections.abc import Callable
import importlib
import os
import sys
import types
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixer.analysis import step_speed
from mixer.core import errors
from mixer.images import augment
from mixer.models import interface
from mixer.models.grid import pair
from mixer.models.mixer import MlpMixer

_TORCH = ('timm', 'timm_compiled')   # without and with torch.compile
NAMES = ('big_vision', 'vision_transformer', *_TORCH)


def make(name: str, mode: str, model: interface.Model, directory: str | None,
         images: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
  """Returns a function that runs one step of a peer's network.

  Args:
    name: one of NAMES.
    mode: 'train' or 'infer'.
    model: our network, a Mixer; the peer's gets the same shape.
    directory: holds the checkouts under the names of their repositories.
    images: uint8 [B, H, W, c].
    labels: int32 [B, 1].

  Raises:
    UserError: if the peer is unknown or cannot be imported, or our network is
      not a Mixer, or has dropout in training.
  """
  if name not in NAMES:
    raise errors.unknown('--compare', name, NAMES)
  ours = _mixer(name, model, mode)
  if model.dtype != jnp.float32 and name not in _TORCH:
    raise errors.UserError(
        f'--compare: {name} computes in float32 only, this measurement uses '
        f'{model.dtype}; add --precision=float32')
  if name in _TORCH:
    return _timm(mode, ours, directory, images, labels,
                 compiled=name == 'timm_compiled')
  return _flax(flax_network(name, mode, ours, directory), mode, images, labels)


def flax_network(name: str, mode: str, model: interface.Model,
                 directory: str | None) -> nn.Module:
  """Returns a peer's Mixer of the same shape as ours, in float32.

  Args, Raises: as `make`; only 'big_vision' and 'vision_transformer' are Flax.
  """
  if name not in _FLAX:
    raise errors.unknown('--compare', name, tuple(_FLAX))
  return _FLAX[name](_mixer(name, model, mode), directory)


def _mixer(name: str, model: interface.Model, mode: str) -> MlpMixer:
  """Returns the model, or raises a UserError if no peer has the same work."""
  kind = type(model).__name__
  if isinstance(model, MlpMixer):
    for key in ('stochastic_depth', 'dropout_rate'):
      if mode == 'train' and getattr(model, key):
        raise errors.UserError(
            f'--compare: {name} is measured without random drops in training, '
            f'and model.{key} is {getattr(model, key)}; add '
            f'--config.model.{key}=0')
    if model.token_mixing == 'tied':
      return model
    kind = f'Mixer with token_mixing={model.token_mixing}'
  raise errors.UserError(f"--compare: {name} has the paper's Mixer to compare "
                         f'with, the measured network is a {kind}')


def _big_vision(model: MlpMixer, directory: str | None) -> nn.Module:
  module = importable('big_vision', 'big_vision.models.mlp_mixer', directory)
  return module.MlpMixer(**_shape(model), patch_size=pair(model.patch_size),
                         stoch_depth=model.stochastic_depth)


def _vision_transformer(model: MlpMixer, directory: str | None) -> nn.Module:
  import ml_collections
  module = importable('vision_transformer', 'vit_jax.models_mixer', directory)
  patches = ml_collections.ConfigDict({'size': pair(model.patch_size)})
  return module.MlpMixer(**_shape(model), patches=patches)


def flax_program(network: nn.Module, mode: str) -> tuple[
    Callable[[jax.Array], Any], Callable[..., Any]]:
  """Returns (initial, advance), the programs of a Flax network.

  Args:
    network: a peer's.
    mode: 'train' or 'infer'.

  Returns:
    initial: uint8 images [1, H, W, c] -> what `advance` begins with.
    advance: (that, uint8 images [B, H, W, c], labels int32 [B]) -> its next
      value if it trains, else logits.
  """
  def apply(params, x, train):
    # big_vision returns (logits, intermediates), vision_transformer logits.
    out = network.apply({'params': params}, augment.normalise(x), train=train)
    return out[0] if isinstance(out, tuple) else out

  init = lambda x: network.init(
      jax.random.key(0), augment.normalise(x), train=False)['params']
  if mode == 'infer':
    return init, lambda params, x, y: apply(params, x, False)
  optimizer, _ = step_speed.make_optimizer()

  def advance(state, x, y):
    params, opt_state = state

    def loss(params):
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
          apply(params, x, True), y))

    updates, opt_state = optimizer.update(
        jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def initial(x):
    params = init(x)
    return params, optimizer.init(params)

  return initial, advance


def _flax(network: nn.Module, mode: str, images: np.ndarray,
          labels: np.ndarray) -> Callable[[], Any]:
  """Returns a function that runs one step of a Flax network."""
  x, y = jnp.asarray(images), jnp.asarray(labels[:, 0])
  initial, advance = flax_program(network, mode)
  state = jax.jit(initial)(x[:1])
  if mode == 'infer':
    forward = jax.jit(advance)
    return lambda: forward(state, x, y).block_until_ready()
  step = jax.jit(advance, donate_argnums=0)
  return step_speed.repeated(lambda state: step(state, x, y), state)


def _timm(mode: str, model: MlpMixer, directory: str | None,
          images: np.ndarray, labels: np.ndarray,
          compiled: bool) -> Callable[[], None]:
  """Returns a function that runs one step of timm's network in PyTorch."""
  timm = importable('pytorch-image-models', 'timm', directory)
  torch = importlib.import_module('torch')
  # timm gives the widths of the MLPs as multiples of C.
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
  # On GPUs that have TF32, XLA uses it for float32 products; PyTorch does so
  # only when it is told to.
  torch.set_float32_matmul_precision('high')
  if compiled:
    network = torch.compile(network)
  wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
  mixed = lambda: torch.autocast(device, dtype, enabled=dtype != torch.float32)
  sgd = torch.optim.SGD(network.parameters(), lr=step_speed.LEARNING_RATE,
                        momentum=step_speed.MOMENTUM)

  def infer():
    with torch.inference_mode(), mixed():
      network(x)
    wait()

  def train():
    with mixed():
      loss = torch.nn.functional.cross_entropy(network(x), y)
    sgd.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), step_speed.CLIP_NORM)
    sgd.step()
    wait()

  network.train(mode == 'train')
  return train if mode == 'train' else infer


_FLAX: dict[str, Callable[[MlpMixer, str | None], nn.Module]] = dict(
    big_vision=_big_vision, vision_transformer=_vision_transformer)


def _shape(model: MlpMixer) -> dict[str, Any]:
  return dict(num_classes=model.num_classes, num_blocks=model.num_blocks,
              hidden_dim=model.hidden_dim, tokens_mlp_dim=model.tokens_mlp_dim,
              channels_mlp_dim=model.channels_mlp_dim)


def importable(repository: str, module: str,
               directory: str | None) -> types.ModuleType:
  """Returns a module from a checkout, or from an installed package.

  Args:
    repository: name of the checkout in `directory`.
    module: full name of the module.
    directory: holds the checkouts; None for installed packages only.

  Raises:
    UserError: if it cannot be imported.
  """
  directory = os.path.expanduser(directory or '')
  if directory and not os.path.isdir(directory):
    raise errors.UserError(f'--peers: {directory!r} is no folder; expected the '
                           'one that holds the checkouts')
  path = os.path.join(directory, repository)
  if directory and os.path.isdir(path) and path not in sys.path:
    sys.path.insert(0, path)
  try:
    return importlib.import_module(module)
  except ImportError as e:
    raise errors.UserError(
        f'--compare: cannot import {module} ({e}); put a checkout at {path!r}, '
        'give its directory as --peers=DIR, and install its dependencies'
    ) from e
