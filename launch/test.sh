#!/usr/bin/env bash
# usage: launch/test.sh [--slow | --slow-only] [FLAGS OF pytest]
#
# Runs the tests: the quick half, which takes a few minutes on two cores;
# --slow (or --all) runs the proofs of minutes as well, --slow-only just those.
#   ./launch/test.sh tests/test_models.py -k permutation
# TPU_LIBRARY_PATH=.../libtpu.so, of an installed libtpu, lets slow tests
# compile for TPUs that are not here; without it they are skipped.
# The first call makes .venv and installs requirements.txt into it;
# PYTHON=python3.12 picks the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

case ${1:-} in
-h | --help)
  sed -n '2,/^set /s/^# \{0,1\}//p' launch/test.sh
  exit
  ;;
--slow | --all)
  shift
  set -- -m "" "$@"
  ;;
--slow-only)
  shift
  set -- -m slow "$@"
  ;;
esac

make_venv
# One file, one process: its tests share what JAX compiled. Each process holds a
# JAX of its own, so a big machine's memory, not its cores, sets the limit.
exec .venv/bin/python -m pytest -n logical --maxprocesses=8 --dist=loadfile \
  --no-loadscope-reorder "$@"
