"""The data set as determined by the tables: images, boxes, split and counts.

Shapes: N boxes of one image, xyxy, px.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from cdd_split import extended_split, published_split, stratified_split
from cdd_tables import Cleaning, Filter, ImageRow, is_healthy, kept_boxes, passes

SPLITS = ("train", "val", "test")
PUBLISHED = {  # patients, images, lesions
    **{"train": (80, 150, 312), "val": (19, 37, 103), "test": (32, 56, 140)},
    **{"all": (131, 243, 555), "few-shot": (26, "-", 104)},
}


@dataclass(frozen=True)
class Options:
    """The options that determine the data set."""

    filter: Filter = "elk"
    modality: str = "subtracted"
    cleaning: Cleaning = "published"
    split: str = "published"
    split_seed: int = 42


@dataclass(frozen=True)
class Planned:
    """One image of the data set before it is read."""

    row: ImageRow
    boxes: np.ndarray  # [N, 4] float32 xyxy, cleaned, not yet clipped to the image
    split: str
    fewshot: bool


@dataclass(frozen=True)
class Plan:
    """The data set as the tables define it."""

    images: tuple[Planned, ...]  # with lesions; with filter "none" also the healthy images
    canvases: tuple[Planned, ...]  # healthy images of training patients
    filtered: tuple[ImageRow, ...]  # images that pass the filter, including those without a region
    unannotated: tuple[str, ...]  # neither healthy nor with a region, so not usable


def make_plan(rows: tuple[ImageRow, ...], options: Options) -> Plan:
    """Filter, clean and split.

    The split extends the published one; that of a patient does not depend on filter and modality.
    """
    modalities = ("subtracted", "low_energy") if options.modality == "both" else (options.modality,)
    elk_lesions: Counter[str] = Counter()
    for row in rows:
        if row.modality == "subtracted" and passes(row, "elk") and len(row.boxes):
            elk_lesions[row.patient_id] += int(kept_boxes(row.boxes, "published").sum())
    rule = published_split if options.split == "published" else stratified_split
    split, fewshot = rule(elk_lesions, options.split_seed) if len(elk_lesions) >= 8 else ({}, frozenset())
    regions: Counter[str] = Counter()
    for row in rows:
        regions[row.patient_id] += len(row.boxes)
    split = extended_split(split, regions, options.split_seed)

    def planned(row: ImageRow) -> Planned:
        boxes = row.boxes[kept_boxes(row.boxes, options.cleaning)]
        return Planned(row, boxes, split[row.patient_id], row.patient_id in fewshot)

    chosen = [row for row in rows if row.modality in modalities]
    filtered = tuple(row for row in chosen if passes(row, options.filter))
    healthy = [row for row in chosen if is_healthy(row)]
    names = {row.name for row in healthy}
    return Plan(
        images=tuple(planned(row) for row in filtered if len(row.boxes) or row.name in names),
        canvases=tuple(planned(row) for row in healthy if split[row.patient_id] == "train"),
        filtered=filtered,
        unannotated=tuple(row.name for row in filtered if not len(row.boxes) and row.name not in names),
    )


def counts(images: list[Planned] | tuple[Planned, ...]) -> dict[str, dict[str, int]]:
    """Numbers of patients, images, lesions and lesion-free images: per split, in total, and for the few-shot subset."""
    groups = {name: [image for image in images if image.split == name] for name in SPLITS}
    groups |= {
        "all": list(images),
        "few-shot": [image for image in images if image.fewshot and image.split == "train"],
    }
    return {
        name: {
            "patients": len({image.row.patient_id for image in group}),
            "images": len(group),
            "lesions": sum(len(image.boxes) for image in group),
            "lesion_free": sum(not len(image.boxes) for image in group),
        }
        for name, group in groups.items()
    }
