"""tpu_vm.sh and tpu_pod.sh with a fake gcloud, whose VMs are folders."""
import os
import shutil
import signal

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
_ARGS = ['--', '--config=a.py', "--workdir=gs://b/it's 1"]
_MAIN = "-m mixer.main --config=a.py --workdir=gs://b/it's 1"


@pytest.mark.parametrize('name', _DRY_RUNS)
def test_dry_run_prints_the_golden_commands(name, tmp_path):
  script = '_'.join(name.split('_')[:2])
  command, *rest = _DRY_RUNS[name]
  launching.dry_run(tmp_path, name, f'launch/{script}.sh', command, '--dry-run',
                    *rest)


class _Cloud(launching.Sandbox):
  """A checkout in git beside a fake gcloud and a fake uv.

  Attributes:
    name: the launcher.
  """

  def __init__(self, path, name, gcloud, python):
    super().__init__(path)
    self.name = name
    (self.copy / 'untracked').touch()
    (self.copy / 'deleted').touch()
    for command in (['init', '-q'],
                    ['add', 'launch', 'requirements.txt', 'deleted']):
      assert launching.run('git', *command, cwd=self.copy).returncode == 0
    (self.copy / 'deleted').unlink()
    (self.copy / 'requirements.txt').write_text('a==3\n')   # not committed
    self.tool('gcloud', gcloud)
    main = launching.script(
        path / 'main', f'[[ $* != *mixer.main* ]] && exit\n{python}')
    uv = launching.script(path / 'uv', f'''echo "uv $*" >>"$BOX/calls"
[[ $1 != venv ]] || {{ mkdir -p .venv/bin; cp {main} .venv/bin/python; }}''')
    self.tool('python3', f'''echo "python3 $*" >>"$BOX/calls"
mkdir -p .uv/bin; cp {uv} .uv/bin/uv''')

  def start(self, *args, codes=()):
    """Starts the launcher."""
    return self.begin(self.name, *args, codes=codes)

  def run(self, *args, codes=()):
    """Runs the launcher to its end."""
    return launching.finish(self.start(*args, codes=codes))


def _cloud(*args):
  """Makes a _Cloud, or skips the test where the VM's part cannot run."""
  if not (shutil.which('flock') and shutil.which('git')):
    pytest.skip("the VM's part needs flock and git, which Linux has")
  return _Cloud(*args)


# ---- tpu_vm.sh.


@pytest.mark.parametrize('args,message', [
    ([], "COMMAND is ''; expected one of run, log, interrupt, stop"),
    (['walk', *_VM], "COMMAND is 'walk'"),
    (['run', '--zone=z', '--', '-x'], '--name is missing'),
    (['run', '--name=n', '--', '-x'], '--zone is missing'),
    (['run', *_VM], 'the flags of mixer.main are missing'),
    (['run', *_VM, '--config=x'], 'unknown argument --config=x'),
    (['run', *_VM, '--type'], '--type needs a value'),
    (['run', *_VM, '--type=a100', '--', '-x'], "--type is 'a100'"),
    (['run', *_VM, '--type=v3-32', '--', '-x'], 'not a single VM'),
    (['run', *_VM, '--type=v5litepod-3', '--', '-x'], 'not a single VM'),
    (['run', *_VM, '--type=v7x-8', '--', '-x'], "--type is 'v7x-8'"),
])
def test_vm_usage_errors(args, message, tmp_path):
  launching.usage_error(tmp_path, message, 'launch/tpu_vm.sh', *args)


# gcloud notes its arguments and runs the commands of ssh in the folder `vm`.
_VM_GCLOUD = '''
echo "$*" >>"$BOX/calls"
shift 3
verb=$1
shift
mkdir -p "$BOX/vm"
cd "$BOX/vm"
case $verb in
describe) [[ -f $BOX/state ]] && cat "$BOX/state" ;;
create) echo READY >"$BOX/state" ;;
delete) rm "$BOX/state" ;;
scp) cp "$BOX/copy/$1" "${2#*:}" ;;
ssh) exec bash -c "${2#--command=}" ;;
esac'''


