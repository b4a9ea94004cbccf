#!/usr/bin/env bash
# What tpu_vm.sh and tpu_pod.sh share, who source this file: gcloud, and the way
# of a checkout to the VMs.
set -euo pipefail
source launch/shell.sh

# shellcheck disable=SC2034  # for the callers
# Flags of both; what `type` may be, for people; of several VMs --worker=all.
name='' zone='' project='' type='' version='' spot='' types='' workers=''

# shellcheck disable=SC2034  # for the callers
other() {
  [[ $1 == --spot ]] || fail "unknown argument $1; mixer.main's own go after --"
  spot=--spot
}

tpu() {
  call gcloud compute tpus tpu-vm "$@" "--zone=$zone" \
    ${project:+"--project=$project"}
}

# Runs the command line $1 on the VM, or on all of them.
on_vm() {
  tpu ssh "$name" "--command=$1" ${workers:+"$workers"}
}

state_of_vm() {
  tpu describe "$name" '--format=value(state)' 2>/dev/null || true
}

# Packs the files that git tracks, as they are now.
pack() {
  local archive=build/checkout.tar.gz
  if [[ $dry_run == yes ]]; then
    echo "git ls-files -z | tar --null -czf $archive -T -"
    return
  fi
  mkdir -p build
  # macOS's tar would add files of its own without that variable, and any tar
  # stops at a file that is deleted but not committed so.
  git ls-files -z | while IFS= read -r -d '' file; do
    if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi
  done | COPYFILE_DISABLE=1 tar --null -czf "$archive" -T -
}

# Copies the checkout and installs it, where no run is going on.
copy_checkout() {
  local busy='error: a run is going on: use log, interrupt or stop'
  on_vm "mkdir -p mlp-mixer && { flock -n mlp-mixer/run.lock true ||\
 { echo '$busy' >&2; exit 2; } }" &&
    pack &&
    tpu scp build/checkout.tar.gz "$name:mlp-mixer/checkout.tar.gz" \
      ${workers:+"$workers"} &&
    on_vm "cd mlp-mixer && tar -xzf checkout.tar.gz &&\
 ./launch/tpu_vm.sh install"
}

# Checks what all commands need, and sets `version` for the type.
check_flags() {
  local image
  [[ -n $name ]] || fail "--name=NAME is missing; see $me --help"
  [[ -n $zone ]] || fail "--zone=ZONE is missing; see $me --help"
  case $type in
  v2-* | v3-* | v4-*) image=tpu-ubuntu2204-base ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) fail "--type is '$type'; expected $types" ;;
  esac
  version=${version:-$image}
}
