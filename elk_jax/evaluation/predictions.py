"""Class probabilities per image, on the host: the input of every classification metric.

Shapes: N images, Q classes.
Files: JSON, {"classes": [Q], "predictions": [{"image_id", "patient_id", "label": a class, "probabilities": [Q]}, ...]}.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elk_jax.errors import UserError
from elk_jax.files import read_json, write_json
from elk_jax.images.names import checked_text

SUM = 1e-3
"""Tolerance for the sum of an image's probabilities: those in half precision are rounded."""


@dataclass(frozen=True)
class Predictions:
    """The probabilities of one classifier for images, and their true classes.

    Built from any sequences; stores strings and arrays of int64 and float64. A patient "" becomes the image's own.
    UserError for no image, a duplicate image, arrays of inconsistent shapes, a label that is not a class, and
    probabilities that are not finite, not in [0, 1], or do not sum to 1 (within SUM; they are not rescaled).
    """

    image_ids: tuple[str, ...]  # [N]
    patient_ids: tuple[str, ...]  # [N]
    labels: np.ndarray  # [N] index into `classes`
    probabilities: np.ndarray  # [N, Q]
    classes: tuple[str, ...]  # [Q]

    def __post_init__(self) -> None:
        classes = tuple(checked_text(name, "a class", "classes") for name in self.classes)
        if len(classes) < 2 or len(set(classes)) < len(classes) or not all(classes):
            todo = "give at least two classes, each with its own name"
            raise UserError(f"the classes are {', '.join(map(repr, classes)) or 'none'}", where="classes", todo=todo)
        image_ids = tuple(checked_text(image_id, "image_id", "image_ids") for image_id in self.image_ids)
        if not image_ids:
            raise UserError("no image", where="image_ids", todo="give predictions for at least one")
        for image_id, count in Counter(image_ids).items():
            if count > 1 or not image_id:
                what = f"the image occurs {count} times" if image_id else f"{count} images have no id"
                raise UserError(what, where=f"image {image_id}", todo="list every image once, with its own id")
        if len(self.patient_ids) != len(image_ids):
            what = f"{len(self.patient_ids)} patients for {len(image_ids)} images"
            raise UserError(what, where="patient_ids", todo="give one for each image")
        patients = (
            checked_text(patient, "patient_id", f"image {image}") or image
            for patient, image in zip(self.patient_ids, image_ids)
        )
        values = {
            "classes": classes,
            "image_ids": image_ids,
            "patient_ids": tuple(patients),
            "labels": _labels(self.labels, image_ids, classes),
            "probabilities": _probabilities(self.probabilities, image_ids, classes),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.image_ids)

    def position(self, positive: str) -> int:
        """The index of the class `positive`. UserError for an unknown name."""
        if positive not in self.classes:
            todo = f"choose one of {', '.join(self.classes)}"
            raise UserError(f"no class {positive!r}", where="positive", todo=todo)
        return self.classes.index(positive)

    def scores(self, positive: str) -> np.ndarray:
        """The probability [N] of the class `positive`."""
        return self.probabilities[:, self.position(positive)]

    def truth(self, positive: str, what: str = "") -> np.ndarray:
        """Whether each image [N] has the class `positive`; all other classes are negative.

        UserError unless there are images of both kinds. what: names these predictions in the error.
        """
        truth = self.labels == self.position(positive)
        if truth.all() or not truth.any():
            kind = f"a class other than {positive}" if truth.all() else f"the class {positive}"
            todo = "give predictions for a split that has both"
            raise UserError(f"none of {len(self)} images has {kind}", where=what or "predictions", todo=todo)
        return truth


