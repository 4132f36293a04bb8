"""The annotations for an evaluation, stored beside the detections, so that metrics can be recomputed without the data.

File: JSON, {"category_ids": [Q], "images": [{"image_id", "patient_id", "width", "height", "boxes": [N, 4],
"labels": [N], "ignore": [N]}]}, with xyxy boxes in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.evaluation.detections import ImageResult, checked, join, read_results
from elk_jax.images.schema import ImageInfo


def write_truth(path: str | os.PathLike, infos: Sequence[ImageInfo], category_ids: Sequence[int]) -> None:
    """Write the annotations of the images. category_ids: of each class, as in the results file."""
    images = [
        {
            "image_id": info.image_id,
            "patient_id": info.patient_id,
            "width": int(info.width),
            "height": int(info.height),
            "boxes": np.asarray(info.boxes, float).tolist(),
            "labels": np.asarray(info.labels, int).tolist(),
            "ignore": np.asarray(info.ignore, bool).tolist(),
        }
        for info in infos
    ]
    files.write_json(path, {"category_ids": list(category_ids), "images": images})


def read_measured(truth: Path, results: Path) -> list[ImageResult]:
    """The detections in a file of COCO results, joined with the annotations of `write_truth`. UserError for other
    files."""
    content = files.read_object(truth, "category_ids", "images")
    try:
        infos = [_info(**entry) for entry in content["images"]]
    except (TypeError, ValueError) as error:
        todo = "restore the file, or rerun the evaluation"
        raise UserError(f"damaged: {error}", where=truth, todo=todo) from error
    return checked(join(infos, read_results(results, infos, content["category_ids"])))


def _info(
    *, image_id: str, patient_id: str, width: int, height: int, boxes: list, labels: list, ignore: list
) -> ImageInfo:
    return ImageInfo(
        image_id=image_id,
        patient_id=patient_id,
        width=width,
        height=height,
        boxes=np.array(boxes, float).reshape(-1, 4),
        labels=np.array(labels, int),
        ignore=np.array(ignore, bool),
    )
