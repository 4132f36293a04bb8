"""Every attribute of docs/dicom.md: honoured (values by hand and pydicom's), refused, or without effect."""

from __future__ import annotations

import io
import re
from pathlib import Path
from threading import Lock

import numpy as np
import pydicom
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from elk_jax.data.sources import dark, dicom
from elk_jax.data.sources.decode import decode_image
from tests.data.sources.dicom_files import RAMP, item, make, us
from tests.refusals import refused

SHARES = RAMP / 4095
UNSIGNED = np.array([[0, 1, 2, 3, 9]], np.uint16)
SIGNED = np.array([[-2048, -5, -1, 0, 1, 2047]], np.int16)
FLOATS = np.array([[-1.0, 0.0, 1.0, 3.0]], np.float32)
PADDED = np.append(RAMP, [[65535] * 8], 0).astype(np.uint16)
EXACT = {"VOILUTFunction": "LINEAR_EXACT"}
WINDOW = {"WindowCenter": 1000, "WindowWidth": 2000, **EXACT}


def lut(entries, first=0, bits=16, vr="US", **more) -> Dataset:
    """An item of a look-up table; entries: numbers, or the bytes of OW."""
    count = more.pop("count", len(entries) % 65536)
    table = item(LUTDescriptor=[count, first, bits], LUTData=entries, **more)
    table["LUTDescriptor"].VR, table["LUTData"].VR = "SS" if first < 0 else "US", vr
    return table


def floats(key: str, pixels=FLOATS, **attributes) -> bytes:
    kind = {"FloatPixelData": "<f4", "DoubleFloatPixelData": "<f8"}[key]
    plain = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    allocated = 8 * np.dtype(kind).itemsize
    return make(pixels, BitsAllocated=allocated, **plain, **attributes, **{key: pixels.astype(kind).tobytes()})


def in_groups(own=None, shared=None, **attributes) -> bytes:
    """Two frames; macros of the second one and of both."""
    groups = {"SharedFunctionalGroupsSequence": [item(**shared)]} if shared else {}
    groups |= {"PerFrameFunctionalGroupsSequence": [Dataset(), item(**own)]} if own else {}
    return make(np.stack([RAMP, RAMP]), **groups, **attributes)


def compressed() -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(make(np.stack([RAMP[::-1], RAMP]))))
    dataset.compress(RLELossless, generate_instance_uid=False, encapsulate_ext=True)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def windowed(center, width):
    return np.clip((RAMP - float(center)) / width + 0.5, 0, 1)


def edges(left, right, top, bottom) -> dict:
    ends = {"LeftVertical": left, "RightVertical": right, "UpperHorizontal": top, "LowerHorizontal": bottom}
    return {f"Shutter{end}Edge": place for end, place in ends.items()}


def shown(first, last):
    """The second row of the ramp between two columns, counted from 1; the rest is black."""
    inside = (np.arange(1, 9) >= first) & (np.arange(1, 9) <= last)
    return SHARES * inside * [[0], [1]]


