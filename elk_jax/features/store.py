"""Features of images, computed once and kept in a file: private data, as the images are.

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
"""Of a run: the features of its images, which are private as these are."""
PATTERN = "*.safetensors"
NAME, KEY, HASH = "features", "key", "sha256"


def key_of(settings: Any, weights: str, images: Sequence[str]) -> str:
    """What features follow from: their settings (JSON-able), a hash of the network's weights, hashes of the pixels."""
    content = json.dumps([settings, weights, list(images)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def kept(folder: Path, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The features [N, F] float32 that `folder` keeps under `key`; computed, and kept, where it does not have them.

    A file that is damaged, or holds the features of another key, counts as missing. Only its owner can read the file.
    """
    path = folder / f"{key[:16]}.safetensors"
    found = _read(path, key)
    if found is None:
        found = np.ascontiguousarray(compute(), np.float32)
        content = safetensors.numpy.save({NAME: found}, metadata={KEY: key, HASH: _hash(found)})
        files.make_folder(folder)
        files.write_private(path, content)
    return found


def _read(path: Path, key: str) -> np.ndarray | None:
    try:
        with safetensors.safe_open(path, "np") as file:  # type: ignore[no-untyped-call]
            metadata, found = file.metadata() or {}, file.get_tensor(NAME)
    except Exception:  # no such file, or damaged bytes, which make the reader raise almost anything
        return None
    return found if metadata.get(KEY) == key and metadata.get(HASH) == _hash(found) else None


def _hash(features: np.ndarray) -> str:
    return hashlib.sha256(f"{features.dtype} {features.shape} ".encode() + features.tobytes()).hexdigest()
