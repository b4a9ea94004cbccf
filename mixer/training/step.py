"""The training step: (state, batch) -> (state, metrics), a pure function.

The state counts the updates done; all randomness of a step is keyed from that
count, so a step does the same whenever and wherever it runs.
"""
from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from mixer.core import rng
from mixer.core import trees
from mixer.data import resident as resident_data
from mixer.training import losses


@flax.struct.dataclass
class State:
  """What training changes: updates done, parameters, optimizer state, and the
  examples so far that stood in for one that could not be decoded."""
  step: Any
  params: Any
  opt_state: Any
  bad: Any


def init_state(model, optimizer, *, seed, image_shape):
  """The state before the first update; jit it to have it born sharded."""
  images = jnp.zeros((1, *image_shape), jnp.float32)
  params = model.init(rng.stream(seed, 'init'), images)['params']
  return State(step=jnp.zeros((), jnp.int32), params=params,
               opt_state=optimizer.init(params), bad=jnp.zeros((), jnp.int32))


def make_train_step(model, optimizer, *, schedule, loss, augment, seed,
                    num_classes, micro_batches=1, frozen=None):
  """The step function.

  Args:
    model: a flax module, as `models.create` makes them.
    optimizer: an optax transformation.
    schedule: updates done -> learning rate, for the metrics.
    loss: (logits, targets) -> [B], as `losses.make` makes them.
    augment: as `images.augment.make` makes them.
    seed: of the run.
    num_classes: K.
    micro_batches: parts the batch is cut into, whose gradients are averaged
      before the one update. Augmentation, mixup included, is of the whole
      batch, and each row keeps its masks, so the result is the whole batch's
      but for rounding.
    frozen: regular expression for whole names of parameters that get no
      gradient.

  Returns:
    step(state, batch, resident) -> (state, metrics), metrics a dict of float32
    scalars: 'loss', 'accuracy', 'gradient_norm', 'learning_rate', and 'bad',
    the examples so far that stood in for one that could not be decoded.
  """
  def gradient(params, images, targets, rows, rngs):
    def objective(params):
      if frozen:
        params = jax.tree.map(
            lambda x, still: jax.lax.stop_gradient(x) if still else x,
            params, trees.matches(params, frozen))
      logits, _ = model.apply(
          {'params': params}, images, train=True, rows=rows, rngs=rngs)
      return jnp.mean(loss(logits, targets)), logits
    (value, logits), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return grads, dict(loss=value, accuracy=jnp.mean(right(logits, targets)))

  def accumulated(params, images, targets, rows, rngs):
    # Every micro-batch takes each n-th row, so that no row changes device.
    split = lambda x: jnp.moveaxis(
        x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0)
    zero = jax.tree.map(jnp.zeros_like, params)

    def body(total, part):
      grads, metrics = gradient(params, *part, rngs)
      return jax.tree.map(jnp.add, total, grads), metrics

    grads, metrics = jax.lax.scan(
        body, zero, (split(images), split(targets), split(rows)))
    mean = lambda x: jnp.mean(x, axis=0)
    return (jax.tree.map(lambda g: g / micro_batches, grads),
            jax.tree.map(mean, metrics))

  def step(state, batch, resident=None):
    key = lambda name: jax.random.fold_in(rng.stream(seed, name), state.step)
    images, labels, weights = resident_data.fetch(batch, resident)
    images, targets = augment(
        images, losses.targets_of(labels, num_classes, weights),
        rng.of_examples(rng.stream(seed, 'augment'), batch['epoch'],
                        batch['record']), key('mixup'))
    rngs = {n: key(n) for n in ('dropout', 'stochastic_depth')}
    compute = gradient if micro_batches == 1 else accumulated
    grads, metrics = compute(state.params, images, targets,
                             jnp.arange(images.shape[0]), rngs)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    bad = state.bad + jnp.sum(batch['bad'].astype(jnp.int32))
    metrics = dict(metrics, gradient_norm=optax.tree.norm(grads), bad=bad,
                   learning_rate=jnp.asarray(schedule(state.step), jnp.float32))
    return State(step=state.step + 1, opt_state=opt_state, bad=bad,
                 params=optax.apply_updates(state.params, updates)), metrics

  return step


def right(logits, targets):
  """Is the likeliest class among the targets' heaviest? float32 [B].

  With one label that is top-1 accuracy; with several, any of them counts; with
  mixup, the heavier image's does.
  """
  best = jnp.argmax(logits, axis=-1)
  weight = jnp.take_along_axis(targets, best[:, None], axis=-1)[:, 0]
  return (weight >= jnp.max(targets, axis=-1)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class ShardedStep:
  """A training step whose state lies on the devices of a plan.

  Attributes:
    init: () -> State, jitted; the state is born where it stays.
    step: (state, batch, resident) -> (state, metrics), jitted; it takes the
      place of the state that it is given.
    state: State of jax.ShapeDtypeStruct, with shardings.
    shardings: State of jax.sharding.NamedSharding.
  """
  init: Callable[[], State]
  step: Callable[..., tuple[State, dict[str, jax.Array]]]
  state: State
  shardings: State


def shard(step_fn, model, optimizer, plan, *, seed, image_shape):
  """Returns a `ShardedStep`; nothing is compiled or allocated yet.

  Args:
    step_fn: as `make_train_step` makes it.
    model, optimizer: as it was given.
    plan: `sharding.Plan`, of devices that may be elsewhere.
    seed: of the run.
    image_shape: (height, width, channels).
  """
  init = functools.partial(init_state, model, optimizer, seed=seed,
                           image_shape=image_shape)
  shapes = jax.eval_shape(init)
  shardings = plan.state(shapes, model.SHARDING_RULES)
  return ShardedStep(
      init=jax.jit(init, out_shardings=shardings),
      step=jax.jit(step_fn, donate_argnums=0,
                   out_shardings=(shardings, plan.replicated)),
      state=jax.tree.map(
          lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
          shapes, shardings),
      shardings=shardings)
