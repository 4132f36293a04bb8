"""Affine registration of two images of one breast that differ in appearance, such as low-energy and subtracted ones.

Shapes: H, W image size in pixels. Images [H, W] float in [0, 1]; their sizes may differ. Matrices [2, 3] map a pixel
(x, y, 1) of the fixed image to its place in the moving one; whole numbers are centres of pixels.

The images do not share grey values, but they share the skin line and the edges of tissue. Three steps, each starting
from the last: moments of the breast masks; enhanced correlation (ECC) of the masks; ECC of the edges. The result with
the most similar edges is taken.

Source: Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization",
2008.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from elk_jax.images.breast import breast_mask

WORKING_SIDE = 512
"""Long side, in pixels, at which images are compared; larger ones are reduced first."""

LEAST_LIKENESS = 0.4
"""Correlation of the edges below which two images count as not aligned."""

MOST_STRETCH = 1.35
"""Largest stretch of a breast, in any direction. More means a failed alignment, since both images show one
compression."""

LEAST_BREAST = 100
"""Smallest breast mask at working size, in pixels."""


@dataclass(frozen=True)
class Alignment:
    """matrix [2, 3] float64; likeness: correlation of the edges under it; failure: why it must not be used, or ""."""

    matrix: np.ndarray
    likeness: float
    failure: str = ""


NO_BREAST = Alignment(np.eye(2, 3), 0.0, "no breast visible")


@dataclass(frozen=True)
class Agreement:
    """Agreement of two images of one breast under a matrix. overlap: intersection over union of the breast masks.
    likeness: correlation of the edges in and near the breast of the fixed image.
    """

    overlap: float
    likeness: float


def register(moving: np.ndarray, fixed: np.ndarray, pixels: float = 1.0) -> Alignment:
    """The affine map under which `moving` fits `fixed`. Deterministic; check `failure` before using it.

    pixels: of the moving image per pixel of the fixed image, if their sizes differ.
    """
    pair = _small(moving, fixed)
    if not pair.has_breasts:
        return NO_BREAST
    edges, near = pair.edges, pair.near
    outlines = [cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 6) for mask in pair.breasts]
    tried = [_from_moments(*pair.breasts)]
    tried.append(_ecc(outlines[0], outlines[1], tried[0], None))
    start = max(tried, key=pair.likeness)
    for smoothing in (15, 5):
        start = _ecc(edges[0], edges[1], start, near, smoothing)
        tried.append(start)
    found = max(tried, key=pair.likeness)
    best = pair.likeness(found)
    failure = f"edges correlate by only {best:.2f}" if best < LEAST_LIKENESS else _overstretched(found, pixels)
    return Alignment(_at_full_size(found, pair.factor), best, failure)


def match_breasts(moving: np.ndarray, fixed: np.ndarray, pixels: float = 1.0) -> Alignment:
    """The scale of each axis and the shift that map the rectangle around one breast onto that around the other.

    pixels: as in `register`.
    """
    pair = _small(moving, fixed)
    if not pair.has_breasts:
        return NO_BREAST
    (low, high), (other_low, other_high) = (_rectangle(breast_mask(image)) for image in (moving, fixed))
    scale = (high - low) / (other_high - other_low)
    matrix = _of_corners(scale, low - scale * other_low)
    likeness = pair.likeness(_at_small_size(matrix, pair.factor))
    return Alignment(matrix, likeness, _overstretched(matrix, pixels))


def agreement(moving: np.ndarray, fixed: np.ndarray, matrix: np.ndarray) -> Agreement:
    """How well `moving` fits `fixed` under `matrix`: the residual of a registration."""
    pair = _small(moving, fixed)
    small = _at_small_size(matrix, pair.factor)
    own, other = warp(pair.breasts[0].astype(np.float32), small, pair.breasts[1].shape) > 0.5, pair.breasts[1]
    union = int((own | other).sum())
    overlap = float((own & other).sum() / union) if union else 0.0
    return Agreement(overlap, pair.likeness(small) if pair.has_breasts else 0.0)


@dataclass(frozen=True)
class Misplacement:
    """The displacement of a breast in another compression. A place (x, y), in pixels from the image's corner, moves
    to factor * place + offset. moved: the part of the offset that is a shift, in pixels.
    """

    factor: float
    moved: np.ndarray
    offset: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """[2, 3], from a pixel to its displaced position."""
        return _of_corners(np.full(2, self.factor), self.offset)


def misplacement(rng: np.random.Generator, shift: float, zoom: float, held: Sequence[float]) -> Misplacement:
    """A random displacement: up to `shift` px in each direction, and a factor of 1 - zoom to 1 + zoom about `held`."""
    factor = float(1 + rng.uniform(-1, 1) * zoom)
    moved = rng.uniform(-1, 1, 2) * shift
    return Misplacement(factor, moved, np.asarray(held, float) * (1 - factor) + moved)


def chest_wall(image: np.ndarray) -> tuple[float, float]:
    """(x, y), pixels: the middle of the side, left or right, at which the breast lies."""
    breast = breast_mask(image)
    height, width = breast.shape
    half = width // 2
    left = breast[:, :half].sum() >= breast[:, width - half :].sum()
    return (0.0 if left else float(width)), height / 2


def warp(moving: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`moving` in the frame of the fixed image of `shape` (H, W), 0 outside it. Linear interpolation."""
    size = (shape[1], shape[0])
    return cv2.warpAffine(moving, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def scaling(scale: np.ndarray) -> np.ndarray:
    """[2, 3]: from a pixel to its place in an image that has `scale` (x, y) times as many pixels."""
    return _of_corners(scale, np.zeros(2))


def inverse(matrix: np.ndarray) -> np.ndarray:
    """[2, 3]: the inverse map."""
    return np.linalg.inv(_square(matrix))[:2]


def followed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[2, 3]: `first`, then `second`."""
    return (_square(second) @ _square(first))[:2]


def edge_image(image: np.ndarray) -> np.ndarray:
    """Gradient magnitude relative to its surroundings: edges of either sign and of any contrast look alike."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.5)
    steep = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    around = cv2.GaussianBlur(steep, (0, 0), 16)
    return cv2.GaussianBlur(steep / (around + 2e-3), (0, 0), 1)


@dataclass(frozen=True)
class _Small:
    """Both images, moving and fixed, at working size: their breast masks, edges, and `near`, the fixed breast and its
    surroundings. factor: of the size.
    """

    factor: float
    breasts: tuple[np.ndarray, np.ndarray]
    edges: tuple[np.ndarray, np.ndarray]
    near: np.ndarray

    @property
    def has_breasts(self) -> bool:
        return min(self.breasts[0].sum(), self.breasts[1].sum()) >= LEAST_BREAST

    def likeness(self, matrix: np.ndarray) -> float:
        """Correlation of the edges under a matrix between images of working size."""
        moved = warp(self.edges[0], matrix, self.edges[1].shape)[self.near > 0]
        other = self.edges[1][self.near > 0]
        return float(np.corrcoef(moved, other)[0, 1]) if moved.std() > 0 and other.std() > 0 else 0.0


def _small(moving: np.ndarray, fixed: np.ndarray) -> _Small:
    factor = min(1.0, WORKING_SIDE / max(*moving.shape, *fixed.shape))
    images = _smaller(moving, factor), _smaller(fixed, factor)
    breasts = breast_mask(images[0]), breast_mask(images[1])
    near = cv2.dilate(breasts[1].astype(np.uint8), np.ones((9, 9), np.uint8))
    return _Small(factor, breasts, (edge_image(images[0]), edge_image(images[1])), near)


def _overstretched(matrix: np.ndarray, pixels: float) -> str:
    """Why the map cannot belong to one compression, or ""."""
    stretch = np.linalg.svd(matrix[:, :2], compute_uv=False) / pixels
    if stretch[0] > MOST_STRETCH or stretch[1] < 1 / MOST_STRETCH or np.linalg.det(matrix[:, :2]) < 0:
        return f"stretched by {stretch[0]:.2f} and {stretch[1]:.2f}; if the pixel sizes differ, give pixel_spacing"
    return ""


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


def _rectangle(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (x, y), pixels, of the rectangle around a mask."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min()], float), np.array([columns.max() + 1, rows.max() + 1], float)


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (x, y) of the pixels of a mask."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()]), np.array([columns.std(), rows.std()])


def _ecc(
    moving: np.ndarray, fixed: np.ndarray, start: np.ndarray, mask: np.ndarray | None, smoothing: int = 5
) -> np.ndarray:
    """The matrix that ECC finds from `start`, or `start` itself if it does not converge. mask: of `fixed`."""
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
    """The same map between the images before they were reduced."""
    shrunk = _square(scaling(np.full(2, factor)))
    return (np.linalg.inv(shrunk) @ _square(matrix) @ shrunk)[:2]


def _at_small_size(matrix: np.ndarray, factor: float) -> np.ndarray:
    return _at_full_size(matrix, 1 / factor)


def _of_corners(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[2, 3]: the map scale * place + offset (x, y), in coordinates whose whole numbers are centres of pixels."""
    return np.column_stack([np.diag(scale), 0.5 * scale + offset - 0.5])


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.vstack([matrix, [0.0, 0.0, 1.0]])
