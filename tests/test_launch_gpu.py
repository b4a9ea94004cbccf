"""restart.sh, gpu_local.sh and gpu_benchmark.sh with a script in place of the
program that they start."""
import json
import os
import signal
import sys
import time

import launching
import pytest

# A fake Python. As mixer.main it notes its GPUs and its arguments.
_PYTHON = '''
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
echo "${CUDA_VISIBLE_DEVICES-none} $arguments" >>"$BOX/mains$id"
echo "output of $id"''' + launching.ACT


@pytest.fixture
def box(tmp_path, monkeypatch):
  """A sandbox on a machine that has three GPUs."""
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  # Processes end at slightly different times, so by default the grace period is
  # longer than any test.
  box = launching.Sandbox(
      tmp_path, GRACE_SECONDS=str(launching.LIMIT), JAX_PLATFORMS='cpu',
      TMPDIR=str(tmp_path))
  box.python = launching.script(tmp_path / 'python', _PYTHON)
  box.env['PYTHON'] = str(box.python)
  box.tool('nvidia-smi', 'printf "0\\n1\\n2\\n"')
  yield box
  box.close()


# ---- restart.sh.


@pytest.mark.parametrize('codes,code', [
    ([0], 0), ([1, 0], 1), ([2, 0], 2), ([126, 0], 126), ([42, 42, 0], 0),
    ([134, 1], 1), ([9, 127, 255, 0], 0)])
def test_restart_depends_on_the_exit_code(box, codes, code):
  done = box.call('restart.sh', box.python, '-m', 'x', codes=[codes])
  assert done.returncode == code
  assert len(box.lines('mains0')) == codes.index(code) + 1
  said = [line for line in done.stdout.splitlines() if 'output' not in line]
  codes = [137 if c == 9 else c for c in codes[:codes.index(code)]]
  assert said == [
      *[f'mixer.main exited with {c}: starting it again' for c in codes],
      f'mixer.main exited with {code}']
  assert done.stderr == ''


def test_restart_gives_up_after_five_quick_crashes_in_a_row(box):
  codes = [134] * 3 + [42] + [9] * 6   # 42 is no crash, so it starts a new row
  done = box.call('restart.sh', box.python, codes=[codes])
  assert done.returncode == 137
  assert len(box.lines('mains0')) == 9
  assert done.stdout.splitlines()[-1].startswith(
      'mixer.main exited with 137: giving up after 5 crashes')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_restart_makes_the_command_save_on_a_signal(box, number):
  run = box.begin('restart.sh', box.python, codes=[['wait', 0]])
  box.waiting(0)
  run.send_signal(number)
  done = launching.finish(run)
  assert done.returncode == 42
  assert done.stdout == 'output of 0\nsaved\nmixer.main exited with 42\n'


def test_restart_kills_the_command_at_a_second_ctrl_c(box):
  run = box.begin('restart.sh', box.python, codes=[['hang', 0]])
  pid = box.waiting(0)
  run.send_signal(signal.SIGINT)
  launching.until(lambda: box.lines('terms0'))
  run.send_signal(signal.SIGTERM)   # this is no second Ctrl-C
  time.sleep(1)
  assert not launching.gone(pid)
  launching.interrupt_until_end(run)
  done = launching.finish(run)
  assert done.returncode == 137 and done.stderr == ''
  assert len(box.lines('mains0')) == 1 and box.lines('terms0') == ['TERM']


def test_restart_keeps_the_code_of_a_child_that_ends_between_signals(box):
  """The system may repeat a signal just when the child ends."""
  for _ in range(6):   # each with a chance to meet that moment
    run = box.begin('restart.sh', box.python, codes=[['wait']])
    box.waiting(0)
    launching.interrupt_until_end(run, signal.SIGTERM)
    done = launching.finish(run)
    assert done.returncode == 42, done.stdout
    (box.path / 'waits0').unlink()


