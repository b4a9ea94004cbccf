"""Measures how fast a network trains or predicts, in alternation with others.

The speed of a machine drifts, so nothing is timed alone. Every round runs each
candidate once, and then the matrix product whose rate is the peak. Figures are
medians over the rounds, and ratios are medians of the ratios within a round.
"""
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import time
from typing import Any
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixer.evaluation import suite
from mixer.images import augment
from mixer.models import interface
from mixer.models import products
from mixer.models.grid import pair
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import sharding
from mixer.training import step

# The optimizer that is measured, ours and the peers': SGD with momentum and
# clipping of the gradient's norm.
LEARNING_RATE, MOMENTUM, CLIP_NORM = 0.01, 0.9, 1.0
_SCHEDULE_STEPS = 1000   # any length: the rate does not change the speed
_FEWEST_ROUNDS = 3

_State = TypeVar('_State')
_Item = TypeVar('_Item')


@dataclasses.dataclass
class Candidate:
  """A program to time.

  Attributes:
    name: what the report calls it.
    run: does one step and returns when the result is there.
    compile_seconds: how much longer the first call took than the median.
    seconds: one measurement for each round.
  """
  name: str
  run: Callable[[], Any]
  compile_seconds: float = 0.0
  seconds: list[float] = dataclasses.field(default_factory=list)


def images_and_labels(
    batch_size: int, image_size: int | tuple[int, int], channels: int,
    num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns random uint8 images [B, H, W, c] and int32 labels [B, 1]."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (batch_size, *pair(image_size), channels),
                        dtype=np.uint8)
  labels = rng.integers(0, num_classes, (batch_size, 1), dtype=np.int32)
  return images, labels


def make_optimizer(name: str = 'sgd') -> tuple[
    optax.GradientTransformation, optax.Schedule]:
  """Returns the optimizer that is measured, and its learning-rate schedule.

  Args:
    name: 'sgd' or 'adam'.
  """
  schedule = optimizers.schedule(learning_rate=LEARNING_RATE,
                            total_steps=_SCHEDULE_STEPS)
  return optimizers.make(schedule=schedule, name=name, momentum=MOMENTUM,
                         clip_norm=CLIP_NORM), schedule


def make_step(
    model: interface.Model, seed: int = 0, optimizer_name: str = 'sgd'
    ) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
  """Returns the optimizer and our step function: softmax loss, no augmentation.

  Args:
    model: the network to train.
    seed: seed of the run.
    optimizer_name: 'sgd' or 'adam'.
  """
  optimizer, schedule = make_optimizer(optimizer_name)
  return optimizer, step.make_train_step(
      model, optimizer, schedule=schedule, seed=seed, loss=losses.make(),
      augment=augment.make(), num_classes=model.num_classes)


def training(model: interface.Model, *, images: np.ndarray, labels: np.ndarray,
             plan: sharding.Plan, seed: int = 0) -> Callable[[], None]:
  """Returns a function that runs one of our training steps.

  Args:
    model: the network to train.
    images: uint8 [B, H, W, c].
    labels: int32 [B, 1].
    plan: layout over the devices.
    seed: seed of the run.
  """
  optimizer, step_fn = make_step(model, seed)
  placed = step.shard(step_fn, model, optimizer, plan, seed=seed,
                       image_shape=images.shape[1:])
  count = np.arange(len(images), dtype=np.int32)
  batch = plan.put_batch(dict(
      image=images, labels=labels, record=count, epoch=0 * count,
      bad=count < 0))
  return repeated(lambda state: placed.step(state, batch)[0], placed.init())


