"""A network's card: what a program needs to use it, besides its weights.

A card is a dict that JSON can hold, with these keys:
- `model`: the arguments of `models.create`.
- `image_size`: [height, width] in pixels.
- `class_names`: a list, or None.
- `data`: what the network was trained on, or None.
- `loss`: 'softmax' or 'sigmoid', which turns logits into probabilities.
- `preprocessing`: the `crop` and the `interpolation` of
  `mixer.images.eval_crops`. Pixels 0 to 255 always enter the network as
  (x - 127.5) / 127.5.

A run keeps its card as model.json, and an exported file has one as FILE.json.
"""
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

KEYS = ('model', 'image_size', 'class_names', 'data', 'loss', 'preprocessing')


def make(model: Mapping[str, Any], *, image_size: Sequence[int], crop: str,
         interpolation: str, class_names: Sequence[str] | None = None,
         data: str | None = None, loss: str = 'softmax') -> dict[str, Any]:
  """Returns a card; the arguments are the keys above."""
  return dict(
      model=dict(model), image_size=list(image_size),
      class_names=None if class_names is None else list(class_names),
      data=data, loss=loss,
      preprocessing=dict(crop=crop, interpolation=interpolation))
