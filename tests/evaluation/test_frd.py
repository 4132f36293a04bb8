from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elk_jax.evaluation import frd, radiomics_table
from elk_jax.evaluation.radiomics_table import Table
from tests.golden import textures
from tests.refusals import refused

with np.load(Path(__file__).parent.parent / "golden" / "radiomics.npz") as stored:
    GOLDEN = {name: stored[name] for name in stored.files}
RECIPES = {
    "v0": frd.V0,
    "v0_first": replace(frd.V0, reference="first"),
    "v0_zscore": replace(frd.V0, scaling="deviation"),
    "v1": frd.V1,
    "v1_paper": replace(frd.V1, logarithm="distance"),
    "v1_joint": replace(frd.V1, reference="joint"),
    "v1_own": replace(frd.V1, reference="own"),
    "v1_minmax": replace(frd.V1, scaling="range"),
    "v1_means": replace(frd.V1, means_only=True),
}
EXAMPLES = [tuple(name.split("_", 1)) for name in GOLDEN if name.split("_")[0] in textures.SETS]


@pytest.fixture(scope="module")
def tables():
    """(set, version) -> both tables."""
    made = {}

    def of(name, version):
        if (name, version) not in made:
            kind = radiomics_table.FEATURE_SETS[version]
            made[name, version] = [radiomics_table.table(images, kind) for images in textures.sets(name)]
        return made[name, version]

    return of


def test_every_setting_has_a_golden_value():
    assert {variant for name, variant in EXAMPLES if name == "few"} == set(RECIPES)


@pytest.mark.parametrize("name, variant", EXAMPLES)
def test_the_distance_is_frd_scores(tables, name, variant):
    found = frd.distance(*tables(name, variant[:2]), RECIPES[variant])
    assert found.value == pytest.approx(float(GOLDEN[f"{name}_{variant}"]), rel=1e-3 if name == "even" else 1e-6)
    assert (found.first, found.second) == textures.SETS[name][:2]


def test_what_a_reader_should_know_is_said(tables):
    few = frd.distance(*tables("few", "v1")).notes
    assert any("26 images with 392 features" in note for note in few) and any("6 of 398" in note for note in few)
    many = frd.distance(*tables("many", "v1")).notes
    assert not any("singular" in note for note in many)
    even = frd.distance(*tables("even", "v1")).notes
    assert any("rounding" in note and "wavelet-HH_firstorder_Mean" in note for note in even)


def made(*columns):
    values = np.array(columns, float).T
    return Table(tuple(f"f{k}" for k in range(values.shape[1])), values)


def test_equal_sets_have_no_logarithm():
    one = made([1, 2, 4, 9], [3, 5, 4, 4])
    found = frd.distance(one, one)
    assert found.squared == 0 and found.value is None
    assert any("-inf" in note for note in found.notes)
    assert frd.distance(one, one, frd.V0).value == pytest.approx(0, abs=1e-9)


def test_a_shift_by_hand():
    first, second = made([0, 2, 0, 2], [0, 0, 4, 4]), made([3, 5, 3, 5], [0, 0, 4, 4])
    found = frd.distance(first, second)  # deviations 1 and 2: the means differ by three deviations, nothing else
    assert found.squared == pytest.approx(9, rel=1e-6) and found.value == pytest.approx(np.log(9), rel=1e-6)
    paper = frd.distance(first, second, replace(frd.V1, logarithm="distance"))
    assert paper.value == pytest.approx(np.log(3), rel=1e-6)
    ranged = frd.distance(first, second, frd.V0)  # the joint range is 5
    assert ranged.value == pytest.approx((3 / 5 * frd.V0_WIDTH) ** 2)
    own = frd.distance(first, second, replace(frd.V0, reference="own"))
    assert own.value == pytest.approx(0, abs=1e-9)


def test_features_that_differ_by_rounding_alone_are_constant():
    """The mean of equal values need not be that value, in 32 bits; a sum need not be that of another order."""
    share = 0.6
    first, second = made([1, 2, 4, 9, 3, 5, 2], [share] * 7), made([3, 5, 4, 4, 2, 6, 1], [share] * 6 + [share * 1.5])
    assert np.nanstd(first.values.astype(np.float32), 0)[1] > 0
    found = frd.distance(first, second)
    assert found.features == 1
    only = [Table(one.names[:1], one.values[:, :1]) for one in (first, second)]
    assert found.squared == pytest.approx(frd.distance(*only).squared)
    sums = made([1, 2], [0.3, 0.1 + 0.2])
    (a, _), _, _ = frd.scaled(sums, sums, frd.V0)
    np.testing.assert_allclose(a[:, 1], frd.V0_WIDTH / 2)
    small = made([1, 2], [1e-16, -1e-16])  # rounding of 0 is scaled, as it is in published values
    assert frd.scaled(small, small, frd.V1)[1].all()


def test_rounding_is_said_of_the_values_that_scale():
    zero, small, large = (made([1, 2, 4, 9], column) for column in ([0] * 4, [1e-16, -1e-16] * 2, [0, 1, 2, 1]))
    said = lambda *given: any("rounding" in note for note in frd.distance(*given).notes)
    assert said(small, large) and said(small, small, frd.V0)
    assert not said(zero, large, frd.V0) and not said(small, large, frd.V0) and not said(large, small)
    undefined = small._replace(values=np.concatenate([small.values, [[np.nan, np.nan]]]))
    assert said(undefined, large)


def test_undefined_images_and_constant_features_are_left_out_of_v1():
    first, second = (
        made([0, 2, 0, 2], [0, 0, 4, 4], [7] * 4),
        made([3, 5, np.nan, 5, 3], [0, 0, 4, 4, 4], [7, 8, 9, 7, 7]),
    )
    found = frd.distance(first, second)
    assert (found.first, found.second, found.features) == (4, 4, 2)
    assert any("1 of 5 images of the second set" in note for note in found.notes)
    assert any("1 of 3 features" in note for note in found.notes)
    (a, b), kept, _ = frd.scaled(first, second, frd.V0)  # v0 puts them in the middle of the range
    assert kept.all() and b[2, 0] == pytest.approx(frd.V0_WIDTH / 2)
    (a, _), _, _ = frd.scaled(first, first, frd.V0)
    np.testing.assert_allclose(a[:, 2], frd.V0_WIDTH / 2)


def test_refusals():
    one = made([1, 2, 3], [4, 4, 5])
    with refused("different features", where="features"):
        frd.distance(one, one._replace(names=("a", "b")))
    with refused(1, "second", where="images"):
        frd.distance(one, one._replace(values=one.values[:1]))
    undefined = one._replace(values=np.array([[np.nan, 1], [2, np.nan], [3, 4]]))
    with refused(1, "first", where="images"):
        frd.distance(undefined, one)
    with refused("varies", where="features"):
        frd.distance(made([1, 1, 1]), made([2, 3, 4]))
