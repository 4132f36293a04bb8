#!/usr/bin/env bash
# Make .venv (or $ELK_JAX_VENV) with elk_jax and what it needs, in the versions that were tested together.
#   bash launch/setup.sh [EXTRA,...]      EXTRA: test, cuda12, cuda13, tpu. Python: $PYTHON, else python3 (3.11 or newer).
# Running it again changes nothing unless pyproject.toml or the constraints changed.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-}
python=${PYTHON:-python3}
venv=${ELK_JAX_VENV:-.venv}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || {
  echo "error: no Python at '$python'. Set PYTHON to a Python of 3.11 or newer" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $python is Python $version. elk_jax needs 3.11 or newer: set PYTHON to such a one" >&2; exit 2; }

constraints=launch/constraints-$version.txt
[ -f "$constraints" ] || constraints=/dev/null
case ",$extras," in *,cuda1[23],*) gpu=yes ;; *) gpu=no ;; esac
stamp=$venv/.elk_jax-$(echo "$version $extras" | cat - pyproject.toml "$constraints" | sha256sum | cut -c1-16)
if [ ! -f "$stamp" ]; then
  echo "setting up $venv (Python $version${extras:+, $extras}): about a minute"
  if [ "$constraints" = /dev/null ]; then
    tested=$(cd launch && echo constraints-*.txt | sed 's/constraints-//g; s/\.txt//g; s/ / and /g')
    echo "note: no tested versions for Python $version, so the newest of all packages are taken (tested: Python $tested)"
  fi
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -c "$constraints" -e ".${extras:+[$extras]}"
  touch "$stamp"
fi
if [ "$gpu" = no ] && command -v nvidia-smi >/dev/null 2>&1; then
  echo "note: an NVIDIA GPU is here, and this set-up uses the CPU. For the GPU: bash launch/setup.sh cuda12 (or cuda13)"
fi
