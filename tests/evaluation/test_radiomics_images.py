import numpy as np
import pytest

from elk_jax.evaluation import radiomics_images


def whole(images):
    return np.ones(images.shape, bool)


def test_normalised_by_hand():
    found = radiomics_images.normalised(np.array([[[1, 3], [1, 3]], [[5, 5], [5, 5]]], np.uint8))
    np.testing.assert_allclose(found[0], np.array([[-1, 1], [-1, 1]]) / (4 / 3) ** 0.5 * 100)
    assert np.isnan(found[1]).all()


def test_a_plane_is_halved_to_the_places_between_pixels():
    """Splines reproduce a cubic, but for the mirror at the borders, which fades by 0.27 a pixel."""
    rows, columns = np.mgrid[:80, :60].astype(float)
    small, inside = radiomics_images.halved((3 * rows - 2 * columns)[None], whole(rows[None]))
    assert small.shape == (1, 40, 30) and inside.all()
    expected = 3 * (2 * np.arange(40)[:, None] + 0.5) - 2 * (2 * np.arange(30) + 0.5)
    np.testing.assert_allclose(small[0, 12:-12, 12:-12], expected[12:-12, 12:-12], atol=1e-9)


def test_an_odd_size_ends_beyond_the_image():
    small, inside = radiomics_images.halved(np.full((1, 9, 8), 7.0), np.ones((1, 9, 8), bool))
    np.testing.assert_allclose(small[0, :4], 7)
    np.testing.assert_array_equal(small[0, 4], 0)
    assert inside[0, :4].all() and not inside[0, 4].any()


def test_what_is_far_from_the_mask_is_left_out():
    mask = np.zeros((1, 100, 90), bool)
    mask[0, 50:60, 0:4] = True
    small, inside = radiomics_images.halved(np.zeros((1, 100, 90)), mask)
    assert small.shape == (1, 27, 13)  # rows 14 to 40, columns 0 to 12 of the halved image
    assert inside.sum() == 5 * 2 and inside[0, 11:16, 0:2].all()


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (12, 9)])
def test_wavelets_of_a_constant_image(size):
    found = radiomics_images.wavelets(np.full((2, *size), 3.0))
    assert tuple(found) == radiomics_images.WAVELETS
    np.testing.assert_allclose(found["wavelet-LL"], 6)
    for name in ("wavelet-LH", "wavelet-HL", "wavelet-HH"):
        np.testing.assert_allclose(found[name], 0, atol=1e-12)


def test_wavelets_keep_the_power_and_know_rows_from_columns():
    image = np.random.default_rng(0).normal(size=(1, 10, 14))
    found = radiomics_images.wavelets(image)
    assert sum((part**2).sum() for part in found.values()) == pytest.approx(4 * (image**2).sum())
    stripes = np.tile([1.0, -1.0], (1, 8, 5))  # change along a row: high there
    power = {name: (part**2).sum() for name, part in radiomics_images.wavelets(stripes).items()}
    assert power["wavelet-HL"] == pytest.approx(sum(power.values()))


def test_the_laplacian_of_a_parabola():
    """Twice its curvature times the squared deviation, wherever the borders are far."""
    rows, columns = np.mgrid[:90, :80].astype(float)
    image = 0.5 * (rows - 45) ** 2 + 0.25 * (columns - 40) ** 2
    found = radiomics_images.laplacians(image[None], (2.0, 4.0), spacing=2.0)
    assert list(found) == ["log-sigma-2-0-mm-3D", "log-sigma-4-0-mm-3D"]
    for deviation, part in zip((1.0, 2.0), found.values()):
        assert part.dtype == np.float32
        np.testing.assert_allclose(part[0, 30:60, 30:50], (1 + 0.5) * deviation**2, rtol=2e-2)
    flat = radiomics_images.laplacians(np.full((1, 9, 9), 5.0), (3.0,), spacing=2.0)
    np.testing.assert_allclose(flat["log-sigma-3-0-mm-3D"], 0, atol=1e-9)
