"""DICOM files written here, and those that pydicom brings, through the whole grey-scale pipeline."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from elk_jax import budget
from elk_jax.data.sources import dicom, dicom_grey, dicom_pixels
from elk_jax.data.sources.decode import decode_image, image_size
from elk_jax.data.sources.volumes import dicom_volume
from elk_jax.errors import UserError
from tests.data.sources.dicom_files import RAMP, item, make
from tests.refusals import refused


def test_the_size_is_that_of_the_image(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(make())
    assert image_size(path) == decode_image(path)[0].shape[1::-1]
    path.write_bytes(make(Rows=None))
    with refused("Rows", where=path):
        image_size(path)


def decoded(*args, frame=None, **attributes) -> np.ndarray:
    return dicom.decode(make(*args, **attributes), frame=frame)[0]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_full_range_without_a_window(syntax):
    image, meta = dicom.decode(make(syntax=syntax))
    np.testing.assert_allclose(image, RAMP / 4095, atol=1e-6)
    assert image.dtype == np.float32
    assert (meta["bits"], meta["voi"], meta["patient_id"], meta["frames"]) == (12, "full", "P7", 1)


def test_monochrome1_is_inverted_after_the_window():
    window = {"WindowCenter": 1000, "WindowWidth": 501}
    plain, inverted = decoded(**window), decoded(PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)
    assert plain.min() == 0 and plain.max() == 1 and np.ptp(decoded()) > 0


def test_windows_as_in_the_standard():
    """PS3.3 C.11.2.1.2, by hand: center 2048, width 4096 maps 12-bit data linearly for LINEAR."""
    values = np.array([0, 2047, 2048, 4095], np.float64)
    np.testing.assert_allclose(dicom_grey.window(values, 2048, 4096), [0, 2047 / 4095, 2048 / 4095, 1])
    values = np.array([-10.0, 50.0, 100.0, 150.0, 300.0])
    np.testing.assert_allclose(dicom_grey.window(values, 100, 200, "LINEAR_EXACT"), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(
        dicom_grey.window(values, 100, 200, "SIGMOID"), 1 / (1 + np.exp(-4 * (values - 100) / 200))
    )
    np.testing.assert_array_equal(dicom_grey.window(np.array([99.0, 99.5, 100.0]), 100, 1), [0, 0, 1])
    with refused("LINEAR", 0):
        dicom_grey.window(values, 100, 0)
    with refused("CUBIC"):
        dicom_grey.window(values, 100, 10, "CUBIC")


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function):
    data = make(WindowCenter=[1800, 5], WindowWidth=[900, 7], VOILUTFunction=function)
    dataset = pydicom.dcmread(io.BytesIO(data))
    reference = pydicom.pixels.apply_windowing(dataset.pixel_array, dataset) / 4095
    np.testing.assert_allclose(dicom.decode(data)[0], reference, atol=1e-6)


def test_bad_window_names_the_file(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(make(WindowCenter=10, WindowWidth=0))
    with refused("width 0", where="a.dcm"):
        decode_image(path)


def test_rescale_then_window():
    image = decoded(
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=0,
        WindowWidth=2000,
        VOILUTFunction="LINEAR_EXACT",
    )
    np.testing.assert_allclose(image, np.clip((RAMP * 2.0 - 1000) / 2000 + 0.5, 0, 1), atol=1e-6)


def test_rescale_alone_keeps_the_full_range_and_a_negative_slope_turns_it():
    np.testing.assert_allclose(decoded(RescaleSlope=3, RescaleIntercept=-7), RAMP / 4095, atol=1e-6)
    np.testing.assert_allclose(decoded(RescaleSlope=-1, RescaleIntercept=0), 1 - RAMP / 4095, atol=1e-6)


def test_signed_pixels():
    pixels = np.array([[-2048, -1, 0, 2047]], np.int16)
    np.testing.assert_allclose(decoded(pixels), [[0, 2047 / 4095, 2048 / 4095, 1]], atol=1e-6)
    windowed = decoded(pixels, WindowCenter=0, WindowWidth=4096, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(windowed, (pixels + 2048) / 4096, atol=1e-6)


def test_bits_stored_below_the_container():
    pixels = np.array([[0, 512, 1023]], np.uint16)
    np.testing.assert_allclose(decoded(pixels, bits=10), pixels / 1023, atol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_voi_lut_sequence(syntax):
    """Inverting table of 16 entries from value 1638 on; outside it, its first and its last entry hold."""
    lut = item(LUTDescriptor=[16, 1638, 12], LUTData=[4095 - 273 * i for i in range(16)])
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    pixels = np.array([[0, 1638, 1639, 1653, 4095]], np.uint16)
    image, meta = dicom.decode(make(pixels, syntax, VOILUTSequence=[lut], WindowCenter=5, WindowWidth=5))
    np.testing.assert_allclose(image, [[1, 1, 1 - 273 / 4095, 0, 0]], atol=1e-6)
    assert meta["voi"] == "lut"


def test_modality_lut_sequence():
    lut = item(LUTDescriptor=[4, 0, 8], LUTData=[0, 51, 102, 255])
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    lut.ModalityLUTType = "US"
    image = decoded(np.array([[0, 1, 2, 3, 9]], np.uint16), ModalityLUTSequence=[lut])
    np.testing.assert_allclose(image, [[0, 0.2, 0.4, 1, 1]], atol=1e-6)


def test_functional_groups_shared_and_per_frame():
    """Frame 0 takes the shared window, frame 1 its own; spacing and laterality come from the groups too."""
    frames = np.stack([RAMP, RAMP])
    shared = item(
        FrameVOILUTSequence=[item(WindowCenter=1000, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT")],
        PixelMeasuresSequence=[item(PixelSpacing=[0.1, 0.1005])],
        FrameAnatomySequence=[item(FrameLaterality="R")],
    )
    own = item(FrameVOILUTSequence=[item(WindowCenter=3000, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT")])
    groups = {
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": [Dataset(), own],
    }
    data = make(frames, WindowCenter=1, WindowWidth=1, **groups)
    first, meta = dicom.decode(data, frame=0)
    second, _ = dicom.decode(data, frame=1)
    np.testing.assert_allclose(first, np.clip(RAMP / 2000, 0, 1), atol=1e-6)
    np.testing.assert_allclose(second, np.clip((RAMP - 2000.0) / 2000, 0, 1), atol=1e-6)
    assert meta["pixel_spacing"] == (0.1, 0.1005) and meta["laterality_header"] == "R" and meta["frames"] == 2


class Counted(io.BytesIO):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


VOLUME = np.random.default_rng(0).integers(0, 4096, (30, 40, 50)).astype(np.uint16)


def volume(syntax=ExplicitVRLittleEndian, **attributes) -> bytes:
    """30 frames, each with a window of its own."""
    groups = [item(FrameVOILUTSequence=[item(WindowCenter=100 + 100 * i, WindowWidth=500)]) for i in range(30)]
    data = make(VOLUME, syntax, PerFrameFunctionalGroupsSequence=groups, **attributes)
    return data


def encapsulated(has_bot: bool) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(volume()))
    dataset.compress(RLELossless, generate_instance_uid=False)
    if not has_bot:
        fragments = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=len(VOLUME)))
        dataset.PixelData = encapsulate(fragments, has_bot=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


KINDS_OF_VOLUMES = {
    "implicit": lambda: volume(ImplicitVRLittleEndian),
    "explicit": volume,
    "big endian": lambda: volume(ExplicitVRBigEndian),
    "compressed": lambda: encapsulated(True),
    "compressed without offsets": lambda: encapsulated(False),
    "deflated": lambda: volume(DeflatedExplicitVRLittleEndian),
    "monochrome1": lambda: volume(PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0),
}


@pytest.mark.parametrize("kind", KINDS_OF_VOLUMES)
def test_one_frame_is_read_without_the_others(kind, tmp_path, monkeypatch):
    data = KINDS_OF_VOLUMES[kind]()
    (tmp_path / "volume.dcm").write_bytes(data)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read as a whole"))
    for frame in (0, 7, 29):
        image, meta = dicom.decode(data, frame=frame)
        again, same = decode_image(tmp_path / "volume.dcm", frame=frame)
        np.testing.assert_array_equal(again[..., 0], image)
        assert same == meta and meta["frames"] == 30
        file = Counted(data)
        np.testing.assert_array_equal(dicom.decode_frame(file, frame)[0], image)
        assert kind == "deflated" or file.count < 0.1 * len(data)
    with refused(30, 29, where="volume.dcm"):
        decode_image(tmp_path / "volume.dcm", frame=30)


@pytest.mark.parametrize("kind", KINDS_OF_VOLUMES)
def test_a_frame_of_a_volume_that_is_cut_off_is_that_of_the_whole(kind):
    """The file is refused, or (compressed) the frame is there."""
    data = KINDS_OF_VOLUMES[kind]()
    for length in [140, 200, 300, len(data) // 2, len(data) - 4]:
        try:
            image = dicom.decode(data[:length], name="cut.dcm", frame=7)[0]
        except UserError as error:
            with refused(error.what, where="cut.dcm"):
                dicom.decode_frame(io.BytesIO(data[:length]), 7, name="cut.dcm")
        else:
            assert kind.startswith("compressed")
            np.testing.assert_array_equal(dicom.decode_frame(io.BytesIO(data[:length]), 7)[0], image)


def test_frames_are_chosen_or_refused():
    frames = np.stack([RAMP, RAMP[::-1]])
    np.testing.assert_allclose(decoded(frames, frame=1), RAMP[::-1] / 4095, atol=1e-6)
    with refused(2, "frame", where="dbt"):
        dicom.decode(make(frames), name="dbt")
    with refused(2, "0 to 1"):
        dicom.decode(make(frames), frame=2)
    with refused(1, "0 to 0"):
        dicom.decode(make(), frame=1)


def breast(side: str) -> np.ndarray:
    """[40, 30] a half disc that touches one side."""
    y, x = np.mgrid[:40, :30]
    disc = ((y - 20) ** 2 + x**2 < 17**2).astype(np.uint16) * 2000
    return disc if side == "L" else disc[:, ::-1]


@pytest.mark.parametrize("side", ["L", "R"])
@pytest.mark.parametrize("header", ["L", "R", "B", ""])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_laterality_from_pixels(side, header, photometric):
    pixels = breast(side) if photometric == "MONOCHROME2" else 4095 - breast(side)
    _, meta = dicom.decode(
        make(np.ascontiguousarray(pixels), ImageLaterality=header, PhotometricInterpretation=photometric)
    )
    assert meta["laterality"] == side
    assert meta["laterality_header"] == (header if header in ("L", "R") else None)


def test_laterality_falls_back_to_the_header_where_pixels_do_not_tell():
    flat = np.full((20, 20), 1000, np.uint16)
    assert dicom.decode(make(flat, Laterality="R"))[1]["laterality"] == "R"
    assert dicom.decode(make(flat))[1]["laterality"] is None
    assert dicom.breast_side(np.pad(np.ones((10, 10)), 5)) is None


def test_padding_is_black():
    pixels = np.array([[0, 4095, 4000, 100]], np.uint16)
    image = decoded(pixels, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095)
    np.testing.assert_allclose(image, [[0, 0, 0, 100 / 4095]], atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"PixelSpacing": [0.07, 0.0705]}, (0.07, 0.0705)),
        ({"ImagerPixelSpacing": [0.1, 0.1]}, (0.1, 0.1)),
        ({"ImagerPixelSpacing": [0.1, 0.1008], "EstimatedRadiographicMagnificationFactor": 2}, (0.05, 0.0504)),
        ({"PixelSpacing": [0.07, 0.07], "ImagerPixelSpacing": [0.1, 0.1]}, (0.07, 0.07)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.1, 0.1]}, (0.1, 0.1)),
        ({"PixelSpacing": []}, None),
        ({}, None),
    ],
)
def test_pixel_spacing(attributes, spacing):
    found = dicom.decode(make(**attributes))[1]["pixel_spacing"]
    assert found == pytest.approx(spacing) if spacing else found is None


def test_view():
    assert dicom.decode(make(ViewPosition="mlo"))[1]["view"] == "MLO"
    assert dicom.decode(make(ViewCodeSequence=[item(CodeValue="R-10242")]))[1]["view"] == "CC"
    assert dicom.decode(make())[1]["view"] == ""


def test_rle_needs_no_package():
    pixels = np.tile(RAMP, (4, 4))
    dataset = pydicom.dcmread(io.BytesIO(make(pixels)))
    dataset.compress(RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    np.testing.assert_allclose(dicom.decode(buffer.getvalue())[0], pixels / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        ("1.2.840.10008.1.2.4.80", "pyjpegls"),
        ("1.2.840.10008.1.2.4.70", "pylibjpeg-libjpeg"),
        ("1.2.840.10008.1.2.4.90", "pylibjpeg-openjpeg"),
    ],
)
def test_a_missing_decoder_names_its_package(syntax, package, monkeypatch):
    """As on a machine without any plugin for compressed pixels."""
    dataset = pydicom.dcmread(io.BytesIO(make()))
    dataset.PixelData = encapsulate([b"\xff\xd8 not looked at"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    monkeypatch.setattr(type(pydicom.pixels.get_decoder(syntax)), "is_available", property(lambda self: False))
    with refused("JPEG", "pip install", package, where="x.dcm"):
        dicom.decode(buffer.getvalue(), name="x.dcm")


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["pillow: Pillow does not support 12-bit precision"], "no decoder"),
        (["gdcm: GDCM does not support 12-bit precision", "pylibjpeg: a misplaced marker"], "damaged"),
    ],
)
def test_a_decoder_is_missing_only_if_none_could_read_the_kind_of_file(lines, word, monkeypatch):
    dataset = pydicom.dcmread(io.BytesIO(make()))
    dataset.compress(RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer)

    def failing(*_, **__):
        raise RuntimeError("\n  ".join(["Unable to decode as exceptions were raised by all plugins:", *lines]))

    monkeypatch.setattr(dicom_pixels, "pixel_array", failing)
    with refused(word, where="x.dcm"):
        dicom.decode(buffer.getvalue(), name="x.dcm")


def test_not_grey():
    with refused("RGB"):
        decoded(PhotometricInterpretation="RGB")
    with refused("missing"):
        decoded(PhotometricInterpretation=None)


def test_every_cut_is_refused():
    data = make(np.tile(RAMP, (8, 8)))
    for length in [140, 200, 300, len(data) // 2, len(data) - 4]:
        with refused(where="cut.dcm"):
            dicom.decode(data[:length], name="cut.dcm")


@pytest.mark.parametrize("content", [b"<html>no such file</html>", bytes(900), make()[:140], make()[:400]])
def test_what_is_not_dicom_or_has_no_pixels_is_named_so_from_its_header_too(tmp_path, content):
    """A file without any attribute lacks not only Rows."""
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    for read in (decode_image, image_size, dicom_volume):
        with refused("not a DICOM image, or truncated", "fetch", where=path):
            read(path)


def test_text_named_dcm_and_dicom_without_a_name(tmp_path):
    path = tmp_path / "notes.dcm"
    path.write_text("not a medical image " * 30)
    with refused(where="notes.dcm"):
        decode_image(path)
    (tmp_path / "IM0001").write_bytes(make())
    image, meta = decode_image(tmp_path / "IM0001")
    assert image.shape == (2, 8, 1) and meta["format"] == "dicom"


def test_without_preamble(tmp_path):
    """Files of old archives start right with the data set."""
    dataset = pydicom.dcmread(io.BytesIO(make(syntax=ImplicitVRLittleEndian)))
    del dataset.file_meta
    path = tmp_path / "old.dcm"
    pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_allclose(decode_image(path)[0][..., 0], RAMP / 4095, atol=1e-6)


BUNDLED = Path(pydicom.data.__file__).parent / "test_files"


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "image_dfl.dcm"]
)
def test_files_that_pydicom_brings(name):
    path = BUNDLED / name
    if not path.is_file():
        pytest.skip("this pydicom comes without its test files")
    image, _ = decode_image(path)
    assert image.ndim == 3 and np.isfinite(image).all() and 0 <= image.min() < image.max() <= 1


def test_any_bundled_file_is_an_image_or_one_line():
    files = sorted(BUNDLED.rglob("*.dcm"))
    if not files:
        pytest.skip("this pydicom comes without its test files")
    good = 0
    for path in files:
        try:
            image, _ = decode_image(path, frame=0)
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            good += 1
            assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    assert good >= 10


def test_a_data_set_that_inflates_without_end(monkeypatch):
    monkeypatch.setattr(budget, "FLOOR", 1 << 22)
    head = make(syntax=DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(head[140:144], "little")
    deflate = zlib.compressobj(wbits=-15)
    file = head[:start] + deflate.compress(bytes(1 << 23)) + deflate.flush()
    with refused("inflated", where="bomb.dcm"):
        dicom.decode(file, name="bomb.dcm")
    with refused("inflated", where="bomb.dcm"):
        dicom.decode_frame(io.BytesIO(file), 0, name="bomb.dcm")


def test_a_frame_far_larger_than_its_file():
    dataset = pydicom.dcmread(io.BytesIO(make()))
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.Rows = dataset.Columns = 65535
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with refused("65535 x 65535", where="bomb.dcm"):
        dicom.decode(buffer.getvalue(), name="bomb.dcm")


@pytest.mark.parametrize("open_file", [False, True])
def test_a_compressed_frame_that_is_not_of_the_size_in_the_header(open_file, monkeypatch):
    def refuses(frame: bytes, syntax: str, word: object) -> None:
        dataset = pydicom.dcmread(io.BytesIO(make(RAMP.astype(np.uint8), bits=8)))
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR, dataset.file_meta.TransferSyntaxUID = "OB", syntax
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        with refused(word, where="bomb.dcm"):
            if open_file:
                dicom.decode_frame(buffer, 0, name="bomb.dcm")
            else:
                dicom.decode(buffer.getvalue(), name="bomb.dcm")

    for kind, syntax in (("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)):
        picture = io.BytesIO()
        Image.new("L", (3000, 2000)).save(picture, kind)
        refuses(picture.getvalue(), syntax, "2000 x 3000")
    monkeypatch.setattr(budget, "FLOOR", 1 << 20)
    refuses(struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * 20000, RLELossless, "RLE")
