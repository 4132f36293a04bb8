"""The outline of a phantom breast: skin, nipple, pectoral muscle, axillary fold.

Shapes: H rows and U columns of the drawing canvas, which is the breast's bounding box. Everything is drawn as a left
breast: chest wall at column 0, nipple on the right. Lengths are in units of H, so that a breast looks the same at every
resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

MAX_WIDTH = 0.8  # of H; no breast is wider, see outline()


@dataclass(frozen=True)
class Shape:
    """Geometry of one view: float32 [H, U] masks and distances, points (x, y), lengths in units of H."""

    breast: np.ndarray  # bool
    edge: np.ndarray  # 0..1, falls to 0 within one pixel of the skin: a smooth outline
    depth: np.ndarray  # distance to the skin; image borders (chest wall, cut axilla) do not count as skin
    x: np.ndarray  # [1, U] pixel centres
    y: np.ndarray  # [H, 1]
    nipple: tuple[float, float]
    width: float  # chest wall to nipple
    pectoral: np.ndarray  # 0..1, the muscle's soft-edged mask (zero in CC views)
    muscle_depth: np.ndarray  # signed distance into the muscle, -1 everywhere in CC views
    fold: np.ndarray  # 0..1, shadow of the fold below the axilla (zero where there is none)


def smooth_step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between (the cubic 3x^2 - 2x^3)."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def outline(rng: np.random.Generator, view: str) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The skin line as x(y): (y [n], x [n], nipple height, width), in units of H.

    Widths follow CDD-CESM: a breast is 0.37 to 0.74 as wide as it is high (5 to 95 %), and fills the
    image's height.
    """
    y = np.linspace(0, 1, 257)
    upper, lower = rng.uniform(1.6, 2.4, 2)
    roundness = rng.uniform(1.5, 2.2)
    if view == "CC":
        width = float(np.clip(rng.normal(0.53, 0.07), 0.36, 0.7))
        nipple = float(np.clip(rng.normal(0.51, 0.05), 0.38, 0.64))
        up = np.clip((nipple - y) / nipple, 0, 1)
        down = np.clip((y - nipple) / (1 - nipple), 0, 1)
        x = width * np.where(y < nipple, 1 - up**upper, 1 - down**lower) ** (1 / roundness)
    else:
        width = float(np.clip(rng.normal(0.56, 0.085), 0.37, 0.74))
        nipple = float(np.clip(rng.normal(0.66, 0.06), 0.5, 0.8))
        top = rng.uniform(0.3, 0.75) * width
        rise = np.sin(np.pi / 2 * np.clip(y / nipple, 0, 1) ** rng.uniform(0.9, 1.5))
        waist = rng.uniform(0, 0.12) * np.exp(-(((y - rng.uniform(0.1, 0.25)) / 0.09) ** 2))
        above = top + (width - top) * rise - width * waist
        down = np.clip((y - nipple) / (1 - nipple), 0, 1) * rng.uniform(0.88, 1.0)
        x = np.where(y < nipple, above, width * (1 - down**lower) ** (1 / roundness))
    ripple = sum(rng.normal(0, 0.004 / k) * np.sin(np.pi * k * y + rng.uniform(0, 6)) for k in (2, 3, 5))
    return y, np.maximum(x + ripple * (x > 0.02), 0), nipple, width


def make_shape(rng: np.random.Generator, view: str, size: int) -> Shape:
    """Draw the outline of one view (`CC` or `MLO`) on a canvas of `size` rows."""
    skin_y, skin_x, nipple_y, width = outline(rng, view)
    nipple = (float(np.interp(nipple_y, skin_y, skin_x)), nipple_y)
    columns = int(np.ceil((skin_x.max() + 0.03) * size))  # room for the nipple beyond the skin
    y = ((np.arange(size, dtype=np.float32) + 0.5) / size)[:, None]
    x = ((np.arange(columns, dtype=np.float32) + 0.5) / size)[None, :]
    edge = np.interp(y[:, 0], skin_y, skin_x).astype(np.float32)[:, None]

    fold = np.zeros((size, columns), np.float32)
    has_flap = rng.random() < 0.4
    flap_height, flap_width = rng.uniform(0.1, 0.22), rng.uniform(0.6, 0.95) * width
    if view == "MLO" and has_flap:
        flap = flap_width * np.clip(1 - np.clip(y / flap_height, 0, 1) ** 6, 0, 1) ** 0.3
        notch = rng.uniform(0.1, 0.3) * width * np.exp(-(((y - flap_height - 0.02) / 0.025) ** 2))
        edge = np.maximum(edge - notch, flap).astype(np.float32)
        line = flap_height + 0.02 + 0.15 * (flap_width - x) * (x < flap_width)
        fold = np.exp(-(((y - line) / rng.uniform(0.008, 0.016)) ** 2)) * smooth_step(
            (x - 0.35 * flap_width) / (0.4 * flap_width)
        )
    edge = cv2.GaussianBlur(edge, (0, 0), 0.006 * size, borderType=cv2.BORDER_REPLICATE)
    edge = edge + np.float32(rng.uniform(-0.005, 0.022)) * np.exp(-(((y - nipple_y) / rng.uniform(0.012, 0.022)) ** 4))
    breast = x < edge
    depth = cv2.distanceTransform(breast.astype(np.uint8), cv2.DIST_L2, 5) / np.float32(size)

    muscle_depth = np.full((size, columns), -1, np.float32)
    pectoral = np.zeros((size, columns), np.float32)
    muscle_x, muscle_y = rng.uniform(0.25, 0.6) * width, rng.uniform(0.4, 0.8)
    bulge, softness = rng.uniform(0.0, 0.06), rng.uniform(0.006, 0.03)
    if view == "MLO":
        norm = np.hypot(1 / muscle_x, 1 / muscle_y)
        plane = (1 - x / muscle_x - y / muscle_y) / norm
        muscle_depth = (plane + bulge * np.sin(np.pi * np.clip(y / muscle_y, 0, 1))).astype(np.float32)
        pectoral = smooth_step(muscle_depth / softness + 0.5) * breast
    return Shape(
        breast=breast,
        edge=np.clip((edge - x) * size, 0, 1),
        depth=depth,
        x=x,
        y=y,
        nipple=nipple,
        width=width,
        pectoral=pectoral.astype(np.float32),
        muscle_depth=muscle_depth,
        fold=fold.astype(np.float32),
    )
