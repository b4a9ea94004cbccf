"""Hidden units as images: what a token-mixing MLP or a stem looks at.

The paper shows the units of Mixer-B/16 in figures 5, 6 and 7, and sees that
many of them come in pairs of opposite phase. It does not say how it sorts and
pairs them; the choices here are our own.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.core import trees
from mixer.models import catalog
from mixer.models import grid
from mixer.models import interface
from mixer.models import pixel_order

_WEIGHTS = 'MixerBlock_{}/token_mixing/Dense_0/kernel'
# Of a mosaic: the side of a unit, and gaps in a pair and between pairs.
_SIDE, _THIN, _WIDE = 48, 2, 8


def token_units(model: interface.Model, params: Mapping[str, Any], layer: int,
                image_size: grid.Size | None = None) -> np.ndarray:
  """Returns the hidden units of one token-mixing MLP as images.

  A unit's image has its weight for each patch, where that patch lies in the
  image (figures 5 and 6 of the paper), also if `model.pixel_order` moves it.

  Args:
    model: the network.
    params: its parameters.
    layer: number of the block, from 0.
    image_size: of the images in pixels; needed only if they are not square.

  Returns:
    float32 [D_S, rows, columns], one image for each hidden unit.

  Raises:
    UserError: if the network has no such layer, its token mixing has no hidden
      units, or `model.pixel_order` leaves its tokens no places.
  """
  title = catalog.title(catalog.describe(model))
  blocks = getattr(model, 'num_blocks', 0)
  flat = trees.flatten(params)
  if not hasattr(model, 'token_mixing'):
    raise errors.UserError(f'{title} has no token-mixing units; expected a '
                           'Mixer')
  if not 0 <= layer < blocks:
    raise errors.UserError(f'layer {layer}: {title} has the layers 0 to '
                           f'{blocks - 1}')
  kernel_SD = np.asarray(flat.get(_WEIGHTS.format(layer), 0), np.float32)
  if kernel_SD.ndim != 2:
    raise errors.UserError(
        f'{title} has no token-mixing units to show: its token mixing has no '
        'MLP that all channels share')
  tokens = len(kernel_SD)
  sides = grid.square(tokens) if image_size is None else grid.patches(
      image_size, model.patch_size)
  if sides is None or sides[0] * sides[1] != tokens:
    raise errors.UserError(
        f'layer {layer} of {title} mixes {tokens} inputs, expected one for '
        f'each patch of the image ({sides or "a square"})')
  if model.pixel_order:
    high, wide = grid.pair(model.patch_size)
    places = pixel_order.patch_places(
        model.pixel_order, sides[0] * high, sides[1] * wide, model.patch_size)
    kernel_SD = kernel_SD[np.argsort(places)]
  return kernel_SD.T.reshape(-1, *sides)


def stem_units(params: Mapping[str, Any]) -> np.ndarray:
  """Returns the filters of a network's first projection (figure 7).

  Args:
    params: parameters of any network of `models.catalog`.

  Returns:
    float32 [C, P, P, channels], one small image for each output channel.
  """
  return np.moveaxis(np.asarray(params['stem']['kernel'], np.float32), -1, 0)


def stem_is_moved(model: interface.Model, stem: np.ndarray) -> bool:
  """Returns whether `model.pixel_order` moves pixels inside what a stem sees.

  Args:
    model: the network.
    stem: as `stem_units` returns it.
  """
  if not model.pixel_order:
    return False
  kind, moved, _ = pixel_order.parse(model.pixel_order, model.patch_size)
  patch = grid.pair(model.patch_size)
  # A convolution (of a BiT) reaches over the edges of any patch.
  whole = stem.shape[1:3] == patch and all(
      m % own == 0 for m, own in zip(moved, patch))
  return not (kind == 'patches' and whole)


def frequencies(units: np.ndarray) -> np.ndarray:
  """Returns the mean frequency of each unit, in cycles per image.

  It is the distance from frequency 0 in the two-dimensional Fourier transform,
  averaged with the power as weight. A unit's mean over the image stays in and
  counts as frequency 0, so units that average over the image come first. The
  image of a stem unit is a patch.

  Args:
    units: [units, rows, columns], or with a last axis of channels, whose powers
      are added.

  Returns:
    float64 [units]; 0 for a unit without weights.
  """
  units = units.reshape(*units.shape[:3], -1).astype(np.float64)
  power = (np.abs(np.fft.fft2(units, axes=(1, 2))) ** 2).sum(-1)
  rows, columns = (np.fft.fftfreq(side, 1 / side) for side in units.shape[1:3])
  total = power.sum((1, 2))
  weighted = (power * np.hypot(rows[:, None], columns[None, :])).sum((1, 2))
  return np.divide(weighted, total, out=np.zeros_like(total), where=total > 0)


def sort_and_pair(units: np.ndarray) -> np.ndarray:
  """Returns an order of units in which each stands beside its inverse.

  Args:
    units: [units, rows, columns].

  Returns:
    int [units], indices of units. Elements 2 i and 2 i + 1 are a pair, and the
    pairs have rising mean frequencies. If the number of units is odd, the one
    that is left over comes last. Pairs are those of `_pairs`.
  """
  pairs, _ = _pairs(units)
  paired = pairs[np.argsort(frequencies(units)[pairs].mean(1), kind='stable')]
  left = np.setdiff1d(np.arange(len(units)), pairs)
  return np.concatenate([paired.ravel(), left]).astype(int)


def opposition(units: np.ndarray) -> float:
  """Returns how opposite the paired units are: minus their mean cosine.

  1 means that every unit has an exact inverse. Compare it with the values of
  `baselines`, since the closest inverse of a random unit is opposite too.

  Args:
    units: [units, rows, columns], at least two.

  Raises:
    UserError: if there are fewer.
  """
  if len(units) < 2:
    raise errors.UserError(
        f'model.tokens_mlp_dim: the token mixing has {len(units)} hidden unit; '
        'expected two or more, since units are compared in pairs; choose '
        'another network')
  return -float(_pairs(units)[1].mean())


def baselines(units: np.ndarray) -> dict[str, float]:
  """Returns what to compare the opposition of units with.

  Args:
    units: [units, rows, columns], at least two.

  Returns:
    'random', the opposition of units with independent normal weights, as they
    are before training; 'smooth', that of random units with the frequencies of
    the given ones: each keeps its power spectrum and gets the phases of noise;
    'alike', the mean cosine of the given units if each is paired with the
    most similar one instead.
  """
  noise = np.random.default_rng(0).standard_normal(units.shape)
  waves = np.fft.fft2(noise)
  smooth = np.fft.ifft2(
      waves / np.abs(waves) * np.abs(np.fft.fft2(units))).real
  return dict(random=opposition(noise), smooth=opposition(smooth),
              alike=float(-_pairs(units, sign=-1)[1].mean()))


def mosaic(units: np.ndarray, columns: int, *,
           pairs: bool = True) -> np.ndarray:
  """Returns one image with units side by side.

  Args:
    units: [units, rows, columns], or with a last axis of channels.
    columns: how many units stand in a line; even, so that it holds whole pairs.
    pairs: whether the gaps show which units are pairs.

  Returns:
    float [height, width] or [height, width, channels]. Each unit is divided by
    its largest absolute weight, so values lie from -1 to 1. Gaps are NaN.
  """
  top = np.abs(units).max(axis=tuple(range(1, units.ndim)), keepdims=True)
  units = units / np.where(top > 0, top, 1)
  zoom = max(1, _SIDE // max(units.shape[1:3]))
  units = units.repeat(zoom, axis=1).repeat(zoom, axis=2)
  number, height, width, *channels = units.shape
  thin = _THIN if pairs else _WIDE
  lefts = [column * (width + thin) + column // 2 * (_WIDE - thin)
           for column in range(columns)]
  lines = -(-number // columns)
  out = np.full((lines * (height + _WIDE) - _WIDE, lefts[-1] + width,
                 *channels), np.nan)
  for i, unit in enumerate(units):
    top_edge, left = i // columns * (height + _WIDE), lefts[i % columns]
    out[top_edge:top_edge + height, left:left + width] = unit
  return out


def _pairs(units: np.ndarray, sign: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """Returns pairs of units, the most opposite first, and their cosines.

  Of all pairs, the one with the smallest ||w_i + w_j|| of normalised units is
  taken, then the same again among the units that are left, until at most one
  is.

  Args:
    units: [units, rows, columns].
    sign: -1 takes the smallest ||w_i - w_j|| instead.

  Returns:
    (int [pairs, 2], the smaller index first; float64 [pairs] of `sign` times
    the cosines).
  """
  flat = units.reshape(len(units), -1).astype(np.float64)
  norms = np.linalg.norm(flat, axis=1, keepdims=True)
  flat = flat / np.where(norms > 0, norms, 1)
  # ||w_i + w_j||^2 is 2 + 2 cos(w_i, w_j).
  cosines = sign * (flat @ flat.T)
  cosines[np.tril_indices(len(flat))] = np.inf
  pairs, values = [], []
  for _ in range(len(flat) // 2):
    pair = np.unravel_index(np.argmin(cosines), cosines.shape)
    pairs.append(pair)
    values.append(cosines[pair])
    for i in pair:
      cosines[i] = cosines[:, i] = np.inf
  return np.array(pairs, int).reshape(-1, 2), np.array(values)
