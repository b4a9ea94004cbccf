"""A trained Mixer for another image size, patch size or number of channels.

A Mixer's token-mixing MLPs are tied to the number of tokens. Two ways out:

* 'block', the paper's (appendix C), for sides that grow by integer factors: the
  image is taken as K_H x K_W parts, each of which is mixed as before, by
  block-diagonal weights of which the zeros are then trained. D_S grows with
  the number of parts. Before training, the network's pre-logits are exactly the
  mean of the old network's over the parts.
* 'resample', for any size: token mixing works on the tokens resampled to the
  old grid, and its result is resampled to the new one, both linear, so that
  they fold into the weights. D_S stays. Before training, the network sees the
  image at its own scale: tokens that are constant are mixed exactly as before.

Axes: S tokens, D_S hidden units, P patch side, c image channels, C channels.
"""
import jax
import numpy as np

from mixer.core import errors
from mixer.models.mixer import pair

METHODS = ('block', 'resample')


def resize(model, params, *, image_size, from_size=None, method=None,
           patch_size=None, in_channels=None):
  """A model and its parameters, made for other images.

  Args:
    model: `models.MlpMixer`.
    params: its parameters, a nested dict.
    image_size: of the new images, an int or (height, width).
    from_size: of the old ones; by default they were square.
    method: 'block' or 'resample'; by default 'block' where both sides of the
      image grow by integer factors and the patch stays, since that is the
      paper's case.
    patch_size: of the new network, by default the same. The patch projection is
      resampled so that an enlarged patch projects to what the patch did
      (FlexiViT, https://arxiv.org/abs/2212.08013, section 3.4).
    in_channels: of the new images. To one, the projection's input
      channels are added up; to any other number they are repeated, and scaled
      so that a grey image projects to what it did.

  Returns:
    (model, params), NumPy arrays.

  Raises:
    UserError: if the sizes do not fit the patches, or the method the sizes.
  """
  if method is not None and method not in METHODS:
    raise errors.unknown('method', method, METHODS)
  params = jax.tree.map(np.asarray, params)
  old = _old_grid(model, params, from_size)
  patch = pair(model.patch_size if patch_size is None else patch_size)
  new = _grid(image_size, patch)
  stem = _with_patch(params['stem']['kernel'], patch)
  channels = model.in_channels if in_channels is None else in_channels
  params = dict(params, stem=dict(
      params['stem'], kernel=_with_channels(stem, channels)))
  fits = all(n % o == 0 for n, o in zip(new, old))
  if method == 'block' and not fits:
    raise errors.UserError(
        f'method: block is for patch grids that grow by integer factors, not '
        f'from {old[0]}x{old[1]} to {new[0]}x{new[1]}; use resample')
  as_blocks = method == 'block' or (
      method is None and fits and patch == pair(model.patch_size))
  change = _blocks if as_blocks else _resampled
  for i in range(model.num_blocks):
    name = f'MixerBlock_{i}'
    params[name] = dict(params[name], token_mixing=change(
        params[name]['token_mixing'], old, new))
  widths = params['MixerBlock_0']['token_mixing']['Dense_0']['bias']
  return model.clone(
      patch_size=patch if patch[0] != patch[1] else patch[0],
      in_channels=channels, tokens_mlp_dim=len(widths)), params


def _blocks(mlp, old, new):
  """The paper's block-diagonal weights, in place on tokens in raster order."""
  (h, w), parts = old, (new[0] // old[0], new[1] // old[1])
  place = np.arange(new[0] * new[1]).reshape(parts[0], h, parts[1], w)
  place_KS = place.transpose(0, 2, 1, 3).reshape(-1, h * w)
  first_SD, second_DS = mlp['Dense_0']['kernel'], mlp['Dense_1']['kernel']
  count, hidden = len(place_KS), first_SD.shape[1]
  first = np.zeros((place.size, count * hidden), first_SD.dtype)
  second = np.zeros((count * hidden, place.size), second_DS.dtype)
  bias = np.zeros(place.size, second_DS.dtype)
  for k, tokens_S in enumerate(place_KS):
    units = slice(k * hidden, (k + 1) * hidden)
    first[tokens_S, units] = first_SD
    second[units, tokens_S] = second_DS
    bias[tokens_S] = mlp['Dense_1']['bias']
  return {'Dense_0': dict(kernel=first,
                          bias=np.tile(mlp['Dense_0']['bias'], count)),
          'Dense_1': dict(kernel=second, bias=bias)}


def _resampled(mlp, old, new):
  """W1 down W2 up: `down` takes new tokens to the old grid, `up` back."""
  down = np.kron(_linear(new[0], old[0]), _linear(new[1], old[1]))
  up = np.kron(_linear(old[0], new[0]), _linear(old[1], new[1]))
  fold = lambda x, like: x.astype(like.dtype)
  first, second = mlp['Dense_0'], mlp['Dense_1']
  return {
      'Dense_0': dict(first, kernel=fold(
          down.T @ first['kernel'], first['kernel'])),
      'Dense_1': dict(
          kernel=fold(second['kernel'] @ up.T, second['kernel']),
          bias=fold(up @ second['bias'], second['bias']))}


def _linear(old, new):
  """Linear resampling of a side, antialiased: float64 [new, old], rows of sum
  1. The pixels' centres are at (i + 1/2) / side."""
  stretch = max(1.0, old / new)
  at = (np.arange(new) + 0.5) * old / new - 0.5
  weight = np.maximum(0, 1 - np.abs(
      at[:, None] - np.arange(old)[None, :]) / stretch)
  return weight / weight.sum(axis=1, keepdims=True)


def _with_patch(kernel_PPcC, patch):
  """The projection w' for which <enlarged x, w'> = <x, w> for every x."""
  height, width = kernel_PPcC.shape[:2]
  if (height, width) == patch:
    return kernel_PPcC
  y = np.linalg.pinv(_linear(height, patch[0]).T)
  x = np.linalg.pinv(_linear(width, patch[1]).T)
  return np.einsum('Yy,Xx,yxcC->YXcC', y, x, kernel_PPcC).astype(
      kernel_PPcC.dtype)


def _with_channels(kernel_PPcC, channels):
  have = kernel_PPcC.shape[2]
  if channels == have:
    return kernel_PPcC
  if channels == 1:
    return kernel_PPcC.sum(axis=2, keepdims=True)
  repeated = np.take(kernel_PPcC, np.arange(channels) % have, axis=2)
  grey = kernel_PPcC.sum(axis=2, keepdims=True)
  return repeated + (grey - repeated.sum(axis=2, keepdims=True)) / channels


def _old_grid(model, params, from_size):
  tokens = params['MixerBlock_0']['token_mixing']['Dense_0']['kernel'].shape[0]
  side = round(tokens ** 0.5)
  if from_size is not None:
    grid = _grid(from_size, pair(model.patch_size))
  elif side * side == tokens:
    return side, side
  else:
    raise errors.UserError(f'from_size: {tokens} tokens are no square; give '
                           'the (height, width) of the old images')
  if grid[0] * grid[1] != tokens:
    raise errors.UserError(
        f'from_size: {from_size} makes {grid[0]}x{grid[1]} patches, but the '
        f'weights are for {tokens}')
  return grid


def _grid(image_size, patch):
  size = pair(image_size)
  if any(s < p or s % p for s, p in zip(size, patch)):
    raise errors.UserError(
        f'image_size: {size[0]}x{size[1]} is no multiple of the patches of '
        f'{patch[0]}x{patch[1]} pixels')
  return size[0] // patch[0], size[1] // patch[1]
