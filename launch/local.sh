#!/usr/bin/env bash
# usage: launch/local.sh [FLAGS OF mixer.main]
#
# Trains on this machine. The first call makes .venv and installs
# requirements.txt into it; PYTHON=python3.12 picks the interpreter. Without
# --config it trains on the handwritten digits inside scikit-learn, which need
# no data set and no accelerator:
#   ./launch/local.sh
#   ./launch/local.sh --config=configs/mixer_s16.py --config.data.dir=/data/tfds
# It runs in the repository's root, so relative paths are relative to that. The
# same command started again resumes the run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

config=missing
for arg in "$@"; do
  case $arg in
  --help) sed -n '2,/^set /s/^# \{0,1\}//p' launch/local.sh ;;
  --config | --config=* | -config | -config=*) config=given ;;
  esac
done
if [[ $config == missing ]]; then
  set -- --config=configs/digits.py "$@"
fi

make_venv
exec .venv/bin/python -m mixer.main "$@"
