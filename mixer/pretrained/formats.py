"""Files of weights: npz, safetensors and PyTorch's .pth, read and written.

Parameters have the published names here, as in the official code and in
big_vision ('stem/kernel', 'MixerBlock_0/...'). Two other layouts of a Mixer are
recognised by their names and translated: the official code's first, from before
flax.linen ('Mixer/encoderblock_0/...'), and timm's ('stem.proj.weight',
'blocks.0...').

Nothing here unpickles: npz is read without pickles, .pth by torch with
weights_only.
"""
from collections.abc import Mapping
import importlib
import os
import re
import types
from typing import Any
import zipfile
import zlib

import ml_dtypes
import numpy as np

from mixer.core import errors
from mixer.core import trees
from mixer.models import recognition
from mixer.pretrained import before_linen
from mixer.pretrained import headers

SUFFIXES = ('.npz', '.safetensors', '.pth', '.pt', '.bin', '.pth.tar')
Flat = dict[str, np.ndarray]   # arrays by name
# Where a training checkpoint of big_vision keeps its parameters.
_INSIDE = ('params/', 'opt/target/')
# What wrappers of PyTorch's models put before the names.
_WRAPPED = re.compile(r'((_orig_mod|module|model)\.)+')

_NORM = (('scale', 'weight'), ('bias', 'bias'))
_DENSE = (('kernel', 'weight', (1, 0)), ('bias', 'bias', None))
# timm's Mixer: (published name, timm's name, the order of our axes in timm's);
# '#' stands for the number of a block.
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
_TO_TIMM = {ours: (theirs, axes) for ours, theirs, axes in _TIMM}


def load(path: str) -> dict[str, Any]:
  """Returns the parameters in a file, as `read` does."""
  return read(path)[0]


def read(path: str) -> tuple[dict[str, Any], str]:
  """Returns the parameters in a file, and their layout there.

  Args:
    path: of a local file that ends in one of SUFFIXES.

  Returns:
    (parameters, layout): a nested dict of float32 NumPy arrays with the
    published names; 'official' or 'timm'.

  Raises:
    UserError: if there is no such file, it cannot be read without unpickling or
      without a library that is missing, or it holds something else than
      floating-point arrays.
  """
  suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True)
                 if path.endswith(s)), '')
  if not suffix:
    raise errors.UserError(f'{path!r}: expected a file of weights that ends in '
                           f'{", ".join(SUFFIXES)}')
  flat_of = {'.npz': _npz, '.safetensors': _safetensors}.get(suffix, _torch)
  headers.check_kind(path)
  try:
    headers.check_size(path)
    flat = _unwrapped(flat_of(path), path)
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
  headers.check_names(path, flat)
  flat = {name: _float32(value, name, path) for name, value in flat.items()}
  if 'stem.proj.weight' in flat:
    return from_timm(flat, path), 'timm'
  return _official(flat, path), 'official'


def save(path: str, params: Mapping[str, Any],
         layout: str = 'official') -> None:
  """Writes parameters as npz or safetensors, whole or not at all.

  Args:
    path: ends in '.npz' or '.safetensors'.
    params: a nested dict of arrays with the published names.
    layout: of the names in the file: 'official', or 'timm' for safetensors.

  Raises:
    UserError: if the suffix does not fit the layout, or the file cannot be
      written.
  """
  suffix = os.path.splitext(path)[1]
  if suffix not in ('.npz', '.safetensors') or layout == 'timm' and (
      suffix == '.npz'):
    raise errors.UserError(
        f'{path!r}: layout {layout} is written to '
        f'{"*.safetensors" if layout == "timm" else "*.npz or *.safetensors"}')
  flat: dict[str, Any]
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


def from_timm(flat: Mapping[str, np.ndarray], source: str) -> dict[str, Any]:
  """Returns parameters as a nested dict with the published names.

  Args:
    flat: arrays by timm's names.
    source: where they are from, for errors.

  Raises:
    UserError: at a name that timm's Mixer does not have.
  """
  out = {}
  known = [(re.escape(theirs).replace(r'\#', r'(\d+)'), ours, axes)
           for ours, theirs, axes in _TIMM]
  for name, value in flat.items():
    match, ours, axes = next(
        ((m, ours, axes) for pattern, ours, axes in known
         if (m := re.fullmatch(pattern, name))), (None, '', None))
    if match is None:
      raise errors.UserError(f"{source!r}: {name!r} is not a parameter of "
                             "timm's Mixer")
    if axes is not None and value.ndim != len(axes):
      raise errors.UserError(f'{source!r}: {name!r} is {list(value.shape)}; '
                             f'expected {len(axes)} axes')
    ours = ours.replace('#', ''.join(match.groups()))
    out[ours] = value if axes is None else value.transpose(np.argsort(axes))
  return trees.unflatten({k: np.ascontiguousarray(v) for k, v in out.items()})


