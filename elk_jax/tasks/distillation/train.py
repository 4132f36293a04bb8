"""Train a teacher, or a student of one. Both stages leave the model folder of an ordinary detector."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from elk_jax.data.batches import detection as batches
from elk_jax.data.batches.stream import Stream, digest
from elk_jax.data.sources import checks
from elk_jax.data.sources.source import ImageSource, counted, subset, summary, with_images
from elk_jax.detection import detectors
from elk_jax.detection.detector import Detector
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import Purpose, generator
from elk_jax.tasks import folds
from elk_jax.tasks.detection import train as detection
from elk_jax.tasks.detection.combine import join_folds
from elk_jax.tasks.detection.model import Input, Trained, load_one
from elk_jax.tasks.detection.predict import view
from elk_jax.tasks.detection.train import Learning
from elk_jax.tasks.distillation.model import (
    LEARNED,
    MODES,
    aligning,
    fresh_part,
    learning,
    likeness_metrics,
    likeness_of_batch,
    likeness_warnings,
    of_detector,
)
from elk_jax.tasks.distillation.recipe import SIMILARITY, DistillationRecipe, TrainDistilledStage
from elk_jax.tasks.private import Learned
from elk_jax.tasks.run import Experiment, Run
from elk_jax.tasks.stages import Need, TrainStage
from elk_jax.tasks.task import Summary, Workload
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder


def check_start(run: Run, stage: TrainDistilledStage, recipe: DistillationRecipe, names: Collection[str]) -> None:
    """Raise UserError as for the training of a detector, if inputs of the mode are missing, and if the teacher has
    another architecture or other levels.

    names: stages that will run; their weights do not exist yet.
    """
    detector = _detector(recipe)
    _check_recipe(stage, recipe, detector)
    if stage.role == "teacher":
        return detection.check_start(run, stage, recipe, names)
    _check_mode(stage, recipe, detector)
    if recipe.mode != "none":
        _check_teaching(run, stage, recipe, detector, names)
    detection.check_start(run, stage.starting(recipe), recipe, names)


def _check_recipe(stage: TrainDistilledStage, recipe: DistillationRecipe, detector: Detector) -> None:
    """UserError for settings of a teacher or student that exclude each other."""
    place = f"config.{stage.recipe}"
    if stage.role == "student" and not recipe.detects and folds.makes_ensemble(stage, recipe):
        what = f"stage {stage.name} does not learn to detect, so its folds have no detections to choose an ensemble by"
        raise UserError(what, where=f"{place}.refit", todo="leave it at True, or give a detection_weight above 0")
    if not recipe.detects and not stage.partner:
        what = "a student that does not learn to detect is chosen by its similarity to the teacher of its partners"
        raise UserError(what, where=f"{place}.detection_weight", todo="give a number above 0, or set partner=True")
    if recipe.best_metric == SIMILARITY and not stage.partner:
        what = f"stage {stage.name} has no teacher that sees partners, so similarity is undefined"
        raise UserError(what, where=f"{place}.best_metric", todo="choose a metric of detection")
    strides = detector.tap(recipe.tap).strides
    reads_level = recipe.mode in ("lesion", "image") if stage.role == "student" else recipe.intra_align
    if reads_level and recipe.stride not in strides:
        what = f"the detector has no level of {recipe.stride} pixels per cell"
        raise UserError(what, where=f"{place}.stride", todo=f"choose from {', '.join(map(str, strides))}")


def _check_mode(stage: TrainDistilledStage, recipe: DistillationRecipe, detector: Detector) -> None:
    """UserError for a student without the inputs of its mode, or with settings or a detector that it excludes."""
    place, mode = f"config.{stage.recipe}", MODES.get(recipe.mode)
    if stage.partner and (mode is None or mode.reads == "beside"):
        what = f"in the mode {recipe.mode} the teacher sees neither the images of the student nor their partners"
        pairs = ", ".join(name for name, one in MODES.items() if one.reads == "same")
        raise UserError(what, where=f"{place}.mode", todo=f"choose from {pairs}, or set partner=False")
    if recipe.mode != "none" and not stage.teacher:
        todo = "name a train stage before it or a model folder, or set mode=none"
        raise UserError(
            f"the mode {recipe.mode} needs a teacher", where=f"config.stages.{stage.name}.teacher", todo=todo
        )
    if recipe.mode != "none" and stage.init_from and not stage.partner:
        what = f"a student in the mode {recipe.mode} starts from its teacher"
        raise UserError(what, where=f"config.stages.{stage.name}.init_from", todo="leave it empty, or set mode=none")
    if mode and mode.reads == "beside" and not stage.beside:
        what = f"the mode {recipe.mode} needs images for the teacher"
        todo = "name data sources, such as the training data of the teacher"
        raise UserError(what, where=f"config.stages.{stage.name}.beside", todo=todo)
    least = 2 * recipe.accumulate
    if recipe.mode == "contrastive" and recipe.loader.batch_size < least:
        what = (
            "the loss of the mode contrastive is 0 for one image: it compares the images of a batch, or of a part of it"
        )
        todo = f"give at least {least}, two for each of `accumulate` parts"
        raise UserError(what, where=f"{place}.loader.batch_size", todo=todo)
    if mode and mode.of_anchors and recipe.tap != "pyramid":
        what = "predictions for anchors are compared after the pyramid"
        raise UserError(what, where=f"{place}.tap", todo="set tap=pyramid")
    if mode and mode.one_canvas and len(recipe.loader.buckets) != 1:
        what = f"the mode {recipe.mode} learns a map of one size, but there are {len(recipe.loader.buckets)} canvases"
        raise UserError(what, where=f"{place}.loader.buckets", todo="give one (height, width)")
    if mode and mode.of_anchors and detector.anchored is None:
        what = f"{detector.name} has no predictions for anchors to compare"
        raise UserError(what, where=f"{place}.mode", todo="choose another mode, or another detector")
    if stage.partner and detector.images != 1:
        what = f"{detector.name} reads pairs, but a student of pairs sees only the first image"
        raise UserError(what, where=f"{place}.model.name", todo="choose a detector of single images")
    if mode:
        _check_learned_is_trained(recipe, detector, place)


def _check_teaching(
    run: Run, stage: TrainDistilledStage, recipe: DistillationRecipe, detector: Detector, names: Collection[str]
) -> None:
    """UserError for a student whose teacher has another architecture, input, or other classes. names: as in
    `check_start`."""
    place, mode = f"config.{stage.recipe}", MODES.get(recipe.mode)
    before = run.experiment.stages.get(stage.teacher)
    if mode and before is not None:
        taught = run.experiment.recipe_of(before)
        _check_crop(stage.teacher, taught.crop_to_breast, recipe, place)
        if before.recipe != stage.recipe:
            planned = detectors.build(detection.settings(taught, recipe.model.num_classes))
            check_teacher(planned, detector, f"config.{before.recipe}.model")
    if stage.teacher not in names:
        folder = run.model_folder(stage.teacher)
        written = load_one(folder)
        check_teacher(written.detector, detector, folder)
        if mode:
            _check_crop(stage.teacher, written.description.input.crop_to_breast, recipe, place)
        _check_classes(written.description.classes, _listed_classes(run, stage), folder)
    elif isinstance(before, TrainStage):
        where = f"config.stages.{stage.name}.teacher"
        _check_classes(_listed_classes(run, before), _listed_classes(run, stage), where)


def needs(experiment: Experiment, stage: TrainDistilledStage, recipe: DistillationRecipe) -> list[Need]:
    """The data of which the student and its teacher read both images of a breast."""
    found = detection.needs(experiment, stage, recipe)
    if stage.partner:
        for sources, split in ((stage.train_on, "train"), ((stage.validate_on,), "val")):
            found += detection.pairs(sources, split, "the teacher sees partners")
    return found


def lacks(recipe: DistillationRecipe, source: ImageSource) -> str:
    """As in detection; a student that is chosen by its similarity to the teacher is evaluated without lesions."""
    return "" if recipe.best_metric == SIMILARITY else detection.lacks(recipe, source)


def _check_learned_is_trained(recipe: DistillationRecipe, detector: Detector, place: str) -> None:
    """UserError for an expression that freezes the parameters of the loss of the mode, which start at random."""
    fresh = jax.eval_shape(lambda key: fresh_part(detector, recipe, (128, 128), key), jax.random.key(0))
    for pattern in recipe.optimizer.frozen:
        if frozen := [name for name in model_folder.flatten(fresh) if re.search(pattern, name)]:
            what = f"the expression {pattern!r} freezes {frozen[0]}, which the mode {recipe.mode} must train"
            todo = f"exclude it from the expression, for example with (?!{LEARNED}/)"
            raise UserError(what, where=f"{place}.optimizer.frozen", todo=todo)


def train(run: Run, stage: TrainDistilledStage, recipe: DistillationRecipe) -> Summary:
    """Train one detector and write `<stage>/model/`."""
    prepare = _teacher if stage.role == "teacher" else _student
    images = 2 if stage.partner else 0
    found = detection.train_with(run, stage.starting(recipe), stage.paced(recipe), prepare, images)
    for warning in likeness_warnings(found.get("before", {}), found["best"]):
        run.say(f"  warning: {warning}")
    return {**found, **_told(stage, recipe)}


def join(run: Run, stage: TrainDistilledStage, recipe: DistillationRecipe) -> Summary:
    """Write `<stage>/model/`, the ensemble of the stage's folds."""
    return {**join_folds(run, stage, recipe), **_told(stage, recipe)}


