"""Images with boxes for a report: a small embedded JPEG, with the boxes drawn over it as SVG.

A `Picture` is an image of a gallery; a `Strip` is a few close-ups of one lesion side by side.

Shapes: N lesions, K predictions of one image; boxes xyxy in pixels of the image.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from elk_jax.reporting.html import text

LONG_SIDE = 560  # pixels of an embedded image
QUALITY = 82
WIDE_SIDES = 900, 1200  # least and most pixels of an embedded image across the page
LEAST_SIDE = 256  # pixels of an embedded close-up; enlarging by the browser would show the blocks of the JPEG


@dataclass(frozen=True)
class Picture:
    """One image of a gallery."""

    image: np.ndarray  # [H, W], [H, W, 1] or [H, W, 3]; float in [0, 1] or uint8
    title: str
    caption: str = ""
    gt_boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))  # [N, 4]
    gt_ignore: np.ndarray | None = None  # [N] bool
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))  # [K, 4]
    scores: np.ndarray | None = None  # [K]
    gt_names: Sequence[str] = ()  # [N] written below the boxes; (): none
    names: Sequence[str] = ()  # [K] written before the scores; (): none


@dataclass(frozen=True)
class Closeup:
    """A small image; the corners of `box` [4], in pixels of the image, are marked."""

    image: np.ndarray  # [H, W] float in [0, 1] or uint8
    box: np.ndarray | None = None


@dataclass(frozen=True)
class Strip:
    """Close-ups side by side under one caption."""

    closeups: Sequence[Closeup]
    title: str
    caption: str = ""


def figure(picture: Picture) -> str:
    """The picture as a <figure> with caption; a click enlarges it."""
    height, width = picture.image.shape[:2]
    ignore = np.zeros(len(picture.gt_boxes), bool) if picture.gt_ignore is None else picture.gt_ignore
    shapes = [_rectangle(box, "ignored" if skip else "gt") for box, skip in zip(picture.gt_boxes, ignore, strict=True)]
    shapes += [_rectangle(box, "pred") for box in picture.boxes]
    letter = 0.036 * max(height, width)

    def written(said: str, x: float, y: float) -> str:
        x = max(min(x, width - 0.62 * letter * len(said)), 0.0)
        return f'<text x="{x:.1f}" y="{y:.1f}" style="font-size:{letter:.1f}px">{text(said)}</text>'

    scores = [] if picture.scores is None else [f"{score:.2f}" for score in picture.scores]
    for box, score, name in zip(picture.boxes, scores, picture.names or [""] * len(scores), strict=True):
        inside = float(box[1]) < 1.2 * letter  # no room above the box
        y = float(box[1]) + 1.1 * letter if inside else float(box[1]) - 0.3 * letter
        shapes.append(written(f"{name} {score}".lstrip(), float(box[0]), y))
    for box, name in zip(picture.gt_boxes, picture.gt_names):
        shapes.append(written(name, float(box[0]), min(float(box[3]) + letter, height - 0.3 * letter)))
    caption = f"<br>{text(picture.caption)}" if picture.caption else ""
    frame = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
    return (
        f'<figure><label class="picture"><input type="checkbox" aria-label="enlarge">'
        f'<img alt="{text(picture.title)}" src="{data_uri(picture.image)}">'
        f"{frame}{''.join(shapes)}</svg>"
        f"</label><figcaption><b>{text(picture.title)}</b>{caption}</figcaption></figure>"
    )


def gallery(pictures: Sequence[Picture]) -> str:
    """Pictures in a grid."""
    return f'<div class="gallery">{"".join(figure(picture) for picture in pictures)}</div>'


def strips(many: Sequence[Strip]) -> str:
    """Strips with equal numbers of close-ups, in a grid."""
    count = max((len(strip.closeups) for strip in many), default=1)
    return f'<div class="strips wide{min(count, 3)}">{"".join(_strip(strip) for strip in many)}</div>'


def _strip(strip: Strip) -> str:
    cells = "".join(_closeup(closeup, strip.title) for closeup in strip.closeups)
    caption = f"<br>{text(strip.caption)}" if strip.caption else ""
    return (
        f'<figure><label class="strip"><input type="checkbox" aria-label="enlarge">{cells}</label>'
        f"<figcaption><b>{text(strip.title)}</b>{caption}</figcaption></figure>"
    )


def _closeup(closeup: Closeup, title: str) -> str:
    height, width = closeup.image.shape[:2]
    marks = "" if closeup.box is None else f'<path class="corner" d="{_corners(closeup.box)}"/>'
    frame = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{marks}</svg>'
    image = f'<img alt="{text(title)}" src="{data_uri(enlarged(closeup.image))}">'
    return f'<span class="picture">{image}{frame}</span>'


def _corners(box: np.ndarray) -> str:
    """The corners of a box as an SVG path, so that the border of the lesion stays visible."""
    x0, y0, x1, y1 = (float(v) for v in box)
    a, b = 0.2 * (x1 - x0), 0.2 * (y1 - y0)
    lines = ((x0, y0, a, b), (x1, y0, -a, b), (x1, y1, -a, -b), (x0, y1, a, -b))
    return "".join(f"M{x:.1f} {y + down:.1f}V{y:.1f}H{x + across:.1f}" for x, y, across, down in lines)


def enlarged(image: np.ndarray, least: int = LEAST_SIDE) -> np.ndarray:
    """An image [H, W, ...] enlarged so that its long side has at least `least` pixels."""
    scale = least / max(image.shape[:2])
    if scale <= 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def wide_image(name: str, image: np.ndarray) -> str:
    """An image across the page, as <img>."""
    return f'<img alt="{text(name)}" src="{data_uri(enlarged(image, WIDE_SIDES[0]), WIDE_SIDES[1])}">'


def boxes_key(with_ignored: bool = False) -> str:
    """The legend of the colours of the boxes."""
    items = '<span><i class="key"></i>lesion</span><span><i class="key pred"></i>prediction, score</span>'
    if with_ignored:
        items += '<span><i class="key ignored"></i>not counted</span>'
    return f'<div class="legend">{items}</div>'


def data_uri(image: np.ndarray, long_side: int = LONG_SIDE) -> str:
    """An image as a JPEG data URI, reduced if its long side exceeds `long_side`."""
    pixels = image
    if image.dtype != np.uint8:
        pixels = (np.clip(np.nan_to_num(image), 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    scale = long_side / max(pixels.shape[:2])
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = pixels[..., ::-1]
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _rectangle(box: np.ndarray, style: str) -> str:
    x0, y0, x1, y1 = (float(v) for v in box)
    size = f'width="{max(x1 - x0, 0):.1f}" height="{max(y1 - y0, 0):.1f}"'
    return f'<rect class="{style}" x="{x0:.1f}" y="{y0:.1f}" {size}/>'
