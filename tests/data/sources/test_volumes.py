"""Volumes of DICOM files, folders of slices and the layout of BCS-DBT."""

from __future__ import annotations

import io
import logging
import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from elk_jax.data.sources import dicom_grey
from elk_jax.data.sources.bcs_dbt import read_entries
from elk_jax.data.sources.decode import decode_image
from elk_jax.data.sources.dicom_volumes import PROJECTIONS
from elk_jax.data.sources.open import list_source, open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.volumes import dicom_volume, find_volumes, slice_folder, volumes_of
from tests.data.sources import dbt_files
from tests.data.sources.dbt_files import BOXES, GROUPS, VOLUMES, WINDOW, pixels
from tests.data.sources.dicom_files import item, make
from tests.refusals import refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return dbt_files.write(tmp_path_factory.mktemp("dbt"))


def opened(folder, slices="all", split=""):
    return open_source(SourceSpec(f"bcs_dbt:{folder}", slices=slices), split)


def key_of(volume):
    return volume.patient_id, volume.study, volume.view


def test_volumes_hang_as_their_view_says_and_boxes_lie_on_the_lesions(folder):
    volumes = volumes_of(opened(folder))
    assert {key_of(volume) for volume in volumes} == set(VOLUMES)
    marked = 0
    for volume in volumes:
        wanted = pixels(key_of(volume))
        for k in (0, 6, 11):
            grey = np.clip((wanted[k] - 499.5) / 999 + 0.5, 0, 1)
            np.testing.assert_allclose(volume.read(k)[..., 0], grey, atol=1e-5)
        boxes, at = volume.lesions()
        for box, k in zip(boxes.astype(int), at):
            assert (volume.read(k)[box[1] : box[3], box[0] : box[2]] > 0.85).all()
            marked += 1
        assert volume.slices == len(volume) == 12 and volume.infos[0].meta["pixel_spacing"] == (0.1, 0.1)
    assert marked == len(BOXES)


@pytest.mark.parametrize(
    "slices, wanted",  # of the two lesions of the first volume, in slices 3 and 8
    [("central", [3, 8]), ("near:1", [2, 3, 4, 7, 8, 9]), ("all", list(range(12)))],
)
def test_slices_that_train(folder, slices, wanted):
    source = opened(folder, slices, "train")
    volume = volumes_of(source)[0]
    assert [info.slice for info in volume.infos] == wanted
    by_slice = {info.slice: info for info in volume.infos}
    assert by_slice[3].ignore.tolist() == [False]  # slice 8 is more than a quarter away
    assert len(volume.lesions()[1]) == 2
    if slices == "near:1":
        assert by_slice[2].ignore.tolist() == [False]
    if slices == "all":
        assert by_slice[2].ignore.tolist() == [True] and by_slice[0].ignore.tolist() == [True]
        assert by_slice[6].ignore.tolist() == [True, True]
    assert [info.slice for info in volumes_of(opened(folder, slices, "test"))[1].infos if info.slice == 6] == [6]


def test_boxes_that_are_cleaned_away_leave_with_what_is_said_of_them(tmp_path):
    marked = [(1, -1, 2, 20, 20), (1, 2, 3, 5, 5), (3, 4, 2, 10, 9)]  # the second lies in the first
    folder = dbt_files.write_one(tmp_path / "dbt", np.full((5, 32, 32), 300, np.uint16), marked)
    source = open_source(SourceSpec(f"bcs_dbt:{folder}", slices="all", clean_boxes=True), "test")
    (volume,) = volumes_of(source)
    boxes, at = volume.lesions()
    assert boxes.tolist() == [[-1, 2, 19, 22], [4, 2, 14, 11]] and at.tolist() == [1, 3]
    assert source.infos[1].boxes.tolist() == [[0, 2, 19, 22]]


def test_a_split_that_no_table_has_is_named(folder):
    with refused("no image", "'nosuch'", where=folder):
        list_source(SourceSpec(f"bcs_dbt:{folder}"), "nosuch")


