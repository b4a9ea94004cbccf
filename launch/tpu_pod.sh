#!/usr/bin/env bash
# usage: launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE --type=TYPE [FLAGS]
#                          [-- ARGS]
#
# Trains on a slice of several Cloud TPU VMs (v2 to v6e), through a queued
# resource. COMMAND is one of
#   run        ask for the slice and wait for it, or use the one of that name,
#              copy the files that git tracks to all of its VMs, install, run
#              `python -m mixer.main ARGS` on all, follow the log of the first,
#              exit with the run's code. A slice that was taken away is deleted
#              and asked for again, and the run goes on from its checkpoint.
#   log        follow the log of the first VM, or of --worker=N
#   interrupt  let the run save and end; the slice stays
#   stop       delete the slice and its disks; this ends the bill
# FLAGS:
#   --project=ID    default: gcloud's own
#   --type=TYPE     such as v3-32, v4-16, v5litepod-16, v5p-16 or v6e-16
#   --version=NAME  runtime image; default: the one for that type
#   --spot          cheaper, and can be taken away at any time
#   --wait=HOURS    how long to wait for the slice, default 24
#   --retries=N     how often to ask for another one, default 20
#   --dry-run       print the commands, a line each, for a slice that does not
#                   exist yet, and run none of them
# Example:
#   launch/tpu_pod.sh run --name=mixer --zone=europe-west4-a --type=v3-32 \
#     --spot -- --config=configs/mixer_b16.py --workdir=gs://BUCKET/b16 \
#     --config.data.dir=gs://BUCKET/tfds
# All VMs read the data and write the workdir, so both belong in a bucket.
#
# On each VM mixer.main is started again when it exits with 42 or above 126, as
# launch/restart.sh --help says. One VM that loses it takes the others along
# within config.run.heartbeat_timeout_seconds, so the pause before a start,
# RESTART_SECONDS=40, has to be longer than that. `run` may be started anew when
# its own machine lost the connection: it then follows what is going on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/tpu_pod.sh
source launch/tpu.sh

RESTART_SECONDS=${RESTART_SECONDS:-40}
POLL_SECONDS=${POLL_SECONDS:-30}
readonly MOST_SILENT=10   # polls without an answer
workers=--worker=all
taken_away=0 follower='' complaint=/dev/null

# ---- The slice.

request() {
  call gcloud compute tpus queued-resources "$@" "--zone=$zone" \
    ${project:+"--project=$project"}
}

ask_for_slice() {
  request create "$name" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$version" ${spot:+"$spot"}
}

delete_slice() {
  request delete "$name" --force --quiet
}

# One word: none (there is no request), waiting, ready, gone or failed.
health() {
  local state
  if ! state=$(request describe "$name" '--format=value(state.state)' \
    2>"$complaint"); then
    # Another complaint, such as of the network, says nothing of the slice.
    if grep -qi 'not.found' "$complaint"; then
      echo none
    else
      cat "$complaint" >&2
      echo waiting
    fi
    return
  fi
  case $state in
  ACTIVE)
    case $(state_of_vm) in
    READY) echo ready ;;
    PREEMPTED | TERMINATED | STOPPED) echo gone ;;
    *) echo waiting ;;
    esac
    ;;
  SUSPENDING | SUSPENDED) echo gone ;;
  FAILED) echo failed ;;
  *) echo waiting ;;
  esac
}

# Returns when the slice is ready.
obtain() {
  local now polls=0 most
  most=$(awk "BEGIN { print int($wait * 3600 / ($POLL_SECONDS + 0.001)) }")
  while now=$(health) && [[ $now != ready ]]; do
    case $now in
    none) ask_for_slice || end 1 "the slice cannot be asked for; see above" ;;
    failed)
      end 1 "the request for the slice has failed:" \
        "$(request describe "$name" \
          '--format=value(state.failedData.error.message)' || true); mend" \
        "that, then $me stop --name=$name --zone=$zone and start this again"
      ;;
    gone)
      [[ $taken_away -lt $retries ]] ||
        end 1 "the slice was taken away once more than --retries=$retries;" \
          "start this again to go on"
      # What cannot be deleted is still there, or not, at the next look.
      if delete_slice || [[ $(health) == none ]]; then
        taken_away=$((taken_away + 1))
        echo "the slice was taken away: asking for another," \
          "$taken_away of --retries=$retries"
        continue
      fi
      ;;
    esac
    [[ $polls -lt $most ]] ||
      end 1 "no slice after --wait=$wait hours; the request stands: start" \
        "this again to wait on, or give it up with $me stop"
    polls=$((polls + 1))
    sleep "$POLL_SECONDS"
  done
}

# ---- The run.

one_vm() {
  workers=--worker=$worker on_vm "$1"
}

start_all() {
  on_vm "cd mlp-mixer && RESTART_SECONDS=$RESTART_SECONDS\
 ./launch/tpu_vm.sh start -- $(quoted "$@")"
}