def test_restart_ends_at_once_when_stopped_during_the_pause(box):
  run = box.begin('restart.sh', box.python, codes=[[9, 0]],
                  RESTART_SECONDS=str(2 * launching.LIMIT))
  assert 'starting it again' in [run.stdout.readline() for _ in '12'][1]
  run.terminate()
  assert launching.finish(run).returncode == 42
  assert len(box.lines('mains0')) == 1


def test_restart_usage_errors(box):
  done = box.call('restart.sh', box.python, codes=[[0]], RESTART_SECONDS='0.5')
  launching.check_usage_error(
      done, "RESTART_SECONDS is '0.5'; expected a whole number of seconds")
  launching.check_usage_error(
      box.call('restart.sh'),
      'the command is missing; see launch/restart.sh --help')
  launching.check_usage_error(
      box.call('restart.sh', '--', 'no/such', 'x'),
      "'no/such' is no command; see launch/restart.sh --help")
  assert box.call('restart.sh', '--', 'true').returncode == 0


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
def test_gpu_dry_run_prints_the_golden_commands(name, box):
  args, env = _DRY_RUNS[name]
  box.tool('nvidia-smi', 'exit 9')
  done = box.call('gpu_local.sh', *args, **{'JAX_PLATFORMS': '', **env})
  assert done.returncode == 0, done.stderr
  assert done.stdout == (launching.GOLDEN / f'{name}.txt').read_text()
  assert not (box.copy / '.venv').exists()


@pytest.mark.parametrize('args,message', [
    ([], 'the flags of mixer.main are missing'),
    (['--dry-run', '--'], 'the flags of mixer.main are missing'),
    (['--processes=many', '-x'], "--processes is 'many'"),
    (['--processes=0', '-x'], "--processes is '0'"),
    (['--processes'], '--processes needs a value'),
    (['--processes=4', '-x'], '--processes=4: this machine has 3 GPUs'),
])
def test_gpu_usage_errors(args, message, box):
  launching.check_usage_error(
      box.call('gpu_local.sh', *args, JAX_PLATFORMS=''), message)


def test_processes_gpus_needs_gpus(box):
  launching.check_usage_error(
      box.call('gpu_local.sh', '--processes=gpus', '-x'),
      '--processes=gpus needs GPUs, but JAX_PLATFORMS=cpu hides them')


def test_one_process_uses_all_gpus_and_is_restarted(box):
  done = box.call('gpu_local.sh', '-x', codes=[[42, 134, 0]], JAX_PLATFORMS='')
  assert done.returncode == 0, done.stderr
  assert box.lines('mains0') == ['none -m mixer.main -x'] * 3
  assert 'requirements-cuda.txt' in (box.path / 'pip').read_text()


def test_each_of_several_processes_uses_one_gpu(box):
  done = box.call('gpu_local.sh', '--processes=gpus', '--', '-x',
                  JAX_PLATFORMS='', codes=[[0], [0], [0]])
  assert done.returncode == 0, done.stderr
  for i in range(3):
    assert box.lines(f'mains{i}') == [
        f'{i} -m mixer.main -x --coordinator=127.0.0.1:4711 '
        f'--num_processes=3 --process_id={i}']
  # The output of process 0 is shown, and the others' goes to files.
  assert 'output of 0' in done.stdout and 'output of 1' not in done.stdout
  log, = box.path.glob('mlp-mixer.*/1.log')
  assert log.read_text() == 'output of 1\n'


_TWO = ['gpu_local.sh', '--processes=2', '--', '-x']


def _said(done):
  """Returns the lines of standard output that are no process's output."""
  return [line for line in done.stdout.splitlines()
          if not line.startswith(('output', 'the output'))]


def _wait_for_failure(box):
  """Waits until the launcher has noted the first failure."""
  launching.until(lambda: list(box.path.glob('mlp-mixer.*/why')))


