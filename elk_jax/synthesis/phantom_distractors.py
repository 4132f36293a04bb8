"""Bright structures of a phantom that are not lesions: nipple, calcifications, cysts, nodes, foci, folds, corners.

Shapes: H rows and U columns of the drawing canvas; both images are changed in place. Lengths are in units of H. They
penalise a detector that takes every bright spot for a lesion.
"""

from __future__ import annotations

import numpy as np

from elk_jax.synthesis.phantom_lesions import add_patch, window
from elk_jax.synthesis.phantom_shape import Shape, smooth_step


def spot(
    size: int, x: float, y: float, radius: float, aspect: float = 1.0, turn: float = 0.0, whole: bool = True
) -> tuple[np.ndarray, int, int]:
    """Elliptical distance r (1 on the rim) on a patch around (x, y), with the patch's row and column.

    Not `whole`: without the parts above, below and left of the canvas.
    """
    reach = 2.2 * radius * max(aspect, 1 / aspect) ** 0.5 + 1.5 / size
    row, column, span = int((y - reach) * size), int((x - reach) * size), int(2 * reach * size) + 2
    bottom, right = row + span, column + span
    if not whole:
        row, column, bottom = max(row, 0), max(column, 0), min(bottom, size)
    dv = ((np.arange(row, bottom, dtype=np.float32) + 0.5) / size - np.float32(y))[:, None]
    du = ((np.arange(column, right, dtype=np.float32) + 0.5) / size - np.float32(x))[None, :]
    c, s, stretch = np.cos(turn), np.sin(turn), aspect**0.5
    # A spot smaller than a pixel keeps its mass: it is drawn one pixel wide and fainter.
    drawn = max(radius, 0.5 / size)
    u, v = (c * du + s * dv) / (drawn * stretch), (c * dv - s * du) / (drawn / stretch)
    return np.hypot(u, v).astype(np.float32), row, column


def point_inside(rng: np.random.Generator, shape: Shape, margin: float) -> tuple[float, float] | None:
    """A random point in the breast, `margin` below the skin, or None."""
    size, columns = shape.depth.shape
    x, y = rng.uniform(0.01, columns / size, 20), rng.uniform(0.05, 0.97, 20)
    row, column = (y * size).astype(int), np.minimum((x * size).astype(int), columns - 1)
    fits = np.flatnonzero(shape.depth[row, column] > margin)
    return (float(x[fits[0]]), float(y[fits[0]])) if len(fits) else None


def draw_nipple(rng: np.random.Generator, shape: Shape, low_energy: np.ndarray, subtracted: np.ndarray) -> None:
    """A bright cap at the skin, with the dark patch that the subtraction leaves behind it."""
    size = shape.depth.shape[0]
    x, y = shape.nipple
    radius, turn, shadow = rng.uniform(0.009, 0.02), rng.normal(0, 0.5), rng.uniform(0.0, 0.16)
    r, row, column = spot(size, x - radius * 1.2, y + rng.normal(0, 0.012), radius * 1.7, 0.6, turn)
    add_patch(subtracted, -shadow * np.exp(-(r**2)), row, column)
    x, y = x + rng.uniform(-0.006, 0.012), y + rng.normal(0, 0.004)
    for image, level in ((subtracted, rng.uniform(0.1, 1.1)), (low_energy, rng.uniform(0.1, 0.5))):
        r, row, column = spot(size, x, y, radius, rng.uniform(0.4, 0.8), turn)
        inside, body = window(shape.breast, level * smooth_step((1 - r) / 0.8 + 0.5), row, column)
        add_patch(image, body * inside, max(row, 0), max(column, 0))


