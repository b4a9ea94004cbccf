"""slurm_gpu.sh, with a Slurm of one machine that is a few scripts."""
import os
import shutil
import signal
import subprocess

import launching
import pytest

_FLAGS = ['--', '--config=configs/mixer_b16.py', "--workdir=/scratch/it's"]
_DRY_RUNS = {
    'slurm_gpu_default': ['--dry-run', *_FLAGS],
    'slurm_gpu_nodes': [
        '--nodes=2', '--gpus', '8', '--partition=a100', '--account=my group',
        '--time=24:00:00', '--cpus-per-task=14', '--dry-run', *_FLAGS],
    'slurm_gpu_per_node': ['--nodes=4', '--gpus=8', '--per=node', '--dry-run',
                           *_FLAGS],
}


@pytest.mark.parametrize('name', _DRY_RUNS)
def test_dry_run(name, tmp_path):
  launching.dry_run(tmp_path, name, 'launch/slurm_gpu.sh', *_DRY_RUNS[name])


@pytest.mark.parametrize('args,message', [
    ([], "mixer.main's flags are missing"),
    (['--nodes=2', '--'], "mixer.main's flags are missing"),
    (['--nodes=0', *_FLAGS], "--nodes is '0'"),
    (['--gpus=all', *_FLAGS], "--gpus is 'all'"),
    (['--per=core', *_FLAGS], "--per is 'core'"),
    (['--nodes'], '--nodes wants a value'),
    (['--config=x'], 'unknown argument --config=x'),
    (['--partition', 'a100', *_FLAGS], 'unknown argument a100'),
])
def test_usage_errors(args, message, tmp_path):
  launching.usage_error(tmp_path, message, 'launch/slurm_gpu.sh', *args)


# srun: two tasks. One that ends with other than 0 takes the other along: after
# a second, KILL. The code is the highest, of signals before others.
_SRUN = '''
echo "$*" >>"$BOX/srun"
env | grep -i proxy >>"$BOX/proxies"
[[ $1 == --kill-on-bad-exit=1 && $2 == --label ]] || exit 99
shift 2
for i in 0 1; do
  SLURM_PROCID=$i setsid bash -c 'trap : TERM
echo $$ >"$BOX/group$SLURM_PROCID"
"$@" && code=0 || code=$?
echo "$SLURM_PROCID $code" >>"$BOX/ends"; exit "$code"' task "$@" &
  pids[i]=$!
done
: >>"$BOX/ends"
first=
while [[ $(wc -l <"$BOX/ends") -lt 2 ]]; do
  sleep 0.02
  read -r i code <"$BOX/ends" || continue
  if [[ $code != 0 && -z $first ]]; then
    first=$i
    sleep 0.5
    other=$(cat "$BOX/group$((1 - i))")
    if kill -KILL -- "-$other" 2>/dev/null; then echo "x 137" >>"$BOX/ends"; fi
  fi
done
sort -n -k 2 "$BOX/ends" | tail -n 1 | cut -d ' ' -f 2 >"$BOX/code"
rm "$BOX/ends"
exit "$(cat "$BOX/code")"'''

# As scancel does, to all of the step's processes.
_SCANCEL = '''
echo "$*" >>"$BOX/scancel"
for i in 0 1; do kill -TERM -- "-$(cat "$BOX/group$i")"; done'''

_MAIN = '''
echo "main $SLURM_PROCID $*"
cd "$BOX"
code=$(head -n 1 "codes$SLURM_PROCID")
sed -i 1d "codes$SLURM_PROCID"
# Both are there before anything happens.
echo >>"on$SLURM_PROCID"
until cmp -s on0 on1; do sleep 0.02; done
case $code in
wait)
  trap 'echo saved; exit 42' TERM
  echo $$ >"waits$SLURM_PROCID"
  while true; do sleep 0.02; done ;;
9) kill -KILL $$ ;;
*) exit "$code" ;;
esac'''


