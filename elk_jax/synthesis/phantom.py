"""Phantom contrast-enhanced mammograms: an endless, free data set that behaves like the real one.

`sample(seed, index, config)` draws one view of one patient: a low-energy image and the subtracted (recombined) image of
the same compression, pixel-aligned, with the extents of the lesions. Sizes, counts, contrasts and grey values follow
the malignant images of CDD-CESM (Khaled et al., Scientific Data 2022), padded to a square. It is drawn only from noise
and curves, without any real image.

Patients have four views: index // 4 is the patient, index % 4 the view (left CC, left MLO, right CC, right MLO). All
views of a patient share density and character, and both views of a breast share its lesions, so data must be split by
`patient_id`.

Shapes: H rows and W columns of the image; U columns of the breast's own canvas; N lesions. Boxes are xyxy
in pixels, origin at the corner of the first pixel. Grey values are float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, SHARE, Between, check
from elk_jax.randomness import Purpose, generator
from elk_jax.synthesis import phantom_distractors, phantom_lesions, phantom_tissue
from elk_jax.synthesis.phantom_shape import Shape, make_shape, smooth_step

VIEWS = (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO"))


@dataclass(frozen=True)
class BreastConfig:
    """The kind of breasts to draw, independent of the modality."""

    size: Annotated[int, Between(64, 4096)] = 512  # H
    healthy_fraction: Annotated[float, SHARE] = 0.3  # of the breasts
    lesions: Literal["realistic", "blobs"] = "realistic"  # blobs: plain Gaussian ellipses
    max_lesions: Annotated[int, Between(1, 11)] = 11
    contrast: Annotated[float, ABOVE_ZERO] = 1.0  # factor on the lesions' enhancement: below 1 is harder

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class PhantomConfig(BreastConfig):
    """The kind of phantoms to draw."""

    square: bool = True  # pad the breast to H x H (in the middle, black), else W is the breast's own width


@dataclass(frozen=True)
class Phantom:
    """One view of one phantom patient."""

    low_energy: np.ndarray  # [H, W] float32
    subtracted: np.ndarray  # [H, W] float32
    boxes: np.ndarray  # [N, 4] float32, tight around each lesion's visible extent
    lesion_map: np.ndarray  # [H, W] uint8: 0 background, k + 1 the lesion of boxes[k]
    breast: np.ndarray  # [H, W] bool
    lesion_kinds: tuple[str, ...]  # N
    patient_id: str
    laterality: str  # L or R
    view: str  # CC or MLO
    density: str  # ACR class a, b, c or d


def is_healthy(seed: int, breast: int, fraction: float) -> bool:
    """Whether a breast has no lesion. A golden-ratio sequence, so that even small sets keep the fraction."""
    start = generator(seed, Purpose.PHANTOM_HEALTHY).random()
    return (start + breast * 0.6180339887498949) % 1.0 < fraction


def patient_id(seed: int, index: int) -> str:
    """The patient of the phantom `sample(seed, index)`; different seeds have different patients."""
    return f"S{seed}P{index // len(VIEWS):05d}"


def plan_view(
    seed: int, index: int, config: BreastConfig
) -> tuple[phantom_tissue.Character, list[phantom_lesions.Plan], Shape]:
    """The plan of view `index` before any tissue is drawn: the patient's character, the breast's lesions, the outline.

    UserError for a negative `seed` or `index`.
    """
    if seed < 0 or index < 0:
        what = f"phantom seed {seed} and index {index} must not be negative"
        raise UserError(what, where="seed" if seed < 0 else "index", todo="count from 0")
    patient, breast = index // 4, index // 2
    character = phantom_tissue.make_character(generator(seed, Purpose.PHANTOM_CHARACTER, patient))
    plans: list[phantom_lesions.Plan] = []
    if not is_healthy(seed, breast, config.healthy_fraction):
        rng = generator(seed, Purpose.PHANTOM_PLANS, breast)
        plans = phantom_lesions.plan_lesions(rng, config.max_lesions, config.contrast)
    return character, plans, make_shape(generator(seed, Purpose.PHANTOM_SHAPE, index), VIEWS[index % 4][1], config.size)


def sample(seed: int, index: int, config: PhantomConfig) -> Phantom:
    """Draw view `index` of the endless data set `seed`; the same arguments give the same phantom.

    UserError for a negative `seed` or `index`. Changing `config.size` gives the same breast at another resolution;
    changing `config.lesions` gives the same breast with lesions of the other model at the same places.
    """
    laterality, view = VIEWS[index % 4]
    character, plans, shape = plan_view(seed, index, config)
    tissue = phantom_tissue.make_tissue(seed, index, character, shape)
    placed = phantom_lesions.place(seed, index, plans, shape, tissue.gland)
    drawn = [phantom_lesions.draw(plan, x, y, config.size, config.lesions) for plan, x, y in placed]

    rng = generator(seed, Purpose.PHANTOM_BACKGROUND, index)
    low_energy = phantom_tissue.low_energy_background(rng, character, shape, tissue)
    for lesion in drawn:
        phantom_lesions.add_patch(low_energy, lesion.density, lesion.row, lesion.column)
    subtracted = phantom_tissue.subtracted_background(rng, character, shape, tissue, low_energy)
    for lesion in drawn:
        phantom_lesions.add_patch(subtracted, lesion.enhancement, lesion.row, lesion.column)
    rng = generator(seed, Purpose.PHANTOM_DISTRACTORS, index)
    phantom_distractors.draw_distractors(rng, shape, view, low_energy, subtracted)
    rng = generator(seed, Purpose.PHANTOM_EXPOSURE, index)
    low_energy, subtracted = _expose(rng, shape, low_energy, subtracted)
    rng = generator(seed, Purpose.PHANTOM_NIPPLE, index)
    phantom_distractors.draw_nipple(rng, shape, low_energy, subtracted)

    lesion_map = label_extents(drawn, shape)
    layers = [np.clip(low_energy, 0, 1), np.clip(subtracted, 0, 1), lesion_map, shape.breast]
    layers = [_lay_out(layer, config, laterality) for layer in layers]
    boxes = [tight_box(layers[2] == k + 1) for k in range(len(drawn))]
    return Phantom(
        low_energy=layers[0],
        subtracted=layers[1],
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        lesion_map=layers[2],
        breast=layers[3],
        lesion_kinds=tuple(plan.kind if config.lesions == "realistic" else "blob" for plan, _, _ in placed),
        patient_id=patient_id(seed, index),
        laterality=laterality,
        view=view,
        density=character.density,
    )


def _expose(
    rng: np.random.Generator, shape: Shape, low_energy: np.ndarray, subtracted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Detector grain, display window and the black background."""
    edge = smooth_step(shape.depth / np.float32(0.003)) * shape.edge
    gamma, brightness = rng.uniform(1.0, 1.3), np.exp(rng.normal(0.06, 0.12))
    noise, gain = rng.uniform(0.014, 0.036), np.exp(rng.normal(0, 0.13))
    grain = rng.standard_normal(shape.depth.shape, dtype=np.float32)  # last: its amount depends on the size
    grain = 0.6 * grain + 0.8 * cv2.GaussianBlur(grain, (3, 3), 0.8)
    low_energy = np.float32(brightness) * np.clip(low_energy + 0.008 * grain, 0, None) ** np.float32(gamma)
    subtracted = np.float32(gain) * (subtracted + np.float32(noise) * grain)
    return (low_energy * edge).astype(np.float32), (subtracted * edge).astype(np.float32)


def label_extents(drawn: list[phantom_lesions.Lesion], shape: Shape) -> np.ndarray:
    """The visible extents of the lesions as a label map [H, U] uint8; smaller lesions are on top."""
    labels = np.zeros(shape.depth.shape, np.uint8)
    for k, lesion in enumerate(drawn):
        view, profile = phantom_lesions.window(labels, lesion.profile, lesion.row, lesion.column)
        inside, _ = phantom_lesions.window(shape.breast, lesion.profile, lesion.row, lesion.column)
        visible = min(phantom_lesions.VISIBLE, profile.max(initial=0))  # at least one pixel, however coarse
        view[(profile >= visible) & inside] = k + 1
    return labels


def _lay_out(layer: np.ndarray, config: PhantomConfig, laterality: str) -> np.ndarray:
    """Pad a canvas layer to the image's width and mirror it for the right breast."""
    spare = max(config.size - layer.shape[1], 0) if config.square else 0
    left = spare - spare // 2 if laterality == "R" else spare // 2
    image = np.zeros((layer.shape[0], layer.shape[1] + spare), layer.dtype)
    image[:, left : left + layer.shape[1]] = layer[:, ::-1] if laterality == "R" else layer
    return image


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
