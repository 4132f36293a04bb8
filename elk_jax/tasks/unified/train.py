"""Train a fused detector: the third stage of the unified regime, its upper and lower bounds, and its alternatives.

Shapes: F channels of a trunk; L maps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from elk_jax.data.sources.source import ImageSource
from elk_jax.detection import detectors, fused
from elk_jax.detection.detector import Detector
from elk_jax.detection.fused_config import FusedConfig
from elk_jax.errors import UserError
from elk_jax.tasks.detection import train as detection
from elk_jax.tasks.detection.combine import join_folds
from elk_jax.tasks.detection.model import learned_maps
from elk_jax.tasks.detection.recipe import DetectionRecipe
from elk_jax.tasks.detection.train import Learning
from elk_jax.tasks.run import Run
from elk_jax.tasks.task import Summary, Workload
from elk_jax.tasks.unified.recipe import TrainFusedStage
from elk_jax.training.model import Params
from elk_jax.weights import model_folder

SAME = "give both the same model settings"


def check_start(run: Run, stage: TrainFusedStage, recipe: DetectionRecipe, names: Collection[str]) -> None:
    """Raise UserError as for the training of a detector, for a detector without two trunks, and if a member is not an
    EfficientDet with the settings of the trunks.

    names: stages that will run; their weights do not exist yet.
    """
    _config(stage, recipe)
    if recipe.privacy is not None:
        what, where = "a fused detector is not trained privately", f"config.{stage.recipe}.privacy"
        raise UserError(what, where=where, todo="set it to None")
    _check_taps(run, stage, recipe)
    detection.check_start(run, stage, recipe, names)
    detector = detectors.build(detection.settings(recipe, recipe.model.num_classes))
    fresh = jax.eval_shape(_member(detector).init, jax.random.key(0))
    written = {setting: name for setting, name in stage.members.items() if name not in names}
    _read(run, stage, written, detector, fresh)
    for name in stage.members.values():
        if name in names:
            _check_planned(run, stage, recipe, name)


def _check_planned(run: Run, stage: TrainFusedStage, recipe: DetectionRecipe, name: str) -> None:
    """UserError if a member that is yet to be trained will be a different network from the trunks."""
    before = run.experiment.stages[name]
    place = Path(f"config.{before.recipe}.model")
    trained = detection.settings(run.experiment.recipe_of(before), recipe.model.num_classes)
    planned, member = detectors.build(trained), detectors.build(fused.member_config(recipe.model))
    if differing := detection.differing_layer(planned, member):
        raise UserError(f"{name} will be a different network from the trunks: its {differing}", where=place, todo=SAME)
    conventions = member.settled_by(model_folder.shapes_of(member.init))
    model_folder.check_same(planned.config, member.config, conventions, place, f"{stage.recipe}.model")


def _check_taps(run: Run, stage: TrainFusedStage, recipe: DetectionRecipe) -> None:
    """UserError if a member (a stage, or a model folder with its description) has learned other maps than those that
    are joined."""
    for setting, name in stage.members.items():
        before = run.experiment.stages.get(name)
        if before is None:
            tap, todo = learned_maps(run.model_folder(name)), "set it to these, or name another model"
        else:
            learned: Any = run.experiment.recipe_of(before)
            tap = "" if getattr(learned, "detects", True) else learned.tap
            todo = f"set it and config.{before.recipe}.tap to the same"
        if tap not in ("", recipe.model.tap):
            what = f"the {setting} trunk, {name}, learns maps of the {tap}, but those of the {recipe.model.tap} are"
            raise UserError(f"{what} joined", where=f"config.{stage.recipe}.model.tap", todo=todo)


def train(run: Run, stage: TrainFusedStage, recipe: DetectionRecipe) -> Summary:
    """Train one detector and write `<stage>/model/`."""
    return _told(run, stage, recipe, detection.train_with(run, stage, recipe, _prepare))


def join(run: Run, stage: TrainFusedStage, recipe: DetectionRecipe) -> Summary:
    """Write `<stage>/model/`, the ensemble of the stage's folds."""
    return _told(run, stage, recipe, join_folds(run, stage, recipe))


def _told(run: Run, stage: TrainFusedStage, recipe: DetectionRecipe, found: Summary) -> Summary:
    """The summary of a detector, with its trunks. For an ensemble, which has several joining layers, it has no
    shares."""
    shares = {}
    if run.is_main:
        params, _ = model_folder.load_params(run.folder / stage.name / "model")
        shares = fused.shares_of_other(params)
    return {
        **found,
        "second": recipe.model.second,
        "drop": recipe.model.drop,
        "members": stage.members,
        "shares_of_other": shares,
    }


def _prepare(
    run: Run, stage: TrainFusedStage, recipe: DetectionRecipe, detector: Detector, source: ImageSource
) -> Learning:
    found = detection.prepare(run, stage, recipe, detector, source)
    if not stage.members:
        return found
    member, key = _member(detector), jax.random.key(detection.seed_of(run, stage))
    trunks = _read(run, stage, stage.members, detector, jax.device_get(member.init(key)))
    for setting, name in stage.members.items():
        run.say(f"  {setting} trunk from {run.model_folder(name)}")
    joined = fused.from_members(detector.config, trunks["own"], trunks["other"])
    fresh = detector.init(key) if detector.config.join == "concat" else {}
    return found._replace(initial=jax.device_get({**fresh, **joined}))


def _read(
    run: Run, stage: TrainFusedStage, members: Mapping[str, str], detector: Detector, fresh: Params
) -> dict[str, Params]:
    """Setting -> the weights of the model of its trunk. fresh: parameters of a member, or their shapes."""
    member = _member(detector)
    return {
        setting: detection.from_weights(run.model_folder(name), fresh, member, stage.recipe)
        for setting, name in members.items()
    }


def _member(detector: Detector) -> Detector:
    return detectors.build(fused.member_config(detector.config))


def _config(stage: TrainFusedStage, recipe: DetectionRecipe) -> FusedConfig:
    if not isinstance(recipe.model, FusedConfig):
        what = f"a {recipe.model.name} has one trunk"
        raise UserError(what, where=f"config.{stage.recipe}.model.name", todo="set it to fused")
    return recipe.model


def workload(stage: TrainFusedStage, recipe: DetectionRecipe, batch_size: int | None) -> Workload:
    """The training of a fused detector of one class, on every canvas of its recipe."""
    _config(stage, recipe)
    return detection.workload(stage, recipe, batch_size)