def to_timm(params: Mapping[str, Any]) -> Flat:
  """Returns arrays by timm's names.

  Args:
    params: a nested dict of arrays with a Mixer's published names.

  Raises:
    UserError: if a parameter has no counterpart in timm.
  """
  out = {}
  for name, value in trees.flatten(params).items():
    number = ''.join(re.findall(r'MixerBlock_(\d+)/', name))
    known = _TO_TIMM.get(re.sub(r'MixerBlock_\d+/', 'MixerBlock_#/', name))
    if known is None:
      raise errors.UserError("--layout=timm: timm's Mixer has no parameter "
                             f'{name!r}; use the official layout')
    theirs, axes = known
    value = np.asarray(value)
    out[theirs.replace('#', number)] = np.ascontiguousarray(
        value if axes is None else value.transpose(axes))
  return out


def _official(flat: Flat, path: str) -> dict[str, Any]:
  """Returns parameters of the published layout, or of the one before it."""
  for inside in _INSIDE:
    if any(name.startswith(inside) for name in flat):
      flat = {name.removeprefix(inside): value for name, value in flat.items()
              if name.startswith(inside)}
  try:
    tree = trees.unflatten(recognition.published(flat))
  except (AttributeError, IndexError, TypeError, ValueError) as e:
    raise errors.UserError(
        f'{path!r} holds no parameters of a network: a name of an array is the '
        f'beginning of another: {", ".join(sorted(flat)[:4])}') from e
  return before_linen.translate(tree, path) if 'Mixer' in tree else tree


def _npz(path: str) -> Flat:
  with np.load(path, allow_pickle=False) as f:
    inside = next((p for p in _INSIDE
                   if any(name.startswith(p) for name in f.files)), '')
    return {name: f[name] for name in f.files if name.startswith(inside)}


def _safetensors(path: str) -> Flat:
  return _library('safetensors.numpy', path).load_file(path)


def _torch(path: str) -> Flat:
  torch = _library('torch', path)
  state = torch.load(path, map_location='cpu', weights_only=True)
  for key in ('state_dict', 'model'):
    if isinstance(state, dict) and isinstance(state.get(key), dict):
      state = state[key]
  others = [name for name, value in state.items()
            if not isinstance(value, torch.Tensor)] if isinstance(
                state, dict) else [type(state).__name__]
  if others:
    raise errors.UserError(
        f'{path!r} holds {", ".join(map(str, others[:4]))}; expected tensors '
        "by name, or a dict of them under 'state_dict' or 'model'")
  # A tensor may be a view that repeats one number at will.
  headers.check_total(path, sum(
      value.numel() * value.element_size() for value in state.values()))
  return {name: value.float().numpy() for name, value in state.items()}


def _unwrapped(flat: Flat, path: str) -> Flat:
  """Returns arrays by their names without the prefixes of wrappers."""
  out: Flat = {}
  for name, value in flat.items():
    match = _WRAPPED.match(name)
    bare = name[match.end():] if match else name
    if bare in out:
      raise errors.UserError(f'{path!r} holds two arrays for {bare!r}, with '
                             'different prefixes; expected one')
    out[bare] = value
  return out


def _library(name: str, path: str) -> types.ModuleType:
  """Returns an optional library, or raises a UserError that names it."""
  try:
    return importlib.import_module(name)
  except ImportError as e:
    package = name.partition('.')[0]
    raise errors.UserError(
        f'{path!r} needs {package}, which is not installed: pip install '
        f'{package}' + ('; .safetensors and .npz do not need it'
                        if package == 'torch' else '')) from e


def _float32(value: np.ndarray, name: str, path: str) -> np.ndarray:
  if value.dtype == np.dtype('V2'):   # how NumPy stores bfloat16
    value = value.view(ml_dtypes.bfloat16)
  if value.dtype.kind != 'f' and 'float' not in str(value.dtype):
    raise errors.UserError(f'{path!r}: {name!r} has dtype {value.dtype}; '
                           'expected floating point')
  return np.asarray(value, np.float32)
