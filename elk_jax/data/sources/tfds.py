"""TFDS data sets (ArrayRecord files) as a source, without TensorFlow. Only this module defines the layout of a record.

Images [H, W, 1] float32 in [0, 1]; boxes xyxy, px.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax.data.sources.checks import check_unique, checked_box, checked_lists
from elk_jax.data.sources.decode import decode_as
from elk_jax.data.sources.patients import unnamed
from elk_jax.data.sources.slices import OF_BOXES
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.splits import SPLITS
from elk_jax.errors import UserError
from elk_jax.images.names import checked_text, whole_number
from elk_jax.images.schema import ImageInfo
from elk_jax.threads import ProgressBar, no_bar

FIXED = ("image", "image_id", "patient_id", "split", "file_name", "width", "height", "volume", "slice", "objects")
"""The features of every record; others are fields of the image."""
NEEDED = (
    *("image", "image_id", "patient_id", "width", "height"),
    *(f"objects.{name}" for name in ("bbox", "label", "ignore")),
)
"""Those without which a data set cannot be read."""


def features(classes: Sequence[str], bits: int = 8, **extra: Any) -> Any:
    """The `tfds.features.FeaturesDict` of a detection data set; `extra` features become `meta` of the records.

    image: grey PNG, uint8 or uint16 (bits). objects: bbox xyxy in px, label, ignore.
    """
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint8 if bits == 8 else np.uint16, encoding_format="png"
            ),
            "image_id": tfds.features.Text(),
            "patient_id": tfds.features.Text(),
            "file_name": tfds.features.Text(),
            "volume": tfds.features.Text(),
            "slice": np.int32,
            "width": np.int32,
            "height": np.int32,
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "label": tfds.features.ClassLabel(names=list(classes)),
                    "ignore": np.bool_,
                }
            ),
            **extra,
        }
    )


def example(info: ImageInfo, png: bytes | str | Path) -> dict[str, Any]:
    """The example that a builder yields for one image, in the layout of `features`; `meta` supplies extra features."""
    boxes = zip(info.boxes, info.labels, info.ignore)
    return {
        "image": png,
        "image_id": info.image_id,
        "patient_id": info.patient_id,
        "file_name": info.file_name,
        "volume": info.volume,
        "slice": info.slice,
        "width": info.width,
        "height": info.height,
        "objects": [{"bbox": box, "label": int(label), "ignore": bool(ignore)} for box, label, ignore in boxes],
        **info.meta,
    }


def open_tfds(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """All images of a built data set, in the order train, val, test, other splits; images keep their TFDS splits.

    The place of `spec` is the folder that contains `dataset_info.json`. progress: shows the reading of the records.
    UserError: no data set there, one of another layout, missing or damaged records, a duplicate image id, a record with
    boxes outside its image or labels that are not classes.
    """
    import tensorflow_datasets as tfds

    folder = spec.place
    try:
        builder = tfds.builder_from_directory(folder)
        splits = sorted(builder.info.splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else 9, name))
        stores = {name: builder.as_data_source(name, decoders={"image": tfds.decode.SkipDecoding()}) for name in splits}
        present = _names_of(builder.info.features)
    except Exception as error:  # TFDS raises many kinds of errors for a folder that is not a data set
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        todo = "give the folder that contains dataset_info.json"
        raise UserError(f"no readable TFDS data set: {reason}", where=folder, todo=todo) from error
    if missing := [name for name in NEEDED if name not in present]:
        what, todo = f"its records have no {', '.join(missing)}", "build the data set with data_prep/coco_to_tfds.py"
        raise UserError(what, where=folder, todo=todo)
    classes = tuple(builder.info.features["objects"]["label"].names)
    places = [(name, position) for name, store in stores.items() for position in range(len(store))]
    records = ((_record(stores, name, position, folder), name) for name, position in places)
    infos = list(progress((_info(record, name, folder, len(classes)) for record, name in records), len(places)))
    check_unique((info.image_id for info in infos), "image id", folder)
    names = tuple(info.file_name or info.image_id for info in infos)
    read = partial(_read, stores, tuple(places), names, folder, spec)
    return ImageSource(folder, classes, tuple(infos), read)


def _names_of(features: Any) -> list[str]:
    """The names of features, those within `objects` as objects.NAME."""
    names = list(features)
    objects: Any = features["objects"] if "objects" in names else None
    return [*names, *(f"objects.{name}" for name in (objects.keys() if hasattr(objects, "keys") else ()))]


def _record(stores: dict[str, Any], split: str, position: int, folder: str) -> dict[str, Any]:
    """UserError for a record whose file is missing or damaged."""
    try:
        return stores[split][position]
    except Exception as error:  # the reader in C++ and the decoders of features raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"a record cannot be read: {reason}"
        raise UserError(what, where=f"{folder}, split {split}", todo="fetch or build the data set again") from error


def _info(record: dict[str, Any], split: str, folder: str, classes: int) -> ImageInfo:
    text = lambda name: checked_text(_plain(record.get(name, "")), f"'{name}'", f"{folder}, split {split}")
    image_id, volume = text("image_id"), text("volume")
    where = f"{folder}, split {split}, image {image_id}"
    if not image_id:
        raise UserError("a record has no image_id", where=where, todo="write a text or a whole number")
    whole = lambda name, least: _whole(record.get(name, -1), name, least, where)
    width, height = whole("width", 1), whole("height", 1)
    objects = record["objects"]
    boxes = [
        checked_box(box, width, height, f"{where}, box {number}") for number, box in enumerate(objects["bbox"], start=1)
    ]
    labels, ignore = np.array(objects["label"], np.int64), np.array(objects["ignore"])
    if not ((labels >= 0) & (labels < classes)).all():  # TFDS writes -1 for an unknown class
        todo = f"use 0 to {classes - 1}"
        raise UserError(f"the labels {labels.tolist()} do not fit {classes} classes", where=where, todo=todo)
    if not np.isin(ignore, (0, 1)).all():
        raise UserError(f"ignore is {ignore.tolist()}", where=where, todo="write true or false")
    return ImageInfo(
        image_id=image_id,
        patient_id=text("patient_id") or unnamed(image_id, volume),
        width=width,
        height=height,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=labels.astype(np.int32),
        ignore=ignore.astype(bool),
        split=split,
        file_name=text("file_name"),
        volume=volume,
        slice=whole("slice", -1),
        meta=checked_lists({k: _field(k, value) for k, value in record.items() if k not in FIXED}, len(boxes), where),
    )


def _whole(value: Any, name: str, least: int, where: str) -> int:
    number = whole_number(_plain(value))
    if number is None or number < least:
        todo = f"write a whole number from {least}"
        raise UserError(f"{name} is {value!r:.40}", where=where, todo=todo)
    return number


def _field(name: str, value: Any) -> Any:
    """A field of an image; lists with an entry for each box are written as JSON."""
    plain = _plain(value)
    if name not in OF_BOXES or not isinstance(plain, str):
        return plain
    try:
        return json.loads(plain) if plain else None
    except ValueError:
        return plain


def _read(
    stores: dict[str, Any],
    places: tuple[tuple[str, int], ...],
    names: tuple[str, ...],
    folder: str,
    spec: SourceSpec,
    position: int,
) -> np.ndarray:
    return decode_as(spec, _record(stores, *places[position], folder)["image"], names[position])[0]


def _plain(value: Any) -> Any:
    """Bytes as text, numpy scalars as Python's, arrays as lists, NaN (unknown) as None; the rest unchanged."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, np.ndarray | np.floating | float) and np.isnan(value).any():
        return None
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
