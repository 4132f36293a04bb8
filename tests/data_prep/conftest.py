"""The scripts of data_prep/ stand outside the package and import each other by name, and so do their tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
for folder in (ROOT, ROOT / "data_prep", HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from cdd_layout import breast, circle, image_row, write_tables  # noqa: E402


@pytest.fixture
def published(tmp_path) -> Path:
    """A folder in the published layout: 12 patients with masses, 6 healthy ones; every second CM image a PNG."""
    folder = tmp_path / "CDD-CESM"
    images, regions = [], []
    for patient in range(1, 13):
        for kind in ("DM", "CM"):
            name = f"P{patient}_L_{kind}_CC"
            images.append(image_row(name + (" " if patient == 3 else "")))
            regions += [(name, circle(10 + patient, 30, 4))] * 1
            regions += [(name, circle(12, 12 + 12 * i, 2)) for i in range(1, 1 + patient % 3)]
    for patient in range(13, 19):
        name = f"P{patient}_R_CM_MLO"
        images.append(image_row(name, "normal", "No mass or non mass enhancement", "Normal", birads=1))
    write_tables(folder, images, regions)
    for row in images:
        name = row[0].strip()
        place = folder / ("Subtracted images of CDD-CESM" if "_CM_" in name else "Low energy images of CDD-CESM")
        place.mkdir(exist_ok=True)
        image = Image.fromarray(breast(name)).convert("RGB")
        if row[1] % 2 and "_CM_" in name:
            image.save(place / f"{name}.png")
        else:
            image.save(place / f"{name}.jpg", quality=95)
    return folder
