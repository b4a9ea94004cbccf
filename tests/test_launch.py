"""What all launch scripts have in common, their pins, venv.sh, local.sh and
test.sh, with a recorder in the place of Python."""
import os
import re
import shutil
import stat
import sys

import launching
import pytest

_SCRIPTS = sorted(launching.ROOT.glob('launch/*.sh')) + [
    launching.ROOT / '.ci' / 'run']
_COMMANDS = [p.name for p in _SCRIPTS if p.name not in (
    'run', 'shell.sh', 'tpu.sh', 'venv.sh', 'local.sh')]


# ---- Every script, and the pins.


@pytest.mark.parametrize('path', _SCRIPTS, ids=lambda p: p.name)
def test_script_parses_and_can_be_run(path):
  assert launching.run('bash', '-n', path).stderr == ''
  assert path.stat().st_mode & stat.S_IXUSR
  text = path.read_text()
  assert text.startswith('#!/usr/bin/env bash\n')
  assert 'set -euo pipefail' in text
  assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize('path', _SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(path):
  shellcheck = shutil.which('shellcheck', path=':'.join([
      os.path.dirname(sys.executable), os.environ['PATH']]))
  if not shellcheck:
    pytest.skip('shellcheck is not installed; requirements.txt has none for '
                'Linux on ARM: apt install shellcheck')
  # Not: files beside another script than the one that is started, and functions
  # that are called by a name in a variable.
  done = launching.run(shellcheck, '-x', '--exclude=SC1091,SC2317,SC2329', path)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('name', _COMMANDS)
def test_help_is_the_comment_at_the_top(name, tmp_path):
  done = launching.run(launching.ROOT / 'launch' / name, '--help', cwd=tmp_path)
  assert done.returncode == 0 and done.stderr == ''
  assert done.stdout.startswith(f'usage: launch/{name} ')
  assert 'set -e' not in done.stdout and '#!' not in done.stdout


def _pins(path):
  lines = [line.partition('#')[0].strip()
           for line in path.read_text().splitlines()]
  return [line for line in lines if line and not line.startswith('-r ')]


@pytest.mark.parametrize('kind', ['tpu', 'cuda13'])
def test_everything_is_pinned(kind):
  base = launching.ROOT / 'requirements.txt'
  path = launching.ROOT / 'launch' / f'requirements-{kind.rstrip("13")}.txt'
  for line in _pins(base) + _pins(path):
    assert re.fullmatch(r'[\w.-]+(\[\w+\])?==[\w.]+( ; .+)?', line), line
  jax, = [pin for pin in _pins(base) if pin.startswith('jax==')]
  assert jax.replace('jax', f'jax[{kind}]') in _pins(path)
  assert '-r ../requirements.txt' in path.read_text().splitlines()


def test_cuda_plugin_is_of_the_same_jax():
  pins = _pins(launching.ROOT / 'launch' / 'requirements-cuda.txt')
  version = dict(pin.split('==') for pin in pins)
  assert {version['jax[cuda13]']} == {
      version['jax-cuda13-plugin'], version['jax-cuda13-pjrt']}


# ---- venv.sh, local.sh and test.sh.


# A Python that can be found, whose venv holds a Python of the same kind.
_FAKE_PYTHON = '''
log() { echo "$*" >>"$LOG"; }
case "$*" in
*ensurepip*) exit ${SUITS:-0} ;;
*platform*) echo ${VERSION:-3.12.1} ;;
'-m venv'*) log "$*"; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
'-m pip'*) log "$*"; exit ${PIP:-0} ;;
*) log "$*" ;;
esac'''


@pytest.fixture
def checkout(tmp_path):
  """A copy, and a function to run one of its scripts with a bare PATH."""
  copy = launching.copy(tmp_path / 'copy')
  tools = tmp_path / 'tools'
  tools.mkdir()
  for name in ('bash', 'cat', 'cksum', 'cp', 'dirname', 'env', 'mkdir', 'mv',
               'rm', 'sed'):
    (tools / name).symlink_to(shutil.which(name))
  log = tmp_path / 'log'

  def call(script, *args, **env):
    log.write_text('')
    path = f'{tmp_path}/shims:{tools}:{tmp_path}/pythons'
    done = launching.run(
        tools / 'bash', copy / 'launch' / script, *args, cwd=tmp_path,
        PATH=path, LOG=str(log), PYTHON=env.pop('PYTHON', ''), **env)
    return done, log.read_text().splitlines()

  call.path = tmp_path
  call.copy = copy
  return call


def _fake(checkout, name, text=_FAKE_PYTHON, where='pythons'):
  return launching.script(checkout.path / where / name, text)


def test_no_suitable_python(checkout):
  _fake(checkout, 'python3.10')
  _fake(checkout, 'python3.12', 'exit 127')             # a shim
  _fake(checkout, 'python3', f'SUITS=1\n{_FAKE_PYTHON}')  # a Python 3.10
  done, _ = checkout('local.sh')
  assert done.returncode == 2
  assert done.stderr.startswith(
      'error: no Python 3.11, 3.12 or 3.13 with its venv module in PATH; ')
  assert done.stderr.count('\n') == 1
  done, _ = checkout('test.sh', PYTHON='/no/such/python')
  assert done.returncode == 2
  assert 'in PYTHON=/no/such/python; install' in done.stderr


def test_a_real_python_of_another_version_is_refused(checkout):
  _fake(checkout, 'python3.13', f'''exec {sys.executable} -c "
import sys; sys.version_info = (3, 14); exec(sys.argv[1])" "$2"''')
  done, _ = checkout('venv.sh')
  assert done.returncode == 2


def test_the_newest_that_runs_is_taken(checkout):
  _fake(checkout, 'python3.11', f'VERSION=3.11.1\n{_FAKE_PYTHON}')
  _fake(checkout, 'python3.12', f'VERSION=3.12.1\n{_FAKE_PYTHON}')
  _fake(checkout, 'python3.12', 'exit 127', where='shims')
  _fake(checkout, 'python3.13', 'exit 127')
  stamp = checkout.copy / '.venv' / 'installed'
  done, _ = checkout('venv.sh')
  assert done.returncode == 0, done.stderr
  assert stamp.read_text().startswith('3.12.1 ')
  checkout('venv.sh', PYTHON='python3.11')
  assert stamp.read_text().startswith('3.11.1 ')


def test_installs_once(checkout):
  _fake(checkout, 'python3.12')
  pip = '-m pip install --disable-pip-version-check -r requirements.txt'
  main = '-m mixer.main --config=configs/digits.py'
  done, log = checkout('local.sh')
  assert done.returncode == 0, done.stderr
  assert log == ['-m venv --clear .venv', pip, main]
  assert done.stdout == ''
  assert checkout('local.sh')[1] == [main]

  # Other pins: again, but what else is in it stays.
  (checkout.copy / 'requirements.txt').write_text('a==2\n')
  assert checkout('local.sh')[1] == ['-m venv .venv', pip, main]
  assert checkout('local.sh')[1] == [main]

  # Another Python: from nothing.
  _fake(checkout, 'python3.13', f'VERSION=3.13.0\n{_FAKE_PYTHON}')
  assert checkout('local.sh')[1] == [main]
  _, log = checkout('local.sh', PYTHON='python3.13')
  assert log == ['-m venv --clear .venv', pip, main]
  assert checkout('local.sh', PYTHON='python3.13')[1] == [main]


def test_other_pins_are_installed_beside(checkout):
  _fake(checkout, 'python3.12')
  cuda = {'REQUIREMENTS': 'launch/requirements-cuda.txt'}
  pip = '-m pip install --disable-pip-version-check -r '
  both = ['-m venv .venv', f'{pip}launch/requirements-cuda.txt']
  checkout('venv.sh')
  assert checkout('venv.sh', **cuda)[1] == both
  # They include the others.
  assert checkout('venv.sh')[1] == []
  assert checkout('venv.sh', **cuda)[1] == []

  # Whatever changes is done again, and what includes it.
  (checkout.copy / 'launch' / 'requirements-cuda.txt').write_text(
      '-r ../requirements.txt\nb==2\n')
  assert checkout('venv.sh')[1] == []
  assert checkout('venv.sh', **cuda)[1] == both
  (checkout.copy / 'requirements.txt').write_text('a==2\n')
  assert checkout('venv.sh', **cuda)[1] == both
  (checkout.copy / 'requirements.txt').write_text('a==3\n')
  assert checkout('venv.sh')[1] == ['-m venv .venv', f'{pip}requirements.txt']
  assert checkout('venv.sh', **cuda)[1] == both

  done, _ = checkout('venv.sh', REQUIREMENTS='no-such.txt')
  assert done.returncode == 2
  assert done.stderr.startswith('error: REQUIREMENTS=no-such.txt is no file')


def test_an_install_that_failed_is_done_again(checkout):
  _fake(checkout, 'python3.12')
  done, log = checkout('local.sh', PIP='1')
  assert done.returncode == 1
  assert 'error: the install failed' in done.stderr
  assert len(log) == 2
  done, log = checkout('local.sh')
  assert done.returncode == 0 and len(log) == 3

  # Half of the new pins are there when the old ones come back.
  (checkout.copy / 'requirements.txt').write_text('a==2\n')
  assert checkout('local.sh', PIP='1')[0].returncode == 1
  (checkout.copy / 'requirements.txt').write_text('a==1\n')
  assert len(checkout('local.sh')[1]) == 3


@pytest.mark.parametrize('args,main', [
    (['--config=a.py'], '--config=a.py'),
    (['--config', 'a.py'], '--config a.py'),
    (['--workdir=x y'], '--config=configs/digits.py --workdir=x y'),
    (['--config.run.seed=1'],
     '--config=configs/digits.py --config.run.seed=1'),
])
def test_local_passes_its_arguments_on(checkout, args, main):
  _fake(checkout, 'python3.12')
  assert checkout('local.sh', *args)[1][-1] == f'-m mixer.main {main}'


def test_local_help(checkout):
  _fake(checkout, 'python3.12')
  done, log = checkout('local.sh', '--help')
  assert done.stdout.startswith('usage: launch/local.sh [FLAGS OF mixer.main]')
  assert 'set -e' not in done.stdout
  assert log[-1] == '-m mixer.main --config=configs/digits.py --help'


@pytest.mark.parametrize('args,pytest_args', [
    ([], ''),
    (['--slow'], ' -m '),
    (['--all', '-x'], ' -m  -x'),
    (['--slow-only', 'tests/test_launch.py'], ' -m slow tests/test_launch.py'),
    (['-k', 'launch'], ' -k launch'),
])
def test_test_picks_the_halves(checkout, args, pytest_args):
  _fake(checkout, 'python3.12')
  _, log = checkout('test.sh', *args)
  assert log[-1] == ('-m pytest -n logical --maxprocesses=8 --dist=loadfile '
                     '--no-loadscope-reorder' + pytest_args)


