"""What a run prints about itself before its first step."""
import re

import jax
import pytest

from configs import digits
from mixer.core import trees
from mixer.data import sources
from mixer.evaluation import suite
from mixer.models import catalog
from mixer.training import assembly
from mixer.training import optimizers
from mixer.training import progress
from mixer.training import step


def introduced(tmp_path, caplog, **optimizer):
  """Introduces a run of the digits; returns the logged lines."""
  caplog.set_level('INFO', 'mixer')
  config = digits.get_config()
  config.optimizer.update(optimizer)
  settings = assembly.check(config)
  plan = assembly.make_plan(config)
  data, evals, _ = suite.open_splits(config.to_dict(), settings.image_size)
  model = assembly.make_model(config, settings, data.source)
  optimizer, step_fn = assembly.make_step(config, settings, model, 1200)
  sharded = step.shard(
      step_fn, model, optimizer, plan, seed=0,
      image_shape=assembly.image_shape(model, settings))
  caplog.clear()
  progress.introduce(
      path=str(tmp_path), title=catalog.title(catalog.describe(model)),
      settings=settings, plan=plan, data=data, evals=evals, model=model,
      state=sharded.state,
      trained=optimizers.trained(sharded.state.params, config.optimizer.frozen),
      image_flops=10**9, total_steps=1200, paper_core_days=80)
  return sharded.state.params, caplog.messages


def test_it_tells_model_data_devices_length_memory_and_cost(tmp_path, caplog):
  params, lines = introduced(tmp_path, caplog)
  assert [line.split()[0] for line in lines if line[0] != ' '] == [
      'model', 'data', 'classes', 'devices', 'run', 'memory', 'cost', 'workdir']
  text = '\n'.join(lines)
  count = trees.count(params)
  for part in (f'{count:,} parameters; ', 'split train: 1,437 images of 10 '
               "classes\n", "evaluation 'test' on digits, split test: 360 ",
               f'{jax.device_count()} x cpu, computing in float32; ',
               '1,200 steps of 128 images: 106.9 epochs',
               f'parameters {count * 4 / 2**20:.1f} MiB',
               'classes  0 (1', ', ... 5 more',
               'the paper took 80 TPUv3 core-days',
               str(tmp_path)):
    assert part in text
  table = (tmp_path / 'parameters.txt').read_text()
  for name in trees.flatten(params):
    assert name in table


def test_it_tells_the_versions_of_sets(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(sources.Source, 'title', 'digits:1.2.3')
  _, lines = introduced(tmp_path, caplog)
  text = '\n'.join(lines)
  assert 'data     digits:1.2.3, split train:' in text
  assert "evaluation 'test' on digits:1.2.3, split test:" in text


def test_it_tells_how_many_parameters_are_trained(tmp_path, caplog):
  params, lines = introduced(tmp_path, caplog, frozen='(stem|Mixer.*)/.*')
  trained = sum(x.size for name, x in trees.flatten(params).items()
                if name.startswith(('head/', 'pre_head_layer_norm/')))
  assert f', {trained:,} of them trained;' in lines[1]
  assert trained < trees.count(params) / 10


@pytest.mark.parametrize('kind, phrase', (
    ('TPU v3', 'about 1,000.0 device-hours at 40% of the bfloat16 peak of a'),
    ('a new device', None)))
def test_it_estimates_hours_on_known_accelerators(kind, phrase):
  flops = 1000 * 3600 * 0.4 * 123e12 / 2
  said = '; '.join(progress._cost(1e9, flops, 'tpu', kind, None))
  assert re.match(r'training takes 1 GFLOPs per image, .* in total', said)
  assert phrase is None and 'hours' not in said or phrase in said
