"""The mistakes of a network as parts of a page: confused classes, and examples.

A part is HTML, made of `core.page`.
"""
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from mixer.core import page
from mixer.evaluation import classification
from mixer.evaluation import confusion
from mixer.images import thumbnails

if TYPE_CHECKING:
  from mixer.analysis.outcomes import Outcome
  from mixer.analysis.outcomes import Outcomes
  from mixer.data import pipeline
  from mixer.pretrained.network import Network

STYLE = '''
.matrix td { padding: .2rem .45rem; min-width: 2.1rem; text-align: center;
  background: color-mix(in srgb, var(--bad) calc(var(--share) * 85%),
  transparent) }
.matrix td.right { background: color-mix(in srgb, var(--mark)
  calc(var(--share) * 45%), transparent) }
.matrix th { white-space: nowrap; max-width: 9rem; overflow: hidden;
  text-overflow: ellipsis }
.matrix thead th { text-align: center; padding: .2rem .45rem;
  max-width: 5rem }
@media (max-width: 480px) {
  .matrix :is(td, thead th) { padding: .2rem .1rem; min-width: 1.6rem } }
.bars span { display: grid; grid-template-columns: 1fr auto; gap: 0 .5rem }
.bars i { grid-column: 1 / -1; height: 3px; border-radius: 2px;
  background: var(--mark); width: calc(var(--share) * 100%) }
.bars .wrong { color: var(--bad) }
.bars .wrong i { background: var(--bad) }
'''
_CLASSES = 20   # of a confusion matrix
_EXAMPLES = 24
_COUNTS = ('examples', 'bad', 'unlabelled')   # of images; no fractions


def make_page(network: 'Network', results: Mapping[str, Any],
              outcomes: 'Outcomes') -> str:
  """Returns a page of all evaluations of a network.

  Args:
    network: the network.
    results, outcomes: as `scoring.evaluate` returns them and puts them out.
  """
  found = {name: {key: value for key, value in scores.items()
                  if isinstance(value, int | float) and key != 'classes'}
           for name, scores in results['evals'].items()}
  for name, shots in results['fewshot'].items():
    found.setdefault(name, {}).update(
        {f'{shot}-shot': value for shot, value in shots.items()})
  parts = [page.section('Results', scores_table(found))]
  for name, outcome in outcomes.items():
    parts += sections(name, outcome, results['evals'][name],
                      network.card['loss'])
  facts = [page.fact(f'{scores["accuracy"]:.2%}', f'accuracy on {name}')
           for name, scores in results['evals'].items()]
  return page.make('Evaluation', f'{network.title}: {network.name}', facts,
                   parts, STYLE)


def scores_table(found: Mapping[str, Mapping[str, float]]) -> str:
  """Returns a table of evaluations and their metrics.

  Args:
    found: {name of the evaluation: {metric, such as 'loss': value}}.
  """
  def cell(kind, value):
    if value is None:
      return ''
    return f'{value:,}' if kind in _COUNTS else (
        f'{float(value):.4f}' if kind == 'loss' else f'{float(value):.2%}')

  kinds = list(dict.fromkeys(kind for row in found.values() for kind in row))
  return page.table(
      [(name, *(cell(kind, row.get(kind)) for kind in kinds))
       for name, row in found.items()],
      ('evaluation', *(kind.replace('_top5', ', top-5').replace('_', ' ')
                       for kind in kinds)))


def sections(name: str, outcome: 'Outcome', scores: Mapping[str, Any],
             loss: str) -> Iterator[str]:
  """Yields the parts that show the mistakes in one evaluation.

  These are a confusion matrix, the pairs of classes that are confused most
  often, and the worst-classified examples. With several labels an image there
  is a table of the classes in place of the first two.

  Args:
    name: of the evaluation.
    outcome: as `scoring.evaluate` puts it out.
    scores: its entry in the 'evals' that `scoring.evaluate` returns.
    loss: what the network was trained with.
  """
  if 'several_labels' in scores:
    yield page.section(f'Classes: {name}', page.table(
        [(r['name'], f'{r["examples"]:,}', *(
            f'{r[key]:.2%}' for key in ('average_precision', 'precision',
                                        'recall', 'f1')))
         for r in sorted(scores['several_labels'],
                         key=lambda r: r['average_precision'])],
        ('class', 'examples', 'average precision', 'precision', 'recall',
         'F1')), 'Each class is predicted on its own. The worst come first.')
  else:
    yield page.section(f'Confusion matrix: {name}', *_matrix(outcome))
    if scores['confused_pairs']:
      yield page.section(f'Confused classes: {name}', page.table(
          [(a, b, f'{there:,}', f'{back:,}', f'{row["share"]:.2%}')
           for row in scores['confused_pairs']
           for (a, b), (there, back) in [(row['names'], row['mistakes'])]],
          ('class', 'taken for', 'times', 'and back', 'share of both')))
  figures = list(_worst(outcome, loss))
  if figures:
    yield page.section(
        f'Worst examples: {name}', page.grid(figures, small=True),
        f'The {len(figures)} wrong predictions with the highest loss. Below '
        'each image: its class, then (red) the predicted class, with their '
        'probabilities.')


