"""The training step: (state, batch) -> (state, metrics), a pure function.

The state counts the updates that are done, and the keys of all random draws in
a step are derived from that count. So a step gives the same result whenever and
wherever it runs, and a resumed run draws what the unbroken one would have.
"""
from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
import zlib

import flax
import jax
import jax.numpy as jnp
import optax

from mixer.core import trees
from mixer.data import pipeline
from mixer.images.augment import Augment
from mixer.models import interface
from mixer.training import losses
from mixer.training import sharding

Params = Mapping[str, Any]   # a nested dict of arrays
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class State:
  """Everything that training changes.

  Attributes:
    step: int32 scalar, the number of updates done.
    params: the model's parameters.
    opt_state: the optimizer's state.
    bad: int32 scalar, how many examples so far were replacements for an image
      that could not be decoded.
  """
  step: jax.Array
  params: Params
  opt_state: optax.OptState
  bad: jax.Array

  @property
  def rest(self) -> dict[str, Any]:
    """All but the parameters, as a checkpoint has it."""
    return dict(step=self.step, opt_state=self.opt_state, bad=self.bad)


# (state, batch, the split on the device or None) -> (state, metrics)
Step = Callable[..., tuple[State, Metrics]]


def stream(seed: int, name: str) -> jax.Array:
  """Returns the key of a run's random stream `name`.

  Args:
    seed: the run's seed, in [0, 2**31).
    name: such as 'init', 'augment' or 'dropout'.

  Returns:
    A typed PRNG key. Fold the step into it, or the epoch and the example's
    index, before drawing.
  """
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def of_examples(key: jax.Array, epoch: jax.Array,
                index: jax.Array) -> jax.Array:
  """Returns one key for each example of a batch: typed PRNG keys [B].

  Args:
    key: of a stream.
    epoch, index: int32 [B]. The same example of the same epoch gets the same
      key in every batch.
  """
  def one(e, i):
    return jax.random.fold_in(jax.random.fold_in(key, e), i)
  return jax.vmap(one)(epoch, index)


def init_state(model: interface.Model,
               optimizer: optax.GradientTransformation, *, seed: int,
               image_shape: tuple[int, int, int]) -> State:
  """Returns the state before the first update.

  Under jit with output shardings, every array is created where it stays.

  Args:
    model: as `models.create` makes it.
    optimizer: as `optimizers.make` makes it.
    seed: of the run.
    image_shape: (height, width, channels).
  """
  images = jnp.zeros((1, *image_shape), jnp.float32)
  params = model.init(stream(seed, 'init'), images)['params']
  return State(step=jnp.zeros((), jnp.int32), params=params,
               opt_state=optimizer.init(params), bad=jnp.zeros((), jnp.int32))


def make_train_step(
    model: interface.Model, optimizer: optax.GradientTransformation, *,
    schedule: optax.Schedule, loss: losses.Loss, augment: Augment, seed: int,
    num_classes: int, micro_batches: int = 1, frozen: str | None = None,
    nonfinite: str = 'skip') -> Step:
  """Returns the training step, a pure function that is not jitted yet.

  Args:
    model: as `models.create` makes it.
    optimizer: as `optimizers.make` makes it.
    schedule: number of updates done -> learning rate, for the metrics.
    loss: (logits, targets) -> [B], as `losses.make` makes it.
    augment: as `images.augment.make` makes it.
    seed: of the run.
    num_classes: K.
    micro_batches: number of parts into which the batch is split; their
      gradients are averaged before the one update. Augmentation and mixup see
      the whole batch, and the dropout masks of a row do not depend on its part,
      so the result differs from the whole batch's only by rounding.
    frozen: regular expression for the whole names of parameters that get no
      gradient.
    nonfinite: 'skip' leaves parameters and optimizer state as they were where
      the loss or the norm of the gradient is not finite.
      'stop' makes every update.

  Returns:
    step(state, batch, stored=None, by_layer=False, gather=...) -> (state,
    metrics). `batch` is a training batch as `data.pipeline` describes it, and
    `stored` the split that it indexes if that lives on the device. `gather`
    wraps the function that computes gradients, see `gathering`. Metrics are
    scalars: 'loss' and 'accuracy' of the augmented batch (of the examples that
    have a label), 'gradient_norm' of the trained parameters before clipping,
    'learning_rate', 'bad', the state's count after this step, and with 'skip'
    also 'skipped', int32: 1 if this step changed no parameter. With `by_layer`
    they are instead 'parameters' and 'gradient': trees with the norm of every
    leaf.
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
    return grads, dict(loss=value, accuracy=_accuracy(logits, targets))

  def accumulated(params, images, targets, rows, rngs):
    # A part takes every n-th row, so that no row has to move to another device.
    split = lambda x: jnp.moveaxis(
        x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0)
    zero = jax.tree.map(jnp.zeros_like, params)

    def body(total, part):
      images, targets, rows = part
      grads, metrics = gradient(params, images, targets, rows, rngs)
      return jax.tree.map(jnp.add, total, grads), metrics

    grads, metrics = jax.lax.scan(
        body, zero, (split(images), split(targets), split(rows)))
    labelled = jnp.any(split(targets) > 0, axis=-1).sum(axis=-1)   # of a part
    return jax.tree.map(lambda g: g / micro_batches, grads), dict(
        loss=jnp.mean(metrics['loss']), accuracy=jnp.sum(
            metrics['accuracy'] * labelled) / jnp.maximum(labelled.sum(), 1))

  def step(state, batch, stored=None, by_layer=False, gather=lambda f: f):
    key = lambda name: jax.random.fold_in(stream(seed, name), state.step)
    images, labels, weights = pipeline.fetch(batch, stored)
    images, targets = augment(
        images, losses.targets_of(labels, num_classes, weights),
        of_examples(stream(seed, 'augment'), batch['epoch'],
                        batch['record']), key('mixup'))
    rngs = {name: key(name) for name in ('dropout', 'stochastic_depth')}
    compute = gather(gradient if micro_batches == 1 else accumulated)
    grads, metrics = compute(state.params, images, targets,
                             jnp.arange(images.shape[0]), rngs)
    if by_layer:
      return state, _norms(dict(parameters=state.params, gradient=grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    bad = state.bad + jnp.sum(batch['bad'].astype(jnp.int32))
    rate = jnp.asarray(schedule(_updates_done(state)), jnp.float32)
    metrics = dict(metrics, gradient_norm=optax.tree.norm(grads), bad=bad,
                   learning_rate=rate)
    after = State(step=state.step + 1, opt_state=opt_state, bad=bad,
                  params=optax.apply_updates(state.params, updates))
    if nonfinite == 'skip':
      return _if_finite(state, after, metrics)
    return after, metrics

  return step


def _accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the share of examples that are right, of those with a label."""
  labelled = jnp.any(targets > 0, axis=-1)
  return (jnp.sum(right(logits, targets) * labelled)
          / jnp.maximum(jnp.sum(labelled), 1))


