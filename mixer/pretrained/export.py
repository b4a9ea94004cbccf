"""A network as a file for others: weights, or a program that needs no Mixer.

Weights are npz or safetensors (`formats`), programs are StableHLO or ONNX
(`program`). Every file is read back and compared with the network before it
gets its name (`export_check`); its card lies beside it as FILE.json.
"""
import contextlib
import dataclasses
import importlib
import json
import os
from typing import Any

from mixer.core import errors
from mixer.core import files
from mixer.core import trees
from mixer.pretrained import export_check
from mixer.pretrained import formats
from mixer.pretrained import network as networks
from mixer.pretrained import program

# StableHLO has no suffix of its own: any that belongs to no other format.
SUFFIXES = dict(npz='.npz', safetensors='.safetensors', stablehlo='.stablehlo',
                onnx='.onnx')
PROGRAMS = ('stablehlo', 'onnx')
# The first is the default.
LAYOUTS = dict(npz=('official',), safetensors=('official', 'timm'),
               stablehlo=program.LAYOUTS, onnx=program.LAYOUTS)
_TIED = ('tied', 'grouped:1', 'pyramid:1')   # the same network
_LIBRARIES = dict(safetensors=('safetensors',),
                  onnx=('onnx', 'onnxruntime', 'jax2onnx'))
# Protocol buffers and flat buffers both end at 2 GiB; the program takes some.
_MOST_BYTES = 2**31 - 2**25


def export(network: networks.Network, path: str, *, format: str,
           layout: str | None = None, **options: Any) -> dict[str, float]:
  """Writes a network, checks what was written, and writes its card.

  Args:
    network: to be exported.
    path: of the file; its card is `path`.json.
    format: a key of SUFFIXES.
    layout: of the names of weights, or of a program's images: one of LAYOUTS.
    **options: of a program, see `program.Options`.

  Returns:
    dict: `bytes`, the size of the file; `difference`, the largest between the
    file and the network: 0 for weights, a difference of outputs for a program;
    and `float32_bytes`, the size of a program in float32.

  Raises:
    UserError: if the arguments do not go together, a library is missing, or
      the file cannot be written.
    RunError: if what was written is not the network; nothing is left at `path`.
  """
  wanted = check(path, format, layout, **options)
  if layout == 'timm' and network.model.pixel_order and format not in PROGRAMS:
    raise errors.UserError(
        f'--layout: timm would not permute the pixels of its images, and this '
        f'network needs them in the order {network.model.pixel_order!r}; '
        'export a program, --format=stablehlo or onnx')
  mixing = getattr(network.model, 'token_mixing', 'tied')
  if layout == 'timm' and format not in PROGRAMS and mixing not in _TIED:
    raise errors.UserError(
        f'--layout: timm mixes tokens by one MLP, and this network by '
        f'{mixing!r}; use the official layout, or export a program')
  root, suffix = os.path.splitext(path)
  partial = f'{root}.partial{suffix}'
  card = dict(network.card)
  more: dict[str, float] = {}
  try:
    if format not in PROGRAMS:
      formats.save(partial, network.params, layout or 'official')
      difference = export_check.weights(network, partial)
    else:
      _check_size(network, path)
      save, run = dict(
          stablehlo=(program.save_stablehlo, program.open_stablehlo),
          onnx=(program.save_onnx, program.open_onnx))[format]
      # A program is checked in float32 before it loses precision.
      for precision in dict.fromkeys(('float32', wanted.precision)):
        step = dataclasses.replace(wanted, precision=precision)
        save(network, partial, step)
        more.setdefault('float32_bytes', os.path.getsize(partial))
        difference = export_check.outputs(network, run(partial), path, step)
      card.update(program.interface(network, wanted))
    # The card comes first: a file that has its name is complete.
    size = os.path.getsize(partial)
    files.write(path + '.json', json.dumps(card, indent=2) + '\n')
    os.replace(partial, path)
  except OSError as e:
    raise errors.UserError(
        f'--out: {path!r} cannot be written: {e.strerror or e}') from e
  finally:
    with contextlib.suppress(OSError):
      os.remove(partial)
  return dict(bytes=size, difference=difference, **more)


def check(path: str, format: str, layout: str | None = None,
          **options: Any) -> program.Options:
  """Returns the options of a program, from the arguments of `export`.

  Raises:
    UserError: if they do not go together, or a library that the format needs
      is missing.
  """
  if format not in SUFFIXES:
    raise errors.unknown('--format', format, SUFFIXES)
  known = LAYOUTS[format]
  layout = layout or known[0]
  if layout not in known:
    fit = [key for key, layouts in LAYOUTS.items() if layout in layouts]
    if not fit:
      raise errors.unknown('--layout', layout, known)
    raise errors.UserError(f'--layout: {layout} is for --format='
                           f'{" or ".join(fit)}, not {format}')
  made = program.Options(layout=layout, **options)
  suffix = os.path.splitext(path)[1]
  others = {*SUFFIXES.values(), '.pth', '.pt', '.json'} - {SUFFIXES[format]}
  if suffix != SUFFIXES[format] and (
      format != 'stablehlo' or not suffix or suffix in others):
    raise errors.UserError(f'--out: {path!r}: a file of format {format} ends '
                           f'in {SUFFIXES[format]}')
  folder = os.path.dirname(path) or '.'
  if files.is_remote(path) or not os.path.isdir(folder) or os.path.isdir(path):
    raise errors.UserError(f'--out: {path!r}: expected a file in a local '
                           'folder that exists; make the folder first')
  if made.preprocess and format not in PROGRAMS:
    raise errors.UserError('--preprocess: is for the programs, stablehlo and '
                           f'onnx; {format} holds weights, and its card says '
                           'how to prepare images')
  if made.input_size is not None and not made.preprocess:
    raise errors.UserError('--input_size: is for programs that crop photos '
                           'themselves; add --preprocess')
  if made.precision not in program.PRECISIONS:
    raise errors.unknown('--precision', made.precision, program.PRECISIONS)
  if made.opset not in program.OPSETS:
    raise errors.UserError(
        f'--opset: {made.opset}: expected {program.OPSETS[0]} to '
        f'{program.OPSETS[-1]}; ONNX Runtime reads 20 since its version 1.17')
  for key, value in dict(precision='float32', opset=program.OPSETS[0]).items():
    if format != 'onnx' and getattr(made, key) != value:
      raise errors.UserError(f'--{key}: is for --format=onnx, not {format}')
  for name in _LIBRARIES.get(format, ()):
    try:
      with program.quiet():
        importlib.import_module(name)
    except ImportError as e:
      raise errors.UserError(
          f'--format: {format} needs {name}, which cannot be imported ({e}): '
          "pip install '.[export]', in this project's folder; if versions "
          'conflict, as on Colab, into an environment of its own, as '
          'docs/launching.md shows') from e
  return made


def _check_size(network: networks.Network, path: str) -> None:
  size = sum(x.nbytes for x in trees.flatten(network.params).values())
  if size > _MOST_BYTES:
    raise errors.UserError(
        f'--out: {path!r}: {size / 2**30:.2f} GiB of parameters, but a file of '
        'this format holds at most 2 GiB; export them as safetensors')
