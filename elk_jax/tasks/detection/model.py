"""A detector as a model to train, and as a folder: weights, architecture, classes, input size, operating points.

A folder may also contain an ensemble: several detectors, each with its own input, whose boxes are fused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from elk_jax.data.augment import Resize
from elk_jax.data.batches.buckets import Canvas, Canvases, padded
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.data.flips import Flip
from elk_jax.data.slice_greys import SliceGreys
from elk_jax.detection import detectors
from elk_jax.detection.detector import Detector, TapName
from elk_jax.errors import UserError
from elk_jax.evaluation import fusion
from elk_jax.evaluation.operating import Choice, ChosenOn, OperatingPoint
from elk_jax.fields import ABOVE_ZERO, NOT_EMPTY, SHARE, SIDE, Between, ByName, Range, check
from elk_jax.training.model import Batch, Constants, MapImages, Metrics, Model, Params
from elk_jax.weights import model_folder
from elk_jax.weights.detectors import Imported

ENSEMBLE = "ensemble_of_detectors"
ARCHITECTURES = (*detectors.DETECTORS, ENSEMBLE)
Scales = Annotated[tuple[Annotated[float, Between(0.25, 4)], ...], NOT_EMPTY]
"""A setting: factors on the size of a detector's input."""
Same = Annotated[float, Range(0, 1, above=True)]
"""A setting: the IoU from which boxes of several views or members count as the same lesion."""
Weight = Annotated[float, ABOVE_ZERO]
AnyInput = TypeVar("AnyInput", "Input", LoaderConfig)
LearnedMaps = Literal["", TapName]
"""Maps to which the training of a detector was limited; "" for none."""
EARLIER = {**detectors.EARLIER, "input": {"crop_to_breast": False, "flips": ()}}
"""Fields that model folders of earlier versions lack."""
LATER = {
    "input": {
        "resize": {"stretch": (), "rounding": "nearest", "pixels": "mean", "boxes": "scaled", "float16_white": 0},
        "slice_greys": "window",
        "same": fusion.SAME,
        "scales": (1.0,),
    },
    "chosen_on": asdict(ChosenOn()),
    "learned_maps": "",
}
"""Fields that any model folder may lack."""
POINT = {one.name: one.default for one in fields(OperatingPoint) if one.default is not MISSING}
"""Fields that the operating points of any model folder may lack."""


