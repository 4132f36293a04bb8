"""A trained inpainter as a folder: weights, architecture, noise, sampler, words and lesion sizes in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elk_jax.data.batches.crops import CloseupConfig
from elk_jax.diffusion.inpainter import Words
from elk_jax.errors import UserError
from elk_jax.synthesis.placement import AreaRule
from elk_jax.tasks.inpainting import settings as inpainting
from elk_jax.tasks.inpainting.settings import Inpainter
from elk_jax.tasks.settings import build
from elk_jax.training.model import Params
from elk_jax.weights import model_folder as store

ARCHITECTURE = "inpainter"


def describe(
    parts: Inpainter,
    prompts: Mapping[str, str],
    closeups: CloseupConfig,
    rules: Mapping[str, AreaRule],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """What `model.json` says.

    prompts: the texts of `parts.words`, by name. closeups: what the model learned from. rules: sizes of the lesions of
    the training split, by kind ('free', 'medium'). classes: of the data; lesions are painted as the first.
    """
    return {
        "architecture": ARCHITECTURE,
        "model": dataclasses.asdict(parts.model),
        "noise": inpainting.describe_noise(parts.noise),
        "sampler": dataclasses.asdict(parts.sampler),
        "guidance": parts.guidance,
        "words": dataclasses.asdict(parts.words),
        "prompts": dict(prompts),
        "window": closeups.window,
        "margin": closeups.margin,
        "areas": {kind: dataclasses.asdict(rule) for kind, rule in rules.items()},
        "classes": list(classes),
    }


def load(folder: Path) -> tuple[Inpainter, Params, dict[str, Any]]:
    """(what painting needs, parameters, the whole description). Raises UserError when the folder is no inpainter's."""
    params, description = store.load_params(folder)
    return parts_of(checked(description, folder)), params, description


def checked(description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The description itself. Raises UserError when it is of another kind of model."""
    if description.get("architecture") != ARCHITECTURE:
        raise UserError(
            f"a model of '{description.get('architecture')}', not an inpainter",
            where=folder,
            todo="name the model folder of an inpainting stage: RUN/STAGE/model",
        )
    return description


def parts_of(description: Mapping[str, Any], **changes: Any) -> Inpainter:
    """What painting needs, from model.json. changes: of the networks (dtype, remat, attention)."""
    return Inpainter(
        model=inpainting.model_from_json(description["model"], **changes),
        noise=inpainting.noise_schedule(description["noise"]),
        sampler=inpainting.sampler(description["sampler"]),
        guidance=float(description["guidance"]),
        words=build(Words, description["words"], "words"),
    )


def rule(description: Mapping[str, Any], kind: str) -> AreaRule:
    """Sizes of the lesions to paint; `kind` is 'free' or 'medium'."""
    areas = description.get("areas", {})
    if kind not in areas:
        known = ", ".join(areas) or "none: the model was imported, not trained on lesions"
        raise UserError(f"the model knows no lesion area '{kind}'", where="area", todo=f"it knows {known}")
    return AreaRule(tuple(areas[kind]["area"]), tuple(areas[kind]["ratio"]))


def find(workdir: Path, stage: str | None = None) -> Path:
    """The inpainter that a user means: a model folder itself, or a stage (default: the last) of a run folder."""
    return store.find(workdir, stage, (ARCHITECTURE,))
