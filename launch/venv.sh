#!/usr/bin/env bash
# Makes .venv from requirements.txt and does nothing when that is done already:
#   ./launch/venv.sh            the newest Python of 3.11, 3.12, 3.13 on PATH
#   PYTHON=python3.12 ./launch/venv.sh
#   REQUIREMENTS=launch/requirements-cuda.txt ./launch/venv.sh
# The other launchers source this file and call make_venv in the same way.
set -euo pipefail

REQUIREMENTS=${REQUIREMENTS:-requirements.txt}

# One line on stderr and the exit code of bad usage.
fail() {
  echo "error: $*" >&2
  exit 2
}

# PATH may hold names that do not run (version managers leave such shims) or a
# Python without venv (Debian packs it apart), so each candidate is tried.
find_python() {
  local suits='import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
  local names=(python3.13 python3.12 python3.11 python3 python) where=PATH
  local name path
  if [[ -n ${PYTHON:-} ]]; then
    names=("$PYTHON") where=PYTHON=$PYTHON
  fi
  for name in "${names[@]}"; do
    while IFS= read -r path; do
      if "$path" -c "$suits" >/dev/null 2>&1; then
        echo "$path"
        return
      fi
    done < <(type -aP "$name")
  done
  fail "no Python 3.11, 3.12 or 3.13 with its venv module in $where; install" \
    "one (apt install python3.11-venv, brew install python@3.12) or set" \
    "PYTHON=/path/to/python3.12"
}

version_of() {
  "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null
}

# The files of pins that $1 stands for: itself, and what it includes.
files_of() {
  local line
  echo "$1"
  while IFS= read -r line; do
    case $line in
    '-r ../'*) echo "${line#-r ../}" ;;   # from launch/
    esac
  done <"$1"
}

# What is installed once all is well, a line a file of pins: the Python $1, a
# checksum of the pins with those they include, and the file $2.
stamp_of() {
  local version
  version=$(version_of "$1") &&
    echo "$version $(files_of "$2" |
      while IFS= read -r file; do cat "$file"; done | cksum) $2"
}

installed() {
  local line
  [[ -s .venv/installed ]] || return
  while IFS= read -r line; do
    [[ $line != "$1" ]] || return 0
  done <.venv/installed
  return 1
}

# Call it from the repository's root. The stamp is written last, so an install
# that was interrupted is taken up again by the next call.
make_venv() {
  local have=.venv/bin/python python file
  [[ -r $REQUIREMENTS ]] ||
    fail "REQUIREMENTS=$REQUIREMENTS is no file; expected such as" \
      "launch/requirements-cuda.txt"
  if installed "$(stamp_of "${PYTHON:-$have}" "$REQUIREMENTS")"; then
    return
  fi
  python=$(find_python) || exit
  rm -f .venv/installed
  echo "Installing $REQUIREMENTS into .venv: once, some minutes." >&2
  if [[ $(version_of "$have") == "$(version_of "$python")" ]]; then
    "$python" -m venv .venv
  else
    "$python" -m venv --clear .venv
  fi
  if ! "$have" -m pip install --disable-pip-version-check \
    -r "$REQUIREMENTS" >&2; then
    echo "error: the install failed, see above; run it again to go on" >&2
    exit 1
  fi
  while IFS= read -r file; do
    stamp_of "$have" "$file"
  done < <(files_of "$REQUIREMENTS") >.venv/installed.new
  mv .venv/installed.new .venv/installed
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  cd "$(dirname "$0")/.."
  make_venv
fi
