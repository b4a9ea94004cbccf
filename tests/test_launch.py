"""What all launch scripts share, their requirements, and venv.sh, local.sh and
test.sh with a fake Python."""
import os
import re
import shutil
import stat
import sys

import launching
import pytest

_SCRIPTS = sorted(launching.ROOT.glob('launch/*.sh')) + [
    launching.ROOT / '.ci' / 'run']
_COMMANDS = [p for p in _SCRIPTS if p.name not in ('run', 'shell.sh', 'tpu.sh')]
_each_command = pytest.mark.parametrize('path', _COMMANDS, ids=lambda p: p.name)


# ---- Every script, and the requirements.


@pytest.mark.parametrize('path', _SCRIPTS, ids=lambda p: p.name)
def test_script_parses_and_is_executable(path):
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
  # It cannot follow files whose path depends on the directory (SC1091), nor see
  # calls of a function whose name is in a variable (SC2317, SC2329).
  done = launching.run(shellcheck, '-x', '--exclude=SC1091,SC2317,SC2329', path)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('flag', ['--help', '-h'])
@_each_command
def test_help_prints_the_comment_at_the_top_and_starts_nothing(
    path, flag, tmp_path):
  box = launching.Sandbox(tmp_path)
  for tool in ('gcloud', 'git', 'kubectl', 'nvidia-smi', 'pip', 'python',
               'python3', 'python3.12', 'sbatch', 'srun', 'uv'):
    box.tool(tool, 'echo "$0 $*" >>"$BOX/called"')
  done = box.call(path.name, flag)
  assert done.returncode == 0 and done.stderr == ''
  assert box.lines('called') == [] and not (box.copy / '.venv').exists()
  assert done.stdout.startswith(f'usage: launch/{path.name} ')
  assert 'set -e' not in done.stdout and '#!' not in done.stdout


@_each_command
def test_help_names_prerequisites_and_every_flag(path):
  text = launching.run(path, '--help').stdout
  assert '\nPrerequisites:' in text
  named = re.search(r"^flags (?:'([a-z ]+)'|(\w+)) ", path.read_text(), re.M)
  if named:
    flags = (named[1] or named[2]).split()
    assert [f for f in [*flags, 'dry-run'] if f'--{f}' not in text] == []


def _pins(path):
  """Returns the lines of a requirements file that name a package."""
  lines = [line.partition('#')[0].strip()
           for line in path.read_text().splitlines()]
  return [line for line in lines if line and not line.startswith('-r ')]


@pytest.mark.parametrize('kind', ['tpu', 'cuda13'])
def test_requirements_pin_every_package(kind):
  base = launching.ROOT / 'requirements.txt'
  path = launching.ROOT / 'launch' / f'requirements-{kind.rstrip("13")}.txt'
  for line in _pins(base) + _pins(path):
    assert re.fullmatch(r'[\w.-]+(\[\w+\])?==[\w.]+( ; .+)?', line), line
  jax, = [pin for pin in _pins(base) if pin.startswith('jax==')]
  assert jax.replace('jax', f'jax[{kind}]') in _pins(path)
  assert '-r ../requirements.txt' in path.read_text().splitlines()


def test_cuda_plugins_have_the_version_of_jax():
  pins = _pins(launching.ROOT / 'launch' / 'requirements-cuda.txt')
  version = dict(pin.split('==') for pin in pins)
  assert {version['jax[cuda13]']} == {
      version['jax-cuda13-plugin'], version['jax-cuda13-pjrt']}


# ---- venv.sh, local.sh and test.sh.


# A fake Python. The venv that it makes holds a copy of itself.
_FAKE_PYTHON = '''
log() { echo "$*" >>"$BOX/log"; }
case "$*" in
*ensurepip*) exit ${SUITS:-0} ;;
*platform*) echo ${VERSION:-3.12.1} ;;
'-m venv'*) log "$*"; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
'-m pip'*) log "$*"; exit ${PIP:-0} ;;
*) log "$*" ;;
esac'''