def draw_distractors(
    rng: np.random.Generator, shape: Shape, view: str, low_energy: np.ndarray, subtracted: np.ndarray
) -> None:
    """Scatter bright structures that are not lesions over both images."""
    size = shape.depth.shape[0]
    for _ in range(rng.poisson(1.2)):  # enhancing foci, well below the smallest lesion
        point, radius, level = point_inside(rng, shape, 0.02), rng.uniform(0.002, 0.0055), rng.uniform(0.1, 0.45)
        if point:
            r, row, column = spot(size, *point, radius)
            add_patch(subtracted, level * min(radius * size / 0.5, 1) ** 2 * np.exp(-(r**2)), row, column)
    for _ in range(rng.poisson(0.35)):  # calcifications: white in low energy, black-and-white when subtracted
        point, spread, residue = point_inside(rng, shape, 0.03), rng.uniform(0.004, 0.02), rng.normal(0, 0.25)
        for _ in range(int(rng.integers(1, 14))):
            radius, level = rng.uniform(0.0012, 0.003), rng.uniform(0.2, 0.6)
            dx, dy = rng.normal(0, spread, 2)
            if point:
                r, row, column = spot(size, point[0] + dx, point[1] + dy, radius)
                dot = level * min(radius * size / 0.5, 1) ** 2 * np.exp(-(r**2))
                add_patch(low_energy, dot, row, column)
                add_patch(subtracted, residue * dot, row, column)
    for _ in range(rng.poisson(0.12)):  # one coarse calcification
        point, radius = point_inside(rng, shape, 0.03), rng.uniform(0.005, 0.02)
        grain, sign = rng.normal(0, 0.9, (6, 6)), rng.choice([-0.12, 0.25])
        if point:
            r, row, column = spot(size, *point, radius, rng.uniform(0.8, 1.3))
            rows, columns = np.indices(r.shape) * 6 // r.shape[0]
            body = smooth_step((1 - r) / 0.25 + 0.5)
            add_patch(low_energy, 0.6 * body, row, column)
            add_patch(subtracted, sign * body * (1 + 0.8 * grain[rows, columns]), row, column)
    for _ in range(rng.poisson(0.3)):  # cysts: a mass in low energy, dark with a faint rim when subtracted
        point, radius, aspect = point_inside(rng, shape, 0.05), rng.uniform(0.012, 0.035), rng.uniform(0.75, 1.3)
        density, dark, rim = rng.uniform(0.05, 0.2), rng.uniform(0.02, 0.07), rng.uniform(0.0, 0.05)
        if point:
            r, row, column = spot(size, *point, radius, aspect)
            body = smooth_step((1 - r) / 0.25 + 0.5)
            add_patch(low_energy, density * body, row, column)
            add_patch(subtracted, rim * np.exp(-(((r - 1.05) / 0.14) ** 2)) - dark * body, row, column)
    nodes = int(rng.integers(0, 4)) if view == "MLO" else 0
    for _ in range(nodes):  # axillary lymph nodes, in the muscle's corner; lesions are never drawn there
        x, y, radius = rng.uniform(0.02, 0.2), rng.uniform(0.01, 0.09), rng.uniform(0.008, 0.022)
        turn, density, level = rng.uniform(0, np.pi), rng.uniform(0.1, 0.35), rng.uniform(0.0, 0.12)
        r, row, column = spot(size, x, y, radius, 1.5, turn)
        hilum = np.roll(r, int(0.6 * radius * size), axis=1)  # fat, off the middle
        body = smooth_step((1 - r) / 0.3 + 0.5) * (1 - 0.5 * np.exp(-((hilum / 0.5) ** 2)))
        add_patch(low_energy, density * body, row, column)
        add_patch(subtracted, level * body, row, column)
    for y, strength, reach in [(0.0, rng.gamma(0.5, 0.25), 0.05), (1.0, rng.gamma(0.5, 0.25), 0.05)]:
        # bright corners at the chest wall, where the paddle ends
        r, row, column = spot(size, 0.0, y, reach, rng.uniform(0.5, 1.2), whole=False)
        add_patch(subtracted, strength * np.exp(-2 * r**2), row, column)
    wall, dark = rng.uniform(0.004, 0.02), max(rng.uniform(-0.1, 0.25), 0.0)
    subtracted -= np.float32(dark) * np.exp(-shape.x / np.float32(wall))
