"""Files of weights: npz, safetensors and PyTorch's .pth, read and written.

Three layouts are told apart by their names: the published one, which is ours,
the official code's and big_vision's ('stem/kernel', 'MixerBlock_0/...'); the
official code's first, from before flax.linen ('Mixer/encoderblock_0/...'); and
timm's ('stem.proj.weight', 'blocks.0...'). Nothing here ever unpickles: npz is
read with pickles off, .pth by torch with weights_only.
"""
import os
import re
import zipfile
import zlib

import ml_dtypes
import numpy as np

from mixer.core import errors
from mixer.core import trees

SUFFIXES = ('.npz', '.safetensors', '.pth', '.pt', '.bin')
# Below these a training checkpoint of big_vision keeps its parameters.
_INSIDE = ('params/', 'opt/target/')

_NORM = (('scale', 'weight'), ('bias', 'bias'))
_DENSE = (('kernel', 'weight', (1, 0)), ('bias', 'bias', None))
# (published name, timm's, our axes in timm's order), '#' the number of a block.
_TIMM = (
    ('stem/kernel', 'stem.proj.weight', (3, 2, 0, 1)),
    ('stem/bias', 'stem.proj.bias', None),
    *((f'head/{ours}', f'head.{theirs}', axes)
      for ours, theirs, axes in _DENSE),
    *((f'pre_head_layer_norm/{ours}', f'norm.{theirs}', None)
      for ours, theirs in _NORM),
    *((f'MixerBlock_#/LayerNorm_{i}/{ours}', f'blocks.#.norm{i + 1}.{theirs}',
       None) for i in (0, 1) for ours, theirs in _NORM),
    *((f'MixerBlock_#/{ours}/Dense_{i}/{kind}',
       f'blocks.#.{theirs}.fc{i + 1}.{name}', axes)
      for ours, theirs in (('token_mixing', 'mlp_tokens'),
                           ('channel_mixing', 'mlp_channels'))
      for i in (0, 1) for kind, name, axes in _DENSE),
)


def load(path):
  """The parameters in a file, as `read` gives them."""
  return read(path)[0]


def read(path):
  """(parameters, layout) of a file: a nested dict with the published names, and
  'official' or 'timm'.

  Args:
    path: of a local file, with one of SUFFIXES.

  Returns:
    The parameters are NumPy arrays, float32.

  Raises:
    UserError: if it is not there, cannot be read, would have to be unpickled,
      holds no Mixer, or needs a library that is missing.
  """
  suffix = os.path.splitext(path)[1]
  if suffix not in SUFFIXES:
    raise errors.UserError(f'{path!r}: expected a file of weights that ends in '
                           f'{", ".join(SUFFIXES)}')
  flat_of = {'.npz': _npz, '.safetensors': _safetensors}.get(suffix, _torch)
  if not os.path.isfile(path):
    raise errors.UserError(f'{path!r}: no such file')
  try:
    flat = flat_of(path)
  except errors.UserError:
    raise
  except Exception as e:   # the readers of three formats raise all kinds
    why = ' '.join(str(e).split())
    if 'allow_pickle' in why or 'Unpickler' in why or 'weights_only' in why:
      why = ('it holds pickled objects, which can run any code; ask its author '
             'for npz or safetensors')
    elif isinstance(e, (zipfile.BadZipFile, zlib.error, EOFError)):
      why = f'it is cut short or damaged ({why[:200]})'
    raise errors.UserError(
        f'{path!r} cannot be read as {suffix[1:]}: {why[:200]}') from e
  flat = {name: _float32(value, name, path) for name, value in flat.items()}
  if 'stem.proj.weight' in flat:
    return from_timm(flat, path), 'timm'
  return _official(flat, path), 'official'


def save(path, params, layout='official'):
  """Writes parameters as npz or safetensors, whole or not at all.

  Args:
    path: ends in '.npz' or '.safetensors'.
    params: a nested dict with the published names.
    layout: of the names: 'official', or 'timm', for safetensors only.

  Raises:
    UserError: if the suffix or the layout does not fit, or it cannot be
      written.
  """
  suffix = os.path.splitext(path)[1]
  if suffix not in ('.npz', '.safetensors') or layout == 'timm' and (
      suffix == '.npz'):
    raise errors.UserError(
        f'{path!r}: layout {layout} is written to '
        f'{"*.safetensors" if layout == "timm" else "*.npz or *.safetensors"}')
  if layout == 'timm':
    flat = to_timm(params)
  else:
    flat = {name: np.ascontiguousarray(value)
            for name, value in trees.flatten(params).items()}
  partial = path + '.partial'
  try:
    with open(partial, 'wb') as f:
      if suffix == '.npz':
        np.savez(f, **flat)
      else:
        f.write(_library('safetensors.numpy', path).save(
            flat, metadata=dict(format='pt' if layout == 'timm' else 'np')))
    os.replace(partial, path)
  except OSError as e:
    raise errors.UserError(
        f'{path!r} cannot be written: {e.strerror or e}') from e


