"""The stages of an experiment as types: what each of them reads, and which models and patients are involved.

A task derives its own stages from the kinds below; its fields are the settings of the stage in the configuration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from elk_jax.errors import UserError
from elk_jax.fields import NOT_EMPTY, AtLeast
from elk_jax.privacy.accounting import DELTA, Unit
from elk_jax.randomness import Seed


class Data(NamedTuple):
    """One split of a data source."""

    source: str
    split: str


class Need(NamedTuple):
    """What a stage requires of its data: pairs, both images of which it reads, or volumes, which it reads whole. why:
    the first half of a sentence, for the error."""

    data: Data
    of: Literal["pairs", "volumes"]
    why: str


class Origin(NamedTuple):
    """The training data behind a stage: data sources (their training split) and models (a train stage or a folder)."""

    sources: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The fields of every stage.

    name: of the stage in its experiment. kind, task: select the function that runs it in the table `tasks.TASKS`.
    recipe: name of the recipe in the configuration; "" for a stage without one.
    """

    name: str = ""
    kind: str
    task: str
    recipe: str = ""

    def data(self) -> tuple[Data, ...]:
        """All data that the stage opens, its training data first."""
        return ()

    def named_models(self) -> Mapping[str, str]:
        """Setting -> the train stage or model folder that it names; unset ones are left out."""
        return {}

    def trained(self) -> tuple[str, ...]:
        """The train stages of the run folder whose models are evaluated."""
        return ()

    def held_out(self) -> Data | None:
        """The data on which a checkpoint is chosen, or a model is tested."""
        return None

    def origin(self) -> Origin:
        """The sources of patients that reach the output of the stage."""
        return Origin((), ())

    def evaluated(self, writers: Mapping[str, str]) -> tuple[str, ...]:
        """The stages whose results are evaluated on `held_out`. writers: data source -> the stage that writes it."""
        return self.trained()

    def relevant(self, recipe: Any) -> Any:
        """The recipe as far as the result depends on it: settings for other stages are at their defaults.

        Stages that agree in it have the same result, so a sweep over settings of a student trains only one teacher.
        """
        return recipe


def check_each_once(names: Sequence[str], where: str) -> None:
    """UserError for a stage or folder that is named twice, however its path is written, as it would count double."""
    places = [os.path.normpath(name) for name in names]
    for number, place in enumerate(places):
        if place in places[:number]:
            todo = "name each once"
            raise UserError(f"{names[number]} is named twice", where=f"{where}[{number}]", todo=todo)


@dataclass(frozen=True, kw_only=True)
class TrainStage(Stage):
    """Train a model step by step (train), or fit one at once, with nothing to resume (fit); leaves RUN/STAGE/model.

    train_on: data sources, mixed. validate_on: the source whose validation split chooses the checkpoint. init_from: an
    earlier train stage, or a model folder (of another run, or of launch/import_weights.py), to take the weights from.
    """

    kind: Literal["train", "fit"] = "train"
    train_on: Annotated[tuple[str, ...], NOT_EMPTY]
    validate_on: str
    init_from: str = ""

    def data(self) -> tuple[Data, ...]:
        return *(Data(source, "train") for source in self.train_on), Data(self.validate_on, "val")

    def named_models(self) -> Mapping[str, str]:
        return {"init_from": self.init_from} if self.init_from else {}

    def held_out(self) -> Data:
        return Data(self.validate_on, "val")

    @property
    def starts_trained(self) -> bool:
        """Whether it starts from trained weights."""
        return bool(self.init_from)

    def protects(self, recipe: Any) -> bool:
        """Whether the training protects the patients of `train_on`. recipe: of the stage."""
        return getattr(recipe, "privacy", None) is not None

    def paced(self, recipe: Any) -> Any:
        """The recipe with this stage's own learning rate and steps, if it sets them."""
        return recipe

    def origin(self) -> Origin:
        return Origin(self.train_on, tuple(self.named_models().values()))

    def evaluated(self, writers: Mapping[str, str]) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True, kw_only=True)