@pytest.fixture
def job(tmp_path):
  """Starts the job's part as Slurm does: a copy of the script, elsewhere, in
  the folder where it was submitted."""
  if not shutil.which('setsid'):
    pytest.skip('the tasks need setsid, which Linux has')
  copy = launching.copy(tmp_path / 'copy')
  launching.script(copy / '.venv' / 'bin' / 'python', _MAIN)
  for name, text in {
      'srun': _SRUN, 'scancel': _SCANCEL,
      'squeue': 'echo "$*" >>"$BOX/squeue"; echo "${STATE:-RUNNING}"',
      'scontrol': 'echo "$*" >>"$BOX/scontrol"'}.items():
    launching.script(tmp_path / 'bin' / name, text)
  spool = tmp_path / 'spool' / 'slurm_script'
  spool.parent.mkdir()
  shutil.copy(copy / 'launch' / 'slurm_gpu.sh', spool)
  env = {**os.environ, 'BOX': str(tmp_path), 'SLURM_JOB_ID': '7',
         'RESTART_SECONDS': '0', 'http_proxy': 'http://x', 'HTTPS_PROXY': 'y',
         'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}'}
  runs = []

  def begin(codes, **more):
    for i in (0, 1):
      (tmp_path / f'codes{i}').write_text(''.join(f'{c}\n' for c in codes[i]))
    runs.append(subprocess.Popen(
        [str(spool), 'job', '--config=a', "--workdir=it's 1"], cwd=copy,
        env={**env, **more}, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return runs[-1]

  def call(codes, **more):
    run = begin(codes, **more)
    call.out, call.err = run.communicate(timeout=30)
    return run.returncode

  def waits():
    for i in (0, 1):
      launching.until(lambda: launching.lines(tmp_path / f'waits{i}'))

  call.begin, call.waits, call.path = begin, waits, tmp_path
  call.calls = lambda name: launching.lines(tmp_path / name)
  yield call
  for run in runs:
    if run.poll() is None:
      run.kill()
  for i in (0, 1):
    try:
      os.killpg(int((tmp_path / f'group{i}').read_text()), signal.SIGKILL)
    except OSError:
      pass


def test_submits_itself(job):
  launching.script(job.path / 'bin' / 'sbatch', 'echo "$PWD $*"')
  copy = job.path / 'copy'
  launching.script(copy / 'launch' / 'venv.sh',
                   'make_venv() { echo "$REQUIREMENTS"; }')
  done = launching.run(
      copy / 'launch' / 'slurm_gpu.sh', '--nodes=2', '--gpus=4', *_FLAGS,
      cwd=job.path, PATH=f'{job.path}/bin:{os.environ["PATH"]}')
  assert done.returncode == 0, done.stderr
  assert done.stdout == (
      'launch/requirements-cuda.txt\n'
      f'{copy} --job-name=mixer --nodes=2 --gpus-per-node=4 '
      '--ntasks-per-node=4 --requeue --open-mode=append --signal=B:TERM@120 '
      'launch/slurm_gpu.sh job --config=configs/mixer_b16.py '
      "--workdir=/scratch/it's\n")


def test_job_runs_the_tasks_without_proxies(job):
  assert job([[0], [0]], SLURM_CPUS_PER_TASK='14') == 0, job.err
  for i in (0, 1):
    assert f"main {i} -m mixer.main --config=a --workdir=it's 1" in job.out
  assert job.calls('srun') == [
      '--kill-on-bad-exit=1 --label launch/slurm_gpu.sh task '
      "build/slurm-7.failed --config=a --workdir=it's 1"]
  assert job.calls('proxies') == []
  assert job.calls('scontrol') == job.calls('scancel') == []


def test_job_starts_again_what_crashed_or_stopped(job):
  assert job([[9, 42, 0], ['wait', 42, 0]]) == 0, job.err
  assert 'mixer.main exited with 137: starting it again' in job.out
  assert 'mixer.main exited with 42: starting it again' in job.out
  assert job.out.endswith('mixer.main exited with 0\n')
  assert len(job.calls('srun')) == 3 and job.calls('scontrol') == []


@pytest.mark.parametrize('code', [1, 2])
def test_job_ends_with_a_failure_though_its_peers_are_killed(job, code):
  assert job([['wait', 0], [code, 0]]) == code
  assert job.out.endswith(f'mixer.main exited with {code}\n')
  assert len(job.calls('srun')) == 1 and job.calls('scontrol') == []
  assert not list((job.path / 'copy' / 'build').iterdir())


def test_job_saves_and_requeues_before_its_time_is_over(job):
  run = job.begin([['wait', 0], ['wait', 0]])
  job.waits()
  run.terminate()                    # B:TERM is for the script alone
  out, err = run.communicate(timeout=20)
  assert run.returncode == 42, err
  assert job.calls('scancel') == ['--signal=TERM 7']
  assert out.count('saved') == 2
  assert out.endswith('job 7 goes back into the queue\n')
  assert job.calls('scontrol') == ['requeue 7']
  assert len(job.calls('srun')) == 1


@pytest.mark.parametrize('number,state', [
    (signal.SIGTERM, 'COMPLETING'),   # by scancel
    (signal.SIGINT, 'RUNNING'),
])
def test_job_that_shall_end_saves_and_is_not_requeued(job, number, state):
  run = job.begin([['wait', 0], ['wait', 0]], STATE=state)
  job.waits()
  run.send_signal(number)
  out, _ = run.communicate(timeout=20)
  assert run.returncode == 42
  assert out.count('saved') == 2
  assert job.calls('scontrol') == []
