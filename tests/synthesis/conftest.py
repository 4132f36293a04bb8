"""Images with lesions, for the synthesis tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from elk_jax.images.schema import ImageInfo


def _info(number: int, boxes=(), width: int = 64, height: int = 48, ignore=None, **changes: Any) -> ImageInfo:
    fields: dict[str, Any] = {
        "image_id": f"image {number}",
        "patient_id": f"P{number}",
        "width": width,
        "height": height,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.zeros(len(boxes), np.int32),
        "ignore": np.array(ignore or [False] * len(boxes), bool),
        "split": "train",
    }
    return ImageInfo(**(fields | changes))


@pytest.fixture(scope="session")
def make_info() -> Callable[..., ImageInfo]:
    """(number, boxes, width, height, ignore, **other fields) -> ImageInfo."""
    return _info
