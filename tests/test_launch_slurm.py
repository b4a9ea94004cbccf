"""slurm_gpu.sh with scripts in place of Slurm and mixer.main."""
import shutil
import signal

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
def test_dry_run_prints_the_golden_commands(name, tmp_path):
  launching.dry_run(tmp_path, name, 'launch/slurm_gpu.sh', *_DRY_RUNS[name])


@pytest.mark.parametrize('args,message', [
    ([], 'the flags of mixer.main are missing'),
    (['--nodes=2', '--'], 'the flags of mixer.main are missing'),
    (['--nodes=0', *_FLAGS], "--nodes is '0'"),
    (['--gpus=all', *_FLAGS], "--gpus is 'all'"),
    (['--per=core', *_FLAGS], "--per is 'core'"),
    (['--nodes'], '--nodes needs a value'),
    (['--config=x'], 'unknown argument --config=x'),
    (['--partition', 'a100', *_FLAGS], 'unknown argument a100'),
])
def test_usage_errors(args, message, tmp_path):
  launching.usage_error(tmp_path, message, 'launch/slurm_gpu.sh', *args)


# A fake srun with two tasks. When one fails, Slurm sends TERM to the other, and
# KILL after a while. Here only KILL comes, as soon as the other task waits for
# its peer; and none comes after scancel, which makes both tasks save and end.
# The exit code is the highest one of the tasks.
_SRUN = '''
echo "$*" >>"$BOX/srun"
env | grep -i proxy >>"$BOX/proxies"
[[ $1 == --kill-on-bad-exit=1 && $2 == --label ]] || exit 99
shift 2
cd "$BOX"
rm -f waits0 waits1
cd "$OLDPWD"
for i in 0 1; do
  SLURM_PROCID=$i setsid bash -c 'trap : TERM
echo $$ >"$BOX/group$SLURM_PROCID"
"$@" && code=0 || code=$?
echo "$code" >"$BOX/end$SLURM_PROCID.new"
mv "$BOX/end$SLURM_PROCID.new" "$BOX/end$SLURM_PROCID"
exit "$code"' task "$@" &
done
cd "$BOX"
until [[ -e end0 && -e end1 ]]; do
  sleep 0.02
  for i in 0 1; do
    other=$((1 - i))
    if [[ -e end$i && $(cat "end$i") != 0 && -e waits$other &&
      ! -e end$other && ! -e scancel ]]; then
      kill -KILL -- "-$(cat "group$other")"
      echo 137 >"end$other"
    fi
  done
done
code=$(sort -n end0 end1 | tail -n 1)
rm end0 end1
exit "$code"'''

# scancel sends the signal to all processes of the step.
_SCANCEL = '''
echo "$*" >>"$BOX/scancel"
for i in 0 1; do kill -TERM -- "-$(cat "$BOX/group$i")"; done'''

# mixer.main, which acts when both tasks have started.
_PYTHON = '''
id=$SLURM_PROCID
echo "main $id $*"
cd "$BOX"
echo >>"on$id"
until cmp -s on0 on1; do sleep 0.02; done''' + launching.ACT


class _Job(launching.Sandbox):
  """A batch job on a fake Slurm.

  Slurm starts a copy of the script, which lies elsewhere, in the directory from
  which the job was submitted.
  """

  def __init__(self, path):
    super().__init__(path, SLURM_JOB_ID='7', http_proxy='http://x',
                     HTTPS_PROXY='y')
    launching.script(self.copy / '.venv' / 'bin' / 'python', _PYTHON)
    self.tool('srun', _SRUN)
    self.tool('scancel', _SCANCEL)
    self.tool('squeue', 'echo "$*" >>"$BOX/squeue"; echo "${STATE:-RUNNING}"')
    self.tool('scontrol', 'echo "$*" >>"$BOX/scontrol"')
    self.spool = path / 'spool' / 'slurm_script'
    self.spool.parent.mkdir()
    shutil.copy(self.copy / 'launch' / 'slurm_gpu.sh', self.spool)

  def start(self, codes, **env):
    """Starts the job."""
    return self.begin(self.spool, 'job', '--config=a', "--workdir=it's 1",
                      codes=codes, cwd=self.copy, **env)

  def run(self, codes, **env):
    """Runs the job to its end."""
    return launching.finish(self.start(codes, **env))

  def begin_waiting(self, **env):
    """Starts a job and returns it when both tasks wait."""
    run = self.start([['wait', 0], ['wait', 0]], **env)
    for i in (0, 1):
      self.waiting(i)
    return run


