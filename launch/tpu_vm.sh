#!/usr/bin/env bash
# usage: launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- ARGS]
#
# Trains on one Cloud TPU VM (v2 to v6e). COMMAND is one of
#   run        create the VM or use the one of that name, copy the files that
#              git tracks (as they are now, uncommitted edits included),
#              install, run `python -m mixer.main ARGS`, follow its log, exit
#              with its code
#   log        follow the log of a run again, after a lost connection
#   interrupt  let the run save and end; the VM stays
#   stop       delete the VM and its disk; this ends the bill
# FLAGS:
#   --project=ID    default: gcloud's own
#   --type=TYPE     default v3-8; also v2-8 v4-8 v5p-8 v5litepod-1|4|8 v6e-1|4|8
#   --version=NAME  runtime image; default: the one for that type
#   --spot          cheaper, and can be taken away at any time
#   --dry-run       print the commands, a line each, for a VM that does not
#                   exist yet, and run none of them
# Example:
#   launch/tpu_vm.sh run --name=mixer --zone=europe-west4-a -- \
#     --config=configs/mixer_b16.py --workdir=gs://BUCKET/b16 \
#     --config.data.dir=/mnt/tfds
# The data must lie on the VM: on a disk, or in a bucket mounted with gcsfuse.
# A workdir on gs:// outlives the VM: after a spot VM was taken away, the same
# command makes a new one and resumes.
#
# On the VM mixer.main is started again when it exits with 42 (told to stop, and
# saved) or above 126 (killed, crashed), as launch/restart.sh --help says.
#
# launch/tpu_pod.sh is for slices of several VMs. The Cloud TPU API behind both
# is frozen: it gets fixes but no new features, and no TPU after v6e. From TPU7x
# on use GKE (launch/gke.sh) or Compute Engine:
# https://docs.cloud.google.com/tpu/docs/tpus-in-compute-engine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/tpu_vm.sh
source launch/tpu.sh

readonly UV=0.13.8 PYTHON_VERSION=3.12

# ---- Here: gcloud.

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
  *) fail "TPU VM $name is $state; wait until it is READY, or delete it:" \
    "launch/tpu_vm.sh stop --name=$name --zone=$zone" ;;
  esac
  tpu create "$name" "--accelerator-type=$type" "--version=$version" \
    ${spot:+"$spot"}
}

follow() {
  local code=0
  on_vm 'cd mlp-mixer && ./launch/tpu_vm.sh follow' || code=$?
  if [[ $code == 255 ]]; then
    echo "error: the connection was lost; the run goes on, follow it with" \
      "launch/tpu_vm.sh log --name=$name --zone=$zone" >&2
  fi
  return "$code"
}

run() {
  [[ $# -gt 0 ]] || fail "mixer.main's flags are missing; give them after --"
  if [[ -n $spot && "$*" != *--workdir?gs://* ]]; then
    echo "note: a spot VM takes its disk along; keep the run with" \
      "--workdir=gs://BUCKET/DIR" >&2
  fi
  create_or_reuse
  copy_checkout
  on_vm "cd mlp-mixer && ./launch/tpu_vm.sh start -- $(quoted "$@")"
  follow
}

# ---- There: on the VM, whose home holds mlp-mixer/.

# The images bring Python 3.10, which JAX no longer supports; uv gets another.
install() {
  python3 -m pip install --quiet --upgrade --target=.uv "uv==$UV"
  [[ -x .venv/bin/python ]] || .uv/bin/uv venv --python "$PYTHON_VERSION" .venv
  .uv/bin/uv pip install --python .venv/bin/python \
    -r launch/requirements-tpu.txt
}

# Leaves `loop` behind, which lives on when the connection ends, and holds the
# lock; where one is at work it stays.
start() {
  exec 9>run.lock
  flock -n 9 || return 0
  rm -f run.code run.asked
  nohup ./launch/tpu_vm.sh loop -- "$@" >run.log 2>&1 </dev/null &
  echo $! >run.pid
}

loop() {
  source launch/restart.sh
  restart main "$@"
  echo "$code" >run.code
}

# Without the lock, which must not outlive the loop.
main() {
  exec .venv/bin/python -m mixer.main "$@" 9>&-
}

# Lets the run save and end.
halt() {
  touch run.asked
  # A pid of a run that has ended may be another's by now.
  flock -n run.lock true || kill -TERM "$(cat run.pid)"
}

# A word on the run: going, its code, or lost, as after the VM has rebooted, in
# good order or not (a 42 for which nobody asked); and the VM's name.
outcome() {
  local word=going
  if flock -n run.lock true; then
    word=$(cat run.code 2>/dev/null || echo lost)
    [[ $word != 42 || -e run.asked ]] || word=lost
  fi
  echo "outcome $word $(hostname)"
}

# Shows the log, from its line $1 counted from the end; exits as the run does.
follow_here() {
  [[ -f run.pid ]] || fail "no run was started on this VM"
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

case $command in
install | start | loop | halt | outcome)
  "$command" "$@"
  exit
  ;;
follow) follow_here "$@" ;;
-h | --help | help)
  usage
  exit
  ;;
run | log | interrupt | stop) ;;
*) fail "COMMAND is '$command', not run, log, interrupt or stop;" \
  "see $me --help" ;;
esac

check_flags
[[ ${type##*-} =~ ^[1248]$ ]] || fail "--type=$type is no single VM;" \
  "expected $types, or launch/tpu_pod.sh"

case $command in
run) run "$@" ;;
log) follow ;;
interrupt)
  on_vm 'cd mlp-mixer && ./launch/tpu_vm.sh halt && ./launch/tpu_vm.sh follow'
  ;;
stop) tpu delete "$name" --quiet ;;
esac
