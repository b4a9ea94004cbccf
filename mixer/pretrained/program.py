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
import json
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer.images import eval_crops
from mixer.pretrained import network as networks

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
LAYOUTS = ('nhwc', 'nchw')
PRECISIONS = ('float32', 'float16', 'int8')
# ONNX has an operator for GELU since 20; jax2onnx writes nothing after 24.
OPSETS = range(20, 25)
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
    layout: 'nhwc' for images [B, height, width, channels], or 'nchw' for
      [B, channels, height, width].
    precision: of an ONNX file's weights and products. float16 leaves the
      preprocessing, means and probabilities in float32; int8 quantises the
      weights of dense layers, and activations as they come. The images and the
      results have the same dtypes with each.
    opset: version of an ONNX file's operators, in OPSETS.
  """
  preprocess: bool = False
  input_size: Size | None = None
  layout: str = 'nhwc'
  precision: str = 'float32'
  opset: int = OPSETS[0]


def function(network: networks.Network, options: Options,
             platform: str | None = None) -> Callable[[jax.Array], jax.Array]:
  """Returns the network as one function of images, its parameters inside.

  Args:
    network: to be exported.
    options: of the program.
    platform: for which matrix products are formed, see `MlpMixer.platform`.

  Returns:
    images, as the options say -> [B, classes] float32; for a network without a
    head, its pre-logits [B, C].
  """
  model = network.model.clone(platform=platform)
  maps = (None if options.input_size is None else
          crop_maps(network, options.input_size))

  def logits(images):
    return model.apply({'params': network.params}, images)[0]

  def whole(images):
    x = images if options.layout == 'nhwc' else images.transpose(0, 2, 3, 1)
    if not options.preprocess:
      return logits(x)
    x = x.astype(jnp.float32)
    if maps is not None:
      x = crop(x, *maps)
    return probabilities(network, logits((x - 127.5) / 127.5))

  return whole


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
  sides, channels = size or network.image_size, network.model.in_channels
  shape = ([*sides, channels] if options.layout == 'nhwc' else
           [channels, *sides])
  dtype = 'uint8' if preprocess else 'float32'
  name = 'probabilities' if preprocess else 'logits'
  out = jax.eval_shape(function(network, options),
                       jax.ShapeDtypeStruct((1, *shape), dtype))
  # Pixels x in [0, 1] are given as (x - mean) / std.
  half = [0.5] * channels
  given = {} if preprocess else dict(mean=half, std=half)
  return dict(
      precision=options.precision,
      input=dict(name='images', dtype=dtype, shape=['B', *shape],
                 layout=options.layout,
                 range=[0, 255] if preprocess else [-1, 1], **given,
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
  """Writes a network as ONNX, with its card as the file's metadata."""
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
        output_names=[form['output']['name']], opset=options.opset)
  # Old runtimes refuse a file of a newer form than its operators need.
  made.ir_version = min(made.ir_version, onnx.helper.find_min_ir_version_for(
      made.opset_import))
  if options.precision == 'float16':
    made = _in_float16(made, options)
  card = dict(network.card, network=network.title, **form)
  onnx.helper.set_model_props(made, {
      key: value if isinstance(value, str) else json.dumps(value)
      for key, value in card.items()})
  if options.precision != 'int8':
    onnx.save(made, path)
    return
  from onnxruntime import quantization
  # Products of unsigned numbers do not saturate on CPUs without VNNI.
  with quiet():
    quantization.quantize_dynamic(
        made, path, op_types_to_quantize=['MatMul', 'Gemm'], per_channel=True,
        weight_type=quantization.QuantType.QUInt8)


def _in_float16(made: Any, options: Options) -> Any:
  """Returns an ONNX model in float16, by ONNX Runtime's own converter.

  jax2onnx cannot convert a float16 network: it casts all constants to float32.
  """
  from onnxruntime.transformers import float16
  from onnxruntime.transformers import onnx_model
  kinds = [node.op_type for node in made.graph.node]
  # What comes before the patch projection makes whole levels of pixels.
  before = kinds.index('Conv') if options.preprocess else 0
  out = onnx_model.OnnxModel(made)
  with quiet():
    out.convert_float_to_float16(
        use_symbolic_shape_infer=False,
        node_block_list=[node.name for node in made.graph.node[:before]],
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, 'ReduceMean', 'Softmax',
                       'Sigmoid'])
    # The converter adds a cast of a constant for each node that reads it, all
    # by one name.
    once = {(node.name, *node.output): node for node in out.model.graph.node}
    del out.model.graph.node[:]
    out.model.graph.node.extend(once.values())
    out.topological_sort()
  del out.model.graph.value_info[:]   # they have the old types
  return out.model


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
