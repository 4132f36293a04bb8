"""Trained models in their folders: which one a user means, and what it says of its training."""

from __future__ import annotations

from pathlib import Path

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.weights import store


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


def _is(path: Path, architecture: str) -> bool:
    return path.is_file() and files.read_json(path).get("architecture") == architecture
