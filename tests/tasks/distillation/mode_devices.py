"""Steps that learn by several modes at once, and by alignment, on several devices: as a program, it writes what it saw.

python -m tests.tasks.distillation.mode_devices OUT              on 8 simulated devices
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

from elk_jax.tasks.distillation.model import LEARNED, aligning, learning, of_detector
from elk_jax.tasks.distillation.recipe import DistillationRecipe
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import fresh_params, on_mesh
from tests.tasks.distillation.test_model import CONFIG, SIDE, detector
from tests.training import hlo

STEPS, BATCH = 2, 8
TRIED = ("lesion", "image", "classwise", "pkd", "fgd", "contrastive", "hints", "outputs")
"""The others reduce as these do: over the images of a batch, their pairs, or the cells of an image."""
RECIPE = TrainingRecipe(optimizer=OptimizerConfig(name="sgd", weight_decay=0.0), schedule=Constant(base=0.02))


def everything() -> Model:
    """A detector whose loss is the sum of those of modes, each with what it learns itself, and of alignment."""
    own = detector()
    double = lambda tree: jax.tree.map(lambda x: x.astype("float64"), tree)
    teacher = double(jax.jit(own.init)(jax.random.key(7)))
    students = {
        mode: learning(own, own, teacher, DistillationRecipe(model=CONFIG, mode=mode, stride=8), (SIDE, SIDE))
        for mode in TRIED
    }
    aligned = aligning(own, DistillationRecipe(model=CONFIG, points=4, stride=8))

    def init(rng):
        found = {mode: one.init(rng) for mode, one in students.items()}
        learned = {mode: one[LEARNED] for mode, one in found.items() if LEARNED in one}
        return double({**of_detector(next(iter(found.values()))), "own": learned})

    def loss(params, constants, batch, rng, map_images):
        net = {name: part for name, part in params.items() if name != "own"}
        total, seen = aligned.loss(net, {}, batch, rng, map_images)
        for mode, one in students.items():
            learned = {LEARNED: params["own"][mode]} if mode in params["own"] else {}
            value, terms = one.loss({**net, **learned}, constants, batch, rng, map_images)
            total, seen = total + value, {**seen, f"loss_{mode}": terms["loss_distillation"]}
        return total, seen

    return Model(init=init, loss=loss, predict=lambda *_: {}, per_example=False, constants={"teacher": teacher})


def batch(number: int) -> dict:
    """Noise with a bright lesion in every image but the first; the last is a filler."""
    rng = np.random.default_rng(number)
    image = rng.uniform(0.05, 0.3, (BATCH, SIDE, SIDE, 1))
    corner, extent = rng.integers(0, 12, (BATCH, 2)), rng.integers(6, 18, (BATCH, 2))
    boxes = np.zeros((BATCH, 2, 4))
    boxes[:, 0] = np.concatenate([corner, corner + extent], axis=1)
    for i, (x0, y0, x1, y1) in enumerate(boxes[:, 0].astype(int)):
        image[i, y0:y1, x0:x1] += 0.6
    return {
        "image": image,
        "image_size": np.full((BATCH, 2), float(SIDE)),
        "gt_boxes": boxes,
        "gt_labels": np.zeros((BATCH, 2), np.int32),
        "gt_valid": np.arange(BATCH)[:, None] * np.array([[1, 0]]) > 0,
        "gt_ignore": np.zeros((BATCH, 2), bool),
        "valid": np.arange(BATCH) < BATCH - 1,
    }


def run(mesh) -> dict:
    """The metrics of the steps, and what the compiled step gathers."""
    model = everything()
    step = gradient(model, RECIPE, mesh)
    program, constants = on_mesh(step, mesh), meshes.place_constants(model.constants, mesh)
    state, update, seen = program.init(fresh_params(step, mesh)), None, []
    for number in range(STEPS):
        both = {**batch(number), "beside": batch(10 + number), "distilled": np.ones(BATCH, bool)}
        placed = meshes.put_batch(both, mesh)
        update = update or program.update.lower(state, constants, placed).compile()
        state, metrics = update(state, constants, placed)
        seen.append({key: float(value) for key, value in metrics.items()})
    return {"metrics": seen, "gathers": [list(c) for c in hlo.gathers(update.as_text())]}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    layouts = {"one": meshes.make_mesh(devices=jax.devices()[:1]), "eight": meshes.make_mesh()}
    Path(sys.argv[1], "seen.json").write_text(json.dumps({name: run(mesh) for name, mesh in layouts.items()}))


if __name__ == "__main__":
    main()
