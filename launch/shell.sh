#!/usr/bin/env bash
# Functions that the launchers share: errors, help, flags, quoting, dry runs and
# the virtual environment. A launcher sets `me` to its path from the
# repository's root, such as launch/local.sh, and sources this file.
set -euo pipefail

: "${me:?}"
command='' dry_run=no rest=()

# Regular expressions for `check` and `expect`. No leading zeros: bash
# arithmetic would read 010 as 8 and reject 08.
# shellcheck disable=SC2034  # the launchers use these
readonly POSITIVE='[1-9][0-9]*' WHOLE='0|[1-9][0-9]*'

# Prints an error of one line and exits with 2, the code for bad usage.
fail() {
  echo "error: $*" >&2
  exit 2
}

# Prints the comment at the top of the launcher.
usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]%/*}/${me##*/}"
}

# Reads --dry-run, --help, and the flags whose names are in the list $1, given
# as --NAME=VALUE or --NAME VALUE. The value goes to the variable NAME. The
# arguments after -- go to the array `rest`. As bash 3.2 fails on "${rest[@]}"
# when the array is empty, read it as "${rest[@]+"${rest[@]}"}".
flags() {
  local known=" $1 " flag_
  shift
  while [[ $# -gt 0 ]]; do
    flag_=${1%%=*}
    flag_=${flag_#--}
    case $1 in
    --)
      shift
      break
      ;;
    -h | --help)
      usage
      exit
      ;;
    --dry-run) dry_run=yes ;;
    *)
      if [[ $1 != --* || $known != *" $flag_ "* ]]; then
        other "$1" || break
      elif [[ $1 == *=* ]]; then
        printf -v "$flag_" %s "${1#*=}"
      else
        [[ $# -gt 1 ]] || fail "$1 needs a value; see $me --help"
        printf -v "$flag_" %s "$2"
        shift
      fi
      ;;
    esac
    shift
  done
  rest=("$@")
}

# Handles an argument that `flags` does not know. A launcher may replace this
# function; if its version returns false, `flags` leaves the argument and all
# that follow in `rest`.
other() {
  fail "unknown argument $1; put the flags of mixer.main after --"
}

# Exits with the help if `command` asks for it, and with an error if `command`
# is not one of "$@".
check_command() {
  local known choices
  for known in "$@"; do
    [[ $command != "$known" ]] || return 0
  done
  case $command in
  -h | --help | help)
    usage
    exit
    ;;
  esac
  printf -v choices ', %s' "$@"
  fail "COMMAND is '$command'; expected one of ${choices:2}; see $me --help"
}

# Fails unless $2, the value of $1, matches the whole regular expression $3. $4
# says what is expected.
check() {
  [[ -n $2 ]] || fail "$1 is missing; expected $4; see $me --help"
  [[ $2 =~ ^($3)$ ]] || fail "$1 is '$2'; expected $4"
}

# Checks the flag --$1, whose value is in the variable $1, in the same way.
expect() {
  check "--$1" "${!1}" "$2" "$3"
}

# Fails unless RESTART_SECONDS, the pause before a restart, is a number.
check_restart_seconds() {
  check RESTART_SECONDS "$RESTART_SECONDS" "$WHOLE" 'a whole number of seconds'
}

# Fails if there are no flags for mixer.main in "$@".
need_main_flags() {
  [[ $# -gt 0 ]] || fail "the flags of mixer.main are missing; see $me --help"
}

# Prints a note if the flags of mixer.main, from $2 on, do not put the workdir
# into a bucket. $1 says why they should.
note_without_bucket() {
  [[ "${*:2}" == *--workdir?gs://* ]] ||
    echo "note: $1; to keep the run, add --workdir=gs://BUCKET/DIR" >&2
}

# Prints "$@" as one line that a shell splits into the same words.
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

# Runs the command "$@", or prints it in a dry run.
call() {
  if [[ $dry_run == yes ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Makes .venv from the file REQUIREMENTS, by default $1. A dry run prints the
# command that would do so.
set_up_venv() {
  REQUIREMENTS=${REQUIREMENTS:-$1}
  if [[ $dry_run == yes ]]; then
    quoted env "REQUIREMENTS=$REQUIREMENTS" launch/venv.sh
  else
    source launch/venv.sh
    make_venv
  fi
}
