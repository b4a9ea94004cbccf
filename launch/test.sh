#!/usr/bin/env bash
# usage: launch/test.sh [--slow | --slow-only] [FLAGS OF pytest]
#
# Runs the tests. The quick ones take a few minutes on 2 CPU cores. The first
# call makes .venv and installs requirements.txt into it.
#
# Prerequisites: Python 3.11, 3.12 or 3.13 with its venv module.
# PYTHON=python3.12 selects the interpreter. The slow tests that compile for
# TPUs also need TPU_LIBRARY_PATH=PATH/TO/libtpu.so, from an installed libtpu;
# without it they are skipped. They need no TPU.
# Flags:
#   --slow       run the slow tests too; --all is the same
#   --slow-only  run only the slow tests
#   -h, --help   print this help
#   any other    goes to pytest
# Example:
#   ./launch/test.sh tests/test_models.py -k permutation
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/test.sh
source launch/shell.sh
source launch/venv.sh

case ${1:-} in
-h | --help)
  usage
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
# --dist=loadfile runs all tests of a file in one process, so that they share
# what JAX has compiled. Each process has its own JAX: on a big machine memory,
# not the number of cores, limits the number of processes.
exec .venv/bin/python -m pytest -n logical --maxprocesses=8 --dist=loadfile \
  --no-loadscope-reorder "$@"
