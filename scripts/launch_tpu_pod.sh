#!/usr/bin/env bash
# Runs one command line of lmjax on all workers of a Cloud TPU, or of several slices.
#
#   bash scripts/launch_tpu_pod.sh --tpu my-pod --zone us-central2-b -- \
#       --config configs/babylm.py:medium --workdir /mnt/runs/medium
#
# What stands after -- goes to scripts/train.sh, which sets the environment up where it
# is missing. JAX finds the other workers by the TPU's metadata: nothing to configure.
# Nothing is created, unless --create says so; nothing is ever deleted.
#
#   --tpu NAME[,NAME...]   the TPU VM; several names are the slices of one run, which
#                          must have been created as one (a queued resource)
#   --zone ZONE            default: that of gcloud's configuration
#   --project PROJECT      likewise
#   --create TYPE          first creates the TPU, such as v4-32 or v5litepod-16
#   --version VERSION      software of a TPU that is created; default: tpu-ubuntu2204-base
#   --spot                 a TPU that is created may be taken away at any time
#   --copy                 first copies this repository to every worker, without .git,
#                          .venv and runs
#   --folder FOLDER        where the repository is on the workers; default: lmjax
#   --dry-run              prints the commands instead of running them
#
# It ends when all workers have. Workers save on SIGTERM and when Google says that the TPU
# is taken away; the same command line goes on from there.
set -euo pipefail

fail() {
  printf 'launch: error: %s\n' "$*" >&2
  exit 2
}
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

names='' create='' version=tpu-ubuntu2204-base folder=lmjax
spot=false copy=false dry_run=false
where=()
while (($#)); do
  case $1 in
    --tpu | --zone | --project | --create | --version | --folder)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --tpu) names=$2 ;;
        --zone | --project) where+=("$1=$2") ;;
        --create) create=$2 ;;
        --version) version=$2 ;;
        --folder) folder=$2 ;;
      esac
      shift 2
      ;;
    --spot) spot=true && shift ;;
    --copy) copy=true && shift ;;
    --dry-run) dry_run=true && shift ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$1 is no option of this script; what is for lmjax stands after --" ;;
  esac
done
[[ -n $names ]] || fail "name the TPU: --tpu NAME"
IFS=, read -ra tpus <<<"$names"
if [[ -n $create ]] && ((${#tpus[@]} > 1)); then
  fail "slices are created together: gcloud compute tpus queued-resources create"
fi

# Runs a command, or prints it so that it can be pasted.
run() {
  if $dry_run; then
    printf '%s\n' "${*@Q}"
  else
    "$@"
  fi
}
tpu_vm() { run gcloud compute tpus tpu-vm "$@" ${where[@]+"${where[@]}"}; }

if [[ -n $create ]]; then
  options=("--accelerator-type=$create" "--version=$version")
  if $spot; then options+=(--spot); fi
  tpu_vm create "${tpus[0]}" "${options[@]}"
fi

if $copy; then
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=$(mktemp --suffix=.tar.gz)
  trap 'rm -f "$archive"' EXIT
  run tar -czf "$archive" --exclude=./.git --exclude='./.venv*' --exclude=./runs \
    -C "$root" .
  for tpu in "${tpus[@]}"; do
    tpu_vm scp "$archive" "$tpu:lmjax.tar.gz" --worker=all
    tpu_vm ssh "$tpu" --worker=all \
      --command="mkdir -p ${folder@Q} && tar -xzf lmjax.tar.gz -C ${folder@Q}"
  done
fi

# Quoted once for the shell on the workers.
command="cd ${folder@Q} && LMJAX_HARDWARE=tpu exec bash scripts/train.sh ${*@Q}"
pids=()
for tpu in "${tpus[@]}"; do
  # All workers of all slices must run at once: they wait for each other.
  tpu_vm ssh "$tpu" --worker=all --command="$command" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit "$status"
