"""Training with the state split over devices (FSDP), compared with one device."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import measure, painter
from elk_jax.training import mesh as meshes


def compare(work: painter.Workload, fsdp: int, steps: int) -> dict[str, Any]:
    """Losses of `steps` updates on one device and on a mesh of `fsdp`, and the state per device.

    Raises UserError unless `fsdp` divides the number of devices, and that the batch.
    """
    mesh = meshes.make_mesh(fsdp=fsdp)
    one, many = (_train(work, layout, steps) for layout in (meshes.make_mesh(devices=jax.devices()[:1]), mesh))
    difference = max(abs(a - b) / abs(a) for a, b in zip(one["losses"], many["losses"], strict=True))
    return {
        "benchmark": "diffusion_fsdp",
        "settings": {**dataclasses.asdict(work), "fsdp": fsdp, "mesh": dict(mesh.shape), "updates": steps},
        **measure.surroundings(),
        "one_device": one,
        "fsdp": many,
        "largest_relative_loss_difference": difference,
        "stable_diffusion_1_5": state_bytes(dataclasses.replace(work, model="sd15", size=512, with_text=True), mesh),
    }


def state_bytes(work: painter.Workload, mesh: Mesh) -> dict[str, int]:
    """Bytes of the training state that one device holds, by part, and of the whole; from shapes alone."""
    state = painter.training(work, mesh).state

    def held(tree: Any) -> int:
        return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return {"params": held(state.params), "opt_state": held(state.opt_state), "total": held(state), "whole": whole}


def _train(work: painter.Workload, mesh: Mesh, steps: int) -> dict[str, Any]:
    program = painter.training(work, mesh)
    params = meshes.init_sharded(lambda key: painter.init(work, key), jax.random.key(0), mesh=mesh)
    state = program.init(params)
    compiled = program.update.lower(state, {}, meshes.put_batch(painter.random_batch(work), mesh)).compile()
    losses = []
    for number in range(steps):
        state, metrics = compiled(state, {}, meshes.put_batch(painter.random_batch(work, seed=number), mesh))
        losses.append(float(metrics["loss"]))
    return {
        "losses": losses,
        "state_bytes_per_device": state_bytes(work, mesh),
        "program_bytes_per_device": measure.program_bytes(compiled),
    }
