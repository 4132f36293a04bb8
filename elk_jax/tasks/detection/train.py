"""Train a detector. The stage leaves `model/` (model.py), ready for evaluation, prediction and fine-tuning."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from elk_jax.data import breast
from elk_jax.data.batches import detection as batches
from elk_jax.data.batches.buckets import Canvas, assign_buckets, choose_buckets, padded
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.data.sources import checks
from elk_jax.data.sources.source import ImageSource, counted, summary, with_images
from elk_jax.detection import anchors, detectors
from elk_jax.detection.detector import Detector, has_anchors
from elk_jax.errors import UserError
from elk_jax.evaluation import evaluate as metrics
from elk_jax.evaluation import fusion, operating
from elk_jax.evaluation.operating import Choice
from elk_jax.images.schema import ImageInfo
from elk_jax.progress import progress_bar
from elk_jax.randomness import Purpose, generator
from elk_jax.tasks import folds, private, training
from elk_jax.tasks.detection import predict
from elk_jax.tasks.detection.model import Description, LearnedMaps, at_scale, describe, stored, trainable
from elk_jax.tasks.detection.recipe import DetectionRecipe, TrainDetectorStage
from elk_jax.tasks.detection.search import (
    Way,
    choose_way,
    comparing,
    measured,
    read_views,
    say_views,
    views_chosen,
    ways_to_look,
    whole_way,
    write_views,
)
from elk_jax.tasks.private import Learned, Public
from elk_jax.tasks.run import Experiment, Run, skipped_images, skipped_lines
from elk_jax.tasks.stages import Data, Need
from elk_jax.tasks.task import Summary, Workload
from elk_jax.training.model import Model, Params
from elk_jax.weights import classifiers, model_folder
from elk_jax.weights.detectors import Imported

ALL_BUT_BACKBONE = "^(?!backbone/)"


def check_start(run: Run, stage: TrainDetectorStage, recipe: DetectionRecipe, names: Collection[str]) -> None:
    """Raise UserError if the recipe names layers that its detector does not have or freezes untrained weights, or if
    the stage starts from weights of another detector or from weights that have seen protected patients.

    names: stages that will run; their weights do not exist yet. Nothing is computed: parameters are shapes. The class
    layers, which depend on the data, are checked in the stage.
    """
    private.check_public(stage, recipe)
    private.check_start(run, stage, recipe)
    if recipe.privacy is not None and stage.weights:
        raise UserError(
            f"{len(stage.weights)} mixing weights, but all units are drawn with the same probability",
            where=f"config.stages.{stage.name}.weights",
            todo="leave it empty in a private training: '()'",
        )
    detector = detectors.build(settings(recipe, recipe.model.num_classes))
    fresh = jax.eval_shape(detector.init, jax.random.key(0))
    training.check_model(stage, recipe, trainable(detector, per_image=True))
    _check_whole_branches(detector, recipe, fresh, f"config.{stage.recipe}.model.backbone.drop_path")
    if stage.init_from and stage.init_from not in names:
        flat = model_folder.flatten(fresh)
        layers = {path: shape for path, shape in flat.items() if not re.search(detector.class_layers, path)}
        from_weights(run.model_folder(stage.init_from), model_folder.nest(layers), detector, stage.recipe)


def _check_whole_branches(detector: Detector, recipe: DetectionRecipe, fresh: Params, where: str) -> None:
    """UserError if a backbone that the optimiser does not train would drop branches: the layers behind it would be
    trained on maps that never occur in prediction. (Stages frozen by the backbone itself drop none.)"""
    rate = getattr(getattr(detector.config, "backbone", None), "drop_path", 0.0)
    if not rate:
        return
    kept = lambda name, patterns: any(re.search(pattern, name) for pattern in patterns)
    trunks: dict[str, list[str]] = {}
    for name in model_folder.flatten(fresh):
        before, backbone, _ = name.partition("backbone/")
        if backbone and not kept(name, detector.frozen):
            trunks.setdefault(before + backbone, []).append(name)
    for trunk, names in trunks.items():
        if all(kept(name, recipe.optimizer.frozen) for name in names):
            what = f"{trunk}* is frozen, but drop_path={rate:g} would drop its branches in training"
            raise UserError(what, where=where, todo="set it to 0, or train the backbone (optimizer.frozen)")


def needs(experiment: Experiment, stage: TrainDetectorStage, recipe: DetectionRecipe) -> list[Need]:
    """The data of which the detector reads both images of a breast."""
    detector = detectors.build(settings(recipe, recipe.model.num_classes))
    found = pairs(stage.train_on, "train", f"the {detector.name} is trained on pairs") if detector.images > 1 else []
    if detector.tested_images > 1:
        found += pairs((stage.validate_on,), "val", f"the {detector.name} reads pairs")
    return found


def pairs(sources: Sequence[str], split: str, why: str) -> list[Need]:
    """The requirement that both images of a breast are read from these data. why: as in `Need`."""
    return [Need(Data(name, split), "pairs", why) for name in sources]


def lacks(recipe: DetectionRecipe, source: ImageSource) -> str:
    """A lesion if the images of a fold have none; "" if nothing is missing."""
    return checks.lacking_lesion(source.infos)


class Learning(NamedTuple):
    """The parts of the training of a detector.

    model: its parameters may include more than the detector's. learned: its batches. initial: parameters to start from;
    None: fresh ones. of_detector: parameters of the model -> those of the detector, which are evaluated and kept.
    draws_per_epoch: by kind of image. canvases: shapes of batches. measure: parameters of the model -> further metrics
    on the validation data. detects: whether its detections are evaluated during training. learned_maps: as in
    `Description`.
    """

    model: Model
    learned: Learned
    initial: Params | None
    of_detector: Callable[[Params], Params] = lambda params: params
    draws_per_epoch: Mapping[str, int] = MappingProxyType({})
    canvases: int = 1
    measure: Callable[[Params], dict[str, float]] | None = None
    detects: bool = True
    learned_maps: LearnedMaps = ""


Prepare = Callable[[Run, Any, Any, Detector, ImageSource], Learning]
"""(run, stage, recipe, detector, training images as cut for it) -> the parts of its training."""


def train(run: Run, stage: TrainDetectorStage, recipe: DetectionRecipe) -> Summary:
    """Train one detector and write `<stage>/model/`."""
    return train_with(run, stage, recipe, prepare)


def prepare(
    run: Run, stage: TrainDetectorStage, recipe: DetectionRecipe, detector: Detector, source: ImageSource
) -> Learning:
    """The detector's own loss, on batches of `source`."""
    model = trainable(detector, per_image=recipe.privacy is not None)
    source = with_images(source, detector.images)
    if recipe.privacy:
        return Learning(model, _privately(run, stage, recipe, model, source), started(run, stage, detector))
    run.say(f"  train: {counted(source.infos)}")
    say_skipped(run, source)
    stream = batches.train_batches(
        source, recipe.loader, seed_of(run, stage), jax.process_index(), jax.process_count(), weights=stage.weights
    )
    return Learning(
        model,
        private.openly(run, stage, stream, summary(source.infos)),
        started(run, stage, detector),
        draws_per_epoch=stream.draws_per_epoch,
        canvases=len(stream.canvases),
    )


