#!/usr/bin/env bash
# Checks the code: lint, format, tests. Makes the environment first where it is missing
# (scripts/setup.sh says how); after that no network is needed.
#
#   bash scripts/test.sh                            all tests but the slow ones
#   bash scripts/test.sh --all                      all tests, as .ci/run does
#   bash scripts/test.sh tests/models -k attention  arguments go to pytest, slow or not
#
# Slow ones are named in tests/durations.py.
# It runs in the repository's root: relative paths count from there.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Tests start many processes: without bytecode each would compile all that it imports.
unset PYTHONDONTWRITEBYTECODE
setup_environment dev
cd "$LMJAX_ROOT"
"$VENV_PYTHON" -m ruff check
"$VENV_PYTHON" -m ruff format --check
if [[ $# -eq 0 ]]; then
  set -- -m "not slow"
elif [[ "$1" == --all ]]; then
  shift
fi
# A file's tests share what they train and compile, so they stay with one process.
exec "$VENV_PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q "$@"
