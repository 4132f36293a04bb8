"""Shared set-up: CPU, quick compilation, a persistent cache of it (the same tiny programs recur), where real images may
be found, and the memory of the processes that run the tests."""

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
# Most of the tests' time is compilation, and of that most is optimisation, from which programs this small gain nothing.
# These variables reach the processes that tests start, too. With XLA's defaults: JAX_DISABLE_MOST_OPTIMIZATIONS=0
# XLA_FLAGS= bash launch/test.sh
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
gc.set_threshold(100_000, 50, 50)  # else a sixth of the time of tracing is collection
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

import pytest  # noqa: E402

LONGEST = (
    *("experiments/test_cem_mixed.py", "training/test_detector_sharding.py", "weights/test_golden.py"),
    *("tasks/inpainting/test_stable_diffusion.py", "experiments/test_processes.py"),
    *("tasks/inpainting/test_sharding.py", "benchmarks/test_diffusion.py", "launch/test_resume.py"),
    *("tasks/inpainting/test_synthesize.py", "training/test_mesh.py", "detection/test_faster_rcnn.py"),
    *("benchmarks/test_gpu.py", "benchmarks/test_scaling.py"),
)
"""Files that take longest, longest first: started first, they do not keep one worker busy after the others are done."""
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


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
