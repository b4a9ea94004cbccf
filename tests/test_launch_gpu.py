"""restart.sh and gpu_local.sh, with a script in the place of mixer.main."""
import os
import pathlib
import signal
import subprocess
import time

import launching
import pytest

# mixer.main: notes how it is called; ends as the first line of its process's
# file `codes` says, which it takes away.
_MAIN = '''
arguments="$*"
case $arguments in
*ensurepip*) exit ;;
*platform*) echo 3.12.1; exit ;;
'-m venv'*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit ;;
'-m pip'*) echo "$*" >>"$BOX/pip"; exit ;;
*socket*) echo 4711; exit ;;
esac
id=${arguments##*--process_id=}
[[ $id != "$arguments" ]] || id=0
cd "$BOX"
echo "${CUDA_VISIBLE_DEVICES-none} $arguments" >>"mains$id"
echo "output of $id"
code=$(head -n 1 "codes$id")
sed -i 1d "codes$id"
case $code in
wait)    # to be told to stop, or that another is lost
  trap 'echo saved; exit 42' TERM
  echo $$ >"waits$id"
  while [[ ! -e lost ]]; do sleep 0.02; done
  rm lost
  exit 134 ;;
hang)
  trap '' TERM
  echo $$ >"waits$id"
  while true; do sleep 0.05; done ;;
go-*)    # when the test says so
  while [[ ! -e go ]]; do sleep 0.02; done
  exit "${code#go-}" ;;
9) kill -KILL $$ ;;
*) exit "$code" ;;
esac'''


