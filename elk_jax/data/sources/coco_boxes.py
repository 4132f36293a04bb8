"""Boxes of COCO annotations: left, top, width, height in the file, corners everywhere else; px.

Boxes that are given by their corners would often fit their image as COCO's, in the wrong place and too large. Their
`area` tells, where it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax.data.sources import coco_fields
from elk_jax.data.sources.checks import checked_box
from elk_jax.errors import UserError


def checked_corners(annotation: dict, width: int, height: int, where: str) -> np.ndarray:
    """The corners of an annotation's box in its image; an error tells if its numbers would fit as corners."""
    corners = _xyxy(annotation, where)
    try:
        return checked_box(corners, width, height, where)
    except UserError as error:
        left, top, right, bottom = annotation["bbox"]
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise
        todo = f"{error.todo}; if bbox is left, top, right, bottom, write left, top, width, height"
        raise UserError(error.what, where=error.where, todo=todo) from error


def check_not_corners(annotations: Sequence[dict], path: Path) -> None:
    """UserError if `area` is that of a rectangle for all boxes, but for some only of one whose corners are in `bbox`.

    Areas of outlines are smaller than those of their rectangles, and show nothing.
    """
    readings = [(annotation, _reading(annotation)) for annotation in annotations]
    corners = [annotation for annotation, reading in readings if reading == "corners"]
    if corners and all(reading != "neither" for _, reading in readings):
        first = corners[0]
        left, top, right, bottom = first["bbox"]
        what = f"{len(corners)} boxes are given by their corners: the area of the first, {first['bbox']}, is "
        raise UserError(
            f"{what}{first['area']}, as from {left}, {top} to {right}, {bottom}, and not {right} x {bottom}",
            where=f"{path}, image {first['image_id']}, annotation {first['id']}",
            todo="write boxes as left, top, width, height; if they are, correct or remove `area`",
        )


def _xyxy(annotation: dict, where: str) -> list[float]:
    """The corners of an annotation's box; `bbox_mode` is a field that detectron2 adds to its records."""
    if annotation.get("bbox") in (None, []) and annotation.get("segmentation"):
        todo = "write left, top, width, height of the rectangle around the segmentation"
        raise UserError("the annotation has a segmentation, but no bbox", where=where, todo=todo)
    bbox, mode = coco_fields.given(annotation, "bbox", where), annotation.get("bbox_mode")
    if mode not in (None, 1, "XYWH_ABS"):
        todo = "write boxes as left, top, width, height in pixels, and leave bbox_mode out"
        raise UserError(f"bbox_mode is {mode!r}, which is not COCO's", where=where, todo=todo)
    if angle := _rotation(annotation):
        todo = "write left, top, width, height of the rectangle around the rotated box, and rotation 0"
        raise UserError(f"the box is rotated by {angle:g} degrees, but bbox is unrotated", where=where, todo=todo)
    if not _are_four(bbox):
        todo = "give four numbers: left, top, width, height"
        raise UserError(f"bbox is {bbox!r:.60}", where=where, todo=todo)
    if not all(abs(value) < math.inf for value in bbox):
        raise UserError(f"bbox has a coordinate that is NaN or infinite: {bbox}", where=where, todo="correct it")
    x, y, width, height = map(float, bbox)
    return [x, y, x + width, y + height]


def _rotation(annotation: dict) -> float:
    """The angle, degrees, by which a box of CVAT is rotated; a half turn changes nothing and counts as 0."""
    attributes = annotation.get("attributes")
    angle: Any = attributes.get("rotation") if isinstance(attributes, dict) else None
    turned = isinstance(angle, int | float) and math.isfinite(angle) and angle % 180 != 0
    return float(angle) if turned else 0.0


def _reading(annotation: dict) -> str:
    """The reading of a box that agrees with its `area`: "size" (COCO's), only "corners" (edges, or the last pixel
    inside) or "neither"; "" without a usable area."""
    area: Any = annotation.get("area")
    bbox: Any = annotation.get("bbox")
    if type(area) not in (int, float) or not 0 < area < math.inf or not _are_four(bbox):
        return ""
    left, top, right, bottom = map(float, bbox)
    fits = lambda width, height: min(width, height) > 0 and abs(area - width * height) <= 0.5 + 1e-3 * area
    if fits(right, bottom):
        return "size"
    width, height = right - left, bottom - top
    return "corners" if fits(width, height) or fits(width + 1, height + 1) else "neither"


def _are_four(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(type(value) in (int, float) for value in bbox)