interrupt_all() {
  on_vm 'cd mlp-mixer && ./launch/tpu_vm.sh halt'
}

# What became of the run, a line a VM; empty if one does not answer.
outcomes() {
  local lines
  lines=$(on_vm 'cd mlp-mixer && ./launch/tpu_vm.sh outcome' 2>/dev/null) ||
    return 0
  sed -n 's/^outcome //p' <<<"$lines"
}

# Keeps the log of the first VM on the screen, from line $1 on.
show_log() {
  if [[ -z $follower ]] || ! kill -0 "$follower" 2>/dev/null; then
    set -m   # a process group, as gcloud starts others
    one_vm "cd mlp-mixer && ./launch/tpu_vm.sh follow -- $1" </dev/null &
    set +m
    follower=$!
  fi
}

hide_log() {
  [[ -z $follower ]] || kill -- "-$follower" 2>/dev/null || true
  follower=''
}

# Exits with the run's code when it has ended; returns if the slice has.
watch() {
  local now lines worst code host silent=0 from=+1
  while [[ $silent -lt $MOST_SILENT ]]; do
    show_log "$from"
    from=0
    sleep "$POLL_SECONDS"
    now=$(health)
    [[ $now != gone ]] || break
    [[ $now != ready ]] || lines=$(outcomes)
    if [[ $now != ready || -z $lines ]]; then
      silent=$((silent + 1))
      continue
    fi
    silent=0
    # A failure counts before a stop, and both before those who still work.
    worst=$(grep -Ev '^(going|lost|0|42) ' <<<"$lines" ||
      grep '^42 ' <<<"$lines" || true)
    if [[ -n $worst ]]; then
      read -r code host <<<"$worst"
      [[ $lines != *going* ]] || interrupt_all || true
      end "$code" "mixer.main exited with $code on $host"
    elif [[ $lines == *lost* ]]; then   # a VM has rebooted
      start_all "$@" || true
    elif [[ $lines != *going* ]]; then
      end 0
    fi
  done
  hide_log
}

# Exits with code $1, after the log and a line that says why.
end() {
  sleep 1
  hide_log
  [[ $# == 1 ]] || echo "error: ${*:2}" >&2
  exit "$1"
}

run() {
  [[ $# -gt 0 ]] || fail "mixer.main's flags are missing; give them after --"
  if [[ "$*" != *--workdir?gs://* ]]; then
    echo "note: all VMs write the workdir, and their disks go with them; keep" \
      "the run with --workdir=gs://BUCKET/DIR" >&2
  fi
  if [[ $dry_run == yes ]]; then
    request describe "$name" '--format=value(state.state)'
    ask_for_slice
    request describe "$name" '--format=value(state.state)'
    state_of_vm
    copy_checkout
    start_all "$@"
    one_vm 'cd mlp-mixer && ./launch/tpu_vm.sh follow -- +1'
    on_vm 'cd mlp-mixer && ./launch/tpu_vm.sh outcome'
    return
  fi
  complaint=$(mktemp)
  trap 'hide_log; rm -f "$complaint"' EXIT
  while true; do
    obtain
    if [[ $(outcomes) == *going* ]]; then
      echo "a run is going on there: following it, whatever its flags"
      watch "$@"
    elif copy_checkout && start_all "$@"; then
      watch "$@"
    elif [[ $(health) == ready ]]; then
      end 1 "the slice is ready, but could not be set up; see above"
    fi
  done
}

# ---- The command line.

command=${1:-}
[[ $# -eq 0 ]] || shift
wait=24 retries=20 worker=0
types='such as v3-32, v4-16, v5litepod-16, v5p-16 or v6e-16'
flags 'name zone project type version wait retries worker' "$@"
set -- "${rest[@]+"${rest[@]}"}"

case $command in
-h | --help | help)
  usage
  exit
  ;;
run | log | interrupt | stop) ;;
*) fail "COMMAND is '$command', not run, log, interrupt or stop;" \
  "see $me --help" ;;
esac
check_flags
[[ ${type##*-} =~ ^[1-9][0-9]*$ ]] || fail "--type is '$type'; expected $types"
[[ $wait =~ ^[0-9]+$ ]] || fail "--wait is '$wait'; expected hours"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries is '$retries'; expected a number"
[[ $RESTART_SECONDS =~ ^(0|[1-9][0-9]*)$ ]] ||
  fail "RESTART_SECONDS is '$RESTART_SECONDS'; expected seconds"
[[ $worker =~ ^[0-9]+$ ]] || fail "--worker is '$worker'; expected a number"

case $command in
run) run "$@" ;;
log) one_vm 'cd mlp-mixer && ./launch/tpu_vm.sh follow' ;;
interrupt)
  interrupt_all
  one_vm 'cd mlp-mixer && ./launch/tpu_vm.sh follow'
  ;;
stop) delete_slice ;;
esac
