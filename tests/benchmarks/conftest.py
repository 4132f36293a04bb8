"""The benchmarks of a detector of a few channels on 64 px, measured once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def tiny_config():
    from benchmarks import workload

    return workload.faster_rcnn(18, "float32", tiny=True)


@pytest.fixture(autouse=True)
def _memory_of_this_process_is_left_alone(monkeypatch):
    from elk_jax import host_memory

    monkeypatch.setattr(host_memory, "keep_freed", lambda: None)