def started(run: Run, stage: TrainDetectorStage, detector: Detector) -> Params | None:
    """The detector with the weights of `init_from`; None if the stage names none."""
    if not stage.init_from:
        return None
    weights = run.model_folder(stage.init_from)
    fresh = jax.device_get(detector.init(jax.random.key(seed_of(run, stage))))
    run.say(f"  starts from {weights}")
    return from_weights(weights, fresh, detector, stage.recipe)


def seed_of(run: Run, stage: TrainDetectorStage) -> int:
    """The seed of the weights, batches and steps of a training: that of the run, or another one for a repetition."""
    if not stage.repetition:
        return run.seed
    return int(generator(run.seed, Purpose.REPETITION, stage.repetition).integers(1 << 32))


def train_with(
    run: Run, stage: TrainDetectorStage, recipe: DetectionRecipe, prepare: Prepare, images: int = 0
) -> Summary:
    """Train a detector with the parts from `prepare`, choose the checkpoint on the validation split, write
    `<stage>/model/`.

    images: number of images of a record that are read in training; 0: as many as the detector reads.
    """
    network = detectors.build(settings(recipe, recipe.model.num_classes))
    everything = whole_way(recipe)

    # ---- Data ------------------------------------------------------------------------------------------------
    source = run.open(stage.train_on, "train", images or network.images)
    validation = run.open(stage.validate_on, "val", network.tested_images)
    if source.classes != validation.classes:
        raise UserError(
            f"training has the classes {source.classes}, but validation {validation.classes}",
            where=f"stage {stage.name}",
        )
    if not summary(source.infos)["lesions"]:
        raise checks.no_lesions("train", source.name)
    # a metric of detections is undefined before the first hit, and without lesions
    nothing_found = 0.0 if comparing(recipe) == recipe.best_metric else math.nan
    if not summary(validation.infos)["lesions"]:
        nothing_found = math.nan
        run.say("  warning: no lesion in validation; checkpoints cannot be compared, so the last one is kept")
    source = cut(source, recipe)
    test_loader = recipe.test_loader()
    inputs = {scale: at_scale(test_loader, scale) for scale in everything.scales}

    # ---- Model -----------------------------------------------------------------------------------------------
    config = settings(recipe, len(source.classes))
    if recipe.plan_anchors and has_anchors(config):
        everyone = source
        if run.in_fold:  # all folds have the same detector as the last training
            everyone = cut(run.with_all_patients().open(stage.train_on, "train", images or network.images), recipe)
        config = with_planned_anchors(run, config, everyone.infos, test_loader)
    detector = detectors.build(config)
    seen = predict.view(validation, recipe.crop_to_breast)  # as in testing, the truth does not widen a window
    learning = prepare(run, stage, recipe, detector, source)
    model, learned, of_detector = learning.model, learning.learned, learning.of_detector
    held_out = folds.to_read(run, stage)
    run.say(f"  {run.fold.in_words if run.fold and held_out else 'validation'}: {counted(validation.infos)}")
    say_skipped(run, validation)

    before = learning.measure(learning.initial) if learning.measure and learning.initial is not None else {}

    # ---- Train, choosing the checkpoint on the validation split ------------------------------------------------
    predictor = predict.compile_predictor(trainable(detector), run.mesh)

    def described(trained: model_folder.Training, way: Way, choice: Choice) -> Description:
        crop, greys = recipe.crop_to_breast, recipe.slice_greys
        return describe(
            detector, source.classes, test_loader, crop, way.flips, choice, trained, greys, way.same,
            learning.learned_maps, way.scales,
        )  # fmt: skip

    def evaluate_params(params: Params, step: int) -> dict[str, float]:
        floor, scores = recipe.choose_score_floor, dict[str, float]()
        if learning.detects:
            found, place = of_detector(params), folds.to_write(run, stage, step)
            way, lowest = (everything, min(floor, recipe.score_floor)) if place else (Way((), fusion.SAME), floor)
            among = {scale: inputs[scale] for scale in way.scales}
            views = predict.detect_views(predictor, found, seen, among, run.mesh, lowest, way.flips, progress=False)
            if place and run.is_main:
                write_views(place, views)
            as_member = lambda trained: described(trained, everything, Choice())
            training.keep_member(run, stage, recipe, found, step, source, as_member)
            plain = views[predict.Look(1.0, 0)]
            scores = metrics.scalars(metrics.evaluate_detections(plain, score_floor=floor, resamples=0))
        further = learning.measure(params) if learning.measure else {}
        return {recipe.best_metric: nothing_found, **scores, **further}

    result = training.train(
        run,
        stage,
        recipe,
        model,
        learned.batches,
        initial=learning.initial,
        evaluate=evaluate_params,
        best_metric=recipe.best_metric,
        settings=asdict(detector.config),
        validation=validation.infos,
        buckets=learning.canvases,
        seed=seed_of(run, stage),
        protection=learned.protection,
    )

    # ---- The model with its operating points -------------------------------------------------------------------
    floor, by_folds = recipe.score_floor, bool(held_out) and learning.detects
    if by_folds:
        assert run.fold is not None
        chosen_on = run.fold.in_words
        views = read_views(held_out, validation.infos, everything, len(source.classes), floor)
    else:
        chosen_on = "its own training images" if held_out else operating.VALIDATION
        best = of_detector(result.best_params)
        views = predict.detect_views(predictor, best, seen, inputs, run.mesh, floor, everything.flips)
    same = recipe.test_same[:1] if held_out and not by_folds else recipe.test_same
    ways = ways_to_look(everything, same, fewer=by_folds)
    best_way, by_views = choose_way(ways, views, recipe)
    way = ways[best_way]
    choice = operating.choose(way.together(views, floor), score_floor=floor, resamples=recipe.bootstrap, data=chosen_on)
    warning = "" if run.in_fold else choice.warning
    if warning:
        run.say(f"  warning: {warning}")
    params, trained = training.kept_weights(run, stage, result, "best", source, learned.protection, learned.public)
    if run.is_main:
        folder = run.folder / stage.name / "model"
        model_folder.save_params(folder, of_detector(params), described(trained, way, choice))
    if not held_out:
        value = measured(result.best_metrics.get(recipe.best_metric))
        run.say(f"  best checkpoint: step {result.best_step}, {recipe.best_metric} {value} on validation")
    say_views(run, recipe, by_views, chosen_on)
    withheld = private.is_withheld(run.experiment, stage)
    return {
        "kind": "train",
        "data": {**learned.counts, "validation": summary(validation.infos)},
        "draws_per_epoch": {} if withheld else dict(learning.draws_per_epoch),
        "skipped": skipped_images(*([] if withheld else [source]), validation),
        **({"before": before} if before else {}),
        **views_chosen(recipe, best_way, by_views, chosen_on),
        "warning": warning,
        **training.outcome(result),
    }


