"""`python -m mixer.study`: the table of experiments, and what it refuses."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The rows of the table beside the functions that they call, as JSON. In a
# process of its own, because importing a command defines its flags.
ROWS = """
import importlib, inspect, json
from mixer import study
out = {}
for name, row in study.EXPERIMENTS.items():
  module = importlib.import_module(f'mixer.experiments.{row.module}')
  parameters = inspect.signature(module.run).parameters
  out[name] = dict(
      module=row.module, question=row.question, shows=callable(module.show),
      flags=[flag.name for flag in row.reads], parameters=list(parameters),
      required=[name for name, p in parameters.items()
                if p.default is p.empty])
print(json.dumps(out))
"""
# Modules of mixer/experiments that are no experiment themselves.
SHARED = ('__init__', 'networks', 'run_records', 'runs', 'sweep_grid')


def run(*args):
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='')
  return subprocess.run([sys.executable, *args], cwd=ROOT, env=env,
                        capture_output=True, text=True, timeout=600)


@pytest.fixture(scope='module')
def rows():
  out = run('-c', ROWS)
  assert out.returncode == 0, out.stderr
  return json.loads(out.stdout)


def test_the_flags_of_a_row_are_arguments_of_its_function(rows):
  for name, row in rows.items():
    assert row['parameters'][:2] == ['config', 'path'], name
    assert set(row['flags']) <= set(row['parameters'][2:]), name
    assert set(row['required']) <= {'config', 'path', *row['flags']}, name
    assert row['shows'], name


def test_every_module_of_experiments_has_a_row(rows):
  files = {file.stem for file in (ROOT / 'mixer/experiments').glob('*.py')}
  assert {row['module'] for row in rows.values()} == files - set(SHARED)


def test_help_lists_every_experiment_with_its_question(rows):
  out = run('-m', 'mixer.study', '--help')
  text = ' '.join(out.stdout.split())
  for name, row in rows.items():
    assert f'{name} {row["question"]}' in text


@pytest.mark.parametrize('flags,words', [
    ((), ('one experiment', 'sweep', 'none')),
    (('swep', '--config=configs/finetune.py'), ('sweep', 'swep')),
    (('sweep',), ('--config', 'configs/finetune.py')),
    (('sweep', '--config=configs/digits.py'), ('`sweep`', 'finetune.py')),
    (('left_out', '--config=configs/digits.py', '--sizes=6'),
     ('--sizes', 'only for sizes, complexity', 'left_out')),
    (('sizes', '--config=configs/digits.py', '--sizes=6,big'),
     ('--sizes', "'6,big'", '--sizes=20,48')),
    (('frontier', '--config=configs/digits.py'), ('--config', 'leave it out')),
    (('table', '--runs=nowhere'), ('--runs', "'nowhere'", 'metrics.jsonl')),
    (('filters', '--checkpoint=gone', '--config=configs/digits.py'),
     ('--config', '--checkpoint', 'leave it out')),
    (('filters', '--checkpoint=gone'), ("'gone'", 'no release')),
])
def test_a_mistake_is_told_in_one_line(flags, words, tmp_path):
  out = run('-m', 'mixer.study', *flags, f'--workdir={tmp_path}/w')
  assert out.returncode == 2 and len(out.stderr.splitlines()) == 1, out.stderr
  assert out.stderr.startswith('error: ')
  for word in words:
    assert word in out.stderr
  assert not (tmp_path / 'w').exists()


def test_a_workdir_that_cannot_be_made_is_refused_before_any_work(tmp_path):
  (tmp_path / 'file').write_text('mine')
  out = run('-m', 'mixer.study', 'sweep', '--config=configs/digits.py',
            f'--workdir={tmp_path}/file/below')
  assert out.returncode == 2 and len(out.stderr.splitlines()) == 1, out.stderr
  assert '--workdir' in out.stderr and "file' is not" in out.stderr
  assert os.listdir(tmp_path) == ['file']


@pytest.mark.slow   # whole runs
def test_the_figures_are_in_result_json_and_in_the_table(tmp_path):
  out = run('-m', 'mixer.study', 'sizes', '--config=configs/digits.py',
            '--config.run.total_steps=20', '--config.run.eval_every=0',
            '--config.model.num_blocks=1', '--config.model.stochastic_depth=0',
            '--sizes=6', '--tuning_steps=4', f'--workdir={tmp_path}/w')
  assert out.returncode == 0, out.stderr
  found = json.loads((tmp_path / 'w' / 'result.json').read_text())
  row, = found['rows']
  assert (row['size'], row['method']) == (6, 'resample')
  assert f'{row["tuned"]:.2%}' in out.stdout
  for name in ('result.json', 'sizes.png', 'sizes.svg'):
    assert f'{tmp_path}/w/{name}' in out.stdout
    assert (tmp_path / 'w' / name).stat().st_size > 100


@pytest.mark.slow   # processes of their own
def test_tables_and_figures_of_runs_need_no_config(tmp_path):
  out = run('-m', 'mixer.study', 'frontier', f'--workdir={tmp_path}/f')
  assert out.returncode == 0, out.stderr
  assert sorted(os.listdir(tmp_path / 'f')) == [
      'frontier.png', 'frontier.svg', 'result.json']
  out = run('-m', 'mixer.study', 'table', f'--workdir={tmp_path}/t')
  assert out.returncode == 0, out.stderr
  assert os.listdir(tmp_path / 't') == ['result.json']
  assert '432,350,952' in out.stdout


@pytest.mark.slow   # a run
def test_the_units_of_a_run_are_drawn(tmp_path):
  done = run('-m', 'mixer.main', '--config=configs/digits.py',
             '--config.run.total_steps=2', f'--workdir={tmp_path}/digits')
  assert done.returncode == 0, done.stderr
  out = run('-m', 'mixer.study', 'filters', f'--workdir={tmp_path}/w',
            f'--checkpoint={tmp_path}/digits', '--layers=0,3')
  assert out.returncode == 0, out.stderr
  found = json.loads((tmp_path / 'w' / 'result.json').read_text())
  assert [row['layer'] for row in found['layers']] == [0, 3]
  for row in found['layers']:
    assert f'{row["opposition"]:.3f}' in out.stdout
  for kind in ('png', 'svg'):
    assert (tmp_path / 'w' / f'filters.{kind}').stat().st_size > 1000


@pytest.mark.slow   # whole runs
def test_variants_are_compared_and_finished_runs_stay(tmp_path):
  command = ('-m', 'mixer.study', 'variants', '--config=configs/digits.py',
             '--config.run.total_steps=4', '--config.model.num_blocks=1',
             '--config.model.stochastic_depth=0', f'--workdir={tmp_path}/w')
  out = run(*command, '--variants=tied', '--seeds=2')
  assert out.returncode == 0, out.stderr
  first = json.loads((tmp_path / 'w' / 'result.json').read_text())
  row, = first['rows']
  assert row['variant'] == 'tied' and len(row['scores']) == 2
  assert row['images_per_second'] is None or row['images_per_second'] > 0
  assert f'{row["accuracy"]:.2%}' in out.stdout
  assert (tmp_path / 'w' / 'variants.png').exists()
  out = run(*command, '--variants=tied', '--seeds=1')
  again = json.loads((tmp_path / 'w' / 'result.json').read_text())
  assert again['rows'][0]['scores'] == row['scores'][:1]
