"""Runs the training that a config describes, from the first check to the end.

`assembly` makes the objects, `loop` steps through them; this module decides in
which order things happen.
"""
from collections.abc import Mapping
import contextlib
import dataclasses
import os
from typing import Any

import jax
import ml_collections

from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import workdir
from mixer.core.log import log
from mixer.evaluation import suite
from mixer.models import catalog
from mixer.models import interface
from mixer.models import products
from mixer.training import assembly
from mixer.training import loop
from mixer.training import metrics_file
from mixer.training import opening
from mixer.training import optimizers
from mixer.training import progress
from mixer.training import sharding
from mixer.training import step
from mixer.training import watchdog
from mixer.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class _Run:
  """What a run works with; training changes none of it.

  Attributes:
    path: the workdir.
    settings: of the config's `run` section.
    plan: how state and batches lie on the devices.
    splits: the data.
    model: the network.
    card: the network's card, see `models.catalog`.
    sharded: the training step, jitted for the plan.
    step_fn: that step; in a new run, its first call waits until it is compiled.
    total_steps: length of the run.
    image_flops: FLOPs of one image in training.
    peak_flops: FLOPs per second of all devices together, for the utilisation.
    merge: puts loaded weights in the place of initial parameters; None if there
      are none, or if the run is resumed.
    origin: of the loaded weights; None if there are none.
    checkpoints: of the workdir.
  """
  path: str
  settings: Settings
  plan: sharding.Plan
  splits: opening.Splits
  model: interface.Model
  card: Mapping[str, Any]
  sharded: step.ShardedStep
  step_fn: step.Step
  total_steps: int
  image_flops: int
  peak_flops: float
  merge: assembly.Merge | None
  origin: assembly.Origin
  checkpoints: checkpoint.Checkpoints


def train(config: ml_collections.ConfigDict, path: str) -> dict[str, float]:
  """Trains, evaluates and saves; resumes if the workdir holds a run.

  Args:
    config: as the files in configs/ make it.
    path: the workdir.

  Returns:
    The metrics of the final evaluation.

  Raises:
    UserError: if the config is wrong, or does not fit the data, the devices or
      the run in the workdir.
    RunError: if the run fails in a way that a restart would not mend.
    Stopped: if a signal stopped the run and its state is saved.
  """
  settings = assembly.check(config)
  plan = assembly.make_plan(config)
  settings.check_devices(plan.parts)
  with contextlib.ExitStack() as stack:
    stall = stack.enter_context(watchdog.Watch(settings.stall_seconds))
    stack.enter_context(workdir.claimed(path))
    workdir.meet(path)
    checkpoints = stack.enter_context(contextlib.closing(
        assembly.open_checkpoints(config, path)))
    # Whatever can refuse the config or the data comes before the first file is
    # written: a refused command leaves a run as it was, and does not claim an
    # empty workdir. A run that saved nothing has nothing to protect.
    if checkpoints.steps():
      from mixer.training import resume  # a new run does not load it
      resume.check_config(path, assembly.stored(config))
    stall.phase(watchdog.OPENING)
    splits = opening.open_splits(config, settings, plan, path)
    stall.phase('building the network')
    model = opening.make_model(config, settings, plan, splits)
    run = _assemble(config, settings, plan, splits, model, checkpoints, path)
    _check(run)
    fingerprint = splits.train.fingerprint(settings.batch_size, settings.seed)
    stall.phase(watchdog.RESTORING)
    found = _restored(run, fingerprint) if checkpoints.steps() else None
    made, code = opening.made_with(
        path, fingerprint, run.origin,
        finished=found and _ended(run, int(found[0].step)))
    workdir.write_config(path, assembly.stored(config), made)
    splits.bad_images.begin()
    card = dict((found and workdir.card_of(path)) or run.card,
                preprocessing=run.card['preprocessing'])
    workdir.write_json(os.path.join(path, workdir.CARD), card)
    progress.introduce(
        path=path, title=catalog.title(run.card['model']), settings=settings,
        code=code, plan=plan, data=splits.train, evals=splits.evals,
        model=run.model, state=run.sharded.state,
        trained=optimizers.trained(run.sharded.state.params,
                                   config.optimizer.frozen),
        image_flops=run.image_flops, total_steps=run.total_steps,
        paper_core_days=assembly.paper_core_days(config))
    stall.phase('making the first state')
    with watchdog.Guard() as guard:   # before anything compiles
      if found is None:
        run = dataclasses.replace(run, step_fn=opening.compiling(
            run.sharded, splits.train, settings.batch_size, plan))
        found = _initial(run), []
      else:
        log.info('resuming at step %s', f'{int(found[0].step):,}')
      guard.check()
      return _train_or_go_back(run, *found, fingerprint, guard, stall)


def _assemble(config: ml_collections.ConfigDict, settings: Settings,
              plan: sharding.Plan, splits: opening.Splits,
              model: interface.Model, checkpoints: checkpoint.Checkpoints,
              path: str) -> _Run:
  """Returns the run with its final model; compiles no step yet."""
  if checkpoints.steps():
    from mixer.training import resume  # a new run does not load it
    model, merge = resume.as_trained(model, path), None
    origin = (workdir.provenance(path) or {}).get('start')
  else:
    source = splits.train.source
    model, merge, origin = assembly.load_start(
        config, settings, model, source.class_names, source.name)
  total = settings.steps(len(splits.train))
  optimizer, step_fn = assembly.make_step(
      config, settings, model, total,
      opening.class_weights(config, splits.train, model.num_classes))
  sharded = step.shard(
      step_fn, model, optimizer, plan, seed=settings.seed,
      image_shape=assembly.image_shape(model, settings))
  card = assembly.make_card(config, model, splits.train, splits.evals)
  flops = model.training_flops(
      settings.image_size, config.optimizer.frozen, sharded.state.params)
  peak = jax.process_count() * products.flops_per_second(
      settings.dtype_on(plan.platform))
  return _Run(path, settings, plan, splits, model, card, sharded,
              sharded.step, total, flops, peak, merge, origin, checkpoints)


