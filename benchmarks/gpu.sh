#!/usr/bin/env bash
# Everything that needs a GPU, measured on one and written into one JSON file, within 25 minutes:
#   bash benchmarks/gpu.sh [--data=FOLDER of CDD-CESM] [--output=runs/gpu.json]
#   bash benchmarks/gpu.sh --parts=detector,kernels --minutes=9      some parts; the file keeps those measured before
#   bash benchmarks/gpu.sh --dry-run                                 all of it on a CPU, tiny: does it work?
# It needs any Python 3.11 or newer ($PYTHON, else python3), and makes its own environments in .gpu/: elk_jax with CUDA
# by the driver, and torch, torchvision, effdet and diffusers. Without a network give those that are there:
#   bash benchmarks/gpu.sh --python=PATH --torch_python=PATH
# benchmarks/README.md explains the parts.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
