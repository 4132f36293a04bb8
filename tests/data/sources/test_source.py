"""What makes one source of another."""

from dataclasses import replace

import numpy as np
import pytest

from elk_jax.data.sources.source import (
    cached,
    concatenate,
    counted,
    fewshot,
    share_of,
    subset,
    summary,
    without_unreadable,
)
from elk_jax.errors import UserError
from tests.refusals import refused


def test_no_readable_image(make_source, make_info):
    def fail(position):
        raise UserError("bad image")

    source = replace(make_source([make_info(0, [])]), read=fail)
    with refused(1, "bad image", where=source.name):
        without_unreadable(source)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((48, 64, 1), np.nan, np.float32), 3072),
        (np.full((48, 64, 1), 1.5, np.float32), 1.5),
        (np.zeros((64, 48, 1), np.float32), "48 x 64 px"),
        (np.zeros((48, 64, 3), np.float32), "(48, 64, 3)"),
    ],
)
def test_pixels_are_checked(make_source, make_info, image, reason):
    source = replace(make_source([make_info(0, [])]), read=lambda position: image)
    for opened in (source, cached(source), subset(source, [0]), concatenate([source, source])):
        with refused(reason, where=f"{opened.name}, image 0 (0.png)"):
            opened[0]


def test_subset_and_fewshot(make_source, make_info):
    source = make_source([make_info(n, []) for n in range(20)])  # two images per patient
    chosen = subset(source, [5, 2])
    assert [chosen[i].info.image_id for i in range(2)] == ["5", "2"]
    assert np.array_equal(chosen[0].image, source[5].image)
    few = [{info.patient_id for info in fewshot(source, n, seed=3).infos} for n in (2, 5)]
    assert len(few[0]) == 2 and len(few[1]) == 5 and few[0] < few[1]
    assert len(fewshot(source, 5)) == 10
    with refused(11, 10, where=source.name):
        fewshot(source, 11)


def test_a_share_of_the_patients_or_of_the_images(make_source, make_info):
    source = make_source([make_info(n, []) for n in range(20)])  # two images per patient
    patient = {info.image_id: info.patient_id for info in source.infos}
    ids = lambda share, of, seed=3: {info.image_id for info in share_of(source, share, of, seed).infos}
    assert len(ids(0.3, "patients")) == 6 and len({patient[i] for i in ids(0.3, "patients")}) == 3
    assert len(ids(0.3, "images")) == 6 and len({patient[i] for i in ids(0.3, "images")}) > 3
    for of in ("patients", "images"):
        assert ids(0.1, of) < ids(0.5, of) < ids(0.9, of) and len(ids(0.001, of)) == {"patients": 2, "images": 1}[of]
    assert ids(0.3, "patients") == {i.image_id for i in fewshot(source, 3, 3).infos}


def test_counts_of_boxes_to_ignore_and_of_doubled_ones(make_info):
    box, other = [0, 0, 9, 9], [5, 5, 9, 9]
    infos = [
        make_info(1, [box, other, box]),
        make_info(2, [box], ignore=[True]),
        make_info(3, [box, other], ignore=[False, True]),
        make_info(4, []),
    ]
    counts = summary(infos)
    assert (counts["lesions"], counts["ignored_boxes"], counts["doubled_boxes"]) == (4, 2, 1)
    assert counts["lesion_free"] == 1, "an image with boxes to ignore is not known to be lesion-free"
    assert counted(infos).endswith("4 lesions, 2 ignored boxes, 1 doubled box")
    assert counted(infos).startswith("4 images (1 without lesions) of ")
    assert counted(infos[:1]) == "1 image of 1 patient, 3 lesions, 1 doubled box"
    assert counted([make_info(9, [box])]) == "1 image of 1 patient, 1 lesion", "what is not there is not counted"


def test_concatenate(make_source, make_info):
    real = make_source([make_info(n, [[0, 0, 9, 9]]) for n in range(3)], "real")
    synthetic = make_source([make_info(n, []) for n in range(10, 12)], "synthetic")
    mixed = concatenate([real, synthetic])
    assert [mixed.mixed[info.source] for info in mixed.infos] == ["real"] * 3 + ["synthetic"] * 2
    assert mixed[4].info.image_id == "11"
    assert np.array_equal(mixed[4].image, synthetic[1].image)
    assert summary(mixed.infos) == {
        "images": 5,
        "patients": 3,
        "lesions": 3,
        "lesion_free": 2,
        "ignored_boxes": 0,
        "doubled_boxes": 0,
    }
    real, synthetic = (replace(s, seen_patients=frozenset(marks)) for s, marks in ((real, "ab"), (synthetic, "bc")))
    assert concatenate([real, subset(synthetic, [0])]).seen_patients == frozenset("abc")
    assert (mixed.category_ids, concatenate([replace(real, category_ids=(3,))] * 2).category_ids) == (None, (3,))
    with refused("lesion", "mass", where="real and synthetic"):
        concatenate([real, replace(synthetic, classes=("mass",))])


@pytest.mark.parametrize("levels", [255, 65535])
def test_cached(make_source, make_info, levels):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, levels + 1, (48, 64, 1)).astype(np.float32) * np.float32(1 / levels) for _ in range(3)]
    images = [image.clip(0, 1) for image in images]
    reads = []
    source = replace(make_source([make_info(n, []) for n in range(3)]), read=lambda i: reads.append(i) or images[i])
    kept = cached(source, max_bytes=2 * 48 * 64 * (1 if levels == 255 else 2))  # room for two
    for _ in range(3):
        for i in range(3):
            assert np.array_equal(kept[i].image, images[i])
    assert reads.count(0) == 1 and reads.count(1) == 1 and reads.count(2) == 3
