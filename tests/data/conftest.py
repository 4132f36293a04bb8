"""Small image collections for the data tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from elk_jax.data.sources.source import ImageSource
from elk_jax.images.schema import ImageInfo, Record


def _info(
    number: int, boxes: list, width: int = 64, height: int = 48, ignore: list | None = None, **changes: Any
) -> ImageInfo:
    count = len(boxes)
    fields: dict[str, Any] = {
        "image_id": str(number),
        "patient_id": f"P{number // 2}",
        "width": width,
        "height": height,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.zeros(count, np.int32),
        "ignore": np.array(ignore or [False] * count, bool),
        "file_name": f"{number}.png",
    }
    return ImageInfo(**(fields | changes))


def _paint(infos: tuple[ImageInfo, ...], position: int) -> np.ndarray:
    """Grey ground, boxes bright; the ground tells the images apart."""
    info = infos[position]
    image = np.full((info.height, info.width, 1), 0.1 + 0.3 * position / len(infos), np.float32)
    for x1, y1, x2, y2 in info.boxes.astype(int):
        image[y1:y2, x1:x2] = 1.0
    return image


@pytest.fixture
def make_info() -> Callable[..., ImageInfo]:
    """(number, boxes, width, height, ignore, **other fields) -> ImageInfo."""
    return _info


@pytest.fixture
def make_source() -> Callable[..., ImageSource]:
    """Infos -> a source that paints the boxes of its infos white."""

    def make(infos: list[ImageInfo], name: str = "painted") -> ImageSource:
        return ImageSource(name, ("lesion",), tuple(infos), partial(_paint, tuple(infos)))

    return make


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """Boxes (whole px) and size -> a record with white boxes on grey."""

    def make(boxes: list, width: int = 64, height: int = 48, ignore: list | None = None) -> Record:
        info = _info(0, boxes, width, height, ignore)
        return Record(info, _paint((info,), 0))

    return make


@pytest.fixture
def coco_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a good COCO folder of 6 images, its content changed by `change`; returns the JSON file."""

    def write(change: Callable[[dict], object] = lambda content: None) -> Path:
        splits = ["train", "train", "train", "train", "val", "test"]
        patients = ["A", "A", "B", "B", "C", "D"]
        rng = np.random.default_rng(0)
        (tmp_path / "images").mkdir(exist_ok=True)
        content: dict = {
            "categories": [{"id": 3, "name": "mass"}],
            "images": [],
            "annotations": [],
        }
        for number, (split, patient) in enumerate(zip(splits, patients), start=1):
            pixels = rng.integers(0, 256, (40, 60), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), pixels)
            entry = {"id": number, "file_name": f"{number}.png", "width": 60, "height": 40, "split": split}
            content["images"].append(entry | {"patient_id": patient, "is_mass": number % 2 == 1, "birads": "5"})
            content["annotations"].append(
                {"id": 10 + number, "image_id": number, "category_id": 3, "bbox": [5, 6, 20 + number, 10]}
            )
        change(content)
        path = tmp_path / "data.json"
        path.write_text(json.dumps(content))
        return path

    return write
