"""Trained models in their folders: which one a user means, what it says of its training, what may go on from it."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.weights import model_folder as store


def find(workdir: Path, stage: str | None, architecture: str, called: str) -> Path:
    """The model folder: `workdir` itself, or that of a stage (default: the last one) of a run folder.

    architecture: of the models of a run that count, as model.json says it. called: what to call one in an error.
    """
    for folder in (workdir, workdir / "model"):
        if (folder / store.CONFIG).is_file():
            if stage is not None:
                raise UserError(f"a model folder has no stage '{stage}'", where=folder, todo="leave --stage out")
            return folder
    config = files.read_json(workdir / "config.json") if (workdir / "config.json").is_file() else None
    stages = config.get("stages") if isinstance(config, dict) else None
    if not isinstance(stages, dict):
        raise UserError(
            "neither a run folder nor a model folder", where=workdir, todo="train first: see launch/train.py"
        )
    trained = [name for name in stages if _is(workdir / name / "model" / store.CONFIG, architecture)]
    if not trained:
        raise UserError(f"no {called} of this run is trained", where=workdir, todo="start launch/train.py again")
    if stage is not None and stage not in trained:
        raise UserError(f"no trained {called} '{stage}'", where=workdir, todo=f"there is {', '.join(trained)}")
    return workdir / (stage or trained[-1]) / "model"


def kept_step(model: Path, otherwise: int) -> int:
    """The step whose weights a model folder holds, the last or the best; `otherwise` where the folder is gone."""
    description = files.read_json(model / store.CONFIG) if (model / store.CONFIG).is_file() else {}
    return int(description.get("trained", {}).get("step", otherwise))


def named_patients(infos: Iterable[ImageInfo]) -> set[str]:
    """The patients that images name; one that is called by its image's own number is known in no other file."""
    return {info.patient_id for info in infos if info.patient_id not in (info.image_id, info.meta.get("canvas"))}


def mark(patient_id: str) -> str:
    """What model.json calls a patient: a short hash, by which those who know the patient find it again.

    So may those who try all numbers that a patient could have.
    """
    return hashlib.sha256(patient_id.encode()).hexdigest()[:12]


def patient_marks(model: Path) -> frozenset[str]:
    """The marks of all patients that a model was trained on; none of one that does not say."""
    description = files.read_json(model / store.CONFIG) if (model / store.CONFIG).is_file() else {}
    training = description.get("trained")
    return frozenset(training.get("patients", ()) if isinstance(training, Mapping) else ())


def those_marked(patients: Iterable[str], marks: Collection[str]) -> list[str]:
    """Those of `patients` that are among `marks`."""
    return sorted(patient for patient in patients if mark(patient) in marks)


def check_same(before: Any, now: Any, fields: Collection[str], where: Path, recipe: str) -> None:
    """Raise UserError for the first of `fields` that a training changes in the model whose weights it starts from.

    before, now: the model of the weights and that of the recipe, dataclasses of one kind. where: the folder of the
    weights. The line also says how to set all that differ, by the recipe's name.
    """
    old, new = (store.flatten(dataclasses.asdict(model)) for model in (before, now))
    differing = [key for key in new if key.split("/")[0] in fields and old[key] != new[key]]
    if differing:
        named = {key: key.replace("/", ".") for key in differing}
        settings = [f"--config.{recipe}.model.{named[key]}={shlex.quote(str(old[key]))}" for key in differing]
        first = differing[0]
        raise UserError(
            f"the weights were trained with {named[first]} {old[first]!r}, the recipe has {new[first]!r}",
            where=where,
            todo=f"set {' '.join(settings)}",
        )


def _is(path: Path, architecture: str) -> bool:
    return path.is_file() and files.read_json(path).get("architecture") == architecture
