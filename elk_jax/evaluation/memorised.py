"""Detect memorised training lesions: compare every synthetic patch with every real one.

A copy is more similar to one training patch than to those of all other patients, even if it is noisy, blurred, shifted,
turned or scaled a little. Similarity alone does not tell: smooth lesions of different patients are alike, and a noisy
copy is less similar to its original than these are to each other. What tells is the margin: how much more similar a
patch is to its nearest training patch than to the next ones, of other patients. Margins of real patches of other
patients say which values occur by chance. The idea of comparing the nearest distance with those to the next neighbours
is that of Carlini et al. 2023 (arXiv:2301.13188).

Shapes: N training patches, K synthetic ones, S side of a patch in pixels. Patches are [S, S], all of one size, and
should show little except the painted lesion (`synthesis/closeups.box_patch`), since a canvas may share tissue with
training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from scipy.fft import dct

from elk_jax.errors import UserError
from elk_jax.threads import ProgressBar, in_parts, no_bar

SIDE = 64
"""A sufficient side of patches in pixels."""

GRID = 32
"""Side in pixels of the maps of a patch that are compared."""

SHIFT = 4
"""Largest shift along each axis, in pixels of the maps: an eighth of the patch."""

ANGLES = (0, -12, -6, 6, 12)
"""Rotations in degrees, of each of the eight views. Copies are also found some degrees beside and beyond them."""

SMOOTHING, NEIGHBOURHOOD = 1.25, 4.0
"""Standard deviations, in pixels of the maps, of what is smoothed away and of the area for local contrast."""

FLOOR = 0.05
"""Local contrast below this share of a patch's contrast is not amplified fully: such regions are noise."""

WAVES = 16
"""Number of cosine waves along each side of a map's centre that are compared; finer ones have been smoothed away, and
half as many numbers take half the time."""

RIVALS = 10
"""Number of training patches of other patients that the nearest one is compared with."""

RATE = 0.005
"""Share of patches of other patients that may count as copies by chance, if there are enough training patches."""

CHUNK = 16  # training patches processed at once: limits the memory
QUERIES = 64  # synthetic patches processed at once

FLIPS = ("", "horizontal", "vertical", "both")
"""Mirrors of a patch. With the transpose of each they are the eight views of a square, in any of which a generator may
have been shown a training patch."""


@dataclass(frozen=True)
class Nearest:
    """For each of K patches, the most similar training patch."""

    similarity: np.ndarray  # [K] normalised correlation, at most 1
    margin: np.ndarray  # [K] similarity minus the mean of that to the next patches of other patients; NaN without them
    index: np.ndarray  # [K] of the training patch; -1 if there is none to compare with
    flip: np.ndarray  # [K] index into FLIPS: the flip of the patch
    transposed: np.ndarray  # [K] bool, whether it is transposed then


def nearest(
    patches: np.ndarray,
    training: np.ndarray,
    patients: Sequence[str],
    own: Sequence[str] | None = None,
    progress: ProgressBar = no_bar,
) -> Nearest:
    """Search patches [K, S, S] in training [N, S, S], over shifts, the eight views of a square and small rotations.

    Patches become maps of their local structure (`_maps`), which brightness and contrast do not change. The centre of a
    map is compared with every position in that of the training patch. A uniform patch has similarity 0 to all.
    patients: of the training patches. own: of the patches, which are not compared with those of the same patient, since
    they may show the same lesion. progress: shows the patches. UserError for pixels that are not finite.
    """
    patches, training = _checked(patches, "patches"), _checked(training, "training patches")
    theirs = np.asarray(patients)
    found, views = _similarities(patches, training, progress)
    if own is not None:
        found[np.asarray(own)[:, None] == theirs[None]] = -np.inf
    if not found.size:
        nothing = np.zeros(len(patches), int)
        none = np.zeros(len(patches))
        return Nearest(none, np.full(len(patches), np.nan), nothing - 1, nothing, nothing.astype(bool))
    index = found.argmax(1)
    rows = np.arange(len(patches))
    best, view = found[rows, index], views[rows, index]
    found[theirs[index][:, None] == theirs[None]] = -np.inf
    rivals = -np.sort(-found, axis=1)[:, :RIVALS]
    counted = np.isfinite(rivals)
    number = counted.sum(1)
    mean = np.divide(np.where(counted, rivals, 0).sum(1), number, out=np.full(len(rows), np.nan), where=number > 0)
    compared = np.isfinite(best)
    similarity = np.where(compared, best, 0.0)
    transposed, flip = np.divmod(view, len(FLIPS))
    return Nearest(similarity, similarity - mean, np.where(compared, index, -1), flip, transposed.astype(bool))


