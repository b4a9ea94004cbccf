"""A network as a file for others: weights, or a program that needs no Mixer.

Weights are npz or safetensors (`formats`). A program is StableHLO, which
JAX reads back and runs on a CPU, GPU or TPU:

    exported = jax.export.deserialize(bytearray(open(PATH, 'rb').read()))
    logits = exported.call(images)

or ONNX. Both take any number of images. Every file is read back, and compared
with the network, before it gets its name; its card lies beside it as FILE.json.
"""
import contextlib
import importlib
import io
import json
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core import trees
from mixer.images import eval_crops
from mixer.pretrained import formats

# StableHLO has no suffix of its own: any that is nobody else's.
SUFFIXES = dict(npz='.npz', safetensors='.safetensors', stablehlo='.stablehlo',
                onnx='.onnx')
_LIBRARIES = dict(safetensors=('safetensors',),
                  onnx=('onnx', 'onnxruntime', 'jax2onnx'))
PROGRAMS = ('stablehlo', 'onnx')
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
LAYOUTS = ('official', 'timm')
TOLERANCE = 1e-4
# Protocol buffers and flat buffers both end at 2 GiB; the program takes some.
_MOST_BYTES = 2**31 - 2**25
_BATCHES = 1, 3   # images of the two calls that a program is checked by
# Of a level, by which float32 sums in another order may differ: a pixel so near
# to a whole level can be cut to either.
_LAST_BITS = 1e-4
_TRIES = 50   # to find images that have no such pixel


def export(network, path, *, format, layout='official', preprocess=False,
           input_size=None):
  """Writes a network, checks what was written, and describes it.

  Args:
    network: `network.Network`.
    path: of the file; `path`.json beside it becomes its card.
    format: a key of SUFFIXES.
    layout: of the names of weights, one of LAYOUTS; timm's for safetensors.
    preprocess: whether a program takes uint8 and gives probabilities, see
      `function`.
    input_size: (height, width) of its images, see `function`.

  Returns:
    dict: `bytes`, of the file; `difference`, the largest between it and the
    network: 0 for weights, which are the same bits, of a program's outputs.

  Raises:
    UserError: if the arguments do not go together, a library is missing, or it
      cannot be written.
    RunError: if what was written is not the network; nothing is left at `path`.
  """
  check(path, format=format, layout=layout, preprocess=preprocess,
        input_size=input_size)
  root, suffix = os.path.splitext(path)
  partial = f'{root}.partial{suffix}'
  options = dict(preprocess=preprocess, input_size=input_size)
  card = dict(network.card)
  try:
    if format not in PROGRAMS:
      formats.save(partial, network.params, layout)
      difference = _same_bits(network, partial)
    else:
      _fits(network, path)
      save, run = dict(stablehlo=(_save_stablehlo, _run_stablehlo),
                       onnx=(_save_onnx, _run_onnx))[format]
      save(network, partial, **options)
      difference = _compare(network, run(partial), path, **options)
      card.update(_interface(network, **options))
    size = os.path.getsize(partial)
    files.write(path + '.json', json.dumps(card, indent=2) + '\n')
    os.replace(partial, path)
  except OSError as e:
    raise errors.UserError(
        f'--out: {path!r} cannot be written: {e.strerror or e}') from e
  finally:
    with contextlib.suppress(OSError):
      os.remove(partial)
  return dict(bytes=size, difference=difference)


def check(path, *, format, layout, preprocess, input_size):
  """Raises UserError if the arguments of `export` do not go together, or the
  format's libraries are missing."""
  if format not in SUFFIXES:
    raise errors.unknown('--format', format, SUFFIXES)
  if layout not in LAYOUTS:
    raise errors.unknown('--layout', layout, LAYOUTS)
  suffix = os.path.splitext(path)[1]
  others = {*SUFFIXES.values(), '.pth', '.pt', '.json'} - {SUFFIXES[format]}
  if suffix != SUFFIXES[format] and (
      format != 'stablehlo' or not suffix or suffix in others):
    raise errors.UserError(f'--out: {path!r}: a file of format {format} ends '
                           f'in {SUFFIXES[format]}')
  folder = os.path.dirname(path) or '.'
  if files.is_remote(path) or not os.path.isdir(folder) or os.path.isdir(path):
    raise errors.UserError(f'--out: {path!r}: expected a file in a local '
                           'folder that is there; make it first')
  if layout == 'timm' and format != 'safetensors':
    raise errors.UserError('--layout: timm is for --format=safetensors, not '
                           f'{format}')
  if preprocess and format not in PROGRAMS:
    raise errors.UserError('--preprocess: is for the programs, stablehlo and '
                           f'onnx; {format} is weights, and its card says how '
                           'images are prepared')
  if input_size is not None and not preprocess:
    raise errors.UserError('--input_size: the size of photos that the program '
                           'itself crops, which goes with --preprocess')
  for name in _LIBRARIES.get(format, ()):
    _library(name, format)


