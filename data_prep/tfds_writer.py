"""Write annotated grey images as a TFDS data set in ArrayRecord files, without TensorFlow.

Shapes: H, W image size in px; N lesions of one image.

A record has the features of `elk_jax/data/sources/tfds.py`, and one for every field of the images' `meta`. The folder
is read by `tfds.builder_from_directory(DIR).as_data_source(SPLIT)`, and as `tfds:DIR` by the launch scripts.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax.data.sources import tfds as layout
from elk_jax.data.sources.checks import check_unique, checked_spacing
from elk_jax.data.sources.decode import encode_png
from elk_jax.errors import UserError, from_os_error
from elk_jax.images.schema import ImageInfo


def load_tfds() -> None:
    """Import TensorFlow Datasets, before a thread such as that of a progress bar starts: while it is being imported, it
    replaces the import function of all threads, which then get modules in place of functions."""
    import tensorflow_datasets  # noqa: F401


def write_tfds(
    folder: str | Path,
    name: str,
    infos: Sequence[ImageInfo],
    classes: Sequence[str],
    read: Callable[[ImageInfo], np.ndarray],
    *,
    bits: int = 8,
    description: str = "",
    citation: str = "",
    on_image: Callable[[], object] = lambda: None,
) -> None:
    """Build `folder` (which must not exist yet) with dataset_info.json and the shards directly in it.

    Args:
      name: of the data set, lower case with underscores.
      infos: the images; every distinct `split` becomes a split of the data set ("" becomes "train").
      read: info -> [H, W] uint8 or uint16 pixels, called once per image.
      bits: 8 or 16 per pixel, for all images; an 8-bit image in a 16-bit set is scaled by 257, so white stays white.
      on_image: called after each image, for a progress bar.

    Raises:
      UserError: the disk is full, the folder is not writable, the size of an image differs from its info, two images
        have the same id, a split has a name that TFDS cannot have, a field of an image has the name of a feature, or
        `pixel_spacing` is not two numbers.
    """
    import tensorflow_datasets as tfds

    check_unique((info.image_id for info in infos), "image id", folder)
    for info in infos:
        _check_fields(info)
    metas, extra = meta_features([info.meta for info in infos])
    features = layout.features(classes, bits, **extra)
    splits: dict[str, list[ImageInfo]] = {}
    for info, meta in zip(infos, metas):
        splits.setdefault(info.split or "train", []).append(replace(info, meta=meta))

    def examples(members: list[ImageInfo]) -> Iterator[tuple[str, dict[str, Any]]]:
        for info in members:
            yield info.image_id, layout.example(info, encode_png(_fitting(read(info), info, bits)))
            on_image()

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Look for no published data set of this name, for which TFDS leaves an empty folder in /tmp."""

    class ListBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return Info(builder=self, description=description or name, features=features, citation=citation or None)

        def _split_generators(self, dl_manager):
            return {split: examples(members) for split, members in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError("every split has its own generator")

    ListBuilder.name = name
    folder = Path(folder)
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.build")
    try:
        builder = ListBuilder(data_dir=str(hidden), file_format="array_record")
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # hides messages about downloads, of which there are none
            builder.download_and_prepare()
        os.replace(builder.data_dir, folder)
    except UserError:
        raise
    except OSError as error:
        raise from_os_error(error, folder) from error
    except Exception as error:  # ArrayRecord reports a failed write only in words
        if not any(words in str(error) for words in ("No space left", "File too large", "quota")):
            raise
        raise UserError("the disk is full", where=folder, todo="free some space and rerun") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _check_fields(info: ImageInfo) -> None:
    """UserError for a split or field that a record cannot have under its name, for text that has no UTF-8, and for a
    `pixel_spacing` that is not one."""
    where = f"image {info.image_id} ({info.file_name})"
    if info.split == "all" or not re.fullmatch(r"[\w-]*", info.split):
        todo = "use letters, digits, _ and -; `all` means all splits"
        raise UserError(f"the split '{info.split}' cannot be one of TFDS", where=where, todo=todo)
    if taken := sorted(info.meta.keys() & layout.FIXED):
        what = f"the field '{taken[0]}' has the name of a feature of every record"
        raise UserError(what, where=where, todo="rename the field, or remove it")
    for name, value in info.meta.items():
        if _is_broken(name) or _is_broken(value):
            what = f"the field {name!r} has half of a character that is written in two (a surrogate)"
            raise UserError(what, where=where, todo="write it as UTF-8 text")
    checked_spacing(info.meta.get("pixel_spacing"), where)


def _is_broken(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


def meta_features(metas: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`metas` completed so that every field occurs in all of them, and the TFDS features of the fields.

    Booleans, integers (of 64 bits) and floats keep their type if all images have one; `pixel_spacing` is two numbers,
    NaN if unknown; everything else becomes text (lists and objects as JSON, "" if missing).
    """
    import tensorflow_datasets as tfds

    columns: dict[str, list[Any]] = {}
    features: dict[str, Any] = {}
    floats = partial(tfds.features.Tensor, dtype=np.float64, encoding="bytes")  # others are written in 32 bits
    for key in sorted({key for meta in metas for key in meta}):
        values = [meta.get(key) for meta in metas]
        if key == "pixel_spacing":
            pairs = (checked_spacing(value, "") for value in values)
            columns[key] = [np.array(pair or (math.nan, math.nan)) for pair in pairs]
            features[key] = floats(shape=(2,))
            continue
        for kinds, feature in ((bool, np.bool_), (int, np.int64), (int | float, floats(shape=()))):
            if all(_is(value, kinds) and _fits(value, kinds) for value in values):
                columns[key], features[key] = values, feature
                break
        else:
            columns[key] = [_as_text(value) for value in values]
            features[key] = tfds.features.Text()
    return [{key: columns[key][i] for key in columns} for i in range(len(metas))], features


def texts_among_numbers(infos: Sequence[ImageInfo]) -> list[str]:
    """A line for every field that is text in the data set since an image has a text, although most have a number."""
    lines = []
    for name in sorted({name for info in infos for name in info.meta}):
        given = [info for info in infos if info.meta.get(name) is not None]
        texts = [info for info in given if not _is(info.meta[name], int | float)]
        if 0 < len(texts) < len(given) / 2:
            first = f"image {texts[0].image_id} has {texts[0].meta[name]!r:.40}"
            lines.append(f"the field {name!r} becomes text in all images: {first}, {len(given) - len(texts)} a number")
    return lines


def _is(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and isinstance(value, bool) == (kinds is bool)


def _fits(value: Any, kinds: Any) -> bool:
    """Whether a number is kept as it is: as an integer of 64 bits, or in float64."""
    return abs(value) < 1 << 63 if kinds is int else value == float(value) or math.isnan(value)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _fitting(pixels: np.ndarray, info: ImageInfo, bits: int) -> np.ndarray:
    """[H, W] pixels with the bits of the data set; UserError if the size differs from `info`."""
    if pixels.shape != (info.height, info.width):
        height, width = pixels.shape
        what = f"the image has {width} x {height} px, its entry {info.width} x {info.height}"
        raise UserError(what, where=info.file_name or info.image_id, todo="correct the annotation file")
    return pixels.astype(np.uint16) * 257 if bits == 16 and pixels.dtype == np.uint8 else pixels