class _Checkout(launching.Sandbox):
  """A copy of the scripts whose PATH has only a few tools and fake Pythons."""

  def __init__(self, path):
    tools = path / 'tools'
    tools.mkdir()
    for name in ('bash', 'cat', 'cksum', 'cp', 'dirname', 'env', 'mkdir', 'mv',
                 'rm', 'sed'):
      (tools / name).symlink_to(shutil.which(name))
    super().__init__(path, PYTHON='',
                     PATH=f'{path}/shims:{tools}:{path}/pythons')

  def add_python(self, name, text=_FAKE_PYTHON, where='pythons'):
    """Puts a fake Python on PATH."""
    launching.script(self.path / where / name, text)

  def run(self, name, *args, **env):
    """Runs a script; returns its result and the commands that Python got."""
    (self.path / 'log').write_text('')
    done = self.call(self.path / 'tools' / 'bash',
                     self.copy / 'launch' / name, *args, **env)
    return done, self.lines('log')


@pytest.fixture
def checkout(tmp_path):
  box = _Checkout(tmp_path)
  yield box
  box.close()


def test_error_when_no_python_is_suitable(checkout):
  checkout.add_python('python3.10')
  checkout.add_python('python3.12', 'exit 127')   # a shim that does not run
  checkout.add_python('python3', f'SUITS=1\n{_FAKE_PYTHON}')  # a Python 3.10
  done, _ = checkout.run('local.sh')
  launching.check_usage_error(
      done, 'found no Python 3.11, 3.12 or 3.13 with the venv module in PATH; ')
  done, _ = checkout.run('test.sh', PYTHON='/no/such/python')
  launching.check_usage_error(done, 'in PYTHON=/no/such/python; install')


def test_real_python_of_another_version_is_refused(checkout):
  checkout.add_python('python3.13', f'''exec {sys.executable} -c "
import sys; sys.version_info = (3, 14); exec(sys.argv[1])" "$2"''')
  done, _ = checkout.run('venv.sh')
  launching.check_usage_error(done, 'found no Python')


def test_newest_python_that_runs_is_used(checkout):
  checkout.add_python('python3.11', f'VERSION=3.11.1\n{_FAKE_PYTHON}')
  checkout.add_python('python3.12', f'VERSION=3.12.1\n{_FAKE_PYTHON}')
  checkout.add_python('python3.12', 'exit 127', where='shims')
  checkout.add_python('python3.13', 'exit 127')
  stamp = checkout.copy / '.venv' / 'installed'
  done, _ = checkout.run('venv.sh')
  assert done.returncode == 0, done.stderr
  assert stamp.read_text().startswith('3.12.1 ')
  checkout.run('venv.sh', PYTHON='python3.11')
  assert stamp.read_text().startswith('3.11.1 ')


def test_requirements_are_installed_once(checkout):
  checkout.add_python('python3.12')
  pip = '-m pip install --disable-pip-version-check -r requirements.txt'
  main = '-m mixer.main --config=configs/digits.py'
  done, log = checkout.run('local.sh')
  assert done.returncode == 0, done.stderr
  assert log == ['-m venv --clear .venv', pip, main]
  assert done.stdout == ''
  assert checkout.run('local.sh')[1] == [main]
  for flags in (['--report', '--workdir=runs/digits'], ['--flagfile=mine']):
    assert checkout.run('local.sh', *flags)[1] == [
        ' '.join(['-m mixer.main', *flags])]

  # After a change of the requirements, other packages in .venv stay.
  (checkout.copy / 'requirements.txt').write_text('a==2\n')
  assert checkout.run('local.sh')[1] == ['-m venv .venv', pip, main]
  assert checkout.run('local.sh')[1] == [main]

  # A change of the Python clears .venv.
  checkout.add_python('python3.13', f'VERSION=3.13.0\n{_FAKE_PYTHON}')
  assert checkout.run('local.sh')[1] == [main]
  _, log = checkout.run('local.sh', PYTHON='python3.13')
  assert log == ['-m venv --clear .venv', pip, main]
  assert checkout.run('local.sh', PYTHON='python3.13')[1] == [main]


