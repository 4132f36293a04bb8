from pathlib import Path

import numpy as np
import pytest

from elk_jax.evaluation import radiomics_table
from elk_jax.evaluation.radiomics_table import V0, V1, V1_LOG, table
from tests.golden import textures
from tests.refusals import refused

with np.load(Path(__file__).parent.parent / "golden" / "radiomics.npz") as stored:
    GOLDEN = {name: stored[name] for name in stored.files}
NOTHING = 1e-9
"""What is below is rounding of a mean that is 0."""


@pytest.fixture(scope="module")
def found():
    """The features of all golden cases, measured together: sizes and regions are mixed."""
    images = [textures.image(name, height, width) for name, height, width, _ in textures.CASES]
    masks = [
        None if region == "all" else textures.region(region, height, width)
        for _, height, width, region in textures.CASES
    ]
    return {"v0": table(images, V0, masks), "v1": table(images, V1_LOG, masks)}


@pytest.mark.parametrize("number", range(len(textures.CASES)))
@pytest.mark.parametrize("version", ["v0", "v1"])
def test_every_feature_is_pyradiomics(found, version, number):
    names, values = found[version].names, found[version].values[number]
    expected = dict(zip(GOLDEN[f"{version}_{number}_names"].tolist(), GOLDEN[f"{version}_{number}"]))
    assert set(names) == set(expected)
    np.testing.assert_allclose(values, [expected[name] for name in names], rtol=1e-4, atol=NOTHING)


def test_the_sets_of_features(found):
    assert len(found["v0"].names) == 102 and len(found["v1"].names) == 706
    image = textures.image("rough", 20, 20)
    assert len(table([image], V1).names) == 398
    assert set(table([image], V1).names) < set(found["v1"].names)
    for kind in (V0, V1, V1_LOG):
        assert radiomics_table.FEATURE_SETS[kind.name] is kind


def test_many_images_are_measured_as_each_alone():
    images = [textures.image("steps", 12, 14, number) for number in range(3)] + [textures.image("rough", 10, 9)]
    together = table(images, V1)
    for image, values in zip(images, together.values):
        alone = table([image], V1)
        assert alone.names == together.names
        np.testing.assert_allclose(alone.values[0], values, rtol=1e-9, atol=NOTHING)


def test_parts_that_fit_the_cache_change_nothing(monkeypatch):
    images = [textures.image("rough", 12, 12, number) for number in range(5)]
    whole = table(images, V0).values
    monkeypatch.setattr(radiomics_table, "MOST_PIXELS", 300)
    np.testing.assert_allclose(table(images, V0).values, whole, rtol=1e-12)


def test_a_constant_image_has_no_prepared_features():
    images = [textures.image("rough", 16, 16), np.full((16, 16), 80), textures.image("rough", 16, 16, 1)]
    prepared = table(images, V1)
    assert np.isfinite(prepared.values[[0, 2]]).all()
    of_filters = [k for k, name in enumerate(prepared.names) if not name.startswith("diagnostics")]
    assert np.isnan(prepared.values[1, of_filters]).all()
    np.testing.assert_allclose(prepared.values[0], table(images[:1], V1).values[0], rtol=1e-9, atol=NOTHING)
    plain = dict(zip(table(images, V0).names, table(images, V0).values[1]))
    assert np.isfinite(list(plain.values())).all()
    assert plain["firstorder_Mean"] == 80 and plain["glcm_MCC"] == 1 and plain["firstorder_Kurtosis"] == 0
    assert np.isnan(table(images[1:2], V1).values[0, of_filters]).all()


def test_levels_begin_at_a_multiple_of_the_width():
    values = np.array([[[7.0, 9.9, 10.0, 24.0]], [[-3.0, -0.1, 0.0, 99.0]]])
    inside = np.array([[[True] * 4], [[True, True, True, False]]])
    np.testing.assert_array_equal(radiomics_table.binned(values, inside, 5.0), [[[1, 1, 2, 4]], [[1, 1, 2, 0]]])


def test_shape_by_hand():
    square = np.zeros((5, 6), bool)
    square[1:4, 2:5] = True
    found = radiomics_table.shape_features(square)
    assert found["PixelSurface"] == 9
    assert found["MeshSurface"] == pytest.approx(4 + 4 * 2 * 0.5 + 4 / 8)  # whole, halved and corner squares
    assert found["Perimeter"] == pytest.approx(8 + 4 * 0.5**0.5)
    assert found["MaximumDiameter"] == pytest.approx(np.hypot(3, 2))
    assert found["Elongation"] == pytest.approx(1)
    assert found["MajorAxisLength"] == pytest.approx(4 * (2 / 3) ** 0.5)
    crossed = radiomics_table.shape_features(np.eye(2, dtype=bool))
    assert crossed["MeshSurface"] == pytest.approx(1) and crossed["Perimeter"] == pytest.approx(8 * 0.5**0.5)
    assert crossed["MinorAxisLength"] == pytest.approx(0, abs=1e-7)


def test_refusals():
    image = textures.image("rough", 12, 12)
    with refused("no image", where="images"):
        table([])
    with refused("1 masks for 2", where="masks"):
        table([image, image], V0, [None])
    with refused("(12, 12, 1)", where="image 2"):
        table([image, image[..., None]], V0)
    with refused("11 x 12", "12 x 12", where="image 1"):
        table([image], V0, [np.ones((12, 11))])
    with refused("NaN", where="image 1"):
        table([np.where(image > 100, np.nan, image)], V0)
    one = np.zeros((12, 12), bool)
    one[3, 3] = True
    with refused(1, "at least two", where="image 1"):
        table([image], V0, [one])
    thin = np.zeros((12, 12), bool)
    thin[3, 2:9] = True
    with refused("narrow", where="image 1"):
        table([image], V1, [thin])
    with refused("narrow", "v1", where="b.png"):
        table([image, image[:3]], V1, titles=["a.png", "b.png"])
    assert np.isfinite(table([image], V0, [thin]).values).all()
