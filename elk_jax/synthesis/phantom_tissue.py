"""Tissue of a phantom breast: gland, strands, vessels, lymph nodes, calcifications and the two images' backgrounds.

Shapes: H rows and U columns of the drawing canvas. Lengths are in units of H; grey values 0..1.

Noise is drawn on grids whose size does not depend on the resolution, one random stream per octave, and octaves finer
than the pixels are left out: one (seed, index) is the same breast at every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from elk_jax.synthesis.phantom_shape import MAX_WIDTH, Shape, smooth_step


@dataclass(frozen=True)
class Character:
    """What all views of a patient share."""

    density: str  # ACR class a, b, c, d
    gland_fraction: float  # of the breast's area
    strands: float  # strength of the fibrous web
    enhancement: float  # of the background parenchyma in the subtracted image
    shelf: float  # where the compressed breast reaches its full thickness, distance from the skin
    glow: float  # brightness inside that line in the subtracted image
    vessels: int


@dataclass(frozen=True)
class Tissue:
    """Layers of one view, float32 [H, U]."""

    gland: np.ndarray  # 0..1 amount of fibroglandular tissue
    web: np.ndarray  # 0..1 bright ridges of the fibrous network
    vessels: np.ndarray  # 0..1
    clouds: np.ndarray  # mean 0, sd 1, low frequencies
    mottle: np.ndarray  # mean 0, sd 1, middle frequencies


def make_character(rng: np.random.Generator) -> Character:
    density = "abcd"[int(np.searchsorted([0.1, 0.5, 0.9], rng.random()))]
    low, high = {"a": (0.05, 0.12), "b": (0.12, 0.3), "c": (0.3, 0.5), "d": (0.5, 0.7)}[density]
    return Character(
        density=density,
        gland_fraction=rng.uniform(low, high),
        strands=rng.uniform(0.6, 1.3),
        enhancement=max(rng.gamma(1.0, 0.05) - 0.02, 0.0),
        shelf=rng.uniform(0.05, 0.12),
        glow=rng.gamma(1.5, 0.04),
        vessels=int(rng.integers(2, 8)),
    )


def noise_field(rng: np.random.Generator, size: int, columns: int, cells: int) -> np.ndarray:
    """White noise on a grid of `cells` per image height (a multiple of 5), interpolated to [size, columns]."""
    grid = rng.standard_normal((cells, round(cells * MAX_WIDTH)), dtype=np.float32)
    width = round(size * MAX_WIDTH)
    field = cv2.resize(grid, (width, size), interpolation=cv2.INTER_CUBIC if cells <= size else cv2.INTER_AREA)
    return field[:, :columns]


def octaves(seed: list[int], size: int, columns: int, cells: list[int], gains: list[float]) -> np.ndarray:
    """Sum of noise fields, one random stream each; those finer than the pixels are left out."""
    total = np.zeros((size, columns), np.float32)
    for k, (n, gain) in enumerate(zip(cells, gains)):
        if n <= size:
            total += np.float32(gain) * noise_field(np.random.default_rng([*seed, k]), size, columns, n)
    return total


def ridges(noise: np.ndarray, sharpness: float) -> np.ndarray:
    """Bright curves along the zero crossings of a noise field, 0..1."""
    return np.float32(1) / (np.float32(1) + (noise * np.float32(sharpness)) ** 2)


def _web(seed: list[int], size: int, shape: Shape, warp: np.ndarray) -> np.ndarray:
    """The fibrous network: ridged noise whose cells are drawn out towards a point before the nipple.

    The noise lives in log-polar coordinates about that point, where the ducts meet.
    """
    columns = shape.depth.shape[1]
    cx, cy = np.float32(shape.nipple[0] + 0.06), np.float32(shape.nipple[1])
    dx, dy = np.broadcast_to(cx - shape.x, shape.depth.shape), np.broadcast_to(shape.y - cy, shape.depth.shape)
    r, theta = cv2.cartToPolar(np.ascontiguousarray(dx), np.ascontiguousarray(dy))
    theta = np.where(theta > np.pi, theta - np.float32(2 * np.pi), theta)  # seam before the nipple, outside the breast
    log_r = np.log(np.maximum(r, 0.02)) + 0.10 * warp
    theta = theta + 0.12 * np.roll(warp, size // 7, axis=0)
    total = np.zeros((size, columns), np.float32)
    side = min(size, 512)
    for k, (n, elongation, gain) in enumerate([(25, 1.6, 0.5), (50, 2.0, 0.6), (100, 2.2, 0.45), (200, 2.4, 0.3)]):
        if n > size:
            continue
        rng = np.random.default_rng([*seed, 50 + k])
        grid = rng.standard_normal((n, max(int(n / elongation), 4)), dtype=np.float32)
        tile = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        # theta -1.7 .. 1.7 over the rows, log r -3.9 .. 0.4 over the columns
        field = cv2.remap(tile, (log_r + 3.9) * np.float32(side / 4.3), (theta + 1.7) * np.float32(side / 3.4),
                          cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)  # fmt: skip
        total += np.float32(gain) * ridges(field, 3.0)
    for k, (n, gain) in enumerate([(40, 0.35), (80, 0.35), (160, 0.25)]):
        if n <= size:
            total += np.float32(gain) * ridges(
                noise_field(np.random.default_rng([*seed, 70 + k]), size, columns, n), 3.0
            )
    return total / 1.6


def draw_vessels(rng: np.random.Generator, count: int, shape: Shape) -> np.ndarray:
    """Branching vessels that run from the chest wall towards the nipple, 0..1."""
    size, columns = shape.depth.shape
    canvas = np.zeros((size, columns), np.uint8)
    for _ in range(count):
        start_x, start_y = rng.uniform(0, 0.25) * shape.width, rng.uniform(0.12, 0.9)
        heading = np.arctan2(shape.nipple[1] - start_y, shape.nipple[0] - start_x) + rng.normal(0, 0.35)
        width, level = rng.uniform(0.0022, 0.0055), rng.uniform(0.4, 1.0)
        steps = int(rng.integers(30, 90))
        turns = cv2.GaussianBlur(rng.normal(0, 0.22, (steps + 8, 1)).astype(np.float64), (1, 7), 1.5)[:, 0]
        for branch in range(2):
            angle = heading + np.cumsum(turns[: steps if branch == 0 else steps // 2]) * (1 if branch == 0 else -1.3)
            path_x, path_y = start_x + np.cumsum(0.009 * np.cos(angle)), start_y + np.cumsum(0.009 * np.sin(angle))
            points = np.stack([path_x, path_y], 1) * size * 16
            pixels = width * size
            cv2.polylines(canvas, [points.astype(np.int32)], False, int(255 * level * min(pixels, 1)),
                          max(round(pixels), 1), cv2.LINE_AA, 4)  # fmt: skip
            middle = len(path_x) // 3
            start_x, start_y, width = path_x[middle], path_y[middle], width * 0.7
    vessels = cv2.GaussianBlur(canvas, (0, 0), max(0.0012 * size, 0.3)).astype(np.float32) / 255
    return vessels * smooth_step(shape.depth / 0.02)


def make_tissue(seed: list[int], character: Character, shape: Shape) -> Tissue:
    """Draw the layers of one view; `seed` names its random streams."""
    size, columns = shape.depth.shape
    clouds = octaves([*seed, 1], size, columns, [5, 10, 20], [1.0, 0.7, 0.4])
    mottle = octaves([*seed, 2], size, columns, [40, 80, 160], [0.8, 0.5, 0.35])
    fine = octaves([*seed, 3], size, columns, [20, 40, 80], [0.55, 0.4, 0.25])
    rng = np.random.default_rng([*seed, 4])
    # Gland: a cone behind the nipple, roughened, cut at the level that leaves the wanted share of the breast.
    reach = shape.width * rng.uniform(0.5, 0.75)
    cx, cy = shape.nipple[0] - reach * rng.uniform(0.7, 0.95), shape.nipple[1] - rng.uniform(0.0, 0.1)
    bump = -(((shape.x - cx) / reach) ** 2) - ((shape.y - cy) / (0.3 + 0.1 * character.gland_fraction)) ** 2
    field = 1.1 * bump + 0.42 * clouds + 0.3 * fine - 2.5 * (1 - smooth_step(shape.depth / 0.07)) - 2 * shape.pectoral
    probe = field[::8, ::8][shape.breast[::8, ::8]]
    level = np.quantile(probe, 1 - character.gland_fraction)
    gland = smooth_step((field - np.float32(level)) / 0.9 + 0.42) * shape.breast
    web = _web([*seed, 5], size, shape, 0.6 * clouds + 0.5 * fine)
    return Tissue(gland, web, draw_vessels(rng, character.vessels, shape), clouds, mottle)


def skin(shape: Shape, width: float) -> np.ndarray:
    """A thin bright line along the skin, 0..1 [H, U]."""
    return np.exp(-((shape.depth / np.float32(width)) ** 2)) * shape.breast


def low_energy_background(rng: np.random.Generator, character: Character, shape: Shape, tissue: Tissue) -> np.ndarray:
    """The low-energy image without lesions, linear in density, [H, U]."""
    strands = tissue.web * (0.10 + 0.28 * tissue.gland) * np.float32(character.strands)
    image = 0.17 + 0.22 * tissue.gland * (0.85 + 0.25 * tissue.clouds) + strands
    image += 0.012 * tissue.mottle + 0.03 * tissue.clouds
    image += 0.16 * tissue.vessels
    image *= 0.72 + 0.28 * smooth_step(shape.depth / np.float32(character.shelf))
    streaks = 0.5 + 0.5 * np.sin(shape.muscle_depth * np.float32(rng.uniform(60, 160)) + 2 * tissue.clouds)
    muscle = rng.uniform(0.12, 0.3) + 0.4 * np.clip(shape.muscle_depth, 0, 0.3) + 0.04 * streaks
    image += shape.pectoral * muscle
    image += rng.uniform(0.05, 0.4) * skin(shape, rng.uniform(0.004, 0.010))
    return image * (1 - 0.55 * shape.fold)


def subtracted_background(
    rng: np.random.Generator, character: Character, shape: Shape, tissue: Tissue, low_energy: np.ndarray
) -> np.ndarray:
    """The subtracted image without lesions, [H, U].

    What the subtraction leaves: the compression shelf, skin, imperfectly cancelled tissue, the relief of motion between
    the two exposures, vessels and enhancing parenchyma.
    """
    size = shape.depth.shape[0]
    taper = 0.55 + 0.45 * np.minimum(shape.x / np.float32(0.5 * shape.width), 1)
    line = np.float32(character.shelf) * taper * (1 + 0.1 * tissue.clouds)
    inside = smooth_step((shape.depth - line) / 0.035 + 0.5)
    fading = np.exp(-np.maximum(shape.depth - line, 0) / np.float32(rng.uniform(0.08, 0.25)))
    image = 0.185 + inside * (rng.uniform(0.0, 0.05) + character.glow * fading)
    image += 0.010 * tissue.clouds + 0.006 * tissue.mottle
    image += rng.normal(0, 0.06) * (cv2.GaussianBlur(low_energy, (0, 0), 0.02 * size) - 0.3)
    image -= rng.uniform(0.0, 0.06) * (tissue.web - 0.5) * tissue.gland

    # Motion: what moved leaves a bright and a dark edge.
    shift, direction = rng.uniform(0.002, 0.006), rng.normal(np.pi / 2, 0.6)
    matrix = np.float32([[1, 0, shift * size * np.cos(direction)], [0, 1, shift * size * np.sin(direction)]])
    moved = cv2.warpAffine(low_energy, matrix, low_energy.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    where = 0.25 + smooth_step(0.4 + 0.5 * np.roll(tissue.clouds, size // 3, axis=0))
    image += np.float32(min(rng.gamma(1.2, 0.11), 0.6)) * where * (low_energy - moved) * smooth_step(shape.depth / 0.02)

    image += np.float32(character.enhancement) * tissue.gland * np.clip(0.6 + 0.5 * tissue.clouds + 0.5 * tissue.mottle, 0, 3)
    image += np.float32(rng.uniform(0.02, 0.12)) * tissue.vessels
    image += shape.pectoral * rng.normal(0, 0.015)
    image += rng.gamma(1.5, 0.1) * skin(shape, rng.uniform(0.002, 0.006)) * smooth_step(0.6 + 0.4 * tissue.clouds)
    return image * (1 - 0.5 * shape.fold)
