"""Statistics of the appearance of lesions, for comparing painted lesions with real ones.

Shapes: H, W image in pixels; N lesions. Images [H, W] float in [0, 1]; boxes xyxy, px.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from elk_jax.errors import UserError

RING = 0.5
"""Width of the surrounding tissue used for comparison, as a share of the sides of the box."""

SHELL = (0.75, 1.25)
"""Radii, relative to the inscribed ellipse, between which its border is measured."""


def describe_lesion(
    image: np.ndarray,
    box: np.ndarray,
    breast: np.ndarray | None = None,
    others: np.ndarray | None = None,
) -> dict[str, float]:
    """Statistics of one lesion; NaN if undefined (no tissue around the lesion, a uniform ring).

    box: [4]; its inscribed ellipse counts as the lesion.
    breast: [H, W] bool; only these pixels count (None: all). others: [N, 4] boxes to exclude from the ring.

    width, height, area, ratio: of the box, in px, px^2 and height / width.
    contrast: (lesion's mean - ring's mean) / ring's standard deviation; brightness: lesion's mean - ring's mean.
    roughness: lesion's standard deviation / ring's.
    border_gradient: mean gradient around the border of the ellipse (grey per px, smoothed by 1 px) / ring's sd.
    box_step: mean grey step across the outline of the box, relative to the steps one to three pixels inside and outside
        it. 1 without a seam; larger for a hard paste.

    UserError if the box covers no pixel of the image.
    """
    height, width = image.shape
    x0, y0, x1, y1 = np.asarray(box, np.float64)
    if min(x1, width) - max(x0, 0) <= 0 or min(y1, height) - max(y0, 0) <= 0 or x1 <= x0 or y1 <= y0:
        raise UserError(
            f"({x0:g}, {y0:g}, {x1:g}, {y1:g}) covers no pixel of an image of {width} x {height} px", where="box"
        )
    pad_x, pad_y = max(RING * (x1 - x0), 4.0), max(RING * (y1 - y0), 4.0)
    left, top = max(int(x0 - pad_x), 0), max(int(y0 - pad_y), 0)
    right, bottom = min(int(np.ceil(x1 + pad_x)), width), min(int(np.ceil(y1 + pad_y)), height)
    part = image[top:bottom, left:right].astype(np.float64)
    known = np.ones(part.shape, bool) if breast is None else breast[top:bottom, left:right].astype(bool)
    place = np.array([left, top, left, top])
    inner = np.array([x0, y0, x1, y1]) - place

    rows, columns = np.arange(part.shape[0]) + 0.5, np.arange(part.shape[1]) + 0.5
    radius = np.hypot(
        ((columns - (inner[0] + inner[2]) / 2) / ((x1 - x0) / 2))[None],
        ((rows - (inner[1] + inner[3]) / 2) / ((y1 - y0) / 2))[:, None],
    )
    lesion = part[known & (radius <= 1)]
    around = known & ~_inside(inner, rows, columns)
    for other in np.zeros((0, 4)) if others is None else np.asarray(others, np.float64).reshape(-1, 4) - place:
        around &= ~_inside(other, rows, columns)
    tissue = part[around]
    mean, spread = _mean(tissue), _mean((tissue - _mean(tissue)) ** 2) ** 0.5
    spread = spread if spread > 1e-6 else np.nan
    smooth = cv2.GaussianBlur(part, (0, 0), 1.0)
    steepness = np.hypot(*np.gradient(smooth)) if min(part.shape) > 1 else np.zeros(part.shape)
    return {
        "width": float(x1 - x0),
        "height": float(y1 - y0),
        "area": float((x1 - x0) * (y1 - y0)),
        "ratio": float((y1 - y0) / (x1 - x0)),
        "contrast": (_mean(lesion) - mean) / spread,
        "brightness": _mean(lesion) - mean,
        "roughness": _mean((lesion - _mean(lesion)) ** 2) ** 0.5 / spread,
        "border_gradient": _mean(steepness[known & (radius >= SHELL[0]) & (radius <= SHELL[1])]) / spread,
        "box_step": box_step(image, box, breast),
    }


def box_step(image: np.ndarray, box: np.ndarray, breast: np.ndarray | None = None) -> float:
    """Mean grey step across the outline of a box [4] (rounded to pixels), divided by the mean step across the parallel
    lines one to three pixels inside and outside of it; NaN without such a line or step.

    image: [H, W]. breast: [H, W] bool; steps to pixels outside it do not count.
    """
    known = np.ones(image.shape, bool) if breast is None else breast.astype(bool)
    x0, y0, x1, y1 = (int(v) for v in np.round(box))
    height, width = image.shape
    columns, rows = slice(max(x0, 0), min(x1, width)), slice(max(y0, 0), min(y1, height))
    across: list[np.ndarray] = []
    beside: list[np.ndarray] = []
    sides = ((image.T, known.T, rows, x0), (image.T, known.T, rows, x1), (image, known, columns, y0))
    for pixels, valid, line, at in (*sides, (image, known, columns, y1)):
        for offset in range(-3, 4):
            if 1 <= at + offset < len(pixels):
                both = valid[at + offset - 1, line] & valid[at + offset, line]
                step = np.abs(pixels[at + offset, line].astype(np.float64) - pixels[at + offset - 1, line])[both]
                (beside if offset else across).append(step)
    here, there = (_mean(np.concatenate(found)) if found else np.nan for found in (across, beside))
    return here / there if there > 0 else np.nan


def compare_statistics(
    real: Sequence[Mapping[str, float]], synthetic: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float | int | None]]:
    """Per statistic, the difference between its values in real and in synthetic lesions.

    `real`, `synthetic`: medians; `kolmogorov_smirnov`: largest difference of the two distribution functions, 0 to 1;
    `wasserstein`: mean shift between the distributions, in standard deviations of the real one (None if that is 0);
    `real_count`, `synthetic_count`: number of lesions for which the statistic is defined. None without such lesions.
    """
    compared = {}
    for name in (real or synthetic or [{}])[0]:
        a, b = (np.array([one[name] for one in lesions], np.float64) for lesions in (real, synthetic))
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        both = len(a) > 0 and len(b) > 0
        spread = a.std() if both else 0.0
        compared[name] = {
            "real": float(np.median(a)) if len(a) else None,
            "synthetic": float(np.median(b)) if len(b) else None,
            "kolmogorov_smirnov": kolmogorov_smirnov(a, b) if both else None,
            "wasserstein": wasserstein(a, b) / float(spread) if spread > 0 else None,
            "real_count": len(a),
            "synthetic_count": len(b),
        }
    return compared


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of the distribution functions of samples [N] and [M], neither empty."""
    _, first, second = _distributions(a, b)
    return float(np.abs(first - second).max())


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Area between the distribution functions of samples [N] and [M], neither empty."""
    values, first, second = _distributions(a, b)
    return float((np.abs(first - second)[:-1] * np.diff(values)).sum())


def _distributions(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All values in order, and the share of each sample up to each of them."""
    values = np.sort(np.concatenate([a, b]))
    first, second = (np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (a, b))
    return values, first, second


def _inside(box: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Mask of the pixels with their centre in a box widened to whole pixels."""
    x0, y0, x1, y1 = np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])
    return ((rows > y0) & (rows < y1))[:, None] & ((columns > x0) & (columns < x1))[None]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
