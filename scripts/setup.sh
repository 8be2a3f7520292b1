#!/usr/bin/env bash
# Makes the Python environment that scripts/train.sh and scripts/test.sh run in.
#
# They source this file and call `setup_environment [EXTRA...]`. To set up and nothing
# more (a login node, a container image): `bash scripts/setup.sh [EXTRA...]`, where an
# EXTRA is one of the optional dependencies in pyproject.toml (dev, hf, clean,
# plots, wandb, judge).
#
# The environment holds what pyproject.toml asks for at the versions requirements.lock
# pins, with the JAX that fits this machine's hardware. It is made with uv where uv is
# installed, with venv and pip otherwise, and it is made once: a later run compares the
# record inside it and starts neither. A runtime that brings its own working JAX (a TPU
# notebook, a vendor's container) keeps that one.
#
# Environment variables:
#   PYTHON          the Python to build on; default: the first of python3, python3.13,
#                   python3.12, python3.11 that is 3.11 or newer
#   LMJAX_VENV      the folder of the environment; default: .venv in the repository
#   LMJAX_HARDWARE  cpu, gpu or tpu, instead of what is found on this machine

LMJAX_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 2
}

# Sets SETUP_PYTHON, and SETUP_BASE: what an environment cannot change once it is made,
# the Python's minor version and the version of a JAX the runtime brings ("none").
find_python() {
  local candidate found
  local candidates=(python3 python3.13 python3.12 python3.11)
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if found=$(
      "$candidate" - 2>/dev/null <<'PY'
import sys

if sys.version_info < (3, 11):
    sys.exit(1)
from importlib import metadata

try:
    # Another environment's packages are out of reach of the one made here.
    jax = metadata.version("jax") if sys.prefix == sys.base_prefix else "none"
except metadata.PackageNotFoundError:
    jax = "none"
print(f"python{sys.version_info[0]}.{sys.version_info[1]} runtime-jax={jax}")
print(sys.executable)
PY
    ); then
      SETUP_BASE=${found%%$'\n'*}
      SETUP_PYTHON=${found#*$'\n'}
      return
    fi
  done
  if [[ -n "${PYTHON:-}" ]]; then
    fail "PYTHON=$PYTHON is not a Python 3.11 or newer; name one that is, or unset it"
  fi
  fail "no Python 3.11 or newer among ${candidates[*]}; install one, or name one:" \
    "PYTHON=/path/to/python bash $0"
}

# Prints cpu, gpu or tpu.
find_hardware() {
  local gpus
  case "${LMJAX_HARDWARE:-}" in
    "") ;;
    cpu | gpu | tpu) echo "$LMJAX_HARDWARE" && return ;;
    *) fail "LMJAX_HARDWARE=$LMJAX_HARDWARE is none of cpu, gpu, tpu" ;;
  esac
  # Without a device, nvidia-smi may say so and succeed nevertheless.
  if gpus=$(nvidia-smi -L 2>/dev/null) && [[ "$gpus" == *"GPU "* ]]; then
    echo gpu
  elif has_tpu /sys/bus/pci/devices; then
    echo tpu
  else
    echo cpu
  fi
}

