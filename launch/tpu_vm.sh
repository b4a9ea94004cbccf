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
# saved) or above 126 (killed, crashed); it ends with 0 or any other code.
#
# The Cloud TPU API behind `gcloud compute tpus tpu-vm` is frozen: it gets fixes
# but no new features, and no TPU after v6e. From TPU7x on, and for slices of
# several VMs, use Compute Engine or GKE:
# https://docs.cloud.google.com/tpu/docs/tpus-in-compute-engine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV=0.13.8 PYTHON_VERSION=3.12
RESTART_SECONDS=${RESTART_SECONDS:-10}

fail() {
  echo "error: $*" >&2
  exit 2
}

# "$@" as one line that a shell reads back as the same words.
quoted() {
  local word line='' mark="'" escaped="'\\''"
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      word="'${word//$mark/$escaped}'"
    fi
    line+=${line:+ }$word
  done
  echo "$line"
}

call() {
  if [[ $dry_run == yes ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# ---- Here: gcloud.

tpu() {
  local verb=$1
  shift
  call gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$zone" \
    ${project:+"--project=$project"}
}

on_vm() {
  tpu ssh "$name" "--command=$1"
}

state_of_vm() {
  tpu describe "$name" '--format=value(state)' 2>/dev/null || true
}

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

pack() {
  mkdir -p build
  # macOS's tar would add files of its own without that variable.
  git ls-files -z |
    COPYFILE_DISABLE=1 tar --null -czf build/checkout.tar.gz -T -
}

copy_checkout() {
  on_vm "mkdir -p mlp-mixer && { flock -n mlp-mixer/run.lock true ||\
 { echo 'error: a run is going on: use log, interrupt or stop' >&2; exit 2; } }"
  if [[ $dry_run == yes ]]; then
    echo 'git ls-files -z | tar --null -czf build/checkout.tar.gz -T -'
  else
    pack
  fi
  tpu scp build/checkout.tar.gz "$name:mlp-mixer/checkout.tar.gz"
  on_vm 'cd mlp-mixer && tar -xzf checkout.tar.gz && ./launch/tpu_vm.sh install'
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

# Leaves `loop` behind, which lives on when the connection ends.
start() {
  rm -f run.code
  nohup ./launch/tpu_vm.sh loop -- "$@" >run.log 2>&1 </dev/null &
  echo $! >run.pid
}

loop() {
  local child='' code=0 started quick=0 stopping=no
  exec 9>run.lock
  flock -n 9 || fail "a run is going on in $PWD"
  trap 'stopping=yes; kill -TERM "$child" 2>/dev/null || true' TERM
  while [[ $stopping == no ]]; do
    started=$SECONDS
    .venv/bin/python -m mixer.main "$@" 9>&- &
    child=$!
    code=0
    wait "$child" || code=$?
    # The signal ends the first wait, not the child, which is still saving.
    if [[ $stopping == yes ]]; then
      code=0
      wait "$child" || code=$?
      break
    fi
    [[ $code == 42 || $code -gt 126 ]] || break
    # A run that dies early again and again will not mend by itself.
    if [[ $code != 42 && $((SECONDS - started)) -lt 300 ]]; then
      quick=$((quick + 1))
    else
      quick=0
    fi
    [[ $quick -lt 5 ]] || break
    echo "mixer.main exited with $code: starting it again"
    sleep "$RESTART_SECONDS"
  done
  echo "mixer.main exited with $code"
  echo "$code" >run.code
}

follow_here() {
  [[ -f run.pid ]] || fail "no run was started on this VM"
  tail -n +1 -s 0.2 -F --pid="$(cat run.pid)" run.log 2>/dev/null || true
  exit "$(cat run.code 2>/dev/null || echo 1)"
}

# ---- The command line.

command=${1:-}
[[ $# -eq 0 ]] || shift
name='' zone='' project='' type=v3-8 version='' spot='' dry_run=no
while [[ $# -gt 0 ]]; do
  case $1 in
  --)
    shift
    break
    ;;
  --spot) spot=--spot ;;
  --dry-run) dry_run=yes ;;
  --name=* | --zone=* | --project=* | --type=* | --version=*)
    flag=${1%%=*}
    printf -v "${flag#--}" %s "${1#*=}"
    ;;
  --name | --zone | --project | --type | --version)
    [[ $# -gt 1 ]] || fail "$1 wants a value; see launch/tpu_vm.sh --help"
    printf -v "${1#--}" %s "$2"
    shift
    ;;
  *) fail "unknown argument $1; mixer.main's own go after --" ;;
  esac
  shift
done

case $command in
install | start | loop)
  "$command" "$@"
  exit
  ;;
follow) follow_here ;;
-h | --help | help)
  sed -n '2,/^set /s/^# \{0,1\}//p' launch/tpu_vm.sh
  exit
  ;;
run | log | interrupt | stop) ;;
*) fail "COMMAND is '$command', not run, log, interrupt or stop;" \
  "see launch/tpu_vm.sh --help" ;;
esac

[[ -n $name ]] || fail "--name=NAME is missing; see launch/tpu_vm.sh --help"
[[ -n $zone ]] || fail "--zone=ZONE is missing; see launch/tpu_vm.sh --help"
chips=${type##*-}
case $type in
v2-* | v3-* | v4-*) image=tpu-ubuntu2204-base ;;
v5litepod-*) image=v2-alpha-tpuv5-lite ;;
v5p-*) image=v2-alpha-tpuv5 ;;
v6e-*) image=v2-alpha-tpuv6e ;;
*) fail "--type is '$type'; expected v2-8, v3-8, v4-8, v5p-8, v5litepod-N or" \
  "v6e-N" ;;
esac
[[ $chips =~ ^[1-8]$ ]] || fail "--type=$type is a slice of several VMs;" \
  "expected at most 8, see the end of launch/tpu_vm.sh --help"
version=${version:-$image}

case $command in
run) run "$@" ;;
log) follow ;;
interrupt) on_vm "cd mlp-mixer && kill -TERM \"\$(cat run.pid)\" &&\
 ./launch/tpu_vm.sh follow" ;;
stop) tpu delete "$name" --quiet ;;
esac
