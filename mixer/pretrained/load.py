"""Parameters from what was saved."""
from mixer.core import checkpoint
from mixer.core import checks
from mixer.core import trees


def load(weights, *, best=False):
  """The parameters of a run; a config's `start` section.

  Args:
    weights: a workdir, whose latest checkpoint is taken, or one of its
      checkpoints, `WORKDIR/checkpoints/STEP`.
    best: of a workdir, the best instead of the latest.

  Returns:
    A nested dict of NumPy arrays with the names of the released checkpoints.

  Raises:
    UserError: if there is none, or it is damaged.
  """
  return checkpoint.load_params(checkpoint.find(weights, best))


def check_fit(params, wanted, source):
  """Raises a UserError that lists every name or shape of `params` that is not
  the `wanted` tree's."""
  have = {k: tuple(v.shape) for k, v in trees.flatten(params).items()}
  want = {k: tuple(v.shape) for k, v in trees.flatten(wanted).items()}
  wrong = [f'{k}: {have.get(k, "missing")}, the model has {want.get(k, "none")}'
           for k in sorted(have.keys() | want.keys())
           if have.get(k) != want.get(k)]
  if wrong:
    raise checks.UserError(
        f'start.weights: {source!r} does not fit the model in {len(wrong)} '
        'places: ' + '; '.join(wrong))
