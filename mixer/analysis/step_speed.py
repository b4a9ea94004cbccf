"""How fast a network trains or predicts here, beside others in the same run.

Machines drift, so nothing is timed alone: every round runs each candidate
once, and the matrix product that sets the peak; figures are medians over the
rounds, and ratios are medians of the ratios within a round.
"""
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import peak
from mixer.evaluation import suite
from mixer.images import augment
from mixer.models import cost
from mixer.models.grid import pair
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import schedules
from mixer.training import step as steps


@dataclasses.dataclass
class Candidate:
  """Something to time: `run()` does one step and returns when it is done."""
  name: str
  run: Any
  compile_seconds: float = 0.0
  seconds: list = dataclasses.field(default_factory=list)


def images_and_labels(batch_size, image_size, channels, num_classes):
  """Random uint8 images [B, H, W, c] and int32 labels [B, 1]."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (batch_size, *pair(image_size), channels),
                        dtype=np.uint8)
  labels = rng.integers(0, num_classes, (batch_size, 1), dtype=np.int32)
  return images, labels


def make_step(model, seed=0):
  """(optimizer, step): SGD with momentum, clipping, softmax loss, and no
  augmentation."""
  schedule = schedules.make(learning_rate=0.01, total_steps=1000)
  optimizer = optimizers.make(schedule=schedule)
  return optimizer, steps.make_train_step(
      model, optimizer, schedule=schedule, seed=seed, loss=losses.make(),
      augment=augment.make(), num_classes=model.num_classes)


def training(model, *, images, labels, plan, seed=0):
  """Our own training step, ready to be timed."""
  optimizer, step = make_step(model, seed)
  placed = steps.shard(step, model, optimizer, plan, seed=seed,
                       image_shape=images.shape[1:])
  count = np.arange(len(images), dtype=np.int32)
  batch = plan.put_batch(dict(
      image=images, labels=labels, record=count, epoch=0 * count,
      bad=count < 0))
  return repeated(lambda state: placed.step(state, batch)[0], placed.init())


def inference(model, *, images, plan):
  """Our own forward pass, from uint8 images to logits."""
  variables = jax.jit(model.init, out_shardings=plan.replicated)(
      jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
  predict = jax.jit(suite.make_predict(model))
  batch = plan.put_batch(dict(image=images, labels=np.zeros(
      (len(images), 1), np.int32)))
  return lambda: predict(variables['params'], batch).block_until_ready()


def repeated(step, state):
  """run(): replaces the state by its successor, and waits for it."""
  held = [state]

  def run():
    held[0] = jax.block_until_ready(step(held[0]))

  return run


def measure(candidates, *, dtype, rounds, seconds):
  """Times the candidates in turn, and the peak beside them.

  Args:
    candidates: whose `seconds` are filled, a figure a round.
    dtype: of the matrix product that sets the peak.
    rounds: at most so many.
    seconds: no round begins after so many, but three are always run.

  Returns:
    The peak in operations a second, one a round.
  """
  for candidate in candidates:
    began = time.perf_counter()
    candidate.run()
    candidate.compile_seconds = time.perf_counter() - began
    candidate.run()
  end, peaks = time.monotonic() + seconds, []
  while len(peaks) < min(3, rounds) or (
      len(peaks) < rounds and time.monotonic() < end):
    turn = len(peaks) % len(candidates)   # nobody is always first
    for candidate in candidates[turn:] + candidates[:turn]:
      began = time.perf_counter()
      candidate.run()
      candidate.seconds.append(time.perf_counter() - began)
    peaks.append(peak.flops_per_second(dtype))
  for candidate in candidates:
    candidate.compile_seconds -= float(np.median(candidate.seconds))
  return peaks


def report(mode, model, candidates, peaks, *, batch_size, image_size, dtype):
  """The figures of a measurement as one JSON-ready dict; ours come first."""
  flops = batch_size * dict(train=cost.training_flops,
                            infer=cost.forward_flops)[mode](model, image_size)
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
