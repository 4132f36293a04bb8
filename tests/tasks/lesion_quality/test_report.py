"""From what a comparison of lesions leaves behind to its part of the page."""

from __future__ import annotations

import re

import numpy as np

from elk_jax.tasks.lesion_quality import report


def part(run, summaries):
    return report.part(run, {"quality": summaries["quality"]})


def test_a_comparison_is_a_part_with_its_pairs(painted_run, summaries):
    found = part(painted_run, summaries)
    assert [section.title for section in found.sections] == ["Synthetic lesions", "Most similar to a training lesion"]
    pairs = found.sections[1].html
    assert len(re.findall(r"lesion 2 of image1, mirrored both ways; \w+ 0\.75", pairs)) == 1
    assert "of an older set" not in pairs, "an image that is gone"


def test_the_training_lesion_is_turned_as_the_synthetic_one_is(painted_run):
    painted, training = painted_run.list("synthetic", "train"), painted_run.list("real", "train")
    pair = {"synthetic": "0", "training": "1", "lesion": 0, "similarity": 0.9, "flip": ""}
    (as_it_is,), (turned,) = (
        report.pair_strips([{**pair, "flip": flip}], painted, training) for flip in ("", "horizontal")
    )
    _, lesion = as_it_is.closeups
    assert lesion.image.shape == (report.PATCH, report.PATCH)
    assert lesion.image[0, 0] == 0 and lesion.image[0, -1] == 1, "the grey of image 1 rises to the right"
    np.testing.assert_array_equal(turned.closeups[1].image, lesion.image[:, ::-1])
    np.testing.assert_array_equal(turned.closeups[0].image, as_it_is.closeups[0].image)
    (with_margin,) = report.pair_strips([{**pair, "margin": 0.31}], painted, training)
    assert "margin 0.31" in with_margin.caption and "margin" not in as_it_is.caption, "earlier versions had none"
    assert "mirrored" not in as_it_is.caption and "mirrored horizontally" in turned.caption
    (quarter,) = report.pair_strips([{**pair, "flip": "horizontal", "transposed": True}], painted, training)
    np.testing.assert_array_equal(quarter.closeups[1].image, np.rot90(lesion.image, -1))
    assert "turned right" in quarter.caption and "mirrored" not in quarter.caption