@pytest.fixture
def vm(tmp_path):
  cloud = _cloud(tmp_path, 'tpu_vm.sh', _VM_GCLOUD,
                 'id=0\necho "main $*"' + launching.ACT)
  yield cloud
  cloud.close()


def _verbs(cloud):
  """Returns the calls of tools since the last time, in short."""
  calls = cloud.lines('calls')
  (cloud.path / 'calls').write_text('')
  return [c.split()[3] if c.startswith('compute') else ' '.join(c.split()[:2])
          for c in calls]


def test_vm_run_creates_copies_installs_and_restarts(vm):
  done = vm.run('run', *_VM, *_ARGS, codes=[[42, 137, 0]])
  assert done.returncode == 0, done.stderr
  assert _verbs(vm) == ['describe', 'create', 'ssh', 'scp', 'ssh',
                        'python3 -m', 'uv venv', 'uv pip', 'ssh', 'ssh']
  checkout = vm.path / 'vm' / 'mlp-mixer'
  assert (checkout / 'requirements.txt').read_text() == 'a==3\n'
  assert not (checkout / 'untracked').exists()
  assert done.stdout.splitlines() == [
      f'main {_MAIN}', 'mixer.main exited with 42: starting it again',
      f'main {_MAIN}', 'mixer.main exited with 137: starting it again',
      f'main {_MAIN}', 'mixer.main exited with 0']


def test_nothing_is_created_for_a_folder_that_git_does_not_know(vm):
  shutil.rmtree(vm.copy / '.git')
  done = vm.run('run', *_VM, *_ARGS)
  launching.check_usage_error(done, 'no git checkout')
  assert _verbs(vm) == []
  assert vm.run('run', '--dry-run', *_VM, *_ARGS).returncode == 0


@pytest.mark.parametrize('code', [1, 2])
def test_vm_run_exits_with_the_code_of_a_failure(vm, code):
  done = vm.run('run', *_VM, *_ARGS, codes=[[code, 0]])
  assert done.returncode == code
  assert done.stdout.count('main -m') == 1
  _verbs(vm)
  done = vm.run('log', *_VM)
  assert done.returncode == code
  assert f'mixer.main exited with {code}' in done.stdout
  assert _verbs(vm) == ['ssh']


def test_vm_run_gives_up_after_five_crashes(vm):
  done = vm.run('run', *_VM, *_ARGS, codes=[[139] * 9])
  assert done.returncode == 139
  assert done.stdout.count('main -m') == 5


@pytest.mark.parametrize('state,expected', [
    ('READY', ['describe', 'ssh', 'scp']),
    ('PREEMPTED', ['describe', 'delete', 'create', 'ssh', 'scp']),
])
def test_vm_run_uses_a_ready_vm_and_replaces_a_preempted_one(
    vm, state, expected):
  (vm.path / 'state').write_text(f'{state}\n')
  done = vm.run('run', *_VM, *_ARGS, codes=[[0]])
  assert done.returncode == 0, done.stderr
  assert _verbs(vm)[:len(expected)] == expected
  # A second run keeps the environment; uv only checks it.
  vm.run('run', *_VM, *_ARGS, codes=[[0]])
  assert 'uv venv' not in _verbs(vm)


def test_vm_run_refuses_a_vm_in_another_state(vm):
  (vm.path / 'state').write_text('CREATING\n')
  done = vm.run('run', *_VM, *_ARGS, codes=[[0]])
  launching.check_usage_error(done, 'TPU VM mixer is CREATING; ')
  assert _verbs(vm) == ['describe']


def test_vm_run_survives_the_loss_of_the_connection(vm):
  vm.env['SAVE_SECONDS'] = '1'
  first = vm.start('run', *_VM, *_ARGS, codes=[['wait']])
  vm.waiting(0)
  os.killpg(first.pid, signal.SIGHUP)    # the terminal is closed
  launching.finish(first)
  _verbs(vm)

  second = vm.run('run', *_VM, *_ARGS)   # refused
  assert second.returncode == 2
  assert 'error: a run is in progress' in second.stderr
  assert _verbs(vm) == ['describe', 'ssh']

  done = vm.run('interrupt', *_VM)       # makes the first run save
  assert done.returncode == 42, done.stderr
  assert done.stdout.splitlines()[-2:] == ['saved', 'mixer.main exited with 42']


