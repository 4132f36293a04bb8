"""COCO folders in and out: one JSON file, images in `images/` beside it (or beside the JSON itself).

Per image the fields `patient_id` (default: the image's own id) and `split` are honoured, and of a slice of a
tomosynthesis volume `volume` and `slice`; all others are kept in `meta`. Boxes are xywh in the file and xyxy, px,
everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elk_jax.data.sources.checks import check_unique, checked_box
from elk_jax.data.sources.decode import files_reader
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.files import read_json, write_json
from elk_jax.images.schema import ImageInfo
from elk_jax.threads import ProgressBar, no_bar

_IMAGE_FIELDS = {"id", "file_name", "width", "height", "patient_id", "split", "volume", "slice"}


class CocoFile(NamedTuple):
    """The content of a COCO file.

    infos: its images, in the order of the file. classes: their names. category_ids: their ids, in the same order.
    seen_patients: hashes (`patients.patient_hash`) of the patients that the model behind painted images has seen.
    """

    infos: tuple[ImageInfo, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    seen_patients: frozenset[str]


def open_coco(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """All images of a COCO file, whatever their split."""
    path = spec.place
    content = read_coco(path)
    return ImageSource(
        name=path,
        classes=content.classes,
        infos=content.infos,
        read=files_reader(image_folder(path), content.infos, spec, where=path),
        seen_patients=content.seen_patients,
        category_ids=content.category_ids,
    )


def read_coco(path: str | Path) -> CocoFile:
    """Read and validate a COCO file.

    Labels are positions in the list of categories sorted by id. `iscrowd` and `ignore` annotations become
    ignore boxes. UserError names the file, the image id and the annotation id of the first error: missing fields,
    duplicate ids, an unknown category or image, a box that is inverted, empty, NaN or outside the image.
    Image files are not opened.
    """
    path = Path(path)
    content = _read(path)
    for category in content["categories"]:
        if not isinstance(number := _id(category, "id", f"{path}, categories"), int):
            raise UserError(f"category id '{number}' is not a whole number", where=path, todo="number the categories")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    check_unique((category["id"] for category in categories), "category id", path)
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    classes = tuple(str(category.get("name", category["id"])) for category in categories)
    if not classes:
        raise UserError("the list of categories is empty", where=path, todo="name at least one class")
    images = content["images"]
    check_unique((str(_id(image, "id", f"{path}, images")) for image in images), "image id", path)
    check_unique((_id(a, "id", f"{path}, annotations") for a in content["annotations"]), "annotation id", path)

    annotations: dict[Any, list[dict]] = {image["id"]: [] for image in images}
    for annotation in content["annotations"]:
        where = f"{path}, annotation {annotation['id']}"
        image_id = _id(annotation, "image_id", where)
        if image_id not in annotations:
            raise UserError(f"the annotation belongs to image {image_id}, which the file does not list", where=where)
        if _id(annotation, "category_id", where) not in label_of:
            known = ", ".join(f"{key} ({classes[label]})" for key, label in label_of.items())
            raise UserError(
                f"unknown category {annotation['category_id']}",
                where=f"{path}, image {image_id}, annotation {annotation['id']}",
                todo=f"use one of: {known}",
            )
        annotations[image_id].append(annotation)
    infos = tuple(_info(image, annotations[image["id"]], label_of, path) for image in images)
    return CocoFile(infos, classes, tuple(label_of), _seen_patients(content.get("info")))


def _seen_patients(info: Any) -> frozenset[str]:
    """The hashes in a file's `info`; sets painted by earlier versions call them `learned_from`."""
    if not isinstance(info, dict):
        return frozenset()
    return frozenset(info.get("seen_patients") or info.get("learned_from") or ())


def image_folder(path: str | Path) -> Path:
    """Where the images of a COCO file lie: `images/` beside it if that exists, else beside it."""
    folder = Path(path).parent / "images"
    return folder if folder.is_dir() else folder.parent


