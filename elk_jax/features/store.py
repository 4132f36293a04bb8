"""Features of images, computed once and stored in files: as private as the images.

Each file contains the features of some images, computed in one way. Requested features are assembled from all files of
a folder, image by image, so a different selection of known images costs nothing. Features that were computed in a batch
with other images differ by rounding.

Shapes: N images, F features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from elk_jax import files

FOLDER = "features"
"""Folder of a run with the features of its images, which are as private as the images."""
PATTERN = "*.safetensors"
NAME, WAY, IMAGES, HASH = "features", "way", "images", "sha256"


def way_of(settings: Any, weights: str) -> str:
    """The key of a way to compute features, from settings (JSON-serialisable) and a hash of the network's weights."""
    return hashlib.sha256(json.dumps([settings, weights], sort_keys=True).encode()).hexdigest()


def kept(folder: Path, way: str, images: Sequence[str], compute: Callable[[Sequence[int]], np.ndarray]) -> np.ndarray:
    """The features [N, F] float32 of images, given by their hashes, from files in `folder` with the same `way`.

    compute: positions in `images` -> their features. It is called for images that are in no file (for copies of an
    image, only the first), and its results are stored. A file that is damaged, or of another way, counts as missing.
    Folder and files are readable only by their owner.
    """
    rows: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob(PATTERN)):
        rows |= _read(path, way)
    missing: dict[str, int] = {}
    for position, image in enumerate(images):
        if image not in rows:
            missing.setdefault(image, position)
    if missing:
        found = np.ascontiguousarray(compute(list(missing.values())), np.float32)
        named = json.dumps(list(missing))
        digest = _hash(found, way, named)
        metadata = {WAY: way, IMAGES: named, HASH: digest}
        files.hide(files.make_folder(folder))  # names and sizes of the files tell how many images there are
        files.write_private(
            folder / f"{digest[:16]}.safetensors", safetensors.numpy.save({NAME: found}, metadata=metadata)
        )
        rows |= zip(missing, found)
    return np.stack([rows[image] for image in images])


def _read(path: Path, way: str) -> dict[str, np.ndarray]:
    """Image -> its features [F], from a file; {} for a damaged file or another way."""
    try:
        with safetensors.safe_open(path, "np") as file:  # type: ignore[no-untyped-call]
            metadata = file.metadata() or {}
            found = file.get_tensor(NAME) if metadata.get(WAY) == way else np.zeros(0)
    except Exception:  # no such file, or damaged bytes, which make the reader raise almost anything
        return {}
    named = metadata.get(IMAGES, "")
    if metadata.get(HASH) != _hash(found, way, named):
        return {}
    return dict(zip(json.loads(named), found, strict=True))


def _hash(features: np.ndarray, way: str, images: str) -> str:
    content = f"{way} {images} {features.dtype} {features.shape} ".encode() + features.tobytes()
    return hashlib.sha256(content).hexdigest()