def _told(stage: TrainDistilledStage, recipe: DistillationRecipe) -> Summary:
    """Entries of the summary of a stage besides those of a detector."""
    return {"role": stage.role, "mode": recipe.mode, "intra_align": recipe.intra_align}


def _teacher(
    run: Run, stage: TrainDistilledStage, recipe: DistillationRecipe, detector: Detector, source: ImageSource
) -> Learning:
    found = detection.prepare(run, stage, recipe, detector, source)
    return found._replace(model=aligning(detector, recipe)) if recipe.intra_align else found


def _student(
    run: Run, stage: TrainDistilledStage, recipe: DistillationRecipe, detector: Detector, source: ImageSource
) -> Learning:
    found = detection.prepare(run, stage, recipe, detector, source)
    if recipe.mode == "none":
        return found
    folder = run.model_folder(stage.teacher)
    teacher = load_one(folder)
    check_teacher(teacher.detector, detector, folder)
    _check_classes(teacher.description.classes, source.classes, folder)
    if recipe.mode not in MODES:
        return found
    for warning in filter(None, (size_warning(teacher.description.input, recipe), points_warning(recipe))):
        run.say(f"  warning: {warning}")
    return _distilled(run, stage, recipe, detector, source, found, teacher)


def _distilled(
    run: Run, stage: TrainDistilledStage, recipe: DistillationRecipe, detector: Detector, source: ImageSource,
    found: Learning, teacher: Trained,
) -> Learning:  # fmt: skip
    """The parts of the training of a student in a mode with a loss: batches of both streams, and the learned map."""
    make = partial(batches.mixed, process_index=jax.process_index(), process_count=jax.process_count())
    seed, images = detection.seed_of(run, stage), 2 if stage.partner else detector.images
    source = with_images(source, images)
    own = make(source, recipe.loader, seed, weights=stage.weights)
    beside, shown, counts = None, [], found.learned.counts
    if MODES[recipe.mode].reads == "beside":
        data = run.open(stage.beside, "train", teacher.detector.images)
        if not summary(data.infos)["lesions"]:
            raise checks.no_lesions("train", data.name)
        run.say(f"  beside: {counted(data.infos)}")
        detection.say_skipped(run, data)
        cut = detection.cut(data, recipe)
        beside, shown = make(cut, recipe.loader, second_seed(seed)), batches.records(cut)
        counts = {**counts, "beside": summary(data.infos)} if counts else {}
    depends = digest(recipe.loader, seed, stage.weights, batches.records(source), shown, recipe.distill_from)
    stream = Stream(TwoStreams(own, beside, recipe.distill_from), depends, recipe.loader)
    learned = fresh_part(detector, recipe, own.canvases[0], jax.random.key(seed))
    return found._replace(
        model=learning(detector, teacher.detector, teacher.params, recipe, own.canvases[0], stage.partner),
        learned=Learned(stream, counts),
        initial={**(found.initial or {}), **jax.device_get(learned)},
        of_detector=of_detector,
        canvases=len(own.canvases) * (len(beside.canvases) if beside else 1),
        measure=_likeness(run, stage, recipe, detector, teacher) if stage.partner else None,
        detects=recipe.detects,
        learned_maps="" if recipe.detects else recipe.tap,
    )


