"""Exports a network: its weights, or a program that runs without this project.

  python -m mixer.export --checkpoint=runs/digits --format=onnx --out=d.onnx
  python -m mixer.export --checkpoint=Mixer-B/16-imagenet1k \\
    --format=safetensors --layout=timm --out=b16.safetensors
  python -m mixer.export --checkpoint=WORKDIR --best --format=stablehlo \\
    --preprocess --input_size=480x640 --out=camera.stablehlo

The command reads the file back and compares it with the network. If they
differ, it leaves no file and exits with code 1. It also writes a card,
OUT.json: class names, preprocessing, and the inputs and outputs of a program.
Every command takes a local file with its card beside it as a --checkpoint.

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
ONNX runs with ONNX Runtime:
  onnxruntime.InferenceSession(FILE).run(None, {'images': images})
Images have the shape [number, height, width, channels].
"""
from collections.abc import Sequence
import re

from absl import flags

from mixer.core import command
from mixer.core import errors

_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'The network: a workdir, WORKDIR/checkpoints/STEP, a '
    'file or address of weights, or the name of a release.')
_BEST = flags.DEFINE_bool('best', False, "Export a workdir's best checkpoint "
                          'instead of its latest.')
_FORMAT = flags.DEFINE_enum('format', None, ['npz', 'safetensors', 'stablehlo',
                                             'onnx'], 'Output format.')
_OUT = flags.DEFINE_string('out', None, 'Output file.')
_LAYOUT = flags.DEFINE_enum('layout', 'official', ['official', 'timm'],
                            'Parameter names in a safetensors file.')
_PREPROCESS = flags.DEFINE_bool('preprocess', False, 'Make a program that '
                                'takes uint8 images and gives probabilities.')
_INPUT_SIZE = flags.DEFINE_string(
    'input_size', None, 'Size of the photos that the program crops, '
    'HEIGHTxWIDTH in pixels; needs --preprocess.')


def main(argv: Sequence[str]) -> None:
  """Exports the network that the flags name."""
  del argv
  checkpoint, format, path = (
      _required(_CHECKPOINT, 'runs/digits'), _required(_FORMAT, 'onnx'),
      _required(_OUT, 'digits.onnx'))
  from mixer import pretrained
  from mixer.pretrained import export
  from mixer.pretrained import program
  options = program.Options(_PREPROCESS.value, _input_size())
  export.check(path, format, _LAYOUT.value, options)
  network = pretrained.open_network(checkpoint, best=_BEST.value)
  model = network.card['model']
  height, width = network.image_size
  print(f'{network.name}: {network.title}, for {height}x{width} images, '
        f'{model["num_classes"] or "no"} classes')
  out = export.export(
      network, path, format=format, layout=_LAYOUT.value,
      preprocess=options.preprocess, input_size=options.input_size)
  print(f'{path}: {format}, {out["bytes"] / 2**20:,.1f} MiB; '
        'read back: ' + (
            f'outputs differ by at most {out["difference"]:.1e}'
            if format in export.PROGRAMS else 'every bit is the same'))
  print(f'{path}.json: its card')
  if _LAYOUT.value == 'timm':
    print('made for pixels in [-1, 1]: use mean 0.5 and std 0.5 in timm')
    print('trained with the tanh form of GELU; timm computes the exact form, '
          'and its outputs differ by up to a few 1e-3'
          if model.get('approximate_gelu') else
          'trained with the exact form of GELU, which timm computes')


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
