"""Write phantom tomosynthesis volumes in the layout of BCS-DBT: DICOM files, and three tables per split.

  python data_prep/phantom_volumes.py --output=data/phantom_dbt --options=count=48,size=256

OPTIONS are those of the data source phantom_volumes: except `modality`. The folder has
Breast-Cancer-Screening-DBT/<patient>/<study>/<series>/1-1.dcm and, per split, BCS-DBT-labels-*.csv, BCS-DBT-boxes-*.csv
and BCS-DBT-file-paths-*.csv. A lesion is in the boxes table with its central slice; round, lobulated and rim-enhancing
lesions are benign, the others cancer.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before any import of elk_jax
import numpy as np
from folders import new_folder
from rich.progress import track
from tomosynthesis_dicom import Header, volume_dataset

from elk_jax.data.sources import phantom_sets
from elk_jax.data.sources.phantom_volumes import VolumeOptions, parse_options
from elk_jax.errors import run_main
from elk_jax.files import make_folder
from elk_jax.output import Console
from elk_jax.synthesis.phantom_volume import PhantomVolume, sample

COLLECTION = "Breast-Cancer-Screening-DBT"
SPLITS = {"train": "train", "val": "validation", "test": "test"}
COLUMNS = {
    "labels": ("PatientID", "StudyUID", "View", "Normal", "Actionable", "Benign", "Cancer"),
    "boxes": (
        *("PatientID", "StudyUID", "View", "Subject", "Slice", "X", "Y", "Width", "Height"),
        *("Class", "AD", "VolumeSlices"),
    ),
    "file-paths": ("PatientID", "StudyUID", "View", "descriptive_path", "classic_path"),
}


@dataclass(frozen=True)
class Rows:
    """The rows of one volume in each table."""

    labels: dict[str, Any]
    boxes: list[dict[str, Any]]
    paths: dict[str, Any]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="phantom_volumes.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder to build; it appears once it is complete")
    parser.add_argument("--options", default="count=48", help="KEY=VALUE,... (default: %(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output folder once the new one is complete"
    )
    flags = parser.parse_args(argv)
    options = parse_options(flags.options)
    jobs = phantom_sets.jobs(options, "", "--options")
    with new_folder(flags.output, _table("labels", "train"), flags.overwrite) as built:
        rows: dict[str, list[Rows]] = {split: [] for split in SPLITS}
        for split, index in track(jobs, "drawing volumes", console=Console(stderr=True)):
            rows[split].append(_write_volume(built, options, index))
        for split, of_split in rows.items():
            _write_tables(built, SPLITS[split], of_split)
    lesions = sum(len(row.boxes) for of_split in rows.values() for row in of_split)
    print(f"built {flags.output}: {len(jobs)} volumes of {options.slices} slices, {lesions} boxes")


def _write_volume(folder: Path, options: VolumeOptions, index: int) -> Rows:
    """Write one file, and return its rows of the tables."""
    volume = sample(options.seed, index, options)
    header = Header(
        patient_id=volume.patient_id,
        study=volume.study,
        laterality=volume.laterality,
        view=volume.view,
        pixel_spacing=volume.spacing[0],
        slice_spacing=volume.spacing[1],
    )
    dataset = volume_dataset(volume.slices(), header)
    path = f"{COLLECTION}/{header.patient_id}/{dataset.StudyInstanceUID}/{dataset.SeriesInstanceUID}/1-1.dcm"
    make_folder((folder / path).parent)
    dataset.save_as(folder / path, enforce_file_format=True)
    key = {"PatientID": header.patient_id, "StudyUID": header.study, "View": header.title}
    boxes = [key | box for box in _boxes(volume)]
    found = {box["Class"] for box in boxes}
    label = "Cancer" if "cancer" in found else "Benign" if found else "Normal"
    labels = {name: int(name == label) for name in ("Normal", "Actionable", "Benign", "Cancer")}
    return Rows(key | labels, boxes, key | {"descriptive_path": path, "classic_path": path})


def _boxes(volume: PhantomVolume) -> list[dict[str, Any]]:
    rows = []
    for box, position, kind in zip(volume.boxes, volume.central, volume.lesion_kinds):
        left, top, right, bottom = np.round(box).astype(int).tolist()
        place = {"X": left, "Y": top, "Width": right - left, "Height": bottom - top}
        name = "cancer" if kind in phantom_sets.MALIGNANT else "benign"
        about = {"Subject": "", "Class": name, "AD": 0, "VolumeSlices": len(volume.slice_heights)}
        rows.append({"Slice": int(position)} | place | about)
    return rows


def _write_tables(folder: Path, split: str, rows: list[Rows]) -> None:
    tables = {
        "labels": [row.labels for row in rows],
        "boxes": [box for row in rows for box in row.boxes],
        "file-paths": [row.paths for row in rows],
    }
    for name, table in tables.items():
        with open(folder / _table(name, split), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS[name], lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


def _table(name: str, split: str) -> str:
    return f"BCS-DBT-{name}-{split}-v2.csv"


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