def memorised_report(
    synthetic: np.ndarray, training: np.ndarray, patients: Sequence[str], progress: ProgressBar = no_bar
) -> dict[str, Any]:
    """Margins of synthetic patches [K, S, S] to their nearest training patch [N, S, S], beside those of training
    patches to patches of other patients. The time grows with (K + N) N; progress: shows the patches.

    Returns `threshold`: the margin above which a patch counts as a copy; `rate`: the share of patches of other patients
    above it, by chance: k / (M + 1) for the k-th largest of M margins of training patches, with the largest k for RATE;
    `expected`: such synthetic patches; `memorised`: positions of the synthetic patches above it, largest margin first;
    `share` of them; `synthetic` and `real`: median similarities; `nearest`, `similarity` and `margin`: per synthetic
    patch, for a gallery. The reference needs three patients: with fewer, threshold, rate and expected are None.
    """
    among = nearest(training, training, patients, patients, progress)
    found = nearest(synthetic, training, patients, progress=progress)
    reference = np.sort(among.margin[np.isfinite(among.margin)])[::-1]
    threshold = rate = None
    above = np.zeros(0, int)
    if len(reference):
        position = max(1, int(RATE * (len(reference) + 1)))
        threshold, rate = float(reference[position - 1]), position / (len(reference) + 1)
        above = np.flatnonzero(found.margin > threshold)
        above = above[np.argsort(-found.margin[above], kind="stable")]
    compared = among.similarity[among.index >= 0]
    return {
        "threshold": threshold,
        "rate": rate,
        "expected": rate * len(synthetic) if rate is not None else None,
        "memorised": [int(position) for position in above],
        "share": len(above) / len(synthetic) if threshold is not None and len(synthetic) else None,
        "synthetic": float(np.median(found.similarity)) if len(synthetic) else None,
        "real": float(np.median(compared)) if len(compared) else None,
        "nearest": found.index.tolist(),
        "similarity": found.similarity.tolist(),
        "margin": [float(value) if np.isfinite(value) else None for value in found.margin],
    }


def _similarities(patches: np.ndarray, training: np.ndarray, progress: ProgressBar) -> tuple[np.ndarray, np.ndarray]:
    """The largest correlation of every patch with every training patch, [K, N], and the view in which it is [K, N]."""
    inner = GRID - 2 * SHIFT
    keys = _maps(training)
    found = np.zeros((len(patches), len(training)), np.float32)
    views = np.zeros((len(patches), len(training)), np.int8)
    starts = range(0, len(patches), QUERIES)
    sizes = [min(QUERIES, len(patches) - first) for first in starts]
    for first in in_parts(progress, sizes)(starts, len(starts)):
        rows = slice(first, first + QUERIES)
        templates = _templates(patches[rows])
        queries = _waves(templates)
        for start in range(0, len(training), CHUNK):
            columns = slice(start, start + CHUNK)
            windows = np.lib.stride_tricks.sliding_window_view(keys[columns], (inner, inner), axis=(1, 2))
            values = queries @ _waves(windows).T
            best = values.reshape(*templates.shape[:2], len(windows), -1).max(-1)
            found[rows, columns], views[rows, columns] = best.max(1), best.argmax(1) % (2 * len(FLIPS))
    return found, views


