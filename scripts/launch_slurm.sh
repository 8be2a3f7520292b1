#!/usr/bin/env bash
# Runs one command line of lmjax on the nodes of a Slurm job.
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch_slurm.sh \
#       --config configs/babylm.py:medium --workdir /shared/runs/medium
#
# All arguments go to `python -m lmjax.main`. Options of sbatch on the command line
# (--partition, --account, --time, ...) win over those below. Set the environment up once
# before, on a login node with the GPUs' libraries in reach:
# `LMJAX_HARDWARE=gpu bash scripts/setup.sh`.
#
# One task a node, which drives all GPUs of it, is what JAX does without being told. Where
# a node's GPUs are better driven by a task each, ask for them and JAX takes one a task:
# `sbatch --ntasks-per-node=8 --gpus-per-task=1 ...`.
#
# Two minutes before the time limit Slurm sends USR1: the run saves and ends, and the job
# goes back to the queue, where the same command line resumes. So it does when a node dies
# or the job is preempted. `scancel --signal=USR1 --batch=no JOB` saves, and requeues too;
# plain `scancel JOB` ends it.
#
# --dry-run as the first argument prints the command instead of running it. A job that
# ends within LMJAX_REQUEUE_AFTER seconds (120) isn't queued again.
#
#SBATCH --job-name=lmjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lmjax-%j.log
set -euo pipefail

dry_run=false
if [[ ${1:-} == --dry-run ]]; then dry_run=true && shift; fi

# Slurm runs a copy of this file: the repository is where sbatch was called, unless said.
root=${LMJAX_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
python=${LMJAX_VENV:-$root/.venv}/bin/python
if [[ ! -f $root/lmjax/main.py ]]; then
  printf 'launch: error: %s is no copy of lmjax; call sbatch in one, or set %s\n' \
    "$root" LMJAX_ROOT >&2
  exit 2
fi
cd "$root"

# Lets XLA start what devices send each other early and wait for it late. Whoever has set
# this flag, either way, is right.
if [[ ${XLA_FLAGS:-} != *xla_gpu_enable_latency_hiding_scheduler* ]]; then
  export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_gpu_enable_latency_hiding_scheduler=true"
fi

several=()
if ((${SLURM_NTASKS:-1} > 1)); then several=(--config.parallel.coordinator=auto); fi
step=(srun --kill-on-bad-exit=0 "$python" -m lmjax.main ${several[@]+"${several[@]}"} "$@")
if $dry_run; then
  printf 'XLA_FLAGS=%s %s\n' "${XLA_FLAGS@Q}" "${step[*]@Q}"
  exit 0
fi

# --signal reaches the processes of srun, not this shell. A run ends with status 0 both
# when it is finished and when it was asked to stop; a line of its own says which.
started=$SECONDS
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
"${step[@]}" 2>&1 | tee "$log" || status=${PIPESTATUS[0]}
case $status in
  0) grep -qE '^(lmjax: )?stopped by ' "$log" || exit 0 ;;
  # Another process was lost, or nothing moved (docs/reliability.md): again, but not for
  # ever, for what is wrong may be wrong every time.
  75 | 76) ((${SLURM_RESTART_COUNT:-0} < 10)) || exit "$status" ;;
  *) exit "$status" ;;
esac
if ((SECONDS - started < ${LMJAX_REQUEUE_AFTER:-120})); then
  printf 'launch: it ended too soon: not queued again\n' >&2
  exit "$status"
fi
printf 'launch: queued again, to go on where it stopped\n' >&2
scontrol requeue "${SLURM_JOB_ID:?}"
