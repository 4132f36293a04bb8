"""A trained generator as a package of medigan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elk_jax.errors import UserError
from elk_jax.tasks.generation.model import Description, load
from elk_jax.tasks.run import new_console
from elk_jax.weights import medigan


@dataclass(frozen=True)
class ExportSettings:
    """model_id: the generator's id in medigan. UserError if it is empty."""

    model_id: str = ""

    def __post_init__(self) -> None:
        if not self.model_id:
            what = "a generator is exported for medigan, which needs an id for it"
            raise UserError(what, where="model_id", todo="give one: 00101_MCGAN_MASSES")


def export_folder(model: Path, output: Path, settings: ExportSettings) -> None:
    """Write a generator's package for medigan into a new or empty folder.

    UserError for a generator of another kind, and as `medigan.export_folder`.
    """
    params, description = load(model)
    if not isinstance(description, Description):
        todo = "name the model folder of a generator trained against a discriminator"
        what = f"a model of '{description.architecture}', for which medigan has no package"
        raise UserError(what, where=model, todo=todo)
    about = description.model, description.classes
    medigan.export_folder(params, *about, output, settings.model_id, description.trained)
    new_console().print(f"wrote {output}: a package for medigan, {settings.model_id}")
