"""tpu_vm.sh and tpu_pod.sh, with a cloud that is a folder."""
import os
import shutil
import signal
import subprocess
import sys
import time

import launching
import pytest

_VM = ['--name=mixer', '--zone=europe-west4-a']
_POD = [*_VM, '--type=v3-32']

_DRY_RUNS = {
    'tpu_vm_run': ['run', *_VM, '--', '--config=configs/mixer_b16.py',
                   '--workdir=gs://bucket/b16'],
    'tpu_vm_spot': ['run', *_VM, '--project', 'my project', '--spot',
                    '--type=v6e-8', '--', '--config=configs/mixer_b16.py:jft',
                    "--workdir=gs://bucket/it's"],
    'tpu_vm_log': ['log', *_VM],
    'tpu_vm_interrupt': ['interrupt', *_VM],
    'tpu_vm_stop': ['stop', *_VM],
    'tpu_pod_run': ['run', *_POD, '--project', 'my project', '--spot', '--',
                    '--config=configs/mixer_b16.py', "--workdir=gs://b/it's"],
    'tpu_pod_log': ['log', *_POD, '--worker=3'],
    'tpu_pod_interrupt': ['interrupt', *_POD],
    'tpu_pod_stop': ['stop', *_POD],
}


@pytest.mark.parametrize('name', _DRY_RUNS)
def test_dry_run(name, tmp_path):
  script = '_'.join(name.split('_')[:2])
  command, *rest = _DRY_RUNS[name]
  launching.dry_run(tmp_path, name, f'launch/{script}.sh', command, '--dry-run',
                    *rest)


# ---- tpu_vm.sh.


@pytest.mark.parametrize('args,message', [
    ([], 'COMMAND is'),
    (['walk', *_VM], "COMMAND is 'walk'"),
    (['run', '--zone=z', '--', '-x'], '--name=NAME is missing'),
    (['run', '--name=n', '--', '-x'], '--zone=ZONE is missing'),
    (['run', *_VM], "mixer.main's flags are missing"),
    (['run', *_VM, '--config=x'], 'unknown argument --config=x'),
    (['run', *_VM, '--type'], '--type wants a value'),
    (['run', *_VM, '--type=a100', '--', '-x'], "--type is 'a100'"),
    (['run', *_VM, '--type=v3-32', '--', '-x'], 'no single VM'),
    (['run', *_VM, '--type=v5litepod-3', '--', '-x'], 'no single VM'),
    (['run', *_VM, '--type=v7x-8', '--', '-x'], "--type is 'v7x-8'"),
])
def test_vm_usage_errors(args, message, tmp_path):
  launching.usage_error(tmp_path, message, 'launch/tpu_vm.sh', *args)


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
  copy = launching.copy(tmp_path / 'copy')
  (copy / 'untracked').touch()
  (copy / 'deleted').touch()
  for command in (['init', '-q'], ['add', 'launch', 'requirements.txt',
                                   'deleted']):
    assert launching.run('git', *command, cwd=copy).returncode == 0
  (copy / 'deleted').unlink()
  (copy / 'requirements.txt').write_text('a==3\n')   # an uncommitted edit
  (tmp_path / 'vm').mkdir()
  main = launching.script(tmp_path / 'main', _MAIN)
  uv = launching.script(tmp_path / 'uv', f'''echo "uv $*" >>"$CLOUD/calls"
[[ $1 != venv ]] || {{ mkdir -p .venv/bin; cp {main} .venv/bin/python; }}''')
  launching.script(tmp_path / 'bin' / 'gcloud', _GCLOUD)
  launching.script(tmp_path / 'bin' / 'python3', f'''
echo "python3 $*" >>"$CLOUD/calls"
mkdir -p .uv/bin; cp {uv} .uv/bin/uv''')
  env = dict(CLOUD=str(tmp_path), CHECKOUT=str(copy), RESTART_SECONDS='0',
             PATH=f'{tmp_path}/bin:{os.environ["PATH"]}')

  def call(*args, codes=()):
    (tmp_path / 'calls').write_text('')
    if codes:
      (tmp_path / 'codes').write_text(''.join(f'{c}\n' for c in codes))
    done = launching.run(copy / 'launch' / 'tpu_vm.sh', *args, **env)
    return done, (tmp_path / 'calls').read_text().splitlines()

  call.path = tmp_path
  call.vm = tmp_path / 'vm' / 'mlp-mixer'
  call.env = env
  return call


_ARGS = ['run', *_VM, '--', '--config=a.py', "--workdir=gs://b/it's 1"]


