#!/usr/bin/env bash
# Trains. Makes the environment first where it is missing (scripts/setup.sh says how).
#
#   bash scripts/train.sh                                      the main job
#   bash scripts/train.sh --config configs/babylm.py:ar        a variant of it
#   bash scripts/train.sh --workdir runs/mine --config.seed=1
#   bash scripts/train.sh --workdir runs/mine --mode generate
#
# All arguments go to `python -m lmjax.main`, whose config is configs/babylm.py where
# neither --config nor the run folder says otherwise. It runs in the repository's root:
# relative paths count from there.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

setup_environment
cd "$LMJAX_ROOT"
exec "$VENV_PYTHON" -m lmjax.main "$@"