def test_splits_and_classes_are_those_of_the_tables(folder):
    assert len(read_entries(folder, "train")) == 4 and len(read_entries(folder, "test")) == 2
    source = open_source(SourceSpec(f"bcs_dbt:{folder}", where="class=normal"), "test")
    assert {info.patient_id for info in source.infos} == {"DBT-P5"} and source.infos[0].slice == 6


def test_a_table_whose_names_are_quoted_is_read_as_any(tmp_path, folder):
    copy = dbt_files.write(tmp_path / "dbt")
    path = next(copy.glob("*boxes-train*"))
    header, rows = path.read_text().split("\n", 1)
    path.write_text("\r\n" + ",".join(f'"{name}"' for name in header.split(",")) + "\r\n" + rows)
    boxes = [len(entry.boxes) for entry in read_entries(copy)]
    assert boxes == [len(entry.boxes) for entry in read_entries(folder)] and sum(boxes) == len(dbt_files.BOXES)


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_tables_of_other_systems_are_read(tmp_path, folder, end):
    """Other ends of lines, a byte-order mark, endings in capitals, and the hidden files of a Mac beside them."""
    copy = dbt_files.write(tmp_path / "dbt")
    for path in sorted(copy.glob("*.csv")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("\n", end).encode())
        path.rename(path.with_suffix(".CSV"))
        path.with_name(f"._{path.name}").write_bytes(b"\xff\0")
    wanted = [(entry.name, entry.split, len(entry.boxes)) for entry in read_entries(folder)]
    assert [(entry.name, entry.split, len(entry.boxes)) for entry in read_entries(copy)] == wanted


def test_biopsied_volumes_without_boxes_are_counted(tmp_path, caplog):
    """A table of boxes without rows left them out unseen: their lesions would be background."""
    copy = dbt_files.write(tmp_path / "dbt")
    read_entries(copy)
    assert not caplog.records
    path = next(copy.glob("*boxes-train*"))
    path.write_text(path.read_text().split("\n")[0] + "\n")
    read_entries(copy, "test")
    assert not caplog.records
    assert len(read_entries(copy, "train")) == 4
    (record,) = caplog.records
    assert "4 of 4 volumes" in record.getMessage() and "DBT-P1_DBT-S1_lcc" in record.getMessage()


def test_a_doubtful_side_is_logged(tmp_path, caplog):
    (tmp_path / "a.dcm").write_bytes(volume_bytes(np.tile(np.arange(8, dtype=np.uint16) % 7 * 50, (4, 8, 1))))
    with caplog.at_level(logging.WARNING):
        dicom_volume(tmp_path / "a.dcm", view="lcc").read(0)
    assert "doubtful" in caplog.text and "a.dcm" in caplog.text


def test_a_window_may_show_nothing_of_end_frames(tmp_path):
    frames = np.stack([np.full((6, 5), 100 * k, np.uint16) for k in range(5)])
    frames[:, 0, 0] += 1
    for name, center in (("good", 200), ("bad", 900)):
        data = make(frames, bits=16, WindowCenter=center, WindowWidth=200)
        (tmp_path / f"{name}.dcm").write_bytes(data)
    good, bad = (dicom_volume(tmp_path / f"{name}.dcm") for name in ("good", "bad"))
    assert [round(float(good.read(k).max() * 10)) for k in range(5)] == [0, 0, 5, 10, 10]
    with refused("black", where="bad.dcm"):
        bad.read(0)
    with refused("black"):
        decode_image(tmp_path / "good.dcm", frame=0)


def volume_bytes(frames=None, **attributes):
    frames = pixels(next(iter(VOLUMES))) if frames is None else frames
    return make(frames, bits=16, **{"SharedFunctionalGroupsSequence": GROUPS} | attributes)


def windows(*centres):
    return [item(FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=1000)]) for centre in centres]