def _privately(
    run: Run, stage: TrainDetectorStage, recipe: DetectionRecipe, model: Model, source: ImageSource
) -> Learned:
    """Batches of units, together with public images if there are any."""
    loader, public = recipe.loader, None
    if stage.public:
        data = run.open(stage.public, "train")
        private.check_classes(stage, source.classes, data.classes)
        beside = cut(data, recipe)
        make = batches.mixed(beside, loader, seed_of(run, stage), jax.process_index(), jax.process_count())
        public = Public(data, make, summary(data.infos), batches.records(beside))
    return private.privately(
        run,
        stage,
        recipe,
        model,
        example=batches.augmented(source, loader),
        infos=source.infos,
        batch_size=loader.batch_size,
        reading=loader,
        public=public,
        identity=batches.records(source),
    )


def cut(source: ImageSource, recipe: DetectionRecipe) -> ImageSource:
    """`source` as a detector is trained on it: the breasts, if they are cut out."""
    if not recipe.crop_to_breast:
        return source
    return breast.crop_to_breast(source, progress_bar("  finding the breasts"))[0]


def settings(recipe: DetectionRecipe, classes: int) -> Any:
    """The settings of the recipe's detector for this number of classes, before its anchors are planned."""
    return replace(recipe.model, num_classes=classes, score_floor=recipe.score_floor)


