#!/usr/bin/env bash
# usage: launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- ARGS]
#
# Trains on one Cloud TPU VM (v2 to v6e). COMMAND is one of
#   run        create the VM or use the one of that name, copy the files that
#              git tracks (with uncommitted changes), install, run
#              `python -m mixer.main ARGS`, follow its log, and exit with its
#              exit code
#   log        follow the log of a run, such as after a lost connection
#   interrupt  make the run save and end; the VM stays
#   stop       delete the VM and its disk, which ends the charges
#
# Prerequisites: the gcloud CLI, logged in; a project with the Cloud TPU API
# enabled and quota for the type; git and tar. A TFDS data set may be in a
# bucket (gs://) as TFRecord files. Any other data has to be on the VM: on a
# disk, or in a bucket mounted with gcsfuse.
# Flags:
#   --project=ID    default: the project that gcloud is set to
#   --type=TYPE     v3-8 (default), v2-8, v4-8, v5p-8, v5litepod-1, v5litepod-4,
#                   v5litepod-8, v6e-1, v6e-4 or v6e-8
#   --version=NAME  runtime image; default: the right one for the type
#   --spot          a cheaper VM, which Google may preempt at any time
#   --dry-run       print the commands for a new VM instead of running them
#   -h, --help      print this help
# Example:
#   launch/tpu_vm.sh run --name=mixer --zone=europe-west4-a -- \
#     --config=configs/mixer_b16.py --workdir=gs://BUCKET/b16 \
#     --config.data.dir=gs://BUCKET/tfds
#
# A workdir on gs:// survives the VM. When a spot VM was preempted, the same
# command creates a new one and resumes the run. On the VM, mixer.main is
# restarted when it exits with 42 (it was told to stop, and saved) or above 126
# (it was killed, or crashed); see launch/restart.sh --help.
#
# For slices of several VMs use launch/tpu_pod.sh. The Cloud TPU API behind both
# is frozen: it gets fixes, but no new features and no TPU newer than v6e. For
# TPU7x and later use GKE (launch/gke.sh) or Compute Engine:
# https://docs.cloud.google.com/tpu/docs/tpus-in-compute-engine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/tpu_vm.sh
source launch/tpu.sh

readonly UV=0.13.8 PYTHON_VERSION=3.12

# ---- On this machine: gcloud.

# Makes sure that the VM exists and is ready.
create_or_reuse() {
  local state=
  if [[ $dry_run == yes ]]; then
    state_of_vm
  else
    state=$(state_of_vm)
  fi
  case $state in
  READY) return ;;
  PREEMPTED | TERMINATED) tpu delete "$name" --quiet ;;
  '') ;;
  *) fail "TPU VM $name is $state; wait until it is READY, or delete it with" \
    "$me stop --name=$name --zone=$zone" ;;
  esac
  tpu create "$name" "--accelerator-type=$type" "--version=$version" \
    ${spot:+"$spot"}
}

# Shows the log until the run ends; returns its exit code.
follow() {
  local code=0
  on_vm "$remote follow" || code=$?
  if [[ $code == 255 ]]; then   # ssh's code for a failed connection
    echo "error: the connection was lost, but the run continues; follow it" \
      "with $me log --name=$name --zone=$zone" >&2
  fi
  return "$code"
}

run() {
  need_main_flags "$@"
  need_git
  [[ -z $spot ]] ||
    note_without_bucket 'a spot VM loses its disk when it is preempted' "$@"
  create_or_reuse
  copy_checkout
  on_vm "$remote start -- $(quoted "$@")"
  follow
}

# ---- On the VM, in the directory mlp-mixer of its home.

# Installs the packages. The VM images have Python 3.10, which JAX no longer
# supports, so uv installs another one.
install() {
  python3 -m pip install --quiet --upgrade --target=.uv "uv==$UV"
  [[ -x .venv/bin/python ]] || .uv/bin/uv venv --python "$PYTHON_VERSION" .venv
  .uv/bin/uv pip install --python .venv/bin/python \
    -r launch/requirements-tpu.txt
}

# Starts `loop` in the background, unless one runs already. It holds the lock
# and survives the end of the connection.
start() {
  exec 9>run.lock
  flock -n 9 || return 0
  rm -f run.code run.asked
  nohup ./launch/tpu_vm.sh loop -- "$@" >run.log 2>&1 </dev/null &
  echo $! >run.pid
}

# Runs mixer.main with restarts, and stores its exit code in run.code.
loop() {
  source launch/restart.sh
  restart main "$@"
  echo "$code" >run.code
}

# Runs mixer.main without the lock, which must not outlive `loop`.
main() {
  exec .venv/bin/python -m mixer.main "$@" 9>&-
}

# Makes the run save and end. Sends no signal once the run has ended: its pid
# may belong to another process by then.
halt() {
  touch run.asked
  flock -n run.lock true || kill -TERM "$(cat run.pid)"
}

# Prints `outcome`, the state of the run, and the name of the VM. The state is
# `going`, the exit code, or `lost` if the run ended without a code or with a 42
# that nobody asked for: then the VM has rebooted.
outcome() {
  local word=going
  if flock -n run.lock true; then
    word=$(cat run.code 2>/dev/null || echo lost)
    [[ $word != 42 || -e run.asked ]] || word=lost
  fi
  echo "outcome $word $(hostname)"
}

# Shows the log until the run ends, and exits with its code. $1 is where to
# begin: +1 for the first line (default), 0 for new lines only.
follow_here() {
  [[ -f run.pid ]] || fail "no run has been started on this VM"
  tail -n "${1:-+1}" -s 0.2 -F --pid="$(cat run.pid)" run.log 2>/dev/null ||
    true
  exit "$(cat run.code 2>/dev/null || echo 1)"
}

# ---- The command line.

command=${1:-}
[[ $# -eq 0 ]] || shift
type=v3-8 types='v2-8, v3-8, v4-8, v5p-8, v5litepod-N or v6e-N'
flags 'name zone project type version' "$@"
set -- "${rest[@]+"${rest[@]}"}"

# These commands run on the VM.
case $command in
install | start | loop | halt | outcome)
  "$command" "$@"
  exit
  ;;
follow) follow_here "$@" ;;
esac

check_command run log interrupt stop
check_flags
[[ ${type##*-} =~ ^[1248]$ ]] ||
  fail "--type=$type is not a single VM; expected $types; for several VMs use" \
    "launch/tpu_pod.sh"

case $command in
run) run "$@" ;;
log) follow ;;
interrupt) on_vm "$remote halt && ./launch/tpu_vm.sh follow" ;;
stop) tpu delete "$name" --quiet ;;
esac
