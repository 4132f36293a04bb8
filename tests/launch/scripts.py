"""Launch scripts, started as a user starts them, and the form of their errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent.parent


def start(script: str, *arguments: str) -> SimpleNamespace:
    """Start a launch script as a user does."""
    command = [sys.executable, f"launch/{script}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return SimpleNamespace(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def assert_one_line(done: SimpleNamespace, *words: str) -> None:
    """Assert exit code 2 and one error line that contains `words`."""
    error = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert error[-1].startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    assert sum(line.startswith("error: ") for line in error) == 1
    for word in words:
        assert word in error[-1], error[-1]


TINY = "--config=configs/cem_real.py:tiny"