def workload(stage: TrainDetectorStage, recipe: DetectionRecipe, batch_size: int | None) -> Workload:
    """The training of a detector of one class, on every canvas of its recipe."""
    loader, assumed = recipe.loader, ["one class"]
    canvases = loader.buckets
    if not canvases:
        short = max(loader.resize.short_sides)
        sides = short, loader.resize.max_long_side or 2 * short
        if own := loader.resize.stretch:
            sides = loader.resize.size(own, loader.resize.scale(own, own, short))
        canvases = (padded(sides),)
        assumed.append(f"images of {sides[1]} x {sides[0]} px, as the recipe has no canvas")
    count, detector = batch_size or loader.batch_size, detectors.build(settings(recipe, 1))

    def blanks(images: int, canvases: Iterable[Canvas]) -> dict[str, Any]:
        most = loader.max_boxes or 8
        return {f"{size[0]}x{size[1]}": batches.blank_batch(count, size, most, images) for size in canvases}

    model, fixed = trainable(detector, per_image=recipe.privacy is not None), replace(loader, buckets=canvases)
    larger = [padded(size) for scale in recipe.test_scales[1:] for size in at_scale(fixed, scale).buckets]
    trained, tested = blanks(detector.images, canvases), blanks(detector.tested_images, (*canvases, *larger))
    return Workload(model, count, trained, tested, tuple(assumed))


