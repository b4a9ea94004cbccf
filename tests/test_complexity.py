"""experiments/complexity: cost against the number of patches."""
import json

import jax
import numpy as np
import pytest

from configs import digits
from mixer import models
from mixer.core import errors
from mixer.experiments import complexity

SIZES = dict(patch_size=2, hidden_dim=16, num_blocks=2, channels_mlp_dim=32,
             num_classes=10)


def tiny():
  c = digits.get_config()
  c.model.update(hidden_dim=16, num_blocks=1, tokens_mlp_dim=8,
                 channels_mlp_dim=32)
  return c.lock()


def test_exponents_of_planted_costs():
  patches = np.array([16, 32, 64, 128])
  found = complexity.exponents(patches, 3e-9 * patches ** 1.7)
  assert found == pytest.approx(dict(all=1.7, last=1.7))
  mixed = complexity.exponents(patches, 1000.0 * patches + patches ** 2)
  assert 1 < mixed['all'] < mixed['last'] < 2


def test_only_the_attention_of_a_vit_grows_with_the_square():
  mixer = models.create('Mixer-S/2', tokens_mlp_dim=8, **SIZES)
  vit = models.create('ViT-S/2', num_heads=2, pool='mean', **SIZES)
  assert complexity._counted(mixer, (8, 16))['quadratic'] == 0
  point = complexity._counted(vit, (8, 16))
  assert point['patches'] == 32 and point['size'] == '8x16'
  # Queries with keys, and weights with values: 2 S^2 C in each of 2 blocks.
  assert point['quadratic'] == 2 * 2 * 32**2 * 16 < point['multiply_adds']


def test_patches_double_from_size_to_size():
  shapes = complexity._shapes((8, 8), ())
  assert shapes[:4] == [(8, 8), (8, 16), (16, 16), (16, 32)]
  assert complexity._shapes((8, 8), ['16', '8']) == [(8, 8), (16, 16)]


@pytest.mark.parametrize('sizes, words', [
    (['8'], '--sizes: expected at least two'), (['8', 'x'], "'8,x'"),
    (['8', '9'], 'image_size: 9x9 is not a multiple')])
def test_wrong_sizes_are_refused_before_anything_is_timed(
    tmp_path, sizes, words):
  with pytest.raises(errors.UserError, match=words):
    complexity.run(tiny(), str(tmp_path / 'w'), sizes=sizes)
  assert not (tmp_path / 'w').exists()


@pytest.mark.slow   # compiles and times six programs
def test_measured_times_are_kept_and_shown(tmp_path, capsys):
  path = str(tmp_path)
  found = complexity.run(tiny(), path, sizes=('8', '16', '32'))
  assert json.loads(json.dumps(found)) == found
  mixer, vit = found['networks']
  assert [p['batch_size'] for p in mixer['points']] == [
      batch * jax.device_count() for batch in (16, 4, 1)]
  assert mixer['exponents']['multiply_adds']['last'] == pytest.approx(1, abs=.1)
  assert vit['exponents']['multiply_adds']['last'] > 1.4
  assert complexity.run(tiny(), path, sizes=('8', '16', '32')) == found
  complexity.show(found)
  assert found['device'] in capsys.readouterr().out
  axes, = complexity.draw(found).axes
  assert len(axes.lines) == 5 and axes.get_xscale() == 'log'
