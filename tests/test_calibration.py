"""analysis/calibration: the paper's speeds beside those of cycles."""
import json
import statistics

import jax
import pytest
from test_compiled_step import needs_libtpu

from mixer.analysis import calibration
from mixer.core import errors
from mixer.core import tables
from mixer.experiments import table
from mixer.models import published


def planted(*names, factor=1.2):
  """Compiled programs that are a factor faster than the paper's, forward, and
  train a quarter as fast."""
  done = {}
  for row in published.TABLE_3:
    if row.name in names:
      speed = factor * row.speed
      done[f'{row.name} {row.size} forward'] = dict(speed=speed)
      done[f'{row.name} 224 train'] = done.get(
          f'{row.name} 224 train', dict(speed=speed / 4))
  return done


def test_speeds_and_costs_stand_beside_the_papers():
  found = calibration.compare(planted('Mixer-H/14', 'BiT-R50x1'))
  bit, mixer = found['rows']
  assert (mixer['name'], mixer['epochs']) == ('Mixer-H/14', 14)
  assert mixer['speed'] == dict(paper=194, cycles=pytest.approx(1.2 * 194),
                                ratio=pytest.approx(1.2))
  days = 14 * 300e6 / (1.2 * 194 / 4) / 86400   # epochs, images, speed
  assert mixer['core_days'] == dict(
      paper=1010, cycles=pytest.approx(days), ratio=pytest.approx(1010 / days))
  assert found['median'] == dict(
      speed=pytest.approx(1.2), core_days=pytest.approx(statistics.mean(
          row['core_days']['ratio'] for row in (bit, mixer))))
  assert found['step'] is None


def test_a_networks_speed_and_small_costs_do_not_weigh_more_than_they_say():
  """L/16 has five rows at 224 pixels, but one speed; 10 core-days are 5 to 15.
  """
  done = planted('Mixer-L/16')
  done['Mixer-S/32 224 forward'] = dict(speed=3.0 * 11489)
  done['Mixer-S/32 224 train'] = dict(speed=1.0)
  found = calibration.compare(done)
  assert len(found['rows']) == 7
  # L/16 at 224 and 448, and S/32.
  assert found['median']['speed'] == pytest.approx(1.2)
  without = calibration.compare(planted('Mixer-L/16'))
  assert found['median']['core_days'] == without['median']['core_days']


def test_the_training_step_is_big_visions():
  """84.6 ms for 32 images a core."""
  found = calibration.compare({
      'Mixer-B/16 224 forward': dict(speed=1384.0),
      'Mixer-B/16 224 train': dict(speed=32 / .0653)})['step']
  assert round(found['paper'], 1) == 84.6
  assert found['cycles'] == pytest.approx(65.3)
  assert found['ratio'] == pytest.approx(84.6 / 65.3, rel=1e-3)


def test_every_network_of_table_3_is_compiled_the_cheapest_first():
  made = {(row.name, row.size): table.network(row.name, row.size)
          for row in published.TABLE_3}
  found = calibration.programs(made)
  assert found[0] == ('Mixer-S/32', 224, 'forward')
  assert len(found) == 17 + 15   # two sizes are for prediction alone
  assert {what for _, size, what in found if size > 224} == {'forward'}
  assert found.index(('ViT-L/16', 512, 'forward')) < found.index(
      ('Mixer-S/32', 224, 'train'))
  assert [calibration.batch('Mixer-L/16', *key) for key in (
      (224, 'forward'), (224, 'train'), (448, 'forward'))] == [32, 16, 8]


def test_a_part_of_the_table_can_be_printed(capsys):
  done = planted('Mixer-B/16')
  done['ViT-H/14 224 forward'] = dict(speed=87.0)
  tables.show(calibration.table(dict(calibration.compare(done),
                                     dtype='float32')))
  lines = [' '.join(line.split()) for line in
           capsys.readouterr().out.splitlines()]
  assert 'ViT-H/14 jft 224 14 87 87 1.00 2,300 - -' in lines
  said = ' '.join(lines)
  assert "big_vision's training step of Mixer-B/16: 84.6 ms" in said
  assert 'Median ratio of the speeds 1.10' in said


def test_only_v3_can_stand_beside_the_paper_and_only_compiling_has_families():
  with pytest.raises(errors.UserError, match='--topology.*TPU v3.*v4:2x2x1'):
    calibration.run('', 'v4:2x2x1', {})
  with pytest.raises(errors.UserError, match='--networks.*--topology'):
    table.run(None, '', networks=['ViT'])


@needs_libtpu
@pytest.mark.slow   # compiles S/32 twice
def test_compiled_programs_are_kept(tmp_path, caplog):
  caplog.set_level('INFO')
  networks = {('Mixer-S/32', 224): lambda **how: table.network(
      'Mixer-S/32', 224, **how)}
  found = calibration.run(str(tmp_path), 'v3:2x2', networks)
  assert len(caplog.messages) == 2   # a line for each program
  speed = found['rows'][0]['speed']
  assert speed['paper'] == 11489 and .7 < speed['ratio'] < 1.5
  assert found['rows'][0]['core_days']['cycles'] > 0
  assert calibration.run(str(tmp_path), 'v3:2x2', networks) == found
  assert len(caplog.messages) == 2
  kept = json.loads((tmp_path / 'compiled.json').read_text())
  kept['done']['Mixer-S/32 224 train']['code']['versions']['jax'] = '0.1'
  (tmp_path / 'compiled.json').write_text(json.dumps(kept))
  again = calibration.run(str(tmp_path), 'v3:2x2', networks)
  assert again['rows'] == found['rows']
  assert f'jax was 0.1, is {jax.__version__}' in caplog.messages[-1]
