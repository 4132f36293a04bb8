"""The modules beside the golden fixtures, which tests cannot import by name."""

import importlib.util
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent.parent / "golden"


def _module(name):
    spec = importlib.util.spec_from_file_location(f"golden_{name}", GOLDEN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def seeded():
    """Weights and images made from their names (tests/golden/seeded.py)."""
    return _module("seeded")


@pytest.fixture(scope="session")
def compare():
    """Our side of the comparison with a reference (tests/golden/compare.py)."""
    return _module("compare")