def test_second_requirements_file_is_installed_into_the_same_venv(checkout):
  checkout.add_python('python3.12')
  cuda = {'REQUIREMENTS': 'launch/requirements-cuda.txt'}
  pip = '-m pip install --disable-pip-version-check -r '
  both = ['-m venv .venv', f'{pip}launch/requirements-cuda.txt']
  checkout.run('venv.sh')
  assert checkout.run('venv.sh', **cuda)[1] == both
  # The second file includes the first, so both are installed now.
  assert checkout.run('venv.sh')[1] == []
  assert checkout.run('venv.sh', **cuda)[1] == []

  # A file is installed again when it changes, or a file that it includes.
  (checkout.copy / 'launch' / 'requirements-cuda.txt').write_text(
      '-r ../requirements.txt\nb==2\n')
  assert checkout.run('venv.sh')[1] == []
  assert checkout.run('venv.sh', **cuda)[1] == both
  (checkout.copy / 'requirements.txt').write_text('a==2\n')
  assert checkout.run('venv.sh', **cuda)[1] == both
  (checkout.copy / 'requirements.txt').write_text('a==3\n')
  assert checkout.run('venv.sh')[1] == [
      '-m venv .venv', f'{pip}requirements.txt']
  assert checkout.run('venv.sh', **cuda)[1] == both

  done, _ = checkout.run('venv.sh', REQUIREMENTS='no-such.txt')
  launching.check_usage_error(
      done, 'REQUIREMENTS=no-such.txt is not a readable file')


def test_failed_installation_is_repeated(checkout):
  checkout.add_python('python3.12')
  done, log = checkout.run('local.sh', PIP='1')
  assert done.returncode == 1
  assert 'error: the installation failed' in done.stderr
  assert len(log) == 2
  done, log = checkout.run('local.sh')
  assert done.returncode == 0 and len(log) == 3

  # A failed installation may leave some new packages, so the old requirements
  # have to be installed again.
  (checkout.copy / 'requirements.txt').write_text('a==2\n')
  assert checkout.run('local.sh', PIP='1')[0].returncode == 1
  (checkout.copy / 'requirements.txt').write_text('a==1\n')
  assert len(checkout.run('local.sh')[1]) == 3


@pytest.mark.parametrize('args,main', [
    (['--config=a.py'], '--config=a.py'),
    (['--config', 'a.py'], '--config a.py'),
    (['--workdir=x y'], '--config=configs/digits.py --workdir=x y'),
    (['--config.run.seed=1'],
     '--config=configs/digits.py --config.run.seed=1'),
])
def test_local_passes_its_arguments_to_main(checkout, args, main):
  checkout.add_python('python3.12')
  assert checkout.run('local.sh', *args)[1][-1] == f'-m mixer.main {main}'


@pytest.mark.parametrize('args', [['--help'], ['-h'], ['--config=a', '--help']])
@pytest.mark.parametrize('name', ['local.sh', 'venv.sh', 'test.sh'])
def test_help_installs_nothing(checkout, name, args):
  checkout.add_python('python3.12')
  if name != 'local.sh':   # the others read --help as the first argument only
    args = args[-1:]
  done, log = checkout.run(name, *args)
  assert done.returncode == 0 and done.stderr == ''
  assert done.stdout.startswith(f'usage: launch/{name} ')
  assert log == [] and not (checkout.copy / '.venv').exists()


@pytest.mark.parametrize('args,pytest_args', [
    ([], ''),
    (['--slow'], ' -m '),
    (['--all', '-x'], ' -m  -x'),
    (['--slow-only', 'tests/test_launch.py'], ' -m slow tests/test_launch.py'),
    (['-k', 'launch'], ' -k launch'),
])
def test_test_selects_quick_or_slow_tests(checkout, args, pytest_args):
  checkout.add_python('python3.12')
  _, log = checkout.run('test.sh', *args)
  assert log[-1] == ('-m pytest -n logical --maxprocesses=8 --dist=loadfile '
                     '--no-loadscope-reorder' + pytest_args)
