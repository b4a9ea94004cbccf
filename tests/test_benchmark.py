"""`python -m mixer.benchmark`: what it prints, and what it refuses."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from mixer.models import catalog
from mixer.models import cost

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = ('--image_size=32', '--batch_size=4', '--rounds=3', '--seconds=1')


def benchmark(*args):
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='')
  return subprocess.run(
      [sys.executable, '-m', 'mixer.benchmark', *args], cwd=ROOT, env=env,
      capture_output=True, text=True, timeout=300)


@pytest.mark.slow   # compiles and measures
@pytest.mark.parametrize('mode', ['train', 'infer'])
def test_the_last_line_holds_figures_that_agree(mode):
  out = benchmark(mode, '--model=Mixer-S/32', *SMALL)
  assert out.returncode == 0, out.stderr
  found = json.loads(out.stdout.splitlines()[-1])
  assert (found['mode'], found['batch_size'], found['rounds']) == (mode, 4, 3)
  flops = dict(train=cost.training_flops, infer=cost.forward_flops)[mode](
      catalog.create('Mixer-S/32'), 32)
  seconds = found['median_seconds']
  assert found['images_per_second'] == pytest.approx(4 / seconds)
  assert found['flops_per_second'] == pytest.approx(4 * flops / seconds)
  assert found['utilisation'] == pytest.approx(
      found['flops_per_second'] / found['peak_flops_per_second'])


@pytest.mark.parametrize('args, expected', [
    ((), ('one mode', 'input', 'train', 'infer', 'tpu')),
    (('train', '--topology=v3:2x2'), ('--topology', 'tpu only', 'train')),
    (('train', '--compare=tim', *SMALL), ('--compare', "'tim'", "'timm'")),
    (('train', '--config=configs/digits.py', '--batch_size=4'),
     ('--batch_size', '--config.run.batch_size')),
    (('input', '--config=configs/digits.py'), ('data.name', 'digits')),
])
def test_a_mistake_is_one_line(args, expected):
  out = benchmark(*args)
  line, = out.stderr.splitlines()
  assert out.returncode == 2 and line.startswith('error: '), out.stderr
  for part in expected:
    assert part in line