@pytest.fixture
def box(tmp_path):
  """Starts a launcher of a copy, where process I ends as codes[I] say."""
  copy = launching.copy(tmp_path / 'copy')
  python = launching.script(tmp_path / 'python', _MAIN)
  launching.script(tmp_path / 'bin' / 'nvidia-smi', 'printf "0\\n1\\n2\\n"')
  env = {k: v for k, v in os.environ.items() if k != 'CUDA_VISIBLE_DEVICES'}
  env.update(BOX=str(tmp_path), PYTHON=str(python), RESTART_SECONDS='0',
             GRACE_SECONDS='1', JAX_PLATFORMS='cpu', TMPDIR=str(tmp_path),
             PATH=f'{tmp_path}/bin:{env["PATH"]}')
  started = []

  def begin(script, *args, codes, **more):
    for i, mine in enumerate(codes):
      (tmp_path / f'codes{i}').write_text(''.join(f'{c}\n' for c in mine))
    started.append(subprocess.Popen(
        [str(copy / 'launch' / script), *map(str, args)], text=True,
        env={**env, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, start_new_session=True))
    return started[-1]

  def call(*args, **more):
    done = begin(*args, **more)
    call.out, call.err = done.communicate(timeout=30)
    return done.returncode

  def pid(process):
    path = tmp_path / f'waits{process}'
    launching.until(lambda: launching.lines(path))
    return int(launching.lines(path)[0])

  call.begin, call.pid, call.path, call.python = begin, pid, tmp_path, python
  call.mains = lambda i: launching.lines(tmp_path / f'mains{i}')
  yield call
  for run in started:
    if run.poll() is None:
      run.kill()
  for path in tmp_path.glob('waits*'):   # whoever was forgotten
    try:
      os.kill(int(path.read_text()), signal.SIGKILL)
    except (OSError, ValueError):
      pass


def gone(pid):
  try:
    return ' Z ' in pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return True


# ---- restart.sh.


@pytest.mark.parametrize('codes,code', [
    ([0], 0), ([1, 0], 1), ([2, 0], 2), ([126, 0], 126), ([42, 42, 0], 0),
    ([134, 1], 1), ([9, 127, 255, 0], 0)])
def test_restart_by_the_exit_code(box, codes, code):
  assert box('restart.sh', box.python, '-m', 'x', codes=[codes]) == code
  assert len(box.mains(0)) == codes.index(code) + 1
  said = [line for line in box.out.splitlines() if 'output' not in line]
  codes = [137 if c == 9 else c for c in codes[:codes.index(code)]]
  assert said == [
      *[f'mixer.main exited with {c}: starting it again' for c in codes],
      f'mixer.main exited with {code}']
  assert box.err == ''


def test_restart_gives_up_on_a_crash_at_every_start(box):
  codes = [134] * 3 + [42] + [9] * 6
  assert box('restart.sh', box.python, codes=[codes]) == 137
  assert len(box.mains(0)) == 9      # the 42 between was none
  assert box.out.splitlines()[-1].startswith(
      'mixer.main exited with 137: giving up')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_restart_passes_a_signal_on_and_waits(box, number):
  run = box.begin('restart.sh', box.python, codes=[['wait', 0]])
  box.pid(0)
  run.send_signal(number)
  out, _ = run.communicate(timeout=60)
  assert run.returncode == 42
  assert out == 'output of 0\nsaved\nmixer.main exited with 42\n'


def test_restart_does_not_wait_after_a_second_ctrl_c(box):
  run = box.begin('restart.sh', box.python, codes=[['hang', 0]])
  box.pid(0)
  for number in (signal.SIGINT, signal.SIGTERM):   # which is no Ctrl-C
    run.send_signal(number)
    time.sleep(1)
    os.kill(box.pid(0), 0)
  run.send_signal(signal.SIGINT)
  _, err = run.communicate(timeout=20)
  assert run.returncode == 137 and len(box.mains(0)) == 1 and err == ''


def test_restart_stopped_between_two_starts(box):
  run = box.begin('restart.sh', box.python, codes=[[9, 0]],
                  RESTART_SECONDS='60')
  assert 'starting it again' in [run.stdout.readline() for _ in '12'][1]
  run.terminate()
  run.communicate(timeout=60)
  assert run.returncode == 42 and len(box.mains(0)) == 1


def test_restart_usage(box):
  assert box('restart.sh', box.python, codes=[[0]], RESTART_SECONDS='0.5') == 2
  assert box.err == "error: RESTART_SECONDS is '0.5'; expected seconds\n"
  assert box('restart.sh', codes=[]) == 2
  assert box.err == ('error: the command is missing; see launch/restart.sh '
                     '--help\n')


# ---- gpu_local.sh.


_ARGS = ['--config=configs/mixer_b16.py', "--workdir=it's"]
_DRY_RUNS = {
    'gpu_local_one': (['--dry-run', *_ARGS], {}),
    'gpu_local_two': (['--dry-run', '--processes=2', '--', *_ARGS], {}),
    'gpu_local_gpus': (['--processes', 'gpus', '--dry-run', '--', *_ARGS],
                       {'CUDA_VISIBLE_DEVICES': '3,5'}),
    'gpu_local_cpu': (['--processes=2', '--dry-run', '--', *_ARGS],
                      {'JAX_PLATFORMS': 'cpu'}),
}


@pytest.mark.parametrize('name', _DRY_RUNS)
def test_gpu_dry_run(name, box):
  args, env = _DRY_RUNS[name]
  (box.path / 'bin' / 'nvidia-smi').write_text('#!/bin/bash\nexit 9\n')
  assert box('gpu_local.sh', *args, codes=[],
             **{'JAX_PLATFORMS': '', **env}) == 0, box.err
  assert box.out == (launching.GOLDEN / f'{name}.txt').read_text()
  assert not (box.path / 'copy' / '.venv').exists()


@pytest.mark.parametrize('args,message', [
    ([], "mixer.main's flags are missing"),
    (['--dry-run', '--'], "mixer.main's flags are missing"),
    (['--processes=many', '-x'], "--processes is 'many'"),
    (['--processes=0', '-x'], "--processes is '0'"),
    (['--processes'], '--processes wants a value'),
    (['--processes=4', '-x'], '--processes=4: this machine has 3 GPUs'),
])
def test_gpu_usage_errors(args, message, box):
  assert box('gpu_local.sh', *args, codes=[], JAX_PLATFORMS='') == 2
  assert box.err.startswith('error: ') and message in box.err
  assert box.err.count('\n') == 1


def test_one_process_has_all_gpus_and_is_restarted(box):
  assert box('gpu_local.sh', '-x', codes=[[42, 134, 0]], JAX_PLATFORMS='') == 0
  assert box.mains(0) == ['none -m mixer.main -x'] * 3
  assert 'requirements-cuda.txt' in (box.path / 'pip').read_text()


def test_of_several_processes_each_has_a_gpu(box):
  assert box('gpu_local.sh', '--processes=gpus', '--', '-x', JAX_PLATFORMS='',
             codes=[[0], [0], [0]]) == 0, box.err
  for i in range(3):
    assert box.mains(i) == [
        f'{i} -m mixer.main -x --coordinator=127.0.0.1:4711 '
        f'--num_processes=3 --process_id={i}']
  # The output of process 0 is shown, that of the others kept.
  assert 'output of 0' in box.out and 'output of 1' not in box.out
  log, = box.path.glob('mlp-mixer.*/1.log')
  assert log.read_text() == 'output of 1\n'


_TWO = ['gpu_local.sh', '--processes=2', '--', '-x']


def _said(out):
  return [line for line in out.splitlines() if not line.startswith('output')
          and not line.startswith('the output')]


def test_one_is_killed_and_all_are_started_again(box):
  run = box.begin(*_TWO, codes=[['wait', 0], ['wait', 0]])
  box.pid(0)
  os.kill(box.pid(1), signal.SIGKILL)
  launching.until(lambda: list(box.path.glob('mlp-mixer.*/why')))
  (box.path / 'lost').touch()        # process 0 notices, and ends in 134
  out, err = run.communicate(timeout=20)
  assert run.returncode == 0, err
  log, = box.path.glob('mlp-mixer.*/1.log')
  assert _said(out) == [
      f'process 1 of 2 exited with 137 (KILL), see {log}: '
      'starting all 2 again', 'mixer.main exited with 0']
  assert len(box.mains(0)) == len(box.mains(1)) == 2
  assert 'Killed' not in err


def test_those_who_do_not_end_are_killed(box):
  run = box.begin(*_TWO, codes=[['hang', 0], ['go-134', 0]])
  box.pid(0)
  (box.path / 'go').touch()
  out, err = run.communicate(timeout=20)
  assert run.returncode == 0, err
  assert 'process 1 of 2 exited with 134 (ABRT)' in out
  launching.until(lambda: gone(box.pid(0)))


def test_the_first_failure_decides(box):
  run = box.begin(*_TWO, codes=[['wait', 0], ['go-1', 0]])
  box.pid(0)
  (box.path / 'go').touch()
  launching.until(lambda: list(box.path.glob('mlp-mixer.*/why')))
  (box.path / 'lost').touch()
  out, _ = run.communicate(timeout=20)
  assert run.returncode == 1
  assert _said(out)[-1].startswith('process 1 of 2 exited with 1, see ')
  assert len(box.mains(0)) == 1


def test_all_that_saved_are_started_again(box):
  assert box(*_TWO, codes=[[42, 0], [42, 0]]) == 0
  assert _said(box.out) == ['mixer.main exited with 42: starting all 2 again',
                            'mixer.main exited with 0']


def test_a_second_ctrl_c_kills_all(box):
  run = box.begin(*_TWO, codes=[['hang', 0], ['hang', 0]], GRACE_SECONDS='60')
  pids = [box.pid(i) for i in (0, 1)]
  for _ in range(2):   # as a system that tells the launcher and its children
    run.send_signal(signal.SIGTERM)
    time.sleep(1)
  run.send_signal(signal.SIGINT)
  time.sleep(1)
  assert not any(map(gone, pids))
  run.send_signal(signal.SIGINT)
  out, _ = run.communicate(timeout=20)
  assert run.returncode == 137 and len(box.mains(0)) == 1, out
  for i in (0, 1):
    launching.until(lambda: gone(box.pid(i)))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_all_are_told_to_stop(box, number):
  run = box.begin(*_TWO, codes=[['wait', 0], ['wait', 0]])
  for i in (0, 1):
    box.pid(i)
  run.send_signal(number)
  out, _ = run.communicate(timeout=20)
  assert run.returncode == 42
  assert _said(out) == ['saved', 'mixer.main exited with 42']
  assert len(box.mains(0)) == len(box.mains(1)) == 1
