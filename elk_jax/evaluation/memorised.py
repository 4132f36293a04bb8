"""Detect memorised training lesions: compare every synthetic patch with every real one.

Shapes: N training patches, K synthetic ones, S side of a patch in pixels. Patches are [S, S], all of one size, and
should show little except the painted lesion (`synthesis/closeups.box_patch`), since a canvas may share tissue with
training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 32
SHIFT = 4
CHUNK = 32  # training patches processed at once: limits the memory

FLIPS = ("", "horizontal", "vertical", "both")
"""Mirrors of a patch. With the transpose of each they are the eight views of a square, in any of which a generator may
have been shown a training patch."""


@dataclass(frozen=True)
class Nearest:
    """For each of K patches, the most similar training patch."""

    similarity: np.ndarray  # [K] normalised correlation, at most 1
    index: np.ndarray  # [K] of the training patch; -1 if there is none to compare with
    flip: np.ndarray  # [K] index into FLIPS: the flip of the patch
    transposed: np.ndarray  # [K] bool, whether it is transposed then


def nearest(
    patches: np.ndarray,
    training: np.ndarray,
    groups: Sequence[str] | None = None,
    training_groups: Sequence[str] | None = None,
    *,
    side: int = SIDE,
    shift: int = SHIFT,
) -> Nearest:
    """Search patches [K, S, S] in training [N, S, S] by normalised correlation, over shifts and the eight views.

    Patches are resized to `side` pixels. Their centre, cropped by `shift` pixels at each edge, is compared with every
    position of the training patch. Contrast and brightness do not matter. A uniform patch has similarity 0 to all.
    groups, training_groups: patches of the same group (patient) are not compared, since they may show the same lesion.
    """
    inner = side - 2 * shift
    if inner < 2:
        raise ValueError(f"a shift of {shift} is too large for {side} pixels")
    small = _reduce(patches, side)[:, shift : shift + inner, shift : shift + inner]
    flipped = np.stack([small, small[:, :, ::-1], small[:, ::-1], small[:, ::-1, ::-1]], 1)
    turned = np.concatenate([flipped, flipped.swapaxes(2, 3)], 1)
    count = turned.shape[1]
    queries = _normalised(turned.reshape(-1, inner * inner))
    own, theirs = np.asarray(groups if groups is not None else []), np.asarray(training_groups)
    positions = 2 * shift + 1
    best = np.full(len(patches), -np.inf)
    where = np.zeros((len(patches), 2), int)  # training patch, view
    for start in range(0, len(training), CHUNK):
        reduced = _reduce(training[start : start + CHUNK], side)
        views = np.lib.stride_tricks.sliding_window_view(reduced, (inner, inner), axis=(1, 2))
        keys = _normalised(views.reshape(-1, inner * inner))
        found = (queries @ keys.T).reshape(len(patches), count, len(reduced), positions * positions)
        if groups is not None:
            same = own[:, None] == theirs[None, start : start + CHUNK]
            found = np.where(same[:, None, :, None], -np.inf, found)
        flat = found.reshape(len(patches), count * len(reduced) * positions * positions)
        top = flat.argmax(1)
        value = flat[np.arange(len(patches)), top]
        view, image, _ = np.unravel_index(top, found.shape[1:])
        better = value > best
        best = np.where(better, value, best)
        where[better] = np.stack([image + start, view], 1)[better]
    compared = np.isfinite(best)
    transposed, flip = np.divmod(where[:, 1], len(FLIPS))
    return Nearest(np.where(compared, best, 0.0), np.where(compared, where[:, 0], -1), flip, transposed.astype(bool))


def memorised_report(synthetic: np.ndarray, training: np.ndarray, patients: Sequence[str]) -> dict:
    """Similarity of synthetic patches [K, S, S] to their nearest training patch [N, S, S], beside that of training
    patches of different patients.

    Returns `threshold`: the highest similarity between lesions of two patients; `memorised`: positions of the synthetic
    patches above it, most similar first; `share` of them; `synthetic` and `real`: medians; `nearest` and `similarity`:
    per synthetic patch, for a gallery. With a single patient there is no reference, and threshold is None.
    """
    among = nearest(training, training, patients, patients)
    reference = among.similarity[among.index >= 0]
    found = nearest(synthetic, training)
    threshold = float(reference.max()) if len(reference) else None
    above = np.flatnonzero(found.similarity > threshold) if threshold is not None else np.zeros(0, int)
    above = above[np.argsort(-found.similarity[above], kind="stable")]
    return {
        "threshold": threshold,
        "memorised": [int(position) for position in above],
        "share": len(above) / len(synthetic) if threshold is not None and len(synthetic) else None,
        "synthetic": float(np.median(found.similarity)) if len(synthetic) else None,
        "real": float(np.median(reference)) if len(reference) else None,
        "nearest": found.index.tolist(),
        "similarity": [float(value) for value in found.similarity],
    }


def _reduce(patches: np.ndarray, side: int) -> np.ndarray:
    """[N, S, S] -> [N, side, side] float32."""
    patches = np.asarray(patches, np.float32)
    if patches.shape[1:] == (side, side):
        return patches
    method = cv2.INTER_AREA if patches.shape[1] > side else cv2.INTER_LINEAR
    small = [cv2.resize(patch, (side, side), interpolation=method) for patch in patches]
    return np.array(small, np.float32).reshape(-1, side, side)


def _normalised(rows: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and norm 1; uniform rows become 0."""
    centred = rows - rows.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-4)
