"""The class of a whole image, for tasks that classify images: the class of its boxes; and that of all lesions."""

from __future__ import annotations

from collections import Counter

import numpy as np

from elk_jax.data.sources.source import ImageSource
from elk_jax.errors import UserError


def image_labels(source: ImageSource) -> np.ndarray:
    """The class [N] int64 of every image: the one that all its boxes share; ignore boxes do not count.

    UserError for the first image with boxes of several classes, or without a box.
    """
    labels = np.zeros(len(source), np.int64)
    for position, info in enumerate(source.infos):
        found = np.unique(info.labels[~info.ignore])
        if len(found) != 1:
            named = " and ".join(source.classes[label] for label in found)
            what = f"the image has boxes of the classes {named}" if named else "the image has no box, so no class"
            where = f"{source.name}, image {info.image_id} ({info.file_name})"
            todo = "give images with one class each, or select them with `where`"
            raise UserError(what, where=where, todo=todo)
        labels[position] = found[0]
    return labels


def lesion_class(source: ImageSource) -> str:
    """The class of all lesions, for a painter, which learns them alike. UserError if there are several."""
    found = sorted({int(label) for info in source.infos for label in info.labels[~info.ignore]})
    if len(found) > 1:
        named = " and ".join(source.classes[label] for label in found)
        what = f"lesions of the classes {named} would be painted alike, and no painted lesion would have a class"
        raise UserError(what, where=source.name, todo="give lesions of one class, or make them one category")
    return source.classes[found[0] if found else 0]


def check_both_classes(labels: np.ndarray, source: ImageSource, split: str) -> None:
    """UserError unless there are exactly two classes, with images of both."""
    if len(source.classes) != 2:
        what = f"the data has {len(source.classes)} classes, not two: {', '.join(source.classes)}"
        raise UserError(what, where=source.name, todo="give data with two classes")
    missing = [name for label, name in enumerate(source.classes) if not (labels == label).any()]
    if missing:
        what = f"no image of the class {missing[0]} in the split '{split}'"
        raise UserError(what, where=source.name, todo="check the split and the selection of images (where)")


def lacking_class(source: ImageSource) -> str:
    """An image of the first class that no image is of, in words; else "". UserError as of `image_labels`."""
    missing = sorted({*range(len(source.classes))} - {*image_labels(source).tolist()})
    return f"an image of the class {source.classes[missing[0]]}" if missing else ""


def class_counts(source: ImageSource) -> dict[str, int]:
    """Counts for logs and reports: images, patients, and images of every class by its name."""
    named = Counter(source.classes[label] for label in image_labels(source))
    people = len({info.patient_id for info in source.infos})
    return {"images": len(source), "patients": people, **{name: named[name] for name in source.classes}}
