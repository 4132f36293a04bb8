"""Six small volumes in the layout of BCS-DBT: multi-frame DICOM files and the tables of two splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.sources.dicom_files import item, make

SHAPE = (12, 64, 48)
WINDOW = {"WindowCenter": 500, "WindowWidth": 1000}
GROUPS = [item(FrameVOILUTSequence=[item(**WINDOW)], PixelMeasuresSequence=[item(PixelSpacing=[0.1, 0.1])])]
VOLUMES = {  # (patient, study, view): (split, side of the breast as stored, laterality of the header)
    ("DBT-P1", "DBT-S1", "lcc"): ("train", "L", "L"),
    ("DBT-P1", "DBT-S1", "rcc"): ("train", "R", "R"),
    ("DBT-P2", "DBT-S2", "lmlo"): ("train", "L", "R"),  # a wrong header
    ("DBT-P3", "DBT-S3", "rmlo"): ("train", "L", "R"),  # turned by 180 degrees
    ("DBT-P4", "DBT-S4", "lcc2"): ("test", "L", "L"),
    ("DBT-P5", "DBT-S5", "rcc"): ("test", "R", "R"),  # without boxes
}
BOXES = [  # patient, study, view, slice, x, y, width, height; in the turned slices
    ("DBT-P1", "DBT-S1", "lcc", 3, 5, 10, 8, 6),
    ("DBT-P1", "DBT-S1", "lcc", 8, 20, 30, 4, 4),
    ("DBT-P1", "DBT-S1", "rcc", 5, 30, 20, 8, 8),
    ("DBT-P2", "DBT-S2", "lmlo", 6, 8, 8, 10, 10),
    ("DBT-P3", "DBT-S3", "rmlo", 6, 30, 8, 10, 12),
    ("DBT-P4", "DBT-S4", "lcc2", 2, 4, 40, 6, 6),
]
COLUMNS = {
    "labels": "PatientID,StudyUID,View,Normal,Actionable,Benign,Cancer",
    "boxes": "PatientID,StudyUID,View,Subject,Slice,X,Y,Width,Height,Class,AD,VolumeSlices",
    "file-paths": "PatientID,StudyUID,View,descriptive_path,classic_path",
}


def pixels(key: tuple[str, str, str]) -> np.ndarray:
    """[12, 64, 48] uint16 as the view hangs: breast at its side, air at the other, each lesion bright in its slice."""
    rng = np.random.default_rng(list(VOLUMES).index(key))
    frames = np.zeros(SHAPE, np.uint16)
    frames[:, :, :30] = rng.integers(200, 300, (*SHAPE[:2], 30))
    if key[2].startswith("r"):
        frames = frames[:, :, ::-1].copy()
    for *of, at, x, y, width, height in BOXES:
        if tuple(of) == key:
            frames[at, y : y + height, x : x + width] = 900
    return frames


def write(folder: Path, **changes) -> Path:
    """The whole collection. changes: attributes of every DICOM file."""
    rows: dict[tuple[str, str], list[str]] = {}
    for key, (split, stored, laterality) in VOLUMES.items():
        frames = pixels(key)
        if stored != key[2][0].upper():
            frames = frames[:, ::-1, ::-1]
        attributes = {"SharedFunctionalGroupsSequence": GROUPS, "ImageLaterality": laterality, "ViewPosition": "CC"}
        data = make(np.ascontiguousarray(frames), bits=16, **attributes | changes)
        place = f"{key[0]}/1.2.{list(VOLUMES).index(key)}/1.3/000000.dcm"
        path = folder / "Breast-Cancer-Screening-DBT" / place
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        name = ",".join(key)
        marked = any(tuple(box[:3]) == key for box in BOXES)
        rows.setdefault((split, "labels"), []).append(f"{name},{0 if marked else 1},0,{int(marked)},0")
        other = f"Breast-Cancer-Screening-DBT/{key[0]}/01-01-2000-X/7897.0/1-1.dcm"
        rows.setdefault((split, "file-paths"), []).append(
            f"{name},{other},Breast-Cancer-Screening-DBT/{place[:-10]}1-1.dcm"
        )
        for box in BOXES:
            if tuple(box[:3]) == key:
                rest = ",".join(map(str, box[3:]))
                rows.setdefault((split, "boxes"), []).append(f"{name},0,{rest},benign,0,{SHAPE[0]}")
    for (split, kind), lines in rows.items():
        name = f"BCS-DBT-{kind}-{split}-v2.csv" if split == "train" else f"BCS-DBT {kind}-{split}-PHASE 2.csv"
        (folder / name).write_text("\n".join([COLUMNS[kind], *lines, ""]))
    return folder


def write_one(folder: Path, frames: np.ndarray, boxes: list[tuple[float, ...]]) -> Path:
    """A collection of one left breast in the split test. frames: [F, H, W]. boxes: slice, x, y, width, height."""
    folder.mkdir()
    (folder / "1-1.dcm").write_bytes(make(frames, bits=16, SharedFunctionalGroupsSequence=GROUPS))
    name = "DBT-P1,DBT-S1,lcc"
    rows = {
        "labels": [f"{name},0,0,1,0"],
        "boxes": [f"{name},0,{','.join(map(str, box))},benign,0,{len(frames)}" for box in boxes],
        "file-paths": [f"{name},1-1.dcm,1-1.dcm"],
    }
    for kind, lines in rows.items():
        (folder / f"BCS-DBT-{kind}-test-v2.csv").write_text("\n".join([COLUMNS[kind], *lines, ""]))
    return folder
