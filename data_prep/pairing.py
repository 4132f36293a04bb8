"""Common parts of the scripts for pairs: matching images of the same view in two sources, and pictures for checks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import checkout  # noqa: F401  before any import of elk_jax
import cv2
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from elk_jax.data.sources.source import ImageSource, pack
from elk_jax.errors import UserError
from elk_jax.files import write_bytes
from elk_jax.images.schema import ImageInfo
from elk_jax.output import Console
from elk_jax.threads import map_in_threads

VIEW = ("laterality", "view")
DATE = "study_date"
ORDER = "acquisition"
OVERLAYS = 8
OVERLAY_SIDE = 1024

Key = tuple[str, ...]
"""patient_id, laterality, view and, where one is given, the date of the exam."""

T = TypeVar("T")


@dataclass(frozen=True)
class Matched:
    """pairs: (position in the first source, position in the second), in the order of the first. alone: files of views
    that the other source does not have. surplus: files in excess of the images of a view in the other source.
    """

    pairs: tuple[tuple[int, int], ...]
    alone: tuple[str, ...]
    surplus: tuple[str, ...]


def matched(first: ImageSource, second: ImageSource) -> Matched:
    """The images of two sources that show the same view.

    If a view has several images, the first in the order of acquisition is matched with the other source's first, and so
    on. UserError for an image without laterality or view, a pair in two splits, no pairs, or one source given twice.
    """
    if os.path.realpath(first.name) == os.path.realpath(second.name):
        what = "both sources are the same images, each of which would be its own partner"
        raise UserError(what, where=second.name, todo="name the images of the other kind")
    one, other = by_view(first), by_view(second)
    pairs = sorted(pair for key in one.keys() & other.keys() for pair in zip(one[key], other[key]))
    if not pairs:
        raise UserError(
            f"no pairs: no two images agree in patient_id, laterality, view and {DATE}, "
            f"for example {' '.join(next(iter(one)))} and {' '.join(next(iter(other)))}",
            where=f"{first.name} and {second.name}",
            todo="check these fields",
        )
    for i, j in pairs:
        splits = first.infos[i].split, second.infos[j].split
        if splits[0] != splits[1]:
            raise UserError(
                f"a pair in two splits: {first.infos[i].file_name} is in '{splits[0]}', "
                f"{second.infos[j].file_name} in '{splits[1]}'",
                where=first.name,
                todo="give both images of a view the same split",
            )
    alone, surplus = list[str](), list[str]()
    for source, own, others in ((first, one, other), (second, other, one)):
        for key, positions in own.items():
            partners = len(others.get(key, ()))
            (surplus if partners else alone).extend(source.infos[i].file_name for i in positions[partners:])
    return Matched(tuple(pairs), tuple(alone), tuple(surplus))


def by_view(source: ImageSource) -> dict[Key, list[int]]:
    """View -> positions of its images, in the order of acquisition: by the field `acquisition`, else by their ids."""
    found: dict[Key, list[int]] = {}
    for position, info in enumerate(source.infos):
        where = f"{source.name}, image {info.image_id} ({info.file_name})"
        for field in VIEW:
            if not info.meta.get(field):
                raise UserError(f"the field '{field}' is missing", where=where, todo="add it: it identifies pairs")
        found.setdefault(view_of(info), []).append(position)
    order = lambda position: acquired(source.infos[position])
    return {key: sorted(positions, key=order) for key, positions in found.items()}


def view_of(info: ImageInfo) -> Key:
    fields = VIEW if info.meta.get(DATE) in (None, "") else (*VIEW, DATE)
    return (info.patient_id, *(str(info.meta[field]) for field in fields))


def acquired(info: ImageInfo) -> tuple[Any, ...]:
    """The key for sorting the images of a view; unknown acquisitions come last. Numbers in texts are compared as
    numbers: 9 comes before 10.
    """
    acquisition = info.meta.get(ORDER)
    known = acquisition is not None and acquisition != ""
    return not known, _natural(str(acquisition) if known else ""), _natural(info.image_id)


def _natural(text: str) -> list[tuple[int, str]]:
    parts = re.findall(r"([0-9]+)|([^0-9]+)", text)
    return [(int(digits), "") if digits else (-1, letters) for digits, letters in parts]


def file_names(infos: Sequence[ImageInfo]) -> list[str]:
    """A unique name for each pair, from its view, valid on any file system."""
    taken: set[str] = set()
    names = []
    for info in infos:
        plain = re.sub(r"[^\w.+-]+", "-", "_".join(view_of(info)))
        name, number = plain, 2
        while name.casefold() in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def with_progress(work: Callable[[int], T], count: int, text: str) -> list[T]:
    """`work` for every number below `count`, in threads, with a progress bar."""
    cv2.setNumThreads(0)  # pairs already run in threads
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=count)

        def advance(results: Iterable[Any], total: int) -> Iterator[Any]:
            for result in results:
                progress.advance(task)
                yield result

        return map_in_threads(work, count, advance)


def stored_as(image: np.ndarray, original: np.ndarray) -> np.ndarray:
    """`image` with the bit depth of `original`: 8 bits stay 8 bits. Both in [0, 1]."""
    depth = pack(original).dtype
    return np.round(image.clip(0, 1) * np.iinfo(depth).max).astype(depth)


def write_overlay(path: Path, green: np.ndarray, magenta: np.ndarray) -> None:
    """A JPEG of one image over the other, both [H, W] in [0, 1], its long side at most OVERLAY_SIDE."""
    colours = (np.dstack([magenta, green, magenta]).clip(0, 1) ** 0.6 * 255).astype(np.uint8)
    scale = min(1.0, OVERLAY_SIDE / max(colours.shape[:2]))
    picture = cv2.resize(colours, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    write_bytes(path, cv2.imencode(".jpg", picture)[1].tobytes())
