"""Reading and writing COCO folders: one JSON file, with the images in `images/` beside it (or beside the JSON itself).

For each image the fields `patient_id` and `split` are used, and for slices of tomosynthesis volumes `volume` and
`slice`; all other fields are kept in `meta`. An image without patient (field missing, null, NaN or "") is its own
patient, together with the other slices of its volume or frames of its file.
Boxes are xywh in the file and xyxy, px, everywhere else.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elk_jax import fields
from elk_jax.data.sources import checks, coco_boxes, coco_fields
from elk_jax.data.sources.checks import check_unique, checked_lists
from elk_jax.data.sources.decode import decoding_of_partner, files_reader
from elk_jax.data.sources.patients import unnamed
from elk_jax.data.sources.source import ImageSource, paired
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.files import read_json, write_json
from elk_jax.images.names import checked_text, whole_number
from elk_jax.images.schema import ImageInfo
from elk_jax.privacy.mechanism import Statement, in_words
from elk_jax.threads import ProgressBar, no_bar

LARGEST_SIDE = 1 << 24
"""Largest image side for which float32 distinguishes any two pixels."""

IMAGES = "images"
"""The folder of the images, beside the COCO file."""
SYNTHETIC = "synthetic.json"
"""The COCO file of generated images, which lie in `images/` beside it."""

UNKNOWN = "The privacy cost of the training runs behind these images is not recorded."
PATIENT_FIELDS = ("patient", "patientid", "patientname", "patientnumber", "subjectid")
"""Letters in the names of fields that mean `patient_id`."""
ANONYMOUS = re.compile(r"(?i)anon(ymous|ymi[sz]ed)?\W*(patient|name)?\W*")
"""What a program that removes names writes for every patient."""
_IMAGE_FIELDS = {"id", "file_name", "width", "height", "patient_id", "split", "volume", "slice"}


class Behind(NamedTuple):
    """What a file records about the models behind its images; both as in `ImageSource`."""

    seen_patients: frozenset[str] = frozenset()
    promises: tuple[Statement, ...] | None = ()


class CocoFile(NamedTuple):
    """The content of a COCO file.

    infos: its images, in the order of the file. classes: their names. category_ids: their ids, in the same order.
    seen_patients: hashes (`patients.patient_hash`) of the patients seen by the model behind painted images.
    promises: as in `ImageSource`. unnamed: number of images without patient.
    """

    infos: tuple[ImageInfo, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    seen_patients: frozenset[str]
    promises: tuple[Statement, ...] | None
    unnamed: int


def open_coco(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """All images of a COCO file, whatever their split."""
    path = spec.place
    content = read_coco(path, progress)
    if not spec.patient_pattern:
        check_patients(content, path)
    source = ImageSource(
        name=path,
        classes=content.classes,
        infos=content.infos,
        read=files_reader(image_folder(path), content.infos, spec, where=path),
        seen_patients=content.seen_patients,
        promises=content.promises,
        category_ids=content.category_ids,
    )
    if not spec.partner:
        return source
    named = partners(content.infos, spec.partner, path)
    check_partners(content.infos, named, path)
    return paired(source, files_reader(image_folder(path), named, spec, where=path))


def check_patients(content: CocoFile, path: str | Path) -> None:
    """UserError if no image has a `patient_id`, but another field that must be it: every image would count as its own
    patient, in any split. A line is logged if only some images have one."""
    infos, without = content.infos, content.unnamed
    if 0 < without < len(infos):
        line = f"{without} of {len(infos)} images name no patient: each, or each volume, counts as a patient"
        checks.note(f"{path}: {line}")
    of_letters = lambda name: "".join(filter(str.isalpha, name.casefold()))
    others = sorted(
        {name for info in infos for name in info.meta if of_letters(name) in PATIENT_FIELDS and _names(info.meta[name])}
    )
    if without == len(infos) and others:
        todo = "call the field patient_id, or set patient_pattern"
        raise UserError(f"no image has the field patient_id, but there is '{others[0]}'", where=path, todo=todo)


def _names(value: Any) -> bool:
    """Whether a field of an image names a patient: a text or number that is not a spelling of "unknown" or
    "anonymous"."""
    try:
        text = checked_text(value, "", "")
    except UserError:
        return False
    return bool(text) and not ANONYMOUS.fullmatch(text)


def check_partners(infos: Sequence[ImageInfo], named: Sequence[ImageInfo], path: str | Path) -> None:
    """UserError if a partner is the image itself, or belongs to another patient or split in the file."""
    folder = image_folder(path)
    file_of = lambda info: _file(folder, info.file_name)
    for info, partner in zip(infos, named, strict=True):
        if (file_of(info), info.meta.get("frame") or 0) == (file_of(partner), partner.meta.get("frame") or 0):
            raise UserError(
                "the partner of the image is the image itself",
                where=f"{path}, image {info.image_id} ({info.file_name})",
                todo="name the other image of the breast, or remove the image from the pairs",
            )
    of_file = {file_of(info): info for info in infos}
    for info, partner in zip(infos, named, strict=True):
        other = of_file.get(file_of(partner), info)
        for what, own, its in (("patient", info.patient_id, other.patient_id), ("split", info.split, other.split)):
            if own != its:
                raise UserError(
                    f"the image belongs to {what} {own!r}, but its partner, image {other.image_id}, to {its!r}",
                    where=f"{path}, image {info.image_id} ({info.file_name})",
                    todo="name an image of the same breast",
                )


def partners(infos: Sequence[ImageInfo], field: str, where: object) -> tuple[ImageInfo, ...]:
    """The images, with the files named in `field` instead of their own. UserError for an image without that field.

    Settings for decoding an image's own file do not apply to its partner's (`decode.decoding_of_partner`).
    """
    for info in infos:
        if not isinstance(info.meta.get(field), str) or not info.meta[field]:
            raise UserError(
                f"the field '{field}', the file of the partner, is missing",
                where=f"{where}, image {info.image_id} ({info.file_name})",
                todo="make pairs with data_prep/paired_images.py (tiles: paired_tiles.py), or remove the image",
            )

    named = ((info.meta[field], decoding_of_partner(info.meta, field)) for info in infos)
    return tuple(replace(info, file_name=name, meta=meta) for info, (name, meta) in zip(infos, named))


def read_coco(path: str | Path, progress: ProgressBar = no_bar) -> CocoFile:
    """Read and validate a COCO file. progress: shows its images.

    Labels are positions in the list of categories sorted by id. `iscrowd` and `ignore` annotations become ignore boxes.
    Entries for one image file that differ only in their ids are merged into one image, with the annotations of all.
    UserError names the file, the image id and the annotation id of the first error: fields that are missing or have the
    wrong type, duplicate ids, differing entries for one image file, an unknown category or image, a box that is
    inverted, empty, NaN, outside the image or within its first pixel, and boxes whose `area` shows that they are given
    by their corners. Image files are not opened.
    """
    path = Path(path)
    content = _read(path)
    classes, label_of = _categories(content["categories"], path)
    ids = [coco_fields.text_id(image, "id", f"{path}, images") for image in content["images"]]
    check_unique(ids, "image id", path)
    entries = {
        key: coco_fields.without_nan(image, f"{path}, image {key}") for key, image in zip(ids, content["images"])
    }
    image_of = _one_per_file(entries, path)
    check_unique(
        (coco_fields.text_id(a, "id", f"{path}, annotations") for a in content["annotations"]), "annotation id", path
    )
    annotations: dict[str, list[dict]] = {image_id: [] for image_id in image_of.values()}
    for annotation in content["annotations"]:
        where = f"{path}, annotation {annotation['id']}"
        image_id = coco_fields.text_id(annotation, "image_id", where)
        if image_id not in image_of:
            what = f"the annotation belongs to image {image_id}, which the file does not list"
            raise UserError(what, where=where, todo="add the image, or remove the annotation")
        if coco_fields.whole(annotation, "category_id", where) not in label_of:
            known = ", ".join(f"{key} ({classes[label]})" for key, label in label_of.items())
            raise UserError(
                f"unknown category {annotation['category_id']}",
                where=f"{path}, image {image_id}, annotation {annotation['id']}",
                todo=f"use one of: {known}",
            )
        annotations[image_of[image_id]].append(annotation)
    coco_boxes.check_not_corners(content["annotations"], path)
    for image_id, count in Counter(image_of.values()).items():
        if count > 1:
            annotations[image_id] = _not_repeated(annotations[image_id])
    checked = (_info(entries[key], found, label_of, f"{path}, image {key}") for key, found in annotations.items())
    infos = tuple(progress(checked, len(annotations)))
    _check_one_patient(infos, path)
    without = sum(not _patient(entries[key], "") for key in annotations)
    return CocoFile(infos, classes, tuple(label_of), *_behind(content, path), without)


def behind_folder(folder: Path) -> Behind:
    """`Behind` for the images in a folder, from a `synthetic.json` in the folder or beside its `images/`."""
    place = folder.resolve()
    path = (place.parent if place.name == IMAGES else place) / SYNTHETIC
    return _behind(read_json(path), path) if path.is_file() else Behind()


def _categories(categories: list[dict], path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """(names, id -> label), sorted by id."""
    where = f"{path}, categories"
    if not categories:
        raise UserError("the list of categories is empty", where=path, todo="name at least one class")
    ids = [coco_fields.whole(category, "id", where) for category in categories]
    check_unique(ids, "category id", path)
    name_of = {key: checked_text(one.get("name"), "a name", where) or str(key) for key, one in zip(ids, categories)}
    label_of = {key: label for label, key in enumerate(sorted(ids))}
    classes = tuple(name_of[key] for key in label_of)
    for name, count in Counter(name.casefold() for name in classes).items():
        if count > 1:
            todo = "remove those without annotations and use one id per class, or give them different names"
            raise UserError(f"{count} categories have the name '{name}'", where=path, todo=todo)
    return classes, label_of


def _one_per_file(entries: dict[str, dict], path: Path) -> dict[str, str]:
    """The id of each entry -> the id of the first entry for the same image (a file, or a frame of it).

    UserError if the entries of an image differ.
    """
    folder, first, image_of = image_folder(path), dict[str, str](), dict[str, str]()
    plain = {}
    for key, image in entries.items():
        file = _file(folder, coco_fields.file_name_of(image, f"{path}, image {key}"))
        plain[key] = image | {"file_name": file, "id": None}
        place = unicodedata.normalize("NFC", f"{image.get('frame') or 0} {file}")
        kept = image_of[key] = first.setdefault(place, key)
        fields = plain[kept] | plain[key]
        differing = [name for name in fields if plain[kept].get(name) != plain[key].get(name)]
        if differing:
            raise UserError(
                f"the images {kept} and {key} have the same file, {image['file_name']}, but differ in {differing[0]}",
                where=path,
                todo="list an image file once, with all its annotations",
            )
    return image_of


def _file(folder: Path, name: str) -> str:
    """The path of an image file, the same for `a.png`, `./a.png` and `FOLDER/a.png`."""
    return os.path.normpath(folder / name)


def _not_repeated(annotations: list[dict]) -> list[dict]:
    """The annotations of several entries of one image, without repeats of those of an earlier entry."""
    what = ("bbox", "category_id", "iscrowd", "ignore")
    entry_of: dict[str, str] = {}
    of_entry = lambda a: entry_of.setdefault(repr([a.get(name) for name in what]), str(a["image_id"]))
    return [annotation for annotation in annotations if of_entry(annotation) == str(annotation["image_id"])]


def _behind(content: Any, path: Path) -> Behind:
    info = content.get("info") if isinstance(content, dict) else None
    return Behind(_seen_patients(info, path), _promises(info, path))


def _seen_patients(info: Any, path: Path) -> frozenset[str]:
    """The hashes in a file's `info`; earlier versions stored them as `learned_from`."""
    if not isinstance(info, dict):
        return frozenset()
    seen = info.get("seen_patients") or info.get("learned_from") or ()
    if not isinstance(seen, list | tuple) or not all(isinstance(one, str) for one in seen):
        raise UserError(f"seen_patients is {seen!r:.40}", where=f"{path}, info", todo="give a list of strings")
    return frozenset(seen)