def _verbs(calls):
  return [c.split()[3] if c.startswith('compute') else ' '.join(c.split()[:2])
          for c in calls]


def test_vm_run_creates_copies_installs_and_restarts(cloud):
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
def test_vm_run_ends_with_the_code_of_a_failure(cloud, code):
  done, _ = cloud(*_ARGS, codes=[code, 0])
  assert done.returncode == code
  assert done.stdout.count('main -m') == 1
  done, calls = cloud('log', *_VM)
  assert done.returncode == code
  assert f'mixer.main exited with {code}' in done.stdout
  assert _verbs(calls) == ['ssh']


def test_vm_run_gives_up_on_a_crash_at_every_start(cloud):
  done, _ = cloud(*_ARGS, codes=[139] * 9)
  assert done.returncode == 139
  assert done.stdout.count('main -m') == 5


@pytest.mark.parametrize('state,expected', [
    ('READY', ['describe', 'ssh', 'scp']),
    ('PREEMPTED', ['describe', 'delete', 'create', 'ssh', 'scp']),
])
def test_vm_run_reuses_or_makes_the_vm_again(cloud, state, expected):
  (cloud.path / 'state').write_text(f'{state}\n')
  done, calls = cloud(*_ARGS, codes=[0])
  assert done.returncode == 0, done.stderr
  assert _verbs(calls)[:len(expected)] == expected
  # The second time what is installed stays; uv only checks it.
  _, calls = cloud(*_ARGS, codes=[0])
  assert 'uv venv' not in _verbs(calls)


def test_vm_run_on_a_vm_that_is_busy(cloud):
  (cloud.path / 'state').write_text('CREATING\n')
  done, calls = cloud(*_ARGS, codes=[0])
  assert done.returncode == 2
  assert 'error: TPU VM mixer is CREATING; ' in done.stderr
  assert _verbs(calls) == ['describe']


def test_vm_run_goes_on_without_the_connection(cloud):
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


def test_vm_note_on_a_spot_vm_without_a_bucket(cloud):
  args = ['run', *_VM, '--spot', '--dry-run', '--', '--config=a.py']
  done, _ = cloud(*args)
  assert done.returncode == 0
  assert done.stderr.startswith('note: a spot VM takes its disk along')
  assert cloud(*args, '--workdir=gs://b/x')[0].stderr == ''
  assert cloud(*args, '--workdir', 'gs://b/x')[0].stderr == ''


# ---- tpu_pod.sh.


@pytest.mark.parametrize('args,message', [
    (['walk', *_VM], "COMMAND is 'walk'"),
    (['run', *_VM, '--', '-x'], "--type is ''"),
    (['run', *_POD, '--type=v3', '--', '-x'], "--type is 'v3'"),
    (['run', *_POD], "mixer.main's flags are missing"),
    (['run', *_POD, '--wait=long', '--', '-x'], "--wait is 'long'"),
    (['run', *_POD, '--retries=-1', '--', '-x'], "--retries is '-1'"),
    (['log', *_POD, '--worker=all'], "--worker is 'all'"),
])
def test_pod_usage_errors(args, message, tmp_path):
  launching.usage_error(tmp_path, message, 'launch/tpu_pod.sh', *args)


# gcloud for a slice of two VMs, which are folders. Each new request goes
# through the states of a line of the file `births`.
_POD_GCLOUD = '''
kind=$3 verb=$4
echo "$kind $verb" >>"$CLOUD/calls"
shift 4
case "$kind $verb" in
'queued-resources describe')
  if [[ -e $CLOUD/deaf ]]; then
    rm "$CLOUD/deaf"
    echo 'ERROR: UNAVAILABLE: the network' >&2
    exit 1
  fi
  [[ -f $CLOUD/state ]] || { echo 'ERROR: NOT_FOUND: Resource' >&2; exit 1; }
  [[ $* != *error.message* ]] || { echo 'quota exceeded'; exit; }
  head -n 1 "$CLOUD/state"
  [[ $(wc -l <"$CLOUD/state") == 1 ]] || sed -i 1d "$CLOUD/state" ;;
'queued-resources create')
  head -n 1 "$CLOUD/births" | tr ' ' '\\n' >"$CLOUD/state"
  sed -i 1d "$CLOUD/births"
  mkdir -p "$CLOUD/vm0" "$CLOUD/vm1" ;;
'queued-resources delete')
  [[ ! -e $CLOUD/stuck ]] || { rm "$CLOUD/stuck"; exit 1; }
  mv "$CLOUD/vm0" "$CLOUD/vm1" "$(mktemp -d "$CLOUD/gone.XXXX")"
  rm "$CLOUD/state" ;;
'tpu-vm describe') echo READY ;;
'tpu-vm scp')
  for i in 0 1; do cp "$CHECKOUT/$1" "$CLOUD/vm$i/${2#*:}"; done ;;
'tpu-vm ssh')
  case $3 in --worker=all) workers='0 1' ;; *) workers=${3#*=} ;; esac
  for i in $workers; do
    cd "$CLOUD/vm$i" && WORKER=$i bash -c "${2#--command=}" || exit
  done ;;
esac'''