def _labels(values: Any, image_ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    labels = _numbers(values, "labels", (len(image_ids),))
    wrong = np.flatnonzero(~np.isin(labels, np.arange(len(classes))))
    if len(wrong):
        what = f"the label {labels[wrong[0]]:g} is not a class"
        todo = f"give whole numbers from 0 to {len(classes) - 1}, for {', '.join(classes)}"
        raise UserError(what, where=f"image {image_ids[wrong[0]]}", todo=todo)
    return labels.astype(np.int64)


def _probabilities(values: Any, image_ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    rows = _numbers(values, "probabilities", (len(image_ids), len(classes)))
    faults = {
        "are not finite": ~np.isfinite(rows).all(1),
        "are not all from 0 to 1": ~((rows >= 0) & (rows <= 1)).all(1),
        "do not sum to 1": ~(np.abs(rows.sum(1) - 1) <= SUM),
    }
    for fault, found in faults.items():
        if found.any():
            first = int(np.flatnonzero(found)[0])
            shown = ", ".join(f"{value:g}" for value in rows[first, :8])
            what = f"the probabilities {shown} {fault} ({int(found.sum())} images)"
            todo = "give the softmax of the logits, from finite weights"
            raise UserError(what, where=f"image {image_ids[first]}", todo=todo)
    return rows


def _numbers(values: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "biuf":
            numbers = numbers.astype(float)  # bfloat16, which NumPy does not know
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} is not an array of numbers", where=name, todo="correct it") from error
    if numbers.shape != shape:
        todo = f"give {list(shape)}: one for each image{' and class' if len(shape) > 1 else ''}"
        raise UserError(f"{name} has shape {list(numbers.shape)}", where=name, todo=todo)
    return numbers.astype(np.float64)


def aligned(sets: Sequence[Predictions]) -> list[Predictions]:
    """The same predictions, all in the order of the first set.

    UserError unless there is at least one set, and all have the same images, patients, labels and classes.
    """
    if not sets:
        raise UserError("no predictions", where="predictions", todo="give those of at least one classifier")
    first, todo = sets[0], "give predictions of classifiers for the same data and split"
    truth = dict(zip(first.image_ids, zip(first.patient_ids, first.labels.tolist())))
    found = [first]
    for number, other in enumerate(sets[1:], 2):
        where = f"predictions {number}"
        if other.classes != first.classes:
            what = f"the classes are {', '.join(other.classes)}, but those of the first are {', '.join(first.classes)}"
            raise UserError(what, where=where, todo=todo)
        own = dict(zip(other.image_ids, zip(other.patient_ids, other.labels.tolist())))
        differing = sorted(image for image in truth.keys() | own.keys() if truth.get(image) != own.get(image))
        if differing:
            what = f"{len(differing)} images are missing, or differ from the first in patient or class"
            raise UserError(f"{what}, for example {differing[0]!r}", where=where, todo=todo)
        place = {image: row for row, image in enumerate(other.image_ids)}
        order = [place[image] for image in first.image_ids]
        found.append(replace(first, probabilities=other.probabilities[order]))
    return found


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of different images by classifiers of the same classes as one set."""
    if len({part.classes for part in parts}) != 1:
        raise UserError("predictions with different classes", where="classes", todo="join those with the same classes")
    return Predictions(
        image_ids=tuple(image for part in parts for image in part.image_ids),
        patient_ids=tuple(patient for part in parts for patient in part.patient_ids),
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        classes=parts[0].classes,
    )


def write_predictions(path: str | os.PathLike, predictions: Predictions) -> None:
    """Write predictions as JSON, without rounding."""
    rows = zip(predictions.image_ids, predictions.patient_ids, predictions.labels, predictions.probabilities.tolist())
    entries = [
        {"image_id": image, "patient_id": patient, "label": predictions.classes[label], "probabilities": row}
        for image, patient, label, row in rows
    ]
    write_json(path, {"classes": list(predictions.classes), "predictions": entries})


def read_predictions(path: str | os.PathLike) -> Predictions:
    """Read a file of `write_predictions` or of another program. UserError, with the file and the entry, if it is
    invalid."""
    content = read_json(path)
    parts = content if isinstance(content, dict) else {}
    classes, entries = parts.get("classes"), parts.get("predictions")
    if not isinstance(classes, list) or not isinstance(entries, list):
        todo = 'write {"classes": [...], "predictions": [{"image_id", "patient_id", "label", "probabilities"}]}'
        raise UserError("not a file of class probabilities", where=path, todo=todo)
    for position, entry in enumerate(entries):
        _check_entry(entry, classes, f"{path}, entry {position}")
    columns = {key: [entry[key] for entry in entries] for key in ("image_id", "patient_id", "label", "probabilities")}
    labels = [classes.index(label) for label in columns["label"]]
    try:
        return Predictions(columns["image_id"], columns["patient_id"], labels, columns["probabilities"], tuple(classes))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(error.what, where=f"{path}, {error.where}", todo=error.todo) from error


def _check_entry(entry: Any, classes: Sequence[Any], where: str) -> None:
    keys = ("image_id", "patient_id", "label", "probabilities")
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise UserError(f"the prediction has no {', '.join(missing)}", where=where, todo="add it")
    if entry["label"] not in classes:
        todo = f"use one of {', '.join(map(str, classes))}"
        raise UserError(f"the label {entry['label']!r} is not a class", where=where, todo=todo)
    row = entry["probabilities"]
    if not isinstance(row, list) or len(row) != len(classes) or any(type(p) not in (int, float) for p in row):
        todo = f"give {len(classes)} numbers, one for each class"
        raise UserError(f"the probabilities are {row!r:.60}", where=where, todo=todo)
