"""Detections and ground truth per image, on the host: the input of every detection metric.

Shapes: N lesions and K predictions of one image. Boxes are xyxy in pixels of the source image.
Files: COCO results, a JSON list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO
from elk_jax.files import read_json, write_json_list
from elk_jax.images.boxes import within_a_pixel
from elk_jax.images.names import checked_text, whole_number
from elk_jax.images.schema import ImageInfo

FARTHEST = 1e9
"""Largest possible coordinate in an image, in pixels: areas must not overflow."""
OVERHANG = 1.0
"""Pixels by which a predicted box may extend beyond its image without a note."""


@dataclass(frozen=True)
class Detections:
    """The predictions of one image, in any order."""

    boxes: np.ndarray  # [K, 4]
    scores: np.ndarray  # [K]
    labels: np.ndarray  # [K] 0-based class


@dataclass(frozen=True)
class ImageResult:
    """One image: its lesions and its predictions."""

    image_id: str
    patient_id: str
    width: int
    height: int
    gt_boxes: np.ndarray  # [N, 4]
    gt_labels: np.ndarray  # [N]
    gt_ignore: np.ndarray  # [N] bool: neither a lesion to find nor a false positive if found
    boxes: np.ndarray  # [K, 4]
    scores: np.ndarray  # [K]
    labels: np.ndarray  # [K]

    @property
    def has_lesions(self) -> bool:
        """Whether the image has a lesion to find. False also if all annotated boxes are ignore boxes."""
        return bool((~self.gt_ignore).any())

    @property
    def is_lesion_free(self) -> bool:
        """Whether the image has no annotated box at all, not even an ignore box."""
        return len(self.gt_boxes) == 0


NO_DETECTIONS = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


def join(infos: Sequence[ImageInfo], detections: Mapping[str, Detections]) -> list[ImageResult]:
    """Join ground truth and predictions in the order of `infos`; images without predictions are included.

    Raises UserError for an image id that occurs twice in `infos`, and for ids in `detections` that are not in `infos`.
    """
    seen: set[str] = set()
    results = []
    for info in infos:
        if info.image_id in seen:
            raise UserError(
                "the image id occurs twice in the data", where=f"image {info.image_id}", todo="make image ids unique"
            )
        seen.add(info.image_id)
        found = detections.get(info.image_id, NO_DETECTIONS)
        results.append(
            ImageResult(
                image_id=info.image_id,
                patient_id=info.patient_id,
                width=info.width,
                height=info.height,
                gt_boxes=np.asarray(info.boxes, float).reshape(-1, 4),
                gt_labels=np.asarray(info.labels, int).reshape(-1),
                gt_ignore=np.asarray(info.ignore, bool).reshape(-1),
                boxes=np.asarray(found.boxes, float).reshape(-1, 4),
                scores=np.asarray(found.scores, float).reshape(-1),
                labels=np.asarray(found.labels, int).reshape(-1),
            )
        )
    unknown = sorted(set(detections) - seen)
    if unknown:
        raise UserError(
            f"{len(unknown)} images are not in the data, for example {unknown[0]!r}",
            where="predictions",
            todo="evaluate on the data and split for which the predictions were made",
        )
    return results


def join_batches(
    infos: Sequence[ImageInfo],
    outputs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    score_floor: float = 0.0,
) -> list[ImageResult]:
    """Map the padded outputs of a detector to pixels of the source, and join them with the ground truth.

    infos: of the loader's source; `batch["index"]` is a position in it.
    outputs: pairs of a Batch and predictions: boxes [B, K, 4] in the resized image, scores, labels, valid [B, K].
    score_floor: predictions with a lower score are dropped.

    Images that are in no batch are omitted; an image that occurs twice (a padded last batch) counts once. Raises
    UserError for a score or box that is not finite.
    """
    detections: dict[int, Detections] = {}
    for batch, predictions in outputs:
        index, valid = np.asarray(batch["index"]), np.asarray(batch["valid"], bool)
        scale = np.asarray(batch["scale"], float)
        boxes = np.asarray(predictions["boxes"], float)
        scores = np.asarray(predictions["scores"], float)
        labels = np.asarray(predictions["labels"], int)
        keep = np.asarray(predictions["valid"], bool) & (np.isnan(scores) | (scores >= score_floor))
        for row in np.flatnonzero(valid):
            info = infos[int(index[row])]
            chosen = keep[row]
            own = boxes[row, chosen] / np.tile(scale[row], 2)
            if not (np.isfinite(own).all() and np.isfinite(scores[row, chosen]).all()):
                todo = "use an earlier checkpoint, or retrain with a lower learning rate"
                raise UserError("predicted boxes or scores are not finite", where=f"image {info.image_id}", todo=todo)
            limit = np.array([info.width, info.height] * 2, float)
            detections[int(index[row])] = Detections(
                boxes=np.clip(own, 0.0, limit), scores=scores[row, chosen], labels=labels[row, chosen]
            )
    order = sorted(detections)
    return join([infos[i] for i in order], {infos[i].image_id: detections[i] for i in order})


def checked(results: Iterable[ImageResult]) -> list[ImageResult]:
    """The same results with arrays of float64, int64 and bool, and ids as text; a patient "" becomes the image's own.

    UserError for what is also forbidden in files of annotations and results: a duplicate image, arrays of inconsistent
    shapes, a box or score that is not finite, an inverted box, a lesion without area, a label that is not a class.
    """
    found = [_checked(result) for result in results]
    for image_id, count in Counter(result.image_id for result in found).items():
        if count > 1:
            todo = "list every image once, with all its predictions"
            raise UserError(f"the image occurs {count} times", where=f"image {image_id}", todo=todo)
    return found


def _checked(result: ImageResult) -> ImageResult:
    if not isinstance(result, ImageResult):
        raise UserError(
            f"a result is a {type(result).__name__}", where="results", todo="give ImageResults, as from `join`"
        )
    image_id = checked_text(result.image_id, "image_id", "results")
    where = f"image {image_id}"
    for side in ("width", "height"):
        if not ABOVE_ZERO.takes(getattr(result, side)):
            raise UserError(f"{side} is {getattr(result, side)!r}", where=where, todo="give pixels")
    gt_boxes, boxes = (_boxes(getattr(result, name), name, where) for name in ("gt_boxes", "boxes"))
    if not (gt_boxes[:, 2:] > gt_boxes[:, :2]).all():
        raise UserError("a lesion's box is inverted or empty", where=where, todo="give x1 < x2 and y1 < y2")
    if not (boxes[:, 2:] >= boxes[:, :2]).all():
        raise UserError("a predicted box is inverted", where=where, todo="give x1 <= x2 and y1 <= y2")
    return ImageResult(
        image_id=image_id,
        patient_id=checked_text(result.patient_id, "patient_id", where) or image_id,
        width=result.width,
        height=result.height,
        gt_boxes=gt_boxes,
        gt_labels=_row(result.gt_labels, "gt_labels", len(gt_boxes), int, where),
        gt_ignore=_row(result.gt_ignore, "gt_ignore", len(gt_boxes), bool, where),
        boxes=boxes,
        scores=_row(result.scores, "scores", len(boxes), float, where),
        labels=_row(result.labels, "labels", len(boxes), int, where),
    )


def _boxes(values: Any, name: str, where: str) -> np.ndarray:
    boxes = _numbers(values, name, where)
    if boxes.shape != (0,) and boxes.shape[1:] != (4,):
        raise UserError(f"{name} has shape {boxes.shape}", where=where, todo="give [boxes, 4]")
    if np.abs(boxes).max(initial=0) > FARTHEST:
        raise UserError(f"{name} extends to {np.abs(boxes).max():g} px", where=where, todo="give pixels of the image")
    return boxes.reshape(-1, 4)


def _row(values: Any, name: str, count: int, kind: type, where: str) -> np.ndarray:
    """One number per box, converted to `kind` without loss."""
    row = _numbers(values, name, where)
    if row.shape != (count,):
        raise UserError(f"{name} has shape {row.shape} for {count} boxes", where=where, todo="give one for each")
    if not np.array_equal(row, row.astype(kind)) or (kind is int and row.min(initial=0) < 0):
        wanted = "class numbers from 0" if kind is int else "true or false"
        raise UserError(f"{name} is {row.tolist()!r:.60}", where=where, todo=f"give {wanted}")
    return row.astype(kind)


def _numbers(values: Any, name: str, where: str) -> np.ndarray:
    try:
        numbers = np.asarray(values)
        if numbers.size and numbers.dtype.kind not in "biuf":
            raise ValueError
    except ValueError as error:
        raise UserError(f"{name} is not an array of numbers", where=where, todo="correct it") from error
    numbers = numbers.astype(float)
    if not np.isfinite(numbers).all():
        raise UserError(f"{name} contains NaN or infinity", where=where, todo="correct or remove the prediction")
    return numbers


def doubts(results: Sequence[ImageResult]) -> list[str]:
    """Signs that predicted boxes are not in pixels, not xyxy, or duplicated; for notes."""
    boxes = np.concatenate([np.zeros((0, 4)), *(result.boxes for result in results)])
    size = np.repeat([[r.width, r.height] for r in results], [len(r.boxes) for r in results], axis=0).reshape(-1, 2)
    outside = np.maximum(-boxes[:, :2], boxes[:, 2:] - size).max(axis=1, initial=-np.inf) > OVERHANG
    tiny = within_a_pixel(boxes) & (size > 1).any(axis=1)
    again = sum(map(_repeats, results))
    found = {
        "extend beyond their images: COCO results are [left, top, width, height] in pixels": int(outside.sum()),
        "lie within the first pixel: boxes must be in pixels, not shares of the image": int(tiny.sum()),
    }
    said = [
        f"{count} of {len(boxes)} predicted boxes {what}" for what, count in found.items() if 2 * count > len(boxes)
    ]
    if again and 2 * again >= len(boxes):
        said.append(f"{again} of {len(boxes)} predictions are duplicates; each counts")
    return said


def _repeats(result: ImageResult) -> int:
    """Predictions that repeat another one of the image."""
    if len(np.unique(result.scores)) == len(result.scores):  # nearly always, and much faster than comparing rows
        return 0
    rows = np.column_stack([result.boxes, result.labels, result.scores])
    return len(rows) - len(np.unique(rows, axis=0))


def above(results: Sequence[ImageResult], score_floor: float) -> list[ImageResult]:
    """The same images with only the predictions that score at least `score_floor`."""

    def of_image(result: ImageResult) -> ImageResult:
        kept = result.scores >= score_floor
        return replace(result, boxes=result.boxes[kept], scores=result.scores[kept], labels=result.labels[kept])

    return [of_image(result) for result in results]


def of_class(results: Sequence[ImageResult], label: int) -> list[ImageResult]:
    """The same images with only the lesions, ignore boxes and predictions of one class."""

    def of_image(result: ImageResult) -> ImageResult:
        own, found = result.gt_labels == label, result.labels == label
        return replace(
            result,
            gt_boxes=result.gt_boxes[own],
            gt_labels=result.gt_labels[own],
            gt_ignore=result.gt_ignore[own],
            boxes=result.boxes[found],
            scores=result.scores[found],
            labels=result.labels[found],
        )

    return [of_image(result) for result in results]


def write_results(
    path: str | os.PathLike, results: Sequence[ImageResult], category_ids: Sequence[int] | None = None
) -> None:
    """Write COCO results. Label q becomes `category_ids[q]` (default q + 1), decimal image ids become int.

    UserError for a label without a category.
    """
    write_json_list(path, itertools.chain.from_iterable(_entries(result, category_ids) for result in results))


def _entries(result: ImageResult, category_ids: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    for label in result.labels:
        if label < 0 or (category_ids is not None and label >= len(category_ids)):
            todo = "write the results of a detector with the classes of the data"
            raise UserError(f"label {label} is not a category", where=f"image {result.image_id}", todo=todo)
    image_id = result.image_id
    numbered = image_id.isdecimal() and str(int(image_id)) == image_id
    for box, score, label in zip(result.boxes, result.scores, result.labels, strict=True):
        x0, y0, x1, y1 = (float(v) for v in box)
        yield {
            "image_id": int(image_id) if numbered else image_id,
            "category_id": int(label) + 1 if category_ids is None else int(category_ids[label]),
            "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": float(score),
        }


def read_results(
    path: str | os.PathLike, infos: Sequence[ImageInfo], category_ids: Sequence[int] = (1,)
) -> dict[str, Detections]:
    """Read COCO results, from this project or elsewhere, for the images of `infos`.

    category_ids: the category of each class, in label order.

    Raises UserError, with the file and the entry, for anything that is not a COCO result of these images: an unknown
    image or category, a score that is not a finite number, a box that is not four finite numbers with sizes >= 0.
    `doubts` reports boxes that seem to have another format.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(
            "not a list of COCO results",
            where=path,
            todo='write a JSON list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}',
        )
    known = {info.image_id for info in infos}
    labels = {int(category): label for label, category in enumerate(category_ids)}
    rows: dict[str, list[tuple[list[float], float, int]]] = {}
    for position, entry in enumerate(entries):
        image_id, row = _read_entry(entry, labels, known, f"{path}, entry {position}")
        rows.setdefault(image_id, []).append(row)
    return {
        image_id: Detections(
            boxes=np.array([box for box, _, _ in found], float).reshape(-1, 4),
            scores=np.array([score for _, score, _ in found], float),
            labels=np.array([label for _, _, label in found], int),
        )
        for image_id, found in rows.items()
    }


