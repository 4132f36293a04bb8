"""Folds of patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from elk_jax.data.sources import folds
from elk_jax.data.sources.source import ImageSource
from elk_jax.images.schema import ImageInfo
from tests.refusals import refused


def info(image: str, patient: str, labels=(), split: str = "train") -> ImageInfo:
    boxes = np.tile(np.array([0, 0, 4, 4], np.float32), (len(labels), 1))
    ignore = np.zeros(len(labels), bool)
    return ImageInfo(image, patient, 8, 8, boxes, np.array(labels, np.int32), ignore, split=split)


def source(*infos: ImageInfo) -> ImageSource:
    return ImageSource("real", ("a", "b"), infos, lambda position: np.zeros((8, 8, 1), np.float32))


def test_patients_stay_whole_and_folds_are_alike():
    """24 patients of two images: a third each without a lesion, of class 0 and of class 1."""
    kinds = {f"p{i}": [(), (0,), (1, 1)][i % 3] for i in range(24)}
    infos = [info(f"{patient}/{n}", patient, labels) for patient, labels in kinds.items() for n in range(2)]
    parts = folds.deal(infos, 4, seed=3)
    assert sorted(patient for part in parts for patient in part) == sorted(kinds)
    for part in parts:
        assert sorted(kinds[patient] for patient in part) == [(), (), (0,), (0,), (1, 1), (1, 1)]
    assert folds.deal(infos[::-1], 4, seed=3) == parts and folds.deal(infos, 4, seed=4) != parts


def test_fewer_patients_than_folds_are_refused():
    assert sorted(map(len, folds.deal([info("1", "x"), info("2", "y"), info("3", "y")], 2, 0))) == [1, 1]
    with refused("3 folds of 2 patients", "at most 2", where="config.detector.folds"):
        folds.deal([info("1", "x"), info("2", "y")], 3, 0, "config.detector.folds")


def test_both_splits_become_one_source_that_reads_the_same_images():
    train, val = source(info("1", "x"), info("2", "y")), source(info("3", "z", split="val"))
    train = replace(train, read=lambda position: np.full((8, 8, 1), position / 10, np.float32))
    val = replace(val, read=lambda position: np.full((8, 8, 1), 0.9, np.float32))
    whole = folds.pooled(train, val)
    assert [one.image_id for one in whole.infos] == ["1", "2", "3"] and whole.mixed == () and whole.name == "real"
    assert {one.source for one in whole.infos} == {0}
    assert [float(whole[i].image.max()) for i in range(3)] == pytest.approx([0.0, 0.1, 0.9])
    assert [one.image_id for one in folds.of_patients(whole, {"x", "z"}).infos] == ["1", "3"]
    assert [one.image_id for one in folds.without_patients(whole, {"x", "z"}).infos] == ["2"]


def test_a_patient_that_is_held_out_is_left_out_of_other_sources_however_it_is_written():
    painted = source(info("1", "P003"), info("2", "4"), info("3", "3"))
    kept = folds.without_patients(painted, {"3.0"})
    assert [one.image_id for one in kept.infos] == ["2", "3"], "an image that is called 3 names no patient"
