"""A network as a program of its own: StableHLO or ONNX.

JAX reads StableHLO back and runs it on a CPU, GPU or TPU:

    exported = jax.export.deserialize(bytearray(open(PATH, 'rb').read()))
    logits = exported.call(images)

Both formats take any number of images at once.
"""
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import io
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer.images import eval_crops
from mixer.pretrained import network as networks

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
Size = tuple[int, int]   # height, width
# What runs a file: images -> outputs, NumPy arrays.
Run = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
  """What a program takes and gives.

  Attributes:
    preprocess: without it, images are float32 in [-1, 1] of the network's own
      size, and the results are logits. With it, images are uint8, and the
      results are probabilities: the sigmoid or the softmax of the logits, as
      the card's `loss` says.
    input_size: with `preprocess`, (height, width) of images from which the
      program makes the evaluation's crop: by one matrix product for each side,
      then clipped and cut to whole levels as in `eval_crops.view`. None for
      images of the network's own size.
  """
  preprocess: bool = False
  input_size: Size | None = None


def function(network: networks.Network, options: Options,
             platform: str | None = None) -> Callable[[jax.Array], jax.Array]:
  """Returns the network as one function of images, its parameters inside.

  Args:
    network: to be exported.
    options: of the program.
    platform: for which matrix products are formed, see `MlpMixer.platform`.

  Returns:
    images [B, height, width, channels] -> [B, classes] float32; for a network
    without a head, its pre-logits [B, C].
  """
  model = network.model.clone(platform=platform)
  maps = (None if options.input_size is None else
          crop_maps(network, options.input_size))

  def logits(images):
    return model.apply({'params': network.params}, images)[0]

  def whole(images):
    x = images.astype(jnp.float32)
    if maps is not None:
      x = crop(x, *maps)
    return probabilities(network, logits((x - 127.5) / 127.5))

  return whole if options.preprocess else logits


def crop_maps(network: networks.Network,
              input_size: Size) -> tuple[np.ndarray, np.ndarray]:
  """Returns the evaluation's crop as two linear maps: float32
  (rows [height, input height], columns [width, input width])."""
  like, size = network.card['preprocessing'], network.image_size
  kept, whole, corner = eval_crops.geometry(
      input_size, size=size, crop=like['crop'])
  rows, columns = (np.zeros((n, given), np.float32)
                   for n, given in zip(size, input_size))
  for side, full in enumerate((rows, columns)):
    first = (input_size[side] - kept[side]) // 2
    shown = slice(corner[side], corner[side] + size[side])
    full[:, first:first + kept[side]] = eval_crops.weights(
        kept[side], whole[side], like['interpolation'])[shown]
  return rows, columns


def crop(x_Bhwc: jax.Array, rows_Yh: np.ndarray,
         columns_Xw: np.ndarray) -> jax.Array:
  """Returns the crop of images, float32 [B, Y, X, c] of whole levels."""
  product = lambda pattern, a, b: jnp.einsum(
      pattern, a, b, precision=jax.lax.Precision.HIGHEST)
  x_BhXc = product('bhwc,xw->bhxc', x_Bhwc, columns_Xw)
  x_BYXc = product('bhxc,yh->byxc', x_BhXc, rows_Yh)
  return jnp.floor(jnp.clip(x_BYXc, 0, 255))


def probabilities(network: networks.Network, logits: jax.Array) -> jax.Array:
  """Returns what the card's loss makes of logits; without a head they stay."""
  if not network.model.num_classes:
    return logits
  if network.card['loss'] == 'sigmoid':
    return jax.nn.sigmoid(logits)
  return jax.nn.softmax(logits, axis=-1)


def interface(network: networks.Network, options: Options) -> dict[str, Any]:
  """Returns what goes in and comes out of a program, for its card."""
  preprocess, size = options.preprocess, options.input_size
  shape = [*(size or network.image_size), network.model.in_channels]
  dtype = 'uint8' if preprocess else 'float32'
  name = 'probabilities' if preprocess else 'logits'
  out = jax.eval_shape(function(network, options),
                       jax.ShapeDtypeStruct((1, *shape), dtype))
  return dict(
      input=dict(name='images', dtype=dtype, shape=['B', *shape],
                 range=[0, 255] if preprocess else [-1, 1],
                 whole_photos=size is not None),
      output=dict(name=name if network.model.num_classes else 'pre_logits',
                  dtype='float32', shape=['B', out.shape[-1]]))


def save_stablehlo(network: networks.Network, path: str,
                   options: Options) -> None:
  """Writes a network as StableHLO for all of PLATFORMS."""
  form = interface(network, options)['input']
  batch, = jax.export.symbolic_shape('B')
  made = jax.export.export(
      jax.jit(function(network, options)), platforms=PLATFORMS)(
          jax.ShapeDtypeStruct((batch, *form['shape'][1:]), form['dtype']))
  with open(path, 'wb') as f:
    f.write(made.serialize())


def open_stablehlo(path: str) -> Run:
  """Returns a function that runs a StableHLO file."""
  with open(path, 'rb') as f:
    made = jax.export.deserialize(bytearray(f.read()))
  return lambda images: np.asarray(made.call(images))


def save_onnx(network: networks.Network, path: str,
              options: Options) -> None:
  """Writes a network as ONNX."""
  import jax2onnx
  import onnx
  form = interface(network, options)
  # ONNX has no choice by platform, so the function gets one form of products.
  with quiet(), jax.numpy_rank_promotion('allow'):
    made = jax2onnx.to_onnx(
        function(network, options, platform='cpu'),
        [jax.ShapeDtypeStruct(tuple(form['input']['shape']),
                              form['input']['dtype'])],
        model_name='mixer', input_names=[form['input']['name']],
        output_names=[form['output']['name']])
  onnx.save(made, path)


def open_onnx(path: str) -> Run:
  """Returns a function that runs an ONNX file on the CPU."""
  import onnxruntime
  session = onnxruntime.InferenceSession(
      path, providers=['CPUExecutionProvider'])
  name = session.get_inputs()[0].name
  return lambda images: session.run(None, {name: images})[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps jax2onnx from printing: it reports its progress, and warns about
  parts of itself that it cannot import."""
  before = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.disable(before)
