"""Experiment: the paper's tables 1 to 3, beside what is computed and measured.

Parameters and multiply-adds are computed for every network that this code has,
with 1,000 classes and at the image size of the row. It trains nothing.
With a topology, networks are compiled for a TPU too, see `calibration`.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from mixer import models
from mixer.analysis import calibration
from mixer.core import errors
from mixer.core import tables
from mixer.experiments import networks as families
from mixer.experiments import run_records
from mixer.models import grid
from mixer.models import interface
from mixer.models import published

_SIZE = 224   # side of the images in pre-training
_SHORT = {published.I1K: 'i1k', published.I21K: 'i21k',
          'unlabelled jft': 'unlab.', 'web pairs': 'web'}


def run(config: None, path: str, *, runs: Sequence[str] = (),
        metric: str | None = None, topology: str | None = None,
        networks: Sequence[str] = families.FAMILIES) -> dict[str, Any]:
  """Computes the cost of the paper's networks, and reads what runs reached.

  Args:
    config: unused.
    path: directory of the experiment, which keeps compiled programs.
    runs: workdirs of the user's runs.
    metric: as for `run_records.read`.
    topology: a slice of TPU v3 to compile for, such as 'v3:2x2', or None.
    networks: families to compile, of 'Mixer', 'ViT' and 'BiT'.

  Returns:
    'table_1', a row for each network at 224 pixels; 'table_2' and 'table_3',
    the fields of `published.Row` and the cost; 'runs', as `run_records.read`
    returns them, and 'paper', the row of table 3 for the same network and data,
    if the images have 224 pixels.
    Networks that this code does not have lack 'parameters' and 'gmacs'.
    'calibration', as `calibration.run` returns it, only with a topology.

  Raises:
    UserError: if a run is not there or lacks the metric, or nothing can be
      compiled.
  """
  del config
  chosen = families.families(networks)
  if topology is None and chosen != families.FAMILIES:
    raise errors.UserError('--networks: chooses what table compiles; add '
                           '--topology, such as --topology=v3:2x2')
  rows = run_records.read_all(runs, metric)
  for row in rows:
    same = None if row['start'] or set(row['size']) != {_SIZE} else (
        published.row(row['name'], row['data']))
    row['paper'] = same and dataclasses.asdict(same)
  out: dict[str, Any] = {}
  if topology is not None:
    out.update(calibration=calibration.run(path, topology, {
        (row.name, row.size): functools.partial(network, row.name, row.size)
        for row in published.TABLE_3
        if row.size and row.name.partition('-')[0] in chosen}))
  return dict(
      out, table_1=[_size(name) for name in models.names()],
      table_2=[_with_cost(row) for row in published.TABLE_2],
      table_3=[_with_cost(row) for row in published.TABLE_3], runs=rows)


def network(name: str, image_size: int, **settings: Any) -> interface.Model:
  """Returns a network as the paper fine-tunes it.

  At K times the size of pre-training, the token-mixing MLPs of a Mixer are K^2
  times as wide (appendix C).

  Args:
    name: as `models.create` takes it.
    image_size: side in pixels.
    **settings: other arguments of `models.create`.
  """
  model = models.create(name, **settings)
  if not name.startswith('Mixer') or image_size == _SIZE:
    return model
  return model.clone(
      tokens_mlp_dim=model.tokens_mlp_dim * (image_size // _SIZE)**2)


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  first = tables.make(
      [(row['name'], *(_text(row[key]) for key in (
          'blocks', 'channels', 'tokens', 'paper_millions')),
        f'{row["no_head"]:,}', f'{row["parameters"]:,}',
        f'{row["gmacs_no_head"]:.4f}', f'{row["gmacs"]:.4f}')
       for row in found['table_1']],
      ('table 1', 'blocks', 'C', 'S', 'paper', 'no head', '1,000 classes',
       'GMACs, no head', 'GMACs'),
      title=f'Parameters and GMACs at {_SIZE} pixels. "paper" has millions of '
      'parameters, without a head',
      caption='GMACs: 10^9 multiply-adds of one image; FLOPs are twice as many')
  tables.show(first, _results(found['table_2'], 'table 2', 'vtab', 'VTAB'),
              _results(found['table_3'], 'table 3', 'epochs', 'epochs'))
  if found['runs']:
    tables.show(_own(found['runs']))
  if 'calibration' in found:
    tables.show(calibration.table(found['calibration']))


def _size(name: str) -> dict[str, Any]:
  """Returns the row of a network in table 1."""
  model, body = models.create(name), models.create(name, num_classes=None)
  mixer = name.startswith('Mixer')
  return dict(
      name=name, blocks=getattr(model, 'num_blocks', None),
      channels=getattr(model, 'hidden_dim', None),
      tokens=grid.tokens(_SIZE, model.patch_size) if mixer else None,
      paper_millions=published.MILLIONS.get(name),
      no_head=body.parameters(_SIZE),
      parameters=model.parameters(_SIZE),
      gmacs_no_head=body.multiply_adds(_SIZE) / 1e9,
      gmacs=model.multiply_adds(_SIZE) / 1e9)


def _with_cost(row: published.Row) -> dict[str, Any]:
  """Returns the fields of a row, and its cost if this code has the network."""
  out = dataclasses.asdict(row)
  if row.size:   # the paper gives none for networks that this code lacks
    model = network(row.name, row.size)
    out.update(parameters=model.parameters(row.size),
               gmacs=model.multiply_adds(row.size) / 1e9)
  return out


def _results(rows: Sequence[Mapping[str, Any]], title: str, key: str,
             heading: str) -> Any:
  """Returns table 2 or 3; `key` is the column that the other one lacks."""
  return tables.make(
      [(row['name'], _SHORT.get(row['data'], row['data']), _text(row['size']),
        _text(row[key]), *(_text(row[k], '.2f') for k in (
            'top1', 'real', 'avg5')), _text(row['speed'], ','),
        f'{row["core_days"]:,}{row["marks"]}',
        f'{row["parameters"] / 1e6:,.1f}M' if 'parameters' in row else '-',
        f'{row["gmacs"]:.2f}' if 'gmacs' in row else '-') for row in rows],
      (title, 'data', 'size', heading, 'top-1', 'ReaL', 'avg 5', 'img/s',
       'days', 'here', 'GMACs'), left=2,
      title='The paper\'s results; weights (here) and GMACs are this code\'s, '
      'with 1,000 classes',
      caption='img/s: for a TPUv3 core, in prediction. days: TPUv3 core-days '
      'of pre-training.' + ' ‡ extrapolated by the paper. ☎ private '
      'communication.' * any(row['marks'] for row in rows))


def _own(rows: Sequence[Mapping[str, Any]]) -> Any:
  """Returns the table of the user's runs, beside the paper's figures."""
  cells = []
  for row in rows:
    paper = row['paper'] or {}
    cells.append((
        row['label'], row['name'], row['data'], f'{row["value"]:.2%}',
        # After other pre-training, the paper's accuracy is not on these data.
        f'{paper["top1"]}%' if row['data'] == published.I1K and paper
        else '-', _text(row['speed'], ',.0f'),
        _text(row['device_days'], '.2g'), _text(paper.get('core_days'), ','),
        f'{row["parameters"] / 1e6:.3g}M',
        f'{row["multiply_adds"] / 1e9:,.3g}'))
  return tables.make(
      cells, ('run', 'network', 'data', 'accuracy', 'paper', 'img/s', 'days',
              'paper', 'weights', 'GMACs'), left=3,
      title=f'Your runs, by {run_records.title(rows)}; paper: its longest run '
      'of the same network, data and image size',
      caption='img/s: for a device, in training. days: device-days of training.'
      ' Of the paper: TPUv3 core-days.')


def _text(value: Any, form: str = '') -> str:
  return '-' if value is None else format(value, form)