def write_coco(
    path: str | Path,
    infos: Iterable[ImageInfo],
    classes: Sequence[str],
    description: str = "",
    licence: str = "",
    seen_patients: Collection[str] = (),
) -> None:
    """Write a COCO file atomically; the caller writes the images, to `images/` beside it.

    Image ids are kept where all are whole numbers, else they are numbers from 1 in the order of `infos`. `meta`
    fields that JSON can hold go into the image entries. Boxes are rounded to 0.001 px.
    seen_patients: hashes of the patients that a model behind these images has seen.
    """
    infos = list(infos)
    whole = all(info.image_id.isdecimal() for info in infos)
    ids = [int(info.image_id) if whole else number for number, info in enumerate(infos, start=1)]
    check_unique(ids, "image id", path)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, info in zip(ids, infos):
        fixed: dict[str, Any] = {"id": image_id, "file_name": info.file_name}
        fixed |= {"width": int(info.width), "height": int(info.height), "patient_id": info.patient_id}
        if info.split:
            fixed["split"] = info.split
        if info.volume:
            fixed |= {"volume": info.volume, "slice": info.slice}
        images.append(fixed | {key: _plain(v) for key, v in info.meta.items() if key not in _IMAGE_FIELDS})
        for box, label, ignore in zip(info.boxes.tolist(), info.labels, info.ignore):
            x1, y1, x2, y2 = (round(value, 3) for value in box)
            width, height = round(x2 - x1, 3), round(y2 - y1, 3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 3),
                    "iscrowd": int(ignore),
                }
            )
    content = {
        "info": {"description": description} | ({"seen_patients": sorted(seen_patients)} if seen_patients else {}),
        "licenses": [{"id": 1, "name": licence}] if licence else [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes)],
    }
    write_json(path, {**content, "images": images, "annotations": annotations})


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise UserError("not a COCO file: wanted an object with the lists images, annotations, categories", where=path)
    for part in parts:
        if not all(isinstance(entry, dict) for entry in content[part]):
            raise UserError(f"not a COCO file: an entry of {part} is not an object", where=path)
    return content


def _info(image: dict, annotations: list[dict], label_of: dict, path: Path) -> ImageInfo:
    where = f"{path}, image {image['id']}"
    width, height = _field(image, "width", where), _field(image, "height", where)
    if not all(isinstance(side, int) and side >= 1 for side in (width, height)):
        raise UserError(f"width and height must be whole positive numbers, got {width} and {height}", where=where)
    boxes = np.zeros((len(annotations), 4), np.float32)
    for row, annotation in enumerate(annotations):
        place = f"{where} ({image.get('file_name')}), annotation {annotation['id']}"
        boxes[row] = checked_box(_xyxy(_field(annotation, "bbox", place), place), width, height, place)
    return ImageInfo(
        image_id=str(image["id"]),
        patient_id=str(image.get("patient_id", image["id"])),
        width=width,
        height=height,
        boxes=boxes,
        labels=np.array([label_of[a["category_id"]] for a in annotations], np.int32),
        ignore=np.array([bool(a.get("iscrowd") or a.get("ignore")) for a in annotations], bool),
        split=str(image.get("split") or ""),
        file_name=str(_field(image, "file_name", where)),
        **_place_in_volume(image, where),
        meta={key: value for key, value in image.items() if key not in _IMAGE_FIELDS},
    )


def _place_in_volume(image: dict, where: str) -> dict[str, Any]:
    """`volume` and `slice` of an image, both or neither."""
    volume, position = image.get("volume"), image.get("slice")
    if volume is None and position is None:
        return {}
    if volume in (None, "") or type(position) is not int or position < 0:
        todo = "give both: the volume's id, and the position in it as a whole number from 0; or rename the field"
        raise UserError(f"volume is {volume!r} and slice {position!r}", where=where, todo=todo)
    return {"volume": str(volume), "slice": position}


def _xyxy(bbox: Any, where: str) -> list[float]:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(value, int | float) for value in bbox):
        raise UserError(f"bbox must be four numbers (left, top, width, height), got {bbox}", where=where)
    if not all(abs(value) < math.inf for value in bbox):
        raise UserError(f"bbox has a coordinate that is NaN or infinite: {bbox}", where=where, todo="correct it")
    x, y, width, height = (min(max(value, -1e30), 1e30) for value in bbox)  # whole numbers in JSON have no bound
    return [float(x), float(y), float(x + width), float(y + height)]


def _field(entry: dict, name: str, where: object) -> Any:
    if name not in entry:
        raise UserError(f"the field '{name}' is missing", where=where, todo="add it")
    return entry[name]


def _id(entry: dict, name: str, where: object) -> int | str:
    value = _field(entry, name, where)
    if not isinstance(value, int | str):
        raise UserError(f"'{name}' is {value}, neither a number nor a text", where=where, todo="correct it")
    return value


def _plain(value: Any) -> Any:
    """numpy values as Python ones, for JSON."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
