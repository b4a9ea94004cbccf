#!/usr/bin/env bash
# What the launchers share, who source this file: errors, help, flags, quoting
# and dry runs. Each has set `me` to its path, from the repository's root.
set -euo pipefail

: "${me:?}"
known='' dry_run=no

# One line on stderr and the exit code of bad usage.
fail() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the top of the script.
usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]%/*}/${me##*/}"
}

# Sets the variable of --NAME=VALUE or --NAME VALUE, where `known` has NAME, and
# `taken` to the number of words that this was; false if NAME is unknown.
# shellcheck disable=SC2034  # `taken` is for the caller
flag() {
  local flag_=${1%%=*}
  [[ $flag_ == --* && " $known " == *" ${flag_#--} "* ]] || return 1
  flag_=${flag_#--}
  taken=1
  if [[ $1 == *=* ]]; then
    printf -v "$flag_" %s "${1#*=}"
  else
    [[ $# -gt 1 ]] || fail "$1 wants a value; see $me --help"
    printf -v "$flag_" %s "$2"
    taken=2
  fi
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
