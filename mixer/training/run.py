"""Opens a config and builds every object of a run; the loop does the rest."""
import contextlib
import json
import os

import jax

from mixer.core import cards
from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import files
from mixer.core import peak
from mixer.core import workdir as workdirs
from mixer.core.log import log
from mixer.evaluation import suite
from mixer.images import decode_tf
from mixer.models import catalog
from mixer.models import cost
from mixer.training import assembly
from mixer.training import loop
from mixer.training import metrics_file
from mixer.training import progress as progress_lib
from mixer.training import sharding
from mixer.training import start
from mixer.training import step as steps
from mixer.training import stop
from mixer.training import summary


def train(config, workdir):
  """Trains, evaluates and checkpoints; goes on where the workdir stands.

  Args:
    config: ml_collections.ConfigDict, as the files in configs/ make them.
    workdir: where the run lies.

  Returns:
    The metrics of the final evaluation.
  """
  settings = assembly.check(config)
  plan = sharding.plan(**config.sharding)
  settings.check_devices(plan.parts)
  with contextlib.ExitStack() as stack:
    stack.enter_context(workdirs.claimed(workdir))
    workdirs.meet(workdir)
    data, evals, fewshots = suite.open_splits(
        config, settings.image_size, workdirs.BadImages(workdir))
    data.check(settings.batch_size, plan.slots(settings.batch_size))
    for split in (data, *evals.values(), *(
        s for few in fewshots.values() for s in (few.train, few.test))):
      split.preflight()
    model = assembly.make_model(
        config, settings, data.source, plan.platform)
    assembly.check_classes(model, data.source)
    for name, split in evals.items():
      wrong = suite.other_classes(
          split.source, model.num_classes, data.source.class_names)
      if wrong:
        raise errors.UserError(f'evals.{name}: {wrong}')
    return _train(config, settings, plan, data, evals, fewshots, model, workdir,
                  stack)