@pytest.mark.parametrize(
    "data, words",
    [
        (volume_bytes(pixels(next(iter(VOLUMES)))[:1]), ["one frame"]),
        (make(np.zeros((3, 8, 8), np.uint16)), ["functional groups"]),
        (
            volume_bytes(np.zeros((3, 8, 8), np.uint16), PerFrameFunctionalGroupsSequence=windows(500, 500, 600)),
            [0, 2, "differ"],
        ),
        (
            volume_bytes(np.zeros((3, 8, 8), np.uint16), PerFrameFunctionalGroupsSequence=windows(500, 500)),
            ["functional groups", 2],
        ),
        (b"no DICOM file", []),
        (volume_bytes(NumberOfFrames=2_000_000_000), [2_000_000_000, "room"]),
        (volume_bytes()[:-1], ["truncated"]),
        (volume_bytes(NumberOfFrames=13), ["truncated"]),
        (volume_bytes(NumberOfFrames=11), [11, 12]),
        (volume_bytes(PhotometricInterpretation="RGB"), ["RGB"]),
        (volume_bytes(SOPClassUID=PROJECTIONS[0]), ["projections"]),
        (volume_bytes(ImageType=["DERIVED", "PRIMARY", "TOMO_PROJ"]), ["projections"]),
    ],
    ids=[
        *("one frame", "no groups", "windows differ", "too few groups", "damaged", "huge", "cut off", "more frames"),
        *("fewer frames", "colour", "projections", "type of projections"),
    ],
)
def test_files_that_are_no_volume_are_refused(tmp_path, data, words):
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    with refused(*words, where=path):
        dicom_volume(path)


@pytest.mark.parametrize(
    "heights, turn",
    [
        ([0, 1, 2, 3], None),
        ([6, 4, 2, 0], None),
        ([0, 0, 0, 0], None),
        ([0, 1, 1, 2], None),
        ([0, 0.004, 0, 0.004], None),  # one position, rounded
        ([0, None, 5, 1], None),  # without a position nothing is known
        ([0, 2, 1, 3], 2),
        ([3, 2, 2, 4], 3),
    ],
)
def test_frames_whose_positions_run_back_and_forth_are_refused(tmp_path, heights, turn):
    """Findings are grouped along the frames as they are stored."""
    placed = lambda k: item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, k])
    own = [item() if k is None else item(PlanePositionSequence=[placed(k)]) for k in heights]
    path = tmp_path / "a.dcm"
    path.write_bytes(volume_bytes(np.zeros((4, 4, 4), np.uint16), PerFrameFunctionalGroupsSequence=own))
    if turn is None:
        assert len(dicom_volume(path)) == 4
    else:
        with refused("order", turn, where=path):
            dicom_volume(path)


def test_a_window_at_the_top_level_or_repeated_by_frame_is_one_window(tmp_path):
    frames = pixels(next(iter(VOLUMES)))
    ways = [
        volume_bytes(frames),
        make(frames, bits=16, **WINDOW),
        make(frames, bits=16, PerFrameFunctionalGroupsSequence=windows(*[500] * 12)),
    ]
    images = []
    for number, data in enumerate(ways):
        (tmp_path / f"{number}.dcm").write_bytes(data)
        images.append(dicom_volume(tmp_path / f"{number}.dcm").read(3))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_what_all_frames_share_is_looked_up_once(tmp_path, monkeypatch):
    """A header with groups of 60 frames says what one without them says, and one more frame costs little."""
    frames = np.zeros((60, 4, 4), np.uint16)
    own = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, k])]) for k in range(len(frames))]
    own[7].FrameVOILUTSequence = [item(**WINDOW)]
    path, asked, says = tmp_path / "a.dcm", [], dicom_grey._says
    monkeypatch.setattr(dicom_grey, "_says", lambda place, unit: asked.append(unit) or says(place, unit))
    volumes = []
    for groups in ({}, {"PerFrameFunctionalGroupsSequence": own}):
        asked.clear()
        path.write_bytes(volume_bytes(frames, ImageLaterality="L", ViewPosition="CC", **groups))
        volumes.append(dicom_volume(path))
    plain, with_groups = ([(info.image_id, info.patient_id, info.meta) for info in one.infos] for one in volumes)
    assert plain == with_groups and len(plain) == 60
    assert volumes[1].view == "lcc" and volumes[1].infos[59].meta["pixel_spacing"] == (0.1, 0.1)
    np.testing.assert_array_equal(volumes[1].read(7), volumes[1].read(8))
    assert asked.count(("ImagePositionPatient",)) >= 60 > asked.count(("PixelSpacing",))