def test_vm_note_when_the_workdir_of_a_spot_vm_is_not_in_a_bucket(vm):
  args = ['run', *_VM, '--spot', '--dry-run', '--', '--config=a.py']
  done = vm.run(*args)
  assert done.returncode == 0
  assert done.stderr.startswith('note: a spot VM loses its disk')
  assert vm.run(*args, '--workdir=gs://b/x').stderr == ''
  assert vm.run(*args, '--workdir', 'gs://b/x').stderr == ''


# ---- tpu_pod.sh.


@pytest.mark.parametrize('args,message', [
    (['walk', *_VM], "COMMAND is 'walk'"),
    (['run', *_VM, '--', '-x'], "--type is ''"),
    (['run', *_POD, '--type=v3', '--', '-x'], "--type is 'v3'"),
    (['run', *_POD, '--type=v3-8', '--', '-x'],
     'for one VM use launch/tpu_vm.sh run --type=v3-8'),
    (['run', *_POD], 'the flags of mixer.main are missing'),
    (['run', *_POD, '--wait=long', '--', '-x'], "--wait is 'long'"),
    (['run', *_POD, '--retries=-1', '--', '-x'], "--retries is '-1'"),
    (['log', *_POD, '--worker=all'], "--worker is 'all'"),
])
def test_pod_usage_errors(args, message, tmp_path):
  launching.usage_error(tmp_path, message, 'launch/tpu_pod.sh', *args)


# gcloud for a slice of two VMs, the folders vm0 and vm1. Each new request goes
# through the states in the next line of the file `births`, one a poll. The file
# `deaf` makes the next `describe` fail, `stuck` the next `delete`. Deleting the
# VMs kills their processes.
_POD_GCLOUD = '''
kind=$3 verb=$4
echo "$kind $verb" >>"$BOX/calls"
shift 4
case "$kind $verb" in
'queued-resources describe')
  if [[ -e $BOX/deaf ]]; then
    rm "$BOX/deaf"
    echo 'ERROR: UNAVAILABLE: the network' >&2
    exit 1
  fi
  [[ -f $BOX/state ]] || { echo 'ERROR: NOT_FOUND: Resource' >&2; exit 1; }
  [[ $* != *error.message* ]] || { echo 'quota exceeded'; exit; }
  head -n 1 "$BOX/state"
  [[ $(wc -l <"$BOX/state") == 1 ]] || sed -i 1d "$BOX/state" ;;
'queued-resources create')
  head -n 1 "$BOX/births" | tr ' ' '\\n' >"$BOX/state"
  sed -i 1d "$BOX/births"
  mkdir -p "$BOX/vm0" "$BOX/vm1" ;;
'queued-resources delete')
  [[ ! -e $BOX/stuck ]] || { rm "$BOX/stuck"; exit 1; }
  for file in "$BOX"/vm?/mlp-mixer/run.pid "$BOX"/waits?; do
    [[ ! -e $file ]] || kill -KILL "$(cat "$file")" 2>/dev/null
  done
  # A process that was killed may still be writing.
  for _ in 1 2 3 4 5; do
    rm -rf "$BOX/vm0" "$BOX/vm1" "$BOX"/waits? 2>/dev/null && break || sleep 1
  done
  rm -f "$BOX/state" ;;
'tpu-vm describe') echo READY ;;
'tpu-vm scp')
  for i in 0 1; do cp "$BOX/copy/$1" "$BOX/vm$i/${2#*:}"; done ;;
'tpu-vm ssh')
  case $3 in --worker=all) workers='0 1' ;; *) workers=${3#*=} ;; esac
  for i in $workers; do
    cd "$BOX/vm$i" && WORKER=$i bash -c "${2#--command=}" || exit
  done ;;
esac'''


@pytest.fixture
def pod(tmp_path):
  cloud = _cloud(
      tmp_path, 'tpu_pod.sh', _POD_GCLOUD,
      'id=$WORKER\necho "main $id $*" | tee -a "$BOX/mains"' + launching.ACT)
  cloud.env['POLL_SECONDS'] = '0.1'
  cloud.births = tmp_path / 'births'
  cloud.births.write_text('ACTIVE\n' * 9)
  yield cloud
  cloud.close()


