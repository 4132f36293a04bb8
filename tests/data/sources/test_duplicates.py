"""Copies of images, found by their pixels."""

from dataclasses import replace

import numpy as np
import pytest

from elk_jax.data.sources import duplicates


@pytest.fixture
def collection(make_info, make_source):
    """(patient, split, class) of images; pictures: which of them are the same. -> infos, hashes, classes."""

    def make(images, pictures):
        infos = [
            make_info(number, [], patient_id=patient, split=split) for number, (patient, split, _) in enumerate(images)
        ]
        grey = [np.full((48, 64, 1), 0.1 * picture, np.float32) for picture in pictures]
        source = replace(make_source(infos), read=lambda position: grey[position])
        return infos, duplicates.pixel_hashes(source), [name for _, _, name in images]

    return make


@pytest.mark.parametrize(
    "second, contradicting, in_two_splits, of_two_patients, words",
    [
        (("P1", "train", "benign"), 0, 0, 0, ["2 images", "of one class"]),
        (("P1", "train", "malignant"), 1, 0, 0, ["0 (benign) and 1 (malignant)"]),
        (("P01", "test", "benign"), 0, 1, 0, ["0 (train) and 1 (test)"]),  # the same patient, written otherwise
        (("P1", "", "benign"), 0, 0, 0, ["of one class"]),
        (("P2", "train", "benign"), 0, 0, 1, ["0 (P1) and 1 (P2)"]),
        (("P2", "val", "malignant"), 1, 1, 1, ["classes", "splits", "patients"]),
    ],
)
def test_copies(collection, second, contradicting, in_two_splits, of_two_patients, words):
    images = [("P1", "train", "benign"), second, ("P3", "test", "benign")]
    infos, hashes, classes = collection(images, [1, 1, 2])
    found = duplicates.find(infos, hashes, classes)
    assert found.groups == ((0, 1),)
    assert (found.contradicting, found.in_two_splits, found.of_two_patients) == tuple(
        ((0, 1),) * number for number in (contradicting, in_two_splits, of_two_patients)
    )
    lines = duplicates.notes(found, infos, classes)
    assert len(lines) == max(1, contradicting + in_two_splits + of_two_patients)
    assert all(word in " ".join(lines) for word in words)


def test_different_images_are_no_copies(collection):
    infos, hashes, classes = collection([("P1", "train", "benign")] * 3, [1, 2, 3])
    found = duplicates.find(infos, hashes, classes)
    assert found == duplicates.Duplicates((), (), (), ())
    assert duplicates.notes(found, infos, classes) == []
    assert duplicates.find([], [], []).groups == ()


def test_the_hash_is_of_grey_values_and_shape():
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    image = eight.astype(np.float32) / 255
    sixteen = (eight.astype(np.float64) * 257 / 65535).astype(np.float32)
    assert duplicates.pixel_hash(image) == duplicates.pixel_hash(sixteen)
    changed = image.copy()
    changed[3, 4] += 1 / 255
    others = [image.reshape(8, 32, 1), image[::-1], changed]
    assert len({duplicates.pixel_hash(one) for one in (image, *others)}) == 4
