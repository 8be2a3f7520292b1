#!/usr/bin/env bash
# Trains. Makes the environment first where it is missing (scripts/setup.sh says how).
#
#   bash scripts/train.sh                                      the main job
#   bash scripts/train.sh --workdir runs/mine --config.seed=1
#   bash scripts/train.sh --config configs/babylm.py:ar
#   bash scripts/train.sh --mode evaluate --workdir runs/mine
#
# All arguments go to `python -m lmjax.main`, in front of them `--config
# configs/babylm.py` unless they name a config or a mode that reads the run folder's own.
# It runs in the repository's root: relative paths count from there.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Succeeds when the arguments need the main config put in front of them.
needs_config() {
  local previous='' argument
  for argument in "$@"; do
    case "$argument" in
      --config | --config=* | -config | -config=*) return 1 ;;
      --mode=* | -mode=*) is_mode_with_config "${argument#*=}" || return 1 ;;
    esac
    case "$previous" in
      --mode | -mode) is_mode_with_config "$argument" || return 1 ;;
    esac
    previous=$argument
  done
}

is_mode_with_config() { [[ "$1" == train || "$1" == prepare || "$1" == plan ]]; }

setup_environment
cd "$LMJAX_ROOT"
if needs_config "$@"; then
  set -- --config configs/babylm.py "$@"
fi
exec "$VENV_PYTHON" -m lmjax.main "$@"