def with_planned_anchors(run: Run, config: Any, infos: tuple[ImageInfo, ...], loader: LoaderConfig) -> Any:
    """The settings of a detector with anchors of the sizes of the lesions; the sizes are printed."""
    sizes = planned_anchor_sizes(infos, loader, levels=len(config.anchor_sizes))
    planned = replace(config, anchor_sizes=anchors.scaled(config.anchor_sizes, sizes))
    run.say(f"  anchor sizes from the lesions: {', '.join(f'{size:.0f}' for (size,) in sizes)} px")
    return planned


def planned_anchor_sizes(infos: tuple[ImageInfo, ...], config: LoaderConfig, levels: int) -> tuple[tuple[float], ...]:
    """Anchor sizes from the lesions of `infos` at the size of images in the network (`config`: that of testing)."""
    canvases = config.buckets or choose_buckets(infos, config.resize, config.augmentation)
    buckets = assign_buckets(infos, canvases, config.resize, config.augmentation)

    def scale(info: ImageInfo, canvas: tuple[int, int]) -> np.ndarray:
        height, width = config.resize.stretched((info.height, info.width))
        both = np.array([width / info.width, height / info.height]) * config.resize.scale((height, width), canvas)
        return np.tile(both, 2)

    boxes = [info.boxes[~info.ignore] * scale(info, canvases[bucket]) for info, bucket in zip(infos, buckets)]
    return anchors.plan_sizes(np.concatenate(boxes), levels)


def say_skipped(run: Run, *opened: ImageSource) -> None:
    for source in opened:
        for line in skipped_lines(source.skipped, "finished.json of the stage", "image "):
            run.say(f"  {line}")


def differing_layer(before: Detector, now: Detector) -> str:
    """The first layer, except those of the classes, in which two networks differ: "NAME is SHAPE, but SHAPE here"; ""
    if there is none. Only shapes are computed."""
    shapes, wanted = (model_folder.shapes_of(one.init) for one in (before, now))
    for name, shape in wanted.items():
        if shapes.get(name) != shape and not re.search(now.class_layers, name):
            return f"{name} is {shapes.get(name, 'absent')}, but {shape} here"
    return ""


def from_weights(folder: Path, fresh: Params, detector: Detector, recipe: str) -> Params:
    """`fresh`, parameters of the detector or their shapes, with the weights of a model folder where they agree; for a
    classification network, with its whole backbone.

    Raises UserError if they have another architecture, or conventions that the detector does not support.
    recipe: its name, for the error.
    """
    loaded, content = model_folder.load_params(folder)
    network = classifiers.network_of(content)
    described = stored(content) if network is None else None
    absent = described.absent if isinstance(described, Imported) else ()
    if network is not None:
        loaded, absent = {"backbone": loaded.get("backbone", {})}, (ALL_BUT_BACKBONE,)
    params = model_folder.restore_into(fresh, loaded, (detector.class_layers, *absent), where=folder)
    if described is None:
        before = replace(detector.config, backbone=replace(network, num_classes=0))
    else:
        before = described.model
    given, wanted = model_folder.flatten(loaded), model_folder.flatten(fresh)
    taken = [name for name, leaf in wanted.items() if name in given and given[name].shape == leaf.shape]
    model_folder.check_same(before, detector.config, detector.settled_by(taken), folder, f"{recipe}.model")
    return params
