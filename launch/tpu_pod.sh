#!/usr/bin/env bash
# usage: launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE --type=TYPE [FLAGS]
#                          [-- ARGS]
#
# Trains on a slice of several Cloud TPU VMs (v2 to v6e), which it requests as a
# queued resource. COMMAND is one of
#   run        request the slice and wait for it, or use the one of that name;
#              copy the files that git tracks (with uncommitted changes) to all
#              VMs; install; run `python -m mixer.main ARGS` on all VMs; follow
#              the log of the first one; exit with the run's exit code. A slice
#              that is preempted is deleted and requested again, and the run
#              resumes from its checkpoint.
#   log        follow the log of the first VM, or of --worker=N
#   interrupt  make the run save and end; the slice stays
#   stop       delete the slice and its disks, which ends the charges; a `run`
#              that follows it ends with 1
#
# Prerequisites: the gcloud CLI, logged in; a project with the Cloud TPU API
# enabled and quota for the type; git and tar. All VMs read the data and write
# the workdir, so both belong in a bucket: a TFDS data set as TFRecord files.
# Any other data has to be at the same path on every VM, such as in a bucket
# mounted with gcsfuse.
# Flags:
#   --project=ID    default: the project that gcloud is set to
#   --type=TYPE     such as v3-32, v4-16, v5litepod-16, v5p-16 or v6e-16
#   --version=NAME  runtime image; default: the right one for the type
#   --spot          cheaper VMs, which Google may preempt at any time
#   --wait=HOURS    how long to wait for the slice, default 24
#   --retries=N     how many preemptions to allow, default 20
#   --worker=N      the VM whose log is followed, default 0
#   --dry-run       print the commands for a new slice instead of running them
#   -h, --help      print this help
# Example:
#   launch/tpu_pod.sh run --name=mixer --zone=europe-west4-a --type=v3-32 \
#     --spot -- --config=configs/mixer_b16.py --workdir=gs://BUCKET/b16 \
#     --config.data.dir=gs://BUCKET/tfds
#
# On each VM, mixer.main is restarted when it exits with 42 or above 126 (see
# launch/restart.sh --help). When one VM loses it, the processes of the others
# end within config.run.heartbeat_timeout_seconds (30). The pause before a
# restart, RESTART_SECONDS=40, has to be longer than that. If this machine loses
# its connection, run the same command again: it follows the run in progress.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/tpu_pod.sh
source launch/tpu.sh

RESTART_SECONDS=${RESTART_SECONDS:-40}
POLL_SECONDS=${POLL_SECONDS:-30}
readonly MOST_SILENT=10   # polls in a row without an answer
workers=--worker=all
preemptions=0 follower='' complaint=/dev/null seen=no

# ---- The slice.

# Runs the gcloud command "$@" for queued resources.
queued_resource() {
  call gcloud compute tpus queued-resources "$@" "--zone=$zone" \
    ${project:+"--project=$project"}
}

state_of_request() {
  queued_resource describe "$name" '--format=value(state.state)'
}

request_slice() {
  queued_resource create "$name" "--node-id=$name" \
    "--accelerator-type=$type" "--runtime-version=$version" ${spot:+"$spot"}
}

delete_slice() {
  queued_resource delete "$name" --force --quiet
}

# Returns whether waiting does not help against the error in `complaint`.
is_lasting() {
  local errors='required property|permission|unauthenticated|active account'
  errors+='|invalid[_ ](argument|value|choice)|unrecognized arguments'
  grep -qiE "$errors|command not found" "$complaint"
}

# Exits with gcloud's error in `complaint`.
end_refused() {
  local said
  said=$(sed -n 's/^ERROR: *//p' "$complaint" | head -n 1)
  end 2 "gcloud refused: ${said:-$(tail -n 1 "$complaint")} Check --project," \
    "--zone, --type, and that gcloud is installed, logged in and allowed to" \
    "use Cloud TPUs; waiting would not help"
}

# Prints the state of the slice: none (there is no request), waiting, ready,
# gone (preempted), failed, refused (gcloud cannot be used like this) or unknown
# (an error that may pass, such as one of the network).
state_of_slice() {
  local state
  if ! state=$(state_of_request 2>"$complaint"); then
    if is_lasting; then
      echo refused
    elif grep -qi 'not.found' "$complaint"; then
      echo none
    else
      cat "$complaint" >&2
      echo unknown
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

# Requests the slice where necessary, and returns when it is ready.
wait_for_slice() {
  local now polls=0 most
  most=$(awk "BEGIN { print int($wait * 3600 / ($POLL_SECONDS + 0.001)) }")
  while now=$(state_of_slice) && [[ $now != ready ]]; do
    case $now in
    none)
      # Whoever deleted it does not want to pay for another one.
      [[ $seen == no ]] ||
        end 1 "the slice was deleted, as by $me stop; run this again to" \
          "request another one"
      if ! request_slice 2>"$complaint"; then
        ! is_lasting || end_refused
        cat "$complaint" >&2
        end 1 "could not request the slice; see above"
      fi
      cat "$complaint" >&2
      ;;
    refused) end_refused ;;
    waiting) seen=yes ;;
    failed)
      end 1 "the request for the slice failed:" \
        "$(queued_resource describe "$name" \
          '--format=value(state.failedData.error.message)' || true); fix" \
        "that, run $me stop --name=$name --zone=$zone, and run this again"
      ;;
    gone)
      seen=no   # this script deletes it
      [[ $preemptions -lt $retries ]] ||
        end 1 "the slice was preempted more than --retries=$retries times;" \
          "run this again to continue"
      # If it cannot be deleted, the next poll tells whether it still exists.
      if delete_slice || [[ $(state_of_slice) == none ]]; then
        preemptions=$((preemptions + 1))
        echo "the slice was preempted: requesting another one," \
          "$preemptions of --retries=$retries"
        continue
      fi
      ;;
    esac
    [[ $polls -lt $most ]] ||
      end 1 "no slice after --wait=$wait hours; the request remains: run this" \
        "again to keep waiting, or cancel it with $me stop --name=$name" \
        "--zone=$zone"
    polls=$((polls + 1))
    sleep "$POLL_SECONDS"
  done
  seen=yes
}

