"""The official code's first layout of parameters, from before flax.linen.

Its modules were numbered across classes: 'Mixer/encoderblock_0/...'.
"""
from typing import Any

from mixer.core import errors


def translate(tree: dict[str, Any], path: str) -> dict[str, Any]:
  """Returns parameters with the published names, of those of the first layout.

  Args:
    tree: nested dict of arrays, as the file holds them.
    path: of the file, for errors.

  Raises:
    UserError: if a part of the network is missing.
  """
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
