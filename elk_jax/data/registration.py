"""Affine registration of two images of one breast that show it differently, such as low-energy and subtracted.

Shapes: H, W image size in pixels. Images [H, W] float in [0, 1]; both may have sizes of their own. Matrices [2, 3] take
a pixel (x, y, 1) of the fixed image to its place in the moving one; whole numbers are centres of pixels.

The images do not share grey values, but they share the skin line and the edges of tissue. Three steps, each the start
of the next: moments of the breast masks; enhanced correlation (ECC) of the masks; ECC of the edges. The result with the
most similar edges is taken.

Source: Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization",
2008.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from elk_jax.images.breast import breast_mask

WORKING_SIDE = 512
"""Long side, in pixels, at which images are compared; larger ones are made smaller first."""

LEAST_LIKENESS = 0.4
"""Correlation of the edges below which two images count as not aligned."""

MOST_STRETCH = 1.35
"""Of a breast, in any direction. More is an alignment gone astray: both images are of one compression."""

LEAST_BREAST = 100
"""Pixels of a breast mask, at working size."""


@dataclass(frozen=True)
class Alignment:
    """matrix [2, 3] float64; likeness: correlation of the edges under it; failure: why it is not to be used, or ""."""

    matrix: np.ndarray
    likeness: float
    failure: str = ""


def register(moving: np.ndarray, fixed: np.ndarray) -> Alignment:
    """The affine map under which `moving` fits `fixed`. Deterministic; look at `failure` before using it."""
    factor = min(1.0, WORKING_SIDE / max(*moving.shape, *fixed.shape))
    small_moving, small_fixed = _smaller(moving, factor), _smaller(fixed, factor)
    breasts = breast_mask(small_moving), breast_mask(small_fixed)
    if min(breasts[0].sum(), breasts[1].sum()) < LEAST_BREAST:
        return Alignment(np.eye(2, 3), 0.0, "no breast to be seen")
    near = cv2.dilate(breasts[1].astype(np.uint8), np.ones((9, 9), np.uint8))
    edges = edge_image(small_moving), edge_image(small_fixed)

    def likeness(matrix: np.ndarray) -> float:
        moved = warp(edges[0], matrix, edges[1].shape)[near > 0]
        other = edges[1][near > 0]
        return float(np.corrcoef(moved, other)[0, 1]) if moved.std() > 0 and other.std() > 0 else 0.0

    outlines = [cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 6) for mask in breasts]
    tried = [_from_moments(*breasts)]
    tried.append(_ecc(outlines[0], outlines[1], tried[0], None))
    start = max(tried, key=likeness)
    for smoothing in (15, 5):
        start = _ecc(edges[0], edges[1], start, near, smoothing)
        tried.append(start)
    found = max(tried, key=likeness)
    best = likeness(found)
    stretch = np.linalg.svd(found[:, :2], compute_uv=False)
    failure = ""
    if best < LEAST_LIKENESS:
        failure = f"edges agree by {best:.2f} only"
    elif stretch[0] > MOST_STRETCH or stretch[1] < 1 / MOST_STRETCH or np.linalg.det(found[:, :2]) < 0:
        failure = f"stretched by {stretch[0]:.2f} and {stretch[1]:.2f}"
    return Alignment(_at_full_size(found, factor), best, failure)


def warp(moving: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`moving` as seen from the fixed image of `shape` (H, W), 0 where it does not reach. Linear interpolation."""
    size = (shape[1], shape[0])
    return cv2.warpAffine(moving, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def edge_image(image: np.ndarray) -> np.ndarray:
    """Steepness of the grey values over what is usual around: edges of either sign and any contrast alike."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.5)
    steep = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    around = cv2.GaussianBlur(steep, (0, 0), 16)
    return cv2.GaussianBlur(steep / (around + 2e-3), (0, 0), 1)


def _smaller(image: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1:
        return image.astype(np.float32)
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def _from_moments(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Scale of each axis and shift that give the masks the same mean place and spread."""
    (centre, spread), (other_centre, other_spread) = _moments(moving), _moments(fixed)
    scale = spread / np.maximum(other_spread, 1e-6)
    return np.column_stack([np.diag(scale), centre - scale * other_centre])


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (x, y) of the places of a mask."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()]), np.array([columns.std(), rows.std()])


def _ecc(
    moving: np.ndarray, fixed: np.ndarray, start: np.ndarray, mask: np.ndarray | None, smoothing: int = 5
) -> np.ndarray:
    """The matrix that ECC finds from `start`, or `start` itself where it does not converge. mask: of `fixed`."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 150, 1e-5)
    where: np.ndarray = np.ones(moving.shape, np.uint8)  # OpenCV's mask lies on the moving image
    if mask is not None:
        where = cv2.warpAffine(mask, start, (moving.shape[1], moving.shape[0]), flags=cv2.INTER_NEAREST)
    begin = start.astype(np.float32)
    try:
        found = cv2.findTransformECC(fixed, moving, begin, cv2.MOTION_AFFINE, criteria, where, smoothing)[1]
    except cv2.error:
        return start
    return found.astype(np.float64) if np.isfinite(found).all() else start


def _at_full_size(matrix: np.ndarray, factor: float) -> np.ndarray:
    """The same map between the images before they were made smaller: pixel x became (x + 0.5) * factor - 0.5."""
    small = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])
    return (np.linalg.inv(small) @ np.vstack([matrix, [0, 0, 1]]) @ small)[:2]
