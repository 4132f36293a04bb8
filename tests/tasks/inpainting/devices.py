"""Training an inpainter on one device and with its state split over eight: run as a program, it writes what it saw.

python -m tests.tasks.inpainting.devices OUT        on 8 simulated devices
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elk_jax.diffusion.inpainter import InpainterConfig, LossConfig, Words
from elk_jax.diffusion.samplers import SamplerConfig
from elk_jax.diffusion.schedule import make_schedule
from elk_jax.diffusion.unet import WITH_ATTENTION, UNetConfig
from elk_jax.tasks.inpainting.model import Inpainter, trainable
from elk_jax.tasks.inpainting.recipe import LoraConfig
from elk_jax.training import mesh as meshes
from elk_jax.training.loop import Intervals, train
from elk_jax.training.model import Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import on_mesh
from elk_jax.training.writer import read_metrics
from tests.training import hlo

STEPS, BATCH, SIZE, WIDTH = 4, 8, 8, 128  # as wide as the rule for splitting wants it, and small otherwise


RECIPE = TrainingRecipe(
    optimizer=OptimizerConfig(name="adamw", clip_norm=1.0), schedule=Constant(base=1e-3), ema_decay=0.9
)


def model() -> Model:
    """An inpainter in pixel space."""
    unet = UNetConfig(
        in_channels=17,
        out_channels=4,
        cross_attention_dim=None,
        down_block_types=(WITH_ATTENTION,),
        block_out_channels=(WIDTH,),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    config = InpainterConfig(unet, size=SIZE, patch=2)
    noise = make_schedule("cosine", steps=50, prediction="v")
    parts = Inpainter(config, noise, SamplerConfig(steps=2), 1.0, Words())
    return trainable(parts, LossConfig(), LoraConfig(), train_text=False, base=None)


class Closeups:
    """Noise with a bright lesion under the mask, or healthy tissue, one batch after the other."""

    def __init__(self) -> None:
        self.number = 0

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.number)
        self.number += 1
        image = rng.uniform(0.2, 0.4, (BATCH, SIZE, SIZE, 1))
        mask = np.zeros_like(image)
        mask[:, 2:6, 3:7] = 1
        lesion = np.arange(BATCH) % 2
        image += 0.5 * mask * lesion[:, None, None, None]
        arrays = {"image": image, "mask": mask, "lesion": lesion}
        return {key: x.astype(np.float32) for key, x in arrays.items()} | {"valid": np.ones(BATCH, bool)}

    def get_state(self) -> int:
        return self.number

    def set_state(self, state: int) -> None:
        self.number = state


def run(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    """Losses of the real loop, where its state lies, and what its program does."""
    step = gradient(model(), RECIPE, mesh)
    result = train(
        step,
        workdir=folder,
        data_iterator=Closeups(),
        total_steps=STEPS,
        mesh=mesh,
        intervals=Intervals(log=1, checkpoint=0),
        tensorboard=False,
    )
    batch = meshes.put_batch(next(Closeups()), mesh)
    text = on_mesh(step, mesh).update.lower(result.state, {}, batch).compile().as_text()  # JAX kept what it compiled
    return {
        "losses": [record["train/loss"] for record in read_metrics(folder / "metrics.jsonl")],
        "state": {name: leaves(getattr(result.state, name)) for name in ("params", "opt_state", "ema_params")},
        "gathers": [c.elements for c in hlo.collectives(text) if c.kind == "all-gather"],
        "reduced": [c.elements for c in hlo.collectives(text) if c.kind in ("all-reduce", "reduce-scatter")],
        "arithmetic": hlo.arithmetic(text, (3, 3, WIDTH, WIDTH)),
    }


def leaves(tree: Any) -> list[tuple[int, float]]:
    """(elements, share of it that one device holds) of every array."""
    return [(x.size, x.addressable_shards[0].data.size / x.size) for x in jax.tree.leaves(tree)]


def main() -> None:
    out = Path(sys.argv[1])
    layouts = {"one": meshes.make_mesh(devices=jax.devices()[:1]), "eight": meshes.make_mesh(fsdp=8)}
    seen = {name: run(out / name, mesh) for name, mesh in layouts.items()}
    (out / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