def compress(path, syntax, frames):
    """Put encoded frames into a file."""
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)


def jpeg_2000(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    return buffer.getvalue()


@pytest.mark.parametrize("bits", [16, 10], ids=["16 bits", "10 of 16 bits"])
def test_a_volume_in_jpeg_2000_has_the_pixels_of_the_uncompressed_one(tmp_path, bits):
    """Frame by frame. A stream of 16 bits may hold values of fewer, as the header says."""
    frames = pixels(next(iter(VOLUMES)))
    for name in ("plain", "small"):
        data = make(frames, bits=bits, SharedFunctionalGroupsSequence=GROUPS)
        (tmp_path / f"{name}.dcm").write_bytes(data)
    compress(tmp_path / "small.dcm", JPEG2000Lossless, [jpeg_2000(frame) for frame in frames])
    plain, small = (dicom_volume(tmp_path / f"{name}.dcm", view="lcc") for name in ("plain", "small"))
    assert len(small) == len(frames) and (tmp_path / "small.dcm").stat().st_size < frames.nbytes
    for k in (0, 3, 11):
        np.testing.assert_array_equal(small.read(k), plain.read(k))


def test_of_a_volume_the_frame_that_is_read_is_in_memory_alone(tmp_path):
    """Opening a volume of 200 MB and reading one frame of 2 MB takes a few frames of memory."""
    path = tmp_path / "large.dcm"
    path.write_bytes(make(np.full((100, 1024, 1024), 600, np.uint16), bits=16, SharedFunctionalGroupsSequence=GROUPS))
    assert path.stat().st_size > 200e6
    tracemalloc.start()
    assert dicom_volume(path).read(60).shape == (1024, 1024, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_a_compressed_volume_without_a_decoder_names_the_package(tmp_path):
    """As soon as it is found, not when the volumes before it have been looked at."""
    path = tmp_path / "a.dcm"
    path.write_bytes(volume_bytes())
    compress(path, JPEGLSLossless, [b"\xff\xd8" + bytes(20)] * 12)
    with refused("JPEG-LS", "pip install pyjpegls", where=path):
        dicom_volume(path)


def test_a_compressed_volume_that_is_cut_off_is_refused_when_it_is_found(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(make(pixels(next(iter(VOLUMES))), bits=16, SharedFunctionalGroupsSequence=GROUPS))
    compress(path, JPEG2000Lossless, [jpeg_2000(frame) for frame in pixels(next(iter(VOLUMES)))])
    assert len(dicom_volume(path)) == 12
    path.write_bytes(path.read_bytes()[:-200])
    with refused(where=path):
        dicom_volume(path)


def test_a_folder_of_slices_is_ordered_by_number(tmp_path):
    for k in (10, 2, 1):
        cv2.imwrite(str(tmp_path / f"slice_{k}.png"), np.full((6, 5), 10 * k, np.uint8))
    volume = slice_folder(tmp_path, SourceSpec(), list(tmp_path.iterdir()))
    assert [round(float(volume.read(k).max() * 255)) for k in range(3)] == [10, 20, 100]
    cv2.imwrite(str(tmp_path / "slice_3.png"), np.zeros((7, 5), np.uint8))
    with refused("sizes", "slice_3.png", where=tmp_path):
        slice_folder(tmp_path, SourceSpec(), list(tmp_path.iterdir()))


def test_slices_are_ordered_whatever_the_case_of_their_names(tmp_path):
    for k, name in enumerate(("Slice1.png", "slice2.png", "slice3.PNG", "SLICE10.png"), 1):
        cv2.imwrite(str(tmp_path / name), np.full((6, 5), k, np.uint8))
    volume = slice_folder(tmp_path, SourceSpec(bit_depth=8), list(tmp_path.iterdir()))
    assert [round(float(volume.read(k).max() * 255)) for k in range(4)] == [1, 2, 3, 4]


def test_slices_at_positions_in_mm_are_ordered_by_these(tmp_path):
    for k, name in enumerate(("z=-12.5", "z=-3.25", "z=-3", "z=0.5", "z=2.25", "z=2.5", "z=12")):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((6, 5), 10 + k, np.uint8))
    volume = slice_folder(tmp_path, SourceSpec(), list(tmp_path.iterdir()))
    assert [round(float(volume.read(k).max() * 255)) for k in range(7)] == list(range(10, 17))
    (tmp_path / "2").mkdir()
    for name in ("2.25", "2.5"):
        cv2.imwrite(str(tmp_path / "2" / f"{name}.png"), np.zeros((6, 5), np.uint8))
    with refused("2.25", "2.5", "decimals", where=tmp_path / "2"):
        slice_folder(tmp_path / "2", SourceSpec(), list((tmp_path / "2").iterdir()))


@pytest.mark.parametrize("name", ["slice_1.tif", "slice_01.png", "Slice_1.png"])
def test_two_files_that_may_be_one_slice_are_refused(tmp_path, name):
    for one in ("slice_0.png", "slice_1.png", name):
        cv2.imwrite(str(tmp_path / one), np.zeros((6, 5), np.uint8))
    with refused("slice_1.png", name, where=tmp_path):
        slice_folder(tmp_path, SourceSpec(), list(tmp_path.iterdir()))


def test_a_slice_of_other_bits_is_refused_wherever_it_lies(tmp_path):
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((6, 5), 100, np.uint8 if k != 1 else np.uint16))
    volume = slice_folder(tmp_path, SourceSpec(), list(tmp_path.iterdir()))
    with refused(8, 16, "1.png", where=tmp_path):
        volume.read(1)


def test_images_below_a_volume_are_not_its_slices(tmp_path):
    for name in ("0.png", "1.png", "below/0.png", "below/1.png", "below/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((6, 5), np.uint8))
    (tmp_path / "volume.dcm").write_bytes(volume_bytes())
    volumes, _ = find_volumes(tmp_path, SourceSpec())
    assert {volume.name: len(volume) for volume in volumes} == {
        str(tmp_path / "volume.dcm"): 12,
        str(tmp_path): 2,
        str(tmp_path / "below"): 3,
    }


def test_volumes_are_found_in_folders(tmp_path, folder):
    volumes, skipped = find_volumes(folder, SourceSpec())
    assert len(volumes) == 6 and {str(path)[-4:] for path, _ in skipped} == {".csv"}
    assert {len(volume) for volume in volumes} == {12}
    (tmp_path / "one.dcm").write_bytes(make())
    (tmp_path / "a.txt").write_text("")
    with refused("no volume", 2, "one.dcm", "single-frame", where=tmp_path):
        find_volumes(tmp_path, SourceSpec())


def test_projections_and_raw_frames_beside_a_volume_are_skipped(tmp_path):
    """Such as those of the exam that the volume was made of: what is found in them is not found in the volume."""
    (tmp_path / "volume.dcm").write_bytes(volume_bytes())
    (tmp_path / "shown.dcm").write_bytes(volume_bytes(SOPClassUID=PROJECTIONS[0]))
    (tmp_path / "raw.dcm").write_bytes(volume_bytes(SOPClassUID=PROJECTIONS[1]))
    (tmp_path / "named.dcm").write_bytes(volume_bytes(ImageType=["DERIVED", "PRIMARY", "TOMO_PROJ"]))
    (tmp_path / "processing.dcm").write_bytes(volume_bytes(PresentationIntentType="FOR PROCESSING"))
    volumes, skipped = find_volumes(tmp_path, SourceSpec())
    assert [volume.name for volume in volumes] == [str(tmp_path / "volume.dcm")]
    reasons = {path.stem: reason for path, reason in skipped}
    assert reasons.keys() == {"shown", "raw", "named", "processing"}
    assert "projections" in reasons["shown"] and "FOR PROCESSING" in reasons["processing"]


def test_slices_of_two_files_for_one_volume_are_refused(folder):
    source = opened(folder)
    infos = tuple(replace(info, volume="v", patient_id="p") for info in source.infos[:24])
    with refused("twice", "v", where=source.name):
        volumes_of(replace(source, infos=infos))
    with refused("not a slice", where=source.name):
        volumes_of(replace(source, infos=(replace(infos[0], slice=-1),)))


def change(name, old, new):
    def apply(folder):
        path = next(folder.glob(name))
        path.write_text(path.read_text().replace(old, new, 1))

    return apply


def copy_file(folder):
    path = next(folder.rglob("000000.dcm"))
    (path.parent / "1-1.dcm").write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    "damage, words",
    [
        (change("*boxes-train*", "DBT-S3", "DBT-S9"), ["label", "DBT-S9"]),
        (change("*paths-train*", "DBT-S3", "DBT-S9"), ["label", "DBT-S9"]),
        (change("*labels-train*", "0,0,1,0", "0,1,1,0"), ["actionable", "benign"]),
        (change("*labels-train*", "0,0,1,0", "0,0,1,2"), ["benign", "cancer"]),
        (change("*labels-train*", "0,0,1,0", "0,0,2,0"), ["benign"]),
        (change("*boxes-train*", ",12\n", ",12.5\n"), ["12.5"]),
        (change("*labels-train*", "0,0,1,0", "1,0,0,0"), ["Normal", "DBT-S1", "boxes-train"]),
        (change("*boxes-train*", ",0,3,5", ",0,12,5"), [12, "slice"]),
        (change("*boxes-train*", ",0,3,5,10,8,6,", ",0,3,5,10,0,6,"), ["0 x 6 px"]),
        (change("*boxes-train*", "benign,0,12", "benign,0,13"), [13, 12]),
        (change("*boxes-train*", "4,4,benign,0,12", "4,4,benign,0,40"), [12, 40]),
        (change("*boxes-train*", "VolumeSlices", "Slices"), ["without", "VolumeSlices"]),
        (change("*labels-train*", "StudyUID", "Study"), ["StudyUID", "column"]),
        (change("*boxes-train*", "Class,AD", "X,AD"), ["two columns", "X"]),
        (change("*boxes-train*", "8,20,30,4,4", "3,5,10,8,6"), ["twice", "slice 3", "DBT-S1"]),
        (change("*labels-train*", "PatientID,StudyUID,View,", "PatientID;StudyUID;View;"), ["commas"]),
        (change("*labels-train*", "PatientID,StudyUID,View,", '"PatientID";"StudyUID";"View";'), ["commas"]),
        (lambda folder: next(folder.glob("*boxes-train*")).write_text(""), ["empty"]),
        (lambda folder: next(folder.glob("*boxes-train*")).write_text("\r\n"), ["empty"]),
        (change("*labels-train*", "DBT-P2,DBT-S2", "DBT-P2,DBT-S1"), ["DBT-S1", "DBT-P1", "DBT-P2"]),
        (change("*labels-train*", "rcc", "cc"), ["View", "'cc'", "rmlo"]),
        *((change("*labels-train*", "DBT-P2,", f"{unknown},"), ["PatientID"]) for unknown in ("", "nan", " ")),
        (change("*labels-train*", "DBT-S2,", "N/A,"), ["StudyUID"]),
        (copy_file, ["two files", "1-1.dcm"]),
        (lambda folder: next(folder.rglob("000000.dcm")).unlink(), ["no file", "DBT-P"]),
        (lambda folder: next(folder.glob("*labels-train*")).rename(folder / "labels.txt"), ["label"]),
        (
            lambda folder: (folder / "more.csv").write_text(next(folder.glob("*labels-train*")).read_text()),
            ["two rows"],
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, damage, words):
    folder = dbt_files.write(tmp_path / "dbt")
    damage(folder)
    with refused(*words):
        opened(folder)
    with refused("no such folder"):
        opened(tmp_path / "nowhere")
