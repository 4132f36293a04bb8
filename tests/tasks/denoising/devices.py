"""Steps of a denoiser on one device and on two, written to FOLDER/seen.json; run with JAX_NUM_CPU_DEVICES=2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

from configs import patch_denoiser
from elk_jax.experiments.parse import parse
from elk_jax.tasks.denoising.train import trainable
from elk_jax.training import mesh as meshes
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import fresh_params, on_mesh


def losses(devices: int) -> list[float]:
    """Of two steps; the last example of either batch is padding."""
    recipe = parse(patch_denoiser.get_config("tiny")).recipes["denoiser"]
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    step = gradient(trainable(recipe), recipe, mesh, seed=1)
    program, rng = on_mesh(step, mesh), np.random.default_rng(0)
    state, found = program.init(fresh_params(step, mesh)), []
    for _ in range(2):
        image, valid = rng.random((8, 16, 16, 1), np.float32), np.arange(8) < 7
        batch = {"image": image, "label": np.arange(8, dtype=np.int32) % 2, "valid": valid}
        state, metrics = program.update(state, step.constants, meshes.put_batch(batch, mesh))
        found += [float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")]
    return found


if __name__ == "__main__":
    assert jax.device_count() == 2
    Path(sys.argv[1], "seen.json").write_text(json.dumps({str(count): losses(count) for count in (1, 2)}))
