"""What is looked at before the first stage of an experiment: its data, its weights, and no patient on both sides.

A patient is on both sides when a model is trained on images of it (or on lesions painted into them, or starts from
weights that were), and its checkpoint is chosen, or it is tested, on others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from elk_jax import fields
from elk_jax.data.sources import checks, phantom
from elk_jax.data.sources.open import check_readable, list_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.progress import progress_bar
from elk_jax.tasks import trained
from elk_jax.tasks.detection import train as detection_stages
from elk_jax.tasks.run import Run, model_folder, writing_stage
from elk_jax.tasks.translation import settings as translation
from elk_jax.weights import model_folder as store

MODEL_KEYS = ("init_from", "model", "features")
"""Settings of a stage that name a train stage or a model folder."""


@dataclass(frozen=True)
class Opened:
    """What is known of one split of a source without looking at its pixels.

    patients: (patient, split that the image names). named: those that are known by this name in other files too.
    lesions: None for phantoms, which would have to be drawn. learned_from: of painted images, as in `ImageSource`.
    """

    classes: tuple[str, ...]
    patients: frozenset[tuple[str, str]]
    named: frozenset[str]
    lesions: int | None
    learned_from: frozenset[str] = frozenset()


Open = Callable[[str, str], Opened]
"""(name of a data source, split) -> what is known of it. UserError where it cannot be opened."""


def check_inputs(run: Run, names: Sequence[str]) -> None:
    """Raise UserError for the first of the stages `names` that could not do its work with the data and weights given.

    names: stages that will run, in order. What they are to write themselves (painted images, weights) is not there yet.
    """
    config, open_split = run.config, functools.cache(functools.partial(_open, run))
    for name in names:
        stage = config.stages[name]
        _check_weights(run, name, names)
        if (stage.kind, stage.task) == ("train", "detection"):
            detection_stages.check_start(run, name, names)
        for source, split in _reads(stage):
            if not writing_stage(config, source):
                open_split(source, split)
                if stage.task == "translation":
                    size = config[stage.recipe].model.size
                    translation.check_pairs(run.data, source, split, config.seed, size)
        if stage.kind == "train" and stage.task != "translation":  # which needs none
            _check_lesions(config, name, open_split)
        for judged in _judged(config, name):
            _check_apart(config, name, judged, open_split)


def training_sources(config: ConfigDict, name: str) -> list[str]:
    """The data sources, each once, from whose training patients something reached a train or synthesis stage."""
    return list(dict.fromkeys(origin for origin, is_model in _origins(config, name) if not is_model))


def foreign_models(config: ConfigDict, name: str) -> list[str]:
    """The model folders from outside the run, each once, from which something reached a train or synthesis stage."""
    return list(dict.fromkeys(origin for origin, is_model in _origins(config, name) if is_model))


def _origins(config: ConfigDict, name: str) -> list[tuple[str, bool]]:
    """(data source or model folder, whether it is a folder) that a train or synthesis stage goes back to."""
    stage = config.stages[name]
    found: list[tuple[str, bool]] = []
    for source in stage.get("train_on", ()) or (stage.canvases,):
        wrote = writing_stage(config, source)
        found += _origins(config, wrote) if wrote else [(source, False)]
    for model in filter(None, (stage.get(key, "") for key in ("init_from", "model"))):
        found += _origins(config, model) if model in config.stages else [(model, True)]
    return found


def _reads(stage: ConfigDict) -> list[tuple[str, str]]:
    """(data source, split) of all that a stage opens, the training data of a train stage first."""
    if stage.kind == "train":
        return [*((source, "train") for source in stage.train_on), (stage.validate_on, "val")]
    if stage.kind == "synthesize":
        return [(source, "train") for source in dict.fromkeys((stage.canvases, stage.get("share_of", stage.canvases)))]
    painted = [(stage.synthetic, "train")] if "synthetic" in stage else []
    return [_held_out(stage), *painted]


def _held_out(stage: ConfigDict) -> tuple[str, str]:
    """(data source, split) that a train stage chooses its checkpoint on, or that an evaluation tests on."""
    return (stage.validate_on, "val") if stage.kind == "train" else (stage.on, stage.get("split", "train"))


def _judged(config: ConfigDict, name: str) -> list[str]:
    """The train and synthesis stages whose work is judged in a stage, be it to choose a checkpoint."""
    stage = config.stages[name]
    if stage.kind == "evaluate":
        wrote = writing_stage(config, stage.synthetic) if "synthetic" in stage else ""
        return [judged for judged in (*stage.get("models", ()), wrote) if judged in config.stages]
    return [name] if stage.kind == "train" else []


def _open(run: Run, source: str, split: str) -> Opened:
    data = run.data
    kind, _, options = data[source].spec.partition(":")
    if kind == "phantom":
        patients = phantom.patients(options, split)
        return Opened(phantom.CLASSES, frozenset(patients.items()), frozenset(patients), None)
    spec = fields.build(SourceSpec, data[source], f"config.data.{source}")
    opened = list_source(spec, split, name=source, seed=run.config.seed, progress=progress_bar("  opening"))
    if data.on_error != "skip":  # else every image is decoded once, but when a stage opens the source
        check_readable(opened, spec, data.on_error)
    lesions = sum(int((~info.ignore).sum()) for info in opened.infos)
    splits = frozenset((info.patient_id, info.split) for info in opened.infos)
    named = frozenset(trained.named_patients(opened.infos))
    return Opened(opened.classes, splits, named, lesions, opened.learned_from)


def _check_weights(run: Run, name: str, names: Sequence[str]) -> None:
    """The models that a stage reads are named, and lie there or are trained before it."""
    stage = run.config.stages[name]
    if (stage.kind, stage.task) == ("train", "inpainting") and not (stage.init_from or run.config[stage.recipe].model):
        raise UserError(
            "no model to start from",
            where=f"config.stages.{name}.init_from",
            todo="name a folder of launch/import_weights.py --format=diffusers",
        )
    folders = {model: run.folder / model / "model" for model in stage.get("models", ())}
    folders |= {stage[key]: model_folder(run, stage[key]) for key in MODEL_KEYS if stage.get(key, "")}
    for model, folder in folders.items():
        if model not in names and not (folder / store.CONFIG).is_file():
            raise store.no_model(folder)


def _check_lesions(config: ConfigDict, name: str, open_split: Open) -> None:
    stage = config.stages[name]
    if not any(writing_stage(config, source) for source in stage.train_on):
        known = [open_split(source, "train").lesions for source in stage.train_on]
        if not any(lesions is None or lesions > 0 for lesions in known):
            raise checks.no_lesions("train", f"stage {name}, data {', '.join(stage.train_on)}")
    if stage.task != "inpainting" or writing_stage(config, stage.validate_on):
        return
    if open_split(stage.validate_on, "val").lesions == 0:
        raise checks.no_lesions("val", f"stage {name}, data {stage.validate_on}")


def _check_apart(config: ConfigDict, name: str, judged: str, open_split: Open) -> None:
    """What is judged was trained on data of the same classes, and on none of the patients that judge it."""
    stage, (on, split) = config.stages[name], _held_out(config.stages[name])
    if writing_stage(config, on):
        return
    held_out = open_split(on, split)
    split_of = {patient: own for patient, own in held_out.patients if own != "train"}
    known = held_out.named & split_of.keys()

    def refuse(both: Sequence[str], other: str) -> None:
        if both:
            others = f" and {len(both) - 1} more are" if len(both) > 1 else " is"
            raise UserError(
                f"patient {both[0]}{others} in the training {other} and in the split '{split_of[both[0]]}' of '{on}': "
                f"{judged} would be judged on what it is trained on",
                where=f"stage {name}",
                todo=f"leave them out of one of the two (of the data alone, where weights have seen them); if they are "
                f"different people who are numbered alike, make the field patient_id of '{on}' distinct (an image "
                "without it is a patient of its own, with the image's id)",
            )

    for source in training_sources(config, judged):
        try:
            training = open_split(source, "train")
        except UserError:
            continue  # of a stage that is finished, or it were opened before: its data may be elsewhere by now
        own = stage.task == "detection" and source in config.stages[judged].train_on
        if own and training.classes != held_out.classes:
            raise UserError(
                f"'{source}' has the classes {', '.join(training.classes)}, '{on}' has {', '.join(held_out.classes)}",
                where=f"stage {name}",
                todo="rename the categories of one of them",
            )
        refuse(sorted({patient for patient, _ in training.patients} & split_of.keys()), f"split of '{source}'")
        refuse(trained.those_marked(known, training.learned_from), f"data of the painter of '{source}'")
    for model in foreign_models(config, judged):
        refuse(trained.those_marked(known, trained.patient_marks(Path(model))), f"data of {model}")
