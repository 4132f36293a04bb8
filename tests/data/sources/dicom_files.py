"""DICOM files written in memory."""

from __future__ import annotations

import io

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

RAMP = np.arange(16, dtype=np.uint16).reshape(2, 8) * 273  # 0 to 4095


def make(pixels=RAMP, syntax=ExplicitVRLittleEndian, bits=12, **attributes) -> bytes:
    """A DICOM file with `pixels` [H, W] or [F, H, W] and whatever attributes are given; None removes one.

    A DataElement keeps its own VR.
    """
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientID = "P7 "
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    for key, value in attributes.items():
        if value is None:
            delattr(dataset, key)
        else:
            put(dataset, key, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def item(**attributes) -> Dataset:
    dataset = Dataset()
    for key, value in attributes.items():
        put(dataset, key, value)
    return dataset


def put(dataset, key, value) -> None:
    if isinstance(value, DataElement):
        dataset.add(value)
    else:
        setattr(dataset, key, value)


def us(**values) -> dict[str, DataElement]:
    """Numbers written unsigned (many writers do so beside signed pixels), or empty: []."""
    return {key: DataElement(key, "US", value) for key, value in values.items()}
