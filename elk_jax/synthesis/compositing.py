"""Pasting painted windows back into the canvas: grey level, feathered border, native depth.

Shapes: H, W canvas in pixels; S side of the square window; R side of the model's picture.
Canvases are raw pixels, [H, W] uint8, uint16 or float in [0, 1]; pictures of the model are float32 in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np

from elk_jax.errors import UserError
from elk_jax.images.windows import Window, box_mask, cut
from elk_jax.synthesis.grain import match_grain

FEATHER = 0.12
"""Distance inside its border over which a painted lesion fades in, as a share of the box's shorter side; at least a
pixel."""


def white_of(pixels: np.ndarray) -> float:
    """The value of white: 255, 65535, or 1 for float pixels."""
    return float(np.iinfo(pixels.dtype).max) if np.issubdtype(pixels.dtype, np.integer) else 1.0


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Raw pixels -> float32 in [0, 1]."""
    return (pixels.astype(np.float32) * np.float32(1 / white_of(pixels))).clip(0, 1)


def to_model(image: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A window [S, S] in [0, 1] and its mask [S, S] bool at the model's size: float32 [R, R] and bool [R, R].

    A model pixel is masked if any part of it is, so that nothing of the painted area remains visible.
    UserError for a mask without pixels.
    """
    if not mask.any():
        raise UserError("a mask without pixels: nothing to paint", where="mask", todo="give a box inside the window")
    if image.shape == (size, size):
        return image.astype(np.float32), mask.astype(bool)
    share = _resize(mask.astype(np.float32), size)
    return _resize(image.astype(np.float32), size).clip(0, 1), share > 1e-6


def from_model(painted: np.ndarray, size: int) -> np.ndarray:
    """A painted picture [R, R] in [0, 1] at the window's size: float32 [S, S]."""
    return painted.astype(np.float32) if painted.shape == (size, size) else _resize(painted, size).clip(0, 1)


def grey_shift(known: np.ndarray, painted: np.ndarray, region: np.ndarray) -> float:
    """The value to add to `painted` to match `known`: the median difference in `region`; 0 if that is empty.

    All [S, S]; region bool: breast pixels outside the painted area. Source: Montoya-del-Angel et al. 2024.
    """
    return float(np.median(known[region].astype(np.float64) - painted[region])) if region.any() else 0.0


def feather_weights(mask: np.ndarray, inside: float) -> np.ndarray:
    """Opacity of the painted picture: [S, S] float32, rising smoothly from 0 at the border of mask [S, S] bool to 1 at
    `inside` px (above 0) within it. The window's edge is a border too, since the canvas lies beyond it.
    """
    framed = np.pad(mask, 1).astype(np.uint8)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # Distances are between pixel centres, the border lies half a pixel before the first one inside.
    ramp = np.clip((depth - 0.5) / inside, 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def paste(
    canvas: np.ndarray, painted: np.ndarray, window: Window, weights: np.ndarray, shift: float = 0.0
) -> np.ndarray:
    """A copy of canvas [H, W] with the painted window blended in; pixels with weight 0 are unchanged.

    painted: [S, S] in [0, 1]. weights: [S, S] in [0, 1]. shift: added to painted first. The dtype is the canvas's;
    integers are rounded, all values clipped to black and white.
    UserError if the window extends beyond the canvas.
    """
    height, width = canvas.shape
    x0, y0, x1, y1 = window
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        what = f"the canvas of {width} x {height} px does not contain the window {x0}, {y0}, {x1}, {y1}"
        raise UserError(what, where="window")
    white = white_of(canvas)
    result = canvas.copy()
    part = result[y0:y1, x0:x1]
    known = part.astype(np.float64)
    new = np.clip((painted.astype(np.float64) + shift) * white, 0, white)
    blended = known + weights * (new - known)
    if np.issubdtype(canvas.dtype, np.integer):
        blended = np.round(blended)
    part[...] = np.where(weights > 0, blended.astype(canvas.dtype), part)
    return result


def paste_lesion(
    canvas: np.ndarray,
    painted: np.ndarray,
    window: Window,
    box: Window,
    breast: np.ndarray,
    *,
    whole_window: bool = False,
    grain: np.random.Generator | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Paste a painted lesion into a canvas [H, W]. It fades in inside the box, so nothing outside changes.

    painted: [R, R] in [0, 1], the whole window at the model's size.
    window: in the pixels of the canvas; box: the painted area, in the pixels of the window.
    breast: [H, W] bool, of the canvas.
    whole_window: paste the whole window as in the published system, with the same correction and no feathering.
    grain: random generator for the fine texture added to a smooth lesion (`grain.match_grain`); None: none is added.

    Returns the new canvas and {"grey_shift": the value added to the painted picture, as a share of white}.
    """
    size = window[2] - window[0]
    if window[3] - window[1] != size:
        raise ValueError(f"the window {window} is not square")
    mask = box_mask(np.array(box, np.float64), size, size)
    picture = from_model(painted, size)
    known = to_grey(cut(canvas, window))
    if grain is not None:
        x0, y0, x1, y1 = window
        reach = size // 2  # a large lesion leaves little tissue in its own window
        around = (x0 - reach, y0 - reach, x1 + reach, y1 + reach)
        visible = cut(breast, around)
        visible[reach : reach + size, reach : reach + size] &= ~mask
        picture = match_grain(picture, mask, to_grey(cut(canvas, around)), visible, grain)
    shift = grey_shift(known, picture, cut(breast, window) & ~mask)
    inside = max(1.0, FEATHER * min(box[2] - box[0], box[3] - box[1]))
    weights = np.ones((size, size), np.float32) if whole_window else feather_weights(mask, inside)
    return paste(canvas, picture, window, weights, shift), {"grey_shift": shift}


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """[S, S] float -> [size, size] float32: area averages when shrinking, cubic interpolation when growing."""
    shrinks = image.shape[0] > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image.astype(np.float32), (size, size), interpolation=method)
