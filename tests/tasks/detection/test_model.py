"""What a detector is shown of a source, and its way back into the pixels of the whole images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from elk_jax.data.sources.source import ImageSource
from elk_jax.evaluation.detections import Detections, join
from elk_jax.images.schema import ImageInfo
from elk_jax.tasks.detection import model as detection_model
from elk_jax.tasks.detection import settings as detection

BREAST = np.array([30, 10, 60, 40])  # x0, y0, x1, y1 of the bright part of a 100 x 60 px image


def _paint(position: int) -> np.ndarray:
    image = np.zeros((60, 100, 1), np.float32)
    x0, y0, x1, y1 = BREAST
    image[y0:y1, x0:x1] = 0.5
    return image


@pytest.fixture
def source() -> ImageSource:
    """One image whose lesion reaches far out of the breast."""
    info = ImageInfo(
        image_id="1",
        patient_id="P",
        width=100,
        height=60,
        boxes=np.array([[50, 20, 95, 35]], np.float32),
        labels=np.zeros(1, np.int32),
        ignore=np.zeros(1, bool),
    )
    return ImageSource("painted", ("lesion",), (info,), partial(_paint))


def test_a_detector_sees_the_breast_and_answers_in_the_whole_image(source, monkeypatch):
    shown = detection_model.show(source, crop_to_breast=True)
    (window,) = shown.windows
    pad = 2  # 2 % of 100 px
    np.testing.assert_array_equal(window, BREAST + [-pad, -pad, pad, pad])  # not widened to x = 95
    (seen,) = shown.source.infos
    assert (seen.width, seen.height, len(seen.boxes)) == (34, 34, 0)

    found = Detections(np.array([[1.0, 2.0, 11.0, 12.0]]), np.array([0.9]), np.array([0]))
    monkeypatch.setattr(detection, "detect_all", lambda *arguments: join(shown.source.infos, {"1": found}))
    (result,) = detection_model.detect_shown(None, None, shown, None, None)
    np.testing.assert_array_equal(result.boxes, [[29, 10, 39, 20]])
    np.testing.assert_array_equal(result.gt_boxes, source.infos[0].boxes)
    assert (result.width, result.height) == (100, 60)


def test_mirrored_views_are_brought_back_and_fused(source, monkeypatch):
    """A detector that knows the left half of what it sees alone: each view tells of another part of the image."""

    def detect_left(predictor, params, seen, *arguments):
        image = seen[0].image[..., 0]
        rows, columns = np.nonzero(image[:, : image.shape[1] // 2])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return join(seen.infos, {"1": Detections(np.array([box], float), np.array([0.8]), np.array([0]))})

    monkeypatch.setattr(detection, "detect_all", detect_left)
    shown = detection_model.show(source, crop_to_breast=False)
    (plain,) = detection_model.detect_shown(None, None, shown, None, None)
    (mirrored,) = detection_model.detect_shown(None, None, shown, None, None, flips=("horizontal",))
    (both,) = detection_model.detect_shown(None, None, shown, None, None, flips=("horizontal", "vertical", "both"))
    x0, y0, x1, y1 = BREAST
    np.testing.assert_array_equal(plain.boxes, [[x0, y0, 50, y1]])
    assert mirrored.boxes[0].tolist() == [x0, y0, 50, y1] and mirrored.scores[0] == pytest.approx(0.4)
    assert both.boxes[0].tolist() == [x0, y0, 50, y1] and both.scores[0] == pytest.approx(0.4)
    assert {tuple(box) for box in both.boxes} == {(x0, y0, 50, y1), (50, y0, x1, y1)}


def test_a_whole_image_is_shown_as_it_is(source):
    shown = detection_model.show(source, crop_to_breast=False)
    assert shown.source is source and shown.windows is None


def test_what_a_detector_sees_is_the_same_for_any_truth(source):
    other = replace(source, infos=(replace(source.infos[0], boxes=source.infos[0].boxes / 2),))
    assert detection_model.show(source, True).windows == detection_model.show(other, True).windows
