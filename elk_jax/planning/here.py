"""The measured time of a training step on the devices of this machine."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from elk_jax.training import mesh as meshes
from elk_jax.training.step.step import Step, fresh_params, on_mesh

REPETITIONS = 5


class Measured(NamedTuple):
    """Seconds of one call over REPETITIONS: median, least, most."""

    median: float
    least: float
    most: float


def measure_step(compiled: Any, step: Step, mesh: Mesh, batch: Any) -> Measured:
    """Seconds of an update from fresh weights, on a batch of noise with the shapes of `batch`. Constants are zeros."""
    state = on_mesh(step, mesh).init(fresh_params(step, mesh))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), step.constants)
    constants = meshes.place_constants(zeros, mesh)
    placed = meshes.put_batch(_noise(batch), mesh)
    times = []
    for repetition in range(REPETITIONS + 1):  # the first one warms up
        start = time.perf_counter()
        state, metrics = compiled(state, constants, placed)
        jax.block_until_ready(metrics)
        if repetition:
            times.append(time.perf_counter() - start)
    return Measured(statistics.median(times), min(times), max(times))


def _noise(batch: Any) -> Any:
    """The batch with noise in its pictures, so that a detector has something to propose."""
    random = np.random.default_rng(0)
    noise = lambda x: random.random(x.shape, np.float32) if x.ndim > 2 and x.dtype == np.float32 else np.array(x)
    return jax.tree.map(lambda x: noise(np.asarray(x)), batch)
