"""Infers a Mixer from its parameters, and resizes them for other tokens."""
import re
from typing import Any

from mixer.core import errors
from mixer.models import token_mixing
from mixer.models.tied_mixing import Grid
from mixer.models.tied_mixing import Params
from mixer.models.tied_mixing import Shapes

# The parameters whose last axis shows a width.
_WIDTHS = dict(hidden_dim='stem/kernel',
               channels_mlp_dim='MixerBlock_0/channel_mixing/Dense_0/kernel')
_TOKENS = 'MixerBlock_0/token_mixing/Dense_0/kernel'
_BLOCK = re.compile(r'MixerBlock_(\d+)/(token_mixing/)?(.*)')


def settings(shapes: Shapes) -> dict[str, Any]:
  """Returns the settings of the Mixer that parameters are for.

  Args:
    shapes: by whole name, as for `widths`.

  Raises:
    UserError: if the parameters are not a Mixer's, or do not show how tokens
      are mixed.
  """
  found = widths(shapes)
  tied = found.get('token_mixing', 'tied') == 'tied'
  card = ("; weights with another token mixing than the paper's may need their "
          'card, FILE.json as mixer.export writes it')
  for name, rank in ((_WIDTHS['hidden_dim'], 4), *[(_TOKENS, 2)] * tied,
                     (_WIDTHS['channels_mlp_dim'], 2)):
    shape = shapes.get(name, ())
    if len(shape) != rank or 0 in shape:
      raise errors.UserError(
          f'this is not a Mixer: {name!r} is '
          f'{list(shape) if name in shapes else "missing"}, expected a '
          f'tensor of {rank} axes, none of them empty'
          f'{card if name == _TOKENS else ""}')
  if 'token_mixing' not in found:
    raise errors.UserError(f'the blocks mix tokens in several ways{card}')
  height, width, channels, hidden = shapes['stem/kernel']
  return dict(dict(
      in_channels=channels, num_classes=(shapes.get('head/kernel') or (0,))[-1],
      patch_size=height if height == width else (height, width),
      tokens_mlp_dim=max(hidden // 2, 1)), **found)


def widths(shapes: Shapes) -> dict[str, Any]:
  """Returns the settings that decide the shapes of blocks, by name.

  Args:
    shapes: of a Mixer's parameters, by whole name; some may be missing, and the
      settings that they show with them.
  """
  matches = [m for name in shapes if (m := _BLOCK.fullmatch(name))]
  out = {key: shapes[name][-1] for key, name in _WIDTHS.items()
         if shapes.get(name)}
  mixing = {(m[3], shapes[m[0]]) for m in matches if m[2]}
  if len(dict(mixing)) == len(mixing):   # all blocks have the same shapes
    out.update(_mixing(dict(mixing)))
  return dict(out, num_blocks=max((int(m[1]) for m in matches), default=-1) + 1)


def _mixing(shapes: Shapes) -> dict[str, Any]:
  """Returns the way of mixing, and D_S if there is one, that a block's shapes
  show."""
  for name, row in token_mixing.TABLE.items():
    try:
      found = row.shown(shapes) if row.shown else None
    except (IndexError, KeyError, ValueError):
      continue
    if found is not None:
      number = f':{found["n"]}' if 'n' in found else ''
      return dict(dict(tokens_mlp_dim=found['d']) if 'd' in found else {},
                  token_mixing=name + number)
  return {}


def resized(setting: str, params: Params, old: Grid, new: Grid,
            method: str) -> Params:
  """Returns the parameters of a Mixer for another grid of patches.

  Args:
    setting: as `token_mixing.checked` returns it.
    params: of the whole network, NumPy arrays.
    old: rows and columns of patches that the parameters are for.
    new: those of the result.
    method: 'block' or 'resample'.

  Raises:
    UserError: if the way of mixing has no such method.
  """
  row = token_mixing.TABLE[setting.partition(':')[0]]
  if row.tokens is None:
    return params
  if method not in row.resize:
    raise errors.UserError(
        f'method: {method} is not for networks with token_mixing={setting!r}, '
        f'whose weights are for {old[0]}x{old[1]} patches; use images with as '
        'many')
  return {name: dict(value, token_mixing=row.resize[method](
      value['token_mixing'], old, new)) if name.startswith('MixerBlock_')
          else value for name, value in params.items()}
