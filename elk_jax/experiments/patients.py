"""Check that no model is evaluated on patients that it was trained on.

A model is trained on a patient if the patient's images, or lesions painted into them, are among its training data, or
if it starts from weights that were trained on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elk_jax.data.sources import patients
from elk_jax.data.sources.open import drawn
from elk_jax.data.sources.source import check_fewshot
from elk_jax.errors import UserError
from elk_jax.experiments.parse import kind_of
from elk_jax.tasks import folds, origins, private
from elk_jax.tasks.run import Experiment, Run
from elk_jax.tasks.stages import CombineStage, Stage, TrainStage
from elk_jax.weights import model_folder


@dataclass(frozen=True)
class Listed:
    """One split of a source without its pixels.

    patients: (patient, split named by the image). named: patients that other files know by the same name.
    lesions: None for phantoms, which would have to be drawn. seen_patients: for painted images, as in `ImageSource`.
    """

    classes: tuple[str, ...]
    patients: frozenset[tuple[str, str]]
    named: frozenset[str]
    lesions: int | None
    seen_patients: frozenset[str] = frozenset()


Look = Callable[[str, str], Listed]
"""(name of a data source, split) -> the split without its pixels. UserError if it cannot be opened."""


def look(run: Run, source: str, split: str) -> Listed:
    """One split of a source without its pixels; phantoms are not drawn."""
    spec = run.spec(source)
    phantom = drawn(spec)
    if phantom and not spec.patient_pattern:
        split_of = phantom.patients(spec.place, split)
        if spec.patients and split == "train":
            check_fewshot(spec.patients, len(split_of), f"config.data.{source}.patients")
        return Listed(phantom.classes, frozenset(split_of.items()), frozenset(split_of), None)
    listed = run.list(source, split)
    lesions = sum(int((~info.ignore).sum()) for info in listed.infos)
    splits = frozenset((info.patient_id, info.split) for info in listed.infos)
    return Listed(listed.classes, splits, frozenset(patients.named(listed.infos)), lesions, listed.seen_patients)


def check_apart(experiment: Experiment, stage: Stage, look: Look) -> None:
    """Refuse a stage that evaluates a model, or chooses its checkpoint, on patients that the model was trained on, or
    on other classes."""
    held_out = stage.held_out()
    if held_out is None or held_out.source in experiment.writers:
        return
    for model in stage.evaluated(experiment.writers):
        if model in experiment.stages:
            _check_apart(experiment, stage, model, look)


def check_folds(experiment: Experiment, stage: Stage, look: Look) -> None:
    """Refuse folds that would not hold patients out: their data are not trained on, or the patients are known to models
    and painted images that the stage starts from, are protected by another stage, or appear as partners of others. Also
    refuse folds of a part of the training split, which would train on the whole validation split, more folds than
    patients, and an ensemble of folds if the task cannot make one. Painted images name the patients of their canvases
    and are held out with them."""
    count = folds.count_of(stage, experiment.recipe_of(stage))
    if not count or not isinstance(stage, TrainStage):
        return
    if folds.makes_ensemble(stage, experiment.recipe_of(stage)) and kind_of(stage).join is None:
        what = f"the models of stage {stage.name} ({stage.task}) cannot form an ensemble"
        raise UserError(what, where=f"config.{stage.recipe}.refit", todo="leave it at True")
    where, source = f"config.{stage.recipe}.folds", stage.validate_on
    if source not in stage.train_on:
        what = f"folds divide the patients of '{source}', which stage {stage.name} is not trained on"
        raise UserError(what, where=where, todo="set it to 0, or validate on training data")
    if private.is_withheld(experiment, stage):
        what = f"another stage protects the patients of '{source}', but folds would make choices on them"
        raise UserError(what, where=where, todo="set it to 0, or give the stages recipes of their own")
    if experiment.data[source].train_where:
        todo = f"set data.{source}.where instead"
        raise UserError("train_where selects other images for training than for validation", where=where, todo=todo)
    _check_whole(experiment, stage, where)
    splits = [look(source, split) for split in ("train", "val")]
    known = {patient for split in splits for patient, _ in split.patients}
    if len(known) < count:
        todo = f"give at most {len(known)}, or more patients"
        raise UserError(f"{count} folds of {len(known)} patients", where=where, todo=todo)
    named = frozenset().union(*(split.named for split in splits))
    keys = {patients.patient_key(patient) for patient in named}

    def known_of(place: str, split: str) -> list[str]:
        seen = {patients.patient_key(patient): patient for patient in look(place, split).named}
        return [seen[key] for key in sorted(seen.keys() & keys)]

    def refuse(both: Sequence[str], of: str) -> None:
        if both:
            what = f"patient {both[0]} is known to {of}, so no fold of stage {stage.name} truly holds it out"
            raise UserError(what, where=where, todo="set folds=0 here, or start from other people's data")

    behind = {f"'{one}'": origins.of_model(experiment, one) for one in stage.origin().models}
    painted = [one for one in stage.train_on if one in experiment.writers]
    behind |= {f"the stage that made '{one}'": origins.of_painter(experiment, one) for one in painted}
    for of, places in behind.items():
        for place, is_folder in places:
            if is_folder:
                refuse(patients.among(named, model_folder.seen_patients(Path(place))), of)
            else:
                refuse(known_of(place, "train"), of)
    for place in origins.refitted_on(experiment, stage.name):
        refuse(known_of(place, "val"), "folds of a model behind it")
    for one in stage.train_on:
        if one not in experiment.writers:
            refuse(patients.among(named, look(one, "train").seen_patients), f"the painter of '{one}'")


def _check_whole(experiment: Experiment, stage: TrainStage, where: str) -> None:
    """Refuse settings that select or exchange data before patients are divided into folds."""
    source = stage.validate_on
    for name, default in (("patients", 0), ("train_share", 1.0)):
        if (given := getattr(experiment.data[source], name)) != default:
            what = f"{name}={given:g} limits only the training split: folds would train on its patients and on all of"
            todo = f"set data.{source}.{name} to {default:g}, or {where} to 0"
            raise UserError(f"{what} the validation split of '{source}'", where=where, todo=todo)
    for one in stage.train_on:
        if experiment.data[one].shuffled_partners:
            what = f"images of '{one}' have partners of other patients, who may be held out"
            todo = f"set data.{one}.shuffled_partners to False, or {where} to 0"
            raise UserError(what, where=where, todo=todo)


def _check_apart(experiment: Experiment, stage: Stage, model: str, look: Look) -> None:
    on, split = stage.held_out() or ("", "")
    held_out = look(on, split)
    # the training split may be evaluated by its name, but not as a part of all images
    split_of = {patient: own for patient, own in held_out.patients if own != "train" or not split}
    known = held_out.named & split_of.keys()

    def refuse(both: Sequence[str], data: str) -> None:
        if both:
            others = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
            raise UserError(
                f"patient {both[0]}{others} is in both {data} and the '{split_of[both[0]]}' split of '{on}', so "
                f"{model} would be evaluated on its own training data",
                where=f"stage {stage.name}",
                todo="remove the patient from one of the two (from the data if weights have seen it); if different "
                f"people have the same or similarly written IDs, make the field patient_id of '{on}' distinct (an "
                "image without it is a separate patient, with the image's ID)",
            )

    trainer = experiment.stages[model]
    seen = [(source, "train") for source in origins.training_sources(experiment, model)]
    refitted = origins.refitted_on(experiment, model)
    if isinstance(stage, CombineStage) and folds.dealt_alike(experiment, stage):
        refitted = [source for source in refitted if source != on]  # every fold is evaluated on held-out patients
    seen += [(source, "val") for source in refitted]
    if model != stage.name:
        seen += [(source, "val") for source in origins.dealt(experiment, model)]
    for source, part in seen:
        try:
            training = look(source, part)
        except UserError:
            continue  # the stage is finished, else the source was opened before; its data may have been moved
        own = isinstance(trainer, TrainStage) and kind_of(trainer).learns_classes and source in trainer.train_on
        if own and training.classes != held_out.classes:
            raise UserError(
                f"'{source}' has the classes {', '.join(training.classes)}, but '{on}' {', '.join(held_out.classes)}",
                where=f"stage {stage.name}",
                todo="rename the categories of one of them",
            )
        alike = {patients.patient_key(patient): patient for patient in training.named}
        both = {patient: patient for patient, _ in training.patients if patient in split_of}
        both |= {p: alike[key] for p in known - both.keys() if (key := patients.patient_key(p)) in alike}
        if both:
            first = min(both)
            written = "" if both[first] == first else f" (as {both[first]})"
            refuse(sorted(both), f"the training data '{source}'{written}")
        refuse(patients.among(known, training.seen_patients), f"the training data of the painter of '{source}'")
    for folder in origins.foreign_models(experiment, model):
        refuse(patients.among(known, model_folder.seen_patients(Path(folder))), f"the training data of {folder}")
