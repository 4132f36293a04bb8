"""Does a generator repeat its training lesions? Every synthetic patch against every real one.

Shapes: N training patches, K synthetic ones, S side of a patch in pixels. Patches are [S, S], all of one size, and
should show what was painted and little else (`synthesis/closeups.box_patch`): a canvas shares tissue with training
images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 32
SHIFT = 4
CHUNK = 32  # training patches worked on at once: bounds the memory

FLIPS = ("", "horizontal", "vertical", "both")


@dataclass(frozen=True)
class Nearest:
    """For each of K patches the training patch most like it."""

    similarity: np.ndarray  # [K] normalised correlation, at most 1
    index: np.ndarray  # [K] of the training patch; -1 where there is none to compare with
    flip: np.ndarray  # [K] of FLIPS, how the patch must be turned
    shift: np.ndarray  # [K, 2] (x, y), in shares of the side: from the patch to its place in the training patch


def nearest(
    patches: np.ndarray,
    training: np.ndarray,
    groups: Sequence[str] | None = None,
    training_groups: Sequence[str] | None = None,
    *,
    side: int = SIDE,
    shift: int = SHIFT,
) -> Nearest:
    """Search patches [K, S, S] in training [N, S, S] by normalised correlation, over shifts and the four flips.

    The patches are reduced to `side` pixels, and their middle, `shift` pixels in from each edge, is laid over every
    place of the training patch. Contrast and brightness do not count. An even patch has similarity 0 to everything.
    groups, training_groups: patches of one group are not compared: views of one patient show the same lesion.
    """
    inner = side - 2 * shift
    if inner < 2:
        raise ValueError(f"a shift of {shift} leaves nothing of {side} pixels")
    small = _reduce(patches, side)[:, shift : shift + inner, shift : shift + inner]
    turned = np.stack([small, small[:, :, ::-1], small[:, ::-1], small[:, ::-1, ::-1]], 1)
    queries = _normalised(turned.reshape(-1, inner * inner))
    own, theirs = np.asarray(groups if groups is not None else []), np.asarray(training_groups)
    places = 2 * shift + 1
    best = np.full(len(patches), -np.inf)
    where = np.zeros((len(patches), 3), int)  # training patch, flip, place
    for start in range(0, len(training), CHUNK):
        reduced = _reduce(training[start : start + CHUNK], side)
        views = np.lib.stride_tricks.sliding_window_view(reduced, (inner, inner), axis=(1, 2))
        keys = _normalised(views.reshape(-1, inner * inner))
        found = (queries @ keys.T).reshape(len(patches), 4, len(reduced), places * places)
        if groups is not None:
            same = own[:, None] == theirs[None, start : start + CHUNK]
            found = np.where(same[:, None, :, None], -np.inf, found)
        flat = found.reshape(len(patches), 4 * len(reduced) * places * places)
        top = flat.argmax(1)
        value = flat[np.arange(len(patches)), top]
        flip, image, place = np.unravel_index(top, found.shape[1:])
        better = value > best
        best = np.where(better, value, best)
        where[better] = np.stack([image + start, flip, place], 1)[better]
    compared = np.isfinite(best)
    offsets = np.stack([where[:, 2] % places, where[:, 2] // places], 1) - shift
    return Nearest(
        similarity=np.where(compared, best, 0.0),
        index=np.where(compared, where[:, 0], -1),
        flip=where[:, 1],
        shift=offsets / side,
    )


def memorised_report(
    synthetic: np.ndarray, training: np.ndarray, patients: Sequence[str], *, side: int = SIDE, shift: int = SHIFT
) -> dict:
    """Similarity of synthetic patches [K, S, S] to their nearest training patch [N, S, S], against the same between
    training patches of different patients.

    Returns `threshold`: the highest similarity of two patients' lesions, the yardstick; `memorised`: positions of the
    synthetic patches above it, most similar first; `share` of them; `synthetic` and `real`: medians; `nearest` and
    `similarity`: per synthetic patch, for a gallery. Without a second patient nothing can be said: threshold is None.
    """
    among = nearest(training, training, patients, patients, side=side, shift=shift)
    yardstick = among.similarity[among.index >= 0]
    found = nearest(synthetic, training, side=side, shift=shift)
    threshold = float(yardstick.max()) if len(yardstick) else None
    above = np.flatnonzero(found.similarity > threshold) if threshold is not None else np.zeros(0, int)
    above = above[np.argsort(-found.similarity[above], kind="stable")]
    return {
        "threshold": threshold,
        "memorised": [int(position) for position in above],
        "share": len(above) / len(synthetic) if threshold is not None and len(synthetic) else None,
        "synthetic": float(np.median(found.similarity)) if len(synthetic) else None,
        "real": float(np.median(yardstick)) if len(yardstick) else None,
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
    """Rows with mean 0 and norm 1; even ones become 0."""
    centred = rows - rows.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-4)
