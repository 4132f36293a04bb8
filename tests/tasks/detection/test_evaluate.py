"""Predictions made elsewhere, in the numbering of the data's own file; a truth that a detector does not see."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from elk_jax import files
from elk_jax.data import breast
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.evaluation import detections
from elk_jax.tasks import trained
from elk_jax.tasks.detection import evaluate as detection_evaluate
from elk_jax.tasks.detection import model as detection_model

BOXES = {10: [8, 8, 16, 16], 11: [30, 20, 12, 10]}
CATEGORY = {10: 0, 11: 1}  # of the one lesion of each image; numbers from 0, as many files have them


@pytest.fixture
def coco(tmp_path):
    """Two images of 64 x 48 px with a lesion of another class each; breasts fill the left half."""
    (tmp_path / "images").mkdir()
    pixels = np.zeros((48, 64), np.uint8)
    pixels[:, :32] = 100
    for image in BOXES:
        cv2.imwrite(str(tmp_path / "images" / f"{image}.png"), pixels)
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48, "split": "test"} for i in BOXES]
    annotations = [{"id": i, "image_id": i, "category_id": CATEGORY[i], "bbox": BOXES[i]} for i in BOXES]
    categories = [{"id": 1, "name": "calcification"}, {"id": 0, "name": "mass"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(content))
    return tmp_path / "data.json"


def test_predictions_are_read_and_written_in_the_categories_of_the_file(coco, tmp_path):
    entries = [{"image_id": i, "category_id": CATEGORY[i], "bbox": BOXES[i], "score": 0.9} for i in BOXES]
    (tmp_path / "theirs.json").write_text(json.dumps(entries))
    evaluation = detection_evaluate.evaluate_source(
        data=SourceSpec(f"coco:{coco}"),
        split="test",
        model=None,
        predictions=str(tmp_path / "theirs.json"),
        output=tmp_path / "out",
        resamples=0,
    )
    assert evaluation["mean_sensitivity"]["value"] == evaluation["ap50"]["value"] == 1.0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == entries


def test_the_window_that_a_detector_sees_does_not_follow_the_annotations(coco):
    source = open_source(SourceSpec(f"coco:{coco}"), "test")
    _, windows = breast.crop_to_breast(detection_model.without_truth(source))
    assert len(set(windows)) == 1  # equal pixels, though one lesion reaches out of the breast
    _, wide = breast.crop_to_breast(source)
    assert wide[1][2] > windows[1][2], "in training the window is widened to hold all lesions"


def test_large_boxes_are_no_lesions_where_the_training_ignored_them(coco, tmp_path):
    nothing = results(tmp_path / "theirs.json", {})
    share = {image: box[2] * box[3] / (64 * 48) for image, box in BOXES.items()}
    for over, lesions in ((0.0, 2), ((share[10] + share[11]) / 2, 1)):
        evaluation = compare(coco, tmp_path, nothing, None, data=SourceSpec(f"coco:{coco}", ignore_over=over))
        assert evaluation["counts"]["lesions"] == lesions


# ---- Against another run ---------------------------------------------------------------------------------------------


def results(path, scores: dict[int, float]):
    """COCO results with the true box of some images, at these scores."""
    path.parent.mkdir(exist_ok=True)
    entries = [{"image_id": i, "category_id": CATEGORY[i], "bbox": BOXES[i], "score": s} for i, s in scores.items()]
    path.write_text(json.dumps(entries))
    return path


def compare(coco, tmp_path, own, other, **changes):
    return detection_evaluate.evaluate_source(
        split="test", output=tmp_path / "out", resamples=20, against=other,
        **{"data": SourceSpec(f"coco:{coco}"), "model": None, "predictions": str(own), **changes},
    )  # fmt: skip


def test_the_difference_from_another_run_is_paired_and_in_the_report(coco, tmp_path, capsys):
    both, one = results(tmp_path / "b" / "p.json", {10: 0.9, 11: 0.8}), results(tmp_path / "a" / "p.json", {10: 0.9})
    evaluation = compare(coco, tmp_path, both, one)
    assert evaluation["mean_sensitivity"]["value"] == 1.0
    comparisons = json.loads((tmp_path / "out" / "comparisons.json").read_text())
    difference = comparisons["b/p"]["mean_sensitivity"]
    assert (difference["first"], difference["second"], difference["difference"]) == (0.5, 1.0, 0.5)
    assert difference["low"] <= 0.5 <= difference["high"] and difference["p_value"] is not None
    assert "b/p - a/p" in capsys.readouterr().out
    assert "Against a/p" in (tmp_path / "out" / "report.html").read_text()


def test_what_cannot_be_compared_is_refused(coco, tmp_path):
    own = results(tmp_path / "own.json", {10: 0.9})
    with pytest.raises(UserError, match="--against names what is evaluated"):
        compare(coco, tmp_path, own, own)
    with pytest.raises(UserError, match="neither a run folder nor a model folder"):
        compare(coco, tmp_path, own, tmp_path / "images")
    with pytest.raises(UserError, match=r"no such file.*gone\.json"):
        compare(coco, tmp_path, own, tmp_path / "gone.json")
    assert not (tmp_path / "out").exists()


# ---- Patients --------------------------------------------------------------------------------------------------------


def test_patients_that_the_model_was_trained_on_are_counted(coco, tmp_path, monkeypatch, capsys):
    content = json.loads(coco.read_text())
    for image, patient in zip(content["images"], ("A", "B")):
        image["patient_id"] = patient
    coco.write_text(json.dumps(content))
    monkeypatch.setattr(detection_model, "load", lambda folder: (None, None, {"classes": ["mass", "calcification"]}))
    monkeypatch.setattr(detection_model, "detect_with", lambda folder, source, *a: detections.join(source.infos, {}))
    for patients, words in ((["B", "X"], "RUN was trained on 1 of these 2 patients, such as B"), (["X"], "")):
        files.make_folder(tmp_path / "RUN" / "model")
        said = {"trained": {"patients": [trained.mark(patient) for patient in patients]}}
        files.write_json(tmp_path / "RUN" / "model" / "model.json", said)
        notes = compare(coco, tmp_path, None, None, model=tmp_path / "RUN" / "model", predictions=None)["notes"]
        said = capsys.readouterr().out
        assert [note for note in notes if "trained" in note] == [f"{words}: of others it may find less"] * bool(words)
        assert f"note: {words}" in said if words else "was trained on" not in said


# ---- Classes ---------------------------------------------------------------------------------------------------------


def test_one_class_is_taken_for_one_class_and_several_must_agree(coco, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection_model, "load", lambda folder: (None, None, {"classes": ["lesion"]}))
    with pytest.raises(UserError, match=r"the model knows the classes \['lesion'\], the data has \['mass', 'calc"):
        compare(coco, tmp_path, None, None, model=tmp_path / "model", predictions=None)

    def detect_with(folder, source, *arguments):
        assert source.classes == ("lesion",)
        return detections.join(source.infos, {})

    monkeypatch.setattr(detection_model, "detect_with", detect_with)
    content = json.loads(coco.read_text())
    content["categories"], content["annotations"] = [{"id": 0, "name": "mass"}], content["annotations"][:1]
    coco.write_text(json.dumps(content))
    evaluation = compare(coco, tmp_path, None, None, model=tmp_path / "model", predictions=None)
    note = "the class 'lesion' of the model is taken for 'mass' of the data"
    assert note in evaluation["notes"] and f"note: {note}" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "comparisons.json").read_text()) == {}
