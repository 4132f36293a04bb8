"""Tissue of a phantom breast: gland, strands, vessels, lymph nodes, calcifications and the backgrounds of both images.

Shapes: H rows and U columns of the drawing canvas. Lengths are in units of H; grey values 0..1.

Noise is drawn on grids whose size does not depend on the resolution, with one random stream per octave, and octaves
finer than the pixels are left out: a (seed, index) is the same breast at every size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from elk_jax.randomness import Purpose, generator
from elk_jax.synthesis.phantom_shape import MAX_WIDTH, Shape, smooth_step

CLOUDS, MOTTLE, FIBRES = 1, 2, 5  # layers with random streams of their own
Streams = Callable[[int], np.random.Generator]  # of one layer: octave -> random stream


@dataclass(frozen=True)
class Character:
    """Properties shared by all views of a patient."""

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
    web: np.ndarray  # 0..1 bright lines of the fibrous network
    rough: np.ndarray  # mean 0, sd about 1, power-law noise along the fibres
    vessels: np.ndarray  # 0..1
    clouds: np.ndarray  # mean 0, sd 1, low frequencies
    mottle: np.ndarray  # mean 0, sd 1, middle frequencies


def make_character(rng: np.random.Generator) -> Character:
    density = "abcd"[int(np.searchsorted([0.1, 0.5, 0.9], rng.random()))]
    low, high = {"a": (0.05, 0.12), "b": (0.12, 0.3), "c": (0.3, 0.5), "d": (0.5, 0.7)}[density]
    return Character(
        density=density,
        gland_fraction=float(rng.uniform(low, high)),
        strands=rng.uniform(0.6, 1.3),
        enhancement=min(max(rng.gamma(0.8, 0.14) - 0.02, 0.0), 0.4),
        shelf=rng.uniform(0.05, 0.12),
        glow=min(rng.gamma(1.5, 0.09), 0.4),
        vessels=int(rng.integers(2, 8)),
    )


def noise_field(rng: np.random.Generator, size: int, columns: int, cells: int) -> np.ndarray:
    """White noise, `cells` (a multiple of 5) per image height, interpolated to [size, columns]."""
    grid = rng.standard_normal((cells, round(cells * MAX_WIDTH)), dtype=np.float32)
    grid = grid[:, : int(np.ceil(columns * cells / size)) + 1]
    width = round(grid.shape[1] * size / cells)
    return cv2.resize(grid, (width, size), interpolation=cv2.INTER_CUBIC)[:, :columns]


def octaves(streams: Streams, size: int, columns: int, cells: list[int], gains: list[float]) -> np.ndarray:
    """Sum of noise fields, one random stream each; those finer than the pixels are left out."""
    total = np.zeros((size, columns), np.float32)
    for k, (n, gain) in enumerate(zip(cells, gains)):
        if n <= size:
            total += np.float32(gain) * noise_field(streams(k), size, columns, n)
    return total


def _lines(noise: np.ndarray, thinness: float) -> np.ndarray:
    """Bright curves along the zero crossings of noise, 0..1; they fade in and out: no closed loops."""
    lit = np.clip(0.6 + 0.4 * noise, 0.1, 1.3)
    return lit[::-1, ::-1] / (np.float32(1) + (noise * np.float32(thinness)) ** 2)


def fibres(streams: Streams, size: int, shape: Shape, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fibrous structure that runs towards the nipple: (rough, web), [H, U].

    `rough` is power-law noise (mean 0, sd about 1), `web` thin bright lines (0..1) along zero crossings of the same
    noise. The noise is defined in log-polar coordinates about a point in front of the nipple, where the ducts meet, and
    its cells are elongated along the radius.
    """
    dx = np.repeat(np.float32(shape.nipple[0] + 0.08) - shape.x, size, axis=0)
    dy = np.repeat(shape.y - np.float32(shape.nipple[1]), shape.depth.shape[1], axis=1)
    r, theta = cv2.cartToPolar(dx, dy)
    theta -= np.float32(2 * np.pi) * (theta > np.pi)  # the seam lies outside the breast
    side = min(size, 1024)
    # log r of -3.0 .. 0.5 lies over the tile's columns, theta of -1.7 .. 1.7 over its rows
    column = (np.log(np.maximum(r, np.float32(0.05))) + 3.0 + 0.06 * warp) * np.float32(side / 3.5)
    row = (theta + 1.7 + 0.06 * warp[::-1, ::-1]) * np.float32(side / 3.4)
    rough, web = np.zeros(shape.depth.shape, np.float32), np.zeros(shape.depth.shape, np.float32)
    # cells over the angle, gain of the noise, thinness and brightness of the lines
    layers = [(14, 0.6, 8, 0.3), (28, 0.5, 6, 0.55), (56, 0.4, 4.5, 0.6), (100, 0.35, 3, 0.4), (180, 0.25, 2.5, 0.25)]
    for k, (cells, gain, thinness, brightness) in enumerate(layers):
        if cells > size:
            web += 0.6 * np.float32(brightness) / (1 + np.float32(0.5 * thinness))  # about the lines' mean
            continue
        grid = streams(k).standard_normal((cells, max(round(cells / 1.9), 4)), dtype=np.float32)
        tile = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        noise = cv2.remap(tile, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        web += _lines(noise, thinness) * np.float32(brightness)
        rough += np.float32(gain) * noise
    # Ligaments run across: lines without a direction, in image coordinates.
    across = [(25, 6, 0.45), (50, 4.5, 0.5), (100, 3, 0.4), (200, 2.5, 0.15)]
    for k, (cells, thinness, brightness) in enumerate(across):
        if cells > size:
            web += 0.6 * np.float32(brightness) / (1 + np.float32(0.5 * thinness))
            continue
        noise = noise_field(streams(20 + k), size, r.shape[1], cells)
        web += _lines(noise, thinness) * np.float32(brightness)
        rough += np.float32(0.2) * noise
    return rough, 0.6 * web


def draw_vessels(rng: np.random.Generator, count: int, shape: Shape) -> np.ndarray:
    """Branching vessels that run from the chest wall towards the nipple, 0..1."""
    size, columns = shape.depth.shape
    canvas = np.zeros((size, columns), np.uint8)
    for _ in range(count):
        start_x, start_y = rng.uniform(0, 0.25) * shape.width, rng.uniform(0.12, 0.9)
        heading = np.arctan2(shape.nipple[1] - start_y, shape.nipple[0] - start_x) + rng.normal(0, 0.35)
        width, level = rng.uniform(0.0022, 0.0055), rng.uniform(0.4, 1.0)
        steps = int(rng.integers(30, 100))
        turns = cv2.GaussianBlur(rng.normal(0, 0.13, (steps + 8, 1)).astype(np.float64), (1, 7), 1.5)[:, 0]
        for branch in range(2):
            angle = heading + np.cumsum(turns[: steps if branch == 0 else steps // 2]) * (1 if branch == 0 else -1.3)
            path_x = start_x + np.cumsum(0.009 * np.cos(angle))
            path_y = start_y + np.cumsum(0.009 * np.sin(angle))
            points = np.stack([path_x, path_y], 1) * size * 16
            pixels = width * size
            cv2.polylines(canvas, [points.astype(np.int32)], False, int(255 * level * min(pixels, 1)),
                          max(round(pixels), 1), cv2.LINE_AA, 4)  # fmt: skip
            middle = len(path_x) // 3
            start_x, start_y, width = path_x[middle], path_y[middle], width * 0.7
    vessels = cv2.GaussianBlur(canvas, (0, 0), max(0.0012 * size, 0.3)).astype(np.float32) / 255
    return vessels * smooth_step(shape.depth / 0.02)


@dataclass(frozen=True)
class Cone:
    """Region of the gland, behind the nipple; lengths in units of H."""

    x: float
    y: float
    reach: float

    def field(
        self, shape: Shape, character: Character, clouds: np.ndarray, rough: np.ndarray, web: np.ndarray
    ) -> np.ndarray:
        """The cone, roughened; higher values are more likely gland, [H, U]."""
        along = ((shape.x - np.float32(self.x)) / np.float32(self.reach)) ** 2
        across = ((shape.y - np.float32(self.y)) / np.float32(0.3 + 0.1 * character.gland_fraction)) ** 2
        field = 0.4 * clouds + 0.16 * rough + 0.2 * web - 1.2 * (along + across)
        return field - (2.0 * (1 - smooth_step(shape.depth / 0.08)) + 1.5 * shape.pectoral)


def draw_cone(rng: np.random.Generator, shape: Shape) -> Cone:
    reach = shape.width * rng.uniform(0.5, 0.75)
    x = shape.nipple[0] - reach * rng.uniform(0.7, 0.95)
    return Cone(x, shape.nipple[1] - rng.uniform(0.0, 0.1), reach)


def fill_gland(field: np.ndarray, shape: Shape, character: Character, softness: float) -> np.ndarray:
    """Amount of gland 0..1, [..., H, U]: `field` thresholded to give the wanted share of the breast."""
    probe = field[..., ::8, ::8][..., shape.breast[::8, ::8]]
    level = np.quantile(probe, 1 - character.gland_fraction)
    return smooth_step((field - np.float32(level)) / np.float32(softness) + 0.42) * shape.breast


def make_tissue(seed: int, view: int, character: Character, shape: Shape) -> Tissue:
    """Draw the layers of one view, number `view` of the data set `seed`."""
    size, columns = shape.depth.shape
    streams = partial(generator, seed, Purpose.PHANTOM_TISSUE, view)
    clouds = octaves(partial(streams, CLOUDS), size, columns, [5, 10, 20], [1.0, 0.7, 0.4])
    mottle = octaves(partial(streams, MOTTLE), size, columns, [40, 80, 160], [0.8, 0.5, 0.35])
    rough, web = fibres(partial(streams, FIBRES), size, shape, 0.6 * clouds)
    rng = generator(seed, Purpose.PHANTOM_GLAND, view)
    cone = draw_cone(rng, shape)
    gland = fill_gland(cone.field(shape, character, clouds, rough, web), shape, character, rng.uniform(1.3, 2.4))
    return Tissue(gland, web, rough, draw_vessels(rng, character.vessels, shape), clouds, mottle)


def skin(shape: Shape, width: float) -> np.ndarray:
    """A thin bright line along the skin, 0..1 [H, U]."""
    return np.exp(-((shape.depth / np.float32(width)) ** 2)) * shape.breast


def low_energy_background(rng: np.random.Generator, character: Character, shape: Shape, tissue: Tissue) -> np.ndarray:
    """The low-energy image without lesions, [H, U]."""
    strands = (tissue.web - 0.45) * (0.27 + 0.06 * tissue.gland) * np.float32(character.strands)
    strands *= 1 - 0.6 * shape.pectoral
    image = 0.24 + 0.35 * tissue.gland * np.clip(0.8 + 0.16 * tissue.clouds + 0.10 * tissue.rough, 0.2, 2) + strands
    image += 0.020 * tissue.mottle + 0.025 * tissue.clouds + tissue.rough * (0.028 + 0.05 * tissue.gland)
    image += np.float32(rng.uniform(0.03, 0.12)) * tissue.vessels
    image *= 0.68 + 0.32 * smooth_step(shape.depth / np.float32(character.shelf))
    frequency, level = np.float32(rng.uniform(60, 160)), np.float32(rng.uniform(0.03, 0.22))
    if shape.pectoral.any():  # in oblique views
        streaks = np.sin(shape.muscle_depth * frequency + 2 * tissue.clouds)
        fade = np.clip(1.15 - shape.y, 0, 1)
        muscle = fade * level + 0.35 * np.clip(shape.muscle_depth, 0, 0.25) + 0.015 * streaks
        image += shape.pectoral * muscle
    image += np.float32(rng.uniform(0.05, 0.45)) * skin(shape, rng.uniform(0.004, 0.016))
    return image * (1 - 0.75 * shape.fold)


def subtracted_background(
    rng: np.random.Generator, character: Character, shape: Shape, tissue: Tissue, low_energy: np.ndarray
) -> np.ndarray:
    """The subtracted image without lesions, [H, U].

    What remains after subtraction: the compression shelf, skin, imperfectly cancelled tissue, the relief of motion
    between the two exposures, vessels and enhancing parenchyma.
    """
    size, columns = shape.depth.shape
    taper = 0.55 + 0.45 * np.minimum(shape.x / np.float32(0.5 * shape.width), 1)
    line = np.float32(character.shelf) * taper * (1 + 0.08 * tissue.clouds)
    coarse = cv2.resize(shape.depth, (max(columns * 24 // size, 2), 24), interpolation=cv2.INTER_AREA)
    within = cv2.resize(coarse, (columns, size), interpolation=cv2.INTER_CUBIC) - line  # rounder than the skin
    inside = smooth_step(within / np.float32(rng.uniform(0.015, 0.08)) + 0.5)
    front = np.float32(0.35) + np.float32(0.65) * smooth_step(shape.x / np.float32(0.75 * shape.width))
    fading = front * np.exp(-np.maximum(within, 0) / np.float32(rng.uniform(0.06, 0.22)))
    step = max(rng.uniform(-0.02, 0.09), 0.0)
    image = np.float32(0.135) + inside * (np.float32(step) + np.float32(character.glow) * fading)
    image += 0.008 * tissue.mottle + np.float32(0.010) * tissue.clouds * (1 + 1.5 * (1 - inside))
    image += np.float32(rng.normal(0, 0.08)) * (cv2.GaussianBlur(low_energy, (0, 0), 0.02 * size) - 0.3)
    image -= np.float32(rng.normal(0.03, 0.05)) * (tissue.web - 0.45)

    # Motion leaves a bright and a dark edge.
    shift, direction = rng.uniform(0.0025, 0.007), rng.normal(np.pi / 2, 0.6)
    matrix = np.array([[1, 0, shift * size * np.cos(direction)], [0, 1, shift * size * np.sin(direction)]])
    moved = cv2.warpAffine(low_energy, matrix, (columns, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    where = 0.3 + smooth_step(0.5 + 0.4 * tissue.clouds[::-1, ::-1])
    relief = np.float32(min(rng.gamma(1.3, 0.38), 1.3)) * where * (low_energy - moved)
    image += np.clip(relief, -0.25, 0.25) * smooth_step(shape.depth / 0.02)

    # Parenchyma enhances in soft patches, most where the breast is thickest behind the shelf.
    patches = cv2.GaussianBlur(tissue.gland, (0, 0), 0.008 * size)
    patches = patches * np.clip(0.5 + 0.4 * tissue.clouds + 0.35 * tissue.rough + 0.25 * tissue.mottle, 0, 2.5)
    image += np.float32(character.enhancement) * patches * (0.3 + 0.7 * inside)
    image += np.float32(rng.uniform(0.02, 0.10)) * tissue.vessels
    image += shape.pectoral * np.float32(rng.normal(0, 0.012))
    rim = rng.gamma(1.2, 0.2) * smooth_step(0.5 + 0.5 * tissue.clouds)
    image += rim * skin(shape, rng.uniform(0.002, 0.009))
    return image * (1 - 0.75 * shape.fold)
