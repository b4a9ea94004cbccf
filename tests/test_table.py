"""experiments/table and run_records: the paper's tables beside our figures."""
import json
import pathlib

import pytest

from mixer.core import errors
from mixer.experiments import run_records
from mixer.experiments import table
from mixer.models import published

# Parameters without a head and with 1,000 classes, and giga multiply-adds
# without and with it, at 224 pixels; parameters and giga multiply-adds at 448.
MIXERS = {
    'Mixer-S/32': (18_591_624, 19_104_624, 1.0019, 1.0024, 22_122_504, 5.24),
    'Mixer-S/16': (18_015_264, 18_528_264, 3.7764, 3.7770, 30_581_352, 20.04),
    'Mixer-B/32': (59_524_428, 60_293_428, 3.2370, 3.2377, 67_082_776, 17.11),
    'Mixer-B/16': (59_111_472, 59_880_472, 12.6010, 12.6018, 86_996_392, 67.05),
    'Mixer-L/32': (205_914_264, 206_939_264, 11.2523, 11.2533, 225_043_016,
                   59.81),
    'Mixer-L/16': (207_171_168, 208_196_168, 44.5467, 44.5477, 280_500_584,
                   237.38),
    'Mixer-H/14': (431_069_952, 432_350_952, 120.9886, 120.9899, 589_723_368,
                   645.02)}
# With a head for ImageNet-21k and for a cleaned set of 11,221 classes.
MORE_CLASSES = {
    'Mixer-S/32': (29_797_083, 24_347_997),
    'Mixer-S/16': (29_220_723, 23_771_637),
    'Mixer-B/32': (76_321_695, 68_153_377),
    'Mixer-B/16': (75_908_739, 67_740_421),
    'Mixer-L/32': (228_303_339, 217_415_789),
    'Mixer-L/16': (229_560_243, 218_672_693),
    'Mixer-H/14': (459_050_835, 445_444_053)}
# Parameters with 1,000 classes and giga multiply-adds at 224 pixels.
OTHERS = {
    'ViT-B/32': (88_224_232, 4.41), 'ViT-B/16': (86_567_656, 17.56),
    'ViT-L/32': (306_535_400, 15.38), 'ViT-L/16': (304_326_632, 61.55),
    'ViT-H/14': (632_045_800, 167.30), 'BiT-R50x1': (25_549_352, 4.09),
    'BiT-R50x2': (97_988_712, 16.12), 'BiT-R152x1': (60_185_128, 11.51),
    'BiT-R152x2': (236_335_208, 45.81), 'BiT-R200x3': (568_633_000, 134.35),
    'BiT-R152x4': (936_533_224, 182.78)}


@pytest.fixture(scope='module')
def found():
  return table.run(None, '')


def test_table_1_has_the_sizes_of_the_papers(found):
  rows = {row['name']: row for row in found['table_1']}
  for name, (body, whole, less, products, *_) in MIXERS.items():
    row = rows[name]
    assert (row['no_head'], row['parameters']) == (body, whole)
    assert round(row['gmacs_no_head'], 4) == less
    assert round(row['gmacs'], 4) == products
    assert round(row['no_head'] / 1e6) == row['paper_millions']
  for name, (whole, products) in OTHERS.items():
    assert rows[name]['parameters'] == whole
    assert round(rows[name]['gmacs'], 2) == products


@pytest.mark.parametrize('name', MIXERS)
def test_a_mixer_at_448_pixels_has_wider_token_mixing(name):
  model = table.network(name, 448)
  *_, count, products = MIXERS[name]
  assert model.parameters(448) == count
  assert round(model.multiply_adds(448) / 1e9, 2) == products


@pytest.mark.parametrize('name', MORE_CLASSES)
def test_larger_heads_have_the_papers_parameters(name):
  for classes, count in zip((21_843, 11_221), MORE_CLASSES[name]):
    model = table.network(name, 224, num_classes=classes)
    assert model.parameters(224) == count


def test_tables_2_and_3_have_a_cost_for_every_network_that_can_be_built(found):
  assert (len(found['table_2']), len(found['table_3'])) == (10, 26)
  lacking = {row['name'] for row in (*found['table_2'], *found['table_3'])
             if 'parameters' not in row}
  assert lacking == {'HaloNet-H4', 'NFNet-F4+', 'MPL', 'ALIGN'}
  mixer, = (row for row in found['table_2'] if row['name'] == 'Mixer-H/14')
  assert mixer['parameters'] == MIXERS['Mixer-H/14'][4]
  small, = (row for row in found['table_3'] if row['name'] == 'BiT-R50x2')
  assert (small['parameters'], round(small['gmacs'], 2)) == OTHERS['BiT-R50x2']