def pixels_at(split: 'pipeline.Data', position: int) -> np.ndarray | None:
  """Returns an example's image, uint8 [H, W, C], or None if it is bad.

  An image that lives on the device is as the network gets it, another one
  whole.

  Args:
    split: the split.
    position: of the example.
  """
  if split.resident is not None:
    return split.resident['image'][position]
  assert split.reader is not None
  record = split.split.records(np.array([position]))
  (file, *_), _ = split.source.read(record)
  return split.reader.pixels(int(record[0]), file)


def example(image: np.ndarray, title: str,
            lines: list[tuple[str, float | None]], heading: str = '',
            wrong: int | None = None) -> str:
  """Returns a figure of an image with classes and their probabilities below.

  Args:
    image: uint8 [H, W, C].
    title: name of the image, shown when the mouse is over it.
    lines: (class, its probability or None if that is not known).
    heading: a line above them.
    wrong: which of the lines is a mistake, if any.
  """
  kind = ' class=pixels' if max(image.shape[:2]) < 64 else ''
  heading = heading and f'<b>{page.escape(heading)}</b>'
  shown = ''.join(
      f'<span{" class=wrong" if i == wrong else ""}>'
      f'<span title="{page.escape(name)}">{page.escape(name)}</span>'
      f'<span>{"" if share is None else f"{share:.1%}"}</span>'
      f'<i style="--share:{share or 0:.4f}"></i></span>'
      for i, (name, share) in enumerate(lines))
  return (f'<figure class=bars><img{kind} alt="" title="{page.escape(title)}" '
          f'src="{thumbnails.of_pixels(image)}">'
          f'<figcaption>{heading}{shown}</figcaption></figure>')


def _matrix(outcome: 'Outcome') -> tuple[str, str]:
  """Returns a confusion matrix, and a sentence that explains it."""
  found, names = outcome.found, outcome.names
  classes, counts = confusion.matrix(
      found['labels'], np.where(found['mask'], found['best'][:, 0], -1),
      num_classes=len(names), most=_CLASSES)
  left_out = len(names) - len(classes)
  if not left_out:
    counts = counts[:, :-1]
  cells = [names[k] for k in classes]
  head = ''.join(f'<th title="{page.escape(x)}">{page.escape(x)}</th>'
                 for x in (*cells, *(['others'] if left_out else [])))
  rows = []
  for i, row in enumerate(counts):
    total = max(int(row.sum()), 1)
    rows.append(
        f'<tr><th title="{page.escape(cells[i])}">{page.escape(cells[i])}</th>'
        + ''.join(
            f'<td{" class=right" if i == j else ""} '
            f'style="--share:{_seen(n / total)}">{f"{n:,}" if n else ""}</td>'
            for j, n in enumerate(row.tolist())) + '</tr>')
  about = 'Rows are the true classes, columns the predicted ones.'
  if left_out:
    about += (f' The matrix has the {len(classes)} classes of {len(names):,} '
              'with the most mistakes.')
  return (f'<div class="card"><table class=matrix><thead><tr><th></th>{head}'
          f'</tr></thead><tbody>{"".join(rows)}</tbody></table></div>', about)


def _seen(share: float) -> str:
  """Returns how strong to colour a share, so that a single mistake is seen."""
  return f'{.15 + .85 * share:.3f}' if share else '0'


def _worst(outcome: 'Outcome', loss: str) -> Iterator[str]:
  """Yields figures of the wrong predictions with the highest loss."""
  found, names, split = outcome.found, outcome.names, outcome.split
  labelled = (found['labels'] >= 0).any(1)
  wrong = np.flatnonzero(found['mask'] & labelled
                         & ~classification.hit(found)[:, 0])
  for i in wrong[np.argsort(-found['loss'][wrong], kind='stable')][:_EXAMPLES]:
    image = pixels_at(split, int(i))
    if image is None:
      continue
    labels = [int(k) for k in found['labels'][i] if k >= 0]
    kept = dict(zip(found['best'][i].tolist(),
                    found['probabilities'][i].tolist()))
    truth = kept.get(labels[0])
    # Only for one label of weight 1 is exp(-loss) its probability.
    if (truth is None and loss == 'softmax' and len(labels) == 1
        and 'weights' not in split.source.read(np.zeros(0, np.int64))[1]):
      truth = float(np.exp(-found['loss'][i]))
    best = int(found['best'][i, 0])
    record = int(split.split.records(np.array(int(i))))
    yield example(image, split.source.name_of(record), [
        (', '.join(names[k] for k in labels), truth),
        (names[best], kept[best])], wrong=1)
