"""The scripts as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


SCRIPTS = ("cdd_cesm", "coco_to_tfds", "paired_images", "paired_tiles", "phantom_volumes", "public_weights")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_takes_the_package_of_its_checkout(script, tmp_path):
    """Not one that happens to be installed, and none needs to be."""
    (tmp_path / "elk_jax.py").write_text("raise ImportError('another elk_jax')")
    command = [sys.executable, str(ROOT / "data_prep" / f"{script}.py"), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"python data_prep/{script}.py" in done.stdout, done.stderr
