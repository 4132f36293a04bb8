"""TPUs to compile for, where libtpu is installed: its compiler needs no TPU."""

from __future__ import annotations

from typing import Any

import pytest
from jax.sharding import Mesh

from elk_jax.programs import libtpu, topology
from elk_jax.training import mesh as meshes


def need_compiler() -> None:
    """Skip the test where libtpu is not installed."""
    if not libtpu.is_installed():
        pytest.skip("libtpu is not installed: pip install 'elk_jax[tpu]'")


def tpu_mesh(name: str = "v5e:2x2", data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh over the chips of a slice that nobody has: programs can be compiled for it, but not run.

    `jax.default_backend()` remains the CPU. The test is skipped where libtpu is not installed.
    """
    need_compiler()
    return meshes.make_mesh(data, fsdp, topology.find(name).devices)


def compiled(lowered: Any) -> Any:
    """The executable of a lowered program of a `tpu_mesh`, by the least effort of the compiler."""
    return topology.compile_for(lowered, topology.find("v5e:2x2"), quick=True)