def _check(run: _Run) -> None:
  """Raises a UserError for a wrong metric or weights, or as tracing does."""
  best = run.checkpoints.best
  known = suite.metrics(run.splits.evals, run.splits.fewshots,
                        run.card['loss'])
  if run.settings.average:
    known = [*known, *map(loop.of_average, known)]
  if best is not None and best not in known:
    raise errors.unknown('checkpoint.best', best, known)
  if run.merge:
    run.merge(run.sharded.state.params)
  # Tracing finds what no check above has found; the first step uses it again.
  jax.eval_shape(run.sharded.step, run.sharded.state, *opening.batch_shapes(
      run.splits.train, run.settings.batch_size, run.plan))


def _stale(run: _Run, step: int) -> int:
  if not run.settings.patience:
    return 0
  from mixer.training import resume  # most runs do not load it
  return resume.since_best(run.path, run.checkpoints.best, step)


def _ended(run: _Run, step: int) -> bool:
  """Returns whether the run ends at a step, by its length or its patience."""
  return step >= run.total_steps or (
      0 < run.settings.patience <= _stale(run, step))


def _initial(run: _Run) -> step.State:
  """Returns the state before the first update, with loaded weights if any."""
  state = run.sharded.init()
  if run.merge is None:
    return state
  params = run.plan.place(run.merge(state.params), run.sharded.shardings.params)
  return dataclasses.replace(
      state, params=params,
      opt_state=optimizers.averaging_from(state.opt_state, params))


def _restored(run: _Run, fingerprint: Mapping[str, Any]
              ) -> tuple[step.State, list[int]] | None:
  """Returns the newest saved state, and which steps were skipped before it."""
  from mixer.training import resume  # a new run does not load it
  return resume.restored(run.path, run.checkpoints, run.sharded.state, run.card,
                         fingerprint, run.total_steps)


def _train_or_go_back(
    run: _Run, state: step.State, skipped: list[int],
    fingerprint: Mapping[str, Any], guard: watchdog.Guard, stall: watchdog.Watch
    ) -> dict[str, float]:
  """Trains to the end; goes back once if too many updates are skipped."""
  while True:
    skips = watchdog.Skips(run.path, step=int(state.step), skipped=skipped,
                           norms=run.sharded.norms)
    try:
      return _train(run, state, skips, fingerprint, guard, stall)
    except errors.Diverged as e:
      from mixer.training import diverged
      if not (skips.exhausted
              and diverged.can_go_back(run.path, run.checkpoints)):
        raise
      log.warning('%s', e)
    # Leaving the `except` block has freed the state that diverged.
    stall.phase(watchdog.RESTORING)
    diverged.go_back(run.path, run.checkpoints, skips.skipped[-1], skips.first)
    found = _restored(run, fingerprint)
    assert found is not None   # go_back keeps a checkpoint
    state, skipped = found


def _train(run: _Run, state: step.State, skips: watchdog.Skips,
           fingerprint: Mapping[str, Any], guard: watchdog.Guard,
           stall: watchdog.Watch) -> dict[str, float]:
  """Trains from a state to the end; returns the final evaluation's metrics."""
  settings, plan, checkpoints = run.settings, run.plan, run.checkpoints
  data, size, total = run.splits.train, settings.batch_size, run.total_steps
  first = int(state.step)
  stored = None if data.resident is None else plan.place(data.resident)
  ask = opening.evaluation(run.splits, run.model, plan, size, run.card['loss'])
  if first:
    from mixer.training import resume  # a new run does not load it
    resume.make_up(run.path, checkpoints, state, ask, total, settings, stall)

  def save(done: int, state: step.State, scores: Mapping[str, float]) -> None:
    checkpoints.save(done, state.params, state.rest,
                     dict(data=fingerprint, skipped=list(skips.skipped)),
                     scores, optimizers.average_of(state.opt_state))

  batches = data.train_batches(
      seed=settings.seed, batch_size=size, first=first, last=total,
      slots=plan.slots(size))
  writer = metrics_file.Writer(run.path, resumed_at=first)
  bar = progress.Progress(first, total)

  def phase(what: str, step: int) -> None:
    stall.phase(what, step)
    bar.phase(what)

  try:
    with bar:
      job = loop.Job(
          step_fn=run.step_fn, batches=map(plan.put_batch, batches),
          resident=stored, evaluate=ask, save=save, writer=writer,
          progress=bar, guard=guard, skips=skips, total_steps=total,
          log_every=settings.log_every, eval_every=settings.eval_every,
          patience=settings.patience, save_every=checkpoints.every,
          save_scored=bool(checkpoints.best),
          improves=checkpoints.improves, batch_size=size,
          flops=size * run.image_flops, devices=plan.mesh.size,
          spent=writer.spent, phase=phase, stale=_stale(run, first),
          peak_flops=run.peak_flops)
      try:
        if not _ended(run, first):
          return loop.train(state, job)[1]
        phase(watchdog.EVALUATING, first)
        scores = ask(state)
        bar.say(f'already finished at step {first:,}; evaluated again: '
                f'{loop.accuracies(scores)}')
        return scores
      finally:   # the guard lets no signal cut the last save short
        batches.close()
        phase(watchdog.SAVING, total)
        checkpoints.wait()
  finally:
    writer.close()
