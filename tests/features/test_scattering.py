"""Wavelet scattering against kymatio, and the symmetries of the square."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from elk_jax.features import scattering
from tests.refusals import refused

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "scattering.npz")
CASES = sorted(name.removesuffix("_image") for name in GOLDEN if name.endswith("_image"))
PI_OF_KYMATIO = 3.1415
"""With which kymatio divides every filter."""
MIRRORED = {"rows": lambda x: x[..., ::-1, :], "columns": lambda x: x[..., ::-1]}


def in_kymatios_order(found, scales):
    """[1, P, R, C]: zeroth, first, and the second under its first wavelet."""
    first = found.first.reshape(1, -1, *found.first.shape[-2:])
    pairs = scattering.pairs_of_scales(scales)
    second = [
        found.second[:, pairs.index((j1, j2)), l1]
        for j1 in range(scales)
        for l1 in range(found.first.shape[2])
        for j2 in range(j1 + 1, scales)
    ]
    return np.concatenate([found.zeroth[:, None], first, *second], axis=1)


@pytest.mark.parametrize("case", CASES)
def test_equals_kymatio(case):
    height, width, scales, orientations = map(int, case.split("_"))
    expected = GOLDEN[f"{case}_coefficients"].astype(np.float64)
    orders = np.ones(expected.shape[1])
    orders[1 : 1 + scales * orientations] = 2
    orders[1 + scales * orientations :] = 3
    places = [
        np.arange(1, count + 1) * 2**scales - (scattering.padded_size(size, scales) - size) // 2
        for count, size in zip(expected.shape[-2:], (height, width))
    ]
    bank = scattering.filters(height, width, scales, orientations)
    found = jax.jit(scattering.coefficients, static_argnums=(4, 5))(GOLDEN[f"{case}_image"], bank, *places, scales, 0.0)
    found = in_kymatios_order(found, scales)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found, expected * (PI_OF_KYMATIO / np.pi) ** orders[:, None, None], rtol=1e-5)


SIZE, SCALES, ORIENTATIONS = 64, 4, 8
BANK = scattering.filters(SIZE, SIZE, SCALES, ORIENTATIONS)
CENTRE = np.array([40.5, 27.0])


@jax.jit
def at(image, centre):
    """Of one image [H, W], under 3 x 3 windows about a centre (row, column)."""
    apart = 9.0 * np.arange(-1, 2)
    return scattering.coefficients(image[None], BANK, centre[0] + apart, centre[1] + apart, SCALES)


def eight(image, centre):
    """Every mirror and quarter turn of an image, with its centre, in the order of `symmetric_views`."""
    for first in ((image, centre), (image.T, centre[::-1])):
        for rows in (False, True):
            for columns in (False, True):
                turned, (row, column) = first
                turned = MIRRORED["rows"](turned) if rows else turned
                turned = MIRRORED["columns"](turned) if columns else turned
                last = SIZE - 1
                yield turned, np.array([last - row if rows else row, last - column if columns else column])


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(3).uniform(size=(SIZE, SIZE))
    return noise.cumsum(0).cumsum(1).astype(np.float32) % 1


def test_symmetries_of_the_image_permute_its_coefficients(image):
    views = scattering.symmetric_views(at(image, CENTRE))
    for view, (turned, centre) in zip(views, eight(image, CENTRE), strict=True):
        for of_view, of_image in zip(view, at(turned, centre)):
            assert np.linalg.norm(of_view - of_image) < 1e-3 * np.linalg.norm(of_image)


def test_invariants_are_those_of_every_mirror_and_turn(image):
    expected = scattering.invariants(at(image, CENTRE))
    for turned, centre in eight(image, CENTRE):
        np.testing.assert_allclose(scattering.invariants(at(turned, centre)), expected, rtol=1e-3)
    elsewhere = scattering.invariants(at(image, CENTRE + 5))
    assert np.linalg.norm(elsewhere - expected) > 1e-2 * np.linalg.norm(expected)


def test_invariants_are_the_means_over_the_views_each_once(image):
    found = at(image, CENTRE)
    means = np.mean([scattering.flat(view) for view in scattering.symmetric_views(found)], axis=0)[0]
    invariants = np.asarray(scattering.invariants(found))[0]
    numbered = scattering.Coefficients(
        *(np.arange(part.size).reshape(part.shape) + 10**6 * order for order, part in enumerate(found))
    )
    numbers = scattering.flat(numbered)
    unmoved = [(scattering.flat(view) == numbers).sum() for view in scattering.symmetric_views(numbered)]
    assert invariants.size == np.mean(unmoved)  # Burnside's lemma: as many as there are orbits
    assert np.abs(means[:, None] - invariants).min(axis=1).max() < 1e-6  # every mean is there


def test_a_flat_image_has_no_waves_and_a_window_may_stand_anywhere(image):
    even = at(np.full((SIZE, SIZE), 0.5, np.float32), CENTRE)
    np.testing.assert_allclose(even.zeroth, 0.5, rtol=1e-5)
    assert np.abs(even.first).max() < 1e-6 > np.abs(even.second).max()
    moved = at(np.roll(image, (3, 5), (0, 1)), CENTRE + [3, 5])
    inside = (slice(None), slice(0, 2), slice(None), 1, 1)  # fine waves in the middle: no border in reach
    np.testing.assert_allclose(moved.first[inside], at(image, CENTRE).first[inside], rtol=0.02)


@pytest.mark.parametrize("shape", [(63, 64), (64, 33), (8, 64), (0, 64)])
def test_sizes_that_cannot_be_scattered_are_refused(shape):
    with refused(*shape, SCALES, where="here"):
        scattering.check_size(shape, SCALES, where="here")
