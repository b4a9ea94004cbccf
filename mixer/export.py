"""Exports a network: its weights, or a program that runs without this project.

  python -m mixer.export --checkpoint=runs/digits --format=onnx --out=d.onnx
  python -m mixer.export --checkpoint=Mixer-B/16-imagenet1k \\
    --format=safetensors --layout=timm --out=b16.safetensors
  python -m mixer.export --checkpoint=WORKDIR --best --format=stablehlo \\
    --preprocess --input_size=480x640 --out=camera.stablehlo

The command reads the file back and compares it with the network. If they
differ, it leaves no file and exits with code 1. It also writes a card,
OUT.json: class names, preprocessing, and the inputs and outputs of a program.
Every command takes a local npz or safetensors file with its card beside it as a
--checkpoint.

Weights: npz has the official code's layout, safetensors has that layout or
timm's. timm computes the exact form of GELU. The official weights, and runs
with the default settings, were trained with the tanh form, for which timm's
outputs differ by up to a few 1e-3. All networks here take pixels in [-1, 1],
also those from MIIL, which timm feeds with pixels in [0, 1].

Programs take any number of images at once:
  by default: float32 images in [-1, 1] of the network's own size, to logits;
  with --preprocess: uint8 images of that size, to probabilities;
  with --preprocess --input_size: uint8 photos of the given size, which the
    program crops as evaluation does, to probabilities.

StableHLO runs on CPUs, GPUs and TPUs, with JAX:
  program = jax.export.deserialize(bytearray(open(FILE, 'rb').read()))
  program.call(images)
ONNX runs with ONNX Runtime 1.17 and later, and holds its card as metadata:
  onnxruntime.InferenceSession(FILE).run(None, {'images': images})
Images have the shape [number, height, width, channels]; with --layout=nchw,
[number, channels, height, width].

--precision=float16 halves an ONNX file. It may differ from the network by
2**-11 times the root of the number of parameter arrays, 0.6% for Mixer-B/16.
--precision=int8 quantises dense layers by ONNX Runtime. The command then prints
the accuracy of the network and of the file on the run's evaluations, or on
--data.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import re
import typing
from typing import Any

from absl import flags

from mixer.core import command
from mixer.core import errors

if typing.TYPE_CHECKING:
  from mixer.analysis import quantization
  from mixer.pretrained import network as networks
  from mixer.pretrained import program

_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'The network: a workdir, WORKDIR/checkpoints/STEP, a '
    'file or address of weights, or the name of a release.')
_BEST = flags.DEFINE_bool('best', False, "Export a workdir's best checkpoint "
                          'instead of its latest.')
_AVERAGE = flags.DEFINE_bool(
    'average', False, 'Use the averaged parameters of a run with run.average.')
_FORMAT = flags.DEFINE_enum('format', None, ['npz', 'safetensors', 'stablehlo',
                                             'onnx'], 'Output format.')
_OUT = flags.DEFINE_string('out', None, 'Output file.')
_LAYOUT = flags.DEFINE_enum(
    'layout', None, ['official', 'timm', 'nhwc', 'nchw'], 'official or timm: '
    'parameter names in a file of weights; nhwc or nchw: order of the axes of '
    "a program's images. By default official, and nhwc.")
_PREPROCESS = flags.DEFINE_bool('preprocess', False, 'Make a program that '
                                'takes uint8 images and gives probabilities.')
_INPUT_SIZE = flags.DEFINE_string(
    'input_size', None, 'Size of the photos that the program crops, '
    'HEIGHTxWIDTH in pixels; needs --preprocess.')

_PRECISION = flags.DEFINE_enum(
    'precision', 'float32', ['float32', 'float16', 'int8'], 'Precision of an '
    'ONNX file; its inputs and outputs have the same types with each.')
_OPSET = flags.DEFINE_integer('opset', 20, 'Version of the operators of an '
                              'ONNX file, 20 to 24.')

_DATA = flags.DEFINE_string(
    'data', None, 'With --precision=int8, a data set to measure the accuracy '
    "on, in place of the evaluations of the network's run: folder:PATH, "
    'manifest:PATH, arrays:PATH.npz or a TFDS name.')
_IMAGES = flags.DEFINE_integer('images', 2000, 'How many images of each split '
                               'to measure it on, at most; 0 for none.', 0)


def main(argv: Sequence[str]) -> None:
  """Exports the network that the flags name."""
  del argv
  checkpoint, format, path = (
      _required(_CHECKPOINT, 'runs/digits'), _required(_FORMAT, 'onnx'),
      _required(_OUT, 'digits.onnx'))
  from mixer import pretrained
  from mixer.pretrained import export
  options: dict[str, Any] = dict(
      layout=_LAYOUT.value, preprocess=_PREPROCESS.value,
      input_size=_input_size(), precision=_PRECISION.value, opset=_OPSET.value)
  wanted = export.check(path, format, **options)
  for flag in (_DATA, _IMAGES):
    if flag.present and (wanted.precision != 'int8' or wanted.input_size):
      raise errors.UserError(f'--{flag.name}: is for --precision=int8 without '
                             '--input_size; leave it out')
  network = pretrained.open_network(checkpoint, best=_BEST.value,
                                    average=_AVERAGE.value)
  model = network.card['model']
  height, width = network.image_size
  print(f'{network.name}: {network.title}, for {height}x{width} images, '
        f'{model["num_classes"] or "no"} classes')
  measured = _measured(network, wanted) if wanted.precision == 'int8' else None
  out = export.export(network, path, format=format, **options)
  whole = (f' (in float32 {out["float32_bytes"] / 2**20:,.1f} MiB)'
           if wanted.precision != 'float32' else '')
  print(f'{path}: {format}, {out["bytes"] / 2**20:,.1f} MiB{whole}; '
        'read back: ' + (
            f'outputs differ by at most {out["difference"]:.1e}'
            if format in export.PROGRAMS else 'every bit is the same'))
  print(f'{path}.json: its card')
  if measured:
    _show_loss(network, path, wanted, *measured)
  if _LAYOUT.value == 'timm':
    print('made for pixels in [-1, 1]: use mean 0.5 and std 0.5 in timm')
    print('trained with the tanh form of GELU; timm computes the exact form, '
          'and its outputs differ by up to a few 1e-3'
          if model.get('approximate_gelu') else
          'trained with the exact form of GELU, which timm computes')


def _measured(network: 'networks.Network', options: 'program.Options'
              ) -> tuple[dict[str, Any], 'quantization.Scores'] | None:
  """Returns (the evaluations to measure int8 on, the network's own scores), or
  says why there are none. Data that cannot be read ends the command here,
  before it writes a file."""
  from mixer.analysis import quantization
  no = 'the accuracy of int8 is not measured: '
  if options.input_size:
    print(f'{no}the program crops photos; export without --input_size too')
  elif not network.model.num_classes:
    print(f'{no}the network has no head')
  elif _IMAGES.value:
    config = quantization.config_of(network, _DATA.value)
    if config:
      return config, quantization.measure(network, config, _IMAGES.value)
    print(f'{no}no evaluation split is known; add --data=folder:PATH')
  return None


def _show_loss(network: 'networks.Network', path: str,
               options: 'program.Options', config: Mapping[str, Any],
               scores: 'quantization.Scores') -> None:
  """Prints the accuracy of the network and of its int8 file."""
  from mixer.analysis import quantization
  from mixer.core import tables
  after = quantization.measure_file(network, path, options, config,
                                    _IMAGES.value)
  tables.show(tables.make(
      quantization.rows(scores, after),
      ('split', 'images', 'float32', 'int8', 'points', 'same class'),
      title='top-1 accuracy of the network and of its int8 file'))


def _required(flag: flags.FlagHolder, example: str) -> str:
  if flag.value is None:
    raise errors.UserError(f'--{flag.name} is required, such as '
                           f'--{flag.name}={example}')
  return flag.value


def _input_size() -> tuple[int, int] | None:
  if _INPUT_SIZE.value is None:
    return None
  match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', _INPUT_SIZE.value)
  if not match:
    raise errors.UserError(f'--input_size: {_INPUT_SIZE.value!r}: expected '
                           'HEIGHTxWIDTH in pixels, such as 480x640')
  return int(match[1]), int(match[2])


if __name__ == '__main__':
  command.run(main)
