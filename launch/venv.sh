#!/usr/bin/env bash
# Makes .venv from requirements.txt and does nothing when that is done already:
#   ./launch/venv.sh            the newest Python of 3.11, 3.12, 3.13 on PATH
#   PYTHON=python3.12 ./launch/venv.sh
# local.sh and test.sh source this file and call make_venv in the same way.

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

# What is installed once all is well: the Python and a checksum of the pins.
stamp_of() {
  local version
  version=$(version_of "$1") && echo "$version $(cksum <requirements.txt)"
}

# Call it from the repository's root. The stamp is written last, so an install
# that was interrupted is taken up again by the next call.
make_venv() {
  local stamp=.venv/installed have=.venv/bin/python python
  if [[ -s $stamp ]] &&
    [[ $(cat "$stamp") == "$(stamp_of "${PYTHON:-$have}")" ]]; then
    return
  fi
  python=$(find_python) || exit
  rm -f "$stamp"
  echo "Installing requirements.txt into .venv: once, some minutes." >&2
  if [[ $(version_of "$have") == "$(version_of "$python")" ]]; then
    "$python" -m venv .venv
  else
    "$python" -m venv --clear .venv
  fi
  if ! "$have" -m pip install --disable-pip-version-check \
    -r requirements.txt >&2; then
    echo "error: the install failed, see above; run it again to go on" >&2
    exit 1
  fi
  stamp_of "$have" >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  set -euo pipefail
  cd "$(dirname "$0")/.."
  make_venv
fi
