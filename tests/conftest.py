"""Shared set-up: CPU, a persistent compilation cache (the same tiny programs recur), where real images may be found,
and the memory of the processes that run the tests."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import pytest  # noqa: E402

LARGE = 1.5
"""Gigabytes of a worker from which compiled programs are released."""
PEAKS: list[float] = []
"""Gigabytes that each finished worker took at most."""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the public images (`cdd_cesm_512` and others); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("ELK_JAX_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set ELK_JAX_REAL_DATA to run this test")
    return folder


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Release compiled programs after a file whose worker has grown large: other files seldom need them."""
    yield
    if "jax" in sys.modules and _resident_gb() > LARGE:
        sys.modules["jax"].clear_caches()
        gc.collect()


def _resident_gb() -> float:
    """Memory of this process; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30 if status.exists() else 0.0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the main process how much memory this worker of pytest-xdist took."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    PEAKS.append(getattr(node, "workeroutput", {}).get("peak_gb", 0.0))


def pytest_terminal_summary(terminalreporter) -> None:
    if PEAKS:
        peaks = ", ".join(f"{peak:.1f}" for peak in PEAKS)
        terminalreporter.write_line(f"peak memory of each worker: {peaks} GB")