# mixer.main, as above, on each VM; `wait` also ends when its VM has gone, or
# when the file `lost` tells that another one has.
_POD_MAIN = '''
[[ $* != *mixer.main* ]] && exit
cd "$CLOUD"
echo "main $WORKER $*" | tee -a mains
code=$(head -n 1 "codes$WORKER")
sed -i 1d "codes$WORKER"
if [[ $code == wait ]]; then
  trap 'echo saved; exit 42' TERM
  echo $$ >"waits$WORKER"
  while [[ -d vm$WORKER && ! -e lost ]]; do sleep 0.05; done
  code=134
fi
if [[ $code == then-* ]]; then   # when the first waits
  until [[ -e waits0 ]]; do sleep 0.05; done
  code=${code#then-}
fi
exit "$code"'''


@pytest.fixture
def pod(cloud):
  """tpu_pod.sh, beside what the fixture above has."""
  launching.script(cloud.path / 'bin' / 'gcloud', _POD_GCLOUD)
  launching.script(cloud.path / 'main', _POD_MAIN)
  cloud.env.update(POLL_SECONDS='0.1')
  births = cloud.path / 'births'
  births.write_text('ACTIVE\n' * 9)
  runs = []

  def begin(*args, codes=((), ())):
    for i, mine in enumerate(codes):
      (cloud.path / f'codes{i}').write_text(''.join(f'{c}\n' for c in mine))
    runs.append(subprocess.Popen(
        [str(cloud.path / 'copy' / 'launch' / 'tpu_pod.sh'), *args], text=True,
        env={**os.environ, **cloud.env}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL))
    return runs[-1]

  def call(*args, codes=((), ())):
    run = begin(*args, codes=codes)
    call.out, call.err = run.communicate(timeout=30)
    return run.returncode

  def waits():
    launching.until(lambda: all(
        (cloud.path / f'waits{i}').exists() for i in (0, 1)))

  call.begin, call.waits, call.births, call.path = (
      begin, waits, births, cloud.path)
  call.mains = lambda: launching.lines(cloud.path / 'mains')
  call.calls = lambda: launching.lines(cloud.path / 'calls')
  yield call
  for run in runs:
    run.terminate()
  for i in (0, 1):   # what still waits there ends
    shutil.rmtree(cloud.path / f'vm{i}', ignore_errors=True)


_POD_ARGS = ['run', *_POD, '--', '--config=a.py', "--workdir=gs://b/it's 1"]


def test_pod_waits_for_the_slice_and_runs_on_every_vm(pod):
  pod.births.write_text('ACCEPTED WAITING_FOR_RESOURCES ACTIVE\n')
  assert pod(*_POD_ARGS, codes=[[42, 0], [134, 0]]) == 0, pod.err
  assert pod.calls()[:9] == [
      'queued-resources describe', 'queued-resources create',
      'queued-resources describe', 'queued-resources describe',
      'queued-resources describe', 'tpu-vm describe', 'tpu-vm ssh',
      'tpu-vm ssh', 'tpu-vm scp']
  main = "-m mixer.main --config=a.py --workdir=gs://b/it's 1"
  assert sorted(pod.mains()) == [f'main 0 {main}'] * 2 + [f'main 1 {main}'] * 2
  # What is shown is the log of the first.
  assert 'mixer.main exited with 42: starting it again' in pod.out
  assert 'main 1' not in pod.out and '134' not in pod.out


def test_pod_ends_with_the_failure_of_any_vm_and_stops_the_others(pod):
  assert pod(*_POD_ARGS, codes=[['wait'], ['then-1']]) == 1
  assert 'mixer.main exited with 1 on ' in pod.err
  log = pod.path / 'vm0' / 'mlp-mixer' / 'run.log'
  launching.until(lambda: log.read_text().endswith(
      'saved\nmixer.main exited with 42\n'))