def test_all_restart_when_one_is_killed(box):
  run = box.begin(*_TWO, codes=[['wait', 0], ['wait', 0]])
  box.waiting(0)
  os.kill(box.waiting(1), signal.SIGKILL)
  _wait_for_failure(box)
  (box.path / 'lost').touch()        # process 0 notices, and exits with 134
  done = launching.finish(run)
  assert done.returncode == 0, done.stderr
  log, = box.path.glob('mlp-mixer.*/1.log')
  assert _said(done) == [
      f'process 1 of 2 exited with 137 (KILL), see {log}: '
      'starting all 2 again', 'mixer.main exited with 0']
  assert len(box.lines('mains0')) == len(box.lines('mains1')) == 2
  assert 'Killed' not in done.stderr


def test_process_that_does_not_end_is_killed_after_the_grace_period(box):
  run = box.begin(*_TWO, codes=[['hang', 1], ['go-134', 1]], GRACE_SECONDS='1')
  pid = box.waiting(0)
  (box.path / 'go').touch()
  done = launching.finish(run)
  assert done.returncode == 1, done.stderr
  assert 'process 1 of 2 exited with 134 (ABRT)' in done.stdout
  assert 'starting all 2 again' in done.stdout
  launching.until(lambda: launching.gone(pid))


def test_first_failure_decides_about_a_restart(box):
  run = box.begin(*_TWO, codes=[['wait', 0], ['go-1', 0]])
  box.waiting(0)
  (box.path / 'go').touch()
  _wait_for_failure(box)
  (box.path / 'lost').touch()
  done = launching.finish(run)
  assert done.returncode == 1
  assert _said(done)[-1].startswith('process 1 of 2 exited with 1, see ')
  assert len(box.lines('mains0')) == 1


def test_all_restart_when_all_have_saved(box):
  done = box.call(*_TWO, codes=[[42, 0], [42, 0]])
  assert done.returncode == 0
  assert _said(done) == ['mixer.main exited with 42: starting all 2 again',
                         'mixer.main exited with 0']


def test_second_ctrl_c_kills_all_processes(box):
  run = box.begin(*_TWO, codes=[['hang', 0], ['hang', 0]])
  pids = [box.waiting(i) for i in (0, 1)]
  # A shutdown of the system may send TERM to the launcher more than once.
  run.send_signal(signal.SIGTERM)
  launching.until(lambda: all(box.lines(f'terms{i}') for i in (0, 1)))
  for number in (signal.SIGTERM, signal.SIGINT):
    run.send_signal(number)
    time.sleep(1)
  assert not any(map(launching.gone, pids))
  launching.interrupt_until_end(run)
  done = launching.finish(run)
  assert done.returncode == 137 and len(box.lines('mains0')) == 1, done.stdout
  launching.until(lambda: all(map(launching.gone, pids)))
  assert box.lines('terms0') == box.lines('terms1') == ['TERM']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_all_save_on_a_signal(box, number):
  run = box.begin(*_TWO, codes=[['wait', 0], ['wait', 0]])
  for i in (0, 1):
    box.waiting(i)
  run.send_signal(number)
  done = launching.finish(run)
  assert done.returncode == 42
  assert _said(done) == ['saved', 'mixer.main exited with 42']
  assert len(box.lines('mains0')) == len(box.lines('mains1')) == 1


# ---- gpu_benchmark.sh.


# A GPU on which small batches are the fastest, and 512 images do not fit.
_BENCHMARK = f'''
arguments="$*"
case $arguments in
*ensurepip*) exit ;;
*platform*) echo 3.12.1; exit ;;
'-m venv'*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit ;;
'-m pip'*) exit ;;
'-c import json'*) exec {sys.executable} "$@" ;;
esac
echo "$CUDA_VISIBLE_DEVICES $arguments" >>"$BOX/measured"
size=${{arguments##*--batch_size=}}
size=${{size%% *}}
if [[ $size == 512 ]]; then
  echo 'error: out of memory' >&2
  exit 1
fi
printf 'a table\\nof %s\\n' "$size"
echo "{{\\"batch_size\\": $size, \\"images_per_second\\": $((900 - size))}}"
'''