def _read_entry(
    entry: Any, labels: Mapping[int, int], known: set[str], where: str
) -> tuple[str, tuple[list[float], float, int]]:
    if not isinstance(entry, dict):
        raise UserError("the COCO result is not a JSON object", where=where, todo="see the COCO results format")
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        raise UserError(f"the COCO result has no {', '.join(missing)}", where=where, todo="add it")
    image_id = checked_text(entry["image_id"], "image_id", where)
    if image_id not in known:
        todo = "use the image ids of the evaluated data and split"
        raise UserError(f"unknown image id {entry['image_id']!r}", where=where, todo=todo)
    category = whole_number(entry["category_id"])
    if category is None or category not in labels:
        todo = f"use one of {sorted(labels)}, as in the data"
        raise UserError(f"unknown category id {entry['category_id']!r}", where=where, todo=todo)
    score = entry["score"]
    if not _is_finite(score):
        raise UserError(f"the score {score!r} is not a finite number", where=where, todo="correct it")
    bbox = entry["bbox"]
    four = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_finite, bbox))
    if not four or min(bbox[2:]) < 0 or max(map(abs, bbox)) > FARTHEST:
        what = f"the box {bbox!r} is not [x, y, width, height] in pixels, with sizes >= 0"
        raise UserError(what, where=where, todo="correct it")
    x, y, width, height = (float(v) for v in bbox)
    return image_id, ([x, y, x + width, y + height], float(score), labels[category])


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