def function(network, *, preprocess=False, input_size=None):
  """The network as one function of images, its parameters inside.

  Args:
    network: `network.Network`.
    preprocess: as it is, images are float32 in [-1, 1] of the network's own
      size, and logits come out. With it, images are uint8, and probabilities
      come out: by the card's `loss` the sigmoid or the softmax of the logits.
    input_size: (height, width) of images of which the evaluation's crop is
      made, by one matrix product a side, and cut to whole levels, as
      `views.view` does; None for the network's own size.

  Returns:
    images [B, height, width, channels] -> [B, classes] float32; a network
    without a head gives [B, C], its pre-logits, either way.
  """
  maps = None if input_size is None else _maps(network, input_size)

  def logits(images):
    return network.model.apply({'params': network.params}, images)[0]

  def whole(images):
    x = images.astype(jnp.float32)
    if maps is not None:
      x = _shown(x, *maps)
    return _probabilities(network, logits((x - 127.5) / 127.5), jax.nn)

  return whole if preprocess else logits


def _maps(network, input_size):
  """float32 (rows [height, h], columns [width, w]) of the evaluation's crop."""
  like, out = network.card['preprocessing'], []
  kept, whole, corner = eval_crops.geometry(
      input_size, size=network.image_size, crop=like['crop'])
  for side in range(2):
    first = (input_size[side] - kept[side]) // 2
    shown = slice(corner[side], corner[side] + network.image_size[side])
    full = np.zeros((network.image_size[side], input_size[side]), np.float32)
    full[:, first:first + kept[side]] = eval_crops.weights(
        kept[side], whole[side], like['interpolation'])[shown]
    out.append(full)
  return out


def _shown(x_Bhwc, rows_Yh, columns_Xw):
  product = lambda pattern, a, b: jnp.einsum(
      pattern, a, b, precision=jax.lax.Precision.HIGHEST)
  x_BhXc = product('bhwc,xw->bhxc', x_Bhwc, columns_Xw)
  x_BYXc = product('bhxc,yh->byxc', x_BhXc, rows_Yh)
  return jnp.floor(jnp.clip(x_BYXc, 0, 255))


def _probabilities(network, logits, nn):
  if not network.model.num_classes:
    return logits
  if network.card['loss'] == 'sigmoid':
    return nn.sigmoid(logits)
  return nn.softmax(logits, axis=-1)


def _interface(network, *, preprocess, input_size):
  """What goes in and comes out, for the card."""
  height, width = input_size or network.image_size
  classes = network.model.num_classes
  return dict(
      input=dict(name='images', dtype='uint8' if preprocess else 'float32',
                 shape=['B', height, width, network.model.in_channels],
                 range=[0, 255] if preprocess else [-1, 1],
                 whole_photos=input_size is not None),
      output=dict(name=_output(network, preprocess), dtype='float32',
                  shape=['B', classes or network.model.hidden_dim]))


def _output(network, preprocess):
  if not network.model.num_classes:
    return 'pre_logits'
  return 'probabilities' if preprocess else 'logits'


def _save_stablehlo(network, path, **options):
  form = _interface(network, **options)['input']
  batch, = jax.export.symbolic_shape('B')
  made = jax.export.export(
      jax.jit(function(network, **options)), platforms=PLATFORMS)(
          jax.ShapeDtypeStruct((batch, *form['shape'][1:]), form['dtype']))
  with open(path, 'wb') as f:
    f.write(made.serialize())


def _run_stablehlo(path):
  with open(path, 'rb') as f:
    made = jax.export.deserialize(bytearray(f.read()))
  return lambda images: np.asarray(made.call(images))


def _save_onnx(network, path, **options):
  import jax2onnx
  import onnx
  form = _interface(network, **options)
  with _quiet(), jax.numpy_rank_promotion('allow'):
    made = jax2onnx.to_onnx(
        function(network, **options),
        [jax.ShapeDtypeStruct(tuple(form['input']['shape']),
                              form['input']['dtype'])],
        model_name='mixer', input_names=[form['input']['name']],
        output_names=[form['output']['name']])
  onnx.save(made, path)


def _run_onnx(path):
  import onnxruntime
  session = onnxruntime.InferenceSession(
      path, providers=['CPUExecutionProvider'])
  name = session.get_inputs()[0].name
  return lambda images: session.run(None, {name: images})[0]


def _same_bits(network, path):
  """0.0, for the weights in a file are the network's; else raises RunError."""
  wanted = trees.flatten(network.params)
  written = trees.flatten(formats.load(path))
  bits = lambda x: np.asarray(x, np.float32).view(np.uint32)
  wrong = [name for name in sorted(wanted.keys() | written.keys())
           if name not in wanted or name not in written
           or not np.array_equal(bits(wanted[name]), bits(written[name]))]
  if wrong:
    raise errors.RunError(
        f'what was written is not {network.name!r}, in {len(wrong)} tensors, '
        f'{wrong[0]} the first: nothing was exported')
  return 0.0


