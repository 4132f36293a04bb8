"""A trained translator as a folder: weights, architecture, bridge, sampler and the grey values of its training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from elk_jax.errors import UserError
from elk_jax.tasks.settings import build
from elk_jax.tasks.translation import settings as translation
from elk_jax.tasks.translation.settings import Greys, Translator
from elk_jax.training.model import Params
from elk_jax.weights import model_folder as store

ARCHITECTURE = "translator"


def describe(parts: Translator) -> dict[str, Any]:
    """What `model.json` says."""
    return {
        "architecture": ARCHITECTURE,
        "model": dataclasses.asdict(parts.model),
        "sampler": dataclasses.asdict(parts.sampler),
        "greys": dataclasses.asdict(parts.greys),
    }


def load(folder: Path) -> tuple[Translator, Params, dict[str, Any]]:
    """(what translating needs, parameters, the description). Raises UserError when the folder is no translator's."""
    params, description = store.load_params(folder)
    if description.get("architecture") != ARCHITECTURE:
        raise UserError(
            f"a model of '{description.get('architecture')}', not a translator",
            where=folder,
            todo="name the model folder of a translation stage: RUN/STAGE/model",
        )
    model = translation.model_from_json(description["model"])
    parts = Translator(
        model, translation.sampler(description["sampler"], model.bridge), build(Greys, description["greys"], "greys")
    )
    return parts, params, description


def find(workdir: Path, stage: str | None = None) -> Path:
    """The translator that a user means: a model folder itself, or a stage (default: the last) of a run folder."""
    return store.find(workdir, stage, (ARCHITECTURE,))
