"""TPUs to compile for, where libtpu is installed: its compiler needs no TPU."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

from elk_jax.training import mesh as meshes

ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # what libtpu would ask of a TPU's metadata server, three of them
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened, so that workers need not wait for each other
}


def tpu_mesh(topology: str = "v5e:2x2", data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh over the chips of a slice that nobody has: programs can be compiled for it, but not run.

    `jax.default_backend()` remains the CPU. The test is skipped where libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (the version that jax[tpu] asks for)")
    os.environ |= {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    return meshes.make_mesh(data, fsdp, topologies.get_topology_desc(topology, platform="tpu").devices)


def compiled(lowered: Any) -> Any:
    """The executable of a lowered program of a `tpu_mesh`.

    With the least effort (a convolution of 64 x 64 takes 1 s instead of 6) and without the persistent cache, which
    cannot read what it wrote for a TPU that is not there.
    """
    longest = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    try:
        return lowered.compile({"exec_time_optimization_effort": -1.0})
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", longest)