def test_gpu_benchmark_compares_the_fastest_batch_that_fits(box):
  python = launching.script(box.path / 'python', _BENCHMARK)
  peers = box.path / 'peers'
  for repository in ('pytorch-image-models', 'vision_transformer'):
    (peers / repository).mkdir(parents=True)
  done = box.call('gpu_benchmark.sh', f'--peers={peers}', 'B/16', 'L/32',
                  PYTHON=str(python), JAX_PLATFORMS='', SECONDS_EACH='3')
  assert done.returncode == 0, done.stderr
  of = lambda mode, scale, rest: (
      f'0 -m mixer.benchmark {mode} --model=Mixer-{scale} {rest} --seconds=3')
  wanted = []
  for scale, sizes in (('B/16', (128, 256, 512)), ('L/32', (64, 128, 256))):
    for mode in ('train', 'infer'):
      wanted += [of(mode, scale, f'--precision=bfloat16 --batch_size={size}')
                 for size in sizes]
      wanted.append(of(
          mode, scale, f'--precision=bfloat16 --batch_size={sizes[0]} '
          f'--compare=timm_compiled --peers={peers}'))
    if scale == 'B/16':
      wanted.append(of(
          'train', scale, '--precision=float32 --batch_size=128 '
          f'--compare=vision_transformer --peers={peers}'))
  assert box.lines('measured') == wanted
  found = [json.loads(line) for line in done.stdout.splitlines()]
  assert len(found) == len(wanted) - 2   # two did not fit
  assert done.stderr.count('a table\nof 128\n') == sum(
      one['batch_size'] == 128 for one in found)
  assert done.stderr.count('out of memory') == 2


def test_gpu_benchmark_measures_the_papers_scales_with_the_given_batches(box):
  done = box.call('gpu_benchmark.sh', '--dry-run', BATCH_SIZES='8 16',
                  CUDA_VISIBLE_DEVICES='2')
  assert done.returncode == 0, done.stderr
  first, *lines = done.stdout.splitlines()
  assert first == ('env REQUIREMENTS=launch/requirements-cuda.txt '
                   'launch/venv.sh')
  assert lines == [
      f'.venv/bin/python -m mixer.benchmark {mode} --model=Mixer-{scale} '
      f'--precision=bfloat16 --batch_size={size} --seconds=6'
      for scale in ('S/16', 'B/16', 'L/16', 'H/14')
      for mode in ('train', 'infer') for size in (8, 16)]


@pytest.mark.parametrize('args,env,message', [
    (['B/17'], {}, "unknown argument B/17; expected a SCALE such as B/16"),
    ([], {'BATCH_SIZES': '8,16'}, "BATCH_SIZES is '8,16'"),
    ([], {'SECONDS_EACH': '0'}, "SECONDS_EACH is '0'"),
    (['--peers=/nowhere'], {}, '--peers=/nowhere: it has no folder pytorch-'),
])
def test_gpu_benchmark_usage_errors(args, env, message, box):
  launching.check_usage_error(box.call('gpu_benchmark.sh', *args, **env),
                              message)


def test_gpu_benchmark_goes_on_where_no_batch_fits_and_fails_at_the_end(box):
  python = launching.script(box.path / 'python', _BENCHMARK)
  done = box.call('gpu_benchmark.sh', 'B/16', 'L/16', PYTHON=str(python),
                  JAX_PLATFORMS='', BATCH_SIZES='512')
  assert done.returncode == 1
  assert [line for line in done.stderr.splitlines() if 'no batch' in line] == [
      f'error: Mixer-{scale}: no batch size could be measured'
      for scale in ('B/16', 'B/16', 'L/16', 'L/16')]