# Succeeds when a TPU is attached. A TPU variable alone does not say so: compiling for a
# TPU without having one needs some of them too. $1 is the list of PCI devices.
has_tpu() {
  local folder vendor device
  for folder in "$1"/*; do
    if [[ -r "$folder/vendor" && -r "$folder/device" ]]; then
      read -r vendor <"$folder/vendor"
      read -r device <"$folder/device"
      [[ "$vendor" == 0x1ae0 ]] || continue # Google, which makes disks and networks too
      case "$device" in # the list in jax/_src/hardware_utils.py
        0x0027 | 0x0056 | 0x005e | 0x0062 | 0x0063 | 0x006f | 0x0076 | 0x007c | 0x0083)
          return 0
          ;;
      esac
    fi
  done
  [[ -n "${TPU_NAME:-}${COLAB_TPU_ADDR:-}${TPU_ACCELERATOR_TYPE:-}" ]] || return 1
  compgen -G "/dev/accel[0-9]*" >/dev/null || compgen -G "/dev/vfio/[0-9]*" >/dev/null
}

# Prints the pins that keep the runtime's own JAX ("jax==... jaxlib==..."), or fails when
# that JAX is missing, too old, broken, or does not see the hardware $1.
runtime_jax_pins() {
  "$SETUP_PYTHON" - "$1" "$LMJAX_ROOT/pyproject.toml" 2>/dev/null <<'PY'
import re
import signal
import sys
import tomllib

signal.alarm(180)  # a TPU that another process holds may never answer
import jax
import jaxlib

hardware, project = sys.argv[1:]
with open(project, "rb") as file:
    dependencies = " ".join(tomllib.load(file)["project"]["dependencies"])
oldest = re.search(r"\bjax>=([\d.]+)", dependencies)[1]
if jax.__version_info__ < tuple(int(part) for part in oldest.split(".")):
    sys.exit(1)
if hardware != "cpu" and jax.devices()[0].platform == "cpu":
    sys.exit(1)
jax.numpy.zeros(2).block_until_ready()
print(f"jax=={jax.__version__} jaxlib=={jaxlib.__version__}")
PY
}

# Makes an empty environment at $1; $2 holds the pins of a JAX to keep, or nothing.
make_venv() {
  local venv=$1 keep=$2
  if [[ -d "$venv" && ! -f "$venv/lmjax-setup" && -n "$(ls -A "$venv")" ]]; then
    # Not ours: never delete it, and move only what is plainly this tree's environment.
    [[ "${venv##*/}" == .venv* ]] ||
      fail "LMJAX_VENV=$venv is there and this script did not make it; name another"
    say "$venv was not made by this script; moving it to $venv.old-$$"
    mv "$venv" "$venv.old-$$"
  fi
  rm -rf "$venv"
  mkdir -p "$venv"
  echo unfinished >"$venv/lmjax-setup"
  if [[ -n "$keep" ]]; then
    # The runtime's pip serves here as well; not every such runtime has ensurepip.
    "$SETUP_PYTHON" -m venv --system-site-packages --without-pip "$venv"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
      "$venv/bin/python" -m ensurepip >/dev/null 2>&1 ||
      fail "to keep the runtime's JAX its pip is needed; install it" \
        "(Debian, Ubuntu: apt install python3-pip)"
  elif [[ -n "$SETUP_UV" ]]; then
    uv venv --quiet --allow-existing --python "$SETUP_PYTHON" "$venv"
  else
    "$SETUP_PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
      fail "$SETUP_PYTHON cannot make environments; install what it lacks (Debian," \
        "Ubuntu: apt install ${SETUP_BASE%% *}-venv), or uv"
    "$SETUP_PYTHON" -m venv "$venv"
  fi
}

# Installs lmjax with the extras $2 ("a,b" or nothing) into $1, keeping the JAX whose
# pins are $3 where that is not empty.
install_into() {
  local venv=$1 target=$LMJAX_ROOT constraints=$LMJAX_ROOT/requirements.lock keep=$3
  if [[ -n "$2" ]]; then target+="[$2]"; fi
  # Containers set these for packages of their own, and they would fight with the lock.
  unset PIP_CONSTRAINT PIP_USER PIP_TARGET UV_CONSTRAINT UV_SYSTEM_PYTHON
  if [[ -n "$keep" ]]; then
    # Beside another jax than the lock's, the lock's flax need not work.
    constraints=$venv/constraints.txt
    sed -E '/^(jax|jaxlib|jax-cuda.*|libtpu|nvidia-.*|flax)==/d' \
      "$LMJAX_ROOT/requirements.lock" >"$constraints"
    printf '%s\n%s\n' "${keep% *}" "${keep#* }" >>"$constraints"
  elif [[ -n "$SETUP_UV" ]]; then
    uv pip install --quiet --python "$venv/bin/python" -c "$constraints" -e "$target"
    return
  fi
  # Compiling every module takes longer than compiling the few that a run imports.
  "$venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    --progress-bar off -c "$constraints" -e "$target"
}

