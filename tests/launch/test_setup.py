"""The set-up script, with a stub of Python that prints its version and makes an environment without packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = """#!/bin/sh
case "$*" in
*print*) echo VERSION ;;
"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*) echo "$@" >>calls ;;
esac
"""


@pytest.fixture
def set_up(tmp_path):
    """(version of Python) -> output of the script in a copy of the files that it reads."""
    (tmp_path / "launch").mkdir()
    for name in ("pyproject.toml", "launch/setup.sh", *(f"launch/{p.name}" for p in ROOT.glob("launch/constraints-*"))):
        shutil.copy(ROOT / name, tmp_path / name)

    def start(version: str, **variables: str) -> str:
        stub = tmp_path / "python"
        stub.write_text(STUB.replace("VERSION", version))
        stub.chmod(0o755)
        environment = {**os.environ, "PYTHON": str(stub), **variables}
        command = ["bash", str(tmp_path / "launch" / "setup.sh")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return start


def test_a_python_without_tested_versions_is_noted_once(set_up, tmp_path):
    output = set_up("3.99")
    assert "3.99" in output and "3.11" in output
    assert "-c /dev/null" in (tmp_path / "calls").read_text()
    assert "tested" not in set_up("3.99"), "already set up"


def test_tested_versions_are_used(set_up, tmp_path):
    assert "tested" not in set_up("3.12")
    assert "-c launch/constraints-3.12.txt" in (tmp_path / "calls").read_text()


def test_the_environment_is_where_it_is_wanted(set_up, tmp_path):
    assert "other" in set_up("3.12", ELK_JAX_VENV="envs/other")
    assert (tmp_path / "envs" / "other" / "bin" / "python").exists() and not (tmp_path / ".venv").exists()
