#!/usr/bin/env bash
# Set up .venv with what the tests need, and run them: all, a file at a time on each core, or what the arguments say,
# which go to pytest: bash launch/test.sh tests/detection -k nms
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh test
[ $# -gt 0 ] || set -- --numprocesses=auto --dist=loadfile --no-loadscope-reorder
exec .venv/bin/python -m pytest "$@"
