"""Shares of a split, such as its first tenth, as names of slices."""
from mixer.data import splits


def share(stored: splits.Stored, spec: str, begin: float, end: float,
          key: str) -> str:
  """Returns the name of a share of a split, such as 'train[0:1500]'.

  A share that begins with 0 is a subset of each larger one. Where slices follow
  the fixed permutation, and in TFDS sets, which are mixed when they are
  prepared, a share is a random subset, drawn without regard to the classes.

  Args:
    stored: the splits of a source.
    spec: the split to cut, such as 'train[:99%]'. Of 'train+validation', each
      part gives the same share.
    begin, end: the limits of the share, from 0 to 1.
    key: the config key that holds `spec`, for error messages.

  Raises:
    UserError: as `select` does, and if the share holds no examples.
  """
  out = '+'.join(
      f'{name}[{start + round(begin * (stop - start))}:'
      f'{start + round(end * (stop - start))}]'
      for name, start, stop in splits.parts(stored, spec, key))
  splits.select(stored, out, key)
  return out
