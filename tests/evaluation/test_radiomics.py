import json
from pathlib import Path

import numpy as np
import pytest

from elk_jax.evaluation import radiomics, texture_features, texture_matrices
from tests.refusals import refused

BENCHMARK = json.loads((Path(__file__).parent.parent / "golden" / "ibsi_phantom.json").read_text())
PHANTOM = np.array(BENCHMARK["phantom"], np.int32)


@pytest.fixture(scope="module")
def found():
    """All 82 features of the phantom, textures averaged over its slices."""
    slices = [radiomics.texture(levels, 6) for levels in PHANTOM]
    features = {name: np.mean([one[name] for one in slices]) for name in slices[0]}
    inside = PHANTOM[PHANTOM > 0]
    share = np.bincount(inside) / len(inside)
    statistics = radiomics.intensity_features(inside.astype(float))
    return (
        features
        | {f"intensity_{name}": value for name, value in statistics.items()}
        | {"histogram_entropy": texture_features.entropy(share), "histogram_uniformity": (share**2).sum()}
    )


@pytest.mark.parametrize("name", BENCHMARK["values"])
def test_published_value(name, found):
    published = BENCHMARK["values"][name]
    # Three digits are published (and rounded): half a unit of the third.
    tolerance = 0.5 * 10 ** (np.floor(np.log10(abs(published))) - 2)
    assert abs(found[name] - published) <= 1.001 * tolerance


def test_every_feature_has_a_published_value(found):
    assert set(found) == set(BENCHMARK["values"]) and len(found) == 82


def test_cooccurrences_by_hand():
    levels = np.array([[1, 2, 2], [0, 1, 3]])
    right, down, diagonal, other = texture_matrices.cooccurrences(levels, 3)
    np.testing.assert_array_equal(right, [[0, 1, 1], [1, 2, 0], [1, 0, 0]])
    np.testing.assert_array_equal(down, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(diagonal, [[2, 0, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(other, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_runs_by_hand():
    levels = np.array([[1, 1, 2], [1, 0, 2], [1, 1, 1]])

    def listed(pair):
        return sorted(zip(pair[0].tolist(), pair[1].tolist()))

    across, down, diagonal, other = map(listed, texture_matrices.runs(levels))
    assert across == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 1)]
    assert down == [(1, 1), (1, 1), (1, 1), (1, 3), (2, 2)]
    assert diagonal == other == [(1, 1)] * 4 + [(1, 2)] + [(2, 1)] * 2


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 9), (9, 4)])
def test_matrices_account_for_every_pixel(shape):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 4, shape).astype(np.int32)
    pixels = np.bincount(levels.ravel(), minlength=4)[1:]
    for i, j in texture_matrices.runs(levels):
        np.testing.assert_array_equal(np.bincount(i, weights=j, minlength=4)[1:], pixels)
    i, j = texture_matrices.zones(levels)
    np.testing.assert_array_equal(np.bincount(i, weights=j, minlength=4)[1:], pixels)
    for matrix in texture_matrices.cooccurrences(levels, 3):
        np.testing.assert_array_equal(matrix, matrix.T)


def test_turning_and_mirroring_change_nothing():
    rng = np.random.default_rng(1)
    patch, mask = rng.random((14, 11)), rng.random((14, 11)) < 0.8
    expected = radiomics.radiomics(patch, mask)
    for turn in (np.rot90, np.flipud, np.transpose):
        assert radiomics.radiomics(turn(patch), turn(mask)) == pytest.approx(expected)


def test_outside_the_mask_nothing_counts():
    rng = np.random.default_rng(2)
    patch, mask = rng.random((12, 12)), np.zeros((12, 12), bool)
    mask[3:9, 2:10] = True
    alone = radiomics.radiomics(patch[3:9, 2:10])
    assert radiomics.radiomics(np.where(mask, patch, 0.9), mask) == pytest.approx(alone)
    assert radiomics.radiomics(np.where(mask, patch, np.nan), mask) == pytest.approx(alone)


@pytest.mark.parametrize("patch", [np.full((6, 6), 0.5), np.zeros((4, 5)), np.ones((1, 1)), np.eye(2), np.ones((1, 3))])
def test_degenerate_regions_are_finite(patch):
    features = radiomics.radiomics(patch)
    assert len(features) == 74 and np.isfinite(list(features.values())).all()


def test_levels():
    patch = np.array([0.0, 0.249, 0.25, 0.999, 1.0, 1.2, -0.1])
    np.testing.assert_array_equal(radiomics.discretise(patch, 4), [1, 1, 2, 4, 4, 4, 1])


def test_refusals():
    with refused(where="mask"):
        radiomics.radiomics(np.zeros((4, 4)), np.zeros((4, 4), bool))
    with refused("NaN", where="patch"):
        radiomics.radiomics(np.full((4, 4), np.nan))


def test_names_are_those_of_any_patch():
    rng = np.random.default_rng(0)
    first, second = radiomics.radiomics(rng.random((6, 7))), radiomics.radiomics(rng.random((9, 9)))
    assert list(first) == list(second) and len(first) == 74


def test_standardise_uses_the_reference_alone():
    reference = np.array([[0.0, 5, 1, 1], [2, 5, np.nan, 2]])
    a, b = radiomics.standardise(reference, np.array([[4.0, 9, 1, 1.5]]))
    np.testing.assert_allclose(a, [[-1, -1], [1, 1]])
    np.testing.assert_allclose(b, [[3, 0]])
    np.testing.assert_allclose(radiomics.standardise(reference, b[:, [0, 0, 0, 1]] * 9, limit=2)[1], [[2, -2]])


def test_frechet_radiomics_sees_texture():
    rng = np.random.default_rng(0)

    def table(number, blur):
        noise = rng.random((number, 18, 16))
        patches = [0.5 * patch[:16] + 0.5 * patch[2:] if blur else patch[:16] for patch in noise]
        return np.array([list(radiomics.radiomics(patch).values()) for patch in patches])

    tables = [table(15, blur) for blur in (False, False, True)]
    near, far = (radiomics.frechet_radiomics(tables[0], other) for other in tables[1:])
    assert far["distance"] > 5 * near["distance"]
    assert near["log_distance"] == pytest.approx(np.log(near["distance"]))
    assert (near["real"], near["synthetic"]) == (15, 15) and 60 <= near["features"] <= 74
    outlier = tables[1].copy()
    outlier[0, 60] += 1e3 * tables[0][:, 60].std()
    spoiled = radiomics.frechet_radiomics(tables[0], outlier)
    assert spoiled["distance"] > 100 * near["distance"]
    assert spoiled["robust_distance"] == pytest.approx(near["robust_distance"], rel=0.1)
    same = radiomics.frechet_radiomics(tables[0], tables[0])
    assert same["distance"] < 1e-8 and (same["log_distance"] is None or same["log_distance"] < -18)
