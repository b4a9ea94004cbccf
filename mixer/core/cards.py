"""A network's card: what it takes to use the network, as JSON.

A card is a dict with these keys:
  model: the arguments of `models.create`.
  image_size: [height, width] in pixels.
  class_names: in the order of the logits, or None.
  data: name of the training set, or None.
  loss: 'softmax' or 'sigmoid', which turns logits into probabilities.
  preprocessing: the crop and interpolation of `mixer.images.eval_crops`. Pixels
    from 0 to 255 always enter the network as (x - 127.5) / 127.5.
  provenance: what the network was trained with, see `core.provenance`; absent
    if that is not known. A run keeps it in its config.json.

A run keeps its card as model.json; a file of weights or a program has its card
beside it, as FILE.json.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any

from mixer.core import errors

_KEYS = ('model', 'image_size', 'class_names', 'data', 'loss', 'preprocessing')
_LARGEST_SIDE = 16_384   # pixels


def make(model: Mapping[str, Any], *, image_size: Sequence[int],
         class_names: Sequence[str] | None = None, data: str | None = None,
         loss: str = 'softmax', crop: str,
         interpolation: str) -> dict[str, Any]:
  """Returns a card, ready for JSON.

  Args:
    model: as `catalog.describe` returns it.
    image_size: (height, width).
    class_names, data, loss: see the top of the file.
    crop, interpolation: of the preprocessing.
  """
  return dict(
      model=dict(model), image_size=list(image_size),
      class_names=None if class_names is None else list(class_names),
      data=data, loss=loss,
      preprocessing=dict(crop=crop, interpolation=interpolation))


def parse(text: str, file: str, *, crops: Sequence[str],
          interpolations: Sequence[str]) -> dict[str, Any]:
  """Returns the card that a file holds.

  Args:
    text: what the file holds.
    file: its path, for errors.
    crops, interpolations: the values that preprocessing may have.

  Raises:
    UserError: if it is not a card, naming the key and the value.
  """
  try:
    card = json.loads(text)
    missing = [key for key in _KEYS if key not in card]
  except (ValueError, TypeError, RecursionError) as e:
    raise errors.UserError(f"{file!r} is not a network's card: {e}") from e
  if missing:
    raise errors.UserError(f'{file!r} lacks {", ".join(missing)}; training and '
                           'mixer.export write whole cards')
  size, like = card['image_size'], card['preprocessing']
  names, model = card['class_names'], card['model']
  made = card.get('provenance')
  classes = model.get('num_classes', 1000) if isinstance(model, dict) else None
  for key, right in (
      ('model', isinstance(model, dict) and 'name' in model
       and isinstance(classes, int | None)),
      ('class_names', names is None or isinstance(names, list)
       and isinstance(classes, int) and len(names) <= classes
       and all(isinstance(name, str) for name in names)),
      ('image_size', isinstance(size, list) and len(size) == 2
       and all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE
               for side in size)),
      ('loss', card['loss'] in ('softmax', 'sigmoid')),
      ('preprocessing', isinstance(like, dict)
       and like.keys() == {'crop', 'interpolation'}
       and like['crop'] in crops
       and like['interpolation'] in interpolations),
      ('provenance', made is None or isinstance(made, dict)
       and isinstance(made.get('versions', {}), dict))):
    if not right:
      value = repr(card[key])
      value = value if len(value) < 200 else f'{value[:200]}...'
      raise errors.UserError(f'{file!r}: {key} is {value}, which training and '
                             'mixer.export never write')
  return card
