"""Image files without annotations, for prediction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from elk_jax.data.sources import dicom
from elk_jax.data.sources.decode import SUFFIXES, decode_as
from elk_jax.data.sources.source import CACHE_BYTES, Cache, ImageSource, read_at
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

AS_STORED = SourceSpec()
"""Files whose values use all of their bits."""


def find_images(inputs: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """(images, skipped files): files as given and, for folders, every file below them by name.

    An image has one of SUFFIXES, or is a DICOM file of any name (except DICOMDIR, the index of an export).
    UserError for a missing file or folder, and for a folder without an image.
    """
    found: list[Path] = []
    skipped: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            below = sorted(path for path in entry.rglob("*") if path.is_file())
            images = [path for path in below if path.suffix.lower() in SUFFIXES or _is_dicom(path)]
            if not images:
                todo = f"images are DICOM files, or end in {', '.join(SUFFIXES)}"
                raise UserError("no image in the folder", where=entry, todo=todo)
            found += images
            skipped += sorted(set(below) - set(images))
        elif entry.is_file():
            found.append(entry)
        else:
            raise UserError("no such file or folder", where=entry, todo="check the path")
    return list(dict.fromkeys(found)), list(dict.fromkeys(skipped))


def _is_dicom(path: Path) -> bool:
    """By content: exports have names such as IM0001 or 1.2.840.113."""
    try:
        with path.open("rb") as file:
            return path.name.upper() != "DICOMDIR" and dicom.looks_like_dicom(file.read(dicom.PREFIX))
    except OSError:
        return False


def open_files(
    paths: Sequence[Path],
    classes: tuple[str, ...],
    spec: SourceSpec = AS_STORED,
    on_error: str = "stop",
    cache_bytes: int = CACHE_BYTES,
    progress: ProgressBar = no_bar,
) -> ImageSource:
    """Image files as a source without lesions; the image id is the path. Every file is decoded now, for its size.

    spec: how files are decoded. on_error: "stop" raises at the first unreadable file, "skip" lists it in `.skipped`.
    cache_bytes: memory for the images decoded now, for when they are read again; see `source.cached`.
    progress: shows the decoding.
    """
    kept = Cache(partial(_read, spec, tuple(paths)), cache_bytes)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)

    def opened(position: int) -> ImageInfo | str:
        name = str(paths[position])
        try:
            image, meta = decode_as(spec, paths[position])
        except UserError as error:
            if on_error == "stop":
                raise
            return str(error)
        kept.put(position, image)
        height, width = image.shape[:2]
        return ImageInfo(name, name, width, height, *none, file_name=name, meta=meta)

    results = map_in_threads(opened, len(paths), progress)
    infos = {position: result for position, result in enumerate(results) if isinstance(result, ImageInfo)}
    skipped = tuple((str(path), result) for path, result in zip(paths, results) if isinstance(result, str))
    if not infos:
        raise UserError(f"none of the {len(paths)} images can be read: {skipped[0][1]}")
    return ImageSource("files", classes, tuple(infos.values()), partial(read_at, kept, tuple(infos)), skipped)


def _read(spec: SourceSpec, paths: tuple[Path, ...], position: int) -> np.ndarray:
    return decode_as(spec, paths[position])[0]
