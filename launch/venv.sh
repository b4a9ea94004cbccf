#!/usr/bin/env bash
# usage: launch/venv.sh [--help]
#
# Makes the virtual environment .venv and installs requirements.txt into it.
# Does nothing if that is done already. The other launchers do the same when
# they start, so you rarely need to run this yourself.
#
# Prerequisites: Python 3.11, 3.12 or 3.13 with its venv module, and access to a
# package index. Environment variables:
#   PYTHON=python3.12      the interpreter; default: the newest suitable one on
#                          PATH
#   REQUIREMENTS=FILE      what to install; default: requirements.txt
# Examples:
#   ./launch/venv.sh
#   REQUIREMENTS=launch/requirements-cuda.txt ./launch/venv.sh
set -euo pipefail

REQUIREMENTS=${REQUIREMENTS:-requirements.txt}

# Prints the path of a suitable Python. Tries every candidate: a name on PATH
# may not run (version managers leave such shims), and a Python may lack venv
# (Debian packages it separately).
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
  fail "found no Python 3.11, 3.12 or 3.13 with the venv module in $where;" \
    "install one (apt install python3.11-venv, brew install python@3.12) or" \
    "set PYTHON=/path/to/python3.12"
}

# Prints the version of the interpreter $1, or nothing if it does not run.
version_of() {
  "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null
}

# Prints the requirements file $1 and the files that it includes, one a line.
files_of() {
  local line
  echo "$1"
  while IFS= read -r line; do
    case $line in
    '-r ../'*) echo "${line#-r ../}" ;;   # relative to launch/
    esac
  done <"$1"
}

# Prints the stamp of an installation of the requirements file $2 for the
# interpreter $1: the Python version, a checksum of the requirements, the file.
stamp_of() {
  local version
  version=$(version_of "$1") &&
    echo "$version $(files_of "$2" |
      while IFS= read -r file; do cat "$file"; done | cksum) $2"
}

# Returns whether .venv/installed contains the stamp $1.
installed() {
  local line
  [[ -s .venv/installed ]] || return
  while IFS= read -r line; do
    [[ $line != "$1" ]] || return 0
  done <.venv/installed
  return 1
}

# Makes .venv from the file REQUIREMENTS unless that is done already. Call it in
# the repository's root. It writes the stamps last, so the next call repeats an
# installation that was interrupted.
make_venv() {
  local have=.venv/bin/python python file
  [[ -r $REQUIREMENTS ]] ||
    fail "REQUIREMENTS=$REQUIREMENTS is not a readable file; expected one" \
      "such as launch/requirements-cuda.txt"
  if installed "$(stamp_of "${PYTHON:-$have}" "$REQUIREMENTS")"; then
    return
  fi
  python=$(find_python) || exit
  rm -f .venv/installed
  echo "Installing $REQUIREMENTS into .venv; this takes a few minutes." >&2
  if [[ $(version_of "$have") == "$(version_of "$python")" ]]; then
    "$python" -m venv .venv
  else
    "$python" -m venv --clear .venv
  fi
  if ! "$have" -m pip install --disable-pip-version-check \
    -r "$REQUIREMENTS" >&2; then
    echo "error: the installation failed, see above; run the same command" \
      "again to repeat it" >&2
    exit 1
  fi
  while IFS= read -r file; do
    stamp_of "$have" "$file"
  done < <(files_of "$REQUIREMENTS") >.venv/installed.new
  mv .venv/installed.new .venv/installed
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  cd "$(dirname "$0")/.."
  me=launch/venv.sh
  source launch/shell.sh
  case ${1:-} in
  -h | --help) usage ;;
  *) make_venv ;;
  esac
fi
