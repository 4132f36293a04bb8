"""Values of recipes and stages that cannot be, named before anything is opened, written or trained."""

from __future__ import annotations

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from elk_jax.data.batches.mixing import check_weights
from elk_jax.data.flips import check_flips
from elk_jax.errors import UserError
from elk_jax.evaluation.evaluate import METRIC_NAMES
from elk_jax.evaluation.hits import criterion_from_text
from elk_jax.synthesis.placement import AREAS
from elk_jax.tasks.detection import settings as detection
from elk_jax.tasks.inpainting import settings as inpainting
from elk_jax.tasks.settings import named
from elk_jax.tasks.translation import settings as translation
from elk_jax.training import optimizer, schedules

AT_LEAST = {
    "steps": 1,
    "accumulate": 1,
    "log_every": 1,
    "checkpoint_every": 0,  # 0: at the end alone, like eval_every
    "eval_every": 0,
    "bootstrap": 0,
    "cached_windows": 0,
    "validation_closeups": 0,  # 0: all, like validation_pairs
    "validation_pairs": 0,
    "count": 0,  # of a synthesis stage, like batch_size
    "batch_size": 1,
}
SHARES = ("score_floor", "choose_score_floor")
CHECKPOINTS = ("last", "best")


def check_recipe(task: str, recipe: ConfigDict, where: str) -> None:
    """Raise UserError for the first value of a recipe that cannot be. where: its key, `config.detector`."""
    _check_ranges(recipe, where)
    decay = recipe.ema_decay
    _require(0 <= decay < 1, f"{where}.ema_decay", decay, "give a number from 0 (none) to below 1")
    for check in (CHECKS[task], _check_optimisation):
        named(where, check, recipe)


def check_stage(stage: ConfigDict, where: str) -> None:
    """Raise UserError for the first value of a stage that cannot be. where: its key, `config.stages.NAME`."""
    _check_ranges(stage, where)
    if "criterion" in stage:
        named(f"{where}.criterion", criterion_from_text, stage.criterion)
    if "area" in stage:
        _require(stage.area in AREAS, f"{where}.area", stage.area, f"choose one of {', '.join(AREAS)}")
    if "weights" in stage:
        named(f"{where}.weights", partial(check_weights, sources=len(stage.train_on)), stage.weights)
    if "share" in stage:
        _require(stage.share > 0 or stage.count > 0, f"{where}.share", stage.share, "give a share above 0, or a count")


def _check_ranges(settings: ConfigDict, where: str) -> None:
    for key, least in AT_LEAST.items():
        if key in settings:
            _require(settings[key] >= least, f"{where}.{key}", settings[key], f"give at least {least}")
    for key in SHARES:
        if key in settings:
            _require(0 <= settings[key] <= 1, f"{where}.{key}", settings[key], "give a number from 0 to 1")


def _check_detection(recipe: ConfigDict) -> None:
    if recipe.best_metric not in METRIC_NAMES:
        raise UserError(
            f"no metric '{recipe.best_metric}' to choose a checkpoint by",
            where="best_metric",
            todo=f"choose one of {', '.join(METRIC_NAMES)}",
        )
    named("test_flips", check_flips, recipe.test_flips)
    detection.model_config(recipe.model, num_classes=1)
    detection.test_loader_config(recipe)


def _check_inpainting(recipe: ConfigDict) -> None:
    _require(recipe.choose in CHECKPOINTS, "choose", recipe.choose, f"choose one of {', '.join(CHECKPOINTS)}")
    inpainting.check_recipe(recipe)


def _check_translation(recipe: ConfigDict) -> None:
    _require(recipe.choose in CHECKPOINTS, "choose", recipe.choose, f"choose one of {', '.join(CHECKPOINTS)}")
    translation.check_recipe(recipe)


CHECKS = {"detection": _check_detection, "inpainting": _check_inpainting, "translation": _check_translation}
"""By task."""


def _check_optimisation(recipe: ConfigDict) -> None:
    optimizer.parse(recipe.optimizer.to_dict())
    schedules.build(recipe.schedule.to_dict(), recipe.steps)


def _require(holds: bool, where: str, value: Any, todo: str) -> None:
    if not holds:
        raise UserError(f"{where.rpartition('.')[2]} is {value!r}", where=where, todo=todo)
