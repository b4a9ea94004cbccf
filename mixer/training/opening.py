"""Opens a run's data, network and evaluation; refuses what does not fit.

A run calls this before it writes its first file.
"""
from collections.abc import Callable
from collections.abc import Mapping
from concurrent import futures
import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np

from mixer.core import errors
from mixer.core import processes
from mixer.core import provenance
from mixer.core import workdir
from mixer.data import class_counts
from mixer.data import pipeline
from mixer.evaluation import suite
from mixer.models import catalog
from mixer.models import interface
from mixer.training import assembly
from mixer.training import loop
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import sharding
from mixer.training import step
from mixer.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class Splits:
  """The opened splits of a run: the training split, and those evaluated.

  `bad_images` begins to be written when the run has been accepted.
  """
  train: pipeline.Data
  evals: Mapping[str, pipeline.Data]
  fewshots: Mapping[str, suite.FewShot]
  bad_images: workdir.BadImages


def open_splits(config: ml_collections.ConfigDict, settings: Settings,
                 plan: sharding.Plan, path: str) -> Splits:
  """Opens all splits, and decodes the first images of each as a check.

  Args:
    config: of the run.
    settings: of the config's `run` section.
    plan: how batches lie on the devices.
    path: the workdir, which keeps the list of images that cannot be decoded.

  Raises:
    UserError: if a split cannot be opened or read, is too small, or has labels
      that the loss cannot use.
  """
  if settings.patience and config.checkpoint.best is None:
    raise errors.UserError(
        f'run.patience: {settings.patience} evaluations without a new best end '
        'the run, and checkpoint.best is unset; name a metric, as in '
        '--config.checkpoint.best=eval/NAME/accuracy')
  bad = workdir.BadImages(path)
  try:
    train, evals, fewshots = suite.open_splits(
        config.to_dict(), settings.image_size, bad)
    train.check(settings.batch_size, plan.slots(settings.batch_size))
    losses.check_labels(config.loss.name, class_counts.labels(train),
                        train.source.name)
    few = [split for x in fewshots.values() for split in (x.train, x.test)]
    for split in (train, *evals.values(), *few):
      split.preflight()
  except errors.RunError:   # too many are bad: the message names the list
    bad.begin()
    raise
  return Splits(train, evals, fewshots, bad)


def make_model(config: ml_collections.ConfigDict, settings: Settings,
                plan: sharding.Plan, splits: Splits) -> interface.Model:
  """Returns the model, whose classes must be those of all splits.

  Args:
    config: of the run.
    settings: of the config's `run` section.
    plan: its platform decides the form of the products.
    splits: as `open_splits` opens them.

  Raises:
    UserError: if a split has other classes or channels than the network.
  """
  source = splits.train.source
  model = assembly.make_model(config, settings, source, plan.platform)
  if model.num_classes < source.num_classes:
    raise errors.UserError(
        f'model.num_classes: {model.num_classes}, but {source.name} has '
        f'{source.num_classes} classes; set it to at least that, or leave it '
        'unset')
  few = {f'fewshot.{name}.{part}': getattr(one, part)
         for name, one in splits.fewshots.items() for part in ('train', 'test')}
  evals = {f'evals.{name}': split for name, split in splits.evals.items()}
  for key, split in {'data': splits.train, **evals, **few}.items():
    if split.source.channels != model.in_channels:
      raise errors.UserError(
          f'{key}: the images of {split.source.name} have '
          f'{split.source.channels} channels, and the network takes '
          f'{model.in_channels} (model.in_channels); leave model.in_channels '
          'unset, or choose data with as many channels')
  for name, split in splits.evals.items():
    if split.source is source:
      continue   # it has the same classes
    from mixer.evaluation import class_names
    wrong = class_names.other_classes(
        split.source, model.num_classes, source.class_names)
    if wrong:
      raise errors.UserError(f'evals.{name}: {wrong}')
  class_counts.check(splits.train, splits.evals)
  catalog.say_without_effect(config.model, model)
  return model


