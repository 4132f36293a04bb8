"""The phantom data set: what every sample promises, at several sizes, for both lesion models."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from elk_jax.synthesis.phantom import Phantom, PhantomConfig, is_healthy, sample
from elk_jax.synthesis.phantom_lesions import KINDS
from tests.refusals import refused

SMALL = PhantomConfig(size=160)
SEED, COUNT = 3, 24
GOLDEN_GREY = [0.16854, 0.17473, 0.16689, 0.18056]
GOLDEN_BOXES = [[103.0, 113.0, 191.0, 214.0]]


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [sample(SEED, index, SMALL) for index in range(COUNT)]


@pytest.fixture(scope="module", params=["realistic", "blobs"])
def sick(request) -> list[Phantom]:
    config = replace(SMALL, healthy_fraction=0.0, lesions=request.param)
    return [sample(SEED, index, config) for index in range(COUNT)]


def masks(phantom):
    """[N, H, W] bool, one extent per lesion."""
    return phantom.lesion_map[None] == np.arange(1, len(phantom.boxes) + 1)[:, None, None]


def ring(phantom: Phantom, k: int) -> np.ndarray:
    """The breast tissue just around lesion k, free of lesions."""
    kernel = np.ones((9, 9), np.uint8)
    around = cv2.dilate(masks(phantom)[k].astype(np.uint8), kernel) > 0
    return around & (phantom.lesion_map == 0) & phantom.breast


def test_same_seed_and_index_give_the_same_phantom(phantoms):
    again = sample(SEED, 5, SMALL)
    for name in ("low_energy", "subtracted", "boxes", "lesion_map", "breast"):
        np.testing.assert_array_equal(getattr(again, name), getattr(phantoms[5], name))


def test_other_index_or_seed_gives_another_phantom(phantoms):
    for other in (sample(SEED, 6, SMALL), sample(SEED + 1, 5, SMALL)):
        assert np.abs(other.subtracted - phantoms[5].subtracted).mean() > 0.01


def test_images_are_grey_values_in_range(phantoms):
    for phantom in phantoms:
        for image in (phantom.low_energy, phantom.subtracted):
            assert image.dtype == np.float32 and image.shape == (160, 160)
            assert np.isfinite(image).all()
            assert image.min() >= 0 and image.max() <= 1


def test_both_images_show_the_same_breast_on_black(phantoms):
    kernel = np.ones((5, 5), np.uint8)
    for phantom in phantoms:
        inside = cv2.erode(phantom.breast.astype(np.uint8), kernel) > 0
        for image in (phantom.low_energy, phantom.subtracted):
            assert (image[~phantom.breast] == 0).all()
            assert (image[inside] > 0).mean() > 0.97
        assert 0.15 < phantom.breast.mean() < 0.75


def test_boxes_are_tight_around_the_masks(sick):
    for phantom in sick:
        assert len(phantom.boxes) == len(masks(phantom)) == len(phantom.lesion_kinds) > 0
        assert phantom.boxes.dtype == np.float32
        for (x0, y0, x1, y1), mask in zip(phantom.boxes.astype(int), masks(phantom)):
            assert mask.any() and not mask[:y0].any() and not mask[y1:].any()
            assert not mask[:, :x0].any() and not mask[:, x1:].any()
            part = mask[y0:y1, x0:x1]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()


def test_lesions_lie_in_the_breast_and_are_of_lesion_size(sick):
    for phantom in sick:
        assert not ((phantom.lesion_map > 0) & ~phantom.breast).any()
        sides = np.sqrt(np.prod(phantom.boxes[:, 2:] - phantom.boxes[:, :2], axis=1)) / 160
        assert (sides > 0.02).all() and (sides < 0.75).all()


def test_lesions_enhance(sick):
    contrasts = [
        phantom.subtracted[masks(phantom)[k]].mean() - np.median(phantom.subtracted[ring(phantom, k)])
        for phantom in sick
        for k in range(len(phantom.boxes))
    ]
    assert np.mean(np.array(contrasts) > 0) > 0.95 and np.median(contrasts) > 0.05


def test_enhancement_is_in_the_subtracted_image_alone():
    """Twice the contrast changes the subtracted image, in and near lesions, and not the low-energy image."""
    config = replace(SMALL, healthy_fraction=0.0)
    for index in range(4):
        plain, strong = sample(SEED, index, config), sample(SEED, index, replace(config, contrast=2.0))
        np.testing.assert_array_equal(plain.low_energy, strong.low_energy)
        np.testing.assert_array_equal(plain.boxes, strong.boxes)
        change = strong.subtracted - plain.subtracted
        assert (change >= 0).all()
        assert change[plain.lesion_map > 0].mean() > 0.03
        far = cv2.dilate((plain.lesion_map > 0).astype(np.uint8), np.ones((61, 61), np.uint8)) == 0
        assert (change[far] == 0).all()


def test_lesions_are_denser_than_their_surroundings_on_average(sick):
    contrasts = [
        phantom.low_energy[masks(phantom)[k]].mean() - np.median(phantom.low_energy[ring(phantom, k)])
        for phantom in sick
        for k in range(len(phantom.boxes))
    ]
    assert np.median(contrasts) > 0.02


def test_healthy_breasts_have_no_lesion():
    config = replace(SMALL, healthy_fraction=1.0)
    for index in range(4):
        phantom = sample(SEED, index, config)
        assert phantom.boxes.shape == (0, 4) and masks(phantom).shape == (0, 160, 160)
        assert phantom.lesion_map.max() == 0 and phantom.lesion_kinds == ()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_small_sets_keep_the_healthy_fraction(fraction):
    for seed in range(20):
        healthy = sum(is_healthy(seed, breast, fraction) for breast in range(10))
        assert abs(healthy - 10 * fraction) <= 2


def test_views_of_a_patient_belong_together(phantoms):
    for patient in range(COUNT // 4):
        views = phantoms[4 * patient : 4 * patient + 4]
        assert [(v.laterality, v.view) for v in views] == [
            ("L", "CC"),
            ("L", "MLO"),
            ("R", "CC"),
            ("R", "MLO"),
        ]
        assert len({v.patient_id for v in views}) == len({v.density for v in views}) == 1
        assert (len(views[0].boxes) > 0) == (len(views[1].boxes) > 0)  # one breast, healthy or not
    assert len({phantom.patient_id for phantom in phantoms}) == COUNT // 4


def test_the_chest_wall_is_on_the_side_of_the_laterality(phantoms):
    for phantom in phantoms:
        columns = np.flatnonzero(phantom.breast.any(0))
        heights = phantom.breast[:, columns].sum(0)
        wall_is_left = heights[: len(heights) // 4].mean() > heights[-len(heights) // 4 :].mean()
        assert wall_is_left == (phantom.laterality == "L")


def test_oblique_views_show_the_pectoral_muscle():
    """Low energy is brighter in the upper corner at the chest wall, in MLO views and not in CC views."""
    excess = {"CC": [], "MLO": []}
    config = replace(SMALL, healthy_fraction=1.0, square=False)
    for index in range(32):
        phantom = sample(SEED, index, config)
        image = phantom.low_energy if phantom.laterality == "L" else phantom.low_energy[:, ::-1]
        inside = phantom.breast if phantom.laterality == "L" else phantom.breast[:, ::-1]
        corner, foot = (slice(16, 32), slice(0, 12)), (slice(128, 144), slice(0, 12))
        if inside[corner].all() and inside[foot].all():
            excess[phantom.view].append(image[corner].mean() - image[foot].mean())
    assert np.mean(excess["MLO"]) > 0.1 > np.mean(excess["CC"]) + 0.05


def test_one_breast_looks_alike_at_every_size():
    config = PhantomConfig(healthy_fraction=0.0)
    for index in (0, 5):
        large, small = sample(SEED, index, config), sample(SEED, index, replace(config, size=128))
        np.testing.assert_allclose(small.boxes * 4, large.boxes, atol=10)
        shrunk = cv2.resize(large.breast.astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA) > 0.5
        overlap = (shrunk & small.breast).sum() / (shrunk | small.breast).sum()
        assert overlap > 0.97
        inside = cv2.erode((shrunk & small.breast).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        for name in ("low_energy", "subtracted"):
            there = cv2.resize(getattr(large, name), (128, 128), interpolation=cv2.INTER_AREA)[inside]
            here = getattr(small, name)[inside]
            assert abs(there.mean() - here.mean()) < 0.02
        blurred = [
            cv2.GaussianBlur(a, (0, 0), 2)[inside]
            for a in (
                small.low_energy,
                cv2.resize(large.low_energy, (128, 128), interpolation=cv2.INTER_AREA),
            )
        ]
        assert np.corrcoef(blurred)[0, 1] > 0.9


@pytest.mark.parametrize("size", [64, 100, 129, 1024])
def test_any_size_works(size):
    phantom = sample(1, 1, PhantomConfig(size=size, healthy_fraction=0.0))
    assert phantom.subtracted.shape == phantom.low_energy.shape == phantom.lesion_map.shape == (size, size)
    assert np.isfinite(phantom.subtracted).all() and len(phantom.boxes) > 0


def test_without_padding_the_image_is_the_breast():
    wide, narrow = sample(SEED, 3, SMALL), sample(SEED, 3, replace(SMALL, square=False))
    assert narrow.subtracted.shape[1] < 160
    shift = np.flatnonzero(wide.breast.any(0))[0] - np.flatnonzero(narrow.breast.any(0))[0]
    np.testing.assert_array_equal(wide.subtracted[:, shift : shift + narrow.subtracted.shape[1]], narrow.subtracted)
    np.testing.assert_array_equal(wide.boxes, narrow.boxes + np.float32([shift, 0, shift, 0]))


def test_both_lesion_models_share_breast_and_places():
    real = sample(SEED, 4, replace(SMALL, healthy_fraction=0.0))
    blobs = sample(SEED, 4, replace(SMALL, healthy_fraction=0.0, lesions="blobs"))
    np.testing.assert_array_equal(real.breast, blobs.breast)
    assert len(real.boxes) == len(blobs.boxes) and set(blobs.lesion_kinds) == {"blob"}
    centres = [(p.boxes[:, :2] + p.boxes[:, 2:]) / 2 for p in (real, blobs)]
    assert np.abs(centres[0] - centres[1]).max() < 12
    assert np.abs(real.subtracted - blobs.subtracted)[real.lesion_map > 0].max() > 0.02


def test_the_set_is_varied():
    config = PhantomConfig(size=96, healthy_fraction=0.0)
    phantoms = [sample(0, index, config) for index in range(0, 240, 2)]
    counts = np.array([len(phantom.boxes) for phantom in phantoms])
    assert 0.25 < (counts == 1).mean() < 0.7 and counts.max() >= 5
    assert {kind for phantom in phantoms for kind in phantom.lesion_kinds} == set(KINDS)
    assert {phantom.density for phantom in phantoms} == set("abcd")


def test_max_lesions_limits_the_number():
    config = PhantomConfig(size=96, healthy_fraction=0.0, max_lesions=1)
    assert all(len(sample(0, index, config).boxes) == 1 for index in range(12))


def test_golden_summary():
    """A change of the drawing shows here: experiments are only comparable on equal phantoms."""
    phantom = sample(0, 5, PhantomConfig(size=256, healthy_fraction=0.0))
    got = [
        phantom.low_energy.mean(),
        phantom.low_energy.std(),
        phantom.subtracted.mean(),
        phantom.subtracted.std(),
    ]
    np.testing.assert_allclose(got, GOLDEN_GREY, rtol=1e-3)
    np.testing.assert_allclose(phantom.boxes, GOLDEN_BOXES, atol=1)


def test_wrong_settings_are_user_errors():
    for wrong in (
        {"size": 8}, {"size": 100_000}, {"healthy_fraction": 1.5}, {"lesions": "squares"}, {"max_lesions": 0},
        {"contrast": 0.0}, {"contrast": float("nan")},
    ):  # fmt: skip
        with refused(where=next(iter(wrong))):
            PhantomConfig(**wrong)
    for seed, index, where in ((-1, 0, "seed"), (0, -1, "index")):
        with refused(-1, where=where):
            sample(seed, index, SMALL)
