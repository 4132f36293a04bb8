"""Patches around boxes, and the classes of whole images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from elk_jax.data import patches
from elk_jax.data.patches import Cutting
from elk_jax.data.sources.labels import check_both_classes, image_labels
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from tests.refusals import refused

CUTTING = Cutting(margin=2.0, least=10)


@pytest.mark.parametrize(
    "box, centre, window",
    [
        ((20, 20, 30, 26), (0.5, 0.5), (15, 13, 35, 33)),  # twice the longer side
        ((20, 20, 22, 22), (0.5, 0.5), (16, 16, 26, 26)),  # at least 10 px
        ((0, 0, 10, 10), (0.5, 0.5), (0, 0, 20, 20)),  # shifted into the image
        ((20, 20, 30, 30), (0.75, 0.5), (15, 10, 35, 30)),  # below the middle
        ((0, 0, 64, 40), (0.5, 0.5), (8, 0, 56, 48)),  # no larger than the image
    ],
)
def test_the_window_of_a_box(box, centre, window):
    assert patches.window_around(np.array(box), 48, 64, CUTTING, centre) == window


def test_every_box_is_a_patch_and_a_box_of_the_whole_image_is_the_image(make_info, make_source):
    whole = make_info(2, [[0, 0, 64, 48]])
    lesion = make_info(0, [[20, 20, 30, 30], [0, 0, 9, 9]], ignore=[False, True])
    source = make_source([lesion, make_info(1, []), whole])
    found = patches.around_boxes(source, 20, CUTTING)
    assert found.shape == (2, 20, 20, 1) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0, 5:15, 5:15], 1)
    assert found[0].mean() < 1 and found[1].min() == pytest.approx(1)
    with refused("no box", where="painted"):
        patches.around_boxes(make_source([make_info(1, [])]), 20, CUTTING)
    assert patches.whole_images(source, 16).shape == (3, 16, 16, 1)


def test_an_image_has_the_class_of_its_boxes(make_info, make_source):
    def source(*labels, classes=("a", "b"), **changes):
        infos = [
            make_info(i, [[0, 0, 4, 4]] * len(of), labels=np.array(of, np.int32), **changes)
            for i, of in enumerate(labels)
        ]
        return replace(make_source(infos), classes=classes)

    assert image_labels(source([0, 0], [1])).tolist() == [0, 1]
    with refused("a and b", where="image 1 (1.png)"):
        image_labels(source([0], [0, 1]))
    with refused("no box", where="image 1 (1.png)"):
        image_labels(source([0], []))
    with refused("no box", where="image 0 (0.png)"):
        image_labels(source([0], ignore=[True]))
    with refused("class b", "'val'"):
        check_both_classes(np.zeros(2), source([0], [0]), "val")
    with refused("1 classes", "two"):
        check_both_classes(np.zeros(1), source([0], classes=("a",)), "val")


def test_generated_patches_have_two_classes_by_the_form_of_the_lesion():
    source = open_source(SourceSpec("phantom_patches:size=64,count=16,healthy_fraction=0.0"), "train")
    kinds = {(info.meta["lesion_kind"], source.classes[info.labels[0]]) for info in source.infos}
    malignant = ("irregular", "spiculated", "clustered")
    assert kinds and all((name == "malignant") == (kind in malignant) for kind, name in kinds)
    assert source[0].image.shape == (64, 64, 1) and source[0].info.boxes.tolist() == [[0, 0, 64, 64]]


def test_generated_patches_have_the_lesion_where_the_options_say():
    breasts = "size=128,count=12,healthy_fraction=0.0,seed=3"
    centre = (0.6875, 0.5625)
    source = open_source(
        SourceSpec(f"phantom_patches:{breasts},side=40,margin=1.35,least=40,row={centre[0]},column={centre[1]}"),
        "train",
    )
    theirs = patches.around_boxes(open_source(SourceSpec(f"phantom:{breasts}"), "train"), 40, Cutting(1.35, 40), centre)
    ours = patches.whole_images(source, 40)
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours, theirs, atol=0.51 / 255)
    middle = patches.whole_images(open_source(SourceSpec(f"phantom_patches:{breasts},side=40"), "train"), 40)
    assert np.abs(middle - ours).mean() > 0.01


@pytest.mark.parametrize(
    "option, said", [("row=1.5", "row"), ("side=2", "side"), ("margin=0", "margin"), ("rows=1", "rows=1")]
)
def test_an_impossible_option_of_generated_patches_is_refused(option, said):
    with refused(said):
        open_source(SourceSpec(f"phantom_patches:size=64,count=12,{option}"), "train")
