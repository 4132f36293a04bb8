"""Checks of records before use; every failure is one line with the file and the ids.

Shapes: N boxes of one image; H, W image size in pixels.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax.data.sources.patients import named, patient_key
from elk_jax.data.sources.slices import OF_BOXES
from elk_jax.data.sources.splits import SPLITS, UNUSED, meant
from elk_jax.errors import UserError
from elk_jax.images.boxes import area, within_a_pixel
from elk_jax.images.names import look, whole_number
from elk_jax.images.schema import ImageInfo

ROUNDING = 1.0
"""Pixels by which a box may overhang its image, since tables are rounded; it is then clipped. More is an error."""


@functools.cache
def note(line: str) -> None:
    """Log a line about a source, once: it is listed for every split that is read."""
    logging.getLogger(__name__).warning(line)


def checked_box(box: Sequence[float], width: int, height: int, where: str) -> np.ndarray:
    """`box` (xyxy, px) as float32 [4], clipped to the image; UserError if it is not a box in this image."""
    values = np.asarray(box, np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        shown = ", ".join(f"{value:g}" for value in values.ravel()[:8])
        raise UserError(f"the box ({shown}) is not four finite numbers", where=where, todo="correct the annotation")
    x1, y1, x2, y2 = values
    if x2 <= x1 or y2 <= y1:
        what = f"the box is inverted or empty: left {x1:g}, top {y1:g}, right {x2:g}, bottom {y2:g}"
        raise UserError(what, where=where, todo="correct or remove the annotation")
    overhang = max(-x1, -y1, x2 - width, y2 - height)
    if within_a_pixel(values[None])[0] and max(width, height) > 1:
        what = f"the box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) lies within a pixel or so of the corner of the image"
        todo = "if these are shares of the image, convert them to pixels; else remove the annotation"
        raise UserError(what, where=where, todo=todo)
    clipped = np.clip(values, 0.0, [width, height, width, height])
    if overhang > ROUNDING or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise UserError(
            f"the box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) lies up to {overhang:g} px outside the image of "
            f"{width} x {height} px",
            where=where,
            todo="correct the annotation or the image size",
        )
    box32 = clipped.astype(np.float32)
    if not area(box32[None])[0] > 0:
        what = f"the box of {x2 - x1:g} x {y2 - y1:g} px is empty in float32"
        raise UserError(what, where=where, todo="correct or remove the annotation")
    return box32


def boxes_outside(volumes: Iterable[tuple[str, np.ndarray, tuple[float, float]]]) -> str:
    """A line about boxes that leave their slices by more than rounding; "" if there are none.

    volumes: name, boxes [N, 4] as annotated, (width, height) of the slices. Not an error: these are the challenge's
    boxes, and its evaluation counts them.
    """
    found, total = [], 0
    for name, boxes, (width, height) in volumes:
        total += len(boxes)
        sides = np.concatenate([-boxes[:, :2], boxes[:, 2:] - (width, height)], axis=1).max(axis=1, initial=-math.inf)
        found += [(name, box) for box in boxes[sides > ROUNDING]]
    if not found:
        return ""
    name, box = found[0]
    corners = ", ".join(f"{side:g}" for side in box)
    return (
        f"{len(found)} of {total} boxes leave their slices by more than {ROUNDING:g} px, the first ({corners}) in "
        f"{name}: the evaluation uses them as annotated; detectors learn the part inside"
    )


def check_pixels(image: np.ndarray, width: int, height: int, where: object) -> None:
    """UserError unless `image` is [height, width, 1], finite and within [0, 1]."""
    if image.shape[:2] != (height, width):
        what = f"the image has {image.shape[1]} x {image.shape[0]} px, but its record gives {width} x {height}"
        todo = "correct the record or replace the image"
        if image.shape[:2] == (width, height):
            todo = "give size and boxes of the image as displayed, rotated according to its orientation tag"
        raise UserError(what, where=where, todo=todo)
    if image.shape[2:] != (1,):
        raise UserError(f"the image has shape {image.shape}; one grey channel is needed", where=where)
    low, high = float(image.min()), float(image.max())  # both are NaN if any pixel is
    if not (low >= 0.0 and high <= 1.0):
        bad = int((~np.isfinite(image)).sum())
        what = f"{bad} pixels are NaN or infinite" if bad else f"grey values range from {low:g} to {high:g}, not 0 to 1"
        raise UserError(what, where=where, todo="repair or remove the image, or set on_error=skip")


def check_files(infos: Iterable[ImageInfo], folder: Path, where: object) -> None:
    """UserError that names the first image without a file, counts the others, and names a file that looks the same."""
    missing = [info for info in infos if not os.path.isfile(folder / info.file_name)]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"the file {folder / missing[0].file_name} of image {missing[0].image_id} is missing{more}"
        todo = "put the files there, or set on_error=skip"
        if os.path.islink(folder / missing[0].file_name):
            what += ": it is a link to a file that does not exist"
            todo = "correct or remove the link, or set on_error=skip"
        elif other := _alike(folder, missing[0].file_name):
            todo = f"there is {other}: write the name in the same way, or set on_error=skip"
        elif missing[0].file_name.startswith(f"{folder.name}/") and os.path.isfile(
            folder.parent / missing[0].file_name
        ):
            todo = f"leave '{folder.name}/' out of file_name, or set on_error=skip"
        raise UserError(what, where=where, todo=todo)


def _alike(folder: Path, name: str) -> str:
    """The name of a file that differs only in case, blanks, Unicode form or the slashes; "" if there is none."""
    wanted = Path(name.replace("\\", "/"))
    try:
        names = os.listdir(folder / wanted.parent)
    except OSError:
        return ""
    found = next((other for other in sorted(names) if look(other) == look(wanted.name)), "")
    return repr(str(wanted.parent / found)) if found else ""


def check_unique(ids: Iterable[object], what: str, where: object) -> None:
    """UserError that names the first id that occurs more than once."""
    for key, count in Counter(ids).items():
        if count > 1:
            raise UserError(f"{what} {key} occurs {count} times", where=where, todo="give every entry its own id")


def check_no_patient_in_two_splits(infos: Sequence[ImageInfo], where: object = "") -> None:
    """UserError if images of one patient name different splits; images without a split, and unused ones, do not count.

    IDs that other files may use (`patients.named`) are compared by their keys: 108 and 108.0 are too similar.
    """
    known = named(infos)
    split_of: dict[tuple[bool, str], ImageInfo] = {}
    for info in infos:
        if info.split in ("", UNUSED):
            continue
        own = info.patient_id in known
        first = split_of.setdefault((own, patient_key(info.patient_id) if own else info.patient_id), info)
        if first.split == info.split:
            continue
        what, todo = f"patient {info.patient_id} is", "put all images of a patient into one split"
        if first.patient_id != info.patient_id:
            what = f"patients {first.patient_id} and {info.patient_id} may be one, by their IDs, and are"
            todo = "write each patient's ID in one way, in one split; give different people clearly different IDs"
        raise UserError(
            f"{what} in two splits: image {first.image_id} in '{first.split}', image {info.image_id} in '{info.split}'",
            where=where,
            todo=todo,
        )


def check_split_names(infos: Sequence[ImageInfo], where: object = "", split: str = "") -> None:
    """UserError if images would be silently left out: they name no split, or one that looks like another, or probably
    means another (`splits.meant`).

    split: the one that is read. If it is not in SPLITS ("Train"), other names may differ from SPLITS in case alone.
    """
    names: dict[str, str] = {}
    counts = Counter(info.split for info in infos)
    for name in counts:
        other = names.setdefault(look(name), name)
        if other != name:
            todo = "write the name of each split in one way"
            what = f"the splits '{other}' and '{name}' differ only in case, blanks or invisible characters"
            raise UserError(what, where=where, todo=todo)
    for name in sorted(counts.keys() - {*SPLITS, split}):
        if (probable := meant(name)) and (split in SPLITS or look(name) != probable):
            what = f"{counts[name]} images have the split '{name}', which probably means '{probable}'"
            raise UserError(what, where=where, todo=f"correct it, or call the split {UNUSED}")
    unused = [info.image_id for info in infos if not info.split]
    if unused and len(unused) < len(infos):
        what = f"{len(unused)} of {len(infos)} images have no split, for example image {unused[0]}, and would be unused"
        raise UserError(what, where=where, todo=f"give every image a split, for example '{UNUSED}', or remove them")


def other_splits(infos: Iterable[ImageInfo]) -> str:
    """A line about images whose split is none of SPLITS and not UNUSED; "" if there are none."""
    counts = Counter(info.split for info in infos if info.split not in (*SPLITS, UNUSED, ""))
    if not counts:
        return ""
    named = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return f"{counts.total()} images are in none of the splits {', '.join(SPLITS)} and are not used: {named}"


def no_lesions(split: str, where: object) -> UserError:
    """The error for a split without lesions, if some are needed."""
    return UserError(
        f"no lesion in the images of the split '{split}'",
        where=where,
        todo="check the annotations and the selection of images (split, where; ignore boxes do not count)",
    )


def lacking_lesion(infos: Sequence[ImageInfo]) -> str:
    """ "a lesion" where no image has one to find; else ""."""
    return "" if any((~info.ignore).any() for info in infos) else "a lesion"


def checked_spacing(value: Any, where: object) -> tuple[float, float] | None:
    """The field `pixel_spacing` of an image: (row, column) mm; None if unknown (null, "", or two of null or NaN).

    UserError for anything else than two numbers above 0, such as a text with a unit.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    pair = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    if len(pair) == 2 and all(one is None or one != one for one in pair):
        return None
    if len(pair) != 2 or not all(isinstance(one, int | float) and 0 < one < math.inf for one in pair):
        todo = "write [row, column], two numbers in mm, or leave it out"
        raise UserError(f"pixel_spacing is {value!r:.60}", where=where, todo=todo)
    return float(pair[0]), float(pair[1])


def checked_lists(meta: dict[str, Any], boxes: int, where: str) -> dict[str, Any]:
    """The other fields of an image, without those of `slices.OF_BOXES` that are None (unknown).

    UserError if one of those lacks a slice, or four corners, for any of the boxes.
    """
    given = {name: meta[name] for name in OF_BOXES if meta.get(name) is not None}
    for name, values in given.items():
        entry_is_right = _is_slice if name == "lesion_slices" else _is_corners
        if not isinstance(values, list) or len(values) != boxes or not all(map(entry_is_right, values)):
            what, todo = f"{name} does not have an entry for each of {boxes} boxes", "correct it, or leave it out"
            raise UserError(what, where=where, todo=todo)
    return {name: value for name, value in meta.items() if name not in OF_BOXES or name in given}


def _is_slice(entry: object) -> bool:
    return whole_number(entry) is not None


def _is_corners(entry: object) -> bool:
    numbers = entry if isinstance(entry, list) else []
    return len(numbers) == 4 and all(type(one) in (int, float) and math.isfinite(one) for one in numbers)
