"""The stage that trains a translator: leaves `<stage>/model/` (translation_model.py) and `pictures/` on the way."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from elk_jax.data.batches import pairs
from elk_jax.diffusion import translator
from elk_jax.tasks import sampling as drawing
from elk_jax.tasks import training as recipe_training
from elk_jax.tasks.run import Run, model_folder
from elk_jax.tasks.translation import model as translation_model
from elk_jax.tasks.translation import settings as translation
from elk_jax.tasks.translation.settings import Translator
from elk_jax.training.model import Params, Task
from elk_jax.weights import model_folder as store

SHOWN = 6
"""Validation pairs of the picture grid."""


def train(run: Run, name: str) -> dict[str, Any]:
    """Train a translator and write `<stage>/model/`. Returns a summary for the report."""
    config, stage = run.config, run.config.stages[name]
    recipe = config[stage.recipe]

    # ---- Data ----------------------------------------------------------------------------------------------------
    model = translation.model_config(recipe.model)
    settings = translation.pair_config(recipe.pairs, model.size)
    found = translation.open_pairs(run.data, stage.train_on, "train", config.seed, settings)
    validation = translation.open_pairs(run.data, (stage.validate_on,), "val", config.seed, settings)
    batches = pairs.train_pairs(found, settings, config.seed, jax.process_index(), jax.process_count())
    shown = list(pairs.eval_pairs(validation, settings, recipe.validation_pairs))
    parts = Translator(model, translation.sampler(recipe.sampler, model.bridge), translation.measure_greys(found))
    shapes = jax.eval_shape(lambda rng: translator.init(model, rng), jax.random.key(0))
    counts = translation.summary(found)
    run.say(
        f"  train {counts['tiles']} tiles of {model.size} px from {counts['images']} images of {counts['patients']} "
        f"patients; model {recipe_training.parameter_count(shapes):,} parameters"
    )

    # ---- Train ---------------------------------------------------------------------------------------------------
    task = translation.build_task(parts, recipe.loss)
    initial = None
    if stage.init_from:
        start = model_folder(run, stage.init_from)
        run.say(f"  starts from {start}")
        before, weights, _ = translation_model.load(start)
        store.check_same(before.model, model, ("patch", "condition", "answer", "bridge"), start, stage.recipe)
        initial = store.restore_into(shapes, weights, where=start)
    result = recipe_training.train(
        run,
        name,
        task,
        batches,
        initial=initial,
        evaluate=recipe_training.fixed_loss(task, shown, run.mesh),
        draw=_drawing(task, shown, config.seed, run.mesh),
        best_metric="loss",
        best_mode="min",
        model=dataclasses.asdict(model),
        validation=validation.infos,
    )

    # ---- The model ----------------------------------------------------------------------------------------------
    params, training = recipe_training.kept(run, name, result, found.infos)
    if run.is_main:
        description = translation_model.describe(parts) | {"trained": training}
        store.save_params(run.folder / name / "model", params, description)
    return {
        "kind": "train",
        "task": "translation",
        "data": {"train": counts, "validation": translation.summary(validation)},
        "skipped": [list(entry) for entry in (*found.skipped, *validation.skipped)],
        **recipe_training.outcome(result),
    }


def _drawing(task: Task, shown: list, seed: int, mesh: jax.sharding.Mesh):
    """Some validation pairs, low energy above, real below, and between them the translation from fixed noise."""
    draw_pictures = drawing.compile_painter(task, mesh)
    whole = {key: np.concatenate([batch[key][batch["valid"]] for batch in shown]) for key in shown[0]}
    chosen = np.unique(np.linspace(0, len(whole["index"]) - 1, min(SHOWN, len(whole["index"]))).round().astype(int))
    low, real = whole["low_energy"][chosen], whole["subtracted"][chosen]
    noises = drawing.seeds(seed, np.arange(len(chosen)))

    def draw(params: Params, step: int) -> dict[str, np.ndarray]:
        translated = draw_pictures(params, {"image": low, "seed": noises})
        return {"translated": drawing.grid([low, translated, real])}

    return draw
