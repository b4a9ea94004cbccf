#!/usr/bin/env bash
# usage: launch/gke.sh [COMMAND] --name=NAME [FLAGS] [-- ARGS]
#
# Trains on a slice of TPUs in GKE, as a JobSet from launch/gke_jobset.yaml, in
# the cluster that kubectl speaks to. COMMAND is one of
#   run        (default) start `python -m mixer.main ARGS` on every host of the
#              slice; the cluster starts it again when it was stopped or crashed
#   log        follow the log of the first host
#   delete     let the run save and end, and delete it. The same `run` goes on
#              from its checkpoint; it is also what changed flags need.
# FLAGS:
#   --namespace=NAME    default: kubectl's own
#   --dry-run           print the command and the JobSet, and call nothing
# and of run:
#   --image=IMAGE       with this repository as its folder; see below
#   --accelerator=NAME  such as tpu-v5-lite-podslice, tpu-v6e-slice, tpu7x
#   --topology=AxB      such as 4x4, or 2x2x4
#   --hosts=N           hosts of the slice: 4x4 chips, 4 on a host, are 4 hosts
#   --chips=N           chips on each host, default 4
#   --account=NAME      service account, which may write the bucket; default:
#                       default
#   --restarts=N        how often all is started again, default 100
# Example:
#   launch/gke.sh --name=mixer --image=REGION-docker.pkg.dev/PROJECT/mixer/v1 \
#     --accelerator=tpu-v5-lite-podslice --topology=4x4 --hosts=4 -- \
#     --config=configs/mixer_b16.py --workdir=gs://BUCKET/b16 \
#     --config.data.dir=gs://BUCKET/tfds
# A Dockerfile for the image:
#   FROM python:3.12
#   WORKDIR /mlp-mixer
#   COPY requirements.txt .
#   COPY launch launch
#   RUN pip install -r launch/requirements-tpu.txt
#   COPY configs configs
#   COPY mixer mixer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/gke.sh
source launch/shell.sh

# Puts $2 for every {{$1}} of `text`.
fill() {
  local left=$text
  text=
  while [[ $left == *"{{$1}}"* ]]; do
    text+=${left%%"{{$1}}"*}$2
    left=${left#*"{{$1}}"}
  done
  text+=$left
}

# "$@" as YAML's strings, without the first and the last double quote.
strings() {
  local word line='' i character
  for word in "$@"; do
    line+='", "'
    for ((i = 0; i < ${#word}; i++)); do
      character=${word:i:1}
      case $character in
      '"' | \\) line+="\\$character" ;;
      $'\n') line+='\n' ;;
      $'\t') line+='\t' ;;
      # Kubernetes would put a variable for $(NAME).
      '$') [[ ${word:i+1:1} == '(' ]] && line+='$$' || line+='$' ;;
      *) line+=$character ;;
      esac
    done
  done
  echo "${line:4}"
}

jobset() {
  local text
  text=$(sed '1,/^# and a node pool/d' launch/gke_jobset.yaml)
  fill NAME "$name"
  fill ACCOUNT "$account"
  fill ACCELERATOR "$accelerator"
  fill TOPOLOGY "$topology"
  fill HOSTS "$hosts"
  fill CHIPS "$chips"
  fill RESTARTS "$restarts"
  fill IMAGE "$(strings "$image")"
  fill ARGS "$(strings "$@")"
  echo "$text"
}

kube() {
  call kubectl "$@" ${namespace:+"--namespace=$namespace"}
}

# Fails unless the variable $1 matches $2; $3 says what it should be.
expect() {
  local value=${!1}
  [[ -n $value ]] || fail "--$1=${3%% *} is missing; see $me --help"
  [[ $value =~ ^($2)$ ]] || fail "--$1 is '$value'; expected $3"
}

run() {
  [[ $# -gt 0 ]] || fail "mixer.main's flags are missing; give them after --"
  expect image '[^[:space:]]+' 'IMAGE of a container'
  expect accelerator '[a-z0-9-]+' 'NAME such as tpu-v6e-slice'
  expect topology '[1-9][0-9]*(x[1-9][0-9]*)+' 'AxB such as 4x4'
  expect hosts '[1-9][0-9]*' 'N, a number'
  expect chips '[1-9][0-9]*' 'N, a number'
  expect restarts '[0-9]+' 'N, a number'
  local all=$((${topology//x/ * }))
  [[ $all == $((hosts * chips)) ]] ||
    fail "--topology=$topology has $all chips, --hosts=$hosts with" \
      "--chips=$chips each have $((hosts * chips))"
  expect account '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' 'NAME of a service account'
  if [[ "$*" != *--workdir?gs://* ]]; then
    echo "note: the disk of a container goes with it; keep the run with" \
      "--workdir=gs://BUCKET/DIR" >&2
  fi
  if [[ $dry_run == yes ]]; then
    kube apply --filename=-
    jobset "$@"
  else
    jobset "$@" | kube apply --filename=-
  fi
}

# ---- The command line.

command=run
if [[ $# -gt 0 && $1 != -* ]]; then
  command=$1
  shift
fi
name='' namespace='' image='' accelerator='' topology='' hosts='' chips=4
account=default restarts=100
flags 'name namespace image accelerator topology hosts chips account restarts' \
  "$@"
set -- "${rest[@]+"${rest[@]}"}"

case $command in
run | log | delete)
  # Of 63 characters the JobSet wants 10 for the names of its pods.
  expect name '[a-z]([a-z0-9-]{0,50}[a-z0-9])?' \
    'NAME of at most 52 small letters, digits and -'
  ;;
esac
case $command in
run) run "$@" ;;
log)
  kube logs --follow --tail=-1 "--selector=jobset.sigs.k8s.io/jobset-name=$name\
,batch.kubernetes.io/job-completion-index=0"
  ;;
delete) kube delete jobset "$name" ;;
help) usage ;;
*) fail "COMMAND is '$command', not run, log or delete; see $me --help" ;;
esac
