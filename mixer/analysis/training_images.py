"""Says which images of an evaluation a network may have been trained on."""
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import TYPE_CHECKING

from mixer.core import errors
from mixer.core import workdir
from mixer.core.log import log
from mixer.data import pipeline
from mixer.data import splits
from mixer.evaluation import suite

if TYPE_CHECKING:
  from mixer.pretrained.network import Network


def warn(network: 'Network', evals: Mapping[str, pipeline.Data],
         fewshots: Mapping[str, suite.FewShot]) -> None:
  """Warns of evaluations on training images, and of data that changed since.

  Images that were held out by their position in a folder are others once a
  file was added or removed.

  Args:
    network: whose card has the data that it was trained on.
    evals, fewshots: as `suite.open_evaluations` returns them.
  """
  trained = (network.card.get('provenance') or {}).get('data') or {}
  run = workdir.run_of(network.name)
  config = (workdir.config_of(run) if run else None) or {}
  relabelled = config.get('data', {}).get('labels')
  tested = {f'evals.{name}': split for name, split in evals.items()} | {
      f'fewshot.{name}.test': parts.test for name, parts in fewshots.items()}
  for key, data in tested.items():
    if data.source.fingerprint == trained.get('source'):
      if train := _training_split(data.source.stored, trained):
        splits.log_shared(train, data.split, key, 'were trained on')
    elif (trained and data.source.name == network.card['data']
          and not relabelled and not data.source.relabelled):
      log.warning('%s: %s has changed since the network was trained on it; '
                  'images that were held out then may have been replaced by '
                  'training images', key, data.source.name)


def _training_split(stored: splits.Stored,
                    trained: Mapping[str, Any]) -> splits.Split | None:
  """Returns the split that a network was trained on, if its length is right.

  Args:
    stored: the splits of the same source, as an evaluation has them. It may
      hold out a tenth of the only split where training did not, or the reverse.
    trained: 'split' and its number of 'examples'.
  """
  tries = [stored]
  name, piece = next(iter(stored.items()))
  if isinstance(piece, splits.Piece):
    if len(stored) == 1:
      tries.append({name: splits.hold_out(piece, splits.HELD_OUT_EVERY)[0]})
    elif piece.every:
      count = sum(part.stop for part in stored.values())
      tries.append({name: dataclasses.replace(piece, stop=count, every=0)})
  for each in tries:
    try:
      found = splits.select(each, trained.get('split') or '', 'data.split')
    except errors.UserError:   # the same set under another name
      continue
    if len(found) == trained.get('examples'):
      return found
  return None
