"""Few-shot linear evaluation: ridge regression on a frozen network's features.

The paper reports it as "5-shot top-1" (section 3). The method is big_vision's,
https://github.com/google-research/big_vision,
big_vision/evaluators/fewshot_lsr.py: the same examples, standardisation, bias
and l2. It solves in float32 where this module uses float64; that moves
accuracies by a few tenths of a percent.

Axes: N examples, D features, E = D + 1 with the bias, K classes.
"""
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.core.log import log

# The defaults of a config's `fewshot.NAME` section, which are big_vision's.
SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2 = 2.0**10

BIAS = 100.0   # the constant feature: so large that it is hardly regularised
_EPSILON = 1e-5   # added to standard deviations
_ROWS = 4096   # test examples that are scored at a time


def read_section(
    *, train: str = 'train', test: str = 'test', name: str | None = None,
    dir: str | None = None, crop: str = 'resize_crop',
    interpolation: str | None = None, on_device: bool | None = None,
    shots: Sequence[int] = SHOTS, seeds: int = len(SEEDS), l2: float = L2,
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
  """Reads a config's `fewshot.NAME` section; None stands for `data`'s value.

  Args:
    train, test: splits; examples are picked from the first.
    name, dir, crop, interpolation, on_device: as `pipeline.open_data` takes
      them.
    shots: numbers of examples per class; each is an evaluation of its own.
    seeds: how often to repeat it with other examples; the mean is reported.
    l2: regularisation of the ridge regression.

  Returns:
    (settings of both splits, {'train': split, 'test': split}, arguments of
    `accuracies`).

  Raises:
    UserError: if a number is not positive.
  """
  for key, values in (('shots', shots), ('seeds', [seeds]), ('l2', [l2])):
    if not len(values) or not all(v > 0 for v in values):
      raise errors.UserError(f'fewshot.{key}: expected above 0, got {values}')
  common = dict(name=name, dir=dir, crop=crop, interpolation=interpolation,
                on_device=on_device)
  return (common, dict(train=train, test=test),
          dict(shots=tuple(shots), seeds=tuple(range(seeds)), l2=l2))


def pick(labels: np.ndarray, *, shots: int, seed: int,
         num_classes: int) -> np.ndarray:
  """Returns the indices of a few examples of each class.

  They depend on nothing but the arguments. They are big_vision's examples if
  the split is read in the same order. With one seed, the examples for fewer
  shots are among those for more.

  Args:
    labels: int [N]; negative ones are never picked.
    shots: examples per class; a class with fewer gives all it has.
    seed: of the one generator that permutes the classes in turn.
    num_classes: K.

  Returns:
    int64, class after class.
  """
  rng = np.random.default_rng(seed)
  labels = np.asarray(labels)
  return np.concatenate([
      rng.permutation(np.flatnonzero(labels == k))[:shots]
      for k in range(num_classes)])


def scarce(labels: np.ndarray, *, shots: int,
           num_classes: int) -> dict[int, int]:
  """Returns {class: its examples} for classes with fewer examples than shots.
  """
  labels = np.asarray(labels)
  counts = np.bincount(labels[labels >= 0], minlength=num_classes)
  return {k: int(n) for k, n in enumerate(counts) if n < shots}


def accuracies(train_features: np.ndarray, train_labels: np.ndarray,
               test_features: np.ndarray, test_labels: np.ndarray, *,
               shots: Sequence[int] = SHOTS, seeds: Sequence[int] = SEEDS,
               l2: float | Sequence[float] = L2,
               num_classes: int) -> dict[tuple[int, int], Any]:
  """Returns the test accuracy of linear models fitted to a few examples.

  Features are standardised by the mean and standard deviation of the picked
  examples, not of the whole training split.

  Args:
    train_features: float [N, D], from which examples are picked.
    train_labels: int [N]; a negative label leaves the row out, as for an image
      that cannot be decoded.
    test_features, test_labels: the same for the test split.
    shots: numbers of examples per class; each fits a model of its own.
    seeds: for `pick`; each fits a model of its own.
    l2: the regularisation, or several of them. To choose among several, use a
      split other than the test split.
    num_classes: K.

  Returns:
    {(shot, seed): accuracy}. With several l2, each value is a list of
    accuracies in their order.

  Raises:
    UserError: if shots or l2 are not positive, a label is out of range, a split
      has no labelled example, or the first has none of a class of the second.
    RunError: if features are not finite.
  """
  strengths = [float(x) for x in np.atleast_1d(l2)]
  for name, values in (('shots', shots), ('l2', strengths)):
    if not all(x > 0 for x in values):
      raise errors.UserError(
          f'{name}: expected numbers above 0, got {list(values)}')
  train, labels = _labelled('train', train_features, train_labels, num_classes)
  test, truth = _labelled('test', test_features, test_labels, num_classes)
  none = sorted(set(scarce(labels, shots=1, num_classes=num_classes))
                & set(truth.tolist()))
  if none:
    raise errors.UserError(
        f'few-shot: the classes {none[:10]} are tested and have no example to '
        'learn from; use a larger part of the training split')
  _log_scarce(labels, shots, num_classes)
  results: dict[tuple[int, int], Any] = {}
  for shot in shots:
    for seed in seeds:
      chosen = pick(labels, shots=shot, seed=seed, num_classes=num_classes)
      found = _accuracies(train[chosen], labels[chosen], test, truth, strengths,
                          num_classes)
      results[shot, seed] = found if np.ndim(l2) else found[0]
  return results


def means(results: Mapping[tuple[int, int], Any]) -> dict[int, Any]:
  """Returns {shot: mean over seeds} of what `accuracies` returns."""
  return {
      shot: np.mean([v for (s, _), v in results.items() if s == shot],
                    axis=0).tolist()
      for shot in dict.fromkeys(s for s, _ in results)}


def scored(train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray],
           **settings: Any) -> dict[int, Any]:
  """Returns {shot: mean accuracy} from the outcomes of two splits.

  Args:
    train, test: 'features' [N, D], 'labels' [N], the first of each example, and
      'mask' [N], whether it can be decoded.
    **settings: of `accuracies`.
  """
  labels = lambda found: np.where(found['mask'], found['labels'], -1)
  return means(accuracies(train['features'], labels(train), test['features'],
                          labels(test), **settings))


