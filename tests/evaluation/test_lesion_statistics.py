import numpy as np
import pytest
from scipy import stats

from elk_jax.evaluation.lesion_statistics import (
    box_step,
    compare_statistics,
    describe_lesion,
    kolmogorov_smirnov,
    wasserstein,
)
from tests.refusals import refused

BOX = np.array([30.0, 20, 54, 36])


def scene(bright: float = 0.2, noise: float = 0.02, soft: float = 1.0, seed: int = 0) -> np.ndarray:
    """Noise at 0.3 with an elliptic lesion in BOX, its border over `soft` pixels."""
    y, x = np.mgrid[:64, :80] + 0.5
    radius = np.hypot((x - 42) / 12, (y - 28) / 8)
    profile = 1 / (1 + np.exp(np.clip((radius - 1) * 10 / soft, -50, 50)))
    return 0.3 + bright * profile + np.random.default_rng(seed).normal(0, noise, (64, 80))


def test_statistics_of_a_known_lesion():
    found = describe_lesion(scene(bright=0.2, noise=0.02, soft=0.1), BOX)
    assert (found["width"], found["height"], found["area"], found["ratio"]) == (24, 16, 384, pytest.approx(2 / 3))
    assert found["brightness"] == pytest.approx(0.2, abs=0.005)
    assert found["contrast"] == pytest.approx(0.2 / 0.02, rel=0.1)
    assert found["roughness"] == pytest.approx(1, rel=0.2)


def test_by_hand():
    image = np.zeros((30, 30))
    image[:, ::2] = 0.2  # ring: mean 0.1, sd 0.1
    image[10:20, 10:20] = 0.4
    found = describe_lesion(image, np.array([10, 10, 20, 20]))
    assert found["brightness"] == pytest.approx(0.3) and found["contrast"] == pytest.approx(3.0)
    assert found["roughness"] == pytest.approx(0)


def test_a_sharp_border_is_steeper():
    sharp, soft = (describe_lesion(scene(soft=s, noise=0.01), BOX) for s in (0.2, 4))
    assert sharp["border_gradient"] > 1.5 * soft["border_gradient"]


def test_brighter_or_larger_scale_of_grey_does_not_change_the_relative_ones():
    image = scene()
    a, b = describe_lesion(image, BOX), describe_lesion(0.5 * image + 0.1, BOX)
    for name in ("contrast", "roughness", "border_gradient", "box_step"):
        assert a[name] == pytest.approx(b[name])
    assert b["brightness"] == pytest.approx(0.5 * a["brightness"])


def test_ring_leaves_out_air_and_other_lesions():
    image = scene(noise=0.02)
    expected = describe_lesion(image, BOX)
    breast = np.ones(image.shape, bool)
    breast[:, 58:] = False
    spoiled = image.copy()
    spoiled[:, 58:] = 0
    spoiled[10:19, 20:60] = 1
    found = describe_lesion(spoiled, BOX, breast, np.array([[19.5, 9.5, 60.5, 19.5]]))
    assert found["contrast"] == pytest.approx(expected["contrast"], rel=0.15)
    assert describe_lesion(spoiled, BOX)["contrast"] < 0.5 * expected["contrast"]


def test_a_seam_is_seen():
    rng = np.random.default_rng(0)
    clean = rng.normal(0.3, 0.02, (64, 80))
    seam = clean.copy()
    seam[20:36, 30:54] += 0.1
    assert box_step(clean, BOX) == pytest.approx(1, abs=0.2)
    assert box_step(seam, BOX) > 3
    assert describe_lesion(seam, BOX)["box_step"] == box_step(seam, BOX)
    one_side = clean.copy()
    one_side[20:36, 54:] += 0.2
    assert box_step(one_side, BOX) > 1.5
    assert box_step(one_side, BOX, np.arange(80)[None].repeat(64, 0) < 54) == pytest.approx(1, abs=0.2)


def test_lesions_at_the_border_of_the_image():
    image = scene()
    for box in ([-3, -2, 12, 9], [70, 55, 80, 64], [0, 0, 80, 64], [79.5, 63.5, 80, 64]):
        found = describe_lesion(image, np.array(box, float))
        assert np.isfinite([found["width"], found["area"]]).all()
    whole = describe_lesion(image, np.array([0, 0, 80, 64.0]))
    assert np.isnan(whole["contrast"]) and np.isnan(whole["box_step"])  # nothing around it
    assert np.isnan(describe_lesion(np.full((40, 40), 0.5), np.array([10, 10, 20, 20]))["contrast"])
    assert np.isnan(describe_lesion(image, BOX, np.zeros(image.shape, bool))["brightness"])


@pytest.mark.parametrize("box", [[90, 5, 95, 9], [5, 5, 5, 9], [9, 9, 5, 5], [-9, 0, 0, 9]])
def test_a_box_without_pixels(box):
    with refused(80, 64, where="box"):
        describe_lesion(scene(), np.array(box, float))


def test_distances_equal_scipy():
    rng = np.random.default_rng(0)
    for n, m in [(1, 1), (7, 3), (40, 55)]:
        a, b = rng.normal(size=n).round(1), rng.normal(0.3, 2, size=m).round(1)
        assert wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(a, b))
        assert kolmogorov_smirnov(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_comparison():
    real = [{"size": value, "contrast": 1.0} for value in (0.0, 2.0)]
    synthetic = [{"size": value, "contrast": np.nan} for value in (2.0, 4.0, 3.0)]
    found = compare_statistics(real, synthetic)
    assert found["size"] == {
        "real": 1.0,
        "synthetic": 3.0,
        "kolmogorov_smirnov": pytest.approx(2 / 3),
        "wasserstein": pytest.approx(2.0),
        "real_count": 2,
        "synthetic_count": 3,
    }
    assert found["contrast"] == {
        "real": 1.0,
        "synthetic": None,
        "kolmogorov_smirnov": None,
        "wasserstein": None,
        "real_count": 2,
        "synthetic_count": 0,
    }
    assert compare_statistics(real, real)["contrast"]["kolmogorov_smirnov"] == 0
    assert compare_statistics(real, real)["contrast"]["wasserstein"] is None  # no spread to measure with
    assert compare_statistics([], []) == {}
    assert compare_statistics([], synthetic)["size"]["synthetic"] == 3.0
