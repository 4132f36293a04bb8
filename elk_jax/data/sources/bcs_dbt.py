"""The tomosynthesis volumes of BCS-DBT, or any in its layout: `bcs_dbt:DIR`.

DIR contains the tables and, below it, the DICOM files. A table is recognised by its columns, whatever its name:

  labels  PatientID, StudyUID, View, Normal, Actionable, Benign, Cancer        one row per volume
  boxes   PatientID, StudyUID, View, Slice, X, Y, Width, Height, Class, VolumeSlices
  paths   PatientID, StudyUID, View, descriptive_path, classic_path

The split of a row is the word train, validation or test in the name of its table. Slices are counted from 0; boxes
refer to slices oriented according to the view (`dicom_volumes`). One class, `lesion`; conditions select by the fields
`class` (normal, actionable, benign, cancer), `study_uid` and `view`. Actionable volumes have no boxes, and their
lesions were never biopsied: they count as volumes without lesions, as in the challenge.

The boxes of the tables are the lesions, even if they leave their slices: the challenge's evaluation uses them as
written, and so does ours, from the tables (`read_entries`) and from slices (`Volume.lesions`). Detectors learn the part
of a box inside its slice. If no part is inside, the position of the lesion is unknown and its slices are ignored. A log
line reports boxes that leave their slices (`checks.boxes_outside`).

Source: Buda et al., JAMA Netw Open 2021, e2119100; The Cancer Imaging Archive, doi 10.7937/E4WT-CD02.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from elk_jax import files
from elk_jax.data.sources import checks
from elk_jax.data.sources.slices import chosen_slices, with_lesions
from elk_jax.data.sources.source import ImageSource, read_at
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.volumes import Volume, as_source, dicom_volume
from elk_jax.errors import UserError
from elk_jax.images import boxes as box_ops
from elk_jax.images.names import checked_text
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

CLASSES = ("lesion",)
KEY = ("PatientID", "StudyUID", "View")
LABELS = ("Normal", "Actionable", "Benign", "Cancer")
WITH_BOXES = ("benign", "cancer")
"""Labels of volumes whose lesions were biopsied, and are marked."""
BOX = ("Slice", "X", "Y", "Width", "Height", "VolumeSlices")
PATHS = ("descriptive_path", "classic_path")
_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
_FILES = ("1-1.dcm", "000000.dcm")
"""File names of a volume in the different versions of the downloader."""
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Entry:
    """One volume of the tables. kind: "" without a label. slices: 0 if no box gives their number."""

    patient_id: str
    study: str
    view: str
    split: str
    kind: str  # normal, actionable, benign or cancer
    boxes: np.ndarray  # [N, 4] float32
    at: np.ndarray  # [N] slice of each box
    slices: int
    paths: tuple[str, ...]  # possible places of its file, below the folder

    @property
    def name(self) -> str:
        """The id of the volume."""
        return f"{self.patient_id}_{self.study}_{self.view}"


def read_entries(folder: Path, split: str = "") -> list[Entry]:
    """The volumes of the tables in a folder, in the order of the labels; no DICOM file is opened.

    UserError: a kind of table is missing, a volume or box occurs twice, a study has two patients, a box or path belongs
    to a volume without label, a normal volume has a box, a row without patient or study, bad numbers, a box without
    area or in shares of the slice. A line is logged if volumes with a biopsied lesion have no box.
    """
    labels = dict(_unique(_rows(folder, LABELS), "labels"))
    patient_of: dict[str, str] = {}
    for (patient, study, _), (_, where, _) in labels.items():
        if (other := patient_of.setdefault(study, patient)) != patient:
            what = f"the study {study} belongs to two patients, {other} and {patient}"
            raise UserError(what, where=where, todo="give every study its own UID")
    paths = dict(_unique(_rows(folder, PATHS), "paths"))
    boxes: dict[Key, list[tuple[str, Mapping[str, str]]]] = {}
    for key, _, where, row in _rows(folder, BOX):
        if key not in labels:
            raise UserError(f"the volume {' '.join(key)} has no label", where=where, todo="use tables of one release")
        boxes.setdefault(key, []).append((where, row))
    for key, (_, where, _) in paths.items():
        if key not in labels:
            raise UserError(f"the volume {' '.join(key)} has no label", where=where, todo="use tables of one release")
    entries = [
        _entry(key, part, where, row, boxes.get(key, []), paths.get(key)) for key, (part, where, row) in labels.items()
    ]
    chosen = [entry for entry in entries if not split or entry.split == split or not entry.split]
    unmarked = [entry for entry in chosen if entry.kind in WITH_BOXES and not len(entry.boxes)]
    if unmarked:
        what = f"{len(unmarked)} of {len(chosen)} volumes are labelled {' or '.join(WITH_BOXES)}, but have no box"
        checks.note(f"{folder}: {what}, the first {unmarked[0].name}: they count as volumes without lesions")
    return chosen


def open_bcs_dbt(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """The slices, selected by `spec.slices`, of all volumes of a split; the headers of their files are read now.

    UserError as in `read_entries` and `dicom_volume`, and for volumes with no file or two.
    """
    entries = read_entries(Path(spec.place), split)
    volumes = _open_all(entries, spec, progress)
    marked = [(volume.name, entry.boxes, volume.size) for volume, entry in zip(volumes, entries)]
    if line := checks.boxes_outside(marked):
        checks.note(f"{spec.spec}: {line}")
    return as_source(volumes, CLASSES, spec.spec)


def open_unlabelled(spec: SourceSpec) -> list[Volume]:
    """The whole volumes listed in the tables of paths; tables of labels and boxes are not read and need not exist.

    UserError as in `open_bcs_dbt`.
    """
    named = _unique(_rows(Path(spec.place), PATHS), "paths")
    none = np.zeros((0, 4), np.float32), np.zeros(0, int)
    entries = [Entry(*key, split, "", *none, 0, _places(row)) for key, (split, _, row) in named]
    return _open_all(entries, replace(spec, slices="all"))


def _open_all(entries: list[Entry], spec: SourceSpec, progress: ProgressBar = no_bar) -> list[Volume]:
    folder = Path(spec.place)
    places = [_file_of(entry, folder) for entry in entries]
    if missing := [entry.name for entry, place in zip(entries, places) if place is None]:
        what = f"{len(missing)} of {len(entries)} volumes have no file; the first is {missing[0]}"
        todo = "fetch them, or remove their rows from the tables"
        raise UserError(what, where=spec.spec, todo=todo)
    return map_in_threads(partial(_opened, entries, places, spec), len(entries), progress)


def _opened(entries: list[Entry], places: list[Path | None], spec: SourceSpec, position: int) -> Volume:
    entry, path = entries[position], places[position]
    assert path is not None
    volume = dicom_volume(path, spec, view=entry.view, name=entry.name)
    if entry.slices and entry.slices != len(volume):
        what = f"the file has {len(volume)} frames, but VolumeSlices in the table is {entry.slices}"
        raise UserError(what, where=path, todo="fetch the file again, or correct the table")
    width, height = volume.infos[0].width, volume.infos[0].height
    parts = box_ops.clipped(entry.boxes, width, height)
    unseen = box_ops.area(parts) == 0
    parts[unseen] = (0, 0, width, height)
    chosen = chosen_slices(len(volume), entry.at, spec.slices)
    fields = {"study_uid": entry.study, "class": entry.kind}
    infos = []
    for k in chosen:
        info, seen = with_lesions(volume.infos[k], parts, entry.at, spec.slices)
        meta = info.meta | fields
        if (parts != entry.boxes)[seen].any():
            meta["lesion_boxes"] = entry.boxes[seen].tolist()
        ignore = info.ignore | unseen[seen]
        infos.append(replace(info, patient_id=entry.patient_id, split=entry.split, ignore=ignore, meta=meta))
    return Volume(tuple(infos), partial(read_at, volume.read, tuple(chosen)), volume.instance)


def _rows(folder: Path, columns: tuple[str, ...]) -> Iterator[tuple[Key, str, str, Mapping[str, str]]]:
    """(volume, split, place for errors, row) of the tables with these columns."""
    if not folder.is_dir():
        raise UserError("no such folder", where=f"bcs_dbt:{folder}", todo="give bcs_dbt:DIR")
    tables = [path for path, names in _tables(folder).items() if {*KEY, *columns} <= names]
    if not tables:
        what = f"no table with the columns {', '.join((*KEY, *columns))}"
        raise UserError(what, where=folder, todo="put the CSV files of the collection there")
    for path in tables:
        words = re.findall("[a-z]+", path.stem.lower())
        split = next((_SPLITS[word] for word in words if word in _SPLITS), "")
        for where, row in files.read_table(path, (*KEY, *columns)):
            view = row["View"].lower()
            if not view.startswith(("l", "r")):
                todo = "write the side first, as in lcc or rmlo: it determines the orientation of the volume"
                raise UserError(f"View is {row['View']!r}", where=where, todo=todo)
            for name in ("PatientID", "StudyUID"):
                if not checked_text(row[name], name, where):
                    raise UserError(f"{name} is {row[name]!r}", where=where, todo="write the ID, or remove the row")
            yield (row["PatientID"], row["StudyUID"], view), split, where, row


def _tables(folder: Path) -> dict[Path, set[str]]:
    """The tables of volumes, with their columns. UserError for a table that is empty, of an unknown kind, or without a
    column that identifies volumes: its rows would be missed."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.name[0] != ".")
    headers = {path: re.split("[\r\n]", files.read_text(path).lstrip("\r\n"), maxsplit=1)[0] for path in paths}
    for path, header in headers.items():
        files.check_there(header.strip().encode(), path)
    tables = {}
    for path, header in headers.items():
        names = _names(header, ",")
        if not any({"PatientID", "StudyUID"} & _names(header, between) for between in ",;\t"):
            continue  # not a table of volumes
        if missing := [name for name in KEY if name not in names]:
            what = f"a table of volumes without the column {', '.join(missing)}"
            todo = f"name its columns {', '.join(KEY)}, separated by commas, or move it elsewhere"
            raise UserError(what, where=path, todo=todo)
        if not any(names.issuperset(columns) for columns in (LABELS, BOX, PATHS)):
            what = "a table of volumes without the columns of labels, boxes or paths"
            todo = f"move it elsewhere, or add the columns {', '.join(BOX)} (boxes), or those of labels or paths"
            raise UserError(what, where=path, todo=todo)
        tables[path] = names
    return tables


