"""A scan of known objects: points and slabs, with what the geometry says of them."""

import numpy as np
import pytest

from elk_jax.synthesis.tomosynthesis import Geometry, Stack, noise_shape, project, projection, reconstruct, with_noise

ROWS, COLUMNS, REACH = 160, 24, 40.0


def point_at(height: float, row: int = 80, column: int = 10) -> Stack:
    image = np.zeros((1, ROWS, 1), np.float32)
    image[0, row] = 1
    return Stack(image, np.array([height]), column)


@pytest.mark.parametrize("height", [-30.0, 0.0, 17.5])
def test_a_point_moves_by_its_height_and_the_angle(height):
    geometry = Geometry(pixel=0.5, projections=15, half_angle=7.5)
    scan = project([point_at(height)], geometry, (ROWS, COLUMNS), REACH)
    for number, angle in ((0, -7.5), (7, 0.0), (14, 7.5)):
        image = projection(scan, number)
        assert np.abs(np.delete(image, 10, axis=1)).max() < 1e-6
        centre = (image[:, 10] * np.arange(ROWS)).sum() / image[:, 10].sum()
        np.testing.assert_allclose(centre, 80 + height * np.tan(np.radians(angle)) / 0.5, atol=0.05)


def test_a_point_is_sharp_in_its_slice_and_spreads_with_the_distance():
    scan = project([point_at(10.0)], Geometry(pixel=0.5), (ROWS, COLUMNS), REACH)
    distances = np.array([0.0, 4.0, 8.0, 16.0, 28.0])
    slices = reconstruct(scan, 10.0 - distances)[:, :, 10]
    peaks = slices.max(1)
    assert (np.diff(peaks) < 0).all() and slices[0].argmax() == 80
    for distance, line in zip(distances[2:], slices[2:]):  # the ghosts end where the last projection puts them
        end = distance * np.tan(np.radians(7.5)) / 0.5
        bright = np.flatnonzero(line > 0.3 * line.max())
        np.testing.assert_allclose([80 - bright[0], bright[-1] - 80], end, atol=1.5)


def test_few_projections_leave_as_many_ghosts():
    scan = project([point_at(35.0)], Geometry(pixel=0.5, projections=3), (ROWS, COLUMNS), REACH)
    line = reconstruct(scan, np.array([-35.0]))[0, :, 10]
    peaks = 1 + np.flatnonzero((line[1:-1] > line[:-2]) & (line[1:-1] > line[2:]) & (line[1:-1] > 0.5 * line.max()))
    step = 70 * np.tan(np.radians(7.5)) / 0.5
    np.testing.assert_allclose(peaks, [80 - step, 80, 80 + step], atol=1)


def test_slices_are_linear_and_do_not_depend_on_each_other():
    geometry, heights = Geometry(pixel=1.0, projections=4), np.array([-12.0, 3.0, 20.0])
    rng = np.random.default_rng(0)
    one = Stack(rng.random((2, ROWS, COLUMNS), np.float32), np.array([-5.0, 5.0]))
    both = reconstruct(project([one, point_at(3.0)], geometry, (ROWS, COLUMNS), REACH), heights)
    apart = [reconstruct(project([stack], geometry, (ROWS, COLUMNS), REACH), heights) for stack in (one, point_at(3.0))]
    np.testing.assert_allclose(both, apart[0] + apart[1], atol=1e-5)
    scan = project([one], geometry, (ROWS, COLUMNS), REACH)
    np.testing.assert_allclose(reconstruct(scan, heights[1:2])[0], apart[0][1], atol=1e-6)


def test_an_even_slab_stays_even_and_keeps_its_share():
    slab = Stack(np.ones((1, ROWS, COLUMNS), np.float32), np.array([9.0]))
    scan = project([slab], Geometry(0.8), (ROWS, COLUMNS), REACH)
    image = reconstruct(scan, np.array([-15.0]))
    np.testing.assert_allclose(image, image[0, 0, 0], rtol=1e-5)
    assert 0.2 < image[0, 0, 0] < 0.5


def test_noise_of_the_projections_averages_out():
    scan = project([point_at(0.0)], Geometry(1.0), (ROWS, COLUMNS), REACH)
    noise = np.random.default_rng(1).standard_normal(noise_shape(scan), np.float32)
    noisy = with_noise(scan, noise)
    np.testing.assert_allclose(projection(noisy, 3) - projection(scan, 3), noise[3, :ROWS], atol=1e-5)
    left = (reconstruct(noisy, np.array([5.0])) - reconstruct(scan, np.array([5.0]))).std()
    assert left < 1 / 15**0.5
