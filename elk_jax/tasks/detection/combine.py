"""Combine detectors into an ensemble that fuses their boxes. The stage leaves `model/`, which contains them all."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.data.sources.source import counted, summary
from elk_jax.detection.detectors import DETECTORS
from elk_jax.errors import UserError
from elk_jax.evaluation import operating
from elk_jax.evaluation.detections import ImageResult
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks import folds, training
from elk_jax.tasks.detection import model, predict
from elk_jax.tasks.detection.evaluate import reads_pairs
from elk_jax.tasks.detection.model import EnsembleDescription
from elk_jax.tasks.detection.predict import looks
from elk_jax.tasks.detection.recipe import CombineDetectorsStage, DetectionRecipe, TrainDetectorStage
from elk_jax.tasks.detection.search import (
    Way,
    best_of,
    choose_way,
    comparing,
    measured,
    read_views,
    say_views,
    score_of,
    views_chosen,
    ways_to_look,
    whole_way,
)
from elk_jax.tasks.detection.train import say_skipped
from elk_jax.tasks.run import Experiment, Run, skipped_images
from elk_jax.tasks.stages import CombineStage, Need
from elk_jax.tasks.task import Summary
from elk_jax.weights import model_folder
from elk_jax.weights.model_folder import Training


def needs(experiment: Experiment, stage: CombineDetectorsStage, recipe: DetectionRecipe) -> list[Need]:
    """Both images of a breast, if a member reads them."""
    (data,) = stage.data()
    return [Need(data, "pairs", f"{name} reads pairs") for name in stage.members if reads_pairs(experiment, name)]


def check_combine(run: Run, stage: CombineDetectorsStage, recipe: DetectionRecipe, names: Collection[str]) -> None:
    """UserError for a member that is an ensemble or not a detector, for members with different folds, for scales that
    the folds did not use, and, for members that exist already, for different classes and scales that are too large."""
    count = folds.dealt_alike(run.experiment, stage)
    known: list[model.Trained] = []
    for number, name in enumerate(stage.members):
        where, before = f"config.stages.{stage.name}.members[{number}]", run.experiment.stages.get(name)
        folder = run.model_folder(name)
        written = before is None or name not in names
        kind = model_folder.architecture_of(folder) if written else ""
        joined = before is not None and folds.makes_ensemble(before, run.experiment.recipe_of(before))
        if isinstance(before, CombineStage) or joined or kind == model.ENSEMBLE:
            raise UserError(f"{name} is itself an ensemble", where=where, todo="name its members instead")
        of_detectors = before is None or isinstance(run.experiment.recipe_of(before), DetectionRecipe)
        if not of_detectors or (written and kind not in DETECTORS):
            raise UserError(f"not a detector: {name}", where=where, todo="name a stage that trains one")
        if written:
            known.append(model.load_one(folder))
            model.check_alike(known[-1].description, known[0].description, folder)
            entry: Any = known[-1].description.input
            own = known[-1].description.input.scales
        else:
            assert before is not None
            trained = run.experiment.recipe_of(before)
            entry, own = trained.test_loader(), trained.test_scales
        for scale, one in itertools.product(stage.scales, own):
            model.at_scale(entry, scale * one, f"config.stages.{stage.name}.scales")
    if count and set(stage.scales) != {1.0}:
        what = f"the folds of the members did not detect at the scales {stage.scales}"
        where = f"config.stages.{stage.name}.scales"
        todo = "set it to (1.0,) and use test_scales of the members' recipes, or set the folds of the members to 0"
        raise UserError(what, where=where, todo=todo)


def combine(run: Run, stage: CombineDetectorsStage, recipe: DetectionRecipe) -> Summary:
    """Write `<stage>/model/`, with the IoU of the fusion and the operating points chosen on the validation split; if
    the members have folds, chosen on the detections of the folds for the patients they had not seen."""
    folders = [run.model_folder(name) for name in stage.members]
    members = [model.load_one(folder) for folder in folders]
    for folder, member in zip(folders, members):
        model.check_alike(member.description, members[0].description, folder)
    floor, weights = recipe.score_floor, stage.weights or (1.0,) * len(members)
    images, count = max(member.tested_images for member in members), folds.dealt_alike(run.experiment, stage)
    seeing = folds.of_everyone(run, stage.validate_on, count) if count else run
    on = seeing.fold.in_words if seeing.fold else operating.VALIDATION
    validation = seeing.open(stage.validate_on, "val", images)
    run.say(f"  {len(members)} detectors; {on}: {counted(validation.infos)}")
    say_skipped(run, validation)
    if count:
        found = lambda name, member: found_by_folds(folds.held_out(run, name), member, validation.infos, floor)
        views: predict.MemberViews = [[found(name, member)] for name, member in zip(stage.members, members)]
    else:
        views = predict.members_views(members, stage.scales, validation, run.mesh, floor)
    fused = lambda views, weights, same: predict.fuse_members(views, weights, same, floor)
    tried = {same: score_of(fused(views, weights, same), recipe) for same in stage.same}
    same = best_of(tried)
    alone = [score_of(fused([own], [1.0], same), recipe) for own in views]
    choice = operating.choose(fused(views, weights, same), score_floor=floor, resamples=recipe.bootstrap, data=on)
    trained = model_folder.of_members([member.description.trained for member in members])
    description = EnsembleDescription(
        architecture=model.ENSEMBLE,
        classes=members[0].description.classes,
        members=tuple(asdict(member.description) for member in members),
        hashes=tuple(model_folder.read(folder).hash for folder in folders),
        scales=stage.scales,
        weights=tuple(weights),
        same=same,
        operating_points=choice.points,
        trained=trained,
        chosen_on=choice.on,
        score_floor=floor,
    )
    if run.is_main:
        folder = files.make_folder(run.folder / stage.name)
        model.save_ensemble(folder / "model", [member.params for member in members], description)
    run.say(f"  boxes with an IoU of at least {same:g} are fused; {comparing(recipe)} {measured(tried[same])} on {on}")
    if choice.warning:
        run.say(f"  warning: {choice.warning}")
    if said := promised([member.description.trained for member in members]):
        run.say(f"  {said}")
    return {
        "kind": "combine",
        "data": {on: summary(validation.infos)},
        "skipped": skipped_images(validation),
        "chosen_on": on,
        "members": list(stage.members),
        "scales": list(stage.scales),
        "weights": list(weights),
        "same": same,
        "tried": [list(one) for one in tried.items()],
        "metric": comparing(recipe),
        "alone": alone,
        "promise": said,
    }


def found_by_folds(
    places: Sequence[Path], member: model.Trained, infos: Sequence[ImageInfo], floor: float
) -> list[ImageResult]:
    """The detections of the folds of a detector for the patients they had not seen, in the views that the detector
    uses.

    places: their folders (`folds.held_out`). infos: all of their images. floor: lowest score of boxes.
    """
    own = member.description
    if own.learned_maps:
        what = "a member was not trained to detect, so its folds have no detections"
        raise UserError(what, where=places[0].parent, todo="leave it out, or give it a detection_weight above 0")
    way = Way(own.input.flips, own.input.same, own.input.scales)
    of_views = predict.own_floor(member, floor) if len(looks(way.flips, way.scales)) > 1 else floor
    return way.together(read_views(places, infos, way, len(own.classes), of_views), floor)


def join_folds(run: Run, stage: TrainDetectorStage, recipe: DetectionRecipe) -> Summary:
    """Write `<stage>/model/`, the ensemble of the stage's folds (`tasks.folds`).

    Each patient was seen by all members but one. The detections of that one choose the views, the IoU for
    fusing boxes (of views and of members), and the operating points, which are therefore those of a single member.
    """
    assert run.fold is not None
    folders = folds.members(run, stage)
    members = [model.load_one(folder) for folder in folders]
    validation = run.open(stage.validate_on, "val", members[0].tested_images)
    on = f"{run.fold.in_words}, {folds.UNSEEN}"
    run.say(f"  {len(members)} detectors; {run.fold.in_words}: {counted(validation.infos)}")
    everything, floor = whole_way(recipe), recipe.score_floor
    classes = len(members[0].description.classes)
    views = read_views(folds.to_read(run, stage), validation.infos, everything, classes, floor)
    ways = ways_to_look(everything, recipe.test_same, fewer=True)
    best_way, by_views = choose_way(ways, views, recipe)
    way = ways[best_way]
    choice = operating.choose(way.together(views, floor), score_floor=floor, resamples=recipe.bootstrap, data=on)
    looking = [replace(one.description.input, **way._asdict()) for one in members]
    described = [replace(one.description, input=entry) for one, entry in zip(members, looking)]
    description = EnsembleDescription(
        architecture=model.ENSEMBLE,
        classes=members[0].description.classes,
        members=tuple(map(asdict, described)),
        hashes=tuple(model_folder.read(folder).hash for folder in folders),
        scales=(1.0,),
        weights=(1.0,) * len(members),
        same=way.same,
        operating_points=choice.points,
        trained=model_folder.of_members([one.trained for one in described]),
        chosen_on=choice.on,
        score_floor=floor,
    )
    if run.is_main:
        own = files.make_folder(run.folder / stage.name)
        model.save_ensemble(own / "model", [one.params for one in members], description)
    say_views(run, recipe, by_views, on)
    if choice.warning:
        run.say(f"  warning: {choice.warning}")
    return {
        "kind": "train",
        "data": {"validation": summary(validation.infos)},
        "skipped": skipped_images(validation),
        **views_chosen(recipe, best_way, by_views, on),
        "warning": choice.warning,
        "parameters": sum(training.parameter_count(one.params) for one in members),
        "best_step": run.fold.steps,
    }


def promised(members: Sequence[Training | None]) -> str:
    """The joint promise of the members, in words; "" if none was trained privately."""
    private = sum(bool(one and one.promises) for one in members)
    if not private:
        return ""
    said = model_folder.of_members(members).sentence()
    if private == len(members):
        return said
    return (
        f"{private} of {len(members)} members were trained privately; patients of the others are not protected. {said}"
    )
