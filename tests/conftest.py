"""Shared set-up: CPU, a persistent compilation cache (the same tiny programs recur), where the real images may lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the public images (`cdd_cesm_512` and others); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("ELK_JAX_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set ELK_JAX_REAL_DATA to run this test")
    return folder
