#!/usr/bin/env bash
# usage: launch/local.sh [FLAGS OF mixer.main]
#
# Trains on this machine. The first call makes .venv and installs
# requirements.txt into it. Without --config it trains on the handwritten digits
# inside scikit-learn, which takes a minute on 2 CPU cores. The same command
# started again resumes the run.
#
# Prerequisites: Python 3.11, 3.12 or 3.13 with its venv module. The digits need
# no data set and no accelerator. PYTHON=python3.12 selects the interpreter.
# Flags:
#   -h, --help  print this help
#   any other   goes to mixer.main; .venv/bin/python -m mixer.main --help lists
#               them after the first call. Relative paths start at the
#               repository's root.
# Examples:
#   ./launch/local.sh
#   ./launch/local.sh --config=configs/mixer_s16.py --config.data.dir=/data/tfds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/local.sh
source launch/shell.sh
source launch/venv.sh

config=missing   # --report reads that of the run
for arg in "$@"; do
  case $arg in
  -h | --help)
    usage
    exit
    ;;
  --config | --config=* | -config | -config=*) config=given ;;
  --report | -report | --flagfile | --flagfile=*) config=given ;;
  esac
done
if [[ $config == missing ]]; then
  set -- --config=configs/digits.py "$@"
fi

make_venv
exec .venv/bin/python -m mixer.main "$@"
