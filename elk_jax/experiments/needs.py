"""Requirements of stages on their data, pairs or whole volumes, checked from the configuration only."""

from __future__ import annotations

from collections.abc import Iterable

from elk_jax.data.sources.open import check_partner, drawn, may_be_slices
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.experiments.parse import kind_of
from elk_jax.tasks.run import Experiment
from elk_jax.tasks.stages import Need, Stage


def of_stage(experiment: Experiment, stage: Stage) -> tuple[Need, ...]:
    """The requirements of a stage on its data."""
    return tuple(kind_of(stage).needs(experiment, stage, experiment.recipe_of(stage)))


def check_needs(experiment: Experiment, stages: Iterable[Stage]) -> None:
    """UserError for the first stage whose data cannot meet its requirements. Nothing is opened."""
    for stage in stages:
        for need in of_stage(experiment, stage):
            spec = experiment.data[need.data.source]
            if need.of == "pairs":
                _check_pairs(need, spec)
            else:
                _check_volumes(experiment, need, spec)


def _check_pairs(need: Need, spec: SourceSpec) -> None:
    name = need.data.source
    if not spec.partner:
        what, where = f"{need.why}, but {name} has single images", f"config.data.{name}.partner"
        todo = "name the field of the partner's file, or the modality of a phantom"
        raise UserError(what, where=where, todo=todo)
    check_partner(spec)
    if spec.shuffled_partners and (phantom := drawn(spec)) is not None:
        split = need.data.split
        count = len(phantom.patients(spec.place, split))
        if split == "train":
            count = spec.patients or (count if spec.train_share_of == "images" else round(spec.train_share * count))
        if count < 2:
            what = f"the split '{split}' of {name} has one patient, so partners cannot come from another"
            todo = "use more patients: a larger count of the phantom, patients or train_share"
            raise UserError(what, where=f"config.data.{name}.shuffled_partners", todo=todo)


def _check_volumes(experiment: Experiment, need: Need, spec: SourceSpec) -> None:
    name = need.data.source
    if spec.spec and not may_be_slices(spec):
        todo = "name a source of whole volumes, or leave the stage out by --stages"
        raise UserError(f"{need.why}, but {name} has images, not volumes", where=f"config.data.{name}.spec", todo=todo)
    if spec.partner:
        what = f"{need.why}, but the images of {name} have partners, which volumes cannot have"
        raise UserError(what, where=f"config.data.{name}.partner", todo="leave it empty")
    if experiment.on_error != "stop":
        what = f"{need.why}, but volumes are read during evaluation, so none can be skipped"
        todo = "leave it at stop, and give only readable volumes"
        raise UserError(what, where="config.data.on_error", todo=todo)
