"""Phantom volumes written in the layout of BCS-DBT, read back by pydicom."""

from __future__ import annotations

import csv

import numpy as np
import phantom_volumes
import pydicom
import pytest
from pydicom.uid import BreastTomosynthesisImageStorage

from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from tests.refusals import refused

OPTIONS = "count=12,size=64,slices=5,healthy_fraction=0.2"
SPLITS = {"train": "train", "val": "validation", "test": "test"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dbt") / "phantom"
    phantom_volumes.main([f"--output={folder}", f"--options={OPTIONS}"])
    return folder


def table(folder, name: str) -> list[dict[str, str]]:
    with open(folder / f"{name}-v2.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_volume_is_a_file_of_its_slices(built):
    for split, word in SPLITS.items():
        source = open_source(SourceSpec(f"phantom_volumes:{OPTIONS}", slices="all"), split)
        rows = table(built, f"BCS-DBT-file-paths-{word}")
        assert len(rows) == 4
        for number, row in enumerate(rows):
            dataset = pydicom.dcmread(built / row["classic_path"])
            assert dataset.SOPClassUID == BreastTomosynthesisImageStorage and dataset.NumberOfFrames == 5
            assert dataset.PatientID == row["PatientID"] and row["View"] in ("lcc", "lmlo", "rcc", "rmlo")
            expected = np.stack([source[5 * number + k].image[..., 0] for k in range(5)])
            np.testing.assert_allclose(dataset.pixel_array / 1023, expected, atol=0.51 / 255 + 0.51 / 1023)


def test_groups_shared_by_all_frames_and_of_each_frame(built):
    row = table(built, "BCS-DBT-file-paths-test")[0]
    dataset = pydicom.dcmread(built / row["classic_path"])
    shared, frames = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence
    window, measures = shared.FrameVOILUTSequence[0], shared.PixelMeasuresSequence[0]
    assert (float(window.WindowCenter), float(window.WindowWidth)) == (511.5, 1023)
    assert [float(step) for step in measures.PixelSpacing] == [3.75, 3.75]  # 240 mm over 64 px
    places = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], float)
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    np.testing.assert_allclose(steps, float(measures.SpacingBetweenSlices), rtol=1e-4)
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    np.testing.assert_allclose(axes @ (places[1] - places[0]), 0, atol=1e-6)
    assert [frame.FrameContentSequence[0].InStackPositionNumber for frame in frames] == [1, 2, 3, 4, 5]


def test_the_tables_say_where_the_lesions_are(built):
    boxes = 0
    for split, word in SPLITS.items():
        source = open_source(SourceSpec(f"phantom_volumes:{OPTIONS},modality=mammogram"), split)
        labels, marked = table(built, f"BCS-DBT-labels-{word}"), table(built, f"BCS-DBT-boxes-{word}")
        for info, label in zip(source.infos, labels, strict=True):
            mine = [row for row in marked if (row["StudyUID"], row["View"]) == (label["StudyUID"], label["View"])]
            corners = [[float(row[name]) for name in ("X", "Y", "Width", "Height")] for row in mine]
            found = np.array(corners).reshape(-1, 4)
            np.testing.assert_allclose(np.hstack([found[:, :2], found[:, :2] + found[:, 2:]]), info.boxes)
            assert all(row["VolumeSlices"] == "5" and 0 <= int(row["Slice"]) < 5 for row in mine)
            classes = {row["Class"] for row in mine}
            expected = "Cancer" if "cancer" in classes else "Benign" if classes else "Normal"
            assert [name for name in ("Normal", "Actionable", "Benign", "Cancer") if label[name] == "1"] == [expected]
            boxes += len(mine)
    assert boxes > 3


def test_a_full_folder_and_bad_options_are_refused(built, tmp_path):
    with refused("not empty"):
        phantom_volumes.main([f"--output={built}", f"--options={OPTIONS}"])
    with refused("colour"):
        phantom_volumes.main([f"--output={tmp_path / 'new'}", "--options=colour=red"])
    assert not (tmp_path / "new").exists()
