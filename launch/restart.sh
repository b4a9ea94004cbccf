#!/usr/bin/env bash
# usage: launch/restart.sh COMMAND [ARGS]
#
# Runs COMMAND, which is mixer.main or starts it, and starts it again when it
# exits with 42 (told to stop, and saved) or above 126 (killed, crashed, a peer
# lost). Any other code ends this script too, and so does the fifth crash in a
# row within five minutes of a start, which will not mend by itself. TERM, INT
# and HUP are passed on, once and as TERM; what COMMAND then ends with, having
# saved, is the exit code. A second Ctrl-C does not wait for that. One line says
# why it ended:
#   mixer.main exited with 134: starting it again
# RESTART_SECONDS=10 is the pause before a start. The other launchers source
# this file after shell.sh, call `restart COMMAND` and find the code in `code`.
set -euo pipefail

RESTART_SECONDS=${RESTART_SECONDS:-10}
readonly QUICK_SECONDS=300 MOST_QUICK=5   # JAX waits 200 s for all to meet
again='starting it again'
child='' passed=no stopping='' interrupts=0 code=0

# What to say of a command that ended with code $1, and how to tell the process
# $1 to stop: a launcher may know better, and define its own.
how_it_ended() {
  echo "mixer.main exited with $1"
}

pass_on() {
  kill -TERM "$1" 2>/dev/null || true
}

# The same for who will not wait.
kill_off() {
  kill -KILL -- "-$1" 2>/dev/null || true
}

# Notes the signal that asked, and passes it on if there is somebody to.
stop_by() {
  if [[ $interrupts -gt 1 && $passed == yes && -n $child ]]; then
    kill_off "$child"
  fi
  stopping=${stopping:-$1}
  if [[ -n $child && $passed == no ]]; then
    passed=yes
    pass_on "$child"
  fi
}

# Sleeps, but not through a signal: bash drops an INT that comes while it waits
# for a command in the foreground.
pause() {
  { sleep "$1" 9>&- & wait "$!"; } 2>/dev/null || true   # 9 may be a lock
}

# Sets `code` to that of the child $1, when it has ended. A signal ends bash's
# wait, not the child; and bash remembers the code of one who is gone.
code_of() {
  wait "$1" 2>/dev/null || true
  while kill -0 "$1" 2>/dev/null; do
    pause 0.1
    wait "$1" 2>/dev/null || true
  done
  code=0
  wait "$1" 2>/dev/null || code=$?
}

restart() {
  local started until quick=0
  [[ $RESTART_SECONDS =~ ^(0|[1-9][0-9]*)$ ]] ||
    fail "RESTART_SECONDS is '$RESTART_SECONDS'; expected seconds"
  # A process group for each child, so that Ctrl-C comes here only.
  set -m
  trap 'stop_by TERM' TERM
  trap 'interrupts=$((interrupts + 1)); stop_by INT' INT
  trap 'stop_by HUP' HUP
  while true; do
    started=$SECONDS passed=no
    "$@" </dev/null &
    child=$!
    [[ -z $stopping || $passed == yes ]] || stop_by "$stopping"
    code_of "$child"
    child=''
    [[ -z $stopping ]] || break
    [[ $code == 42 || $code -gt 126 ]] || break
    if [[ $code != 42 && $((SECONDS - started)) -lt $QUICK_SECONDS ]]; then
      quick=$((quick + 1))
    else
      quick=0
    fi
    if [[ $quick == "$MOST_QUICK" ]]; then
      echo "$(how_it_ended "$code"): giving up, as it has crashed $quick" \
        "times in a row within $QUICK_SECONDS seconds of its start"
      return
    fi
    echo "$(how_it_ended "$code"): $again"
    # Looks each second: a signal just before a long sleep would not end it.
    until=$((SECONDS + RESTART_SECONDS))
    while [[ -z $stopping && $SECONDS -lt $until ]]; do
      pause 1
    done
    if [[ -n $stopping ]]; then   # nothing runs, and all is saved
      code=42
      break
    fi
  done
  how_it_ended "$code"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  me=launch/restart.sh
  source "$(dirname "$0")/shell.sh"
  case ${1:-} in
  -h | --help) usage ;;
  '') fail "the command is missing; see $me --help" ;;
  *)
    restart "$@"
    exit "$code"
    ;;
  esac
fi
