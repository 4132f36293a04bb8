"""COCO files of phantoms: subtracted images, and low-energy ones of the same breasts that were moved."""

from __future__ import annotations

import cv2
import numpy as np

from elk_jax.data.sources.decode import encode_png
from elk_jax.files import write_json
from elk_jax.synthesis.phantom import Phantom, PhantomConfig, sample

SIDE = 160
SHIFT = np.array([[1.03, 0.0, -6.0], [0.01, 0.98, 4.0]])
"""Of the low-energy images: pixel of the subtracted one -> pixel here."""


def phantom(index: int) -> Phantom:
    """The breast of image `index` of a set."""
    return sample(5, 4 * index, PhantomConfig(size=SIDE, healthy_fraction=0.0))


def warped(image):
    return cv2.warpAffine(image, SHIFT, (SIDE, SIDE), flags=cv2.INTER_CUBIC).clip(0, 1)


def write_set(folder, kind, count=3, each=None, **changes):
    """Write `count` images of a kind; the third low-energy one is noise, which cannot be registered.

    changes: of the entries of all images. each: a function of the index, of the entry of one.
    """
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        breast = phantom(index)
        pixels = breast.subtracted if kind == "subtracted" else warped(breast.low_energy)
        if kind == "low_energy" and index == 2:
            pixels = np.random.default_rng(0).random((SIDE, SIDE))
        name = f"{index}_{kind}.png"
        (folder / "images" / name).write_bytes(encode_png(np.round(pixels * 255).astype(np.uint8)))
        images.append(
            {
                "id": index + 1, "file_name": name, "width": SIDE, "height": SIDE, "patient_id": f"P{index}",
                "laterality": breast.laterality, "view": breast.view, "split": "test" if index == 1 else "train",
            }
            | changes
            | (each(index) if each else {})
        )  # fmt: skip
        x0, y0, x1, y1 = breast.boxes[0].tolist()
        annotations.append(
            {"id": index + 1, "image_id": images[-1]["id"], "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lesion"}]}
    write_json(folder / f"{kind}.json", content)
    return folder / f"{kind}.json"