def _compare(network, run, path, *, preprocess, input_size):
  """The largest difference of outputs; raises RunError if it is too large.

  Logits are compared as such, relative to the largest, and as probabilities.
  """
  images, *shown = _images(network, sum(_BATCHES), preprocess, input_size)
  as_output = lambda x: np.asarray(
      _probabilities(network, jnp.asarray(x), jax.nn))
  with _on_cpu():
    got = np.concatenate([run(x) for x in np.split(images, _BATCHES[:-1])])
    logits = np.asarray(jax.jit(network.model.apply)(
        {'params': network.params}, np.concatenate(shown))[0])
    wanted, *extremes = np.split(as_output(logits), len(shown))
    worst = 0.0
    if not preprocess:   # may be wrong though small as a probability
      worst = _largest(got, logits) / max(1.0, float(np.abs(logits).max()))
      got = as_output(got)
  worst = max(worst, _largest(got, wanted))
  allowed = TOLERANCE + (_largest(*extremes) if extremes else 0)
  if not worst <= allowed < np.inf:
    raise errors.RunError(
        f'what was written to {path!r} differs from {network.name!r} by '
        f'{worst:.1e}, allowed are {allowed:.1e}: nothing was exported')
  return worst


def _largest(a, b):
  """Infinite also for what is not a number."""
  if a.shape != b.shape:
    return np.inf
  return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())


def _images(network, count, preprocess, input_size):
  """Images for the program, and float32 ones for the network.

  With an `input_size` the latter are three: what `views.view` shows, and that
  with every pixel in doubt cut to the lower, and to the higher level. None is
  in doubt if the crop's weights allow: thirds do not.
  """
  height, width = input_size or network.image_size
  shape = count, height, width, network.model.in_channels
  rng = np.random.default_rng(0)
  if not preprocess:
    images = rng.uniform(-1, 1, shape).astype(np.float32)
    return images, images
  images = rng.integers(0, 256, shape, np.uint8)
  signed = lambda x: (x.astype(np.float32) - 127.5) / 127.5
  if input_size is None:
    return images, signed(images)
  rows, columns = _maps(network, input_size)
  # Sums of products with whole 64ths are exact in float32, in any order; and a
  # single product has no order.
  sixtyfourths, single = (
      test(rows)[:, None] & test(columns) for test in (
          lambda side: (side * 64 % 1 == 0).all(axis=1),
          lambda side: (side != 0).sum(axis=1) == 1))
  rounded = ~(sixtyfourths | single)[:, :, None]
  doubt = _LAST_BITS * rounded
  for tries in range(_TRIES):
    exact = np.einsum('yh,bhwc,xw->byxc', rows.astype(float), images,
                      columns.astype(float), optimize=True)
    b, y, x, c = np.nonzero(
        (np.abs(exact - np.round(exact)) < doubt)
        & (exact > -doubt) & (exact < 255 + doubt))
    if not b.size or tries == _TRIES - 1:
      break
    # Draws the pixel anew that counts most.
    images[b, rows[y].argmax(1), columns[x].argmax(1), c] = rng.integers(
        0, 256, b.size)
  shown = np.stack([eval_crops.view(image, size=network.image_size,
                               **network.card['preprocessing'])
                    for image in images])
  low, high = (np.floor(np.clip(exact + bits, 0, 255))
               for bits in (-doubt, doubt))
  if not np.all((low <= shown) & (shown <= high)):
    raise errors.RunError(f'{network.name!r}: the crop of {height}x{width} '
                          'images is not the one of evaluation')
  return images, signed(shown), signed(low), signed(high)


def _fits(network, path):
  size = sum(x.nbytes for x in trees.flatten(network.params).values())
  if size > _MOST_BYTES:
    raise errors.UserError(
        f'--out: {path!r}: {size / 2**30:.2f} GiB of parameters, and a file of '
        'this format ends at 2 GiB; export them as safetensors')


def _library(name, format):
  try:
    with _quiet():
      return importlib.import_module(name)
  except ImportError as e:
    raise errors.UserError(
        f'--format: {format} needs {name}, which cannot be imported ({e}): '
        "pip install '.[export]', in this project's folder") from e


@contextlib.contextmanager
def _quiet():
  """jax2onnx prints what it does, and warns of the parts it cannot load."""
  before = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.disable(before)


def _on_cpu():
  """Where products are whole float32, and ONNX Runtime computes as well."""
  try:
    return jax.default_device(jax.devices('cpu')[0])
  except RuntimeError:   # JAX_PLATFORMS leaves it out
    return contextlib.nullcontext()