def test_pod_asks_for_another_slice(pod):
  run = pod.begin(*_POD_ARGS, codes=[['wait'], ['wait']])
  pod.waits()
  for i in (0, 1):
    (pod.path / f'codes{i}').write_text('0\n')
  (pod.path / 'state').write_text('SUSPENDED\n')
  out, err = run.communicate(timeout=30)
  assert run.returncode == 0, err
  assert ('the slice was taken away: asking for another, 1 of --retries=20'
          in out)
  calls = pod.calls()
  delete = calls.index('queued-resources delete')
  assert 'queued-resources create' in calls[delete:delete + 3]
  assert len(pod.mains()) == 4


def test_pod_asks_no_more_than_retries(pod):
  pod.births.write_text('SUSPENDED\n' * 9)
  assert pod('run', *_POD, '--retries=2', '--', '--config=a.py') == 1
  assert pod.err.splitlines()[-1].startswith(
      'error: the slice was taken away once more than --retries=2')
  assert pod.calls().count('queued-resources create') == 3


def test_pod_outlasts_a_call_that_fails(pod):
  """A question without an answer is no answer that there is no slice."""
  pod.births.write_text('SUSPENDED\nACTIVE\n')
  (pod.path / 'state').write_text('WAITING_FOR_RESOURCES\nSUSPENDED\n')
  for i in (0, 1):
    (pod.path / f'vm{i}').mkdir()
  for name in ('deaf', 'stuck'):
    (pod.path / name).touch()
  assert pod(*_POD_ARGS, codes=[[0], [0]]) == 0, pod.err
  assert 'UNAVAILABLE: the network' in pod.err
  assert pod.calls().count('queued-resources create') == 2
  assert pod.calls().count('queued-resources delete') == 3
  assert len(pod.mains()) == 2


def test_pod_ends_if_it_cannot_ask(pod):
  launching.script(pod.path / 'bin' / 'gcloud', '''
[[ $4 == create ]] || echo 'NOT_FOUND: it' >&2
exit 1''')
  assert pod(*_POD_ARGS) == 1
  assert pod.err.endswith(
      'error: the slice cannot be asked for; see above\n')


def test_pod_ends_with_the_reason_of_a_request_that_failed(pod):
  pod.births.write_text('FAILED\n')
  assert pod(*_POD_ARGS) == 1
  assert 'has failed: quota exceeded; mend that, then' in pod.err
  assert '--name=mixer --zone=europe-west4-a' in pod.err
  assert pod.calls().count('queued-resources create') == 1
  assert 'queued-resources delete' not in pod.calls()


def test_pod_waits_no_longer_than_told(pod):
  pod.births.write_text('WAITING_FOR_RESOURCES\n')
  assert pod('run', *_POD, '--wait=0', '--', '--config=a.py') == 1
  assert 'error: no slice after --wait=0 hours' in pod.err
  assert 'queued-resources delete' not in pod.calls()


def test_pod_starts_a_vm_that_has_rebooted(pod):
  run = pod.begin(*_POD_ARGS, codes=[['wait', 0, 0, 0], ['wait', 0, 0]])
  pod.waits()
  loop = int((pod.path / 'vm1' / 'mlp-mixer' / 'run.pid').read_text())
  main = int((pod.path / 'waits1').read_text())
  for pid in (loop, main):
    os.kill(pid, signal.SIGKILL)
  (pod.path / 'lost').touch()       # so the other one restarts by itself
  _, err = run.communicate(timeout=30)
  assert run.returncode == 0, err
  assert len([m for m in pod.mains() if m.startswith('main 1')]) > 1


def test_pod_starts_a_vm_that_went_down_in_good_order(pod):
  """The system tells all to stop, and they save; nobody asked the run to."""
  run = pod.begin(*_POD_ARGS, codes=[['wait', 0], ['wait', 0, 0]])
  pod.waits()
  loop = int((pod.path / 'vm1' / 'mlp-mixer' / 'run.pid').read_text())
  os.kill(loop, signal.SIGTERM)
  launching.until(lambda: len(pod.mains()) == 3)
  (pod.path / 'lost').touch()       # so the other one restarts by itself
  _, err = run.communicate(timeout=30)
  assert run.returncode == 0, err
  assert [m[:6] for m in sorted(pod.mains())] == ['main 0'] * 2 + ['main 1'] * 2


def test_pod_follows_what_is_going_on_and_interrupts_it(pod):
  first = pod.begin(*_POD_ARGS, codes=[['wait'], ['wait']])
  pod.waits()
  first.terminate()
  first.communicate(timeout=60)
  second = pod.begin(*_POD_ARGS, codes=[[], []])
  assert 'a run is going on there' in second.stdout.readline()
  assert pod('interrupt', *_POD) == 42
  assert pod.out.endswith('saved\nmixer.main exited with 42\n')
  second.communicate(timeout=30)
  assert second.returncode == 42
  assert len(pod.mains()) == 2
