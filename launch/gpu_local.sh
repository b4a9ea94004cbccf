#!/usr/bin/env bash
# usage: launch/gpu_local.sh [FLAGS] [--] FLAGS OF mixer.main
#
# Trains on the NVIDIA GPUs of this machine, and restarts a run that was stopped
# or has crashed. The first call makes .venv.
#
# Prerequisites: Linux; an NVIDIA driver of version 580 or newer; Python 3.11,
# 3.12 or 3.13 with its venv module.
# Flags:
#   --processes=N     number of processes, default 1. One process uses all GPUs;
#                     of several, process I uses GPU I.
#   --processes=gpus  one process for each GPU
#   --dry-run         print the commands instead of running them
#   -h, --help        print this help
# Environment variables:
#   CUDA_VISIBLE_DEVICES=2,3  use only these GPUs
#   JAX_PLATFORMS=cpu         use the CPU, to try several processes anywhere
#   REQUIREMENTS=FILE         packages to install; default:
#                             launch/requirements-cuda.txt
#   PYTHON=python3.12         the interpreter
#   RESTART_SECONDS=10        pause before a restart
#   GRACE_SECONDS=60          see below
# Example:
#   launch/gpu_local.sh --config=configs/mixer_b16.py --config.data.dir=/data
#
# With several processes, the output of process 0 is shown and that of the
# others goes to files. When a process ends, the others have GRACE_SECONDS to
# end too; then they are killed. The exit code of the first process that failed
# decides whether all are restarted (see launch/restart.sh --help). TERM or
# Ctrl-C makes all save, and the script exits with 42. A second Ctrl-C kills
# them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/gpu_local.sh
source launch/shell.sh
source launch/restart.sh

GRACE_SECONDS=${GRACE_SECONDS:-60}
python=.venv/bin/python
logs=LOGS devices=()

# Sets `words` to the command of process $1, which meets the others on port $2.
set_words() {
  words=(env)
  if [[ ${#devices[@]} -gt 0 ]]; then
    words+=("CUDA_VISIBLE_DEVICES=${devices[$1]}")
  fi
  # Without no_grpc_proxy, gRPC uses a proxy even for the loopback address.
  words+=(no_grpc_proxy=127.0.0.1 "$python" -m mixer.main "${arguments[@]}"
    "--coordinator=127.0.0.1:$2" "--num_processes=$processes"
    "--process_id=$1")
}

# Runs `words` as process $1 and writes its number and exit code to fd 8.
# run_group sends TERM to the whole process group: the program handles it, and
# this shell only waits. bash reports a killed child on its stderr, so that goes
# to /dev/null, and the program's own stderr goes through fd 7.
run_process() {
  local end=0
  trap : TERM
  if [[ $1 == 0 ]]; then
    { "${words[@]}" 2>&7 7>&- 8>&-; } 7>&2 2>/dev/null || end=$?
  else
    { "${words[@]}" >>"$logs/$1.log" 2>&1 8>&-; } 2>/dev/null || end=$?
  fi
  echo "$1 $end" >&8
}

# Runs all processes and exits with the code of the first that failed. TERM
# tells all to save and end. USR1 kills them.
run_group() {
  local port i end members=() first='' deadline='' stop=no stop_sent=no
  port=$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')
  rm -f "$logs/ends" "$logs/why"
  mkfifo "$logs/ends"
  exec 8<>"$logs/ends"
  set -m
  trap 'stop=yes' TERM
  trap 'deadline=$SECONDS' USR1
  for ((i = 0; i < processes; i++)); do
    set_words "$i" "$port"
    run_process "$i" &
    members[i]=$!
  done
  while [[ ${#members[@]} -gt 0 ]]; do
    if [[ $stop == yes && $stop_sent == no ]]; then
      stop_sent=yes
      signal_groups TERM "${members[@]}"
    elif read -r -t 1 -u 8 i end; then
      unset "members[i]"
      deadline=${deadline:-$((SECONDS + GRACE_SECONDS))}
      if [[ $end != 0 && -z $first ]]; then
        first=$end
        describe_failure "$i" "$end" >"$logs/why"
      fi
    elif [[ -n $deadline && $SECONDS -ge $deadline ]]; then
      signal_groups KILL "${members[@]}"
      first=${first:-137}
      break
    fi
  done
  exit "${first:-0}"
}

# Sends the signal $1 to the process groups from $2 on.
signal_groups() {
  local pid
  for pid in "${@:2}"; do
    kill "-$1" -- "-$pid" 2>/dev/null || true
  done
}

# Prints that process $1 ended with the code $2, and where its output is.
describe_failure() {
  local name='' where=''
  [[ $2 -le 128 ]] || name=$(kill -l "$(($2 - 128))" 2>/dev/null || true)
  [[ $1 == 0 ]] || where=", see $logs/$1.log"
  echo "process $1 of $processes exited with $2${name:+ ($name)}$where"
}

# Replaces the function of restart.sh.
describe_exit() {
  if [[ $1 != 0 && $1 != 42 && -s $logs/why ]]; then
    cat "$logs/why"
  else
    echo "mixer.main exited with $1"
  fi
}

# Prints the names of this machine's GPUs, one a line.
gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    echo "${CUDA_VISIBLE_DEVICES//,/$'\n'}"
  else
    nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true
  fi
}

# Sets `devices` to one GPU for each process, and `processes` if it is `gpus`.
assign_gpus() {
  if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
    [[ $processes != gpus ]] ||
      fail "--processes=gpus needs GPUs, but JAX_PLATFORMS=cpu hides them;" \
        "expected a number"
    return
  fi
  local asked=$processes
  mapfile -t devices < <(gpus)
  if [[ $processes == gpus ]]; then
    processes=${#devices[@]}
  elif [[ $dry_run == yes && ${#devices[@]} == 0 ]]; then
    mapfile -t devices < <(seq 0 "$((processes - 1))")
  fi
  [[ $processes -gt 0 && $processes -le ${#devices[@]} ]] ||
    fail "--processes=$asked: this machine has ${#devices[@]} GPUs, according" \
      "to CUDA_VISIBLE_DEVICES or nvidia-smi; JAX_PLATFORMS=cpu needs none"
}

# ---- The command line.

processes=1
# The first argument that is no flag of this launcher belongs to mixer.main.
other() {
  return 1
}
flags processes "$@"
set -- "${rest[@]+"${rest[@]}"}"
need_main_flags "$@"
expect processes "gpus|$POSITIVE" 'a number or gpus'
[[ $processes == 1 ]] || assign_gpus

arguments=("$@")
pins=launch/requirements-cuda.txt
[[ ${JAX_PLATFORMS:-} != cpu ]] || pins=requirements.txt
set_up_venv "$pins"

if [[ $dry_run == yes ]]; then
  if [[ $processes == 1 ]]; then
    quoted "$python" -m mixer.main "$@"
    exit
  fi
  for ((i = 0; i < processes; i++)); do
    set_words "$i" PORT
    quoted "${words[@]}"
  done
  exit
fi

if [[ $processes == 1 ]]; then
  restart "$python" -m mixer.main "$@"
else
  logs=$(mktemp -d "${TMPDIR:-/tmp}/mlp-mixer.XXXXXX")
  again="starting all $processes again"
  # Replaces the function of restart.sh: run_group kills its processes.
  kill_child() {
    kill -USR1 "$1" 2>/dev/null || true
  }
  echo "the output of processes 1 to $((processes - 1)) goes to $logs"
  restart run_group
fi
exit "$code"
