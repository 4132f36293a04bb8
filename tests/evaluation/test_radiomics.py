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
    features = {name: value.mean() for name, value in radiomics.texture(PHANTOM, 6).items()}
    inside = PHANTOM[PHANTOM > 0][None]
    features |= {f"intensity_{k}": value[0] for k, value in texture_features.intensity_features(inside).items()}
    return features | {f"histogram_{k}": value[0] for k, value in texture_features.histogram_features(inside).items()}


@pytest.mark.parametrize("name", BENCHMARK["values"])
def test_published_value(name, found):
    published = BENCHMARK["values"][name]
    # Three digits are published (and rounded): half a unit of the third.
    tolerance = 0.5 * 10 ** (np.floor(np.log10(abs(published))) - 2)
    assert abs(found[name] - published) <= 1.001 * tolerance


def test_every_feature_has_a_published_value(found):
    assert set(found) == set(BENCHMARK["values"]) and len(found) == 82


def listed(counts, group):
    """(first, second): number of a group."""
    own = counts.group == group
    pairs = zip(counts.first[own].tolist(), counts.second[own].tolist())
    return dict(zip(pairs, counts.number[own].tolist()))


def test_neighbours_by_hand():
    found = texture_matrices.neighbours(np.array([[[1, 2, 2], [0, 1, 3]]], np.int32))
    right, down, diagonal, other = (listed(found, group) for group in range(4))
    assert right == {(1, 2): 1, (2, 2): 1, (1, 3): 1}
    assert down == {(1, 2): 1, (2, 3): 1}
    assert diagonal == {(1, 1): 1, (2, 3): 1}
    assert other == {(1, 2): 1}


def test_runs_by_hand():
    found = texture_matrices.runs(np.array([[[1, 1, 2], [1, 0, 2], [1, 1, 1]]], np.int32))
    across, down, diagonal, other = (listed(found, group) for group in range(4))
    assert across == {(1, 1): 1, (1, 2): 1, (1, 3): 1, (2, 1): 2}
    assert down == {(1, 1): 3, (1, 3): 1, (2, 2): 1}
    assert diagonal == other == {(1, 1): 4, (1, 2): 1, (2, 1): 2}


def test_zones_and_dependences_by_hand():
    levels = np.array([[[1, 1, 2], [0, 2, 1], [2, 3, 3]], [[3, 3, 3]] * 3], np.int32)
    zones, dependences = texture_matrices.zones(levels), texture_matrices.dependences(levels)
    assert listed(zones, 0) == {(1, 3): 1, (2, 3): 1, (3, 2): 1}
    assert listed(zones, 1) == {(3, 9): 1}
    assert listed(dependences, 0) == {(1, 2): 2, (1, 3): 1, (2, 2): 2, (2, 3): 1, (3, 2): 2}
    assert listed(dependences, 1) == {(3, 4): 4, (3, 6): 4, (3, 9): 1}


def test_tone_differences_by_hand():
    pixels, differences = texture_matrices.tone_differences(np.array([[[1, 3], [0, 2]], [[0, 0], [0, 4]]], np.int32))
    np.testing.assert_array_equal(pixels, [[0, 1, 1, 1, 0], [0] * 5])
    np.testing.assert_array_equal(differences, [[0, 1.5, 0, 1.5, 0], [0] * 5])


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 9), (9, 4)])
def test_matrices_account_for_every_pixel(shape):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 4, (3, *shape)).astype(np.int32)
    pixels = np.stack([np.bincount(image.ravel(), minlength=4) for image in levels])
    pixels[:, 0] = 0
    runs, zones, dependences = (
        of(levels) for of in (texture_matrices.runs, texture_matrices.zones, texture_matrices.dependences)
    )
    for counts, expected in ((runs, np.tile(pixels, (4, 1))), (zones, pixels)):
        covered = np.zeros((counts.groups, 4))
        np.add.at(covered, (counts.group, counts.first), counts.number * counts.second)
        np.testing.assert_array_equal(covered, expected)
    np.testing.assert_array_equal(dependences.totals(), pixels.sum(1))


def test_many_images_are_as_each_alone():
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 5, (4, 7, 9)).astype(np.int32)
    levels[1] = np.where(levels[1] > 2, 900, 0)  # many more levels than the others
    levels[2], levels[3] = 0, 3
    levels[2, 4, 4] = 2
    together = radiomics.texture(levels, 1000)
    for k, one in enumerate(levels):
        for name, value in radiomics.texture(one[None], 1000).items():
            assert together[name][k] == pytest.approx(value[0]), name


def test_the_maximal_correlation_is_a_singular_value():
    """By its definition (Haralick 1973): the root of the second eigenvalue of the matrix Q."""
    levels = np.random.default_rng(4).integers(1, 4, (1, 6, 6)).astype(np.int32)
    pairs = texture_matrices.neighbours(levels)
    for group, found in enumerate(texture_features.maximal_correlation(pairs)):
        p = np.zeros((3, 3))
        for (i, j), number in listed(pairs, group).items():
            p[i - 1, j - 1] += number
            p[j - 1, i - 1] += number
        p /= p.sum()
        margin = p.sum(1)
        q = sum(np.outer(p[:, k], p[:, k]) / (margin[:, None] * margin[k]) for k in range(3))
        assert found == pytest.approx(np.sqrt(np.sort(np.linalg.eigvals(q).real)[-2]))
    assert (texture_features.maximal_correlation(texture_matrices.neighbours(np.full((1, 3, 3), 2))) == 1).all()


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
