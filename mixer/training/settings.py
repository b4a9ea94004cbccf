"""The `run` section of a config: length, batch size, image size, seed, periods.
"""
import dataclasses
import math

import jax

from mixer.core import errors

PRECISIONS = ('float32', 'bfloat16')
NONFINITE = ('skip', 'stop')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The `run` section of a config.

  Attributes:
    batch_size: images in the global batch of one update.
    total_steps: number of updates; give either this or `total_epochs`.
    total_epochs: the same length in passes over the training split.
    seed: of the initial parameters, the data order and every random draw.
    image_size: side in pixels, or (height, width).
    image_width: width in pixels if `image_size` is only the height.
    precision: 'float32' or 'bfloat16', the dtype of the computation; parameters
      are always float32. None means bfloat16 on accelerators and float32 on a
      CPU.
    log_every: steps between logged training metrics.
    eval_every: steps between evaluations; 0 evaluates only after the last step.
    patience: how many evaluations without a new best of `checkpoint.best` end
      the run; 0 for never.
    micro_batches: number of parts into which each batch is split to save
      memory; their gradients are averaged before the update.
    average: decay of an exponential moving average of the parameters, such as
      0.999, which is evaluated beside them; None for none. See
      `optimizers.averaged`.
    nonfinite: what happens to an update that is not finite: 'skip' leaves it
      out, and after 3 skipped updates in a row or 10 in a run goes back once to
      the last checkpoint before them, then stops; 'stop' ends the run at the
      next logged step.
    heartbeat_timeout_seconds: with several processes, how long one may be
      silent before the others treat it as dead and exit.
    stall_seconds: how long a read of a batch, a step, an evaluation or a
      checkpoint may take before the log reports it; 0 reports nothing.
  """
  batch_size: int
  total_steps: int | None = None
  total_epochs: float | None = None
  seed: int = 0
  image_size: int | tuple[int, int] = 224
  image_width: int | None = None
  precision: str | None = None
  log_every: int = 50
  eval_every: int = 0
  patience: int = 0
  micro_batches: int = 1
  average: float | None = None
  nonfinite: str = 'skip'
  heartbeat_timeout_seconds: int = 30
  stall_seconds: float = 300.0

  def __post_init__(self) -> None:
    for key in ('batch_size', 'log_every', 'micro_batches',
                'heartbeat_timeout_seconds'):
      if getattr(self, key) < 1:
        raise errors.UserError(f'run.{key}: expected at least 1, got '
                               f'{getattr(self, key)}')
    if not 0 <= self.stall_seconds < math.inf:
      raise errors.UserError(
          'run.stall_seconds: expected a number of seconds, or 0 for no '
          f'reports, got {self.stall_seconds}')
    if self.image_width is not None:
      if self.image_width < 1:
        raise errors.UserError(f'run.image_width: expected at least 1, got '
                               f'{self.image_width}')
      if not isinstance(self.image_size, int):
        raise errors.UserError(
            f'run.image_width: {self.image_width} is given, but run.image_size '
            f'{self.image_size} has a width already; remove one of them')
      object.__setattr__(self, 'image_size',
                         (self.image_size, self.image_width))
    lengths = [self.total_steps, self.total_epochs]
    if lengths.count(None) != 1 or any(
        length is not None and length <= 0 for length in lengths):
      raise errors.UserError(
          'run: expected either total_steps or total_epochs, above 0, got '
          f'total_steps={self.total_steps} and '
          f'total_epochs={self.total_epochs}')
    if self.precision not in (None, *PRECISIONS):
      raise errors.unknown('run.precision', self.precision, PRECISIONS)
    if not 0 <= (self.average or 0) < 1:
      raise errors.UserError('run.average: expected a number from 0 to below '
                             f'1, got {self.average}')
    if self.nonfinite not in NONFINITE:
      raise errors.unknown('run.nonfinite', self.nonfinite, NONFINITE)

  def dtype_on(self, platform: str | None) -> str:
    """Returns the dtype of the computation on a platform.

    Args:
      platform: 'cpu', 'gpu' or 'tpu', as `sharding.Plan.platform`; None for the
        backend of this process.
    """
    on_cpu = (platform or jax.default_backend()) == 'cpu'
    return self.precision or ('float32' if on_cpu else 'bfloat16')

  def steps(self, examples: int | None) -> int:
    """Returns the number of updates if an epoch has `examples` examples.

    The number may be None if `total_steps` is given.
    """
    if self.total_steps is not None:
      return self.total_steps
    # __post_init__ has checked the one, the caller knows the other.
    assert self.total_epochs is not None and examples is not None
    return max(1, int(self.total_epochs * examples / self.batch_size + 1e-6))

  def check_devices(self, parts: int) -> None:
    """Raises a UserError unless the batch can be split as it has to be.

    Args:
      parts: into how many parts the devices split a batch, `Plan.parts`; each
        part must also be divisible into `micro_batches`.
    """
    if self.batch_size % parts:
      nearest = max(1, round(self.batch_size / parts)) * parts
      raise errors.UserError(
          f'run.batch_size: {self.batch_size} images cannot be split evenly '
          f'over {parts} devices; the nearest size that can is {nearest}')
    share = self.batch_size // parts
    if share % self.micro_batches:
      raise errors.UserError(
          f'run.micro_batches: the {share} images of one device cannot be '
          f'split evenly into {self.micro_batches} parts; choose a divisor of '
          f'{share}')