RECTANGLE = {"ShutterShape": "RECTANGULAR", **edges(3, 5, 2, 2)}
CIRCLE = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [3, 4], "RadiusOfCircularShutter": 1}
HONOURED = {
    # Image Pixel
    "Rows Columns PixelData": (make(), SHARES),
    "BitsAllocated BitsStored": [
        (make(np.array([[0, 128, 255]], np.uint8), bits=8), [[0, 128 / 255, 1]]),
        (make(np.array([[0, 512, 1023]], np.uint32), bits=10), [[0, 512 / 1023, 1]]),
        (make(RAMP | 0xF000), SHARES),  # overlays in the bits that are not used
        (make((SIGNED & 0x0FFF).astype(np.int16)), (SIGNED + 2048) / 4095),  # no sign in them
    ],
    "HighBit": [
        (make(RAMP << 4, HighBit=15), SHARES),
        (make((RAMP << 2) | 0xC003, HighBit=13), SHARES),
        (make(SIGNED << 4, HighBit=15), (SIGNED + 2048) / 4095),
        (make(**us(HighBit=[])), SHARES),
    ],
    "PixelAspectRatio": [(make(PixelAspectRatio=["1000", "1001"]), SHARES)],
    "PixelRepresentation": (make(SIGNED), (SIGNED + 2048) / 4095),
    "SmallestImagePixelValue LargestImagePixelValue": [
        (make(bits=16, SmallestImagePixelValue=0, LargestImagePixelValue=4095), SHARES),
        (make(bits=16, LargestImagePixelValue=4095), SHARES),
        (make(RAMP + 1000, bits=16, SmallestImagePixelValue=1000, LargestImagePixelValue=5095), SHARES),
        (make(bits=16, SmallestImagePixelValue=0, LargestImagePixelValue=2000), RAMP / 65535),  # not of these pixels
        (make(RAMP // 2, SmallestImagePixelValue=0, LargestImagePixelValue=2100), RAMP // 2 / 4095),  # needs 12 bits
        (
            make(SIGNED, bits=16, **us(SmallestImagePixelValue=63488, LargestImagePixelValue=2047)),
            (SIGNED + 2048) / 4095,
        ),
    ],
    "PixelPaddingValue PixelPaddingRangeLimit": [
        (make(PixelPaddingValue=4095), np.where(RAMP == 4095, 0, SHARES)),
        (make(PixelPaddingValue=3822, PixelPaddingRangeLimit=4095), np.where(RAMP >= 3822, 0, SHARES)),
        (make(SIGNED, **us(PixelPaddingValue=65535)), np.where(SIGNED == -1, 0, (SIGNED + 2048) / 4095)),
        (make(PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1"), np.where(RAMP == 0, 0, 1 - SHARES)),
        (make(np.append(RAMP, [[65535] * 8], 0).astype(np.uint16), PixelPaddingValue=65535), [*SHARES, [0] * 8]),
        (make(np.append(SIGNED, [[-32768] * 6], 0), PixelPaddingValue=-32768), [*(SIGNED + 2048) / 4095, [0] * 6]),
    ],
    "FloatPixelData": (floats("FloatPixelData"), (FLOATS + 1) / 4),
    "DoubleFloatPixelData": (floats("DoubleFloatPixelData"), (FLOATS + 1) / 4),
    "FloatPixelPaddingValue FloatPixelPaddingRangeLimit": (
        floats("FloatPixelData", FloatPixelPaddingValue=2.0, FloatPixelPaddingRangeLimit=4.0),
        [[0, 0.5, 1, 0]],
    ),
    "ExtendedOffsetTable ExtendedOffsetTableLengths": (compressed(), SHARES),
    # Modality LUT
    "ModalityLUTSequence": [
        (make(UNSIGNED, ModalityLUTSequence=[lut([0, 51, 102, 255], 0, 8)]), [[0, 0.2, 0.4, 1, 1]]),
        (make(SIGNED, ModalityLUTSequence=[lut([0, 10, 20, 50], -2)]), [[0, 0, 0.2, 0.4, 1, 1]]),
        (make(ModalityLUTSequence=[Dataset()]), SHARES),
        (make(ModalityLUTSequence=[item(**us(LUTDescriptor=[], LUTData=[]))]), SHARES),
        (make(UNSIGNED, ModalityLUTSequence=[lut([9, 0], 0)], RescaleSlope=5, RescaleIntercept=1), [[1, 0, 0, 0, 0]]),
    ],
    "RescaleSlope RescaleIntercept": [
        (make(RescaleSlope=2, RescaleIntercept=-100, WindowCenter=0, WindowWidth=4000, **EXACT), windowed(50, 2000)),
        (make(RescaleSlope=2, WindowCenter=0, WindowWidth=4000, **EXACT), windowed(0, 2000)),
        (make(RescaleIntercept=-1000, WindowCenter=0, WindowWidth=2000, **EXACT), windowed(1000, 2000)),
        (make(RescaleSlope=-1, RescaleIntercept=4095), 1 - SHARES),
        (make(RescaleSlope="", RescaleIntercept=""), SHARES),
    ],
    # VOI LUT
    "VOILUTSequence": [
        (make(UNSIGNED, VOILUTSequence=[lut([0, 1, 3, 4])]), [[0, 0.25, 0.75, 1, 1]]),
        (make(UNSIGNED, VOILUTSequence=[lut([4, 0]), lut([0, 4])], WindowCenter=1, WindowWidth=1), [[1, 0, 0, 0, 0]]),
        (make(VOILUTSequence=[]), SHARES),
        (make(VOILUTSequence=[Dataset()], **WINDOW), windowed(1000, 2000)),
    ],
    "WindowCenter WindowWidth": [
        (make(WindowCenter=[1000, 5], WindowWidth=[2000, 7], **EXACT), windowed(1000, 2000)),
        (make(WindowCenter="", WindowWidth=""), SHARES),
        (make(WindowCenter=1000), SHARES),
        (make(WindowWidth=1000), SHARES),
    ],
    "VOILUTFunction": (make(WindowCenter=1000, WindowWidth=2001), np.clip((RAMP - 999.5) / 2000 + 0.5, 0, 1)),
    # Presentation LUT
    "PhotometricInterpretation": (make(PhotometricInterpretation="MONOCHROME1 "), 1 - SHARES),
    "PresentationLUTShape": [
        (make(PresentationLUTShape="IDENTITY"), SHARES),
        (make(PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1"), 1 - SHARES),
        (make(PresentationLUTShape=""), SHARES),
    ],
    "PresentationLUTSequence": (
        make(PresentationLUTSequence=[lut([255 - 17 * i for i in range(16)], 0, 8)]),
        1 - SHARES,
    ),
    # Display shutter
    " ".join(["ShutterShape", *edges(0, 0, 0, 0)]): [
        (make(**RECTANGLE), shown(3, 5)),
        (make(ShutterShape="RECTANGULAR", **edges(1, 8, 1, 2)), SHARES),
        (make(**RECTANGLE, PhotometricInterpretation="MONOCHROME1"), np.where(shown(3, 5), 1 - SHARES, 0)),
        (make(**RECTANGLE | CIRCLE | {"ShutterShape": ["RECTANGULAR", "CIRCULAR"]}), shown(4, 4)),
        (make(ShutterShape=""), SHARES),
    ],
    "CenterOfCircularShutter RadiusOfCircularShutter": (make(**CIRCLE), shown(4, 4)),
    "VerticesOfThePolygonalShutter": (
        make(ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=[2, 2, 2, 6, 9, 6, 9, 2]),
        shown(2, 6),
    ),
    "FrameDisplayShutterSequence": (in_groups({"FrameDisplayShutterSequence": [item(**RECTANGLE)]}), shown(3, 5)),
    # Functional groups: the frame's own, then those of all, then the top level
    "NumberOfFrames SharedFunctionalGroupsSequence FrameVOILUTSequence": (
        in_groups(
            shared={"FrameVOILUTSequence": [item(**WINDOW)]},
            WindowCenter=7,
            WindowWidth=7,
        ),
        windowed(1000, 2000),
    ),
    "PerFrameFunctionalGroupsSequence": [
        (
            in_groups(
                own={"FrameVOILUTSequence": [item(**WINDOW)]},
                shared={"FrameVOILUTSequence": [item(WindowCenter=5, WindowWidth=7, VOILUTFunction="SIGMOID")]},
                VOILUTSequence=[lut([1, 0])],
            ),
            windowed(1000, 2000),
        ),
        (  # the function of another window is not this one's
            in_groups({"FrameVOILUTSequence": [item(WindowCenter=1000, WindowWidth=2001)]}, VOILUTFunction="SIGMOID"),
            np.clip((RAMP - 999.5) / 2000 + 0.5, 0, 1),
        ),
        (in_groups({"FrameVOILUTSequence": [Dataset()]}, **WINDOW), windowed(1000, 2000)),
    ],
    "PixelValueTransformationSequence": (
        in_groups(
            own={"PixelValueTransformationSequence": [item(RescaleSlope=-1, RescaleIntercept=0)]},
            shared={"PixelValueTransformationSequence": [item(RescaleSlope=1, RescaleIntercept=0)]},
            ModalityLUTSequence=[lut([9, 0, 9])],
        ),
        1 - SHARES,
    ),
}
"""Attributes: (file, what its second or only frame must look like), or several."""

OF_META = {
    "PixelSpacing": ({"PixelSpacing": [0.07, 0.0705]}, "pixel_spacing", (0.07, 0.0705)),
    "ImagerPixelSpacing": ({"ImagerPixelSpacing": [0.1, 0.1]}, "pixel_spacing", (0.1, 0.1)),
    "EstimatedRadiographicMagnificationFactor": (
        {"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 2},
        "pixel_spacing",
        (0.05, 0.05),
    ),
    "PixelMeasuresSequence": (
        {"SharedFunctionalGroupsSequence": [item(PixelMeasuresSequence=[item(PixelSpacing=[0.1, 0.1005])])]},
        "pixel_spacing",
        (0.1, 0.1005),
    ),
    "FrameAnatomySequence FrameLaterality": (
        {"SharedFunctionalGroupsSequence": [item(FrameAnatomySequence=[item(FrameLaterality="R")])]},
        "laterality_header",
        "R",
    ),
    "ImageLaterality": ({"ImageLaterality": "L", "Laterality": "R"}, "laterality_header", "L"),
    "Laterality": ({"Laterality": "R"}, "laterality_header", "R"),
    "ViewPosition": ({"ViewPosition": "CC"}, "view", "CC"),
    "ViewCodeSequence": ({"ViewCodeSequence": [item(CodeValue="R-10226")]}, "view", "MLO"),
    "PatientID": ({}, "patient_id", "P7"),
}
"""Attributes: what is set, where it comes out, and as what."""

FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
REFUSED = {
    "SOPClassUID": [
        (make(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.50"), "Mammography CAD SR"),
        (make(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "Segmentation"),
        (make(SOPClassUID=FOR_PROCESSING), "FOR PRESENTATION"),
    ],
    "PresentationIntentType": (make(PresentationIntentType="FOR PROCESSING"), "FOR PRESENTATION"),
    "SamplesPerPixel": (make(SamplesPerPixel=3), "3 samples"),
    "PhotometricInterpretation": (make(PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR"),
    "Rows": [(make(Rows=None), "Rows"), (make(Rows=0), "0 x 8")],
    "Columns": (make(Columns=None), "Columns"),
    "BitsAllocated": (make(BitsAllocated=12), "12"),
    "BitsStored": [(make(BitsStored=17), "17"), (make(BitsStored=None), "BitsStored")],
    "HighBit": [(make(HighBit=9), "9"), (make(HighBit=16), "16")],
    "PixelRepresentation": (make(PixelRepresentation=2), "2"),
    "PixelAspectRatio": (make(PixelAspectRatio=["2", "1"]), "square"),
    "PixelSpacing": [
        (make(PixelSpacing=[0.1, 0.2]), "square"),
        (make(SharedFunctionalGroupsSequence=[item(PixelMeasuresSequence=[item(PixelSpacing=[0.07, 0.08])])]), "0.08"),
    ],
    "ImagerPixelSpacing": (make(ImagerPixelSpacing=[0.1, 0.12]), "square"),
    "PixelDataProviderURL": (make(PixelData=None, PixelDataProviderURL="http://pacs/1"), "server"),
    "RescaleSlope": [(make(RescaleSlope=0, RescaleIntercept=5), "RescaleSlope")],
    "WindowWidth": [
        (make(WindowCenter=9, WindowWidth=0), "width 0"),
        (make(WindowCenter=9, WindowWidth="1e999"), "inf"),
    ],
    "WindowCenter": [
        (make(WindowCenter=50000, WindowWidth=10), "black"),
        (make(WindowCenter=50000, WindowWidth=10, PhotometricInterpretation="MONOCHROME1"), "white"),
    ],
    "VOILUTFunction": (make(WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"), "CUBIC"),
    "VOILUTSequence": [
        (make(VOILUTSequence=[lut([1, 2, 3], count=4)]), "4 entries"),
        (make(VOILUTSequence=[lut([0, 0, 9], -9)]), "white"),
        (make(VOILUTSequence=[item(**us(LUTDescriptor=[4, 0, 16]))]), "LUTData"),
        (make(VOILUTSequence=[item(**us(LUTDescriptor=[4, 0, 16], LUTData=[]))]), "LUTData"),
    ],
    "PresentationLUTShape": [
        (make(PresentationLUTShape="INVERSE"), "MONOCHROME2"),
        (make(PresentationLUTShape="IDENTITY", PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1"),
        (make(PresentationLUTShape="LIN OD"), "LIN OD"),
    ],
    "PresentationLUTSequence": (
        make(PresentationLUTSequence=[lut([0, 1])], PhotometricInterpretation="MONOCHROME1"),
        "MONOCHROME1",
    ),
    "ShutterShape": [
        (make(ShutterShape="BITMAP"), "BITMAP"),
        (make(ShutterShape="RECTANGULAR"), "Edge"),
        (make(ShutterShape="RECTANGULAR", **edges(5, 4, 1, 2)), "whole image"),
        (make(ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=[1, 1, 2]), "Vertices"),
    ],
    "PixelData": [
        (make(np.stack([RAMP] * 2), NumberOfFrames=None), "2 frames"),
        (make(Rows=1), "2 frames of 1 x 8"),
    ],
    "RecommendedViewingMode": (make(RecommendedViewingMode="SUB"), "subtract"),
    "PixelPresentation": (make(PixelPresentation="COLOR"), "PixelPresentation"),
    "PerFrameFunctionalGroupsSequence": (
        make(np.stack([RAMP] * 2), PerFrameFunctionalGroupsSequence=[Dataset()]),
        "functional groups",
    ),
}
"""Attributes: (file, a word of the refusal), or several."""

OTHER = item(RealWorldValueSlope=-3.0, RealWorldValueIntercept=7.0, RescaleType="HU")
WITHOUT_EFFECT = {
    **{"PlanarConfiguration": 1, "SmallestPixelValueInSeries": 5, "LargestPixelValueInSeries": 9},
    **{"RedPaletteColorLookupTableDescriptor": [1, 0, 8], "RedPaletteColorLookupTableData": b"\0\0"},
    **{"ICCProfile": b"\0\0", "ColorSpace": "SRGB", "RescaleType": "HU", "ModalityLUTType": "OD"},
    **{"WindowCenterWidthExplanation": "NORMAL", "LUTExplanation": "soft"},
    **{"ImageType": ["DERIVED", "PRIMARY"], "PatientOrientation": ["A", "F"], "QualityControlImage": "YES"},
    **{"BurnedInAnnotation": "YES", "RecognizableVisualFeatures": "YES", "LossyImageCompression": "01"},
    **{"LossyImageCompressionRatio": 10, "LossyImageCompressionMethod": "ISO_10918_1"},
    **{"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1, "CalibrationImage": "YES"},
    **{"BreastImplantPresent": "YES", "PartialView": "YES", "PositionerPrimaryAngle": 45},
    **{"ViewModifierCodeSequence": [item(CodeValue="R-102D5")], "PixelSpacingCalibrationType": "GEOMETRY"},
    **{"FieldOfViewRotation": 90, "FieldOfViewHorizontalFlip": "YES", "NominalScannedPixelSpacing": [0.05, 0.05]},
    **{"OverlayRows": DataElement(0x60000010, "US", 2), "OverlayBitPosition": DataElement(0x60000102, "US", 15)},
    **{"IconImageSequence": [item(Rows=1)]},
    **{"RealWorldValueMappingSequence": [OTHER], "PixelIntensityRelationshipLUTSequence": [lut([1, 0])]},
    **{"FrameContentSequence": [item(FrameAcquisitionNumber=3)], "PlanePositionSequence": [item()]},
    **{"PlaneOrientationSequence": [item(ImageOrientationPatient=[0, 1, 0, 1, 0, 0])]},
    **{"DerivationImageSequence": [item()], "RotationAngle": 90, "ShutterPresentationValue": 65535},
}
"""Attributes and values beside which the image is the same; sequences also as functional groups."""


def listed(table) -> list:
    """(attributes, a case of them), one each."""
    return [(key, case) for key, cases in table.items() for case in (cases if isinstance(cases, list) else [cases])]


def last_frame(data: bytes, **options):
    """The second of two frames, or the only one."""
    several = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True).get("NumberOfFrames")
    return dicom.decode(data, name="a.dcm", frame=1 if several else None, **options)


@pytest.mark.parametrize(("attributes", "case"), listed(HONOURED))
def test_honoured(attributes, case):
    data, wanted = case
    np.testing.assert_allclose(last_frame(data)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("attributes", OF_META)
def test_honoured_in_what_is_known_of_the_image(attributes):
    given, key, wanted = OF_META[attributes]
    assert dicom.decode(make(**given))[1][key] == wanted


@pytest.mark.parametrize(("attributes", "case"), listed(REFUSED))
def test_refused(attributes, case, tmp_path):
    data, word = case
    several = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True).get("NumberOfFrames")
    with refused(word, where="a.dcm") as raised:
        decode_image(data, name="a.dcm", frame=1 if several else None)
    (tmp_path / "a.dcm").write_bytes(data)
    with refused(word, where="a.dcm"):
        decode_image(tmp_path / "a.dcm", frame=1 if "Frame" in attributes else 0)
    assert raised.value.todo and "fetch" not in raised.value.todo


def test_without_effect():
    for key, value in WITHOUT_EFFECT.items():
        np.testing.assert_allclose(dicom.decode(make(**{key: value}))[0], SHARES, atol=1e-6, err_msg=key)
        if key.endswith("Sequence"):
            for place in ("own", "shared"):
                np.testing.assert_allclose(last_frame(in_groups(**{place: {key: value}}))[0], SHARES, atol=1e-6)


def test_the_page_lists_what_is_tested_here():
    page = (Path(__file__).parents[3] / "docs" / "dicom.md").read_text()
    rows = [row.split("|")[1:3] for row in page.splitlines() if row.startswith("| `")]
    said = {outcome: set() for outcome in ("honoured", "refused", "without effect")}
    for attributes, outcomes in rows:
        for outcome in outcomes.strip().split(", "):
            said[outcome] |= set(re.findall(r"`(\w+)`", attributes))
    unknown = [key for keys in said.values() for key in keys if tag_for_keyword(key) is None]
    assert all(key.startswith("Overlay") for key in unknown), unknown
    names = lambda *tables: {key for table in tables for keys in table for key in keys.split()}
    in_tables = {"LUTDescriptor", "LUTData"}
    assert said["honoured"] == names(HONOURED, OF_META) | in_tables
    assert said["refused"] == names(REFUSED)
    assert names(WITHOUT_EFFECT) <= said["without effect"]


ENTRIES = [4095 - 273 * i for i in range(16)]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("vr", ["US", "SS", "OW", "OW of bytes"])
@pytest.mark.parametrize("kind", ["unsigned", "signed"])
def test_tables_of_any_form(syntax, bits, vr, kind):
    """VOI LUTs of 8 bits, of 12, and of 12 that call themselves 16: as numbers, words, and bytes."""
    entries = np.array([e >> 4 for e in ENTRIES] if bits == 8 else ENTRIES)
    first = -3 if kind == "signed" else 3
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    if vr == "OW of bytes":
        if bits != 8:
            return
        data = entries.astype("u1").view("<u2").astype(f"{order}u2").tobytes()
    else:
        data = entries.astype(f"{order}u2").tobytes() if vr == "OW" else entries.tolist()
    pixels = np.array([[-9, -3, 0, 2, 3, 7, 18, 99]], np.int16)
    pixels = pixels if kind == "signed" else pixels.clip(0).astype(np.uint16)
    wanted = entries[np.clip(pixels.astype(int) - first, 0, 15)] / (255 if bits == 8 else 4095)
    file = make(pixels, syntax, VOILUTSequence=[lut(data, first, bits, vr[:2], count=16)])
    np.testing.assert_allclose(dicom.decode(file)[0], wanted, atol=1e-6)
    modality = make(pixels, syntax, ModalityLUTSequence=[lut(data, first, bits, vr[:2], count=16)])
    np.testing.assert_allclose(dicom.decode(modality)[0], wanted, atol=1e-6)
    if bits == 16 and vr != "SS":
        dataset = pydicom.dcmread(io.BytesIO(file))
        np.testing.assert_allclose(apply_voi(dataset.pixel_array.astype(int), dataset) / 4095, wanted)
        dataset = pydicom.dcmread(io.BytesIO(modality))
        np.testing.assert_allclose(apply_modality_lut(dataset.pixel_array.astype(int), dataset) / 4095, wanted)


def test_tables_of_unusual_sizes():
    wide = lut((np.arange(65536) // 16).astype("<u2").tobytes(), vr="OW", count=0)  # 65536 entries
    image = dicom.decode(make(np.array([[0, 32768, 65535]], np.uint16), bits=16, VOILUTSequence=[wide]))[0]
    np.testing.assert_allclose(image, [[0, 2048 / 4095, 1]], atol=1e-6)
    more_than_256 = [i // 4 for i in range(1024)]
    image = dicom.decode(make(np.array([[0, 512, 1023]], np.uint16), VOILUTSequence=[lut(more_than_256, 0, 8)]))[0]
    np.testing.assert_allclose(image, [[0, 128 / 255, 1]], atol=1e-6)
    image = dicom.decode(make(UNSIGNED, VOILUTSequence=[lut([0, 3000, 4000], 0, 10)]))[0]  # more than its 10 bits
    np.testing.assert_allclose(image, [[0, 0.75, 1, 1, 1]], atol=1e-6)
    image = dicom.decode(make(UNSIGNED, VOILUTSequence=[lut([0, 2100, 3000], 0, 12)]))[0]  # its bits, not its maximum
    np.testing.assert_allclose(image, [[0, 2100 / 4095, *[3000 / 4095] * 3]], atol=1e-6)
    flat = np.full((1, 5), 7, np.uint16)
    assert dicom.decode(make(flat, VOILUTSequence=[lut([0, 0])]))[0].max() == 0


def test_a_first_value_of_the_wrong_sign():
    """-1024 written as 64512 before values that are rescaled to -1024 to 3071."""
    table = lut(list(range(4096)), 64512, 12)
    image = dicom.decode(make(RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=[table]))[0]
    np.testing.assert_allclose(image, SHARES, atol=1e-6)


def test_a_presentation_lut_agrees_with_pydicom():
    entries = (np.arange(16) ** 2).tolist()
    dataset = Dataset()
    dataset.PresentationLUTSequence = [lut(entries, 0, 8)]
    wanted = apply_presentation_lut(RAMP // 273, dataset) / 255
    np.testing.assert_allclose(dicom.decode(make(PresentationLUTSequence=[lut(entries, 0, 8)]))[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "bit_depth", "wanted"),
    [
        ({"bits": 16}, 12, SHARES),
        ({"bits": 16, "PhotometricInterpretation": "MONOCHROME1"}, 12, 1 - SHARES),
        ({"bits": 12}, 10, SHARES),  # the header knows better
        ({"bits": 16, **WINDOW}, 10, windowed(1000, 2000)),
    ],
)
def test_a_bit_depth_is_for_headers_that_say_nothing(attributes, bit_depth, wanted):
    np.testing.assert_allclose(dicom.decode(make(**attributes), bit_depth=bit_depth)[0], wanted, atol=1e-6)


def test_a_bit_depth_that_is_too_small():
    with refused(4095, 10, where="a.dcm"):
        dicom.decode(make(bits=16), name="a.dcm", bit_depth=10)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"bits": 16}, ("bit_depth=12", "4095")),
        ({"bits": 16, "PhotometricInterpretation": "MONOCHROME1"}, ("bit_depth=12",)),
        ({"bits": 16, "pixels": SIGNED}, ("bit_depth=12", "4095")),
        ({"bits": 16, "pixels": PADDED, "PixelPaddingValue": 65535}, ("4095",)),
        ({"bits": 16, "LargestImagePixelValue": 4095}, ()),
        ({"bits": 12}, ()),
        ({"bits": 16, "WindowCenter": 1000, "WindowWidth": 2000}, ()),
    ],
)
def test_a_warning_of_values_that_use_little_of_their_range(attributes, words, caplog, monkeypatch):
    monkeypatch.setattr(dark, "_WARNED", Lock())
    decode_image(make(**attributes), name="a.dcm")
    decode_image(make(**attributes), name="b.dcm")
    text = " ".join(record.message for record in caplog.records)
    assert len(caplog.records) == bool(words) and all(word in text for word in (*words, "a.dcm")[: 9 * bool(words)])