def _begin_waiting(pod, codes=(['wait'], ['wait'])):
  """Starts a run and returns it when mixer.main waits on both VMs."""
  run = pod.start('run', *_POD, *_ARGS, codes=codes)
  for i in (0, 1):
    pod.waiting(i)
  return run


def _loop(pod, worker):
  """Returns the pid of the shell that restarts mixer.main on a VM."""
  return int((pod.path / f'vm{worker}' / 'mlp-mixer' / 'run.pid').read_text())


def test_pod_waits_for_the_slice_and_runs_on_every_vm(pod):
  pod.births.write_text('ACCEPTED WAITING_FOR_RESOURCES ACTIVE\n')
  done = pod.run('run', *_POD, *_ARGS, codes=[[42, 0], [134, 0]])
  assert done.returncode == 0, done.stderr
  assert pod.lines('calls')[:9] == [
      'queued-resources describe', 'queued-resources create',
      'queued-resources describe', 'queued-resources describe',
      'queued-resources describe', 'tpu-vm describe', 'tpu-vm ssh',
      'tpu-vm ssh', 'tpu-vm scp']
  assert sorted(pod.lines('mains')) == [
      f'main 0 {_MAIN}'] * 2 + [f'main 1 {_MAIN}'] * 2
  # Only the log of the first VM is shown.
  assert 'mixer.main exited with 42: starting it again' in done.stdout
  assert 'main 1' not in done.stdout and '134' not in done.stdout


def test_pod_exits_with_the_failure_of_any_vm_and_stops_the_others(pod):
  done = pod.run('run', *_POD, *_ARGS, codes=[['wait'], ['then-1']])
  assert done.returncode == 1
  assert 'mixer.main exited with 1 on ' in done.stderr
  log = pod.path / 'vm0' / 'mlp-mixer' / 'run.log'
  launching.until(lambda: log.read_text().endswith(
      'saved\nmixer.main exited with 42\n'))


def test_pod_requests_another_slice_after_a_preemption(pod):
  run = _begin_waiting(pod)
  for i in (0, 1):
    (pod.path / f'codes{i}').write_text('0\n')
  (pod.path / 'state').write_text('SUSPENDED\n')
  done = launching.finish(run)
  assert done.returncode == 0, done.stderr
  assert ('the slice was preempted: requesting another one, 1 of --retries=20'
          in done.stdout)
  calls = pod.lines('calls')
  delete = calls.index('queued-resources delete')
  assert 'queued-resources create' in calls[delete:delete + 3]
  assert len(pod.lines('mains')) == 4


def test_pod_requests_no_more_slices_than_retries(pod):
  pod.births.write_text('SUSPENDED\n' * 9)
  done = pod.run('run', *_POD, '--retries=2', '--', '--config=a.py')
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith(
      'error: the slice was preempted more than --retries=2 times')
  assert pod.lines('calls').count('queued-resources create') == 3


def test_pod_tolerates_gcloud_calls_that_fail(pod):
  """A query that fails does not mean that there is no slice."""
  pod.births.write_text('SUSPENDED\nACTIVE\n')
  (pod.path / 'state').write_text('WAITING_FOR_RESOURCES\nSUSPENDED\n')
  for name in ('deaf', 'stuck'):
    (pod.path / name).touch()
  done = pod.run('run', *_POD, *_ARGS, codes=[[0], [0]])
  assert done.returncode == 0, done.stderr
  assert 'UNAVAILABLE: the network' in done.stderr
  assert pod.lines('calls').count('queued-resources create') == 2
  assert pod.lines('calls').count('queued-resources delete') == 3
  assert len(pod.lines('mains')) == 2


def test_pod_fails_if_the_slice_cannot_be_requested(pod):
  pod.tool('gcloud', '''
[[ $4 == create ]] || echo 'NOT_FOUND: it' >&2
exit 1''')
  done = pod.run('run', *_POD, *_ARGS)
  assert done.returncode == 1
  assert done.stderr.endswith(
      'error: could not request the slice; see above\n')


