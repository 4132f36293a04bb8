"""Common parts of all phantom data sets: options after the colon in `phantom:KEY=VALUE,KEY=VALUE`, splits by patient.

Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

import numpy as np

from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.splits import largest_remainder
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.randomness import check_seed
from elk_jax.synthesis.phantom import VIEWS, patient_id

SPLITS = {"train": 0.6, "val": 0.15, "test": 0.25}
CLASSES = ("lesion",)
MALIGNANT = ("irregular", "spiculated", "clustered")
"""Kinds of lesions whose shape looks malignant to radiologists; the others look benign."""
_SPACE = 1_000_000  # indices reserved for each split: its phantoms stay the same when `count` grows


class SetOptions(Protocol):
    """Options that every phantom data set has.

    count: views in all splits together, four per patient; 60 / 15 / 25 % of the patients are in train / val / test.
    seed: different seeds give disjoint sets of patients.
    modality: what the images show; with the same seed, all modalities show the same breasts and lesions.
    """

    @property
    def count(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def modality(self) -> str: ...


T = TypeVar("T", bound=SetOptions)


def parse(text: str, kind: type[T], name: str, modalities: Sequence[str], without: Sequence[str] = ()) -> T:
    """`size=256,seed=3` -> options as a dataclass; all fields except `without` can be given.

    name: of the kind of source. UserError with the bad key and the valid ones.
    """
    where = f"{name}:{text}"
    kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(kind) if f.name not in without}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, equals, value = item.partition("=")
        if key not in kinds or not equals:
            todo = f"write KEY=VALUE with one of: {', '.join(kinds)}"
            raise UserError(f"unknown phantom option '{item}'", where=where, todo=todo)
        try:
            values[key] = kinds[key](value)
        except ValueError as error:
            what = f"phantom option {key} is '{value}', not of type {kinds[key].__name__}"
            raise UserError(what, where=where) from error
    options = kind(**values)
    if options.modality not in modalities:
        todo = f"choose one of: {', '.join(modalities)}"
        raise UserError(f"unknown phantom modality '{options.modality}'", where=where, todo=todo)
    check_seed(options.seed, where)
    if not len(VIEWS) * len(SPLITS) <= options.count <= _SPACE:
        raise UserError(
            f"phantom count {options.count} is out of range",
            where=where,
            todo=f"choose {len(VIEWS) * len(SPLITS)} (a patient per split) to {_SPACE}",
        )
    return options


def check_partner(spec: SourceSpec, modality: str, modalities: Sequence[str]) -> None:
    """UserError unless the image's modality and the partner are two different ones of `modalities`."""
    others = [name for name in modalities if name != modality]
    if modality not in modalities or spec.partner not in others:
        what = f"partner is '{spec.partner}' for images of modality {modality}"
        todo = f"pairs have {' and '.join(modalities)}" + (f": set {others[0]}" if len(others) == 1 else "")
        raise UserError(what, where=f"{spec.spec}: partner", todo=todo)


def jobs(options: SetOptions, split: str, where: str) -> list[tuple[str, int]]:
    """(split, phantom index) of the views of one split ("": all)."""
    if split and split not in SPLITS:
        todo = f"choose one of: {', '.join(SPLITS)}"
        raise UserError(f"a phantom has no split '{split}'", where=where, todo=todo)
    patients = largest_remainder(np.array(list(SPLITS.values())), options.count // len(VIEWS), at_least=1)
    return [
        (name, start * _SPACE + view)
        for start, (name, number) in enumerate(zip(SPLITS, patients))
        for view in range(number * len(VIEWS))
        if split in ("", name)
    ]


def patients_of(options: SetOptions, split: str, where: str) -> dict[str, str]:
    """Patient id -> split of the phantoms that a source with these options would draw."""
    return {patient_id(options.seed, index): name for name, index in jobs(options, split, where)}


def whole_image(breast: Any, width: int, height: int, modality: str, split: str) -> ImageInfo:
    """The record of an image of a whole phantom breast (`Phantom`, `PhantomVolume`), with all its lesions."""
    name, count = f"{breast.patient_id}_{breast.laterality}_{breast.view}", len(breast.boxes)
    return ImageInfo(
        image_id=name,
        patient_id=breast.patient_id,
        width=width,
        height=height,
        boxes=breast.boxes,
        labels=np.zeros(count, np.int32),
        ignore=np.zeros(count, bool),
        split=split,
        file_name=f"{name}.png",
        meta={
            "laterality": breast.laterality,
            "view": breast.view,
            "density": breast.density,
            "modality": modality,
            "lesion_kinds": list(breast.lesion_kinds),
        },
    )


def read_grey(images: tuple[np.ndarray, ...], position: int) -> np.ndarray:
    """An image kept as 8 bits, as [H, W, 1] float32 in [0, 1]."""
    return (images[position].astype(np.float32) * np.float32(1 / 255)).clip(0, 1)[..., None]
