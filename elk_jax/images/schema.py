"""The records that pass from a data source to a model.

Shapes: H, W image size in pixels; N lesions of one image; B batch; M padded lesions of an image in a batch.
Boxes are xyxy, absolute pixels, float32, everywhere; origin = top left CORNER of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np


@dataclass(frozen=True)
class ImageInfo:
    """What is known about an image without decoding it. `meta` keeps other per-image fields of the source."""

    image_id: str
    patient_id: str
    width: int
    height: int
    boxes: np.ndarray  # [N, 4] float32
    labels: np.ndarray  # [N] int32, 0-based class
    ignore: np.ndarray  # [N] bool: neither a lesion to find nor a false positive when found
    split: str = ""
    file_name: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    volume: str = ""  # id of the tomosynthesis volume that it is a slice of, if named
    slice: int = -1  # position in the volume, from 0; -1 if there is none
    source: int = 0  # index of its source among mixed sources

    @property
    def title(self) -> str:
        """The name of the image's file without its ending."""
        return Path(self.file_name).stem or self.image_id

    @property
    def has_lesions(self) -> bool:
        """Ignore boxes are not lesions."""
        return bool((~self.ignore).any())

    @property
    def is_lesion_free(self) -> bool:
        """Whether the image has no annotated box at all, not even an ignore box."""
        return len(self.boxes) == 0


@dataclass(frozen=True)
class Record:
    """One decoded image with its lesions. For a pair, I = 2: the partner shows the same breast, pixel-aligned."""

    info: ImageInfo
    image: np.ndarray  # [H, W, I] float32 in [0, 1]; I = 1 except for pairs


class Batch(TypedDict):
    """One padded batch, a plain dict of arrays. Images lie at the top left of their canvas."""

    image: np.ndarray  # [B, H, W, I] float32 in [0, 1], zero outside image_size; I = 1 except for pairs
    image_size: np.ndarray  # [B, 2] float32 (height, width) of the image within the canvas
    gt_boxes: np.ndarray  # [B, M, 4] float32, in the coordinates of the resized image
    gt_labels: np.ndarray  # [B, M] int32
    gt_valid: np.ndarray  # [B, M] bool
    gt_ignore: np.ndarray  # [B, M] bool, subset of gt_valid
    scale: np.ndarray  # [B, 2] float32 (x, y): boxes / scale = boxes in the source's own pixels
    index: np.ndarray  # [B] int32 position in the source (or in the concatenation of mixed sources)
    source: np.ndarray  # [B] int32 index of the example's source among mixed sources; 0 if none are mixed
    valid: np.ndarray  # [B] bool, False for examples that only fill the last batch
