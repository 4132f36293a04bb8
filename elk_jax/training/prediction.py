"""Prediction on a mesh, as compiled by evaluations, launch scripts, plans and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from elk_jax.training import mesh as meshes
from elk_jax.training.model import Batch, Constants, Params, Predictor


def on_mesh(model: Predictor, mesh: Mesh, echo: Sequence[str] = ()) -> Any:
    """The jitted function (params, constants, batch) -> (result of `model.predict`, the keys `echo` of the batch).

    Both are complete on every process, although each process has only its part of the batch.
    """
    map_images = meshes.shard_map_images(mesh)

    def predict(params: Params, constants: Constants, batch: Batch) -> tuple[dict[str, jax.Array], Batch]:
        return model.predict(params, constants, batch, map_images), {key: batch[key] for key in echo}

    return jax.jit(meshes.traced_on(mesh, predict), out_shardings=meshes.replicated(mesh))