def _likeness(
    run: Run, stage: TrainDistilledStage, recipe: DistillationRecipe, detector: Detector, teacher: Trained
) -> Callable[[Any], dict[str, float]]:
    """Parameters of the student -> the similarity of its maps of the validation images to the teacher's maps of their
    partners."""
    pairs = run.open(stage.validate_on, "val", 2)
    pairs = subset(pairs, apart(pairs.infos))
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(i.patient_id for i in pairs.infos))}
    patients = np.array([numbers[info.patient_id] for info in pairs.infos], np.int32)
    seen = view(pairs, recipe.crop_to_breast).source
    loader, constants = recipe.test_loader(), meshes.place_constants(teacher.params, run.mesh)
    of_batch = meshes.traced_on(run.mesh, partial(likeness_of_batch, detector, teacher.detector, recipe))
    compare = jax.jit(of_batch, out_shardings=meshes.replicated(run.mesh))

    def measure(params: Any) -> dict[str, float]:
        total = None
        for batch in batches.eval_batches(seen, loader, jax.process_index(), jax.process_count()):
            read = {name: batch[name] for name in ("image", "image_size", "valid")}
            shown = meshes.put_batch({**read, "patient": patients[batch["index"]]}, run.mesh)
            found = jax.device_get(compare(params, constants, shown))
            found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
            total = found if total is None else jax.tree.map(np.add, total, found)
        return likeness_metrics(total or [])

    return measure