def _promises(info: Any, path: Path) -> tuple[Statement, ...] | None:
    """The ledgers in a file's `info`; None if it has only a promise in words, as written by earlier versions."""
    if not isinstance(info, dict):
        return ()
    given = info.get("promises")
    if given in (None, []):
        return None if info.get("promise") else ()
    if not isinstance(given, list):
        raise UserError(f"promises is {given!r:.40}", where=f"{path}, info", todo="draw the set again")
    return tuple(fields.build(Statement, one, f"{path}, info.promises[{n}]") for n, one in enumerate(given))


def image_folder(path: str | Path) -> Path:
    """The folder of the images of a COCO file: `images/` beside it if that exists, else its own folder."""
    folder = Path(path).parent / IMAGES
    return folder if folder.is_dir() else folder.parent


def write_coco(
    path: str | Path,
    infos: Iterable[ImageInfo],
    classes: Sequence[str],
    description: str = "",
    licence: str = "",
    seen_patients: Collection[str] = (),
    promises: Sequence[Statement] | None = (),
) -> None:
    """Write a COCO file atomically; the caller writes the images, to `images/` beside it.

    Image ids are kept if all are whole numbers, else images are numbered from 1 in the order of `infos`. `meta` fields
    that JSON can represent go into the image entries. Boxes are rounded to 0.001 px.
    seen_patients: hashes of the patients seen by a model behind these images. promises: as in `ImageSource`; they are
    also written in words.
    """
    infos = list(infos)
    said = UNKNOWN if promises is None else in_words(promises)
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
        fixed |= {"volume": info.volume} if info.volume else {}
        fixed |= {"slice": info.slice} if info.slice >= 0 else {}
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
        "info": {"description": description}
        | ({"seen_patients": sorted(seen_patients)} if seen_patients else {})
        | ({"promise": said} if said else {})
        | ({"promises": [asdict(one) for one in promises]} if promises else {}),
        "licenses": [{"id": 1, "name": licence}] if licence else [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes)],
    }
    write_json(path, {**content, "images": images, "annotations": annotations})


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        todo = "give an object with the lists images, annotations and categories"
        raise UserError("not a COCO file", where=path, todo=todo)
    for part in parts:
        if not all(isinstance(entry, dict) for entry in content[part]):
            what = f"not a COCO file: an entry of {part} is not an object"
            raise UserError(what, where=path, todo="write every entry as {...}")
    return content


