"""Says which images of an evaluation a network may have been trained on."""
from collections.abc import Mapping
from typing import TYPE_CHECKING

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
  tested = {f'evals.{name}': split for name, split in evals.items()} | {
      f'fewshot.{name}.test': parts.test for name, parts in fewshots.items()}
  for key, data in tested.items():
    if data.source.fingerprint == trained.get('source'):
      stored = splits.carve(data.source.stored, _wanted(network, trained),
                            data.source.name)
      train = splits.select(stored, trained['split'], 'data.split')
      if len(train) == trained['examples']:
        splits.log_shared(train, data.split, key, 'were trained on')
    elif (trained and data.source.name == network.card['data']
          and not data.source.relabelled):
      log.warning('%s: %s has changed since the network was trained on it, so '
                  'these may be images that it was trained on', key,
                  data.source.name)


def _wanted(network, trained):
  """Returns the splits that the network's run asked of its data."""
  run = workdir.run_of(network.name)
  config = run and workdir.config_of(run)
  if not config:
    return trained['split'],
  return splits.wanted(suite.sections(config)[0], config['data']['name'])
