"""Writes a network for others: its weights, or a program that needs no Mixer.

  python -m mixer.export --checkpoint=runs/digits --format=onnx --out=d.onnx
  python -m mixer.export --checkpoint=Mixer-B/16-imagenet1k \\
    --format=safetensors --layout=timm --out=b16.safetensors
  python -m mixer.export --checkpoint=WORKDIR --best --format=stablehlo \\
    --preprocess --input_size=480x640 --out=camera.stablehlo

What was written is read back and compared with the network; if it differs, no
file is left and the exit code is 1. Beside FILE lies its card, FILE.json: class
names, preprocessing, and what a program takes and gives. A local file with its
card beside it is a --checkpoint of every command.

npz has the official code's layout, safetensors that or timm's. timm computes
the exact form of GELU, the official weights were trained with the tanh form:
of a network that was, timm's outputs differ by up to a few 1e-3. Pixels are in
[-1, 1] for every network here, also for miil's, which timm shows [0, 1].

Programs take float32 images of the network's own size in [-1, 1], any number
at once, and give logits; with --preprocess uint8 images and probabilities; with
--input_size uint8 photos of that size, from which the program itself makes the
crop of evaluation. In Python StableHLO runs on CPUs, GPUs and TPUs as
jax.export.deserialize(bytearray(open(FILE, 'rb').read())).call(images); ONNX
as onnxruntime.InferenceSession(FILE).run(None, {'images': images}), images
[number, height, width, channels].
"""
import re

from absl import flags

from mixer.core import command
from mixer.core import errors

_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'A workdir, one of its checkpoints, a file or address '
    'of weights, or the name of a release.')
_BEST = flags.DEFINE_bool('best', False, 'Of a workdir, the best checkpoint.')
_FORMAT = flags.DEFINE_enum('format', None, ['npz', 'safetensors', 'stablehlo',
                                             'onnx'], 'Of the file.')
_OUT = flags.DEFINE_string('out', None, 'The file.')
_LAYOUT = flags.DEFINE_enum('layout', 'official', ['official', 'timm'],
                            "Of safetensors: whose names. timm's GELU is the "
                            'exact one, see above.')
_PREPROCESS = flags.DEFINE_bool('preprocess', False, 'Of programs: take uint8, '
                                'give probabilities.')
_INPUT_SIZE = flags.DEFINE_string('input_size', None, 'With --preprocess: '
                                  'HEIGHTxWIDTH of photos to crop inside.')


def main(argv):
  del argv
  for flag, example in ((_CHECKPOINT, 'runs/digits'), (_FORMAT, 'onnx'),
                        (_OUT, 'digits.onnx')):
    if flag.value is None:
      raise errors.UserError(f'--{flag.name} is required, such as '
                             f'--{flag.name}={example}')
  from mixer import pretrained
  from mixer.pretrained import export
  options = dict(format=_FORMAT.value, layout=_LAYOUT.value,
                 preprocess=_PREPROCESS.value, input_size=_input_size())
  export.check(_OUT.value, **options)
  network = pretrained.open_network(_CHECKPOINT.value, best=_BEST.value)
  model = network.card['model']
  height, width = network.image_size
  print(f'{network.name}: {network.title}, for {height}x{width} images, '
        f'{model["num_classes"] or "no"} classes')
  out = export.export(network, _OUT.value, **options)
  print(f'{_OUT.value}: {_FORMAT.value}, {out["bytes"] / 2**20:,.1f} MiB; '
        'read back, ' + (
            f'it differs by at most {out["difference"]:.1e}'
            if _FORMAT.value in export.PROGRAMS else 'every bit is the same'))
  print(f'{_OUT.value}.json: its card')
  if _LAYOUT.value == 'timm':
    print('made for pixels in [-1, 1]: mean and std are 0.5 in timm')
    print('trained with the tanh form of GELU; timm computes the exact one, '
          'and its outputs differ by up to a few 1e-3'
          if model['approximate_gelu'] else
          'trained with the exact form of GELU, as timm computes it')


def _input_size():
  """(height, width), or None."""
  if _INPUT_SIZE.value is None:
    return None
  match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', _INPUT_SIZE.value)
  if not match:
    raise errors.UserError(f'--input_size: {_INPUT_SIZE.value!r}: expected '
                           'HEIGHTxWIDTH in pixels, such as 480x640')
  return int(match[1]), int(match[2])


if __name__ == '__main__':
  command.run(main)
