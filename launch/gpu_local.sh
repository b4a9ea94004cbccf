#!/usr/bin/env bash
# usage: launch/gpu_local.sh [FLAGS] [--] FLAGS OF mixer.main
#
# Trains on the NVIDIA GPUs of this machine, and starts a run again that was
# stopped or has crashed. The first call makes .venv from
# launch/requirements-cuda.txt, for drivers from 580 on; REQUIREMENTS=FILE names
# other pins, PYTHON=python3.12 the interpreter.
#   launch/gpu_local.sh --config=configs/mixer_b16.py --config.data.dir=/data
# FLAGS:
#   --processes=N  default 1, which has all the GPUs; of several, process I has
#                  GPU I alone. `gpus` is as many as there are GPUs.
#   --dry-run      print the commands, and run none of them
# CUDA_VISIBLE_DEVICES=2,3 leaves the other GPUs alone. JAX_PLATFORMS=cpu puts
# the processes on the CPU, to try on any machine how several work together.
#
# Of several processes the output of process 0 is shown, that of the others goes
# to files. When one ends, the others have GRACE_SECONDS=60 to end too and are
# then killed. All are started again, or not, by the code of the first that
# failed, as launch/restart.sh --help says. TERM or Ctrl-C lets all save, and
# then exits with 42; a second Ctrl-C does not wait for that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/gpu_local.sh
source launch/shell.sh
source launch/restart.sh

GRACE_SECONDS=${GRACE_SECONDS:-60}
python=.venv/bin/python
logs=LOGS devices=()

# Sets `words`, the command of process $1, who meets the others on port $2.
words_of() {
  words=(env)
  if [[ ${#devices[@]} -gt 0 ]]; then
    words+=("CUDA_VISIBLE_DEVICES=${devices[$1]}")
  fi
  # gRPC would go to a proxy even for the loopback.
  words+=(no_grpc_proxy=127.0.0.1 "$python" -m mixer.main "${arguments[@]}"
    "--coordinator=127.0.0.1:$2" "--num_processes=$processes"
    "--process_id=$1")
}

# Runs `words` as process $1 and tells on fd 8 how it ended. Signals go to this
# shell's whole process group: the program heeds them, the shell waits for it.
member() {
  local end=0
  trap : TERM
  # bash's own word on a child that was killed goes to /dev/null.
  if [[ $1 == 0 ]]; then
    { "${words[@]}" 2>&7 7>&- 8>&-; } 7>&2 2>/dev/null || end=$?
  else
    { "${words[@]}" >>"$logs/$1.log" 2>&1 8>&-; } 2>/dev/null || end=$?
  fi
  echo "$1 $end" >&8
}

# Runs all the processes; exits with the code of the first that failed.
group() {
  local port i end members=() first='' deadline='' asked=no told=no
  port=$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')
  rm -f "$logs/ends" "$logs/why"
  mkfifo "$logs/ends"
  exec 8<>"$logs/ends"
  set -m
  trap 'asked=yes' TERM
  trap 'deadline=$SECONDS' USR1
  for ((i = 0; i < processes; i++)); do
    words_of "$i" "$port"
    member "$i" &
    members[i]=$!
  done
  while [[ ${#members[@]} -gt 0 ]]; do
    if [[ $asked == yes && $told == no ]]; then
      told=yes
      signal TERM "${members[@]}"
    elif read -r -t 1 -u 8 i end; then
      unset "members[i]"
      deadline=${deadline:-$((SECONDS + GRACE_SECONDS))}
      if [[ $end != 0 && -z $first ]]; then
        first=$end
        why "$i" "$end" >"$logs/why"
      fi
    elif [[ -n $deadline && $SECONDS -ge $deadline ]]; then
      signal KILL "${members[@]}"
      first=${first:-137}
      break
    fi
  done
  exit "${first:-0}"
}

signal() {
  local pid
  for pid in "${@:2}"; do
    kill "-$1" -- "-$pid" 2>/dev/null || true
  done
}

why() {
  local name='' where=''
  [[ $2 -le 128 ]] || name=$(kill -l "$(($2 - 128))" 2>/dev/null || true)
  [[ $1 == 0 ]] || where=", see $logs/$1.log"
  echo "process $1 of $processes exited with $2${name:+ ($name)}$where"
}

how_it_ended() {
  if [[ $1 != 0 && $1 != 42 && -s $logs/why ]]; then
    cat "$logs/why"
  else
    echo "mixer.main exited with $1"
  fi
}

# The names of this machine's GPUs, one a line.
gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    echo "${CUDA_VISIBLE_DEVICES//,/$'\n'}"
  else
    nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true
  fi
}

# Sets `devices`, a GPU for each of several processes.
share_gpus() {
  if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
    [[ $processes != gpus ]] ||
      fail "--processes=gpus: JAX_PLATFORMS=cpu leaves no GPUs; give a number"
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
    fail "--processes=$asked: this machine has ${#devices[@]} GPUs, as" \
      "CUDA_VISIBLE_DEVICES or nvidia-smi tell; JAX_PLATFORMS=cpu needs none"
}

# ---- The command line.

processes=1
other() {
  return 1   # mixer.main's own begin here
}
flags processes "$@"
set -- "${rest[@]+"${rest[@]}"}"
[[ $# -gt 0 ]] || fail "mixer.main's flags are missing; see $me --help"
[[ $processes == gpus || $processes =~ ^[1-9][0-9]*$ ]] ||
  fail "--processes is '$processes'; expected a number or gpus"
[[ $processes == 1 ]] || share_gpus

arguments=("$@")
pins=launch/requirements-cuda.txt
[[ ${JAX_PLATFORMS:-} != cpu ]] || pins=requirements.txt
REQUIREMENTS=${REQUIREMENTS:-$pins}

if [[ $dry_run == yes ]]; then
  quoted env "REQUIREMENTS=$REQUIREMENTS" launch/venv.sh
  if [[ $processes == 1 ]]; then
    quoted "$python" -m mixer.main "$@"
    exit
  fi
  for ((i = 0; i < processes; i++)); do
    words_of "$i" PORT
    quoted "${words[@]}"
  done
  exit
fi

source launch/venv.sh
make_venv
if [[ $processes == 1 ]]; then
  restart "$python" -m mixer.main "$@"
else
  logs=$(mktemp -d "${TMPDIR:-/tmp}/mlp-mixer.XXXXXX")
  again="starting all $processes again"
  kill_off() {
    kill -USR1 "$1" 2>/dev/null || true   # `group` kills its processes
  }
  echo "the output of processes 1 to $((processes - 1)) goes to $logs"
  restart group
fi
exit "$code"
