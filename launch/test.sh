#!/usr/bin/env bash
# Set up .venv with what the tests need, and run them. Arguments go to pytest: bash launch/test.sh tests/detection -k nms
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh test
exec .venv/bin/python -m pytest "$@"
