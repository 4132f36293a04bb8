"""Image files without annotations, for prediction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from elk_jax import files
from elk_jax.data.sources import dicom
from elk_jax.data.sources.decode import DICOM_SUFFIXES, SUFFIXES, decode_as
from elk_jax.data.sources.source import CACHE_BYTES, Cache, ImageSource, read_at
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

SOURCE = re.compile(r"[a-z_]{2,}:")
"""The beginning of a data source, such as coco:FILE.json."""
AS_STORED = SourceSpec()
"""Default decoding: values use all bits of their files."""


def find_images(inputs: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """(images, skipped files): files as given and, for folders, every file below them, sorted by name; each
    once, however its path is written.

    An image has one of SUFFIXES, or is a DICOM file with any name. In folders, DICOM objects that are not images
    (reports, presentation states, the DICOMDIR of an export) are skipped, as are hidden files, such as those that a Mac
    creates beside every copied image.
    UserError for a missing file or folder, a data source, a device or a pipe, and for a folder without an image.
    """
    found: dict[Path, Path] = {}
    skipped: dict[Path, Path] = {}
    for entry in map(Path, inputs):
        if entry.is_dir():
            below = files.below(entry)
            images = [path for path in below if not _is_hidden(path.relative_to(entry)) and _is_image(path)]
            if not images:
                todo = f"give DICOM files, or images that end in {', '.join(SUFFIXES)}"
                raise UserError("no image in the folder", where=entry, todo=todo)
            place = entry.resolve()
            for paths, own in ((images, found), (sorted(set(below) - set(images)), skipped)):
                for path in paths:
                    own.setdefault(place / path.relative_to(entry), path)
        else:
            check_no_source(entry)
            files.open_regular(entry).close()
            found.setdefault(entry.parent.resolve() / entry.name, entry)
    return list(found.values()), list(skipped.values())


def check_no_source(entry: Path) -> None:
    """UserError for a missing file whose name looks like a data source."""
    if SOURCE.match(str(entry)) and not entry.exists():
        todo = "give an image file or a folder of images; launch/evaluate.py takes data sources"
        raise UserError("a data source, not a file or folder", where=entry, todo=todo)


def check_apart(inputs: Sequence[str | Path], output: Path) -> None:
    """UserError if images written to `output` would be among the images of an input folder in the next run."""
    place = output.resolve()
    for entry in map(Path, inputs):
        links = [path for path in entry.rglob("*") if path.is_symlink()] if entry.is_dir() else []
        wholes = [path.resolve() for path in (entry, *links) if path.is_dir()]
        if any(place.is_relative_to(whole) and not _is_hidden(place.relative_to(whole)) for whole in wholes):
            what = f"the pictures would lie in the input folder {entry}, and the next run would read them"
            raise UserError(what, where=output, todo="choose an output folder elsewhere")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_image(path: Path) -> bool:
    """Judged by content: exports have names such as IM0001 or 1.2.840.113."""
    named = path.suffix.lower() in SUFFIXES
    try:
        with files.open_regular(path) as file:
            if path.suffix.lower() in DICOM_SUFFIXES or dicom.looks_like_dicom(file.read(dicom.PREFIX)):
                return path.name.upper() != "DICOMDIR" and not dicom.other_object(file)
    except (UserError, OSError):
        pass  # decoding reports what is wrong
    return named


def open_files(
    paths: Sequence[Path],
    classes: tuple[str, ...],
    spec: SourceSpec = AS_STORED,
    on_error: str = "stop",
    cache_bytes: int = CACHE_BYTES,
    progress: ProgressBar = no_bar,
) -> ImageSource:
    """Image files as a source without lesions; the image id is the path. Every file is decoded now, for its size.

    Each frame of a multi-frame DICOM file (tomosynthesis) is one image, a slice of the volume named by the path.

    spec: how files are decoded. on_error: "stop" raises at the first unreadable file, "skip" lists it in `.skipped`.
    cache_bytes: memory for keeping the images decoded now until they are read again; see `source.cached`.
    progress: shows the decoding.
    """
    places = tuple((path, frame) for path in paths for frame in _frames(path))
    kept = Cache(partial(_read, spec, places), cache_bytes)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)

    def opened(position: int) -> ImageInfo | str:
        path, frame = places[position]
        try:
            image, meta = decode_as(spec, path, frame=frame)
        except UserError as error:
            if on_error == "stop":
                raise
            return str(error)
        kept.put(position, image)
        height, width = image.shape[:2]
        info = ImageInfo(_name(path, frame), str(path), width, height, *none, file_name=str(path), meta=meta)
        return info if frame is None else replace(info, volume=str(path), slice=frame)

    results = map_in_threads(opened, len(places), progress)
    infos = {position: result for position, result in enumerate(results) if isinstance(result, ImageInfo)}
    skipped = tuple((_name(*place), result) for place, result in zip(places, results) if isinstance(result, str))
    if not infos:
        what = f"none of the {len(places)} images can be read; the first: {skipped[0][1]}"
        raise UserError(what, todo="check that these are the intended files")
    return ImageSource("files", classes, tuple(infos.values()), partial(read_at, kept, tuple(infos)), skipped)


def _read(spec: SourceSpec, places: tuple[tuple[Path, int | None], ...], position: int) -> np.ndarray:
    path, frame = places[position]
    return decode_as(spec, path, frame=frame)[0]


def _frames(path: Path) -> Sequence[int | None]:
    """The frames of a multi-frame DICOM file; [None] for any other file."""
    try:
        with files.open_regular(path) as file:
            if path.suffix.lower() in DICOM_SUFFIXES or dicom.looks_like_dicom(file.read(dicom.PREFIX)):
                count = dicom.count_frames(file)
                return range(count) if count > 1 else (None,)
    except (UserError, OSError):
        pass
    return (None,)


def _name(path: Path, frame: int | None) -> str:
    return str(path) if frame is None else f"{path}, frame {frame}"
