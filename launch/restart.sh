#!/usr/bin/env bash
# usage: launch/restart.sh COMMAND [ARGS]
#
# Runs COMMAND, which is mixer.main or starts it, and runs it again when it
# exits with 42 (it was told to stop, and saved) or above 126 (it was killed, it
# crashed, or it lost a peer process). Any other exit code ends this script too.
# So does the fifth crash in a row within five minutes of the start, because
# another restart would not help. The exit code is that of COMMAND. A line on
# standard output reports each end:
#   mixer.main exited with 134: starting it again
#
# TERM, INT (Ctrl-C) and HUP make COMMAND save and exit: it gets TERM once, and
# the script waits for it. A second Ctrl-C kills it.
#
# Prerequisites: what COMMAND needs. Environment variable:
#   RESTART_SECONDS=10  pause before a restart
# Flags:
#   -h, --help  print this help
set -euo pipefail

# The other launchers source this file after shell.sh, call `restart COMMAND`,
# and find the exit code in `code`. They may replace `describe_exit`,
# `stop_child`, `kill_child` and `again`.
RESTART_SECONDS=${RESTART_SECONDS:-10}
# Longer than the 200 s for which a process waits for its peers at the start: a
# run whose peers never come has to count as a quick crash.
readonly QUICK_SECONDS=300 MOST_QUICK=5
again='starting it again'
child='' stop_sent=no stop_signal='' interrupts=0 code=0

# Prints how the command ended, given its exit code $1.
describe_exit() {
  echo "mixer.main exited with $1"
}

# Tells the process $1 to save and exit.
stop_child() {
  kill -TERM "$1" 2>/dev/null || true
}

# Kills the process group $1.
kill_child() {
  kill -KILL -- "-$1" 2>/dev/null || true
}

# Handles the signal $1: tells the child to stop, once, or kills it at a second
# Ctrl-C. Then it ignores the signals that have nothing left to do: one that
# comes at the moment of the child's end can make bash lose the exit code.
on_signal() {
  if [[ $interrupts -gt 1 && $stop_sent == yes && -n $child ]]; then
    trap '' INT
    kill_child "$child"
  fi
  stop_signal=${stop_signal:-$1}
  if [[ -n $child && $stop_sent == no ]]; then
    trap '' TERM HUP
    stop_sent=yes
    stop_child "$child"
  fi
}

# Sleeps for $1 seconds, or until a signal comes. bash drops an INT that comes
# while it waits for a foreground command, so `sleep` runs in the background. It
# closes file descriptor 9, which may hold a lock.
pause() {
  { sleep "$1" 9>&- & wait "$!"; } 2>/dev/null || true
}

# Waits for the child $1 and sets `code` to its exit code. A signal ends the
# `wait` of bash although the child still runs, hence the loop. bash remembers
# the exit code of a child that has ended.
wait_for() {
  wait "$1" 2>/dev/null || true
  while kill -0 "$1" 2>/dev/null; do
    pause 0.1
    wait "$1" 2>/dev/null || true
  done
  code=0
  wait "$1" 2>/dev/null || code=$?
  [[ -n $stop_signal ]] || return 0
  # That code may be a signal's: a signal also ends the first `wait` after it.
  trap '' TERM INT HUP
  wait "$1" 2>/dev/null || true
  code=0
  wait "$1" 2>/dev/null || code=$?
}

# Runs the command "$@", restarts it as the help says, and sets `code`.
restart() {
  local started until quick=0
  check_restart_seconds
  # A process group for each child, so that Ctrl-C reaches only this script.
  set -m
  trap 'on_signal TERM' TERM
  trap 'interrupts=$((interrupts + 1)); on_signal INT' INT
  trap 'on_signal HUP' HUP
  while true; do
    started=$SECONDS stop_sent=no
    "$@" </dev/null &
    child=$!
    # A signal may have come before `child` was set.
    [[ -z $stop_signal || $stop_sent == yes ]] || on_signal "$stop_signal"
    wait_for "$child"
    child=''
    [[ -z $stop_signal ]] || break
    [[ $code == 42 || $code -gt 126 ]] || break
    if [[ $code != 42 && $((SECONDS - started)) -lt $QUICK_SECONDS ]]; then
      quick=$((quick + 1))
    else
      quick=0
    fi
    if [[ $quick == "$MOST_QUICK" ]]; then
      echo "$(describe_exit "$code"): giving up after $quick crashes in a" \
        "row, each within $QUICK_SECONDS seconds of the start"
      return
    fi
    echo "$(describe_exit "$code"): $again"
    # Many short pauses: a signal that comes just before a long one would not
    # end it.
    until=$((SECONDS + RESTART_SECONDS))
    while [[ -z $stop_signal && $SECONDS -lt $until ]]; do
      pause 1
    done
    if [[ -n $stop_signal ]]; then   # nothing runs, and everything is saved
      code=42
      break
    fi
  done
  describe_exit "$code"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  me=launch/restart.sh
  source "$(dirname "$0")/shell.sh"
  case ${1:-} in
  -h | --help) usage ;;
  '') fail "the command is missing; see $me --help" ;;
  *)
    [[ $1 != -- ]] || shift
    type -- "${1:-}" >/dev/null 2>&1 ||
      fail "'${1:-}' is no command; see $me --help"
    restart "$@"
    exit "$code"
    ;;
  esac
fi
