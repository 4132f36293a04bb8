"""Patients by name and by hash."""

import numpy as np
import pytest

from elk_jax.data.sources import patients
from elk_jax.images.schema import ImageInfo


def info(image: str, patient: str, **meta) -> ImageInfo:
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    return ImageInfo(image, patient, 8, 8, *none, meta=meta)


def test_a_hash_is_short_and_the_same_everywhere():
    assert patients.patient_hash("P1") == "fbeae7c18667" != patients.patient_hash("P2")


def test_a_patient_called_by_the_number_of_its_image_or_canvas_is_not_named():
    infos = [info("1", "A"), info("2", "A"), info("3", "B"), info("4", "4"), info("000000", "7", canvas="7")]
    assert patients.named(infos) == {"A", "B"}


def test_those_whose_hashes_are_known():
    hashes = {patients.patient_hash(patient) for patient in "CAX"}
    assert patients.among(["C", "B", "A"], hashes) == ["A", "C"] and patients.among(["A"], ()) == []


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("A003", "a3", True),
        ("A-3", "A_3", True),
        ("DBT-P00012", "DBT_P12", True),
        ("site-1_0007", "Site1_7", True),
        ("C03", "P03", False),
        ("A30", "A3", False),
        ("A100", "A1", False),
        ("1-2", "12", False),
        ("3.05", "3.5", False),
        ("A0", "A", False),
    ],
)
def test_ids_that_are_written_alike(one, other, alike):
    assert (patients.patient_key(one) == patients.patient_key(other)) is alike


@pytest.mark.parametrize("seen", ["3", "3.0", "P3", "p3", "003", "P003"])
def test_a_patient_is_found_however_it_was_written(seen):
    assert patients.among(["P3", "P33", "Q3"], {patients.patient_hash(seen)}) == ["P3"]
