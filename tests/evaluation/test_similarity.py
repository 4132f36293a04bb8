"""MAE, PSNR and SSIM against numbers by hand and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from elk_jax.evaluation import similarity


def test_errors_by_hand_inside_the_mask_alone():
    real = np.zeros((20, 20), np.float32)
    image = np.full((20, 20), 9.0, np.float32)
    mask = np.zeros((20, 20), bool)
    mask[5, :4] = True
    image[5, :4] = [0.1, -0.1, 0.3, 0.1]
    found = similarity.similarity(image, real, mask)
    assert found["mae"] == pytest.approx(0.15)
    assert found["psnr"] == pytest.approx(-10 * np.log10((0.01 * 3 + 0.09) / 4), abs=1e-5)


def test_equal_images_and_an_empty_mask():
    image = np.random.default_rng(0).random((16, 16))
    found = similarity.similarity(image, image, np.ones((16, 16), bool))
    assert found["mae"] == 0 and found["psnr"] == similarity.MOST_PSNR and found["ssim"] == pytest.approx(1)
    assert all(np.isnan(v) for v in similarity.similarity(image, image, np.zeros((16, 16), bool)).values())


def test_ssim_of_flat_images_by_hand():
    """Without variance only the light counts: (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b = np.full((12, 12), 0.5), np.full((12, 12), 0.2)
    expected = (2 * 0.1 + 1e-4) / (0.25 + 0.04 + 1e-4)
    np.testing.assert_allclose(similarity.ssim_map(a, b), expected, rtol=1e-9)


def test_ssim_is_the_published_formula():
    """One pixel by a plain loop over the 11 x 11 window with Gaussian weights of deviation 1.5."""
    rng = np.random.default_rng(1)
    a = rng.random((21, 23))
    b = np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    for y, x in ((10, 11), (5, 6), (12, 16)):
        p, q = a[y - 5 : y + 6, x - 5 : x + 6], b[y - 5 : y + 6, x - 5 : x + 6]
        mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
        var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
        both = (weights * (p - mean_p) * (q - mean_q)).sum()
        c1, c2 = 0.01**2, 0.03**2
        expected = (2 * mean_p * mean_q + c1) * (2 * both + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
        assert similarity.ssim_map(a, b)[y, x] == pytest.approx(expected, rel=1e-6)


def test_ssim_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(2)
    a, b = rng.random((32, 40)), rng.random((32, 40))
    _, theirs = metrics.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    np.testing.assert_allclose(similarity.ssim_map(a, b), theirs, atol=1e-6)


def test_lesion_contrast_by_hand():
    image = np.full((6, 6), 0.2, np.float32)
    image[1:3, 2:5] = 0.8
    mask = np.ones((6, 6), bool)
    mask[0] = False
    boxes = np.array([[2.0, 1.0, 5.0, 3.0]])
    assert similarity.lesion_contrast(image, boxes, mask) == pytest.approx(0.6, abs=1e-6)
    assert np.isnan(similarity.lesion_contrast(image, np.zeros((0, 4)), mask))
    assert np.isnan(similarity.lesion_contrast(image, np.array([[0.0, 0.0, 6.0, 6.0]]), mask))


def test_means_over_images_with_patients_drawn_whole():
    values = {"mae": np.array([1.0, 2.0, 6.0]), "lesion_contrast": np.array([np.nan, 3.0, np.nan])}
    patients = ["b", "a", "b"]
    statistic, count = similarity.mean_over_images(values, patients)
    assert count == 2
    found = statistic(np.array([[1, 1], [2, 0], [0, 2]], np.float32))  # a, b
    np.testing.assert_allclose(found["mae"], [3.0, 2.0, 3.5])
    np.testing.assert_allclose(found["lesion_contrast"][:2], [3.0, 3.0])
    assert np.isnan(found["lesion_contrast"][2])
    estimates = similarity.estimates(values, patients, 200, 0)
    assert estimates["mae"]["value"] == 3 and estimates["mae"]["low"] == 2 and estimates["mae"]["high"] == 3.5
    worse = {name: column + 1 for name, column in values.items()}
    difference = similarity.differences(values, worse, patients, 200, 0)["mae"]
    assert difference["difference"] == pytest.approx(1) and difference["low"] == pytest.approx(1)