@pytest.fixture
def job(tmp_path):
  if not shutil.which('setsid'):
    pytest.skip('the fake srun needs setsid, which Linux has')
  job = _Job(tmp_path)
  yield job
  job.close()


def test_launcher_submits_itself(job):
  job.tool('sbatch', 'echo "$PWD $*"')
  launching.script(job.copy / 'launch' / 'venv.sh',
                   'make_venv() { echo "$REQUIREMENTS"; }')
  done = job.call('slurm_gpu.sh', '--nodes=2', '--gpus=4', *_FLAGS)
  assert done.returncode == 0, done.stderr
  assert done.stdout == (
      'launch/requirements-cuda.txt\n'
      f'{job.copy} --job-name=mixer --nodes=2 --gpus-per-node=4 '
      '--ntasks-per-node=4 --requeue --open-mode=append --signal=B:TERM@120 '
      'launch/slurm_gpu.sh job --config=configs/mixer_b16.py '
      "--workdir=/scratch/it's\n")


def test_job_runs_the_tasks_without_proxies(job):
  done = job.run([[0], [0]], SLURM_CPUS_PER_TASK='14')
  assert done.returncode == 0, done.stderr
  for i in (0, 1):
    assert f"main {i} -m mixer.main --config=a --workdir=it's 1" in done.stdout
  assert job.lines('srun') == [
      '--kill-on-bad-exit=1 --label launch/slurm_gpu.sh task '
      "build/slurm-7.failed --config=a --workdir=it's 1"]
  assert job.lines('proxies') == []
  assert job.lines('scontrol') == job.lines('scancel') == []


def test_job_restarts_after_a_crash_and_after_a_stop(job):
  done = job.run([[9, 42, 0], ['wait', 42, 0]])
  assert done.returncode == 0, done.stderr
  assert 'mixer.main exited with 137: starting it again' in done.stdout
  assert 'mixer.main exited with 42: starting it again' in done.stdout
  assert done.stdout.endswith('mixer.main exited with 0\n')
  assert len(job.lines('srun')) == 3 and job.lines('scontrol') == []


@pytest.mark.parametrize('code', [1, 2])
def test_job_ends_with_a_failure_although_the_peer_is_killed(job, code):
  done = job.run([['wait', 0], [code, 0]])
  assert done.returncode == code
  assert done.stdout.endswith(f'mixer.main exited with {code}\n')
  assert len(job.lines('srun')) == 1 and job.lines('scontrol') == []
  assert not list((job.copy / 'build').iterdir())


def test_job_saves_and_requeues_itself_before_the_time_limit(job):
  run = job.begin_waiting()
  run.terminate()                    # B:TERM is for the batch script alone
  done = launching.finish(run)
  assert done.returncode == 42, done.stderr
  assert job.lines('scancel') == ['--signal=TERM 7']
  assert done.stdout.count('saved') == 2
  assert done.stdout.endswith('requeueing job 7\n')
  assert job.lines('scontrol') == ['requeue 7']
  assert len(job.lines('srun')) == 1


@pytest.mark.parametrize('number,state', [
    (signal.SIGTERM, 'COMPLETING'),   # scancel
    (signal.SIGINT, 'RUNNING'),
])
def test_cancelled_job_saves_and_is_not_requeued(job, number, state):
  run = job.begin_waiting(STATE=state)
  run.send_signal(number)
  done = launching.finish(run)
  assert done.returncode == 42
  assert done.stdout.count('saved') == 2
  assert job.lines('scontrol') == []
