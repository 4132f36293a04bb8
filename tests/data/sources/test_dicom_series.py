"""Volumes of DICOM files of one frame: which files are slices, in which order, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.uid import BreastTomosynthesisImageStorage, SecondaryCaptureImageStorage

from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.volumes import find_volumes
from tests.data.sources.dbt_files import GROUPS, WINDOW
from tests.data.sources.dicom_files import item, make
from tests.refusals import refused

NOWHERE = {"ImagePositionPatient": [], "ImageOrientationPatient": []}
TOMO = {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"]}
BY_NUMBER = NOWHERE | TOMO
NO_WINDOW = {"WindowCenter": [], "WindowWidth": []}
MAMMOGRAM = {"SeriesInstanceUID": "1.2.9", **NOWHERE}


def write(path, k, number=None, **attributes):
    """A slice of 6 x 5 px whose grey value is 100 k, at k mm. An attribute that is [] is empty."""
    path.parent.mkdir(exist_ok=True, parents=True)
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [3, 4, k]}
    whose = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "ImageLaterality": "L", "ViewPosition": "CC"}
    described = {"InstanceNumber": k + 1 if number is None else number, **whose, **place, **WINDOW, **attributes}
    pixels = np.full((6, 5), 100 * k, np.uint16)
    pixels[0, 0] += 1  # they are not all equal
    path.write_bytes(make(pixels, bits=16, **described))


def shown(volume):
    return [round(float(volume.read(k).max() * 10)) for k in range(len(volume))]


def found(folder):
    """([grey values of each volume], {name of a skipped file: reason})."""
    volumes, skipped = find_volumes(folder, SourceSpec())
    return [shown(volume) for volume in volumes], {path.name: reason for path, reason in skipped}


# ---- Order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers, attributes, wanted",
    [
        ([1, 2, 3, 4], {}, [0, 1, 2, 3]),
        ([4, 3, 2, 1], {}, [3, 2, 1, 0]),
        ([2, 3, 1, 7], {}, [0, 1, 2, 3]),
        (["", "", "", ""], {}, [0, 1, 2, 3]),
        ([[1, 9], [2, 9], [3, 9], [4, 9]], {}, [0, 1, 2, 3]),
        ([2, 4, 1, 3], BY_NUMBER, [2, 0, 3, 1]),
        ([2, 4, 1, 3], NOWHERE | {"SOPClassUID": BreastTomosynthesisImageStorage}, [2, 0, 3, 1]),
        ([2, 4, 1, 3], TOMO | {"ImagePositionPatient": [0, 0, 0]}, [2, 0, 3, 1]),
        ([2, 4, 1, 3], TOMO | {"ImageOrientationPatient": [0] * 6}, [2, 0, 3, 1]),
        ([2, 4, 1, 3], TOMO | {"ImageOrientationPatient": []}, [2, 0, 3, 1]),
        ([2, 4, 1, 3], BY_NUMBER | {"SliceLocation": 0}, [2, 0, 3, 1]),
    ],
    ids=[
        "both", "from the other side", "numbers of something else", "positions alone", "numbers of two values",
        "numbers alone", "by its class", "equal positions", "no plane", "no orientation", "equal locations",
    ],
)  # fmt: skip
def test_a_series_of_files_is_a_volume_in_the_order_of_its_positions(tmp_path, numbers, attributes, wanted):
    """By number where the files have no positions that tell them apart."""
    for k, number in enumerate(numbers):
        write(tmp_path / f"IM{3 - k}", k, number, **attributes)  # names say nothing
    (volume,), skipped = find_volumes(tmp_path, SourceSpec())
    assert shown(volume) == wanted and not skipped
    assert (volume.study, volume.view, volume.patient_id, volume.slices) == ("1.2", "lcc", "P7", 4)
    assert [Path(info.file_name).name for info in volume.infos] == [f"IM{3 - k}" for k in wanted]


def test_positions_count_along_the_normal_of_oblique_slices(tmp_path):
    """An MLO: slices lie along (0, -cos, -sin), so that z falls from the first to the last."""
    normal = np.array([0, -0.8, -0.6])
    axes = {"ImageOrientationPatient": [1, 0, 0, 0, -0.6, 0.8]}
    for k in range(3):
        place = [f"{value:.10g}" for value in (2 - k) * normal + [7, 3, 4]]
        write(tmp_path / f"{k}.dcm", k, "", ImagePositionPatient=place, **axes)
    assert found(tmp_path)[0] == [[2, 1, 0]]


def test_the_location_orders_slices_without_a_plane(tmp_path):
    for k, location in enumerate((30, 10, 20)):
        write(tmp_path / f"{k}.dcm", k, "", SOPClassUID=SecondaryCaptureImageStorage, SliceLocation=location, **NOWHERE)
    assert found(tmp_path)[0] == [[1, 2, 0]]


def test_places_of_functional_groups_count(tmp_path):
    """An enhanced object of one frame."""
    for k, z in enumerate((2, 1, 0)):
        plane = {
            "PlanePositionSequence": [item(ImagePositionPatient=[0, 0, z])],
            "PlaneOrientationSequence": [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        }
        groups = {"SharedFunctionalGroupsSequence": GROUPS, "PerFrameFunctionalGroupsSequence": [item(**plane)]}
        write(tmp_path / f"{k}.dcm", k, "", NumberOfFrames=1, **NOWHERE, **NO_WINDOW, **groups)
    assert found(tmp_path)[0] == [[2, 1, 0]]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({1: {"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]}}, ["parallel", "0.dcm", "1.dcm"]),
        ({1: {"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}}, ["parallel"]),
        ({1: {"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}}, ["rotated", "0.dcm", "1.dcm"]),
        ({2: {"ImagePositionPatient": [53, 4, 2]}}, ["above", "0.dcm", "2.dcm"]),
        ({1: {"ImagePositionPatient": [3, 4, 0]}}, ["same position", "0.dcm", "1.dcm"]),
        ({1: {"ImagePositionPatient": [3, 4, 0.004]}}, ["same position", "0.dcm", "1.dcm"]),
        ({k: BY_NUMBER | {"InstanceNumber": 1} for k in range(4)}, ["order", "InstanceNumber"]),
        ({k: BY_NUMBER | {"InstanceNumber": max(k, 1)} for k in range(4)}, ["same position", "0.dcm", "1.dcm"]),
        ({k: BY_NUMBER | ({"InstanceNumber": ""} if k == 3 else {}) for k in range(4)}, ["order", "InstanceNumber"]),
        ({k: TOMO | (NOWHERE if k else {}) for k in range(4)}, ["without a position", "0.dcm", "1.dcm"]),
    ],
    ids=[
        "upside down", "another plane", "turned", "aside", "twice", "nearly twice", "one number", "a number twice",
        "a number missing", "few positions",
    ],
)  # fmt: skip
def test_slices_whose_order_is_not_known_are_refused(tmp_path, changes, words):
    for k in range(4):
        write(tmp_path / f"{k}.dcm", k, **changes.get(k, {}))
    with refused(*words):
        find_volumes(tmp_path, SourceSpec())


def test_a_position_that_is_no_number_is_none(tmp_path):
    """It is left out as a file without a position is, and the gap is named."""
    for k in range(4):
        bad = {"ImagePositionPatient": DataElement("ImagePositionPatient", "DS", ["3", "4", "NaN"])}
        write(tmp_path / f"{k}.dcm", k, **(bad if k == 2 else {}))
    volumes, skipped = found(tmp_path)
    assert volumes == [[0, 1, 3]] and "position" in skipped["2.dcm"]


@pytest.mark.parametrize("there, says", [((0, 1, 3), True), ((0, 1, 2, 3), False), ((1, 3, 5), False)])
def test_a_gap_is_named(tmp_path, caplog, there, says):
    for k in there:
        write(tmp_path / f"{k}.dcm", k, "")
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path)[0] == [list(there)]
    assert ("missing" in caplog.text and "lcc" in caplog.text) is says


# ---- What is a slice -------------------------------------------------------------------------------------------------


def test_a_folder_with_the_series_of_an_examination(tmp_path):
    """Two views in one folder, a synthetic view and mammograms beside them."""
    for k in range(3):
        write(tmp_path / f"a{k}.dcm", k)
        write(tmp_path / f"b{k}.dcm", k, ViewPosition="MLO")
    write(tmp_path / "synthetic.dcm", 9, **NOWHERE)
    for view in ("CC", "MLO"):
        write(tmp_path / f"mammogram_{view}.dcm", 5, **MAMMOGRAM | {"ViewPosition": view})
    volumes, skipped = find_volumes(tmp_path, SourceSpec())
    assert {volume.view: shown(volume) for volume in volumes} == {"lcc": [0, 1, 2], "lmlo": [0, 1, 2]}
    assert {path.name for path, _ in skipped} == {"synthetic.dcm", "mammogram_CC.dcm", "mammogram_MLO.dcm"}
    assert len({volume.name for volume in volumes}) == 2


BESIDE = {
    "mammograms": [MAMMOGRAM, MAMMOGRAM],
    "other windows": [MAMMOGRAM, MAMMOGRAM | {"WindowCenter": 300}],
    "no window": [MAMMOGRAM | NO_WINDOW, MAMMOGRAM | NO_WINDOW],
    "no series": [NOWHERE | {"SeriesInstanceUID": []}, NOWHERE | {"SeriesInstanceUID": [], "PatientID": "P8"}],
    "mammograms with a location": [MAMMOGRAM | {"SliceLocation": 1}, MAMMOGRAM | {"SliceLocation": 2}],
    "positions of zeros": [MAMMOGRAM | {"ImagePositionPatient": [0, 0, 0], "SliceLocation": 0}] * 2,
    "raw projections": [{"SeriesInstanceUID": "1.2.8", "PresentationIntentType": "FOR PROCESSING"}] * 2,
    "projections": [BY_NUMBER | {"SeriesInstanceUID": "1.2.8", "ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ"]}] * 2,
    "synthetic views": [{"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]}] * 2,
    "a scout": [{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}],
    "a scale of zero": [MAMMOGRAM | {"RescaleSlope": 0, "RescaleIntercept": 0}],
    "odd numbers": [MAMMOGRAM | {"InstanceNumber": [1, 2], "SliceLocation": [1, 2]}],
    "one of a tomosynthesis": [TOMO | {"SeriesInstanceUID": "1.2.8"}],
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("way", [TOMO, BY_NUMBER], ids=["by position", "by number"])
def test_what_lies_beside_a_volume_is_skipped(tmp_path, name, way):
    for k in range(3):
        write(tmp_path / f"{k}.dcm", k, **way)
    for k, attributes in enumerate(BESIDE[name]):
        write(tmp_path / f"beside_{k}.dcm", k + 4, **attributes)
    volumes, skipped = found(tmp_path)
    assert volumes == [[0, 1, 2]] and set(skipped) == {f"beside_{k}.dcm" for k in range(len(BESIDE[name]))}


def test_mammograms_alone_are_no_volume(tmp_path):
    for k in range(2):
        write(tmp_path / f"{k}.dcm", k, **MAMMOGRAM)
    with refused("no volume", where=tmp_path):
        find_volumes(tmp_path, SourceSpec())


def test_slabs_and_thin_slices_of_a_series_are_two_volumes(tmp_path):
    for k in range(4):
        write(tmp_path / f"{k}.dcm", k, SliceThickness=1 if k % 2 else 10)
    assert sorted(found(tmp_path)[0]) == [[0, 2], [1, 3]]


def test_a_thickness_is_written_with_any_number_of_digits(tmp_path):
    for k in range(4):
        write(tmp_path / f"{k}.dcm", k, SliceThickness=1 if k % 2 else "1.0001")
    assert found(tmp_path)[0] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("key, values", [("AcquisitionNumber", [1, 2]), ("FrameOfReferenceUID", ["1.2.5", "1.2.6"])])
@pytest.mark.parametrize("place", [{}, BY_NUMBER], ids=["by position", "by number"])
def test_two_acquisitions_of_a_series_are_two_volumes(tmp_path, key, values, place):
    """Their slices lie between each other, or their numbers go on."""
    for k in range(6):
        z = {} if place else {"ImagePositionPatient": [3, 4, k % 3 + 0.5 * (k // 3)]}
        write(tmp_path / f"{k}.dcm", k, **place, **z, **{key: values[k // 3]})
    assert sorted(found(tmp_path)[0]) == [[0, 1, 2], [3, 4, 5]]


def test_slices_that_are_numbered_as_acquisitions_are_one_volume(tmp_path):
    for k in range(3):
        write(tmp_path / f"{k}.dcm", k, AcquisitionNumber=k)
    assert found(tmp_path)[0] == [[0, 1, 2]]


@pytest.mark.parametrize("lacking", [{"ViewPosition": []}, {"ImageLaterality": []}])
def test_a_series_of_which_half_names_its_view_is_refused(tmp_path, lacking):
    for k in range(4):
        write(tmp_path / f"{k}.dcm", k, **(lacking if k % 2 else {}))
    with refused("lcc", "0.dcm", "1.dcm", where=tmp_path):
        find_volumes(tmp_path, SourceSpec())


def test_a_series_in_several_folders_is_one_volume(tmp_path):
    for k in range(4):
        write(tmp_path / f"D{k // 2}" / f"{k}.dcm", k)
    assert found(tmp_path)[0] == [[0, 1, 2, 3]]
    write(tmp_path / "copy" / "0.dcm", 0)
    with refused("same position", "0.dcm"):
        find_volumes(tmp_path, SourceSpec())


def test_files_without_a_series_are_volumes_by_folder_and_patient(tmp_path):
    for k in range(2):
        for name in ("P1", "P2"):
            write(tmp_path / "all" / f"{name}_{k}.dcm", k, SeriesInstanceUID=[], PatientID=name)
        write(tmp_path / "other" / f"{k}.dcm", k + 4, SeriesInstanceUID=[], PatientID="P1")
    assert sorted(found(tmp_path)[0]) == [[0, 1], [0, 1], [4, 5]]


# ---- What does not belong together -----------------------------------------------------------------------------------


def table(shift):
    """A look-up table of words, which pydicom shows shortened."""
    entries = np.roll(np.arange(4096, dtype="<u2"), shift).tobytes()
    found = item(LUTDescriptor=[4096, 0, 12], LUTData=entries)
    found["LUTDescriptor"].VR, found["LUTData"].VR = "US", "OW"
    return [found]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"WindowCenter": 501}, ["window", "0.dcm", "1.dcm"]),
        ({"PhotometricInterpretation": "MONOCHROME1"}, ["PhotometricInterpretation"]),
        ({"PatientID": "P8"}, ["patient"]),
        ({"StudyInstanceUID": "1.5"}, ["study"]),
        ({"Columns": 6, "Rows": 5}, ["size"]),
        ({"RescaleIntercept": -3, "RescaleSlope": 1}, ["window"]),
        ({"VOILUTFunction": "SIGMOID"}, ["window"]),
        ({"PixelSpacing": [0.1, 0.1]}, ["PixelSpacing"]),
        ({"VOILUTSequence": table(0)}, ["window"]),
        ({"PixelRepresentation": 1}, ["window"]),
        (NO_WINDOW, ["no window"]),
        ({"PresentationIntentType": "FOR PROCESSING"}, ["FOR PROCESSING"]),
    ],
    ids=[
        "window", "inverted", "patient", "study", "size", "rescaled", "function", "spacing", "table", "signed",
        "no window", "raw",
    ],
)  # fmt: skip
def test_slices_of_a_series_that_do_not_belong_together_are_refused(tmp_path, change, words):
    for k in range(3):
        write(tmp_path / f"{k}.dcm", k, **(change if k == 1 else {}))
    with refused(*words):
        find_volumes(tmp_path, SourceSpec())


@pytest.mark.parametrize("key", ["VOILUTSequence", "ModalityLUTSequence", "PresentationLUTSequence"])
def test_tables_are_compared_by_their_entries(tmp_path, key):
    for k in range(2):
        write(tmp_path / "same" / f"{k}.dcm", k, **{key: table(0)})
        write(tmp_path / "other" / f"{k}.dcm", k, **{key: table(100 * k)})
    assert len(find_volumes(tmp_path / "same", SourceSpec())[0]) == 1
    with refused("window", where=tmp_path / "other"):
        find_volumes(tmp_path / "other", SourceSpec())


def test_one_window_may_be_written_in_two_ways(tmp_path):
    ways = [{"WindowCenter": "500"}, {"WindowCenter": "500.0", "RescaleSlope": 1, "VOILUTFunction": "LINEAR"}]
    for k, way in enumerate(ways):
        write(tmp_path / f"{k}.dcm", k, **way)
    assert found(tmp_path)[0] == [[0, 1]]


def test_the_window_of_a_volume_may_show_nothing_of_its_ends(tmp_path):
    """The first slice is air below the window; in the middle a window that shows nothing is not that of the volume."""
    for name, center in (("good", 200), ("bad", 900)):
        for k in range(5):
            write(
                tmp_path / name / f"{k}.dcm", k, WindowCenter=center, WindowWidth=200, SeriesInstanceUID=f"1.{center}"
            )
    good, bad = (find_volumes(tmp_path / name, SourceSpec())[0][0] for name in ("good", "bad"))
    assert shown(good) == [0, 0, 5, 10, 10]
    with refused("black", where="2.dcm"):
        bad.read(0)


@pytest.mark.parametrize("frames", ["x", "1\\1"])
def test_an_odd_number_of_frames_ends_in_one_line(tmp_path, frames):
    write(tmp_path / "1.dcm", 0, NumberOfFrames=7)
    data = (tmp_path / "1.dcm").read_bytes().replace(b"IS\x02\x007 ", b"IS\x04\x00" + frames.encode().ljust(4))
    (tmp_path / "1.dcm").write_bytes(data)
    with refused(where=tmp_path if "\\" in frames else tmp_path / "1.dcm"):  # two values: the first counts
        find_volumes(tmp_path, SourceSpec())


def test_a_damaged_slice_is_not_left_out(tmp_path):
    for k in range(3):
        write(tmp_path / f"{k}.dcm", k)
    whole = (tmp_path / "1.dcm").read_bytes()
    for length in (200, whole.index(b"\x28\x00\x10\x00")):  # up to Rows
        (tmp_path / "1.dcm").write_bytes(whole[:length])
        with refused("truncated", where=tmp_path / "1.dcm"):
            find_volumes(tmp_path, SourceSpec())
