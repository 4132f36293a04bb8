"""A phantom breast in depth: sheets of tissue, and the small structures between them.

Shapes: H rows and U columns of the drawing canvas, S sheets. Heights are in mm above the middle of the compressed
breast, other lengths in units of H. All values are attenuation, in units of the total of a projection of the breast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from elk_jax.randomness import Purpose, generator
from elk_jax.synthesis import phantom_lesions, phantom_tissue
from elk_jax.synthesis.phantom_distractors import point_inside, spot
from elk_jax.synthesis.phantom_lesions import Lesion, Plan
from elk_jax.synthesis.phantom_shape import Shape, smooth_step
from elk_jax.synthesis.phantom_tissue import Character
from elk_jax.synthesis.tomosynthesis import Stack

SHEETS = 12
SHEET_CONTRAST = 3.0  # of strands in one sheet; in a projection, those of all sheets average out
HEIGHT_MM = 240.0
"""Length of H, as in BCS-DBT."""

_CUTS = np.array([-0.75, -0.25, 0.25, 0.75])
"""Heights at which a lesion is divided into layers, in units of its half extent in depth."""


@dataclass(frozen=True)
class Solid:
    """A lesion in three dimensions, with its largest section as drawn and its half extent in depth in mm."""

    plan: Plan
    x: float
    y: float
    height: float
    half_depth: float
    section: Lesion


def thickness(rng: np.random.Generator) -> float:
    """Thickness of the compressed breast in mm, as in screening."""
    return float(np.clip(rng.normal(55, 10), 32, 80))


def inset(height: np.ndarray | float, thick: float) -> np.ndarray:
    """Distance of the skin behind the outline at a height, in units of H: compressed breasts are round at the edge."""
    half = thick / 2
    return (half - np.sqrt(np.maximum(half**2 - np.asarray(height, np.float64) ** 2, 0))) / HEIGHT_MM


def sheets(seed: int, view: int, character: Character, shape: Shape, thick: float) -> tuple[Stack, np.ndarray]:
    """All tissue without lesions, and the gland averaged over the sheets, [H, U] 0..1.

    A structure is as deep as it is wide: the coarsest clouds span the whole breast, while each sheet has its own
    fibres.
    """
    size, columns = shape.depth.shape
    heights = (np.arange(SHEETS) + 0.5 - SHEETS / 2) * (thick / SHEETS)
    streams = partial(generator, seed, Purpose.PHANTOM_SHEET, view)
    rng = generator(seed, Purpose.PHANTOM_VOLUME, view, 0)
    cone, softness = phantom_tissue.draw_cone(rng, shape), rng.uniform(0.9, 1.6)
    skin_level, skin_width, muscle = rng.uniform(0.5, 1.4), rng.uniform(0.004, 0.008), rng.uniform(0.15, 0.5)
    whole = phantom_tissue.octaves(partial(streams, SHEETS), size, columns, [5, 10], [1.0, 0.5])
    fields, fine = [], []
    for number, height in enumerate(heights):
        clouds = phantom_tissue.octaves(
            partial(_shifted, partial(streams, number), 40), size, columns, [10, 20, 40], [0.6, 0.5, 0.3]
        )
        rough, web = phantom_tissue.fibres(partial(streams, number), size, shape, 0.4 * (whole + clouds))
        field = cone.field(shape, character, whole + clouds, rough, web)
        fields.append(field - 1.2 * (height / (0.45 * thick)) ** 2)
        fine.append((web - np.float32(0.5) + 1.5 * np.maximum(web - np.float32(0.6), 0), rough))
    glands = phantom_tissue.fill_gland(np.stack(fields), shape, character, softness)
    flesh = shape.pectoral * np.float32(muscle) * (0.6 + 3 * np.clip(shape.muscle_depth, 0, 0.25))
    vessels = phantom_tissue.draw_vessels(streams(SHEETS, 30), character.vessels, shape)
    vessel_sheet = int(rng.integers(2, SHEETS - 2))
    images = np.empty((SHEETS, size, columns), np.float32)
    for number, height in enumerate(heights):
        (web, rough), gland = fine[number], glands[number]
        near, far = inset(abs(height) - thick / SHEETS / 2, thick), inset(abs(height) + thick / SHEETS / 2, thick)
        depth = shape.depth - np.float32(0.5 * (near + far))
        slant = np.float32(skin_width + far - near)  # the rounded skin runs obliquely through the sheet
        strands = SHEET_CONTRAST * (
            web * (0.3 + 0.1 * gland) * np.float32(character.strands) + rough * (0.02 + 0.05 * gland)
        )
        image = 0.30 + 0.5 * gland + strands * (1 - 0.7 * shape.pectoral) + flesh
        if number == vessel_sheet:
            image = image + 0.8 * vessels
        image = np.clip(image, 0.05, None) * smooth_step(depth / (0.5 * slant) + 0.5)
        image += np.float32(skin_level) * (skin_width / slant) * np.exp(-((depth / slant) ** 2))
        images[number] = image * (shape.edge / SHEETS)
    return Stack(images, heights), glands.mean(0)


def _shifted(streams: phantom_tissue.Streams, first: int, octave: int) -> np.random.Generator:
    return streams(first + octave)


def solids(
    seed: int, view: int, plans: list[Plan], shape: Shape, gland: np.ndarray, thick: float, size: int, model: str
) -> list[Solid]:
    """The lesions of a view at their places; lesions that find no room in the plane are left out."""
    found = []
    for plan, x, y in phantom_lesions.place(seed, view, plans, shape, gland):
        rng = generator(seed, Purpose.PHANTOM_PLACES, view, plan.seed ^ 1)
        half = min(plan.radius * HEIGHT_MM * rng.uniform(0.7, 1.0), 0.35 * thick)
        room = 0.5 * thick - half
        row, column = int(y * size), int(x * size)
        below = float(shape.depth[min(row, size - 1), min(column, shape.depth.shape[1] - 1)]) * HEIGHT_MM
        if below < thick / 2:  # near the rounded edge, the breast is thinner
            room *= np.sqrt(1 - (1 - 2 * below / thick) ** 2)
        height = rng.uniform(-1, 1) * room
        found.append(Solid(plan, x, y, height, half, phantom_lesions.draw(plan, x, y, size, model)))
    return found


def lesion_stacks(solid: Solid, size: int, columns: int, model: str) -> list[Stack]:
    """The layers of one lesion; together they have its planned density."""
    stacks = []
    for cut in _CUTS:
        plan = replace(solid.plan, radius=solid.plan.radius * float(np.sqrt(1 - cut**2)))
        section = phantom_lesions.draw(plan, solid.x, solid.y, size, model)
        stacks += patch_stacks(
            section.density / len(_CUTS),
            section.row,
            section.column,
            solid.height + cut * solid.half_depth,
            size,
            columns,
        )
    return stacks


def calcifications(seed: int, view: int, shape: Shape, thick: float) -> list[Stack]:
    """Clusters of fine calcifications and single coarse ones, each at one height."""
    size, columns = shape.depth.shape
    rng = generator(seed, Purpose.PHANTOM_VOLUME, view, 1)
    stacks = []
    for coarse in (*(False for _ in range(rng.poisson(0.7))), *(True for _ in range(rng.poisson(0.5)))):
        point, spread, height = (
            point_inside(rng, shape, 0.05),
            rng.uniform(0.004, 0.02),
            rng.uniform(-0.35, 0.35) * thick,
        )
        layer = np.zeros((size, columns), np.float32)
        for _ in range(1 if coarse else int(rng.integers(4, 16))):
            radius = rng.uniform(0.003, 0.006) if coarse else rng.uniform(0.0008, 0.002)
            level, (dx, dy) = rng.uniform(0.25, 0.6), rng.normal(0, spread, 2)
            if point:
                r, row, column = spot(size, point[0] + dx, point[1] + dy, radius)
                dot = level * min(radius * size / 0.5, 1) ** 2 * np.exp(-(r**2))
                phantom_lesions.add_patch(layer, dot, row, column)
        stacks += patch_stacks(layer, 0, 0, height, size, columns)
    return stacks


def patch_stacks(patch: np.ndarray, row: int, column: int, height: float, size: int, columns: int) -> list[Stack]:
    """A patch at (row, column) of the canvas as a layer of the columns that it fills; [] if it is outside."""
    used = np.flatnonzero(patch.any(0))
    if not len(used):
        return []
    left, right = max(column + int(used[0]), 0), min(column + int(used[-1]) + 1, columns)
    if left >= right:
        return []
    layer = np.zeros((size, right - left), np.float32)
    phantom_lesions.add_patch(layer, patch, row, column - left)
    return [Stack(layer[None], np.array([height]), left)]
