"""Image files that come without annotations: what prediction runs on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from elk_jax.data.images import SUFFIXES, decode_image
from elk_jax.data.many import Watch, for_each, unwatched
from elk_jax.data.schema import ImageInfo
from elk_jax.data.sources import KEPT_BYTES, Cache, ImageSource, read_at
from elk_jax.errors import UserError


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Files as given and, for folders, every image below them by name. UserError for what is not there or empty."""
    found: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            below = sorted(p for p in entry.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not below:
                raise UserError("no image in the folder", where=entry, todo=f"images end in {', '.join(SUFFIXES)}")
            found += below
        elif entry.is_file():
            found.append(entry)
        else:
            raise UserError("no such file or folder", where=entry, todo="check the path")
    return list(dict.fromkeys(found))


def open_files(
    paths: Sequence[Path],
    classes: tuple[str, ...],
    on_error: str = "stop",
    keep_bytes: int = KEPT_BYTES,
    watch: Watch = unwatched,
    bit_depth: int = 0,
) -> ImageSource:
    """Image files as a source without lesions; the image id is the path. Every file is decoded once now, for its size.

    on_error: "stop" raises at the first unreadable file, "skip" leaves it out and lists it in `.skipped`.
    keep_bytes: of the images decoded now, kept in memory for when they are read again; see `sources.cached`.
    bit_depth: significant bits of 16-bit files that hold fewer; see `images.decode_image`.
    """
    kept = Cache(partial(_read, tuple(paths), bit_depth), keep_bytes)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)

    def opened(position: int) -> ImageInfo | str:
        name = str(paths[position])
        try:
            image, meta = decode_image(paths[position], bit_depth=bit_depth)
        except UserError as error:
            if on_error == "stop":
                raise
            return str(error)
        kept.put(position, image)
        height, width = image.shape[:2]
        return ImageInfo(name, name, width, height, *none, file_name=name, meta=meta)

    results = for_each(opened, len(paths), watch)
    infos = {position: result for position, result in enumerate(results) if isinstance(result, ImageInfo)}
    skipped = tuple((str(path), result) for path, result in zip(paths, results) if isinstance(result, str))
    if not infos:
        raise UserError(f"none of the {len(paths)} images can be read: {skipped[0][1]}")
    return ImageSource("files", classes, tuple(infos.values()), partial(read_at, kept, tuple(infos)), skipped)


def _read(paths: tuple[Path, ...], bit_depth: int, position: int) -> np.ndarray:
    return decode_image(paths[position], bit_depth=bit_depth)[0]
