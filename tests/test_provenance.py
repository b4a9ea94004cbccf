"""A run says what it was made with, and whatever it leaves carries that on."""
import hashlib
import json
import os
import shutil
import subprocess

import jax
import pytest

from configs import digits
from mixer.analysis import scoring
from mixer.core import provenance
from mixer.core import workdir
from mixer.pretrained import export
from mixer.pretrained import network as networks
from mixer.pretrained import origin
from mixer.training import assembly
from mixer.training import opening
from mixer.training import run

DATA = dict(source='0123', split='train')


def commit(folder, *names):
  """Makes a git repository that tracks some files; returns its commit."""
  git = lambda *args: subprocess.run(
      ('git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args), cwd=folder,
      check=True, capture_output=True, text=True).stdout.strip()
  git('init', '-q')
  git('add', *names)
  git('commit', '-qm', 'first')
  return git('rev-parse', 'HEAD')


def test_versions_devices_data_and_start_are_kept():
  start = dict(weights='w.npz', sha256='ab')
  made = provenance.collect(data=DATA, start=start)
  assert made['versions']['jax'] == jax.__version__
  assert set(made['versions']) >= {'python', 'jaxlib', 'flax', 'optax',
                                   'orbax-checkpoint', 'numpy'}
  assert made['devices'] == dict(kind='cpu', count=jax.device_count())
  assert made['data'] == DATA and made['start'] == start
  assert made == json.loads(json.dumps(made))
  assert 'start' not in provenance.collect(data=DATA)


def test_the_commit_is_that_of_the_checkout_that_tracks_the_code(
    tmp_path, monkeypatch):
  """A copy that is installed in another project's checkout has none."""
  file, other = tmp_path / 'code.py', tmp_path / 'installed.py'
  for path in (file, other):
    path.write_text('a')
  assert provenance._commit(str(file)) == {}
  expected = commit(tmp_path, 'code.py')
  monkeypatch.setenv('GIT_DIR', '/nowhere')   # as a git hook would
  clean = dict(commit=expected, uncommitted=False)
  assert provenance._commit(str(file)) == clean
  assert provenance._commit(str(other)) == {}
  file.write_text('b')
  assert provenance._commit(str(file)) == dict(clean, uncommitted=True)
  monkeypatch.setenv('PATH', str(tmp_path))   # no git
  assert provenance._commit(str(file)) == {}


def test_a_line_names_commit_and_versions():
  made = dict(versions=dict(python='3.13.1', jax='0.8'))
  assert provenance.line(made) == 'python 3.13.1, jax 0.8'
  made.update(commit='0123456789abcdef', uncommitted=True)
  assert provenance.line(made) == (
      'commit 0123456789ab with uncommitted changes, python 3.13.1, jax 0.8')


def test_differences_name_what_changed():
  old = dict(versions=dict(jax='0.7', numpy='2'), commit='a',
             devices=dict(kind='cpu', count=1))
  new = dict(old, versions=dict(jax='0.8', numpy='2', pillow='12'))
  assert provenance.differences(old, old) == ''
  assert provenance.differences(old, new) == (
      'jax was 0.7, is 0.8, pillow was None, is 12')


def tiny(**sections):
  """A config of one step on the digits."""
  c = digits.get_config()
  c.model.update(hidden_dim=8, num_blocks=1, tokens_mlp_dim=4,
                 channels_mlp_dim=8)
  c.run.update(batch_size=16, total_steps=1)
  c.augment.update(rotate=0., zoom=0., shift=0.)   # compiles sooner
  for name, section in sections.items():
    c[name].update(section)
  return c


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """The workdir of a run of one step."""
  path = tmp_path_factory.mktemp('runs') / 'old'
  run.train(tiny(), str(path))
  return path


def test_a_run_keeps_it_beside_its_config(path):
  stored = json.loads((path / 'config.json').read_text())
  made = stored.pop('provenance')
  assert made == workdir.provenance(path)
  assert stored == workdir.config_of(path)
  assert made['data']['split'] == 'train' and made['data']['examples'] == 1437
  assert 'start' not in made


def test_the_start_weights_are_one_checkpoint_and_a_checksum(path):
  config = tiny(start=dict(weights=str(path)))
  settings = assembly.check(config)
  model = networks.open_network(path).model
  start = assembly.load_start(config, settings, model, None, None)[2]
  weights = path / 'checkpoints' / '1'
  assert start['weights'] == str(weights)
  names = sorted(os.path.relpath(file, weights / 'params')
                 for file in (weights / 'params').rglob('*') if file.is_file())
  lines = ''.join(
      f'{hashlib.sha256((weights / "params" / name).read_bytes()).hexdigest()} '
      f'{name}\n' for name in names)
  assert len(names) > 1
  assert start['sha256'] == hashlib.sha256(lines.encode()).hexdigest()


def test_of_a_file_the_checksum_is_that_of_the_file(tmp_path):
  file = tmp_path / 'w.npz'
  file.write_bytes(b'weights')
  assert origin.of(str(file)) == dict(
      weights=str(file), sha256=hashlib.sha256(b'weights').hexdigest())
  section = dict(weights=str(file), best=False, method=None)
  assert origin.resolved(section) == section


def test_a_network_its_scores_and_its_exports_carry_it(path, tmp_path):
  """The weights themselves stay as they are without it."""
  made = workdir.provenance(path)
  network = networks.open_network(path)
  assert network.card['provenance'] == made
  config = scoring.requested(scoring.config_of(network), network)
  results, _ = scoring.evaluate(network, config, batch_size=64)
  assert results['provenance'] == made
  line = provenance.line(made, data=True)
  assert line.endswith(f', data {made["data"]["source"]}')
  assert line.startswith(provenance.line(made) + ',') and '\n' not in line
  file = tmp_path / 'w.npz'
  export.export(network, str(file), format='npz')
  assert networks.open_network(file).card['provenance'] == made
  shutil.copytree(path, tmp_path / 'before')
  workdir.write_config(tmp_path / 'before', scoring.config_of(network), None)
  before = networks.open_network(tmp_path / 'before')
  assert 'provenance' not in before.card
  export.export(before, str(tmp_path / 'before.npz'), format='npz')
  assert (tmp_path / 'before.npz').read_bytes() == file.read_bytes()


def test_a_resumed_run_tells_what_changed_and_a_finished_one_keeps_what_it_was(
    tmp_path):
  at = lambda finished: opening.made_with(
      tmp_path, DATA, None, finished=finished)
  new, line = at(None)
  assert line == provenance.line(new)
  assert at(False) == (new, line) and at(True) == (None, line)   # of older code
  old = dict(new, versions=dict(new['versions'], optax='0.1'))
  workdir.write_config(tmp_path, {}, old)
  said = ('; since the run was last started, optax was 0.1, is '
          + new['versions']['optax'])
  assert at(False) == (new, line + said) and at(True) == (old, line + said)
  assert at(None) == (new, line)   # the run saved nothing