def ridge(x_NE: np.ndarray, y_NK: np.ndarray,
          strengths: Iterable[float]) -> list[np.ndarray]:
  """Returns the weights w that minimise |x w - y|^2 + l2 |w|^2.

  They are w = (x'x + l2 I)^-1 x'y = x'(xx' + l2 I)^-1 y. The smaller of the two
  matrices is factorised once, as q diag(e) q'; its inverse for any l2 is then
  q diag(1 / (e + l2)) q'.

  Args:
    x_NE: float64 [N, E], see `design`.
    y_NK: float64 [N, K], the targets.
    strengths: the values of l2.

  Returns:
    float64 [E, K] for each l2.
  """
  n, e = x_NE.shape
  if n >= e:
    eigenvalues, q = np.linalg.eigh(x_NE.T @ x_NE)
    left, right = q, q.T @ (x_NE.T @ y_NK)
  else:
    eigenvalues, q = np.linalg.eigh(x_NE @ x_NE.T)
    left, right = x_NE.T @ q, q.T @ y_NK
  return [(left / (eigenvalues + l2)) @ right for l2 in strengths]


def design(features: np.ndarray, mean: np.ndarray | float,
           deviation: np.ndarray | float) -> np.ndarray:
  """Returns the standardised features with the bias, float64 [N, E]."""
  x = (np.asarray(features, np.float64) - mean) / deviation
  return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)


def _accuracies(features, labels, test, truth, strengths: list[float],
                num_classes: int) -> list[float]:
  """Returns, for each l2, the accuracy on `test` of a model fitted to features.
  """
  features = np.asarray(features, np.float64)
  mean, deviation = features.mean(0), features.std(0) + _EPSILON
  # Targets of 0 and 1 would halve the scores and shift those of all classes by
  # the same amount: the predictions would not change.
  targets = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
  weights = ridge(design(features, mean, deviation), targets, strengths)
  right = [0] * len(strengths)
  for first in range(0, len(test), _ROWS):
    rows = slice(first, first + _ROWS)
    x = design(test[rows], mean, deviation)
    for i, w in enumerate(weights):
      right[i] += int(np.sum(np.argmax(x @ w, axis=1) == truth[rows]))
  return [n / len(test) for n in right]


def _labelled(name: str, features: np.ndarray, labels: np.ndarray,
              num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows with a label, checked."""
  features, labels = np.asarray(features), np.asarray(labels)
  if features.ndim != 2 or labels.shape != features.shape[:1]:
    raise ValueError(f'{name}: expected features [N, D] and labels [N], got '
                     f'{features.shape} and {labels.shape}')
  if not np.all(labels >= 0):
    features, labels = features[labels >= 0], labels[labels >= 0]
  if not len(labels):
    raise errors.UserError(f'few-shot {name} split: no example has a label; '
                           'name a split with labels')
  if labels.max() >= num_classes:
    raise errors.UserError(
        f'few-shot {name} split: label {labels.max()} is out of range for '
        f'{num_classes} classes; train and test must have the same classes')
  wrong = np.count_nonzero(~np.isfinite(features).all(1))
  if wrong:
    raise errors.RunError(f'few-shot {name} split: the features of {wrong} of '
                          f'{len(labels)} examples are not finite')
  return features, labels


def _log_scarce(labels: np.ndarray, shots: Sequence[int],
                num_classes: int) -> None:
  for shot in shots:
    few = scarce(labels, shots=shot, num_classes=num_classes)
    if few:
      k = min(few, key=lambda k: few[k])
      log.info('few-shot: %d of %d classes have fewer than %d examples and '
               'give all they have (class %d: %d)', len(few), num_classes, shot,
               k, few[k])
