#!/usr/bin/env bash
# usage: launch/slurm_gpu.sh [FLAGS] -- FLAGS OF mixer.main
#
# Trains on GPUs under Slurm: submits a batch job that runs mixer.main, with one
# process a GPU, and starts it again when it has crashed. The repository and the
# workdir have to be where every node sees them. Before it submits it makes
# .venv from launch/requirements-cuda.txt, or from REQUIREMENTS=FILE.
# FLAGS:
#   --nodes=N       default 1
#   --gpus=N        of each node, default 1
#   --per=gpu|node  a process for each GPU (default), or for each node
#   --dry-run       print the commands, and run none of them
#   any other       goes to sbatch, such as --partition=NAME, --account=NAME,
#                   --time=24:00:00, --mem=0, --signal=B:TERM@300 and, of cores
#                   for each process (to decode images), --cpus-per-task=14
# Example:
#   launch/slurm_gpu.sh --nodes=2 --gpus=8 --partition=a100 --time=24:00:00 \
#     --cpus-per-task=14 -- --config=configs/mixer_b16.py \
#     --workdir=$SCRATCH/b16 --config.data.dir=$SCRATCH/tfds
#
# Two minutes before the time limit Slurm sends TERM to the job: it saves, and
# puts itself in the queue again, as it does where a site sends the signal at
# preemption (send_user_signal). What ends in 42 or above 126 otherwise is
# started again within the job, as launch/restart.sh --help says. To save and
# end for good: scancel --batch --signal=INT JOB. A plain scancel saves nothing.
set -euo pipefail
case ${1:-} in
job | task) ;;   # sbatch and srun start these in the repository's root
*) cd "$(dirname "${BASH_SOURCE[0]}")/.." ;;
esac
me=launch/slurm_gpu.sh
source launch/shell.sh
source launch/restart.sh

# srun itself answers TERM by killing its tasks, so scancel brings it to them.
# One that exits with other than 0 takes the others along: after TERM, and the
# site's KillWait, comes KILL, and that is the code which srun then has.
start=(srun --kill-on-bad-exit=1 --label "$me" task)

# ---- There: in each task of a step.

# Leaves the code of a failure in the file $1, as srun may have another's. The
# signals of scancel come to this shell's child too, so it only waits.
task() {
  local code=0
  trap : TERM
  .venv/bin/python -m mixer.main "${@:2}" || code=$?
  [[ $code == 0 || $code == 42 || $code -gt 126 ]] || echo "$code" >"$1"
  exit "$code"
}

# ---- There: in the batch job.

pass_on() {
  scancel --signal=TERM "$SLURM_JOB_ID" || true
}

# The processes of one start, as a step of the job; exits with their code.
step() {
  local code=0 failed=build/slurm-$SLURM_JOB_ID.failed
  mkdir -p build
  rm -f "$failed"
  "${start[@]}" "$failed" "$@" || code=$?
  [[ ! -s $failed ]] || code=$(head -n 1 "$failed")
  rm -f "$failed"
  exit "$code"
}

job() {
  # JAX's processes would look for each other behind the proxy, and hang.
  unset http_proxy https_proxy all_proxy grpc_proxy
  unset HTTP_PROXY HTTPS_PROXY ALL_PROXY
  # srun no longer takes this from sbatch by itself.
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  fi
  restart step "$@"
  # Of a job that was cancelled or is over its time Slurm would obey that too.
  if [[ $stopping == TERM && ($code == 42 || $code -gt 126) ]] &&
    [[ $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]
  then
    echo "job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}

case ${1:-} in
job | task) "$@" ;;
esac

# ---- Here: the command line.

nodes=1 gpus=1 per=gpu others=()
other() {   # sbatch's
  case $1 in
  --config*) fail "unknown argument $1; mixer.main's own go after --" ;;
  --*) others+=("$1") ;;
  *) fail "unknown argument $1; values follow a =, as in --partition=NAME" ;;
  esac
}
flags 'nodes gpus per' "$@"
set -- "${rest[@]+"${rest[@]}"}"
[[ $# -gt 0 ]] || fail "mixer.main's flags are missing; give them after --"
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes is '$nodes'; expected a number"
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus is '$gpus'; expected a number"
case $per in
gpu) tasks=$gpus ;;
node) tasks=1 ;;
*) fail "--per is '$per'; expected gpu or node" ;;
esac

REQUIREMENTS=${REQUIREMENTS:-launch/requirements-cuda.txt}
if [[ $dry_run == yes ]]; then
  quoted env "REQUIREMENTS=$REQUIREMENTS" launch/venv.sh
else
  source launch/venv.sh
  make_venv
fi
call sbatch --job-name=mixer "--nodes=$nodes" "--gpus-per-node=$gpus" \
  "--ntasks-per-node=$tasks" --requeue --open-mode=append \
  --signal=B:TERM@120 "${others[@]+"${others[@]}"}" "$me" job "$@"
if [[ $dry_run == yes ]]; then
  quoted "${start[@]}" build/slurm-JOB.failed "$@"
fi