def _if_finite(before: State, after: State,
               metrics: Metrics) -> tuple[State, Metrics]:
  """Returns a step's result, without its update if that is not finite."""
  # The norm of the update would be one more pass over all parameters. If only
  # the update is not finite, the loss of the next step is not.
  finite = jnp.isfinite(jnp.stack([
      metrics['loss'], metrics['gradient_norm']])).all()
  params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (after.params, after.opt_state), (before.params, before.opt_state))
  return (dataclasses.replace(after, params=params, opt_state=opt_state),
          dict(metrics, skipped=1 - finite.astype(jnp.int32)))


def _updates_done(state: State) -> jax.Array:
  """Returns the count of the optimizer, which skipped updates leave out."""
  counts = optax.tree.get_all_with_path(state.opt_state, 'count')
  return counts[0][1] if counts else state.step


def _norms(tree: Any) -> Any:
  return jax.tree.map(lambda x: optax.tree.norm([x]), tree)


def right(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns float32 [B]: 1 where the predicted class is correct, else 0.

  The prediction is correct if no class has a larger target. With one label that
  is top-1 accuracy; with several equal labels any of them counts; with mixup
  the label of the heavier image counts.

  Args:
    logits: [B, K].
    targets: [B, K].
  """
  best = jnp.argmax(logits, axis=-1)
  weight = jnp.take_along_axis(targets, best[:, None], axis=-1)[:, 0]
  return (weight >= jnp.max(targets, axis=-1)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class ShardedStep:
  """A training step whose state lies on the devices of a plan.

  Attributes:
    init: () -> State, jitted; every array is created where it stays.
    step: (state, batch, stored) -> (state, metrics), jitted. It reuses the
      memory of the state that it is given, which must not be used again.
    norms: (state, batch, stored) -> the norms by layer, jitted; see
      `make_train_step`.
    state: State of jax.ShapeDtypeStruct, with shardings.
    shardings: State of jax.sharding.NamedSharding.
  """
  init: Callable[[], State]
  step: jax.stages.Wrapped
  norms: jax.stages.Wrapped
  state: State
  shardings: State


def shard(step_fn: Step, model: interface.Model,
          optimizer: optax.GradientTransformation, plan: sharding.Plan, *,
          seed: int, image_shape: tuple[int, int, int]) -> ShardedStep:
  """Returns the step and the initialisation, jitted for the devices of a plan.

  Nothing is compiled or allocated yet.

  Args:
    step_fn: as `make_train_step` makes it.
    model, optimizer: those that `step_fn` was made with.
    plan: its devices may belong to another machine, to compile for it.
    seed: of the run.
    image_shape: (height, width, channels).

  Raises:
    UserError: if a pattern of the optimizer matches no parameter.
  """
  init = functools.partial(init_state, model, optimizer, seed=seed,
                           image_shape=image_shape)
  shapes = jax.eval_shape(init)
  shardings = plan.state(shapes, model.SHARDING_RULES)
  if plan.strategy == 'fsdp':
    from mixer.training import gathering  # other runs do not load it
    step_fn = functools.partial(step_fn, gather=gathering.of(shardings.params))
  return ShardedStep(
      init=jax.jit(init, out_shardings=shardings),
      step=jax.jit(step_fn, donate_argnums=0,
                   out_shardings=(shardings, plan.replicated)),
      norms=jax.jit(lambda *batch: step_fn(*batch, by_layer=True)[1],
                    out_shardings=plan.replicated),
      state=jax.tree.map(
          lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
          shapes, shardings),
      shardings=shardings)
