#!/usr/bin/env bash
# Set up .venv and run the main experiment on the embedded data set: no download. About 14 minutes on 2 free CPU
# cores, set-up included; docs/results/embedded.md has the times.
#   bash launch/quickstart.sh [WORKDIR] [more flags of launch/train.py]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh "${ELK_JAX_EXTRAS:-}"
workdir=runs/quickstart
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then workdir=$1; shift; fi
exec .venv/bin/python launch/train.py --config=configs/cem_mixed.py --workdir="$workdir" "$@"