@pytest.mark.parametrize('verb', ['describe', 'create'])
@pytest.mark.parametrize('error', [
    'The required property [project] is not currently set.\nIt can be set',
    "PERMISSION_DENIED: Permission denied on 'locations/x' (or it may not exist)",
    'INVALID_ARGUMENT: Accelerator type "v3-33" not found.'])
def test_pod_ends_at_an_error_that_waiting_does_not_mend(pod, verb, error):
  pod.tool('gcloud', f'''
echo "$4" >>"$BOX/calls"
[[ $4 == {verb} ]] && echo 'ERROR: (gcloud) {error.replace("'", '"')}' >&2 ||
  echo 'NOT_FOUND: it' >&2
exit 1''')
  done = pod.run('run', *_POD, *_ARGS)
  said = error.partition('\n')[0].replace("'", '"')
  launching.check_usage_error(done, f'gcloud refused: (gcloud) {said} Check ')
  assert pod.lines('calls') == ['describe', 'create'][:1 + (verb == 'create')]


@pytest.mark.parametrize('began', [True, False])
def test_pod_does_not_request_a_slice_again_that_was_stopped(pod, began):
  if began:
    run = _begin_waiting(pod)
  else:   # it still waits for the slice
    pod.births.write_text('WAITING_FOR_RESOURCES\n')
    run = pod.start('run', *_POD, *_ARGS)
    launching.until(
        lambda: pod.lines('calls').count('queued-resources describe') > 2)
  assert pod.run('stop', *_POD).returncode == 0
  done = launching.finish(run)
  assert done.returncode == 1
  assert 'error: the slice was deleted, as by ' in done.stderr
  assert pod.lines('calls').count('queued-resources create') == 1


def test_pod_reports_why_a_request_failed(pod):
  pod.births.write_text('FAILED\n')
  done = pod.run('run', *_POD, *_ARGS)
  assert done.returncode == 1
  assert 'request for the slice failed: quota exceeded; fix that' in done.stderr
  assert '--name=mixer --zone=europe-west4-a' in done.stderr
  assert pod.lines('calls').count('queued-resources create') == 1
  assert 'queued-resources delete' not in pod.lines('calls')


def test_pod_waits_for_the_slice_no_longer_than_wait(pod):
  pod.births.write_text('WAITING_FOR_RESOURCES\n')
  done = pod.run('run', *_POD, '--wait=0', '--', '--config=a.py')
  assert done.returncode == 1
  assert 'error: no slice after --wait=0 hours' in done.stderr
  assert 'queued-resources delete' not in pod.lines('calls')


def test_pod_restarts_a_vm_that_has_rebooted(pod):
  run = _begin_waiting(pod, codes=[['wait', 0, 0, 0], ['wait', 0, 0]])
  for pid in (_loop(pod, 1), pod.waiting(1)):
    os.kill(pid, signal.SIGKILL)
  (pod.path / 'lost').touch()       # makes the process of the other VM restart
  done = launching.finish(run)
  assert done.returncode == 0, done.stderr
  assert len([m for m in pod.lines('mains') if m.startswith('main 1')]) > 1


def test_pod_restarts_a_vm_that_was_shut_down_cleanly(pod):
  """The system makes the run save and exit with 42, but nobody stopped it."""
  run = _begin_waiting(pod, codes=[['wait', 0], ['wait', 0, 0]])
  os.kill(_loop(pod, 1), signal.SIGTERM)
  launching.until(lambda: len(pod.lines('mains')) == 3)
  (pod.path / 'lost').touch()       # makes the process of the other VM restart
  done = launching.finish(run)
  assert done.returncode == 0, done.stderr
  assert [m[:6] for m in sorted(pod.lines('mains'))] == [
      'main 0'] * 2 + ['main 1'] * 2


def test_pod_follows_a_run_in_progress_and_interrupts_it(pod):
  first = _begin_waiting(pod)
  first.terminate()
  launching.finish(first)
  second = pod.start('run', *_POD, *_ARGS)
  assert 'a run is already in progress' in second.stdout.readline()
  done = pod.run('interrupt', *_POD)
  assert done.returncode == 42
  assert done.stdout.endswith('saved\nmixer.main exited with 42\n')
  assert launching.finish(second).returncode == 42
  assert len(pod.lines('mains')) == 2
