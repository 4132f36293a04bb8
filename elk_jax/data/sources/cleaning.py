"""Box cleaning: several hand-drawn regions of one lesion become one box (ELK); regions of a whole breast are ignored.

Shapes: N boxes of one image, xyxy, px.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from elk_jax.data.sources.slices import OF_BOXES
from elk_jax.images.boxes import area, iou
from elk_jax.images.schema import ImageInfo

MAX_IOU = 0.3


def keep_clean_boxes(boxes: np.ndarray) -> np.ndarray:
    """Mask [N] of the boxes to keep: none inside another, and of two with IoU above MAX_IOU only the larger.

    Boxes are visited from the largest to the smallest. A box is dropped if a larger box that was KEPT contains it or
    overlaps it that much. The result therefore does not depend on the order of the boxes (of two equal ones the first
    is kept), and no box is dropped because of one that is itself dropped.
    Source: Montoya-del-Angel et al. 2024; the two rules are published, the order is our own.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if len(boxes) < 2:
        return np.ones(len(boxes), bool)
    order = np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], -area(boxes)))
    keep = np.zeros(len(boxes), bool)
    for index in order:
        kept = boxes[keep]
        inside = (kept[:, :2] <= boxes[index, :2]).all(1) & (kept[:, 2:] >= boxes[index, 2:]).all(1)
        keep[index] = not (inside | (iou(kept, boxes[[index]])[:, 0] > MAX_IOU)).any()
    return keep


def ignore_large(info: ImageInfo, share: float) -> ImageInfo:
    """Turn boxes that cover more than `share` of the image into ignore boxes: they outline a breast, not a lesion.

    Call this before the cleaning, which would keep such a box and drop every lesion inside.
    """
    large = area(np.asarray(info.boxes, np.float64).reshape(-1, 4)) > share * info.width * info.height
    return replace(info, ignore=info.ignore | large)


def clean_info(info: ImageInfo) -> ImageInfo:
    """Clean the boxes of one image, separately for each class; ignore boxes stay and do not affect others.

    Fields with an entry for each box (`slices.OF_BOXES`) lose the entries of dropped boxes.
    """
    keep = info.ignore.copy()
    for label in np.unique(info.labels):
        group = np.flatnonzero((info.labels == label) & ~info.ignore)
        keep[group] = keep_clean_boxes(info.boxes[group])
    lists = {name: info.meta[name] for name in OF_BOXES if name in info.meta}
    left = {name: [one for one, stays in zip(values, keep) if stays] for name, values in lists.items()}
    meta = info.meta | left
    return replace(info, boxes=info.boxes[keep], labels=info.labels[keep], ignore=info.ignore[keep], meta=meta)