def from_timm(flat, source):
  """A nested dict with the published names from {timm's name: array}.

  Raises:
    UserError: at a name that timm's Mixer does not have.
  """
  out = {}
  known = [(re.escape(theirs).replace(r'\#', r'(\d+)'), ours, axes)
           for ours, theirs, axes in _TIMM]
  for name, value in flat.items():
    match, ours, axes = next(
        ((m, ours, axes) for pattern, ours, axes in known
         if (m := re.fullmatch(pattern, name))), (None, None, None))
    if match is None:
      raise errors.UserError(f"{source!r}: {name!r} is no parameter of timm's "
                             'Mixer')
    if axes is not None and value.ndim != len(axes):
      raise errors.UserError(f'{source!r}: {name!r} is {list(value.shape)}; '
                             f'expected {len(axes)} axes')
    ours = ours.replace('#', ''.join(match.groups()))
    out[ours] = value if axes is None else value.transpose(np.argsort(axes))
  return trees.unflatten({k: np.ascontiguousarray(v) for k, v in out.items()})


def to_timm(params):
  """{timm's name: array} of parameters with the published names."""
  out = {}
  for name, value in trees.flatten(params).items():
    number = ''.join(re.findall(r'MixerBlock_(\d+)/', name))
    theirs, axes = _OURS[re.sub(r'MixerBlock_\d+/', 'MixerBlock_#/', name)]
    value = np.asarray(value)
    out[theirs.replace('#', number)] = np.ascontiguousarray(
        value if axes is None else value.transpose(axes))
  return out


_OURS = {ours: (theirs, axes) for ours, theirs, axes in _TIMM}


def _official(flat, path):
  """The published layout, or the one before it."""
  for inside in _INSIDE:
    if any(name.startswith(inside) for name in flat):
      flat = {name.removeprefix(inside): value for name, value in flat.items()
              if name.startswith(inside)}
  try:
    tree = trees.unflatten(flat)
  except (AttributeError, TypeError, ValueError):   # 'a' beside 'a/b'
    tree = {}
  if 'Mixer' in tree:
    tree = _from_before_linen(tree, path)
  if 'kernel' not in _dict(tree.get('stem')) or 'MixerBlock_0' not in tree:
    raise errors.UserError(
        f"{path!r} holds no Mixer: expected 'stem/kernel', 'MixerBlock_0/...', "
        f'got {", ".join(sorted(flat)[:4])} and so on')
  return tree


def _from_before_linen(tree, path):
  """The first layout, whose modules were numbered across classes."""
  from flax.training import checkpoints  # loads TensorFlow, if it is there
  tree = checkpoints.convert_pre_linen(tree)
  squeezed = lambda x: x.squeeze()
  dense = lambda d: {
      f'Dense_{i}': dict(kernel=squeezed(d[f'kernel{i + 1}']),
                         bias=squeezed(d[f'bias{i + 1}'])) for i in (0, 1)}
  try:
    blocks = dict(tree['Mixer'])
    out = {k: v for k, v in tree.items() if k not in ('Mixer', 'embedding')}
    out.update(stem=tree['embedding'],
               pre_head_layer_norm=blocks.pop('encoder_norm'))
    for name, block in blocks.items():
      block = dict(block)
      for kind in ('token_mixing', 'channel_mixing'):
        block[kind] = dense(block.pop(f'{kind}_phase_0'))
      out[name.replace('encoderblock_', 'MixerBlock_')] = block
  except (KeyError, TypeError, AttributeError) as e:
    raise errors.UserError(
        f"{path!r} begins like the official code's first layout and lacks "
        f'{e}') from e
  return out


def _npz(path):
  with np.load(path, allow_pickle=False) as f:
    inside = next((p for p in _INSIDE
                   if any(name.startswith(p) for name in f.files)), '')
    return {name: f[name] for name in f.files if name.startswith(inside)}


def _safetensors(path):
  return _library('safetensors.numpy', path).load_file(path)


def _torch(path):
  torch = _library('torch', path)
  state = torch.load(path, map_location='cpu', weights_only=True)
  state = state.get('state_dict', state)
  return {name.removeprefix('module.'): value.float().numpy()
          for name, value in state.items()}


def _library(name, path):
  """An optional library, imported when it is needed."""
  import importlib
  try:
    return importlib.import_module(name)
  except ImportError as e:
    package = name.partition('.')[0]
    raise errors.UserError(
        f'{path!r} needs {package}, which is not installed: pip install '
        f'{package}' + ('; .safetensors and .npz do not need it'
                        if package == 'torch' else '')) from e


def _float32(value, name, path):
  if value.dtype == np.dtype('V2'):   # how NumPy stores bfloat16
    value = value.view(ml_dtypes.bfloat16)
  if value.dtype.kind != 'f' and 'float' not in str(value.dtype):
    raise errors.UserError(f'{path!r}: {name!r} is of {value.dtype}; expected '
                           'floating point')
  return np.asarray(value, np.float32)


def _dict(value):
  return value if isinstance(value, dict) else {}
