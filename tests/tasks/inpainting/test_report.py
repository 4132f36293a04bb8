"""From what the stages of lesion synthesis leave behind to the page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.inpainting import report
from elk_jax.tasks.inpainting.page import painted_section


def test_the_part_shows_what_every_stage_left(painted_run, summaries):
    part = report.part(painted_run, {name: summaries[name] for name in ("inpainter", "lesions")})
    titles = [section.title for section in part.sections]
    assert titles == ["Painted lesions", "Progress of the inpainter", "Inpainter training"]
    training = part.sections[2]
    assert "inpainter at step 5" in training.html + training.note, "the model folder names that step, not the best one"


def test_the_progress_shows_the_first_the_middle_and_the_last(painted_run):
    found = report.progress(painted_run.folder / "inpainter", "inpainter")
    assert [one.step for one in found.steps] == [1, 3, 5]
    assert [int(one.image[0, 0]) for one in found.steps] == [40, 120, 200]
    assert {name: int(row[0, 0]) for name, row in found.known.items()} == {"Real": 10, "Covered": 100}
    assert report.progress(painted_run.folder / "lesions", "lesions") is None


def test_a_painted_lesion_is_shown_in_its_window_before_and_after(painted_run, summaries):
    (first, *_) = report._painted(painted_run, "lesions", summaries["lesions"]).painted
    before, after = first.closeups
    assert before.image.shape == after.image.shape == (32, 32)
    np.testing.assert_allclose(before.box, [12, 10, 22, 22])
    assert before.image[0, -1] == pytest.approx(60 / 255) and after.image[0, -1] == pytest.approx(90 / 255)
    assert before.image[0, 0] == pytest.approx((60 + 8 * 2) / 255), "canvas 2 is the second image"
    assert first.caption == "in image2, 10 × 12 px"


def test_canvases_whose_patients_another_stage_protects_are_not_shown(painted_run, summaries):
    experiment = painted_run.experiment
    name = experiment.stages["inpainter"].recipe
    recipe = replace(experiment.recipes[name], privacy=Privacy(epsilon=1.0))
    private = replace(experiment, recipes={**experiment.recipes, name: recipe})
    shown = report._painted(replace(painted_run, experiment=private), "lesions", summaries["lesions"])
    assert shown.count == summaries["lesions"]["count"] and not shown.painted and not shown.real
    section = painted_section(shown)
    assert "protects" in section.note and not section.html


def test_real_lesions_are_shown_in_windows_of_that_size(painted_run, summaries):
    shown = report._painted(painted_run, "lesions", summaries["lesions"]).real
    assert [strip.title for strip in shown] == ["image1", "image1", "image2", "image2", "image3", "image3"]
    for strip in shown:
        (closeup,) = strip.closeups
        assert closeup.image.shape == (32, 32)
        assert (closeup.box >= 0).all() and (closeup.box <= 32).all()
