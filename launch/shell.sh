#!/usr/bin/env bash
# What the launchers share, who source this file: errors, help, flags, quoting
# and dry runs. Each has set `me` to its path, from the repository's root.
set -euo pipefail

: "${me:?}"
dry_run=no rest=()

# One line on stderr and the exit code of bad usage.
fail() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the top of the script.
usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]%/*}/${me##*/}"
}

# Reads --dry-run, --help, and --NAME=VALUE or --NAME VALUE for each NAME in $1,
# which sets the variable NAME. `rest` is then what stands after a --.
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
        [[ $# -gt 1 ]] || fail "$1 wants a value; see $me --help"
        printf -v "$flag_" %s "$2"
        shift
      fi
      ;;
    esac
    shift
  done
  rest=("$@")
}

# What `flags` does with another argument; one that is not its at all, and all
# that follow, are left by returning false. A launcher may define its own.
other() {
  fail "unknown argument $1; mixer.main's own go after --"
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

# Runs "$@", or prints it in a dry run.
call() {
  if [[ $dry_run == yes ]]; then
    quoted "$@"
  else
    "$@"
  fi
}
