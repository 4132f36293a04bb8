"""The tomosynthesis phantom: one breast in three modalities, lesions in focus in their slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from elk_jax.synthesis import phantom
from elk_jax.synthesis.phantom_volume import PhantomVolume, VolumeConfig, image_width, sample
from elk_jax.synthesis.tomosynthesis import reconstruct
from tests.refusals import refused

CONFIG = VolumeConfig(size=96, slices=12, healthy_fraction=0.0)
SEED, COUNT = 5, 10


@pytest.fixture(scope="module")
def volumes() -> list[PhantomVolume]:
    return [sample(SEED, index, CONFIG) for index in range(COUNT)]


def contrast(image: np.ndarray, box: np.ndarray) -> float:
    """Mean in the middle of a box, less that around it."""
    rows, columns = np.indices(image.shape)
    x0, y0, x1, y1 = box
    radius = ((2 * columns + 1 - x0 - x1) / (x1 - x0)) ** 2 + ((2 * rows + 1 - y0 - y1) / (y1 - y0)) ** 2
    return float(image[radius < 0.5].mean() - image[(radius > 1.7) & (radius < 5)].mean())


def test_the_same_arguments_give_the_same_volume_and_others_another(volumes):
    again, other = sample(SEED, 2, CONFIG), sample(SEED + 1, 2, CONFIG)
    assert np.array_equal(again.slices(), volumes[2].slices()) and np.array_equal(again.boxes, volumes[2].boxes)
    assert np.array_equal(again.mammogram, volumes[2].mammogram)
    assert np.array_equal(again.synthetic, volumes[2].synthetic)
    assert np.abs(other.slices([6]) - volumes[2].slices([6])).mean() > 0.01
    assert other.patient_id != volumes[2].patient_id


def test_images_are_grey_values_of_one_size_with_the_chest_wall_at_the_border(volumes):
    for volume in volumes:
        slices = volume.slices()
        assert slices.shape == (12, 96, image_width(96)) and image_width(96) % 8 == 0
        for image in (*slices, volume.mammogram, volume.synthetic):
            assert image.shape == (96, volume.width) and image.dtype == np.float32
            assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
            wall, air = (0, -1) if volume.laterality == "L" else (-1, 0)
            assert image[:, wall].sum() > 1 and image[:, air].sum() == 0


def test_it_is_the_patient_of_the_other_phantoms(volumes):
    for index in (0, 1, 2, 3):
        other = phantom.sample(SEED, index, phantom.PhantomConfig(size=96, healthy_fraction=0.0))
        volume = volumes[index]
        for name in ("patient_id", "laterality", "view", "density"):
            assert getattr(volume, name) == getattr(other, name)


def test_a_slice_does_not_depend_on_which_others_are_drawn(volumes):
    assert np.array_equal(volumes[0].slices([7, 3]), volumes[0].slices()[[7, 3]])


@pytest.mark.parametrize("half_angle", [7.5, 25.0])
def test_a_lesion_is_in_focus_in_its_slice_and_fades_with_the_distance(half_angle):
    """What the lesions alone add: the difference to the same breast with lesions of no contrast."""
    config = replace(CONFIG, half_angle=half_angle, max_lesions=1)
    lesions, fades = 0, []
    for index in range(6):
        volume, without = (sample(SEED, index, replace(config, contrast=factor)) for factor in (1.0, 1e-6))
        heights = volume.slice_heights
        added = reconstruct(volume.scan, heights) - reconstruct(without.scan, heights)
        energy = (added.astype(np.float64) ** 2).sum((1, 2))  # blur spreads what a lesion adds, and lowers this
        for central in volume.central:
            lesions += 1
            assert abs(int(energy.argmax()) - central) <= 1
            assert (np.diff(energy[central + 1 :]) < 0).all() and (np.diff(energy[:central]) > 0).all()
            fades.append(energy.min() / energy.max())
    assert lesions >= 4
    assert np.median(fades) < (0.7 if half_angle > 20 else 0.95)


def test_lesions_lie_in_the_breast_and_are_nearest_to_their_own_slice(volumes):
    lesions = 0
    for volume in volumes:
        thick = volume.spacing[1] * len(volume.slice_heights)
        assert 30 <= thick <= 85 and len(volume.boxes) == len(volume.heights) == len(volume.lesion_kinds)
        assert (np.abs(volume.heights) + volume.half_depths <= thick / 2 + 1e-6).all()
        for k, central in enumerate(volume.central):
            lesions += 1
            assert abs(volume.slice_heights[central] - volume.heights[k]) <= volume.spacing[1] / 2 + 1e-9
            left, top, right, bottom = volume.boxes[k]
            assert 0 <= left < right <= volume.width and 0 <= top < bottom <= 96
    assert lesions >= 8


def test_lesions_are_brighter_than_their_surroundings_in_all_modalities(volumes):
    for images in (
        [volume.slices(volume.central) for volume in volumes if len(volume.boxes)],
        [np.stack([volume.mammogram] * len(volume.boxes)) for volume in volumes if len(volume.boxes)],
        [np.stack([volume.synthetic] * len(volume.boxes)) for volume in volumes if len(volume.boxes)],
    ):
        sick = [volume for volume in volumes if len(volume.boxes)]
        found = [contrast(image, box) for of, volume in zip(images, sick) for image, box in zip(of, volume.boxes)]
        assert np.median(found) > 0.03


def test_the_breast_is_one_at_every_number_of_slices_and_resolution(volumes):
    more = sample(SEED, 1, replace(CONFIG, slices=24))
    assert np.array_equal(more.mammogram, volumes[1].mammogram) and np.array_equal(more.boxes, volumes[1].boxes)
    assert np.array_equal(more.heights, volumes[1].heights)
    np.testing.assert_allclose(more.slices()[5:7].mean(0), volumes[1].slices()[2:4].mean(0), atol=0.05)
    finer = sample(SEED, 1, replace(CONFIG, size=192))
    np.testing.assert_allclose(finer.boxes / 2, volumes[1].boxes, atol=2)
    np.testing.assert_allclose(finer.heights, volumes[1].heights, atol=0.5)


def test_end_slices_show_less_breast(volumes):
    for volume in volumes:
        slices = volume.slices()
        assert slices[0].sum() < slices[6].sum() and slices[-1].sum() < slices[6].sum()


def test_the_synthetic_mammogram_is_smoother_than_the_mammogram(volumes):
    def fine(image):
        inside = image[24:72, 8:24] if image[:, 0].any() else image[24:72, -24:-8]
        return np.diff(inside, axis=0).std() / inside.std()

    assert np.mean([fine(volume.synthetic) for volume in volumes]) < np.mean([fine(v.mammogram) for v in volumes])


def test_negative_numbers_are_refused():
    with refused("negative", where="index"):
        sample(0, -1, CONFIG)
