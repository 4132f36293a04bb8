"""Phantom tomosynthesis: volumes, the mammogram and the synthetic mammogram of one compressed breast.

`sample(seed, index, config)` draws one view of one patient, like `phantom.sample`, with which it shares outlines,
characters and lesion plans: sheets of tissue in depth with lesions and calcifications between them
(`phantom_sheets.py`), and a simulated scan (`tomosynthesis.py`). Sizes, counts and grey values follow single slices of
BCS-DBT (Buda et al., JAMA Netw Open 2021). No real image is used.

- slices: by filtered shift-and-add, with ghosts, shadows and the noise of N projections;
- mammogram: the sum over all depths, at the full dose, with sharp calcifications;
- synthetic: the mean of the slices plus what stands out in one of them; smoother.

All three show the breast at the same pixels. Shapes: H rows, W columns (a multiple of 8, 0.8 H at least; the chest wall
is at the image's border), D slices, N lesions. Boxes are xyxy in pixels, grey values float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import cv2
import numpy as np

from elk_jax.fields import ABOVE_ZERO, AtLeast, Between
from elk_jax.randomness import Purpose, generator
from elk_jax.synthesis import phantom_sheets, tomosynthesis
from elk_jax.synthesis.phantom import VIEWS, BreastConfig, label_extents, patient_id, plan_view, tight_box
from elk_jax.synthesis.phantom_shape import MAX_WIDTH, Shape, smooth_step
from elk_jax.synthesis.phantom_sheets import HEIGHT_MM

LESION_SCALE = 0.68  # relative to lesions of `phantom.sample`: the boxes of BCS-DBT are smaller
NOISE = 0.03  # of one projection


@dataclass(frozen=True)
class VolumeConfig(BreastConfig):
    """The kind of phantom volumes to draw."""

    size: Annotated[int, Between(64, 4096)] = 256
    max_lesions: Annotated[int, Between(1, 11)] = 3
    slices: Annotated[int, Between(2, 200)] = 24
    projections: Annotated[int, AtLeast(2)] = 15
    half_angle: Annotated[float, ABOVE_ZERO, Between(0, 45)] = 7.5  # degrees


@dataclass(frozen=True)
class PhantomVolume:
    """One view of one phantom patient. Images are drawn on demand."""

    patient_id: str
    laterality: str  # L or R
    view: str  # CC or MLO
    density: str  # ACR class a, b, c or d
    width: int
    spacing: tuple[float, float]  # mm of a pixel, and from slice to slice
    boxes: np.ndarray  # [N, 4] float32
    heights: np.ndarray  # [N] mm above the middle of the breast
    half_depths: np.ndarray  # [N] mm, half the extent in depth
    lesion_kinds: tuple[str, ...]  # N
    slice_heights: np.ndarray  # [D] mm
    scan: tomosynthesis.Scan
    mammogram: np.ndarray  # [H, W]
    look: Look

    @property
    def central(self) -> np.ndarray:
        """The slice in which each lesion is in focus, [N]."""
        return np.abs(self.slice_heights[:, None] - self.heights).argmin(0).reshape(-1)

    @property
    def study(self) -> str:
        """A name for the patient's only exam."""
        return self.patient_id.replace("P", "E")

    def slices(self, positions: Sequence[int] | None = None) -> np.ndarray:
        """The slices at `positions` (None: all), [n, H, W]. A slice does not depend on which others are drawn."""
        heights = self.slice_heights if positions is None else self.slice_heights[list(positions)]
        return self.look.slices(tomosynthesis.reconstruct(self.scan, heights))

    @cached_property
    def synthetic(self) -> np.ndarray:
        """The synthetic mammogram, [H, W]."""
        return self.look.synthetic(tomosynthesis.reconstruct(self.scan, self.slice_heights))


@dataclass(frozen=True)
class Look:
    """Conversion from attenuation to displayed grey values, the same for all slices of a volume."""

    outline: np.ndarray  # [H, U] 0..1 falls to 0 outside of the breast
    thick: np.ndarray  # [H, U] share of the full thickness that is breast
    mirror: bool
    width: int
    gamma: float
    brightness: float
    contrast: float  # of slices

    def slices(self, raw: np.ndarray) -> np.ndarray:
        """[n, H, U] -> [n, H, W]."""
        low = np.float32(tomosynthesis.LOW_FREQUENCIES * 0.30)
        grey = 0.19 + np.float32(self.contrast) * (raw - low * self.thick)
        return self._finish(grey)

    def mammogram(self, raw: np.ndarray) -> np.ndarray:
        return self._finish(0.2 + 0.7 * (raw - 0.30 * self.thick))

    def synthetic(self, raw: np.ndarray) -> np.ndarray:
        mean = raw.mean(0)
        detail = raw - np.stack([cv2.GaussianBlur(layer, (0, 0), 0.02 * raw.shape[1]) for layer in raw])
        low = np.float32(tomosynthesis.LOW_FREQUENCIES * 0.30)
        both = np.float32(self.contrast) * (mean - low * self.thick) + 0.7 * detail.max(0)
        return self._finish(0.12 + cv2.GaussianBlur(both, (0, 0), max(0.0025 * raw.shape[1], 0.6)))

    def _finish(self, grey: np.ndarray) -> np.ndarray:
        grey = np.float32(self.brightness) * np.clip(grey, 0, None) ** np.float32(self.gamma) * self.outline
        image = np.zeros((*grey.shape[:-1], self.width), np.float32)
        image[..., : grey.shape[-1]] = np.clip(grey, 0, 1)
        return image[..., ::-1].copy() if self.mirror else image


