#!/usr/bin/env bash
# usage: launch/gke.sh [COMMAND] --name=NAME [FLAGS] [-- ARGS]
#
# Trains on a slice of TPUs in Google Kubernetes Engine (GKE), as a JobSet made
# from launch/gke_jobset.yaml. COMMAND is one of
#   run     (default) run `python -m mixer.main ARGS` on every host of the
#           slice. The cluster restarts it when it was stopped or has crashed.
#   log     follow the log of the first host
#   delete  make the run save and end, and delete the JobSet. The same `run`
#           command then resumes from the checkpoint. Delete the JobSet before
#           you change its flags.
#
# Prerequisites:
#   * kubectl, set to the cluster: gcloud container clusters get-credentials
#   * JobSet 0.6 or newer in the cluster: https://jobset.sigs.k8s.io
#   * a node pool with the accelerator and the topology of the flags below
#   * a container image that the nodes can pull, with this repository as its
#     working directory; a Dockerfile stands below
#   * a Kubernetes service account that may read the data and write the workdir
#     in the bucket (Workload Identity Federation for GKE)
# Flags:
#   --name=NAME         name of the JobSet
#   --namespace=NAME    default: the one that kubectl is set to
#   --dry-run           print the command and the JobSet, and run nothing
#   -h, --help          print this help
# Flags of run:
#   --image=IMAGE       the container image
#   --accelerator=NAME  such as tpu-v5-lite-podslice, tpu-v6e-slice, tpu7x
#   --topology=AxB      chips of the slice, such as 4x4 or 2x2x4
#   --hosts=N           hosts of the slice: 4x4 chips, 4 on a host, are 4 hosts
#   --chips=N           chips on each host, default 4
#   --account=NAME      the service account; default: the one called default
#   --restarts=N        how many restarts to allow, default 100
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

# Replaces every {{$1}} in `text` by $2.
fill() {
  local left=$text
  text=
  while [[ $left == *"{{$1}}"* ]]; do
    text+=${left%%"{{$1}}"*}$2
    left=${left#*"{{$1}}"}
  done
  text+=$left
}

# Prints "$@" as strings of a YAML list, without the first and the last double
# quote, which the template has.
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
      # Kubernetes would replace $(NAME) by a variable; $$ prevents that.
      '$') [[ ${word:i+1:1} == '(' ]] && line+='$$' || line+='$' ;;
      *) line+=$character ;;
      esac
    done
  done
  echo "${line:4}"
}

# Prints the JobSet for the flags "$@" of mixer.main.
jobset() {
  local text
  text=$(sed '/^#/d' launch/gke_jobset.yaml)
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

run() {
  need_main_flags "$@"
  expect image '[^[:space:]]+' 'a container image'
  expect accelerator '[a-z0-9-]+' 'a name such as tpu-v6e-slice'
  expect topology '[1-9][0-9]*(x[1-9][0-9]*)+' 'AxB, such as 4x4'
  expect hosts "$POSITIVE" 'a number'
  expect chips "$POSITIVE" 'a number'
  expect restarts "$WHOLE" 'a number'
  local all=$((${topology//x/ * }))
  [[ $all == $((hosts * chips)) ]] ||
    fail "--topology=$topology has $all chips, but --hosts=$hosts with" \
      "--chips=$chips each have $((hosts * chips))"
  expect account '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' 'the name of an account'
  note_without_bucket 'a container loses its disk when it ends' "$@"
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

check_command run log delete
# A pod name has at most 63 characters; JobSet adds 10 to the name.
expect name '[a-z]([a-z0-9-]{0,50}[a-z0-9])?' \
  'a name of at most 52 lower-case letters, digits and -'

case $command in
run) run "$@" ;;
log)
  kube logs --follow --tail=-1 "--selector=jobset.sigs.k8s.io/jobset-name=$name\
,batch.kubernetes.io/job-completion-index=0"
  ;;
delete) kube delete jobset "$name" ;;
esac