def apart(infos: Sequence[ImageInfo]) -> list[int]:
    """Positions in an order in which neighbours belong to different patients, as far as possible: the first image of
    each patient, the second of each, ..."""
    before = Counter[str]()
    ranks = []
    for info in infos:
        ranks.append(before[info.patient_id])
        before[info.patient_id] += 1
    return sorted(range(len(infos)), key=ranks.__getitem__)


def second_seed(seed: int) -> int:
    """The seed of the stream of the teacher's images, whose order and augmentation are independent of the student's."""
    return int(generator(seed, Purpose.UNPAIRED).integers(1 << 32))


@dataclass(frozen=True)
class TwoStreams:
    """Batch number -> the batch of `own`, with that of `beside` and with `distilled`.

    Each has its own epochs: batch k depends only on k in both.
    """

    own: Callable[[int], Mapping[str, Any]]
    beside: Callable[[int], Mapping[str, Any]] | None
    distill_from: int

    def __call__(self, number: int) -> dict[str, Any]:
        batch = dict(self.own(number))
        batch["distilled"] = np.full(len(batch["valid"]), number >= self.distill_from)
        return batch if self.beside is None else {**batch, "beside": dict(self.beside(number))}


def check_teacher(teacher: Detector, student: Detector, folder: Any) -> None:
    """UserError unless the maps of a teacher can be compared with those of the student, and the student can start from
    it."""
    kinds = [_words(one) for one in (teacher, student)]
    if kinds[0] != kinds[1]:
        todo = f"name a teacher of the kind {kinds[1]}, or set the student's model to the teacher's"
        raise UserError(f"the teacher is a {kinds[0]}, but the student a {kinds[1]}", where=folder, todo=todo)
    if teacher.strides != student.strides:
        levels = [", ".join(map(str, one.strides)) for one in (teacher, student)]
        what = f"the teacher has levels of {levels[0]} pixels per cell, but the student of {levels[1]}"
        raise UserError(what, where=folder, todo="name a teacher with the levels of the student")
    if differing := detection.differing_layer(teacher, student):
        what = f"the teacher is a different network from the student: its {differing}"
        raise UserError(what, where=folder, todo="train both with the same model settings")


