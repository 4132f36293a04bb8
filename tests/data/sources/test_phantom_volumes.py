"""The tomosynthesis phantom as a source: slices, mammograms, pairs."""

import numpy as np
import pytest

from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.phantom_volumes import parse_options, patients
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.volumes import volumes_of
from tests.refusals import refused

SPEC = "phantom_volumes:size=64,count=12,slices=9,healthy_fraction=0.2"

MOVED = ",shift=64,zoom=0.05"


def opened(options: str = "", split: str = "val"):
    return open_source(SourceSpec(f"{SPEC},{options}"), split)


def test_patients_are_those_that_are_known_without_drawing():
    sources = {split: opened(split=split) for split in ("train", "val", "test")}
    known = {split: set(patients(SPEC.partition(":")[2], split)) for split in sources}
    assert known == {split: {info.patient_id for info in source.infos} for split, source in sources.items()}
    assert not known["train"] & known["val"] and not known["val"] & known["test"]
    assert set(patients(SPEC.partition(":")[2] + ",seed=1", "val")).isdisjoint(known["val"])
    few = open_source(SourceSpec(SPEC, patients=1), "train")
    assert len({info.patient_id for info in few.infos}) == 1


def test_all_slices_of_a_volume_and_those_that_are_asked_for():
    kinds = ("all", "near:1", "central")
    every, near, central = (open_source(SourceSpec(SPEC, slices=which), "train") for which in kinds)
    assert len(every) == 4 * 9 and [info.slice for info in every.infos[:9]] == list(range(9))
    at = {info.image_id: position for position, info in enumerate(every.infos)}
    for source in (near, central):
        assert {info.volume for info in source.infos} == {info.volume for info in every.infos}
        for position, info in enumerate(source.infos):
            whole = every.infos[at[info.image_id]]
            assert (info.slice, info.volume, info.meta["volume_slices"]) == (whole.slice, whole.volume, 9)
            assert np.array_equal(source[position].image, every[at[info.image_id]].image)
    assert len(central) < len(near) < len(every)
    # A lesion is one of its own slice, or of those near it; further away it is to be ignored, and then gone.
    sick = {info.volume for info in every.infos if info.has_lesions}
    assert sick == {info.volume for info in central.infos if info.has_lesions}
    for source, reach in ((every, 0), (near, 1)):
        for info in source.infos:
            away = np.abs(np.array(info.meta["lesion_slices"]) - info.slice)
            assert np.array_equal(info.ignore, away > reach) and (away <= 9 / 4).all()
            assert len(info.meta["lesion_kinds"]) == len(info.boxes)
    assert any(info.is_lesion_free for info in every.infos if info.volume in sick)


def test_volumes_and_their_lesions():
    """Each counts once, as in files of BCS-DBT."""
    volumes, whole = volumes_of(open_source(SourceSpec(SPEC, slices="all"), "val")), opened("modality=mammogram")
    assert [volume.view for volume in volumes] == ["lcc", "lmlo", "rcc", "rmlo"]
    for volume, info in zip(volumes, whole.infos, strict=True):
        boxes, at = volume.lesions()
        assert (len(volume), volume.slices, volume.patient_id) == (9, 9, info.patient_id)
        assert sorted(map(tuple, boxes)) == sorted(map(tuple, info.boxes)) and len(at) == len(boxes)


def test_the_modalities_show_the_same_breasts():
    mammogram, synthetic = opened("modality=mammogram"), opened("modality=synthetic_2d")
    for one, other in zip(mammogram.infos, synthetic.infos, strict=True):
        assert (one.image_id, one.volume, one.slice) == (other.image_id, "", -1)
        assert np.array_equal(one.boxes, other.boxes)
    for position in range(len(mammogram)):
        one, other = mammogram[position].image, synthetic[position].image
        assert not np.array_equal(one, other)
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8


def test_misaligned_mammograms_carry_their_boxes():
    of = lambda modality, more: opened(f"modality={modality}{more}")
    aligned, moved = (of("mammogram", more) for more in ("", MOVED))
    synthetic = [of("synthetic_2d", more).infos for more in ("", MOVED)]
    assert all(np.array_equal(same.boxes, other.boxes) for same, other in zip(*synthetic, strict=True))
    for before, after in zip(aligned.infos, moved.infos, strict=True):
        factor, step = after.meta["zoomed"], after.meta["moved"]
        assert 0.95 <= factor <= 1.05 and np.abs(step).max() <= 64 * 64 / 1024
        if len(before.boxes) == len(after.boxes):
            size = before.boxes[:, 2:] - before.boxes[:, :2]
            cut = (after.boxes[:, :2] > 0).all(1) & (after.boxes[:, 2:] < (after.width, after.height)).all(1)
            np.testing.assert_allclose((after.boxes[:, 2:] - after.boxes[:, :2])[cut], size[cut] * factor, rtol=1e-4)
    assert not np.array_equal(aligned[1].image, moved[1].image)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("modality=ct", ["ct", "dbt"]),
        ("slices=1", ["slices"]),
        ("half_angle=0", ["half_angle"]),
        ("shift=-1", ["shift"]),
        ("square=0", ["square", "size"]),
    ],
)
def test_bad_options(options, words):
    with refused(*words):
        parse_options(options)


def test_a_mammogram_has_no_slices_to_choose():
    with refused("slices=all", "mammogram", where=f"{SPEC},modality=mammogram"):
        open_source(SourceSpec(f"{SPEC},modality=mammogram", slices="all"), "val")
