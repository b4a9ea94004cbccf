"""The shell scripts, with a recorder in the place of gcloud and of Python."""
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_GOLDEN = _ROOT / 'tests' / 'golden'
_SCRIPTS = sorted(_ROOT.glob('launch/*.sh')) + [_ROOT / '.ci' / 'run']
_VM = ['--name=mixer', '--zone=europe-west4-a']
_CLOUD = 'gcloud compute tpus tpu-vm'

# How to accept a wanted change: run the command of the case, with --dry-run,
# and put what it prints into the file.
_DRY_RUNS = {
    'tpu_vm_run': ['run', *_VM, '--', '--config=configs/mixer_b16.py',
                   '--workdir=gs://bucket/b16'],
    'tpu_vm_spot': ['run', *_VM, '--project', 'my project', '--spot',
                    '--type=v6e-8', '--', '--config=configs/mixer_b16.py:jft',
                    "--workdir=gs://bucket/it's"],
    'tpu_vm_log': ['log', *_VM],
    'tpu_vm_interrupt': ['interrupt', *_VM],
    'tpu_vm_stop': ['stop', *_VM],
}


def _run(*command, cwd=_ROOT, **env):
  return subprocess.run(
      [str(c) for c in command], cwd=cwd, env={**os.environ, **env}, text=True,
      stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


def _script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{text}\n')
  path.chmod(0o755)
  return path


def _copy(path, *others):
  """A checkout with nothing but the launch scripts."""
  shutil.copytree(_ROOT / 'launch', path / 'launch')
  (path / 'requirements.txt').write_text('a==1\n')
  return path


# ---- Every script, and the pins.


@pytest.mark.parametrize('path', _SCRIPTS, ids=lambda p: p.name)
def test_script_parses_and_can_be_run(path):
  assert _run('bash', '-n', path).stderr == ''
  assert path.stat().st_mode & stat.S_IXUSR
  text = path.read_text()
  assert text.startswith('#!/usr/bin/env bash\n')
  assert 'set -euo pipefail' in text
  assert max(map(len, text.splitlines())) <= 80


def _pins(path):
  lines = [line.partition('#')[0].strip()
           for line in path.read_text().splitlines()]
  return [line for line in lines if line and not line.startswith('-r ')]


def test_everything_is_pinned():
  tpu = _ROOT / 'launch' / 'requirements-tpu.txt'
  for path in [_ROOT / 'requirements.txt', tpu]:
    for line in _pins(path):
      assert re.fullmatch(r'[\w.-]+(\[\w+\])?==[\w.]+( ; .+)?', line), line
  jax, = [p for p in _pins(_ROOT / 'requirements.txt') if p.startswith('jax==')]
  assert jax.replace('jax', 'jax[tpu]') in _pins(tpu)
  assert '-r ../requirements.txt' in tpu.read_text().splitlines()


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
  copy = _copy(tmp_path / 'copy')
  tools = tmp_path / 'tools'
  tools.mkdir()
  for name in ('bash', 'cat', 'cksum', 'cp', 'dirname', 'env', 'mkdir', 'mv',
               'rm', 'sed'):
    (tools / name).symlink_to(shutil.which(name))
  log = tmp_path / 'log'

  def call(script, *args, **env):
    log.write_text('')
    path = f'{tmp_path}/shims:{tools}:{tmp_path}/pythons'
    done = _run(tools / 'bash', copy / 'launch' / script, *args, cwd=tmp_path,
                PATH=path, LOG=str(log), PYTHON=env.pop('PYTHON', ''), **env)
    return done, log.read_text().splitlines()

  call.path = tmp_path
  call.copy = copy
  return call


def _fake(checkout, name, text=_FAKE_PYTHON, where='pythons'):
  return _script(checkout.path / where / name, text)


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
  assert log[-1] == ('-m pytest -n logical --maxprocesses=8 --dist=loadfile'
                     + pytest_args)


# ---- tpu_vm.sh.


@pytest.mark.parametrize('name', _DRY_RUNS)
def test_tpu_dry_run(name, tmp_path):
  gcloud = _script(tmp_path / 'gcloud', f'echo "$@" >>{tmp_path}/called')
  done = _run('launch/tpu_vm.sh', _DRY_RUNS[name][0], '--dry-run',
              *_DRY_RUNS[name][1:], PATH=f'{tmp_path}:{os.environ["PATH"]}')
  assert done.returncode == 0, done.stderr
  assert done.stdout == (_GOLDEN / f'{name}.txt').read_text()
  assert os.listdir(tmp_path) == [gcloud.name]


@pytest.mark.parametrize('args,message', [
    ([], 'COMMAND is'),
    (['walk', *_VM], "COMMAND is 'walk'"),
    (['run', '--zone=z', '--', '-x'], '--name=NAME is missing'),
    (['run', '--name=n', '--', '-x'], '--zone=ZONE is missing'),
    (['run', *_VM], "mixer.main's flags are missing"),
    (['run', *_VM, '--config=x'], 'unknown argument --config=x'),
    (['run', *_VM, '--type'], '--type wants a value'),
    (['run', *_VM, '--type=a100', '--', '-x'], "--type is 'a100'"),
    (['run', *_VM, '--type=v3-32', '--', '-x'], 'a slice of several VMs'),
    (['run', *_VM, '--type=v7x-8', '--', '-x'], "--type is 'v7x-8'"),
])
def test_tpu_usage_errors(args, message, tmp_path):
  _script(tmp_path / 'gcloud', f'echo "$@" >>{tmp_path}/called')
  done = _run('launch/tpu_vm.sh', *args,
              PATH=f'{tmp_path}:{os.environ["PATH"]}')
  assert done.returncode == 2
  assert done.stderr.startswith('error: ') and message in done.stderr
  assert done.stderr.count('\n') == 1
  assert not (tmp_path / 'called').exists()


# gcloud: notes its arguments; the VM is a folder, where ssh's command is run.
_GCLOUD = '''
echo "$*" >>"$CLOUD/calls"
shift 3
verb=$1
shift
cd "$CLOUD/vm"
case $verb in
describe) [[ -f $CLOUD/state ]] && cat "$CLOUD/state" ;;
create) echo READY >"$CLOUD/state" ;;
delete) rm "$CLOUD/state" ;;
scp) cp "$CHECKOUT/$1" "${2#*:}" ;;
ssh) exec bash -c "${2#--command=}" ;;
esac'''

# mixer.main: exits as each line of the file `codes` says, one after another.
_MAIN = '''
[[ $* != *mixer.main* ]] && exit
echo "main $*"
code=$(head -1 "$CLOUD/codes")
sed -i 1d "$CLOUD/codes"
if [[ $code == wait ]]; then
  trap 'sleep 1; echo saved; exit 42' TERM
  touch "$CLOUD/waits"
  while true; do sleep 0.1; done
fi
exit "$code"'''


@pytest.fixture
def cloud(tmp_path):
  """tpu_vm.sh of a checkout in git, with a cloud that is a folder."""
  if not (shutil.which('flock') and shutil.which('git')):
    pytest.skip("the VM's half needs flock and git, which Linux has")
  copy = _copy(tmp_path / 'copy')
  (copy / 'untracked').touch()
  for command in (['init', '-q'], ['add', 'launch', 'requirements.txt']):
    assert _run('git', *command, cwd=copy).returncode == 0
  (copy / 'requirements.txt').write_text('a==3\n')   # an uncommitted edit
  (tmp_path / 'vm').mkdir()
  main = _script(tmp_path / 'main', _MAIN)
  uv = _script(tmp_path / 'uv', f'''echo "uv $*" >>"$CLOUD/calls"
[[ $1 != venv ]] || {{ mkdir -p .venv/bin; cp {main} .venv/bin/python; }}''')
  _script(tmp_path / 'bin' / 'gcloud', _GCLOUD)
  _script(tmp_path / 'bin' / 'python3', f'''echo "python3 $*" >>"$CLOUD/calls"
mkdir -p .uv/bin; cp {uv} .uv/bin/uv''')
  env = dict(CLOUD=str(tmp_path), CHECKOUT=str(copy), RESTART_SECONDS='0',
             PATH=f'{tmp_path}/bin:{os.environ["PATH"]}')

  def call(*args, codes=()):
    (tmp_path / 'calls').write_text('')
    if codes:
      (tmp_path / 'codes').write_text(''.join(f'{c}\n' for c in codes))
    done = _run(copy / 'launch' / 'tpu_vm.sh', *args, **env)
    return done, (tmp_path / 'calls').read_text().splitlines()

  call.path = tmp_path
  call.vm = tmp_path / 'vm' / 'mlp-mixer'
  call.env = env
  return call


_ARGS = ['run', *_VM, '--', '--config=a.py', "--workdir=gs://b/it's 1"]


def _verbs(calls):
  return [c.split()[3] if c.startswith('compute') else ' '.join(c.split()[:2])
          for c in calls]


def test_tpu_run_creates_copies_installs_and_restarts(cloud):
  done, calls = cloud(*_ARGS, codes=[42, 137, 0])
  assert done.returncode == 0, done.stderr
  assert _verbs(calls) == ['describe', 'create', 'ssh', 'scp', 'ssh',
                           'python3 -m', 'uv venv', 'uv pip', 'ssh', 'ssh']
  assert (cloud.vm / 'requirements.txt').read_text() == 'a==3\n'
  assert not (cloud.vm / 'untracked').exists()
  main = "main -m mixer.main --config=a.py --workdir=gs://b/it's 1"
  assert done.stdout.splitlines() == [
      main, 'mixer.main exited with 42: starting it again',
      main, 'mixer.main exited with 137: starting it again',
      main, 'mixer.main exited with 0']


@pytest.mark.parametrize('code', [1, 2])
def test_tpu_run_ends_with_the_code_of_a_failure(cloud, code):
  done, _ = cloud(*_ARGS, codes=[code, 0])
  assert done.returncode == code
  assert done.stdout.count('main -m') == 1
  done, calls = cloud('log', *_VM)
  assert done.returncode == code
  assert f'mixer.main exited with {code}' in done.stdout
  assert _verbs(calls) == ['ssh']


def test_tpu_run_gives_up_on_a_crash_at_every_start(cloud):
  done, _ = cloud(*_ARGS, codes=[139] * 9)
  assert done.returncode == 139
  assert done.stdout.count('main -m') == 5


@pytest.mark.parametrize('state,expected', [
    ('READY', ['describe', 'ssh', 'scp']),
    ('PREEMPTED', ['describe', 'delete', 'create', 'ssh', 'scp']),
])
def test_tpu_run_reuses_or_makes_the_vm_again(cloud, state, expected):
  (cloud.path / 'state').write_text(f'{state}\n')
  done, calls = cloud(*_ARGS, codes=[0])
  assert done.returncode == 0, done.stderr
  assert _verbs(calls)[:len(expected)] == expected
  # The second time what is installed stays; uv only checks it.
  _, calls = cloud(*_ARGS, codes=[0])
  assert 'uv venv' not in _verbs(calls)


def test_tpu_run_on_a_vm_that_is_busy(cloud):
  (cloud.path / 'state').write_text('CREATING\n')
  done, calls = cloud(*_ARGS, codes=[0])
  assert done.returncode == 2
  assert 'error: TPU VM mixer is CREATING; ' in done.stderr
  assert _verbs(calls) == ['describe']


def test_tpu_run_goes_on_without_the_connection(cloud):
  (cloud.path / 'codes').write_text('wait\n')
  command = [str(cloud.path / 'copy' / 'launch' / 'tpu_vm.sh'), *_ARGS]
  # Under nohup the tests inherit an ignored SIGHUP, and bash would keep it.
  heed = ('import os, signal, sys; signal.signal(signal.SIGHUP, '
          'signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])')
  first = subprocess.Popen(
      [sys.executable, '-c', heed, *command], start_new_session=True,
      env={**os.environ, **cloud.env}, stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL)
  try:
    for _ in range(600):
      if (cloud.path / 'waits').exists():
        break
      time.sleep(0.1)
    os.killpg(first.pid, signal.SIGHUP)   # the terminal is closed
    first.wait(10)

    done, calls = cloud(*_ARGS)           # a second run is refused
    assert done.returncode == 2
    assert 'error: a run is going on' in done.stderr
    assert _verbs(calls) == ['describe', 'ssh']
  finally:
    done, _ = cloud('interrupt', *_VM)    # and the first can save
  assert done.returncode == 42, done.stderr
  assert done.stdout.splitlines()[-2:] == ['saved', 'mixer.main exited with 42']


def test_tpu_note_on_a_spot_vm_without_a_bucket(cloud):
  args = ['run', *_VM, '--spot', '--dry-run', '--', '--config=a.py']
  done, _ = cloud(*args)
  assert done.returncode == 0
  assert done.stderr.startswith('note: a spot VM takes its disk along')
  assert cloud(*args, '--workdir=gs://b/x')[0].stderr == ''
  assert cloud(*args, '--workdir', 'gs://b/x')[0].stderr == ''
