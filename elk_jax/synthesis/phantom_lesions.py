"""Enhancing lesions of a phantom: plans (kind, size, place) and their rendering.

Shapes: H rows and U columns of the drawing canvas, N lesions, h w a lesion's patch. Lengths are in units of H. Two
lesion models share plans and placement, so that a set drawn with one can represent generated images for a set drawn
with the other:

- `realistic`: round, lobulated, irregular, spiculated, rim-enhancing and clustered masses, heterogeneous
  inside;
- `blobs`: plain Gaussian ellipses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from elk_jax.randomness import Purpose, generator
from elk_jax.synthesis.phantom_shape import Shape, smooth_step

KINDS = ("round", "lobulated", "irregular", "spiculated", "rim", "clustered")
KIND_WEIGHTS = (0.16, 0.22, 0.24, 0.2, 0.08, 0.1)
# Lesions per image of the CDD-CESM mass images (1, 2, 3, ...).
COUNT_WEIGHTS = np.array([71, 24, 20, 9, 11, 6, 2, 7, 0, 0, 1]) / 151
VISIBLE = 0.4  # level of a lesion's profile at which its extent ends


@dataclass(frozen=True)
class Plan:
    """Properties of a lesion that both views of a breast share."""

    kind: str
    radius: float  # units of H
    aspect: float
    contrast: float  # peak enhancement in the subtracted image
    density: float  # peak density in the low-energy image
    distance: float  # from the nipple, in units of the breast's width
    seed: int


@dataclass(frozen=True)
class Lesion:
    """One lesion drawn into a patch whose top left pixel is (row, column) of the canvas (may lie outside)."""

    row: int
    column: int
    profile: np.ndarray  # [h, w] 0..1 form without inner structure
    enhancement: np.ndarray  # [h, w] added to the subtracted image
    density: np.ndarray  # [h, w] added to the low-energy image


def plan_lesions(rng: np.random.Generator, max_lesions: int, contrast: float) -> list[Plan]:
    """Draw the lesions of one breast that has any: number, sizes and contrasts as in CDD-CESM."""
    count = min(1 + int(np.searchsorted(np.cumsum(COUNT_WEIGHTS), rng.random())), max_lesions, 11)
    base = 1.05 * count**-0.2  # multiple lesions are smaller
    plans = []
    for _ in range(count):
        radius = float(np.clip(0.068 * base * np.exp(rng.normal(0, 0.5)), 0.017, 0.17))
        peak = float(np.clip(0.12 * np.exp(rng.normal(0, 0.7)), 0.055, 0.7))
        plans.append(
            Plan(
                kind=KINDS[int(np.searchsorted(np.cumsum(KIND_WEIGHTS), rng.random() * 0.999))],
                radius=radius,
                aspect=float(np.exp(rng.normal(0, 0.2))),
                contrast=peak * contrast,
                density=float(rng.uniform(0.04, 0.32)),
                distance=float(rng.uniform(0.2, 0.95)),
                seed=int(rng.integers(2**31)),
            )
        )
    return sorted(plans, key=lambda plan: -plan.radius)  # large ones are placed first


def place(seed: int, view: int, plans: list[Plan], shape: Shape, gland: np.ndarray) -> list[tuple[Plan, float, float]]:
    """Find a centre (x, y) for every plan: inside the breast, outside muscle and axilla, preferably in gland.

    Of several candidates at about the planned distance from the nipple, the one in the densest tissue wins. A plan that
    finds no room is drawn smaller, and finally left out. Returns (plan, x, y) of the others.
    """
    size, columns = shape.depth.shape
    placed: list[tuple[Plan, float, float]] = []
    for plan in plans:
        rng = generator(seed, Purpose.PHANTOM_PLACES, view, plan.seed)
        extent = plan.radius * max(plan.aspect, 1 / plan.aspect) ** 0.5 * 1.15
        for shrink in (1.0, 0.8, 0.6, 0.45):
            angle = rng.uniform(-1.35, 1.35, 40)
            reach = plan.distance * shape.width * rng.uniform(0.85, 1.15, 40)
            x, y = shape.nipple[0] - reach * np.cos(angle), shape.nipple[1] + reach * np.sin(angle)
            r = extent * shrink
            column, row = (x * size).astype(int), (y * size).astype(int)
            fits = (x > 0.8 * r) & (y > 0.08 + r) & (y < 0.99 - r) & (column < columns)
            row, column = np.clip(row, 0, size - 1), np.clip(column, 0, columns - 1)
            fits &= (shape.depth[row, column] > r + 0.012) & (shape.muscle_depth[row, column] < -0.5 * r)
            for other, ox, oy in placed:
                fits &= np.hypot(x - ox, y - oy) > r + 1.25 * other.radius
            if fits.any():
                score = np.where(fits, gland[row, column] + rng.uniform(0, 0.5, 40), -1)
                best = int(np.argmax(score))
                if shrink < 1:
                    plan = replace(plan, radius=max(plan.radius * shrink, 0.015))
                placed.append((plan, float(x[best]), float(y[best])))
                break
    return placed


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    finer = cells > min(shape)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_AREA if finer else cv2.INTER_CUBIC)


def _star(rng: np.random.Generator, theta: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """A closed curve's radius at angles `theta`: 1 + sum of harmonics 2, 3, ... with the amplitudes given."""
    table_angle = np.linspace(0, 2 * np.pi, 361)
    table = np.ones(361)
    for k, amplitude in enumerate(amplitudes, start=2):
        table += amplitude * np.cos(k * table_angle + rng.uniform(0, 2 * np.pi))
    return np.maximum(table, 0.35).astype(np.float32)[(theta * (360 / (2 * np.pi))).astype(np.int32)]