def trainable(detector: Detector, per_image: bool = False) -> Model:
    """A detector for the training loop. Its loss divides by counts of the whole batch.

    per_image: the loss is the mean of the losses of single images, each divided by its own counts. Images then do not
    interact in it, as private training requires.
    """

    def loss(
        params: Params, constants: Constants, batch: Batch, rng: jax.Array, map_images: MapImages
    ) -> tuple[jax.Array, Metrics]:
        return (image_mean if per_image else detector.loss)(params, batch, rng, map_images)

    def image_mean(params: Params, batch: Batch, rng: jax.Array, map_images: MapImages) -> tuple[jax.Array, Metrics]:
        def of_image(image: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            return detector.loss(params, jax.tree.map(lambda x: x[None], image), key, jax.vmap)

        counts = batch["valid"]
        images = {name: x for name, x in batch.items() if name != "valid"}
        found = map_images(of_image)(images, jax.random.split(rng, len(counts)))
        mean = lambda x: jnp.where(counts, x, 0).sum() / jnp.maximum(counts.sum(), 1)
        return jax.tree.map(mean, found)

    return Model(
        init=detector.init,
        loss=loss,
        predict=lambda params, constants, batch, map_images: detector.predict(params, batch, map_images),
        frozen=detector.frozen,
        statistics=detector.statistics,
        per_example=per_image,
    )


@dataclass(frozen=True)
class Input:
    """How images are prepared for the detector. flips: mirrored views to detect in as well. slice_greys: for whole
    volumes. same: IoU from which boxes of several views count as the same lesion. scales: factors on the size of the
    input; at each of them, it detects in the image and in the mirrored views."""

    crop_to_breast: bool
    resize: Resize
    buckets: Canvases
    flips: tuple[Flip, ...]
    slice_greys: SliceGreys = "window"
    same: Same = fusion.SAME
    scales: Scales = (1.0,)


@dataclass(frozen=True)
class Description:
    """The content of `model.json`. model: the settings of the detector. chosen_on: the data its operating points were
    chosen on. learned_maps: for a detector trained only to resemble another, the maps that it has learned; "" for all
    others."""

    architecture: str
    model: Annotated[Any, ByName(detectors.kinds)]
    classes: tuple[str, ...]
    input: Input
    operating_points: tuple[OperatingPoint, ...]
    trained: model_folder.Training | None = None
    chosen_on: ChosenOn = field(default_factory=ChosenOn)
    learned_maps: LearnedMaps = ""

    def __post_init__(self) -> None:
        if len(self.classes) != self.model.num_classes:
            what = f"{len(self.classes)} names for {self.model.num_classes} classes"
            raise UserError(what, where="classes", todo="name every class of the model")


class Trained(NamedTuple):
    """A detector's model folder, read."""

    detector: Detector
    params: Params
    description: Description

    @property
    def tested_images(self) -> int:
        """The number of images of a breast that it reads."""
        return self.detector.tested_images

    @property
    def members(self) -> tuple[Trained, ...]:
        """Itself, where an `Ensemble` has several."""
        return (self,)


@dataclass(frozen=True)
class EnsembleDescription:
    """The content of `model.json` of an ensemble. members: the model.json of each, without format and hash. hashes:
    SHA-256 of the parameters in each member's own folder, "" if the folder has none. scales: factors on the size of the
    input; each member uses all of them, with its own mirrored views. weights: of the members, above 0. same: IoU from
    which boxes of members count as the same lesion. score_floor: boxes of a member with a lower score are not fused, so
    that the fused boxes are those with which `same` and the thresholds were chosen; None in folders of earlier
    versions, where the caller's floor applies before fusion. operating_points: of the fused boxes.
    """

    architecture: str
    classes: tuple[str, ...]
    members: Annotated[tuple[Mapping[str, Any], ...], NOT_EMPTY]
    hashes: tuple[str, ...]
    scales: Scales
    weights: tuple[Weight, ...]
    same: Annotated[float, SHARE]
    operating_points: tuple[OperatingPoint, ...]
    trained: model_folder.Training | None = None
    chosen_on: ChosenOn = field(default_factory=ChosenOn)
    score_floor: Annotated[float, SHARE] | None = None

    def __post_init__(self) -> None:
        check(self)
        for name in ("hashes", "weights"):
            if len(getattr(self, name)) != len(self.members):
                what = f"{len(getattr(self, name))} {name} for {len(self.members)} members"
                raise UserError(what, where=name, todo="give one for each")


class Ensemble(NamedTuple):
    """The content of the model folder of an ensemble."""

    members: tuple[Trained, ...]
    description: EnsembleDescription

    @property
    def tested_images(self) -> int:
        """The largest number of images of a breast that a member reads."""
        return max(member.tested_images for member in self.members)


def describe(
    detector: Detector,
    classes: Sequence[str],
    test_loader: LoaderConfig,
    crop_to_breast: bool,
    flips: Sequence[Flip],
    choice: Choice,
    trained: model_folder.Training | None = None,
    slice_greys: SliceGreys = "window",
    same: float = fusion.SAME,
    learned_maps: LearnedMaps = "",
    scales: Sequence[float] = (1.0,),
) -> Description:
    """The description of a detector, with its operating points."""
    return Description(
        architecture=detector.name,
        model=detector.config,
        classes=tuple(classes),
        input=Input(
            crop_to_breast, test_loader.resize, test_loader.buckets, tuple(flips), slice_greys, same, tuple(scales)
        ),
        operating_points=choice.points,
        trained=trained,
        chosen_on=choice.on,
        learned_maps=learned_maps,
    )


def load(folder: Path) -> Trained | Ensemble:
    """Read the model folder of a detector, or of an ensemble. UserError for a folder of another kind."""
    params, content = model_folder.load_params(folder)
    return _load_ensemble(params, content, folder) if content.architecture == ENSEMBLE else of(params, content, folder)


def load_one(folder: Path) -> Trained:
    """Read the model folder of one detector. UserError for a folder of another kind, an ensemble too."""
    found = load(folder)
    if isinstance(found, Ensemble):
        raise _ensemble(folder)
    return found


def of(params: Params, content: model_folder.Content, folder: Path) -> Trained:
    """A detector from the content of its folder. UserError as `load`."""
    if content.architecture not in detectors.DETECTORS or "source" in content.entries:
        raise UserError(
            "not a trained detector", where=folder, todo="name the model folder of a detection stage: RUN/STAGE/model"
        )
    description = _present(content).build(Description, EARLIER, LATER)
    return Trained(detectors.build(description.model), params, description)


def _ensemble(folder: Path) -> UserError:
    return UserError(
        "an ensemble, where a single detector is needed", where=folder, todo="name one of its members' folders"
    )


def save_ensemble(folder: Path, params: Sequence[Params], description: EnsembleDescription) -> None:
    """Write the model folder of an ensemble, with the parameters of its members, so that it needs no other folder."""
    model_folder.save_params(folder, model_folder.join_members(params), description)


def _load_ensemble(params: Params, content: model_folder.Content, folder: Path) -> Ensemble:
    description = _present(content).build(EnsembleDescription, later={"score_floor": None})
    members = []
    found = model_folder.split_members(params, len(description.members), folder)
    for one, entries in zip(found, description.members):
        member = of(one, replace(content, entries=entries), folder)
        check_alike(member.description, description, folder)
        model_folder.check_fits(member.params, model_folder.shapes_of(member.detector.init), folder)
        members.append(member)
    return Ensemble(tuple(members), description)


def check_alike(one: Description, other: Description | EnsembleDescription, where: object) -> None:
    """UserError unless a member has the same classes as another, or as its ensemble, in the same order."""
    if one.classes != other.classes:
        what = f"detectors of different classes: {', '.join(one.classes)} and {', '.join(other.classes)}"
        raise UserError(what, where=where, todo="combine detectors of the same classes, in the same order")


def at_scale(entry: AnyInput, scale: float, where: str = "scales") -> AnyInput:
    """The input of a detector with images of `scale` times the size. Its batches must be padded (`eval_batches`).

    where: the setting, for errors. UserError for a canvas that is too large.
    """
    if scale == 1:
        return entry
    times = lambda sides: tuple(max(1, round(side * scale)) for side in sides)
    canvases: tuple[Canvas, ...] = tuple(dict.fromkeys(map(times, entry.buckets)))
    if not entry.resize.jitter:  # images have a size of their own, which may be rounded up
        canvases = tuple(dict.fromkeys(map(padded, canvases)))
    stretch = times(entry.resize.stretch)
    sides = [side for canvas in (*map(padded, canvases), stretch) for side in canvas]
    if any(not SIDE.takes(side) for side in sides):
        what = f"at a scale of {scale:g} the input of a detector has a side of {max(sides)} px"
        raise UserError(what, where=where, todo=f"give scales at which its sides are {SIDE} px")
    resize = replace(
        entry.resize,
        short_sides=times(entry.resize.short_sides),
        max_long_side=round(entry.resize.max_long_side * scale),
        stretch=stretch,
    )
    return replace(entry, resize=resize, buckets=canvases)


def in_words(scales: Sequence[float]) -> str:
    """ " at 1, 0.64 and 1.5 times the size"; "" for the size of training alone."""
    if tuple(scales) == (1.0,):
        return ""
    *before, last = (f"{scale:g}" for scale in scales)
    return f" at {', '.join(before)}{' and ' if before else ''}{last} times the size"


def with_views(
    trained: Trained | Ensemble, flips: Sequence[Flip] | None = None, scales: Sequence[float] | None = None
) -> Trained | Ensemble:
    """The same model, or each of its members, with other mirrored views and scales; None for those of its training.

    The scales of an ensemble are given up for those of its members. UserError for a canvas that is too large.
    """
    views = {"flips": flips, "scales": scales}
    changes: dict[str, Any] = {name: tuple(dict.fromkeys(own)) for name, own in views.items() if own is not None}
    if not changes:
        return trained
    members = []
    for one in trained.members:
        entry = replace(one.description.input, **changes)
        for scale in scales or ():
            at_scale(entry, scale, "--scales")
        members.append(one._replace(description=replace(one.description, input=entry)))
    if not isinstance(trained, Ensemble):
        return members[0]
    how = trained.description if scales is None else replace(trained.description, scales=(1.0,))
    return Ensemble(tuple(members), how)


def stored(content: model_folder.Content) -> Description | Imported:
    """The settings of the detector in a model folder, trained here or imported. UserError for an ensemble."""
    if content.architecture == ENSEMBLE:
        raise _ensemble(content.file.parent)
    if "source" in content.entries:
        return _present(content).build(Imported, detectors.EARLIER)
    return _present(content).build(Description, EARLIER, LATER)


def learned_maps(folder: Path) -> str:
    """`Description.learned_maps` of a model folder; "" if not given. UserError for a folder of another kind."""
    return str(model_folder.read(folder).entries.get("learned_maps") or "")


def _present(content: model_folder.Content) -> model_folder.Content:
    model = {"model": detectors.in_present_form(content.entries["model"])} if "model" in content.entries else {}
    return replace(content, entries={**content.entries, **model}).filled("operating_points", POINT)
