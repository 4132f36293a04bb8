"""Image files without annotations: found, opened once, kept."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from elk_jax.data.sources import decode as decoding
from elk_jax.data.sources import folder, volumes
from elk_jax.data.sources.spec import SourceSpec
from tests.data.sources.dicom_files import RAMP, make
from tests.refusals import refused


@pytest.fixture
def images(tmp_path):
    """a.png (8 bit), b/c.png (16 bit), b/broken.png, and a text."""
    rng = np.random.default_rng(0)
    (tmp_path / "b").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (20, 30), np.uint8))
    cv2.imwrite(str(tmp_path / "b" / "c.png"), rng.integers(0, 65536, (40, 10), np.uint16))
    (tmp_path / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").write_text("none")
    return tmp_path


def test_images_are_found_by_name_once(images):
    found, left_out = folder.find_images([images, images / "a.png"])
    assert [path.name for path in found] == ["a.png", "broken.png", "c.png"]
    assert left_out == [images / "notes.txt"]
    (images / "again").symlink_to("b")
    ways = [images / "b", images / "b" / ".." / "a.png", images / "b" / ".." / "b", images / "again", images / "a.png"]
    assert [str(path.relative_to(images)) for path in folder.find_images(ways)[0]] == [
        "b/broken.png",
        "b/c.png",
        "b/../a.png",
    ]
    (images / "again").unlink()
    (images / "with,comma.png").write_bytes((images / "a.png").read_bytes())
    assert folder.find_images([str(images / "with,comma.png")]) == ([images / "with,comma.png"], [])
    with refused("no such file", where="/nowhere/x.png"):
        folder.find_images(["/nowhere/x.png"])
    for source in ("coco:a.json", "phantom:"):
        with refused("data source", "folder of images", where=source):
            folder.find_images([source])
        with refused("data source", where=source):
            volumes.find_volumes(Path(source), SourceSpec())
    (images / "a:b.png").write_bytes((images / "a.png").read_bytes())
    assert folder.find_images([images / "a:b.png"]) == ([images / "a:b.png"], [])
    (images / "empty").mkdir()
    with refused("no image", where=images / "empty"):
        folder.find_images([images / "empty"])


def test_hidden_files_are_left_out(images):
    """A Mac puts ._NAME beside every file that it copies, Jupyter copies of files into a folder."""
    for name in ("._a.png", "__MACOSX/._a.png", "b/._IM1.dcm", ".ipynb_checkpoints/a.png"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    found, left_out = folder.find_images([images])
    assert [path.name for path in found] == ["a.png", "broken.png", "c.png"] and len(left_out) == 5


def test_dicom_is_found_by_its_content(images):
    for name in ("IM0001", "1.2.840.113", "b/DICOMDIR"):
        (images / name).write_bytes(bytes(128) + b"DICM")
    (images / "short").write_bytes(b"DICM")
    found, left_out = folder.find_images([images])
    assert [path.name for path in found] == ["1.2.840.113", "IM0001", "a.png", "broken.png", "c.png"]
    assert [path.name for path in left_out] == ["DICOMDIR", "notes.txt", "short"]


def test_pictures_do_not_go_where_they_are_read_also_behind_a_link(images, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "linked").mkdir()
    (images / "link").symlink_to(elsewhere / "linked")
    for place in (images / "out", elsewhere / "linked" / "out", images / "link"):
        with refused("input folder", where=place):
            folder.check_apart([images], place)
    folder.check_apart([images, images / "a.png"], elsewhere / "out")
    folder.check_apart([images], elsewhere / "linked" / ".hidden")


def test_a_link_to_an_image_that_is_gone_is_not_overlooked(images):
    (images / "b" / "gone.png").symlink_to("nowhere.png")
    found, _ = folder.find_images([images])
    assert images / "b" / "gone.png" in found
    with refused("no such file", where="gone.png"):
        folder.open_files([images / "b" / "gone.png"], ("mass",))


def test_a_damaged_file_stops_or_is_left_out(images):
    paths, _ = folder.find_images([images])
    with refused(where="broken.png"):
        folder.open_files(paths, ("mass",))
    source = folder.open_files(paths, ("mass",), on_error="skip")
    assert [(info.width, info.height) for info in source.infos] == [(30, 20), (10, 40)]
    assert [source[i].image.shape for i in range(2)] == [(20, 30, 1), (40, 10, 1)]
    assert [path for path, _ in source.skipped] == [str(images / "b" / "broken.png")]
    with refused("broken.png"):
        folder.open_files(paths[1:2], ("mass",), on_error="skip")


def test_twelve_bits(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 30), 4095, np.uint16))
    source = folder.open_files([tmp_path / "a.png"], ("mass",), SourceSpec(bit_depth=12), cache_bytes=0)
    assert source[0].image.min() == 1.0
    kept = folder.open_files([tmp_path / "a.png"], ("mass",), SourceSpec(bit_depth=12))
    assert kept[0].image.min() == pytest.approx(1, abs=1e-5)


def test_a_file_is_decoded_once_as_long_as_there_is_room(images, monkeypatch):
    paths = [path for path in folder.find_images([images])[0] if path.name != "broken.png"]
    decoded = []
    decode = decoding.decode_image
    monkeypatch.setattr(decoding, "decode_image", lambda path, **kw: decoded.append(path.name) or decode(path, **kw))
    source = folder.open_files(paths, ("mass",))
    for _ in range(3):
        for position, path in enumerate(paths):
            np.testing.assert_array_equal(source[position].image, decode(path)[0])
    assert sorted(decoded) == ["a.png", "c.png"]
    decoded.clear()
    source = folder.open_files(paths, ("mass",), cache_bytes=0)
    _ = source[0], source[0]
    assert sorted(decoded) == ["a.png", "a.png", "a.png", "c.png"]


def test_objects_without_an_image_are_left_out(images):
    """Reports, presentation states and segmentations lie beside the images of an exam."""
    kinds = {"SR1": "88.50", "PS.dcm": "11.1", "RT": "481.3", "SEG": "66.4", "IM": "1.2", "old.dcm": "1.1"}
    for name, kind in kinds.items():
        pixels = {} if name in ("IM", "old.dcm", "SEG") else dict.fromkeys(("PixelData", "Rows", "Columns"))
        (images / name).write_bytes(make(SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}", **pixels))
    (images / "private").write_bytes(make(SOPClassUID="1.2.3.4", PixelData=None, Rows=None))
    found, left_out = folder.find_images([images])
    assert {path.name for path in found} >= {"IM", "old.dcm"}
    assert {path.name for path in left_out} == {"SR1", "PS.dcm", "RT", "SEG", "private", "notes.txt"}
    for name, words in (("SR1", "Mammography CAD SR"), ("PS.dcm", "Presentation State"), ("private", "1.2.3.4")):
        with refused(words, "not an image", where=name) as raised:
            folder.open_files([images / name], ("mass",))
        assert "fetch" not in raised.value.todo


def test_every_frame_of_a_volume_is_an_image(tmp_path):
    (tmp_path / "volume").write_bytes(make(np.stack([RAMP, RAMP[::-1], RAMP // 2])))
    (tmp_path / "single").write_bytes(make())
    source = folder.open_files(folder.find_images([tmp_path])[0], ("mass",), cache_bytes=0)
    assert [(info.volume != "", info.slice) for info in source.infos] == [(False, -1), (True, 0), (True, 1), (True, 2)]
    assert len({info.image_id for info in source.infos}) == 4
    np.testing.assert_allclose(source[2].image[..., 0], RAMP[::-1] / 4095, atol=1e-6)


def test_frames_that_a_file_cannot_hold(tmp_path):
    (tmp_path / "huge").write_bytes(make(NumberOfFrames=2**31 - 1))
    with refused(where="huge"):
        folder.open_files([tmp_path / "huge"], ("mass",))
