"""Few-shot linear evaluation: ridge regression on a frozen model's features.

The paper reports it as "5-shot top-1" (section 3). The scheme is that of
google-research/big_vision, evaluators/fewshot_lsr.py: its examples, its
standardisation, its bias and its l2. There the host solves in float32, which
moves accuracies by a few tenths of a percent; here in float64.

Axes: N examples, D features, E = D + 1 with the bias, K classes.
"""
import numpy as np

from mixer.core import errors
from mixer.core.log import log

BIAS = 100.0   # the constant feature: so large that it is hardly regularised
_EPSILON = 1e-5   # added to standard deviations
_ROWS = 4096   # test examples that are scored at a time


def pick(labels, *, shots, seed, num_classes):
  """The first examples of each class in the order that a seed gives them.

  A function of labels, in their order, and seed: the same examples as
  big_vision's if the split is read in the same order. Of one seed, those for
  fewer shots are among those for more.

  Args:
    labels: int [N]; negative ones are never picked.
    shots: examples a class; one with fewer gives all it has (see `scarce`).
    seed: of the one generator that permutes class after class.
    num_classes: K.

  Returns:
    int64 indices into labels, class after class.
  """
  rng = np.random.default_rng(seed)
  labels = np.asarray(labels)
  return np.concatenate([
      rng.permutation(np.flatnonzero(labels == k))[:shots]
      for k in range(num_classes)])


def scarce(labels, *, shots, num_classes):
  """{class: its examples}, of the classes with fewer examples than shots."""
  labels = np.asarray(labels)
  counts = np.bincount(labels[labels >= 0], minlength=num_classes)
  return {k: int(n) for k, n in enumerate(counts) if n < shots}


def accuracies(train_features, train_labels, test_features, test_labels, *,
               shots=(1, 5, 10, 25), seeds=(0, 1, 2), l2=2**10, num_classes):
  """Top-1 accuracies of linear models fitted to a few examples a class.

  Features are standardised by the mean and deviation of the examples that were
  picked, not of the whole training split.

  Args:
    train_features: float [N, D], what examples are picked from.
    train_labels: int [N]; a negative one leaves its row out, as for an image
      that cannot be decoded.
    test_features, test_labels: alike; a row left out is not counted.
    shots: examples a class, each a model of its own.
    seeds: of `pick`.
    l2: the regularisation; or several, which share one factorisation. None is
      chosen: that takes a split apart from the test's.
    num_classes: K.

  Returns:
    {(shot, seed): accuracy}; for several l2, a list of accuracies in their
    order. Log lines say which classes have too few examples.

  Raises:
    UserError: for shots or l2 that are not positive, labels out of range, or a
      split without a labelled example.
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
        'learn from; take the whole split (folders lie class by class)')
  _tell_scarce(labels, shots, num_classes)
  results = {}
  for shot in shots:
    for seed in seeds:
      chosen = pick(labels, shots=shot, seed=seed, num_classes=num_classes)
      found = _accuracies(train[chosen], labels[chosen], test, truth, strengths,
                          num_classes)
      results[shot, seed] = found if np.ndim(l2) else found[0]
  return results


def means(results):
  """{shot: mean over seeds}, of what `accuracies` returns."""
  return {
      shot: np.mean([v for (s, _), v in results.items() if s == shot],
                    axis=0).tolist()
      for shot in dict.fromkeys(s for s, _ in results)}


def ridge(x_NE, y_NK, strengths):
  """The weights w that minimise |x w - y|^2 + l2 |w|^2, float64 [E, K] an l2.

  They are (x'x + l2 I)^-1 x'y = x'(xx' + l2 I)^-1 y. The smaller of the two
  matrices is factorised, once, as q diag(e) q', so its inverse is
  q diag(1 / (e + l2)) q'.
  """
  n, e = x_NE.shape
  if n >= e:
    eigenvalues, q = np.linalg.eigh(x_NE.T @ x_NE)
    left, right = q, q.T @ (x_NE.T @ y_NK)
  else:
    eigenvalues, q = np.linalg.eigh(x_NE @ x_NE.T)
    left, right = x_NE.T @ q, q.T @ y_NK
  return [(left / (eigenvalues + l2)) @ right for l2 in strengths]


def design(features, mean, deviation):
  """float64 [N, E]: standardised features, and the bias."""
  x = (np.asarray(features, np.float64) - mean) / deviation
  return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)


def _accuracies(features, labels, test, truth, strengths, num_classes):
  """The accuracy on test for each l2 of models fitted to features [N, D]."""
  features = np.asarray(features, np.float64)
  mean, deviation = features.mean(0), features.std(0) + _EPSILON
  # With targets of 0 and 1 all classes' scores would shift alike: same argmax.
  targets = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
  weights = ridge(design(features, mean, deviation), targets, strengths)
  right = [0] * len(strengths)
  for first in range(0, len(test), _ROWS):
    rows = slice(first, first + _ROWS)
    x = design(test[rows], mean, deviation)
    for i, w in enumerate(weights):
      right[i] += int(np.sum(np.argmax(x @ w, axis=1) == truth[rows]))
  return [n / len(test) for n in right]


def _labelled(name, features, labels, num_classes):
  """The rows that have a label, checked."""
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
        f'{num_classes} classes; train and test must share their classes')
  wrong = np.count_nonzero(~np.isfinite(features).all(1))
  if wrong:
    raise errors.RunError(f'few-shot {name} split: the features of {wrong} of '
                          f'{len(labels)} examples are not finite')
  return features, labels


def _tell_scarce(labels, shots, num_classes):
  for shot in shots:
    few = scarce(labels, shots=shot, num_classes=num_classes)
    if few:
      k = min(few, key=few.get)
      log.info('few-shot: %d of %d classes have fewer than %d examples and '
               'give all they have (class %d: %d)', len(few), num_classes, shot,
               k, few[k])