def _templates(patches: np.ndarray) -> np.ndarray:
    """The centres of the maps of patches [K, S, S], [K, T, s, s]: at every angle (outer) in every view (inner)."""
    centre = slice(SHIFT, GRID - SHIFT)
    return np.concatenate([_views(_maps(_rotated(patches, angle))[:, centre, centre]) for angle in ANGLES], 1)


def _waves(windows: np.ndarray) -> np.ndarray:
    """The longest cosine waves of windows [..., s, s] without their mean, as rows of norm 1, [windows, WAVES² - 1].

    Products of rows are correlations of the windows. Rows of uniform windows are 0.
    """
    basis = dct(np.eye(windows.shape[-1]), axis=0, norm="ortho")[:WAVES].astype(np.float32)
    rows = (basis @ windows @ basis.T).reshape(-1, WAVES * WAVES)[:, 1:]
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 1e-4)


def _views(maps: np.ndarray) -> np.ndarray:
    """[K, s, s] -> [K, 8, s, s]: FLIPS, then the transpose of each."""
    flipped = np.stack([maps, maps[:, :, ::-1], maps[:, ::-1], maps[:, ::-1, ::-1]], 1)
    return np.concatenate([flipped, flipped.swapaxes(2, 3)], 1)


def _rotated(patches: np.ndarray, angle: float) -> np.ndarray:
    """Patches [K, S, S] rotated about their centre; what comes from outside is mirrored."""
    if not angle:
        return patches
    side = patches.shape[1]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, 1.0)
    turned = [cv2.warpAffine(patch, matrix, (side, side), borderMode=cv2.BORDER_REFLECT) for patch in patches]
    return np.array(turned).reshape(patches.shape)


def _maps(patches: np.ndarray) -> np.ndarray:
    """[N, S, S] -> [N, GRID, GRID] float32: the Laplacian of the smoothed patch, divided by its local contrast.

    Shades across a patch, brightness and contrast do not remain, and neither do noise, sharpness and the traces of
    compression, which are finer than SMOOTHING. Dividing by local contrast gives weak structures the weight of strong
    ones, of which few patches have many. Maps of uniform patches are 0.
    """
    return np.array([_map(patch) for patch in patches], np.float32).reshape(-1, GRID, GRID)


def _map(patch: np.ndarray) -> np.ndarray:
    scale = float(np.abs(patch).max())
    centred = patch - patch.mean()
    if len(patch) < GRID:
        centred = _resized(centred)
    smooth = _smoothed(centred, SMOOTHING * len(centred) / GRID)
    per_pixel = cv2.Laplacian(smooth, cv2.CV_64F, borderType=cv2.BORDER_REFLECT)
    detail = _resized(per_pixel) * (len(centred) / GRID) ** 2  # after the Laplacian, so that shades leave no errors
    contrast = float(np.sqrt((detail**2).mean()))
    if contrast <= 1e-7 * scale:  # rounding of a uniform patch
        return np.zeros_like(detail)
    local = np.maximum(_smoothed(detail**2, NEIGHBOURHOOD), 0)
    return detail / np.sqrt(local + (FLOOR * contrast) ** 2)


def _smoothed(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def _resized(image: np.ndarray) -> np.ndarray:
    """To GRID pixels. A smoothed image has no waves that means over areas would have to remove."""
    return cv2.resize(image, (GRID, GRID), interpolation=cv2.INTER_LINEAR)


def _checked(patches: np.ndarray, what: str) -> np.ndarray:
    """As float64; UserError for pixels that are not finite."""
    patches = np.asarray(patches, np.float64)
    bad = np.flatnonzero(~np.isfinite(patches).all(axis=(1, 2)))
    if len(bad):
        raise UserError(
            f"patch {bad[0]} has pixels that are not finite", where=what, todo="inspect its image, or leave it out"
        )
    return patches