def _info(image: dict, annotations: list[dict], label_of: dict[int, int], where: str) -> ImageInfo:
    width, height = (coco_fields.whole(image, side, where) for side in ("width", "height"))
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        what = f"width and height are {width} and {height}"
        raise UserError(what, where=where, todo=f"give positive whole numbers, at most {LARGEST_SIDE}")
    boxes, ignore = np.zeros((len(annotations), 4), np.float32), np.zeros(len(annotations), bool)
    for row, annotation in enumerate(annotations):
        entry = f"{where} ({image['file_name']}), annotation {annotation['id']}"
        boxes[row] = coco_boxes.checked_corners(annotation, width, height, entry)
        ignore[row] = coco_fields.flag(annotation, "iscrowd", entry) | coco_fields.flag(annotation, "ignore", entry)
    image_id, place = coco_fields.text_id(image, "id", where), _place_in_volume(image, where)
    own = unnamed(image_id, place.get("volume", ""), image["file_name"], image.get("frame"))
    return ImageInfo(
        image_id=image_id,
        patient_id=_patient(image, where) or own,
        width=width,
        height=height,
        boxes=boxes,
        labels=np.array([label_of[coco_fields.whole(a, "category_id", where)] for a in annotations], np.int32),
        ignore=ignore,
        split=checked_text(image.get("split"), "split", where),
        file_name=image["file_name"],
        **place,
        meta=checked_lists({key: value for key, value in image.items() if key not in _IMAGE_FIELDS}, len(boxes), where),
    )


