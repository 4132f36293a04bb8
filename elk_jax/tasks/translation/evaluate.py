"""Translated against real subtracted images, on pairs that no model was trained on; leaves `<stage>/evaluation.json`.

All measures are taken inside the breast as shown by the low-energy image, so the measured region does not depend on the
result. The models are compared with two baselines that ignore the tissue: the low-energy image with the mean and
standard deviation of the subtracted training images, and their mean grey value everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from elk_jax import files
from elk_jax.data.batches import pairs as batches
from elk_jax.data.sources.pairs import Pairs
from elk_jax.errors import UserError
from elk_jax.evaluation import similarity
from elk_jax.images.breast import breast_mask
from elk_jax.progress import Progress
from elk_jax.spread import spread
from elk_jax.tasks import sampling
from elk_jax.tasks.run import Run, skipped_images
from elk_jax.tasks.task import Summary
from elk_jax.tasks.translation.model import Greys, load, trainable
from elk_jax.tasks.translation.page import translation_table
from elk_jax.tasks.translation.recipe import EvaluateTranslatorsStage, TranslationRecipe
from elk_jax.tasks.translation.train import open_pairs, summary
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder

BASELINES: dict[str, Callable[[Greys, np.ndarray], np.ndarray]] = {
    "low energy, matched": lambda greys, low: greys.matched(low),
    "mean grey": lambda greys, low: np.full_like(low, greys.subtracted_mean),
}
"""Name -> (grey statistics of training, low-energy image) -> the predicted subtracted image."""

REAL = "real images"
CONTRAST = "lesion_contrast"
GALLERY = 12
"""Number of tiles in the gallery, spread over the split."""

Columns = dict[str, list[float]]
"""The measures of every tile, by name."""


def evaluate(run: Run, stage: EvaluateTranslatorsStage, recipe: TranslationRecipe) -> Summary:
    """Translate a split with each model of the stage and compare the results.

    The baselines use the grey statistics of the first model's training images.
    """
    models = {name: load(run.folder / name / "model") for name in stage.models}
    for name, (parts, params, _) in models.items():
        model_folder.check_fits(params, model_folder.shapes_of(trainable(parts).init), run.folder / name / "model")
    size, *others = {trained.parts.model.size for trained in models.values()}
    if others:
        todo = "evaluate models of one model.size in a stage"
        raise UserError("the models have tiles of different sizes", where=f"stage {stage.name}", todo=todo)
    held_out = open_pairs(run, (stage.on,), stage.split, recipe.pairs, size)
    patients = [info.patient_id for info in held_out.infos]
    shown = set(spread(len(held_out), GALLERY))
    found: dict[str, Columns] = {REAL: {}}
    pictures: list[dict[str, Any]] = []
    for name, (parts, params, _) in models.items():
        sample = sampling.compile_sampler(trainable(parts), run.mesh)
        placed = meshes.place(params, run.mesh)
        baselines = {key: make for key, make in BASELINES.items() if key not in found}
        first = not found[REAL]
        with Progress(f"  translating with {name}", len(held_out), unit="tile") as bar:
            for batch in batches.eval_pairs(held_out, recipe.pairs):
                noises = sampling.seeds(run.seed, batch["index"])
                images = sample(placed, {"image": batch["low_energy"], "seed": noises})
                for row in np.flatnonzero(batch["valid"]):
                    low, real = batch["low_energy"][row, ..., 0], batch["subtracted"][row, ..., 0]
                    index = int(batch["index"][row])
                    image, mask = images[row, ..., 0], breast_mask(low)
                    answers = {name: image} | {key: make(parts.greys, low) for key, make in baselines.items()}
                    for key, answer in answers.items():
                        _add(found.setdefault(key, {}), similarity.similarity(answer, real, mask))
                        _add(found[key], {CONTRAST: _contrast(held_out, index, answer, mask)})
                    if first:
                        _add(found[REAL], {CONTRAST: _contrast(held_out, index, real, mask)})
                    if index in shown and run.is_main:
                        pictures.append(_picture(run, stage.name, name, held_out, index, (low, image, real)))
                bar.update(bar.done + int(batch["valid"].sum()))
    evaluation = compare(found, patients, stage.models, recipe.bootstrap, run.seed)
    evaluation |= {"on": stage.on, "split": stage.split, "pictures": pictures}
    if run.is_main:
        files.write_json(run.folder / stage.name / "evaluation.json", evaluation)
        run.console.print(translation_table(evaluation, f"{stage.split} split of {stage.on}"))
    return {
        "kind": "evaluate",
        "on": stage.on,
        "split": stage.split,
        "models": list(stage.models),
        "data": summary(held_out),
        "skipped": skipped_images(held_out),
    }


def compare(
    found: Mapping[str, Columns], patients: list[str], models: tuple[str, ...], resamples: int, seed: int
) -> dict[str, Any]:
    """Means with intervals over patients, and paired differences of each model from each baseline; JSON-able."""
    columns = {key: {m: np.array(values) for m, values in measures.items()} for key, measures in found.items()}
    between = {
        model: {
            key: similarity.differences(columns[key], columns[model], patients, resamples, seed) for key in BASELINES
        }
        for model in models
    }
    rows = (*models, *BASELINES, REAL)
    return {
        "counts": {
            "tiles": len(patients),
            "patients": len(set(patients)),
            "with_lesions": int(np.isfinite(columns[REAL][CONTRAST]).sum()),
        },
        "models": list(models),
        "measures": {key: similarity.estimates(columns[key], patients, resamples, seed) for key in rows},
        "differences": between,
    }


def _contrast(held_out: Pairs, index: int, image: np.ndarray, mask: np.ndarray) -> float:
    info = held_out.infos[index]
    return similarity.lesion_contrast(image, info.boxes[~info.ignore], mask)


def _add(columns: Columns, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        columns.setdefault(key, []).append(value)


def _picture(
    run: Run, name: str, model: str, held_out: Pairs, index: int, panels: tuple[np.ndarray, ...]
) -> dict[str, Any]:
    """Write low energy, translated and real side by side; returns their description for the report."""
    file = f"{model}-{index:06d}.png"
    folder = files.make_folder(run.folder / name / "pictures")
    grey = (np.clip(np.concatenate(panels, axis=1), 0, 1) * 255).round().astype(np.uint8)
    files.write_bytes(folder / file, cv2.imencode(".png", grey)[1].tobytes())
    info, (_, window) = held_out.infos[index], held_out.places[index]
    return {
        "file": file,
        "model": model,
        "image": info.image_id,
        "position": list(window[:2]),
        "boxes": info.boxes.astype(float).round(2).tolist(),
    }
