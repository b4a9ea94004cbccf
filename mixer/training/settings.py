"""The `run` section of a config: length, size, seed, periods."""
import dataclasses

import jax

from mixer.core import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The `run` section of a config.

  Attributes:
    batch_size: images of one update, over all devices.
    total_steps, total_epochs: the length; exactly one is given.
    seed: of the initial parameters, the order, and every random draw.
    image_size: side in pixels, or (height, width).
    image_width: in pixels, where image_size is the height only.
    precision: 'float32' or 'bfloat16', of the computation; parameters stay
      float32. None: bfloat16 on accelerators, float32 on a CPU.
    log_every, eval_every: in steps; eval_every 0 is only at the end.
    micro_batches: parts a batch is cut into to save memory; their gradients
      are averaged before the update.
    heartbeat_timeout_seconds: of several processes, how long one may be silent
      until it counts as dead and the others end.
  """
  batch_size: int
  total_steps: int | None = None
  total_epochs: float | None = None
  seed: int = 0
  image_size: int | tuple = 224
  image_width: int | None = None
  precision: str | None = None
  log_every: int = 50
  eval_every: int = 0
  micro_batches: int = 1
  heartbeat_timeout_seconds: int = 30

  def __post_init__(self):
    for key in ('batch_size', 'log_every', 'micro_batches',
                'heartbeat_timeout_seconds'):
      if getattr(self, key) < 1:
        raise errors.UserError(f'run.{key}: expected at least 1, got '
                               f'{getattr(self, key)}')
    if self.image_width is not None:
      if not isinstance(self.image_size, int):
        raise errors.UserError('run.image_width: image_size is '
                               f'{self.image_size} already; give one of them')
      object.__setattr__(self, 'image_size',
                         (self.image_size, self.image_width))
    lengths = [self.total_steps, self.total_epochs]
    if lengths.count(None) != 1 or any(v is not None and v <= 0
                                       for v in lengths):
      raise errors.UserError(
          'run: expected either total_steps or total_epochs, above 0, got '
          f'{self.total_steps} and {self.total_epochs}')
    if not 0 <= self.seed < 2**31:
      raise errors.UserError(f'run.seed: expected 0 <= seed < 2**31, got '
                             f'{self.seed}')
    if self.precision not in (None, 'float32', 'bfloat16'):
      raise errors.unknown('run.precision', self.precision,
                           ['float32', 'bfloat16'])

  @property
  def dtype(self):
    """The precision, or the platform's default."""
    cpu = jax.default_backend() == 'cpu'
    return self.precision or ('float32' if cpu else 'bfloat16')

  def steps(self, examples):
    """The number of updates, on `examples` an epoch."""
    if self.total_steps is not None:
      return self.total_steps
    return max(1, int(self.total_epochs * examples / self.batch_size))

  def check_devices(self, parts):
    """Raises if the parts that devices take, or the micro-batches, do not
    divide the batch."""
    share = self.batch_size / parts
    if share != int(share):
      raise errors.UserError(
          f'run.batch_size: {self.batch_size} images do not divide over '
          f'{parts} devices; the nearest that does is '
          f'{max(1, round(share)) * parts}')
    if int(share) % self.micro_batches:
      raise errors.UserError(
          f'run.micro_batches: {int(share)} images a device do not divide '
          f'into {self.micro_batches} parts')