def inference(model: interface.Model, *, images: np.ndarray,
              plan: sharding.Plan) -> Callable[[], jax.Array]:
  """Returns a function that runs our forward pass, from uint8 to logits.

  Args:
    model: the network, which gets random parameters.
    images: uint8 [B, H, W, c].
    plan: layout over the devices.
  """
  variables = jax.jit(model.init, out_shardings=plan.replicated)(
      jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
  predict = jax.jit(suite.make_predict(model))
  batch = plan.put_batch(dict(image=images, labels=np.zeros(
      (len(images), 1), np.int32)))
  return lambda: predict(variables['params'], batch).block_until_ready()


def repeated(advance: Callable[[_State], _State],
             state: _State) -> Callable[[], None]:
  """Returns a function that replaces the state by the next and waits for it."""
  held = [state]

  def run() -> None:
    held[0] = jax.block_until_ready(advance(held[0]))

  return run


def in_turn(items: Sequence[_Item], *, rounds: int,
            seconds: float) -> Iterator[list[_Item]]:
  """Yields all items, once a round, each time beginning with another item.

  Args:
    items: what is measured in each round.
    rounds: largest number of rounds.
    seconds: no round begins later than this, except the first three.
  """
  end = time.monotonic() + seconds
  for done in range(rounds):
    if done >= _FEWEST_ROUNDS and time.monotonic() >= end:
      return
    first = done % len(items)
    yield [*items[first:], *items[:first]]


def measure(candidates: Sequence[Candidate], *, dtype: str, rounds: int,
            seconds: float) -> list[float]:
  """Times the candidates in turn, and the peak after each round.

  Args:
    candidates: programs to time; their `compile_seconds` and `seconds` are set.
    dtype: operands of the matrix product whose rate is the peak.
    rounds, seconds: limits, as for `in_turn`.

  Returns:
    The peak in operations per second, measured once each round.
  """
  for candidate in candidates:
    began = time.perf_counter()
    candidate.run()
    candidate.compile_seconds = time.perf_counter() - began
    candidate.run()
  peaks: list[float] = []
  for turn in in_turn(candidates, rounds=rounds, seconds=seconds):
    for candidate in turn:
      began = time.perf_counter()
      candidate.run()
      candidate.seconds.append(time.perf_counter() - began)
    peaks.append(products.flops_per_second(dtype))
  for candidate in candidates:
    candidate.compile_seconds -= float(np.median(candidate.seconds))
  return peaks


def report(mode: str, model: interface.Model, candidates: Sequence[Candidate],
           peaks: Sequence[float], *, batch_size: int,
           image_size: int | tuple[int, int], dtype: str) -> dict[str, Any]:
  """Returns the figures of a measurement, ready for JSON.

  Args:
    mode: 'train' or 'infer'.
    model: our network, whose operations are counted for everybody.
    candidates: ours first, then the peers, after `measure`.
    peaks: what `measure` returned.
    batch_size: images in a step.
    image_size: side in pixels, or (height, width).
    dtype: precision of the computation.
  """
  flops = batch_size * dict(train=model.training_flops,
                            infer=model.forward_flops)[mode](image_size)
  ours = candidates[0]
  median = float(np.median(ours.seconds))
  top = float(np.median(peaks))
  quartiles = np.percentile(ours.seconds, [25, 75])
  peers = {}
  for other in candidates[1:]:
    ratios = np.array(other.seconds) / np.array(ours.seconds)
    peers[other.name] = dict(
        images_per_second=batch_size / float(np.median(other.seconds)),
        ratio=float(np.median(ratios)),
        utilisation=flops / float(np.median(other.seconds)) / top,
        ratio_range=[float(ratios.min()), float(ratios.max())])
  return dict(
      mode=mode, batch_size=batch_size, image_size=image_size, dtype=dtype,
      device=jax.devices()[0].device_kind, devices=jax.device_count(),
      rounds=len(peaks), images_per_second=batch_size / median,
      median_seconds=median, quartile_seconds=quartiles.tolist(),
      flops_per_second=flops / median, peak_flops_per_second=top,
      utilisation=flops / median / top, compile_seconds=ours.compile_seconds,
      peers=peers)