class PrivateTrainStage(TrainStage):
    """A train stage of a task that also trains privately, with `privacy` in its recipe.

    public: data sources whose examples need no protection, such as synthetic ones. Their gradient is added to that of
    `train_on`, weighted by `privacy.public_weight`.
    exposed: train privately although weights or images that the stage reads have learned from the same patients without
    protecting them, as published chains do. Its epsilon then covers only this training; its model and report say so.
    """

    public: tuple[str, ...] = ()
    exposed: bool = False

    def data(self) -> tuple[Data, ...]:
        *train, held_out = super().data()
        return *train, *(Data(source, "train") for source in self.public), held_out

    def origin(self) -> Origin:
        sources, models = super().origin()
        return Origin(sources + self.public, models)


@dataclass(frozen=True, kw_only=True)
class FitStage(TrainStage):
    """Fit a model in one go, privately or not.

    public: data sources of other people's images, with all splits, which need no protection.
    epsilon: of differential privacy at `delta`; 0: without privacy. unit: what it protects, one image or all images of
    a patient. known_seed: derive the noise from this number, for tests only: anyone who knows it can subtract the
    noise, so the model is not private.
    """

    kind: Literal["fit"] = "fit"
    public: tuple[str, ...] = ()
    epsilon: Annotated[float, AtLeast(0)] = 0.0
    delta: Annotated[float, DELTA] = 1e-4
    unit: Unit = "patient"
    known_seed: Seed | None = None

    @property
    def is_private(self) -> bool:
        """Whether noise protects the training data."""
        return self.epsilon > 0

    def protects(self, recipe: Any) -> bool:
        return self.is_private

    def data(self) -> tuple[Data, ...]:
        return *super().data(), *(Data(name, "") for name in self.public)


@dataclass(frozen=True, kw_only=True)
class CombineStage(Stage):
    """Combine several trained models into one; leaves RUN/STAGE/model.

    members: earlier stages that leave a model, or model folders. validate_on: the source whose validation split chooses
    the operating points.
    """

    kind: Literal["combine"] = "combine"
    members: Annotated[tuple[str, ...], NOT_EMPTY]
    validate_on: str

    def __post_init__(self) -> None:
        check_each_once(self.members, "members")

    def data(self) -> tuple[Data, ...]:
        return (Data(self.validate_on, "val"),)

    def named_models(self) -> Mapping[str, str]:
        return {f"members[{number}]": member for number, member in enumerate(self.members)}

    def held_out(self) -> Data:
        return Data(self.validate_on, "val")

    def origin(self) -> Origin:
        return Origin((), self.members)

    def evaluated(self, writers: Mapping[str, str]) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True, kw_only=True)
class SynthesizeStage(Stage):
    """Make images with a trained model: RUN/STAGE becomes the data source `stage:STAGE`.

    model: an earlier train stage, or a model folder.
    """

    kind: Literal["synthesize"] = "synthesize"
    model: str

    def __post_init__(self) -> None:
        if self.name and not self.model:
            raise UserError("no model to synthesize with", where="model", todo="name a train stage or a model folder")

    def named_models(self) -> Mapping[str, str]:
        return {"model": self.model}

    def origin(self) -> Origin:
        return Origin((), (self.model,))


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Measure something on one split of a data source, `on`; leaves RUN/STAGE/evaluation.json or the like."""

    kind: Literal["evaluate"] = "evaluate"
    on: str
    split: str = "test"

    def data(self) -> tuple[Data, ...]:
        return (Data(self.on, self.split),)

    def held_out(self) -> Data:
        return Data(self.on, self.split)


@dataclass(frozen=True, kw_only=True)
class EvaluateModelsStage(EvaluateStage):
    """Evaluate trained models, each on the same images.

    models: train stages of the run folder. With several, the first is compared with each of the others.
    """

    models: Annotated[tuple[str, ...], NOT_EMPTY]

    def __post_init__(self) -> None:
        check_each_once(self.models, "models")

    def trained(self) -> tuple[str, ...]:
        return self.models

    @property
    def subjects(self) -> tuple[str, ...]:
        """Everything that is evaluated, by name: the models, and what a task makes from several of them."""
        return self.models
