"""Read the official annotation tables of CDD-CESM: one plain record per image, with ELK's filter and boxes.

Shapes: N regions or boxes of one image, xyxy, px of the published image; the origin is the corner of the first pixel.

The tables are `Radiology-manual-annotations` (one row per image; XLSX, sheet `all`, or the same as CSV) and
`Radiology_hand_drawn_segmentations_v2.csv` (one row per region, from the VGG Image Annotator). Some
image names have spaces in the first table but not in the second; only low-energy rows have the density.
Source: Khaled et al., Scientific Data 2022; filter and cleaning: Montoya-del-Angel et al. 2024.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

import numpy as np

from elk_jax import files
from elk_jax.budget import budget_for
from elk_jax.data.sources.cleaning import keep_clean_boxes
from elk_jax.data.sources.patients import patient_key
from elk_jax.errors import UserError
from elk_jax.images.boxes import area, iou

Filter = Literal["elk", "all_masses", "none"]
Cleaning = Literal["published", "strict", "none"]

_IMAGE_COLUMNS = (
    *(
        "Image_name",
        "Patient_ID",
        "Side",
        "Type",
        "Breast density (ACR)",
        "BIRADS",
        "Findings",
        "View",
        "Tags",
    ),
    "Pathology Classification/ Follow up",
)
_REGION_COLUMNS = ("#filename", "region_count", "region_id", "region_shape_attributes")
OBJECTS_OF_XML = 8
"""Bytes of memory that a spreadsheet takes for each byte of its XML."""
_MODALITIES = {"CESM": "subtracted", "DM": "low_energy"}
_CODES = {"CESM": "CM", "DM": "DM"}
"""Column Type -> the kind of image, and its code in the file name."""
_EXCLUDED_FINDINGS = ("non enhancement", "focus enhancement", "rim enhancement")


@dataclass(frozen=True)
class ImageRow:
    """One image in the tables."""

    name: str  # "P3_L_CM_MLO", the file name without its extension
    patient_id: str
    side: str  # "L" or "R"
    view: str  # "CC" or "MLO"
    modality: str  # "subtracted" or "low_energy"
    density: str  # ACR "A" to "D", "" if not given
    birads: str  # as in the table: "5", or "4$2" for several findings
    findings: str
    tags: str
    pathology: str  # "Malignant", "Benign" or "Normal"
    boxes: np.ndarray  # [N, 4] float32, one per region with an area, in the order of the table
    points: int  # number of regions that are points


def read_tables(folder: str | Path) -> tuple[ImageRow, ...]:
    """Find and read both tables anywhere below `folder`. UserError if one is missing, ambiguous or malformed."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            "no such folder",
            where=folder,
            todo="give the folder with the images and tables of CDD-CESM",
        )
    images = _find(folder, "Radiology", "manual", "annotations", endings=(".xlsx", ".csv"))
    regions = _find(folder, "Radiology", "segmentations", endings=(".csv",))
    rows = _read_xlsx(images) if images.suffix.lower() == ".xlsx" else _read_csv(images)
    return join_tables(
        _checked(rows, _IMAGE_COLUMNS, images),
        images,
        _checked(_read_csv(regions), _REGION_COLUMNS, regions),
        regions,
    )


def join_tables(
    image_rows: list[dict[str, str]], images: Path, region_rows: list[dict[str, str]], regions: Path
) -> tuple[ImageRow, ...]:
    """Join the rows of both tables to records in the order of the first. The paths are for error messages."""
    _check_regions(region_rows, regions)
    boxes: dict[str, list] = defaultdict(list)
    points: Counter[str] = Counter()
    for row in region_rows:
        name = squeeze(row["#filename"])
        name = name.rsplit(".", 1)[0] if "." in name else name
        box = region_box(row["region_shape_attributes"], f"{regions}, line {row['line']}, {row['#filename']}")
        if box is None:
            points[name] += 1
        else:
            boxes[name].append(box)
    density = {}  # density of a breast, from its low-energy images
    for row in image_rows:
        grade = row["Breast density (ACR)"].strip().upper()
        if grade in ("A", "B", "C", "D"):
            density[_patient(row), row["Side"].strip().upper()] = grade
    result: dict[str, ImageRow] = {}
    for row in image_rows:
        name, patient, side = (
            squeeze(row["Image_name"]),
            _patient(row),
            row["Side"].strip().upper(),
        )
        where = f"{images}, line {row['line']}, {name or 'no name'}"
        kind = row["Type"].strip().upper()
        if kind not in _MODALITIES or side not in ("L", "R") or not patient or not name:
            raise UserError(f"patient '{patient}', side '{side}', type '{kind}'", where=where,
                            todo="give a name, a patient, L or R, and DM or CESM")  # fmt: skip
        view, named = row["View"].strip().upper(), name.upper().split("_")
        said = {"patient": patient_key(patient), "side": side, "type": _CODES[kind], "view": view}
        for (what, value), other in zip(said.items(), [patient_key(named[0]), *named[1:]]):
            second = what == "view" and value and other.startswith(value)  # a second image is called MLO2
            if value != other and not second:
                raise UserError(f"the row has {what} '{value}', but the image's name has '{other}'", where=where,
                                todo="correct one of them")  # fmt: skip
        if name in result:
            raise UserError("the image occurs twice", where=where, todo="keep one of the rows")
        result[name] = ImageRow(
            name=name,
            patient_id=patient,
            side=side,
            view=view,
            modality=_MODALITIES[kind],
            density=density.get((patient, side), ""),
            birads=row["BIRADS"].strip(),
            findings=row["Findings"].strip(),
            tags=row["Tags"].strip(),
            pathology=row["Pathology Classification/ Follow up"].strip(),
            boxes=np.array(boxes.pop(name, []), np.float32).reshape(-1, 4),
            points=points[name],
        )
    if boxes:
        what = f"regions of {len(boxes)} images that are not in the table of images, for example {min(boxes)}"
        raise UserError(what, where=regions, todo="use both tables of one release")
    return tuple(result.values())