def _patient(image: dict, where: str) -> str:
    return checked_text(image.get("patient_id"), "patient_id", where)


def _check_one_patient(infos: Sequence[ImageInfo], path: Path) -> None:
    """UserError if only some slices of a volume, or frames of a file, name a patient: the others would be of another
    patient, perhaps in another split."""
    of_whole: dict[tuple[str, str], ImageInfo] = {}
    for info in infos:
        frame_of = "" if info.volume or info.meta.get("frame") is None else info.file_name
        whole = info.volume or frame_of
        other = of_whole.setdefault((info.volume, frame_of), info) if whole else info
        if info.patient_id != other.patient_id and whole in (info.patient_id, other.patient_id):
            of, alone = (other, info) if info.patient_id == whole else (info, other)
            what = f"no patient, but image {of.image_id}, which is also of '{whole}', names {of.patient_id}"
            raise UserError(what, where=f"{path}, image {alone.image_id}", todo="name the patient in all of them")


def _place_in_volume(image: dict, where: str) -> dict[str, Any]:
    """`volume` and `slice` of an image. The volume of a slice may be unnamed."""
    volume, position = checked_text(image.get("volume"), "volume", where), whole_number(image.get("slice"))
    if image.get("volume") is None and image.get("slice") is None:
        return {}
    if position is None or position < 0 or (not volume and image.get("volume") is not None):
        todo = "give the volume's id and the position in it, a whole number from 0; or rename the field"
        raise UserError(f"volume is {image.get('volume')!r} and slice {image.get('slice')!r}", where=where, todo=todo)
    if image.get("volume_slices") is not None:
        slices = whole_number(image["volume_slices"])
        if slices is None or slices <= position:
            todo = "count slices from 0 and give the number of all slices of the volume, or leave volume_slices out"
            what = f"slice {position} of a volume whose volume_slices is {image['volume_slices']!r}"
            raise UserError(what, where=where, todo=todo)
    return {"volume": volume, "slice": position}


def _plain(value: Any) -> Any:
    """numpy values as Python ones, for JSON."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
