#!/usr/bin/env bash
# usage: launch/slurm_gpu.sh [FLAGS] -- FLAGS OF mixer.main
#
# Trains on GPUs under Slurm. Submits a batch job that runs mixer.main, with one
# process for each GPU, and restarts it when it has crashed. Makes .venv before
# it submits the job.
#
# Prerequisites: sbatch; a checkout and a workdir that all nodes see at the same
# paths; NVIDIA drivers of version 580 or newer; Python 3.11, 3.12 or 3.13 with
# its venv module.
# Flags:
#   --nodes=N       number of nodes, default 1
#   --gpus=N        GPUs on each node, default 1
#   --per=gpu|node  start one process for each GPU (default) or for each node
#   --dry-run       print the commands instead of running them
#   -h, --help      print this help
#   any other       goes to sbatch, written as --FLAG=VALUE: --partition=NAME,
#                   --account=NAME, --time=24:00:00, --mem=0, and
#                   --cpus-per-task=14, the CPU cores for each process, which
#                   decode images
# Environment variables:
#   REQUIREMENTS=FILE   packages to install; default:
#                       launch/requirements-cuda.txt
#   PYTHON=python3.12   the interpreter
#   RESTART_SECONDS=10  pause before a restart
# Example:
#   launch/slurm_gpu.sh --nodes=2 --gpus=8 --partition=a100 --time=24:00:00 \
#     --cpus-per-task=14 -- --config=configs/mixer_b16.py \
#     --workdir=$SCRATCH/b16 --config.data.dir=$SCRATCH/tfds
#
# Two minutes before the time limit Slurm sends TERM to the job, which saves and
# requeues itself; --signal=B:TERM@300 makes that five minutes. The job does the
# same on a preemption, if the site signals it (send_user_signal). A run that
# exits with 42 or above 126 for another reason is restarted within the job (see
# launch/restart.sh --help). To save and end for good, run
# scancel --batch --signal=INT JOB. A plain scancel saves nothing.
set -euo pipefail
case ${1:-} in
job | task) ;;   # sbatch and srun start these in the repository's root
*) cd "$(dirname "${BASH_SOURCE[0]}")/.." ;;
esac
me=launch/slurm_gpu.sh
source launch/shell.sh
source launch/restart.sh

# srun answers a TERM by killing its tasks, so `stop_child` uses scancel. When a
# task fails, --kill-on-bad-exit ends the others: they get TERM, then KILL after
# the site's KillWait, and srun then exits with the code of that KILL.
start=(srun --kill-on-bad-exit=1 --label "$me" task)

# ---- In each task of a job step.

# Runs mixer.main with the flags from $2 on. Writes the code of a failure to the
# file $1, because srun may exit with the code of another task. The signals of
# scancel reach mixer.main as well as this shell, which only waits.
task() {
  local code=0
  trap : TERM
  .venv/bin/python -m mixer.main "${@:2}" || code=$?
  [[ $code == 0 || $code == 42 || $code -gt 126 ]] || echo "$code" >"$1"
  exit "$code"
}

# ---- In the batch job.

# Replaces the function of restart.sh.
stop_child() {
  scancel --signal=TERM "$SLURM_JOB_ID" || true
}

# Runs all processes as one job step and exits with their code.
step() {
  local code=0 failed=build/slurm-$SLURM_JOB_ID.failed
  mkdir -p build
  rm -f "$failed"
  "${start[@]}" "$failed" "$@" || code=$?
  [[ ! -s $failed ]] || code=$(head -n 1 "$failed")
  rm -f "$failed"
  exit "$code"
}

# Runs the job with the flags "$@" of mixer.main.
job() {
  # JAX would try to reach the other processes through the proxy, and hang.
  unset http_proxy https_proxy all_proxy grpc_proxy
  unset HTTP_PROXY HTTPS_PROXY ALL_PROXY
  # srun no longer takes this value from sbatch by itself.
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  fi
  restart step "$@"
  # Slurm would also requeue a job that was cancelled or has used up its time,
  # hence the check that it is still running.
  if [[ $stop_signal == TERM && ($code == 42 || $code -gt 126) ]] &&
    [[ $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]
  then
    echo "requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}

case ${1:-} in
job | task) "$@" ;;
esac

# ---- On the machine that submits: the command line.

nodes=1 gpus=1 per=gpu others=()
# Keeps an argument for sbatch.
other() {
  case $1 in
  --config*)
    fail "unknown argument $1; put the flags of mixer.main after --"
    ;;
  --*) others+=("$1") ;;
  *)
    fail "unknown argument $1; write flags of sbatch as --FLAG=VALUE, such as" \
      "--partition=NAME"
    ;;
  esac
}
flags 'nodes gpus per' "$@"
set -- "${rest[@]+"${rest[@]}"}"
need_main_flags "$@"
expect nodes "$POSITIVE" 'a number'
expect gpus "$POSITIVE" 'a number'
expect per 'gpu|node' 'gpu or node'
tasks=1
[[ $per == node ]] || tasks=$gpus

set_up_venv launch/requirements-cuda.txt
call sbatch --job-name=mixer "--nodes=$nodes" "--gpus-per-node=$gpus" \
  "--ntasks-per-node=$tasks" --requeue --open-mode=append \
  --signal=B:TERM@120 "${others[@]+"${others[@]}"}" "$me" job "$@"
if [[ $dry_run == yes ]]; then
  quoted "${start[@]}" build/slurm-JOB.failed "$@"
fi
