"""timm's config.json, which says what the weights beside it expect of images.

timm's pixels are (x - mean) / std with x in [0, 1]; ours are in [-1, 1]. The
patch projection is linear and has no padding, so the difference folds into it.
"""
from collections.abc import Mapping
import json
import math
import os
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.pretrained import fetch

_NAME = 'config.json'
_KEYS = ('mean', 'std', 'input_size', 'crop_pct', 'crop_mode', 'interpolation',
         'label_names')
# timm's crop_mode and crop_pct, and Pillow's filters, as `images.eval_crops`
# names them.
_CROPS = {('center', 0.875): 'resmall', ('squash', 0.875): 'resize_crop',
          ('squash', 1.0): 'resize'}
_INTERPOLATIONS = dict(bilinear='bilinear_antialias', bicubic='bicubic')


def beside(weights: str, path: str) -> dict[str, Any]:
  """Returns the settings of the config.json beside timm's weights.

  Args:
    weights: their path or address.
    path: of the local file. If they are from the Hugging Face hub, the
      config.json is fetched from there.

  Returns:
    a dict with the keys of the file that this module uses; empty if there is no
    such file, or it is not timm's.

  Raises:
    UserError: if the file is damaged, or cannot be fetched.
  """
  file = os.path.join(os.path.dirname(path), _NAME)
  if fetch.is_url(weights):
    file = fetch.beside(weights, _NAME) or ''
  text = files.read(file) if file else None
  try:
    found = {} if text is None else json.loads(text)
  except (ValueError, RecursionError) as e:
    raise errors.UserError(f'{file!r} is not JSON ({e}); mend it, or keep the '
                           'weights in another folder') from e
  if not isinstance(found, dict):
    return {}
  inner = found.get('pretrained_cfg')
  found = dict(inner if isinstance(inner, dict) else {}, **{
      key: value for key, value in found.items() if value is not None})
  out = {key: found[key] for key in _KEYS if found.get(key) is not None}
  for key, other in (('mean', 'std'), ('std', 'mean')):
    if key in out and other not in out:
      raise _wrong(other, None, f'as many numbers as {key} has')
  return out


def image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns the (height, width) in settings as `beside` returns them.

  Raises:
    UserError: if they are not two positive integers after the channels.
  """
  size = config.get('input_size')
  if size is None:
    return None
  if not (isinstance(size, list) and len(size) == 3
          and all(isinstance(n, int) and 0 < n < 2**15 for n in size)):
    raise _wrong('input_size', size, '[channels, height, width]')
  return size[1], size[2]


def card(config: Mapping[str, Any], num_classes: int,
         usual: Mapping[str, str]) -> dict[str, Any]:
  """Returns the part of a card that settings decide, and logs what differs.

  Args:
    config: settings as `beside` returns them.
    num_classes: of the weights.
    usual: the crop and interpolation of weights that do not name theirs.

  Returns:
    a dict with crop, interpolation and class_names, for `catalog.card`.
  """
  out: dict[str, Any] = dict(usual, class_names=None)
  unlike = []
  if 'crop_pct' in config or 'crop_mode' in config:
    mode, share = config.get('crop_mode', 'center'), config.get(
        'crop_pct', 0.875)
    like = _CROPS.get((mode, share))
    out['crop'] = like or ('resize_crop' if mode == 'squash' else 'resmall')
    if like is None:
      unlike.append(f'crop_mode {mode!r} with crop_pct {share!r} becomes '
                    f'{out["crop"]}, which shows 0.875')
  if 'interpolation' in config:
    like = _INTERPOLATIONS.get(config['interpolation'])
    out['interpolation'] = like or 'bilinear_antialias'
    if like is None:
      unlike.append(f'interpolation {config["interpolation"]!r} becomes '
                    'bilinear_antialias')
  if 'label_names' in config:
    names = config['label_names']
    if isinstance(names, list) and len(names) == num_classes and all(
        isinstance(name, str) for name in names):
      out['class_names'] = names
    else:
      unlike.append(f'label_names are not {num_classes} names; left out')
  if unlike:
    log.warning('config.json: %s', '; '.join(unlike))
  return out


def for_signed_pixels(params: Mapping[str, Any], mean: Any = 0.0,
                      std: Any = 1.0) -> Mapping[str, Any]:
  """Returns `params` with a stem for pixels in [-1, 1].

  This is exact but for rounding.

  Args:
    params: nested dict of arrays, for pixels of (x - mean) / std with x in
      [0, 1].
    mean, std: a number, or a list with one for each channel.

  Raises:
    UserError: if there are not as many as channels, or they are no numbers.
  """
  kernel_PPcC, bias_C = params['stem']['kernel'], params['stem']['bias']
  channels = kernel_PPcC.shape[2]
  for key, value in (('mean', mean), ('std', std)):
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) not in (1, channels) or not all(
        isinstance(x, int | float) and math.isfinite(x)
        and (key == 'mean' or x > 0) for x in numbers):
      raise _wrong(key, value, f'{channels} numbers, one for each channel of '
                   'the weights')
  mean_c, std_c = (np.broadcast_to(np.asarray(x, np.float64), channels)
                   for x in (mean, std))
  scale_cC, shift_cC = (x.astype(np.float32)[:, None] for x in (
      0.5 / std_c, (0.5 - mean_c) / std_c))
  return dict(params, stem=dict(
      kernel=kernel_PPcC * scale_cC,
      bias=bias_C + (kernel_PPcC * shift_cC).sum(axis=(0, 1, 2))))


def _wrong(key: str, value: Any, expected: str) -> errors.UserError:
  return errors.UserError(
      f'config.json beside the weights: {key} is {value!r:.100}, expected '
      f'{expected}; mend it, or keep the weights in another folder')
