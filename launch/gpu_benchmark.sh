#!/usr/bin/env bash
# usage: launch/gpu_benchmark.sh [--peers=DIR] [SCALE...]
#
# Measures Mixers on one NVIDIA GPU of this machine, in bfloat16: training and
# prediction of every SCALE (default: S/16 B/16 L/16 H/14), each with several
# batch sizes, then the fastest of these again beside timm with torch.compile.
# B/16 is also trained in float32 beside vision_transformer. Standard output has
# a line of JSON for each measurement (see BENCHMARKS.md), and standard error
# the tables. What fails, such as a batch that does not fit the GPU's memory, is
# left out; the exit code is 1 if no batch of a SCALE or a comparison succeeded.
#
# Prerequisites: those of launch/gpu_local.sh, which makes the same .venv; with
# --peers, PyTorch with CUDA in it too.
# Flags:
#   --peers=DIR   directory with checkouts of pytorch-image-models and
#                 vision_transformer; without it, nothing is compared
#   --dry-run     print the commands instead of running them
#   -h, --help    print this help
# Environment variables:
#   BATCH_SIZES="64 128"    instead of the usual ones of each SCALE
#   SECONDS_EACH=6          how long one measurement takes, without compilation
#   CUDA_VISIBLE_DEVICES=1  use this GPU; default: 0
#   REQUIREMENTS=FILE       packages to install; default:
#                           launch/requirements-cuda.txt
#   XLA_FLAGS=...           settings of XLA to try
# Example:
#   launch/gpu_benchmark.sh --peers=.. B/16 >gpu.jsonl
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
me=launch/gpu_benchmark.sh
source launch/shell.sh

peers='' scales=()
other() {
  [[ $1 =~ ^([SB]/(16|32)|L/(16|32)|H/14)$ ]] ||
    fail "unknown argument $1; expected a SCALE such as B/16; see $me --help"
  scales+=("$1")
}
flags peers "$@"
if [[ ${#scales[@]} -eq 0 ]]; then
  scales=(S/16 B/16 L/16 H/14)
fi
SECONDS_EACH=${SECONDS_EACH:-6}
check SECONDS_EACH "$SECONDS_EACH" "$POSITIVE" 'a whole number of seconds'
check BATCH_SIZES "${BATCH_SIZES=usual}" \
  "usual|($POSITIVE)( ($POSITIVE))*" 'numbers with a space between them'
if [[ -n $peers ]]; then
  for repository in pytorch-image-models vision_transformer; do
    [[ -d $peers/$repository ]] ||
      fail "--peers=$peers: it has no folder $repository"
  done
fi
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
python=.venv/bin/python code=0
set_up_venv launch/requirements-cuda.txt

# Runs mixer.benchmark with the flags "$@" and prints its line of JSON, which is
# in `line` too.
measure() {
  local out words=("$python" -m mixer.benchmark "$@"
    "--seconds=$SECONDS_EACH")
  if [[ $dry_run == yes ]]; then
    quoted "${words[@]}"
    return
  fi
  out=$("${words[@]}") || return
  line=${out##*$'\n'}
  printf '%s\n' "${out%$'\n'*}" >&2
  printf '%s\n' "$line"
}

for scale in "${scales[@]}"; do
  case $scale in
  S/*) usual='256 512 1024' ;;
  B/*) usual='128 256 512' ;;
  L/*) usual='64 128 256' ;;
  H/*) usual='32 64 128' ;;
  esac
  for mode in train infer; do
    ours=("$mode" "--model=Mixer-$scale" --precision=bfloat16)
    lines=''
    for size in ${BATCH_SIZES/usual/$usual}; do
      measure "${ours[@]}" "--batch_size=$size" || continue
      lines+=${line-}$'\n'
    done
    if [[ $dry_run == no && -z $lines ]]; then
      echo "error: Mixer-$scale: no batch size could be measured" >&2
      code=1
      continue
    fi
    [[ -n $peers ]] || continue
    size=BEST
    if [[ $dry_run == no ]]; then
      size=$("$python" -c 'import json, sys
found = [json.loads(line) for line in sys.stdin]
print(max(found, key=lambda one: one["images_per_second"])["batch_size"])' \
        <<<"${lines%$'\n'}")
    fi
    measure "${ours[@]}" "--batch_size=$size" --compare=timm_compiled \
      "--peers=$peers" || code=1
  done
  if [[ $scale == B/16 && -n $peers ]]; then
    measure train --model=Mixer-B/16 --precision=float32 --batch_size=128 \
      --compare=vision_transformer "--peers=$peers" || code=1
  fi
done
exit "$code"
