#!/usr/bin/env bash
# Functions that tpu_vm.sh and tpu_pod.sh share: gcloud commands, and copying
# the checkout to the VMs. Both source this file.
set -euo pipefail
source launch/shell.sh

# The values of flags that both have. `types` describes the values of --type for
# error messages. `workers` is --worker=all where there are several VMs.
# shellcheck disable=SC2034  # the launchers use these
name='' zone='' project='' type='' version='' spot='' types='' workers=''

# The start of a command line that runs a command of tpu_vm.sh on a VM.
# shellcheck disable=SC2034  # the launchers use this
readonly remote='cd mlp-mixer && ./launch/tpu_vm.sh'

# Reads --spot, the only flag without a value.
# shellcheck disable=SC2034  # the launchers use `spot`
other() {
  [[ $1 == --spot ]] ||
    fail "unknown argument $1; put the flags of mixer.main after --"
  spot=--spot
}

# Runs the gcloud command "$@" for TPU VMs.
tpu() {
  call gcloud compute tpus tpu-vm "$@" "--zone=$zone" \
    ${project:+"--project=$project"}
}

# Runs the command line $1 on the VM, or on all VMs.
on_vm() {
  tpu ssh "$name" "--command=$1" ${workers:+"$workers"}
}

# Prints the state of the VM, or nothing if it does not exist.
state_of_vm() {
  tpu describe "$name" '--format=value(state)' 2>/dev/null || true
}

# Fails unless git tracks this checkout: `pack` asks it for the files.
need_git() {
  [[ $dry_run == yes ]] ||
    git ls-files --error-unmatch "$me" >/dev/null 2>&1 ||
    fail "this folder is no git checkout, whose files are copied to the TPU;" \
      "clone the repository, or run 'git init && git add .'"
}

# Packs the files that git tracks, with their uncommitted changes.
pack() {
  local archive=build/checkout.tar.gz
  if [[ $dry_run == yes ]]; then
    echo "git ls-files -z | tar --null -czf $archive -T -"
    return
  fi
  mkdir -p build
  # The loop leaves out files that are deleted but still tracked: tar would fail
  # on them. COPYFILE_DISABLE keeps macOS's tar from adding files of its own.
  git ls-files -z | while IFS= read -r -d '' file; do
    if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi
  done | COPYFILE_DISABLE=1 tar --null -czf "$archive" -T -
}

# Copies the checkout to the VMs and installs it. Fails if a run is in progress.
copy_checkout() {
  local busy='error: a run is in progress; use log, interrupt or stop'
  on_vm "mkdir -p mlp-mixer && { flock -n mlp-mixer/run.lock true ||\
 { echo '$busy' >&2; exit 2; } }" &&
    pack &&
    tpu scp build/checkout.tar.gz "$name:mlp-mixer/checkout.tar.gz" \
      ${workers:+"$workers"} &&
    on_vm "cd mlp-mixer && tar -xzf checkout.tar.gz &&\
 ./launch/tpu_vm.sh install"
}

# Checks the flags that all commands need, and sets the default of `version` for
# the type.
check_flags() {
  local image
  expect name '.+' 'the name of a TPU'
  expect zone '.+' 'a zone such as europe-west4-a'
  case $type in
  v2-* | v3-* | v4-*) image=tpu-ubuntu2204-base ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) fail "--type is '$type'; expected $types" ;;
  esac
  version=${version:-$image}
}