def _check_crop(teacher: str, cropped: bool, recipe: DistillationRecipe, place: str) -> None:
    """UserError if one of the two sees only the breast, and the other whole images."""
    if cropped != recipe.crop_to_breast:
        what = f"the teacher, {teacher}, is trained with crop_to_breast={cropped}, but the student is not"
        todo = "crop the images of both, or of neither"
        raise UserError(what, where=f"{place}.crop_to_breast", todo=todo)


def size_warning(taught: Input, recipe: DistillationRecipe) -> str:
    """A warning if a teacher is given images of another size than it was trained on; "" otherwise."""
    shown = recipe.test_loader()
    if (taught.resize, taught.buckets) == (shown.resize, shown.buckets):
        return ""
    learned, here = (", ".join(f"{height} x {width}" for height, width in one.buckets) for one in (taught, shown))
    what = (
        f"on canvases of {learned} px but is given {here} px" if learned != here else "with other settings of `resize`"
    )
    return f"the teacher was trained {what}: it may expect lesions of another size than these images show"


def points_warning(recipe: DistillationRecipe) -> str:
    """A warning if a mode that compares the points of a lesion has only one; "" otherwise."""
    if recipe.mode != "lesion" or recipe.points > 1:
        return ""
    return "the loss of the mode lesion is 0 with one point, so the student is that of the mode pretraining"


def _listed_classes(run: Run, stage: TrainStage) -> tuple[str, ...]:
    """The classes of the training data of a stage; () if these are yet to be written or drawn."""
    return run.list(stage.train_on, "train").classes if all(map(run.is_listed, stage.train_on)) else ()


def _check_classes(teacher: tuple[str, ...], student: tuple[str, ...], where: Any) -> None:
    """UserError if the classes of a teacher differ from those of its student's data. (): not known yet."""
    if teacher and student and teacher != student:
        what = f"the teacher knows the classes {teacher}, but the data have {student}"
        raise UserError(what, where=where, todo="rename the categories of one of them")


def _words(detector: Detector) -> str:
    backbone = getattr(detector.config, "backbone", None)
    return detector.name if backbone is None else f"{detector.name} on a {backbone.name}"


def _detector(recipe: DistillationRecipe) -> Detector:
    return detectors.build(detection.settings(recipe, recipe.model.num_classes))


def workload(stage: TrainDistilledStage, recipe: DistillationRecipe, batch_size: int | None) -> Workload:
    """The training of a teacher or a student of one class, on every canvas of its recipe."""
    work = detection.workload(stage, recipe, batch_size)
    detector = detectors.build(detection.settings(recipe, 1))
    if stage.role == "teacher":
        return replace(work, model=aligning(detector, recipe)) if recipe.intra_align else work
    if recipe.mode not in MODES:
        return work
    weights = jax.eval_shape(detector.init, jax.random.key(0))
    canvas = next(iter(work.training.values()))["image"].shape[1:3]
    both = MODES[recipe.mode].reads == "beside"

    def batch(blank: Mapping[str, Any]) -> dict[str, Any]:
        return {**blank, "distilled": blank["valid"], **({"beside": blank} if both else {})}

    def pairs(blank: Mapping[str, Any]) -> dict[str, Any]:
        image = blank["image"]
        return {**blank, "image": np.broadcast_to(image, (*image.shape[:-1], 2)) if stage.partner else image}

    return replace(
        work,
        model=learning(detector, detector, weights, recipe, canvas, stage.partner),
        training={shape: batch(pairs(blank)) for shape, blank in work.training.items()},
        prediction={shape: batch(blank) for shape, blank in work.prediction.items()},
        assumed=(*work.assumed, "the teacher's images on the canvas of the student's") if both else work.assumed,
    )