def keep_compiled(workdir):
  """Has JAX keep what it compiles in the workdir, so that the same command
  started again need not; JAX_COMPILATION_CACHE_DIR is another place."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir',
                      os.path.join(files.absolute(workdir), workdirs.COMPILED))


def _train(config, settings, plan, data, evals, fewshots, model, workdir,
           stack):
  checkpoints = stack.enter_context(contextlib.closing(checkpoint.Checkpoints(
      os.path.join(workdir, workdirs.CHECKPOINTS), **config.checkpoint)))
  model, given = _start(config, settings, model, workdir,
                        bool(checkpoints.steps()))
  total = settings.steps(len(data))
  optimizer, step_fn = assembly.make_step(config, settings, model, total)
  placed = steps.shard(
      step_fn, model, optimizer, plan, seed=settings.seed,
      image_shape=assembly.image_shape(model, settings))
  shapes = placed.state
  _check_best(config.checkpoint.best, suite.metrics(evals, fewshots))
  if given is not None:
    start.merge(given, shapes.params, config.start.weights,
                  config.start.dont_load)
  # A config that is refused must leave the workdir to the corrected one, so
  # this comes when everything else is checked.
  workdirs.agree(workdir, {name: section for name, section in
                           config.to_dict().items() if name != 'sweep'})
  workdirs.write_json(os.path.join(workdir, workdirs.CARD),
                      _card(config, model, data, evals))
  summary.introduce(config, settings, plan, data, evals, model, shapes,
                         total, workdir)

  fingerprint = data.fingerprint(settings.batch_size, settings.seed)
  state = _resume(checkpoints, placed.state, fingerprint)
  resumed = state is not None
  if not resumed:
    state = placed.init()
    if given is not None:
      merged = start.merge(given, state.params, config.start.weights,
                             config.start.dont_load)
      state = state.replace(
          params=plan.place(merged, placed.shardings.params))
  first = int(state.step)

  resident = None if data.resident is None else plan.place(
      data.resident)
  ask = suite.make(plan, model, evals, fewshots,
                         batch_size=settings.batch_size, loss=config.loss.name)
  evaluate = lambda state: ask(state.params)

  def save(step, state, scores):
    checkpoints.save(step, state.params,
                     dict(step=state.step, opt_state=state.opt_state,
                          bad=state.bad),
                     dict(data=fingerprint), scores)

  slots = plan.slots(settings.batch_size)
  batches = data.train_batches(
      seed=settings.seed, batch_size=settings.batch_size, first=first,
      last=total, slots=slots)
  flops = settings.batch_size * cost.training_flops(model, settings.image_size)
  decode_tf.hide_accelerators()   # from TensorFlow, which writes for TensorBoard
  writer = metrics_file.Writer(workdir, resumed_at=first)
  progress = progress_lib.Progress(first, total)
  try:
    with stop.Guard() as guard, progress:
      job = loop.Job(
          step_fn=placed.step,
          batches=map(plan.put_batch, batches), resident=resident,
          evaluate=evaluate, save=save, writer=writer, progress=progress,
          guard=guard, total_steps=total, log_every=settings.log_every,
          eval_every=settings.eval_every, save_every=checkpoints.every,
          save_scored=bool(checkpoints.best), batch_size=settings.batch_size,
          flops=flops, devices=plan.mesh.size, spent=writer.spent, peak_flops=(
              peak.flops_per_second(settings.dtype) * jax.process_count()))
      try:
        if first >= total:
          scores = evaluate(state)
          progress.say(f'finished already, at step {total:,}: '
                       + loop.summary(scores))
        else:
          state, scores = loop.train(state, job)
      finally:   # within the guard: a signal must not cut the last save short
        batches.close()
        checkpoints.wait()
  finally:
    writer.close()
  return scores


def _check_best(metric, known):
  """The metric to keep the best by is one that is evaluated; more is better."""
  if metric is not None and metric not in known:
    raise errors.unknown('checkpoint.best', metric, known)


def _resume(checkpoints, abstract, fingerprint):
  """The newest state saved, or None."""
  found = checkpoints.restore(
      abstract.params, dict(step=abstract.step, opt_state=abstract.opt_state,
                            bad=abstract.bad))
  if found is None:
    return None
  params, rest, meta = found
  differ = [f'{k} was {meta["data"].get(k)}, is {fingerprint.get(k)}'
            for k in dict.fromkeys((*meta['data'], *fingerprint))
            if meta['data'].get(k) != fingerprint.get(k)]
  if differ:
    raise errors.UserError(
        'data: the run was trained on other data, or in another order: '
        + '; '.join(differ) + '; give it its own data, or another --workdir')
  step = int(rest['step'])
  checkpoints.set_aside_after(step)
  log.info('resuming at step %s', f'{step:,}')
  return steps.State(params=params, **rest)


def _start(config, settings, model, workdir, resuming):
  """(model, parameters to start from or None): see `initial.start`."""
  if resuming:   # the weights may be gone; what they made of the model is not
    card = json.loads(files.read(os.path.join(workdir, workdirs.CARD)) or '{}')
    kept = {key: card['model'][key] for key in (
        *model.TIED_TO_SIZE, 'approximate_gelu') if key in card.get('model', {})}
    return model.clone(**kept), None
  return start.start(model, image_size=assembly.image_shape(model, settings)[:2],
                       widen=all(config.model.get(key) is None
                                 for key in model.TIED_TO_SIZE),
                       **config.start)


def _card(config, model, data, evals):
  """What it takes to use the network elsewhere, see `core.cards`; it sees
  images as the first evaluation does."""
  like = next(iter(evals.values()), data)
  crop = like.cut['crop'] if evals else 'resmall'
  return cards.make(
      catalog.describe(model, config.model.name), image_size=data.image_size,
      class_names=data.source.class_names, data=data.source.name,
      loss=config.loss.name, crop=crop,
      interpolation=like.cut['interpolation'])
