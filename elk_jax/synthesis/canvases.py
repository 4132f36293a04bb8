"""Healthy tissue for painting lesions: from training patients only, inside the breast, clear of all annotated boxes.

Shapes: H, W image size in pixels; S side of the square window; N boxes of one image, xyxy, px.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window, blocked_by, count_covered, draw_corner

BREAST_SHARE = 0.6
"""Share of a window's pixels that must be breast. Windows of breast only would never show skin and air."""


def canvas_positions(
    infos: Sequence[ImageInfo], patients: Collection[str], size: int, lesion_free: bool = False
) -> tuple[int, ...]:
    """Positions of the images that can be canvases: from `patients`, and at least `size` pixels on both sides.

    patients: those of the training split. A canvas of a test patient would carry that patient's tissue into training.
    lesion_free: only images without any box (ignore boxes count); else only the windows are free of lesions.
    UserError, with the reason, if nothing is left.
    """
    allowed = set(patients)
    own = [position for position, info in enumerate(infos) if info.patient_id in allowed]
    if not own:
        todo = "give images of patients on whom the inpainter was trained"
        raise UserError("no canvas belongs to a training patient", where=f"{len(infos)} images", todo=todo)
    healthy = [position for position in own if not (lesion_free and len(infos[position].boxes))]
    if not healthy:
        todo = "allow windows beside the lesions, or add images"
        raise UserError(f"none of the {len(own)} canvases is lesion-free", where="lesion_free", todo=todo)
    wide = [position for position in healthy if min(infos[position].width, infos[position].height) >= size]
    if not wide:
        width, height = max(((infos[p].width, infos[p].height) for p in healthy), key=min)
        raise UserError(
            f"every canvas is smaller than the window of {size} px, the largest has {width} x {height} px",
            where=f"{len(infos)} images",
            todo="use larger images or a smaller window",
        )
    return tuple(wide)


def healthy_window(
    breast: np.ndarray, boxes: np.ndarray, size: int, rng: np.random.Generator, share: float = BREAST_SHARE
) -> Window | None:
    """A random window of `size` x `size` pixels; all that fit are equally likely. None if none fits.

    breast: [H, W] bool. boxes: [N, 4] of all annotations, including ignored ones: none may touch the window.
    share: share of the window's pixels that must be breast.
    UserError if the image is smaller than the window.
    """
    height, width = breast.shape
    if min(height, width) < size:
        raise UserError(f"the canvas of {width} x {height} px is smaller than the window of {size} px")
    clear = count_covered(blocked_by(boxes, height, width), size, size) == 0
    enough = count_covered(breast, size, size) >= share * size * size
    corner = draw_corner(clear & enough, rng)
    return None if corner is None else (*corner, corner[0] + size, corner[1] + size)
