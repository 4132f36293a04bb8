"""The split of patients: the published one on the real tables, and what holds for any."""

from __future__ import annotations

from collections import Counter

import cdd_plan
import cdd_split
import numpy as np
import pytest
from cdd_tables import read_tables

LESIONS = {str(patient): int(count) for patient, count in enumerate(np.random.default_rng(0).integers(1, 12, 131), 1)}


@pytest.mark.parametrize("rule", [cdd_split.published_split, cdd_split.stratified_split])
def test_every_patient_once_and_the_same_again(rule):
    split, fewshot = rule(LESIONS, 42)
    assert set(split) == set(LESIONS) and set(split.values()) == {"train", "val", "test"}
    assert fewshot and all(split[patient] == "train" for patient in fewshot)
    assert rule(dict(reversed(LESIONS.items())), 42) == (split, fewshot), "order does not matter"
    assert rule(LESIONS, 43)[0] != split


def test_stratified_sizes():
    split, fewshot = cdd_split.stratified_split(LESIONS, 42)
    assert Counter(split.values()) == {"train": 80, "val": 19, "test": 32} and len(fewshot) == 26
    means = [np.mean([LESIONS[p] for p in split if split[p] == name]) for name in ("train", "val", "test")]
    assert np.ptp(means) < 0.5


def test_folds_hold_every_patient_and_like_sizes():
    folds = cdd_split.group_folds(LESIONS, 4, 0)
    sizes = Counter(folds.values())
    assert set(folds) == set(LESIONS) and set(sizes) == {0, 1, 2, 3}
    assert max(sizes.values()) - min(sizes.values()) <= 8


def test_extension_keeps_what_was_dealt():
    split, _ = cdd_split.published_split(LESIONS)
    more = cdd_split.extended_split(split, {str(patient): 0 for patient in range(1, 327)})
    assert len(more) == 326 and all(more[patient] == name for patient, name in split.items())
    added = Counter(name for patient, name in more.items() if patient not in split)
    assert added == {"train": 119, "val": 28, "test": 48}, "195 patients as 80 : 19 : 32"
    assert cdd_split.extended_split({}, {"1": 0, "2": 3}) == {"1": "train", "2": "train"}


@pytest.fixture(scope="module")
def real_rows(real_data):
    if not (real_data / "cdd_cesm_native").is_dir():
        pytest.skip("the official tables of CDD-CESM are not there")
    return read_tables(real_data / "cdd_cesm_native")


def test_published_split_on_the_real_tables(real_rows):
    found = cdd_plan.counts(cdd_plan.make_plan(real_rows, cdd_plan.Options()).images)
    sizes = {name: (group["patients"], group["images"], group["lesions"]) for name, group in found.items()}
    assert sizes == {
        "train": (80, 150, 312),
        "val": (19, 37, 103),
        "test": (32, 56, 140),
        "all": (131, 243, 555),
        "few-shot": (26, 49, 104),
    }


def test_canvases_are_healthy_images_of_training_patients(real_rows):
    plan = cdd_plan.make_plan(real_rows, cdd_plan.Options())
    split = {image.row.patient_id: image.split for image in plan.images}
    assert 200 < len(plan.canvases) < 413
    assert all(image.split == "train" and not len(image.boxes) for image in plan.canvases)
    assert all(split.get(image.row.patient_id, "train") == "train" for image in plan.canvases)
    assert all(image.row.modality == "subtracted" and image.row.pathology == "Normal" for image in plan.canvases)


def test_a_patient_keeps_its_split_under_every_filter_and_modality(real_rows):
    split = {image.row.patient_id: image.split for image in cdd_plan.make_plan(real_rows, cdd_plan.Options()).images}
    for rule in ("all_masses", "none"):
        other = cdd_plan.make_plan(real_rows, cdd_plan.Options(filter=rule, modality="both"))
        names: dict[str, str] = {}
        for image in other.images:
            assert split.get(image.row.patient_id, image.split) == image.split
            assert names.setdefault(image.row.patient_id, image.split) == image.split
    assert sum(not len(image.boxes) for image in other.images) > 500, "healthy images are lesion-free records"
    assert all(image.row.name not in other.unannotated for image in other.images)
