"""Finds overrides of a config that would not change an evaluation."""
from typing import Any
from typing import TYPE_CHECKING

from mixer.analysis import scoring
from mixer.core import errors
from mixer.core import workdir
from mixer.evaluation import suite

if TYPE_CHECKING:
  from mixer.pretrained.network import Network

_READ = (*suite.INHERITED, 'split', 'held_out')   # of the section `data`


def check(key: str, value: Any, network: 'Network', data: str | None = None,
          fewshot: bool = False) -> None:
  """Refuses an override of the config that would not change the evaluation.

  Args:
    key: of the config, such as 'evals.test.split'.
    value: what it is set to.
    network: the network to evaluate.
    data: as for `scoring.requested`.
    fewshot: whether there are few-shot evaluations, whose preprocessing is the
      config's.

  Raises:
    UserError: if nothing reads the key, or not for this network.
  """
  size = dict(zip(('run.image_size', 'run.image_width'), network.image_size))
  section, _, rest = key.partition('.')
  if key in size:
    why = '' if value == size[key] else (
        f'got {value}, and this network is for images of '
        f'{network.image_size[0]}x{network.image_size[1]}; fine-tune it for '
        'another size by mixer.main with --config.start.weights and '
        '--config.run.image_size')
  elif section not in ('data', 'evals', 'fewshot') or (
      section == 'data' and rest not in _READ):
    why = ('an evaluation does not read it, only the sections evals and '
           f'fewshot, and of data {", ".join(_READ)}; '
           'leave it out, or give --batch_size for batches')
  elif data and key not in [f'data.{kept}' for kept in scoring.KEPT]:
    why = (f'--data={data} replaces the data and evaluations of the config, '
           f'but for data.{", data.".join(scoring.KEPT)}; give only one')
  else:
    own = (section == 'evals' or section == 'data' and not fewshot) and (
        rest.rpartition('.')[2] in network.card['preprocessing']
        and not workdir.run_of(network.name))
    why = (f'{network.name!r} is evaluated with the preprocessing that it was '
           'trained with; leave it out') if own else ''
  if why:
    raise errors.UserError(f'--config.{key}: {why}')
