"""A tomosynthesis volume as a DICOM file: Breast Tomosynthesis Image Storage, uncompressed, one window for all frames.

As required by DICOM PS3.3, A.55: pixel measures, window, orientation, anatomy and frame type are shared by all frames
(5200,9229), and each frame has its position (5200,9230). Shapes: D frames of H x W.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, BreastTomosynthesisImageStorage, ExplicitVRLittleEndian, generate_uid

WINDOW = 1023.0
"""Width of the window: 10-bit grey values, as in BCS-DBT."""
_MOMENT = ("20000101", "120000")
"""Date and time of all files, so that the same options give the same file."""
_VIEWS = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}


@dataclass(frozen=True)
class Header:
    """The metadata of a volume in its file. study: a name from which the UIDs are derived."""

    patient_id: str
    study: str
    laterality: str  # L or R
    view: str  # CC or MLO
    pixel_spacing: float  # mm
    slice_spacing: float  # mm

    @property
    def title(self) -> str:
        """`lcc`: laterality and view, as named in BCS-DBT."""
        return f"{self.laterality}{self.view}".lower()

    def uid(self, what: str) -> UID:
        return generate_uid(entropy_srcs=["elk_jax phantom", self.patient_id, self.study, what])


def volume_dataset(slices: np.ndarray, header: Header) -> Dataset:
    """slices: [D, H, W] in [0, 1]. The dataset, ready for `save_as(path, enforce_file_format=True)`."""
    dataset = _about_the_exam(header)
    _add_pixels(dataset, slices)
    dataset.SharedFunctionalGroupsSequence = Sequence([_shared(header)])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [_of_frame(header, position, slices.shape[0]) for position in range(slices.shape[0])]
    )
    return dataset


def _about_the_exam(header: Header) -> Dataset:
    dataset, (date, time) = Dataset(), _MOMENT
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = BreastTomosynthesisImageStorage, header.uid(f"volume {header.title}")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientID, dataset.PatientName = header.patient_id, header.patient_id
    dataset.PatientBirthDate, dataset.PatientSex = "", "F"
    dataset.StudyInstanceUID, dataset.StudyID = header.uid("study"), header.study
    dataset.StudyDate, dataset.StudyTime = date, time
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.SeriesInstanceUID, dataset.SeriesNumber = header.uid(f"series {header.title}"), 1
    dataset.Modality = "MG"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = header.uid(f"frame {header.title}"), ""
    dataset.Manufacturer, dataset.ManufacturerModelName = "elk_jax", "phantom"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0", "1"
    dataset.InstanceNumber, dataset.ContentDate, dataset.ContentTime = 1, date, time
    dataset.ImageType = _image_type()
    dataset.PixelPresentation = "MONOCHROME"
    dataset.VolumetricProperties, dataset.VolumeBasedCalculationTechnique = "VOLUME", "TOMOSYNTHESIS"
    dataset.ContentQualification, dataset.BurnedInAnnotation = "RESEARCH", "NO"
    dataset.LossyImageCompression = "00"
    dataset.AcquisitionContextSequence = Sequence()
    dataset.BreastImplantPresent = "NO"
    code, meaning = _VIEWS[header.view]
    view = _code(code, "SCT", meaning)
    view.ViewModifierCodeSequence = Sequence()
    dataset.ViewCodeSequence = Sequence([view])
    return dataset


def _add_pixels(dataset: Dataset, slices: np.ndarray) -> None:
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = slices.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 10, 9, 0
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.PixelData = np.round(slices.clip(0, 1) * WINDOW).astype("<u2").tobytes()


def _shared(header: Header) -> Dataset:
    measures = Dataset()
    measures.PixelSpacing = [f"{header.pixel_spacing:.6g}"] * 2
    measures.SliceThickness = measures.SpacingBetweenSlices = f"{header.slice_spacing:.6g}"
    window = Dataset()
    window.WindowCenter, window.WindowWidth = f"{WINDOW / 2}", f"{WINDOW}"
    window.VOILUTFunction = "LINEAR_EXACT"
    values = Dataset()
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = "0", "1", "US"
    orientation = Dataset()
    orientation.ImageOrientationPatient = [str(number) for number in _orientation(header)]
    anatomy = Dataset()
    anatomy.FrameLaterality = header.laterality
    anatomy.AnatomicRegionSequence = Sequence([_code("76752008", "SCT", "Breast")])
    frame_type = Dataset()
    frame_type.FrameType, frame_type.PixelPresentation = _image_type(), "MONOCHROME"
    frame_type.VolumetricProperties, frame_type.VolumeBasedCalculationTechnique = "VOLUME", "TOMOSYNTHESIS"
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.FrameVOILUTSequence = Sequence([window])
    shared.PixelValueTransformationSequence = Sequence([values])
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.FrameAnatomySequence = Sequence([anatomy])
    shared.XRay3DFrameTypeSequence = Sequence([frame_type])
    return shared


def _of_frame(header: Header, position: int, frames: int) -> Dataset:
    """Frame `position`, counted from the detector towards the tube."""
    content = Dataset()
    content.FrameAcquisitionNumber, content.FrameReferenceDateTime = 1, "".join(_MOMENT)
    content.FrameAcquisitionDateTime, content.FrameAcquisitionDuration = "".join(_MOMENT), 4000.0
    content.InStackPositionNumber, content.StackID = position + 1, "1"
    row, column = np.split(np.array(_orientation(header), float), 2)
    place = np.cross(row, column) * header.slice_spacing * (position + 0.5 - frames / 2)
    plane = Dataset()
    plane.ImagePositionPatient = [f"{number:.6g}" for number in place]
    frame = Dataset()
    frame.FrameContentSequence = Sequence([content])
    frame.PlanePositionSequence = Sequence([plane])
    return frame


def _orientation(header: Header) -> tuple[int, ...]:
    """Directions of growing columns and rows in the patient (left, posterior, head), of an idealised view.

    Columns of a left breast grow towards the nipple (anterior), those of a right one towards the chest wall. Rows grow
    from the outer to the inner side in CC, from head to foot in MLO.
    """
    columns = (0, -1, 0) if header.laterality == "L" else (0, 1, 0)
    if header.view == "MLO":
        return (*columns, 0, 0, -1)
    return (*columns, -1 if header.laterality == "L" else 1, 0, 0)


def _image_type() -> list[str]:
    return ["ORIGINAL", "PRIMARY", "TOMOSYNTHESIS", "NONE"]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
