"""Tables and images in the layout of CDD-CESM, tiny."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import openpyxl

COLUMNS = [
    *("Image_name", "Patient_ID", "Side", "Type", "Age", "Breast density (ACR)", "BIRADS", "Findings", "View", "Tags"),
    *("Machine", "Pathology Classification/ Follow up"),
]


def image_row(name: str, tags="malignant, mass", findings="Enhancing mass", pathology="Malignant", **other) -> list:
    """A row of the table of images; patient, side, type and view follow from the name."""
    patient, side, kind, view = name.strip().split("_")[:4]
    kind = {"CM": "CESM", "DM": "DM"}[kind]
    density = other.get("density", "_" if kind == "CESM" else "C")
    return [name, int(patient[1:]), side, kind, 50, density, other.get("birads", 5), findings, view, tags, 1, pathology]


def write_tables(folder: Path, images: list[list], regions: list[tuple[str, dict]], kind: str = "xlsx") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "xlsx":
        book = openpyxl.Workbook()
        book.active.title = "mass_description"
        book.active.append(["not", "this", "one"])
        sheet = book.create_sheet("all")
        for row in [COLUMNS, *images]:
            sheet.append(row)
        book.save(folder / "Radiology-manual annotations.xlsx")
    else:
        with open(folder / "Radiology-manual-annotations.csv", "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *images])
    with open(folder / "Radiology_hand_drawn_segmentations_v2.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["#filename", "file_size", "file_attributes", "region_count", "region_id",
                         "region_shape_attributes", "region_attributes"])  # fmt: skip
        counts = Counter(name for name, _ in regions)
        for number, (name, shape) in enumerate(regions):
            writer.writerow([f"{name}.jpg", 1, "{}", counts[name], number, json.dumps(shape), "{}"])


def circle(cx: float, cy: float, r: float) -> dict:
    return {"name": "circle", "cx": cx, "cy": cy, "r": r}


def breast(name: str, height=60, width=40) -> np.ndarray:
    """[height, width] uint8: a bright half disc at the chest wall of the side in the name, with noise."""
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + x**2 < (0.45 * height) ** 2
    pixels = np.where(disc, 150 + 40 * np.sin(x + y), 0)
    return (pixels if "_L_" in name else pixels[:, ::-1]).astype(np.uint8)