def _core(rng: np.random.Generator, kind: str, r: np.ndarray, theta: np.ndarray) -> np.ndarray:
    amplitudes = {
        "round": np.array([0.06, 0.03, 0.02]),
        "rim": np.array([0.08, 0.05, 0.03]),
        "lobulated": rng.uniform(0.03, 0.12, 5) * np.array([0.8, 1, 1, 0.7, 0.4]),
        "irregular": rng.uniform(0.03, 0.11, 9) * np.linspace(1, 0.35, 9),
        "spiculated": rng.uniform(0.03, 0.1, 9) * np.linspace(1, 0.5, 9),
    }[kind]
    softness = rng.uniform(0.2, 0.6) if kind != "round" else rng.uniform(0.15, 0.45)
    return smooth_step((1 - r / _star(rng, theta, amplitudes)) / softness + 0.5)


def _realistic(
    rng: np.random.Generator, plan: Plan, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(profile, enhancement, density) on coordinates u, v in units of the lesion's radius; peaks near 1."""
    r, theta = cv2.cartToPolar(u, v)
    theta = np.minimum(theta, np.float32(2 * np.pi - 1e-4))
    if plan.kind == "clustered":
        profile = np.zeros_like(u)
        weights = np.zeros_like(u)
        for _ in range(rng.integers(4, 9)):
            turn, away = rng.uniform(0, 2 * np.pi), 0.72 * np.sqrt(rng.random())
            du, dv = u - away * np.cos(turn), v - away * np.sin(turn)
            clump = smooth_step((1 - np.hypot(du, dv) / rng.uniform(0.22, 0.5)) / 0.8 + 0.3)
            profile = np.maximum(profile, clump)
            weights = np.maximum(weights, clump * rng.uniform(0.6, 1.0))
        bridge = 0.45 * smooth_step((1 - r) / 0.5 + 0.3)  # the clumps are one region
        profile, core = np.maximum(profile, bridge), np.maximum(weights, 0.7 * bridge)
    else:
        fray = {"round": 0.03, "rim": 0.05, "lobulated": 0.04, "irregular": 0.07, "spiculated": 0.06}[plan.kind]
        frayed = r * (1 + fray * (_noise(rng, u.shape, 11) + 0.7 * _noise(rng, u.shape, 23)))
        profile = core = _core(rng, plan.kind, frayed, theta)
    texture = _noise(rng, u.shape, 7) + 0.6 * _noise(rng, u.shape, 16)
    enhancement = core * np.clip(1 + rng.uniform(0.12, 0.36) * texture, 0.3, 1.6)
    if plan.kind == "rim":
        ring = np.exp(-(((r - 0.78) / 0.22) ** 2))
        enhancement = enhancement * (rng.uniform(0.3, 0.55) + (1 - 0.3) * ring)
    elif plan.kind in ("round", "lobulated"):
        enhancement *= np.clip(1.05 - 0.25 * r * r, 0.6, 1)
    density = core * (0.8 + 0.12 * texture)
    if plan.kind in ("spiculated", "irregular"):
        count = int(rng.integers(9, 20)) if plan.kind == "spiculated" else int(rng.integers(3, 7))
        angles = np.linspace(0, 2 * np.pi, 721)
        table = np.zeros(721)
        for _ in range(count):
            gap = np.abs((angles - rng.uniform(0, 2 * np.pi) + np.pi) % (2 * np.pi) - np.pi)
            table = np.maximum(table, rng.uniform(0.3, 1.0) * np.exp(-((gap / rng.uniform(0.03, 0.09)) ** 2)))
        bend = theta + 0.12 * _noise(rng, u.shape, 5)
        spikes = table.astype(np.float32)[((bend % (2 * np.pi)) * (720 / (2 * np.pi))).astype(np.int32)]
        spikes = (
            spikes * np.exp(-np.maximum(r - 0.85, 0) / 0.3) * smooth_step((r - 0.3) * 2) * smooth_step((1.9 - r) * 2)
        )
        profile = np.maximum(profile, 0.75 * spikes)
        enhancement = np.maximum(enhancement, 0.6 * spikes)
        density = np.maximum(density, 0.9 * spikes)
    return profile, enhancement, density


def draw(plan: Plan, x: float, y: float, size: int, model: str) -> Lesion:
    """Render a plan centred at (x, y), realistic or as blobs, on a canvas of `size` rows."""
    rng = generator(plan.seed, Purpose.PHANTOM_LESION)
    reach = 2.0 * plan.radius * max(plan.aspect, 1 / plan.aspect) ** 0.5
    row, column = int((y - reach) * size), int((x - reach) * size)
    span = int(2 * reach * size) + 2
    dv = ((np.arange(row, row + span, dtype=np.float32) + 0.5) / size - np.float32(y))[:, None]
    du = ((np.arange(column, column + span, dtype=np.float32) + 0.5) / size - np.float32(x))[None, :]
    turn = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    stretch = np.float32(np.sqrt(plan.aspect))
    u = (c * du + s * dv) / np.float32(plan.radius) / stretch
    v = (c * dv - s * du) / np.float32(plan.radius) * stretch
    if model == "blobs":
        profile = np.exp(-(u * u + v * v) * np.float32(-np.log(VISIBLE)))  # VISIBLE at r = 1
        enhancement = density = profile
    else:
        profile, enhancement, density = _realistic(rng, plan, u, v)
    return Lesion(row, column, profile, enhancement * plan.contrast, density * plan.density)


def add_patch(canvas: np.ndarray, patch: np.ndarray, row: int, column: int) -> None:
    """Add `patch` to `canvas` in place, clipped to the canvas."""
    view, part = window(canvas, patch, row, column)
    view += part


def window(canvas: np.ndarray, patch: np.ndarray, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """The overlapping parts of a canvas and a patch whose top left pixel lies at (row, column)."""
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + patch.shape[0], canvas.shape[0]), min(column + patch.shape[1], canvas.shape[1])
    if bottom <= top or right <= left:
        return canvas[:0, :0], patch[:0, :0]
    return canvas[top:bottom, left:right], patch[top - row : bottom - row, left - column : right - column]