def class_weights(config: ml_collections.ConfigDict, train: pipeline.Data,
                  num_classes: int) -> losses.Weights:
  """Returns the weights of the classes in the loss; None for 1.

  Args:
    config: of the run.
    train: the training split.
    num_classes: of the network.

  Raises:
    UserError: if `loss.class_weights` does not fit the classes.
  """
  text = config.loss.get('class_weights')
  if text is None:
    return None
  from mixer.training import class_weights as weighted  # few runs need it
  return weighted.of(text, train, num_classes)


def batch_shapes(data: pipeline.Data, size: int,
                  plan: sharding.Plan) -> tuple[Any, Any]:
  """Returns the shapes of a training batch, and of what the devices store.

  Args:
    data: the training split.
    size: B, of the global batch.
    plan: how batches lie on the devices.

  Returns:
    (batch, the stored split or None), trees of jax.ShapeDtypeStruct.
  """
  struct = lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype,
                                          sharding=plan.batch)
  number = np.zeros(0, np.int32)
  batch = dict(epoch=number, record=number, bad=np.zeros(0, bool))
  if data.resident is not None:
    return (jax.tree.map(struct, dict(batch, position=number)),
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=plan.replicated), data.resident))
  images = np.zeros((0, *data.image_size, data.source.channels), np.uint8)
  _, targets = data.source.read(np.zeros(0, np.int64))
  return jax.tree.map(struct, dict(batch, image=images, **targets)), None


def compiling(sharded: step.ShardedStep, data: pipeline.Data, size: int,
              plan: sharding.Plan) -> step.Step:
  """Compiles a step in a thread; returns a step that first waits for that.

  The first state, which needs a program of its own, can be made meanwhile.

  Args:
    sharded: the step.
    data, size, plan: as `batch_shapes` takes them.
  """
  if plan.platform == 'gpu':   # XLA times kernels there, alone on the GPU
    return sharded.step
  lowered = sharded.step.lower(sharded.state, *batch_shapes(data, size, plan))
  program = futures.ThreadPoolExecutor(1).submit(lowered.compile)

  def call(*args: Any) -> tuple[step.State, step.Metrics]:
    program.result()
    return sharded.step(*args)   # jit has kept the program

  return call


def made_with(path: str, fingerprint: Mapping[str, Any],
              origin: assembly.Origin, *, finished: bool | None
              ) -> tuple[dict[str, Any] | None, str]:
  """Returns what config.json says the run was made with, and a line on it.

  A finished run keeps what it was trained with. Only process 0 looks.

  Args:
    path: the workdir.
    fingerprint: of the training data.
    origin: of the loaded weights; None if there are none.
    finished: whether the run is finished; None for a new run.
  """
  if not processes.first():
    return None, ''
  made = provenance.collect(data=fingerprint, start=origin)
  line = provenance.line(made)
  if finished is None:
    return made, line
  before = workdir.provenance(path)
  changed = provenance.differences(before, made) if before else ''
  if changed:
    line += f'; since the run was last started, {changed}'
  return before if finished else made, line


def evaluation(splits: Splits, model: interface.Model, plan: sharding.Plan,
               batch_size: int, loss: str
               ) -> Callable[[step.State], dict[str, float]]:
  """Returns a function: state -> metrics of its parameters and their average.

  Args:
    splits: as `open_splits` opens them.
    model: the network.
    plan: how batches lie on the devices.
    batch_size: B, of the global batch.
    loss: name of the training loss.
  """
  of_params = suite.make(
      plan, model, splits.evals, splits.fewshots, batch_size=batch_size,
      loss=loss, loss_of=losses.of_labels(loss))

  def ask(state: step.State) -> dict[str, float]:
    average = optimizers.average_of(state.opt_state)
    scores = {} if average is None else of_params(average)
    return {**of_params(state.params),
            **{loop.of_average(key): value for key, value in scores.items()}}

  return ask