def test_the_papers_row_of_a_network_is_that_of_most_epochs_at_224_pixels():
  days = lambda *key: published.row(*key).core_days
  assert days('Mixer-L/16', published.JFT) == 450
  assert days('Mixer-L/16', published.I21K) == 410
  assert days('ViT-L/16', published.JFT) == 650
  assert published.row('Mixer-S/16', published.I1K) is None


def test_the_readme_has_the_same_figures(found):
  readme = (pathlib.Path(__file__).parents[1] / 'README.md').read_text()
  for row in found['table_1']:
    name = row['name']
    if name not in published.MILLIONS:
      continue
    config = name.lower().replace('-', '_').replace('/', '')
    cells = []
    for data in (published.I1K, published.I21K, published.JFT):
      paper = published.row(name, data)
      cells.append(f'{paper.top1:.2f}%, {paper.core_days / 1000:.2f}k'
                   if paper else '')
    cells = [f'{row["parameters"] / 1e6:.1f}M', f'{2 * row["gmacs"]:.1f}',
             *cells]
    line, = (line for line in readme.splitlines()
             if f'(configs/{config}.py) |' in line)
    assert [cell.strip() for cell in line.strip('|').split('|')[1:]] == cells


def write_run(path, *, name='Mixer-B/16', data='imagenet2012', weights=None,
              steps=4, devices='TPU v3', values=(.5, .75), size=(224, 224)):
  """Writes the files of a run on two devices."""
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(dict(
      evals=dict(val={}), start=dict(weights=weights),
      run=dict(total_steps=None, total_epochs=2.0, batch_size=50),
      provenance=dict(devices=dict(kind=devices, count=2),
                      data=dict(examples=25 * steps)))))
  (path / 'model.json').write_text(json.dumps(dict(
      model=dict(name=name, num_classes=1000), image_size=size,
      data=data)))
  lines = [{'step': 2 * i, 'train/images_per_second': 100.0 * i,
            'train/device_seconds': 43200.0 * i, 'eval/val/accuracy': value,
            'eval/val/loss': 1 - value} for i, value in enumerate(values, 1)]
  (path / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 4, "tr')
  return str(path)


def test_a_run_stands_beside_the_papers_row(tmp_path, capsys):
  run = write_run(tmp_path / 'mine')
  found = table.run(None, '', runs=[run])
  row, = found['runs']
  assert (row['value'], row['metric']) == (.75, 'eval/val/accuracy')
  assert row['device_days'] == 1 and row['speed'] == 75   # one of two devices
  assert row['parameters'] == MIXERS['Mixer-B/16'][1]
  assert row['paper']['top1'] == 76.44
  json.dumps(found)
  table.show(found)
  printed = capsys.readouterr().out
  assert max(map(len, printed.splitlines())) <= 100
  heading = next(line for line in printed.splitlines() if 'table 1 ' in line)
  cells = [cell.strip() for cell in heading.split('  ') if cell.strip()]
  assert len(set(cells)) == len(cells) > 7   # each column has its own
  lines = [' '.join(line.split()) for line in printed.splitlines()]
  assert ('mine Mixer-B/16 imagenet2012 75.00% 76.44% 75 1 10 59.9M 12.6'
          in lines)
  found['runs'] = table.run(None, '', runs=[
      write_run(tmp_path / 'other', data='imagenet21k')])['runs']
  table.show(found)
  assert 'other Mixer-B/16 imagenet21k 75.00% - 75 1 150 59.9M 12.6' in (
      ' '.join(capsys.readouterr().out.split()))
  assert 'Mixer-B/16 i1k 224 300 76.44 82.36 88.33 1,384 10‡ 59.9M 12.60' in (
      lines)


def test_a_run_at_another_size_stands_beside_no_row(tmp_path):
  for number, size in enumerate(((192, 192), (224, 448))):
    run = write_run(tmp_path / str(number), size=size)
    assert table.run(None, '', runs=[run])['runs'][0]['paper'] is None


def test_what_cannot_be_compared_is_said(tmp_path, caplog):
  runs = [write_run(tmp_path / 'a'),
          write_run(tmp_path / 'b', steps=8, data='digits', weights='w.npz',
                    devices='cpu')]
  found = table.run(None, '', runs=runs)
  assert found['runs'][1]['paper'] is None
  said = caplog.text
  for words in ('b has not finished: it is at step 4 of 8',
                'b started from w.npz', 'different data sets',
                'different devices'):
    assert words in said
  assert 'a has not finished' not in said


def test_missing_runs_and_metrics_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match='--runs: .*x.*no run.*config'):
    run_records.read(str(tmp_path / 'x'))
  run = write_run(tmp_path / 'a')
  for metric in ('eval/val/accurac', 'eval/val/loss'):   # less loss is better
    with pytest.raises(errors.UserError, match='--metric: .*eval/val/accuracy'):
      run_records.read(run, metric)