def _check_regions(rows: list[dict[str, str]], path: Path) -> None:
    """UserError for a region that occurs twice, and for an image with fewer or more regions than its rows declare: the
    table is then cut short, or parts of it were joined, and the boxes and the split would be others."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        ids, number = found[row["#filename"]], row["region_id"].strip()
        if number in ids:
            what = f"region {number} of {row['#filename']} occurs twice"
            raise UserError(what, where=f"{path}, line {row['line']}", todo="keep one of the rows")
        ids.add(number)
    for row in rows:
        name, count = row["#filename"], row["region_count"].strip()
        if count != str(len(found[name])):
            what = f"{name} has {len(found[name])} regions, but its region_count is {count or 'empty'}"
            raise UserError(what, where=f"{path}, line {row['line']}", todo="download the table again")


def region_box(attributes: str, where: str) -> tuple[float, float, float, float] | None:
    """Bounding rectangle (xyxy, px) of the filled mask of one region, or None for a region without an area.

    attributes: JSON of the annotator: polygon, polyline (also filled), ellipse (centre and RADII, `theta` in radians),
    circle, rect, point. A pixel belongs to the mask if its index is inside or on the outline, so the rectangle of a
    polygon with corners 10 and 20 is 10 to 21. Negative coordinates are clipped to the image.
    """
    try:
        shape = json.loads(attributes)
        name = shape["name"]
        if name in ("polygon", "polyline"):
            xs, ys = shape["all_points_x"], shape["all_points_y"]
            if len(xs) != len(ys) or not xs:
                raise ValueError(f"{len(xs)} x and {len(ys)} y coordinates")
            edges = [min(xs), min(ys), max(xs), max(ys)]
        elif name == "rect":
            edges = [
                shape["x"],
                shape["y"],
                shape["x"] + shape["width"] - 1,
                shape["y"] + shape["height"] - 1,
            ]
        elif name in ("ellipse", "circle"):
            rx, ry = (shape["r"], shape["r"]) if name == "circle" else (shape["rx"], shape["ry"])
            if rx <= 0 or ry <= 0:
                return None
            angle = shape.get("theta", 0.0)
            half_width = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
            half_height = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
            cx, cy = shape["cx"], shape["cy"]
            edges = [math.ceil(cx - half_width), math.ceil(cy - half_height)]
            edges += [max(edges[0], math.floor(cx + half_width)), max(edges[1], math.floor(cy + half_height))]
        elif name == "point":
            return None
        else:
            raise ValueError(f"unknown shape '{name}'")
        if not all(math.isfinite(edge) for edge in edges):
            raise ValueError("a coordinate is NaN or infinite")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        missing = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"not a region: {missing}", where=where, todo="correct the row, or download the table again"
        ) from error
    left, top = max(0, math.floor(edges[0])), max(0, math.floor(edges[1]))
    right, bottom = math.floor(edges[2]) + 1, math.floor(edges[3]) + 1
    return (left, top, right, bottom) if right > left and bottom > top else None


def passes(row: ImageRow, rule: Filter) -> bool:
    """Whether the image belongs to the data set. `elk`: the published rule; `all_masses`: only by its tags."""
    if rule == "none":
        return True
    tags, findings = row.tags.lower(), row.findings.lower()
    if "non mass" in tags or "mass" not in tags:
        return False
    return rule == "all_masses" or not any(excluded in findings for excluded in _EXCLUDED_FINDINGS)


def is_healthy(row: ImageRow) -> bool:
    """Whether the image is normal in every column and has no region: a canvas, or a lesion-free image."""
    tags = [tag.strip() for tag in row.tags.lower().split(",")]
    return "normal" in tags and row.pathology.lower() == "normal" and len(row.boxes) + row.points == 0


def kept_boxes(boxes: np.ndarray, rule: Cleaning) -> np.ndarray:
    """Mask [N] of the boxes of one image after cleaning; `strict` is `elk_jax/data/sources/cleaning.py`."""
    if rule == "published":
        return published_cleaning(boxes)
    return keep_clean_boxes(boxes) if rule == "strict" else np.ones(len(boxes), bool)


def published_cleaning(boxes: np.ndarray, max_iou: float = 0.3) -> np.ndarray:
    """Mask [N] of the boxes in the published list of 555.

    The rule as stated: no box inside another, and of two with IoU > `max_iou` only the larger. The list differs from
    this rule in two ways. A box is also dropped if it overlaps a box that is itself dropped (2 boxes). And in an image
    that loses a box, every box is restored whose left and top edges both occur among the remaining boxes, in effect
    exact duplicates (4 boxes in 3 images). The stated rule gives 551 boxes, `strict` cleaning 553.
    """
    boxes = np.asarray(boxes, np.float64)
    order = np.argsort(-area(boxes), kind="stable")
    inside = np.zeros(len(boxes), bool)
    similar = np.zeros(len(boxes), bool)
    for rank, index in enumerate(order):
        larger = boxes[order[:rank]]
        inside[index] = ((larger[:, :2] <= boxes[index, :2]) & (larger[:, 2:] >= boxes[index, 2:])).all(1).any()
    for rank, index in enumerate(order):
        larger = boxes[[i for i in order[:rank] if not inside[i]]].reshape(-1, 4)
        similar[index] = (iou(larger, boxes[[index]]) > max_iou).any()
    keep = ~inside & ~similar
    if not keep.all():
        keep = np.isin(boxes[:, 0], boxes[keep, 0]) & np.isin(boxes[:, 1], boxes[keep, 1])
    return keep


def squeeze(name: str) -> str:
    """A name without spaces."""
    return "".join(name.split())


def _patient(row: dict[str, str]) -> str:
    """The patient of a row: spreadsheets write 3 as 3.0 or 003."""
    text = row["Patient_ID"].strip()
    return key if (key := patient_key(text)).isdecimal() else text


def _find(folder: Path, *words: str, endings: tuple[str, ...]) -> Path:
    """The only file below `folder` whose name contains all words, with the first ending that occurs."""
    for ending in endings:
        found = [
            path
            for path in files.below(folder)
            if path.suffix.lower() == ending
            and all(word.lower() in path.name.lower() for word in words)
            and not path.name.startswith((".", "~"))
        ]
        if len(found) > 1:
            what = f"{len(found)} tables match: {found[0].name} and {found[1].name}"
            raise UserError(what, where=folder, todo="keep one of them")
        if found:
            return found[0]
    raise UserError(f"no table matches *{'*'.join(words)}*{' or '.join(endings)}", where=folder,
                    todo="add the tables of CDD-CESM, which come with the images")  # fmt: skip


def _read_csv(path: Path) -> list[list[str]]:
    """The lines of a table, the header first."""
    try:
        return list(csv.reader(io.StringIO(files.read_bytes(path).decode("utf-8-sig"), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"not a CSV table: {error}", where=path, todo="download it again") from error


def _read_xlsx(path: Path) -> list[list[str]]:
    """The lines of the sheet 'all'. The sizes declared by the archive and its rows are checked against a budget before
    allocation."""
    import openpyxl

    content = files.read_bytes(path)
    budget = budget_for(len(content), path)
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            budget.spend(OBJECTS_OF_XML * sum(member.file_size for member in archive.infolist()), "its tables")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        if "all" not in book.sheetnames:
            raise UserError("the sheet 'all' is missing", where=path, todo=f"it has {', '.join(book.sheetnames)}")
        lines = []
        for line in book["all"].iter_rows(values_only=True):
            budget.spend(64 * len(line), "its rows")  # the sheet declares the width of a row
            lines.append(["" if cell is None else str(cell) for cell in line])
    except UserError:
        raise
    except Exception as error:  # damaged archives and damaged XML can fail in any way
        what = f"not an XLSX table: {error or type(error).__name__}"
        raise UserError(" ".join(what.split()), where=path, todo="download it again") from error
    return lines


def _checked(lines: list[list[str]], columns: Iterable[str], path: Path) -> list[dict[str, str]]:
    """The rows with the required columns, whose names may have spaces around them, and their number, `line`.

    Empty rows are left out.
    """
    header = [name.strip() for name in lines[0]] if lines else []
    rows = [(number, line) for number, line in enumerate(lines[1:], start=2) if any(cell.strip() for cell in line)]
    if not rows:
        raise UserError("the table is empty", where=path, todo="download it again")
    for column in columns:
        if header.count(column) != 1:
            what = "is missing" if column not in header else f"occurs {header.count(column)} times"
            raise UserError(f"the column '{column}' {what}", where=path, todo=f"it has {', '.join(header)}")
    for number, line in rows:
        if any(cell.strip() for cell in line[len(header) :]):
            what = f"{len(line)} cells below a header of {len(header)}: a comma in a text shifts the following cells"
            raise UserError(what, where=f"{path}, line {number}", todo="put the text in quotes")
    blank = dict.fromkeys(columns, "")
    return [blank | dict(zip(header, line)) | {"line": str(number)} for number, line in rows]