# ---- The run.

# Runs the command line $1 on the VM --worker.
on_one_vm() {
  workers=--worker=$worker on_vm "$1"
}

start_all() {
  on_vm "cd mlp-mixer && RESTART_SECONDS=$RESTART_SECONDS\
 ./launch/tpu_vm.sh start -- $(quoted "$@")"
}

interrupt_all() {
  on_vm "$remote halt"
}

# Prints the state of the run on each VM, one a line, or nothing if a VM does
# not answer.
outcomes() {
  local lines
  lines=$(on_vm "$remote outcome" 2>/dev/null) || return 0
  sed -n 's/^outcome //p' <<<"$lines"
}

# Makes sure that the log of the VM is followed, beginning at line $1.
show_log() {
  if [[ -z $follower ]] || ! kill -0 "$follower" 2>/dev/null; then
    set -m   # a process group, because gcloud starts other processes
    on_one_vm "$remote follow -- $1" </dev/null &
    set +m
    follower=$!
  fi
}

hide_log() {
  [[ -z $follower ]] || kill -- "-$follower" 2>/dev/null || true
  follower=''
}

# Exits with the run's code when the run has ended. Returns when the slice is
# gone or deleted, or has not answered for long.
watch() {
  local now lines worst code host silent=0 from=+1
  while [[ $silent -lt $MOST_SILENT ]]; do
    show_log "$from"
    from=0
    sleep "$POLL_SECONDS"
    now=$(state_of_slice)
    [[ $now != gone && $now != none ]] || break
    [[ $now != ready ]] || lines=$(outcomes)
    if [[ $now != ready || -z $lines ]]; then
      silent=$((silent + 1))
      continue
    fi
    silent=0
    # A failure on any VM counts before a 42, and a 42 before VMs that still
    # run.
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

# Exits with the code $1, after the rest of the log and the error from $2 on.
end() {
  sleep 1
  hide_log
  [[ $# == 1 ]] || echo "error: ${*:2}" >&2
  exit "$1"
}

run() {
  need_main_flags "$@"
  need_git
  note_without_bucket 'the VMs do not share a disk, and lose theirs' "$@"
  if [[ $dry_run == yes ]]; then
    state_of_request
    request_slice
    state_of_request
    state_of_vm
    copy_checkout
    start_all "$@"
    on_one_vm "$remote follow -- +1"
    on_vm "$remote outcome"
    return
  fi
  complaint=$(mktemp)
  trap 'hide_log; rm -f "$complaint"' EXIT
  while true; do
    wait_for_slice
    if [[ $(outcomes) == *going* ]]; then
      echo "a run is already in progress: following it, whatever its flags"
      watch "$@"
    elif copy_checkout && start_all "$@"; then
      watch "$@"
    elif [[ $(state_of_slice) == ready ]]; then
      end 1 "the slice is ready but could not be set up; see above"
    fi
  done
}

# ---- The command line.

command=${1:-}
[[ $# -eq 0 ]] || shift
wait=24 retries=20 worker=0
types='a type such as v3-32, v4-16, v5litepod-16, v5p-16 or v6e-16'
flags 'name zone project type version wait retries worker' "$@"
set -- "${rest[@]+"${rest[@]}"}"

check_command run log interrupt stop
check_flags
[[ ${type##*-} =~ ^($POSITIVE)$ ]] || fail "--type is '$type'; expected $types"
[[ $command != run || ! ${type##*-} =~ ^[1248]$ ]] ||
  fail "--type=$type is a single VM; expected $types; for one VM use" \
    "launch/tpu_vm.sh run --type=$type"
expect wait "$WHOLE" 'a number of hours'
expect retries "$WHOLE" 'a number'
expect worker "$WHOLE" 'a number'
check_restart_seconds

case $command in
run) run "$@" ;;
log) on_one_vm "$remote follow" ;;
interrupt)
  interrupt_all
  on_one_vm "$remote follow"
  ;;
stop) delete_slice ;;
esac