# Reads the record of the environment $1; fails unless its installation was finished.
# Four lines: SETUP_BASE, checksum of the files, extras, pins of a kept JAX ("none").
read_record() {
  [[ -x "$1/bin/python" && -f "$1/lmjax-setup" ]] || return 1
  {
    read -r RECORD_BASE && read -r RECORD_FILES &&
      read -r RECORD_EXTRAS && read -r RECORD_KEEP
  } <"$1/lmjax-setup"
}

# Succeeds when every word of $1 is a word of $2.
all_among() {
  local word
  for word in $1; do
    [[ " $2 " == *" $word "* ]] || return 1
  done
}

# Succeeds when the environment $1 has the extras $2, from files with checksum $3.
is_current() {
  read_record "$1" && [[ "$RECORD_BASE" == "$SETUP_BASE" ]] &&
    all_among "$2" "$RECORD_EXTRAS" && [[ "$RECORD_FILES" == "$3" ]]
}

# setup_environment [EXTRA...]: afterwards VENV_PYTHON has lmjax with these extras and
# with the one that the hardware needs.
setup_environment() {
  local venv=${LMJAX_VENV:-.venv} hardware extras files keep='' install word
  local started=$SECONDS
  [[ "$venv" == /* ]] || venv=$LMJAX_ROOT/$venv
  # shellcheck disable=SC2034  # the result, for the scripts that source this one
  VENV_PYTHON=$venv/bin/python
  find_python
  hardware=$(find_hardware)
  extras="$*"
  # No word for the CPU: every JAX has it, so a GPU's environment serves a login node too.
  if [[ "$hardware" != cpu ]]; then extras="$hardware${extras:+ $extras}"; fi
  files=$(cksum <"$LMJAX_ROOT/pyproject.toml")-$(cksum <"$LMJAX_ROOT/requirements.lock")
  if is_current "$venv" "$extras" "$files"; then return; fi

  if command -v flock >/dev/null; then # of two runs at once, the second waits
    mkdir -p "${venv%/*}"
    exec 9>"$venv.lock"
    flock 9
    if is_current "$venv" "$extras" "$files"; then
      exec 9>&-
      return
    fi
  fi

  SETUP_UV=$(command -v uv || true)
  if read_record "$venv" && [[ "$RECORD_BASE" == "$SETUP_BASE" ]] &&
    { [[ "$RECORD_KEEP" == none ]] || all_among "${hardware#cpu}" "$RECORD_EXTRAS"; }; then
    for word in $RECORD_EXTRAS; do
      if ! all_among "$word" "$extras"; then extras+="${extras:+ }$word"; fi
    done
    say "bringing $venv up to date"
    keep=${RECORD_KEEP#none}
  else
    if [[ "$SETUP_BASE" != *=none ]]; then
      if keep=$(runtime_jax_pins "$hardware"); then
        say "this runtime brings a working JAX, which is kept: $keep"
        SETUP_UV='' # uv would install a second JAX: it does not look at the runtime's
      else
        keep=''
        say "the runtime's own JAX (${SETUP_BASE#*=}) is unfit for $hardware; not using it"
      fi
    fi
    if [[ -f "$venv/lmjax-setup" ]]; then
      say "$venv is unfinished or for another Python or hardware; making it anew"
    fi
    say "making $venv with $SETUP_PYTHON${SETUP_UV:+ and uv} for this machine's $hardware"
    make_venv "$venv" "$keep"
  fi

  install=''
  for word in $extras; do
    if [[ -n "$keep" && "$word" == "$hardware" ]]; then continue; fi # it has it already
    install+=",$word"
  done
  install=${install#,}
  say "installing lmjax${install:+[$install]} (once; takes a few minutes)"
  echo unfinished >"$venv/lmjax-setup"
  (install_into "$venv" "$install" "$keep") ||
    fail "the installation did not succeed, for the reason above (no network? disk full?);" \
      "the same command starts it again"
  printf '%s\n' "$SETUP_BASE" "$files" "$extras" "${keep:-none}" >"$venv/lmjax-setup.new"
  mv "$venv/lmjax-setup.new" "$venv/lmjax-setup"
  if command -v flock >/dev/null; then exec 9>&-; fi
  say "ready after $((SECONDS - started)) s"
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  set -euo pipefail
  setup_environment "$@"
fi