def image_width(size: int) -> int:
    """W of images of H = `size`."""
    return int(np.ceil(MAX_WIDTH * size / 8)) * 8


def sample(seed: int, index: int, config: VolumeConfig) -> PhantomVolume:
    """Draw view `index` of the endless data set `seed`; the same arguments give the same volume.

    The numbers of slices and projections and their angle change the scan, not the breast; `size` changes the
    resolution. UserError for a negative `seed` or `index`.
    """
    laterality, view = VIEWS[index % 4]
    character, plans, shape = plan_view(seed, index, config)
    plans = [
        replace(plan, radius=max(plan.radius * LESION_SCALE, 0.013), density=plan.density * config.contrast)
        for plan in plans
    ]
    thick = phantom_sheets.thickness(generator(seed, Purpose.PHANTOM_VOLUME, index // 2, 2))
    tissue, gland = phantom_sheets.sheets(seed, index, character, shape, thick)
    size, columns = shape.depth.shape
    solids = phantom_sheets.solids(seed, index, plans, shape, gland, thick, size, config.lesions)
    stacks = [tissue, *phantom_sheets.calcifications(seed, index, shape, thick)]
    for solid in solids:
        stacks += phantom_sheets.lesion_stacks(solid, size, columns, config.lesions)

    geometry = tomosynthesis.Geometry(HEIGHT_MM / size, config.projections, config.half_angle)
    scan = tomosynthesis.project(stacks, geometry, (size, columns), thick / 2)
    rng = generator(seed, Purpose.PHANTOM_VOLUME, index, 3)
    gamma, brightness, contrast = rng.uniform(0.95, 1.1), np.exp(rng.normal(0, 0.08)), np.exp(rng.normal(0.6, 0.22))
    full = np.zeros((size, columns), np.float32)
    for stack in stacks:
        full[:, stack.column : stack.column + stack.images.shape[2]] += stack.images.sum(0)
    noise = rng.standard_normal((1 + config.projections, *tomosynthesis.noise_shape(scan)[1:]), dtype=np.float32)
    # One exposure has the dose of all projections, so noise is lower by the root of their number.
    full += np.float32(NOISE / config.projections**0.5) * noise[0, :size]
    scan = tomosynthesis.with_noise(scan, np.float32(NOISE) * noise[1:])

    look = Look(
        outline=smooth_step(shape.depth / np.float32(0.003)) * shape.edge,
        thick=_share_of_thickness(shape, thick),
        mirror=laterality == "R",
        width=image_width(config.size),
        gamma=float(gamma),
        brightness=float(brightness),
        contrast=float(contrast),
    )
    extents = label_extents([solid.section for solid in solids], shape)
    labels = look._finish(np.zeros_like(full)).astype(np.uint8)
    labels[:, :columns] = extents
    labels = labels[:, ::-1] if look.mirror else labels
    boxes = [tight_box(labels == k + 1) for k in range(len(solids))]
    step = thick / config.slices
    return PhantomVolume(
        patient_id=patient_id(seed, index),
        laterality=laterality,
        view=view,
        density=character.density,
        width=look.width,
        spacing=(geometry.pixel, step),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        heights=np.array([solid.height for solid in solids], np.float64),
        half_depths=np.array([solid.half_depth for solid in solids], np.float64),
        lesion_kinds=tuple(solid.plan.kind if config.lesions == "realistic" else "blob" for solid in solids),
        slice_heights=(np.arange(config.slices) + 0.5 - config.slices / 2) * step,
        scan=scan,
        mammogram=look.mammogram(full),
        look=look,
    )


def _share_of_thickness(shape: Shape, thick: float) -> np.ndarray:
    """Share of the full thickness that is breast, [H, U] 0..1: less at the rounded edge."""
    behind = np.clip(1 - shape.depth * np.float32(2 * HEIGHT_MM / thick), 0, 1)
    return np.sqrt(1 - behind**2)