def _names(header: str, between: str) -> set[str]:
    """The columns in the first line of a table, quoted or not. between: their separator."""
    return {name.strip() for line in csv.reader([header], delimiter=between) for name in line}


def _unique(
    rows: Iterator[tuple[Key, str, str, Mapping[str, str]]], kind: str
) -> Iterator[tuple[Key, tuple[str, str, Mapping[str, str]]]]:
    seen: dict[Key, str] = {}
    for key, split, where, row in rows:
        if key in seen:
            what = f"the volume {' '.join(key)} has two rows of {kind}, the first in {seen[key]}"
            raise UserError(what, where=where, todo="keep one; a folder must contain one release of the tables")
        seen[key] = where
        yield key, (split, where, row)


def _entry(
    key: Key,
    split: str,
    where: str,
    label: Mapping[str, str],
    boxes: list[tuple[str, Mapping[str, str]]],
    path: tuple[str, str, Mapping[str, str]] | None,
) -> Entry:
    values = {name.lower(): files.number(label, name, where) for name in LABELS}
    kinds = [name for name, value in values.items() if value]
    if len(kinds) != 1 or values[kinds[0]] != 1:
        what = f"of {', '.join(LABELS)}, {' and '.join(kinds) or 'none'} is not 0; exactly one must be 1"
        raise UserError(what, where=where, todo="set one of them to 1, the others to 0")
    if boxes and kinds == ["normal"]:
        what = f"the volume {' '.join(key)} is Normal, but has a box in {boxes[0][0]}"
        raise UserError(what, where=where, todo="label it by what the box shows, or remove the box")
    corners: list[list[float]] = []
    at: list[int] = []
    counts: list[int] = []
    for place, row in boxes:
        position, x, y, width, height, count = (files.number(row, name, place) for name in BOX)
        are_whole = int(position) == position and int(count) == count
        if min(width, height) <= 0 or not 0 <= position < count or not are_whole:
            what = f"a box of {width:g} x {height:g} px in slice {position:g} of {count:g}"
            raise UserError(what, where=place, todo="correct the row")
        corners.append([x, y, x + width, y + height])
        if (corners[-1], int(position)) in zip(corners[:-1], at):  # no finding could hit the second one
            what = f"the box in slice {position:g} of the volume {' '.join(key)} occurs twice"
            raise UserError(what, where=place, todo="remove one of the rows")
        box = np.array(corners[-1:], np.float32)
        if not box_ops.area(box)[0] > 0 or box_ops.within_a_pixel(box)[0]:
            what = f"a box of {width:g} x {height:g} px at ({x:g}, {y:g})"
            raise UserError(
                what, where=place, todo="if these are shares of the slice, convert them to pixels; else correct the row"
            )
        if counts and count != counts[0]:
            what = f"VolumeSlices is {count:g}, but {counts[0]} in another row of the volume"
            raise UserError(what, where=place, todo="correct one of the rows")
        at.append(int(position))
        counts.append(int(count))
    found = _places(path[2]) if path else ()
    boxes_of = np.array(corners, np.float32).reshape(-1, 4)
    return Entry(*key, split, kinds[0], boxes_of, np.array(at, int), counts[0] if counts else 0, found)


def _places(row: Mapping[str, str]) -> tuple[str, ...]:
    """Possible places of a volume's file, from its row in the table of paths."""
    return tuple(row[name] for name in PATHS if row[name])


def _file_of(entry: Entry, folder: Path) -> Path | None:
    """The file of a volume: either layout and name of the downloader, with or without the collection's folder.

    UserError if a volume has two files.
    """
    found: dict[Path, None] = {}
    for text in entry.paths:
        path = PurePosixPath(text.replace("\\", "/"))
        for below in (path, PurePosixPath(*path.parts[1:])):
            for name in dict.fromkeys((path.name, *_FILES)):
                place = folder / below.parent / name
                if place.is_file():
                    found[place.resolve()] = None
    if len(found) > 1:
        what = f"the volume {entry.name} has two files: {' and '.join(str(place) for place in found)}"
        raise UserError(what, where=folder, todo="keep one of them")
    return next(iter(found), None)
