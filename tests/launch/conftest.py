"""The process from which the tests of the command line start the scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.launch.scripts import ROOT


@pytest.fixture(scope="session")
def quick_start():
    """`start` in a process that has already imported the libraries (starts.py)."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    command = [sys.executable, "tests/launch/starts.py"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def start_there(script: str, *arguments: str, instead: str = "") -> SimpleNamespace:
            process.stdin.write(json.dumps([script, instead, *arguments]) + "\n")
            process.stdin.flush()
            return SimpleNamespace(**json.loads(process.stdout.readline()))

        yield start_there
        process.stdin.close()
