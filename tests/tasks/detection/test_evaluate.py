"""Predictions made elsewhere, in the numbering of the data's own file; differences from another run; who was seen."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.augment import Resize
from elk_jax.data.sources.patients import patient_hash
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.evaluation import detections
from elk_jax.evaluation.operating import ChosenOn, OperatingPoint
from elk_jax.sweeps.results import values
from elk_jax.tasks.detection import evaluate, predict
from elk_jax.tasks.detection.evaluate import EvaluateSettings
from elk_jax.tasks.detection.model import Description, Input, Trained
from elk_jax.tasks.detection.recipe import DetectionRecipe, EvaluateDetectorsStage
from elk_jax.tasks.run import SKIPPED, Experiment, MeshSettings, Run
from tests.refusals import refused

BOXES = {10: [8, 8, 16, 16], 11: [30, 20, 12, 10]}
OF_ONE_IMAGE = SimpleNamespace(images=1, tested_images=1, config=SimpleNamespace(score_floor=0.01))
UNCHOSEN = {"operating_points": (), "chosen_on": ChosenOn(), "learned_maps": ""}
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


def evaluated(coco, tmp_path, model=None, data=None, on_error="stop", **settings):
    return evaluate.evaluate_source(
        model=model,
        data=data or SourceSpec(f"coco:{coco}"),
        split="test",
        on_error=on_error,
        output=tmp_path / "out",
        settings=EvaluateSettings(**{"bootstrap": 20, **settings}),
    )


def results(path, scores: dict[int, float]) -> str:
    """COCO results with the true box of some images, at these scores."""
    path.parent.mkdir(exist_ok=True)
    entries = [{"image_id": i, "category_id": CATEGORY[i], "bbox": BOXES[i], "score": s} for i, s in scores.items()]
    path.write_text(json.dumps(entries))
    return str(path)


def test_skipped_images_are_listed_beside_the_evaluation(coco, tmp_path):
    theirs, image = results(tmp_path / "theirs.json", {10: 0.9}), tmp_path / "images" / "11.png"
    pixels = image.read_bytes()
    image.write_bytes(b"no image")
    assert evaluated(coco, tmp_path, predictions=theirs, on_error="skip", bootstrap=0)["counts"]["images"] == 1
    _, row = (tmp_path / "out" / SKIPPED).read_text().splitlines()
    assert row.startswith("11,")
    image.write_bytes(pixels)
    evaluated(coco, tmp_path, predictions=theirs, on_error="skip", bootstrap=0)
    assert not (tmp_path / "out" / SKIPPED).exists()


def test_predictions_are_read_and_written_in_the_categories_of_the_file(coco, tmp_path):
    theirs = results(tmp_path / "theirs.json", dict.fromkeys(BOXES, 0.9))
    evaluation = evaluated(coco, tmp_path, predictions=theirs, bootstrap=0)
    assert evaluation["mean_sensitivity"]["value"] == evaluation["ap50"]["value"] == 1.0
    assert evaluation["mean_sensitivity"]["low"] is None
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == files.read_json(theirs)


def test_results_of_an_earlier_evaluation_are_removed(coco, tmp_path):
    theirs = results(tmp_path / "theirs.json", dict.fromkeys(BOXES, 0.9))
    out = tmp_path / "out"
    out.mkdir()
    for name in ("evaluation.json", "submission.csv", "predictions.csv", "mine.csv"):
        (out / name).write_text("")
    evaluated(coco, tmp_path, predictions=theirs, bootstrap=0)
    written = ["comparisons.json", "evaluation.json", "predictions.json", "report.html"]
    assert sorted(path.name for path in out.iterdir()) == sorted(["mine.csv", *written])


@pytest.mark.parametrize("flag", ["predictions", "against"])
def test_given_predictions_are_not_overwritten(coco, tmp_path, flag):
    theirs = results(tmp_path / "theirs.json", dict.fromkeys(BOXES, 0.9))
    own = results(tmp_path / "out" / "predictions.json", dict.fromkeys(BOXES, 0.8))
    before = (tmp_path / "out" / "predictions.json").read_bytes()
    with refused("overwrite", where=own):
        evaluated(coco, tmp_path, **{"predictions": theirs, flag: own})
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [before]


def test_partners_that_nothing_reads_are_named_and_not_opened(coco, tmp_path, capsys):
    content = json.loads(coco.read_text())
    for image in content["images"]:
        image["other"] = "not_there.png"
    coco.write_text(json.dumps(content))
    theirs = results(tmp_path / "theirs.json", dict.fromkeys(BOXES, 0.9))
    data = SourceSpec(f"coco:{coco}", partner="other")
    evaluation = evaluated(coco, tmp_path, data=data, predictions=theirs, bootstrap=0)
    assert evaluation["mean_sensitivity"]["value"] == 1.0
    assert (
        any("--partner=other" in note for note in evaluation["notes"]) and "--partner=other" in capsys.readouterr().out
    )


def test_how_it_is_measured_is_a_setting(coco, tmp_path):
    theirs = results(tmp_path / "theirs.json", {10: 0.9, 11: 0.3})
    evaluation = evaluated(coco, tmp_path, predictions=theirs, score_floor=0.5, criterion="centre_in_box")
    assert evaluation["mean_sensitivity"]["value"] == 0.5 and "centre" in evaluation["criterion"]
    assert evaluation["froc_images"] == "with_lesions" and evaluation["bootstrap"]["resamples"] == 20
    assert evaluated(coco, tmp_path, predictions=theirs, all_images=True)["froc_images"] == "all"
    with refused("'iou:x'"):
        evaluated(coco, tmp_path, predictions=theirs, criterion="iou:x")


def test_large_boxes_are_not_lesions_where_the_training_ignored_them(coco, tmp_path):
    nothing = results(tmp_path / "theirs.json", {})
    share = {image: box[2] * box[3] / (64 * 48) for image, box in BOXES.items()}
    for over, lesions in ((0.0, 2), ((share[10] + share[11]) / 2, 1)):
        data = SourceSpec(f"coco:{coco}", ignore_over=over)
        evaluation = evaluated(coco, tmp_path, data=data, predictions=nothing)
        assert evaluation["counts"]["lesions"] == lesions


# ---- Against another run ---------------------------------------------------------------------------------------------


def test_the_difference_from_another_run_is_paired_and_in_the_report(coco, tmp_path, capsys):
    both, one = results(tmp_path / "b" / "p.json", {10: 0.9, 11: 0.8}), results(tmp_path / "a" / "p.json", {10: 0.9})
    evaluation = evaluated(coco, tmp_path, predictions=both, against=one)
    assert evaluation["mean_sensitivity"]["value"] == 1.0
    comparisons = json.loads((tmp_path / "out" / "comparisons.json").read_text())
    difference = comparisons["b/p"]["mean_sensitivity"]
    assert (difference["first"], difference["second"], difference["difference"]) == (0.5, 1.0, 0.5)
    assert difference["low"] <= 0.5 <= difference["high"] and difference["p_value"] is not None
    assert "b/p - a/p" in capsys.readouterr().out
    assert "Compared with a/p" in (tmp_path / "out" / "report.html").read_text()


def test_what_cannot_be_compared_is_refused(coco, tmp_path):
    own = results(tmp_path / "own.json", {10: 0.9})
    with refused("same", where="--against"):
        evaluated(coco, tmp_path, predictions=own, against=own)
    with refused("run folder", "model folder", where=tmp_path / "images"):
        evaluated(coco, tmp_path, predictions=own, against=str(tmp_path / "images"))
    with refused("no such file", where="gone.json"):
        evaluated(coco, tmp_path, predictions=own, against=str(tmp_path / "gone.json"))
    assert not (tmp_path / "out").exists()


def test_settings_of_how_a_model_looks_are_refused_where_none_does(coco, tmp_path):
    own = results(tmp_path / "own.json", {10: 0.9})
    with refused("volumes", where="--volume_rule"):
        evaluated(coco, tmp_path, model=tmp_path / "model", volume_rule="comoto")
    with refused("volumes", where="--volume_rule"):
        evaluated(coco, tmp_path, predictions=own, volume_rule="comoto")
    with refused("no model", where="--flips"):
        evaluated(coco, tmp_path, predictions=own, flips=("horizontal",))
    with refused("no model", where="--scales"):
        evaluated(coco, tmp_path, predictions=own, scales=(1.0, 0.5))
    assert not (tmp_path / "out").exists()


def described(flips, **points):
    """A detector of two classes on one canvas."""
    entry, kind = Input(False, Resize(jitter=(1.0, 1.0)), ((4096, 64),), flips), SimpleNamespace(num_classes=2)
    return Description("toy", kind, ("mass", "calcification"), entry, **points)


# ---- Promises --------------------------------------------------------------------------------------------------------


def test_promises_are_measured_as_thresholds_are_chosen_and_other_views_are_noted(coco, tmp_path, monkeypatch):
    """Boxes with the right centre and an IoU of a sixteenth are hits of this evaluation, and none of the thresholds."""
    points = UNCHOSEN | {"operating_points": (OperatingPoint(1.0, 0.5),), "chosen_on": ChosenOn("validation", 1, 1, 1)}
    description = described(("vertical",), **points)
    monkeypatch.setattr(evaluate, "load", lambda folder: Trained(OF_ONE_IMAGE, None, description))

    def detect_with(trained, source, *arguments):
        found = {}
        for info in source.infos:
            (x0, y0, x1, y1), width, height = info.boxes[0], *(info.boxes[0][2:] - info.boxes[0][:2]) * 3 / 8
            box = np.array([[x0 + width, y0 + height, x1 - width, y1 - height]])
            found[info.image_id] = detections.Detections(box, np.array([0.9]), info.labels)
        return detections.join(source.infos, found)

    monkeypatch.setattr(predict, "detect_with", detect_with)
    ask = {"model": tmp_path / "model", "criterion": "centre_in_box"}
    evaluation = evaluated(coco, tmp_path, **ask)
    (kept,) = evaluation["own_thresholds"]["points"]
    assert evaluation["mean_sensitivity"]["value"] == 1.0 and kept["sensitivity"]["value"] == 0.0
    same, other = [{}, {"flips": ("vertical",)}, {"scales": (1.0,)}], [{"flips": ()}, {"scales": (1.0, 0.5)}]
    for views in same + other:
        notes = evaluated(coco, tmp_path, **views, **ask)["notes"]
        assert any("--flips" in note for note in notes) == (views in other)
    monkeypatch.setattr(predict, "detect_with", lambda trained, source, *_: asked.append(trained.description.input))
    asked = []
    with pytest.raises(TypeError):  # nothing was found
        evaluated(coco, tmp_path, flips=("both",), scales=(1.0, 0.5, 1.0), **ask)
    assert asked[0].flips == ("both",) and asked[0].scales == (1.0, 0.5)
    with refused(16384, where="--scales"):
        evaluated(coco, tmp_path, scales=(4.0,), **ask)


def test_a_floor_of_the_evaluation_takes_nothing_from_the_thresholds_of_the_model(coco, tmp_path, monkeypatch):
    """A false positive and the lesion of every image score 0.3 and 0.4, above a threshold of 0.2 of the model."""
    points = UNCHOSEN | {"operating_points": (OperatingPoint(1.0, 0.2),), "chosen_on": ChosenOn("validation", 1, 1, 1)}
    description = described((), **points)
    trained, asked = Trained(OF_ONE_IMAGE, None, description), []
    monkeypatch.setattr(evaluate, "load", lambda folder: trained)

    def detect_with(trained, source, mesh, score_floor):
        asked.append(score_floor)
        box = lambda info: np.array([info.boxes[0], [50, 40, 60, 48]], float)
        found = {
            i.image_id: detections.Detections(box(i), np.array([0.4, 0.3]), i.labels.repeat(2)) for i in source.infos
        }
        return detections.above(detections.join(source.infos, found), score_floor)

    monkeypatch.setattr(predict, "detect_with", detect_with)
    evaluation = evaluated(coco, tmp_path, model=tmp_path / "model", score_floor=0.5)
    (kept,) = evaluation["own_thresholds"]["points"]
    assert (kept["false_positives_per_image"]["value"], kept["sensitivity"]["value"]) == (1.0, 1.0)
    assert evaluation["mean_sensitivity"]["value"] == 0.0 and evaluation["counts"]["predictions"] == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    low = evaluated(coco, tmp_path, model=tmp_path / "model", score_floor=0.001)
    assert low["counts"]["predictions"] == 4 and asked == [0.01, 0.001]


# ---- Patients --------------------------------------------------------------------------------------------------------


def test_patients_that_the_model_was_trained_on_are_counted(coco, tmp_path, monkeypatch, capsys):
    content = json.loads(coco.read_text())
    for image, patient in zip(content["images"], ("A", "B")):
        image["patient_id"] = patient
    coco.write_text(json.dumps(content))
    trained = Trained(OF_ONE_IMAGE, None, SimpleNamespace(classes=("mass", "calcification"), **UNCHOSEN))
    monkeypatch.setattr(evaluate, "load", lambda folder: trained)
    monkeypatch.setattr(predict, "detect_with", lambda trained, source, *a: detections.join(source.infos, {}))
    for patients, words in ((["B", "X"], "RUN was trained on 1 of these 2 patients, for example B"), (["X"], "")):
        folder = files.make_folder(tmp_path / "RUN" / "model")
        files.write_json(folder / "model.json", {"trained": {"patients": list(map(patient_hash, patients))}})
        notes = evaluated(coco, tmp_path, model=folder)["notes"]
        printed = capsys.readouterr().out
        found = [note.partition(":")[0] for note in notes if "trained" in note]
        assert found == [words] * bool(words)
        assert f"note: {words}" in printed if words else "was trained on" not in printed


# ---- Classes ---------------------------------------------------------------------------------------------------------


def test_each_class_of_the_data_is_measured_compared_and_shown(coco, tmp_path, capsys):
    """The only mass (image 10) is found by the second, the only calcification by both."""
    both, one = results(tmp_path / "b" / "p.json", {10: 0.9, 11: 0.8}), results(tmp_path / "a" / "p.json", {11: 0.9})
    evaluation = evaluated(coco, tmp_path, predictions=one, against=both)
    found = {name: (own["lesions"], own["ap50"]["value"]) for name, own in evaluation["classes"].items()}
    assert found == {"mass": (1, 0.0), "calcification": (1, 1.0)} and evaluation["ap50"]["value"] == 0.5
    comparisons = json.loads((tmp_path / "out" / "comparisons.json").read_text())["a/p"]["classes"]
    differences = {name: own["mean_sensitivity"]["difference"] for name, own in comparisons.items()}
    assert differences == {"mass": -1.0, "calcification": 0.0}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["classes"] == evaluation["classes"]
    assert "By class" in (tmp_path / "out" / "report.html").read_text()
    assert "calcification alone, 1 lesion" in capsys.readouterr().out


def test_a_single_class_has_no_figures_by_class(coco, tmp_path, capsys):
    content = json.loads(coco.read_text())
    content["categories"], content["annotations"] = [{"id": 0, "name": "mass"}], content["annotations"][:1]
    coco.write_text(json.dumps(content))
    evaluation = evaluated(coco, tmp_path, predictions=results(tmp_path / "theirs.json", {10: 0.9}))
    assert not {"classes", "confusion"} & set(evaluation)
    assert "By class" not in (tmp_path / "out" / "report.html").read_text()
    assert "alone" not in capsys.readouterr().out


def test_a_stage_measures_each_class_and_a_sweep_resamples_it(coco, tmp_path, monkeypatch):
    """`some` finds the only mass (image 10), `all` the only calcification too."""
    description = SimpleNamespace(classes=("mass", "calcification"), trained=None, **UNCHOSEN)
    monkeypatch.setattr(evaluate, "load", lambda folder: Trained(OF_ONE_IMAGE, folder.parent.name, description))
    finds = {"some": ("10",), "all": ("10", "11")}

    def detect_with(trained, source, *_):
        boxes = lambda info: detections.Detections(info.boxes, np.array([0.9]), info.labels)
        found = {info.image_id: boxes(info) for info in source.infos if info.image_id in finds[trained.params]}
        return detections.join(source.infos, found)

    monkeypatch.setattr(predict, "detect_with", detect_with)
    stage = EvaluateDetectorsStage(name="test", models=tuple(finds), on="data")
    recipe, data = DetectionRecipe(bootstrap=20), {"data": SourceSpec(f"coco:{coco}")}
    run = Run(Experiment("two", 0, MeshSettings(), "stop", data, {}, {"test": stage}), tmp_path, mesh=None)
    evaluate.evaluate(run, stage, recipe)
    comparison = files.read_object(tmp_path / "test" / "comparisons.json")["all"]["classes"]
    assert [own["ap50"]["difference"] for own in comparison.values()] == [0.0, 1.0]
    for model, statistic in evaluate.statistics(tmp_path / "test", stage, recipe).items():
        named = values(files.read_object(tmp_path / "test" / model / "evaluation.json"))
        assert named["classes/mass/sensitivity_at/0.5"] == 1.0
        assert named["classes/calcification/ap50"] == float(model == "all")
        draws = statistic(np.ones((1, 2)))
        of_classes = [name for name in named if name.startswith("classes/")]
        assert len(of_classes) == 16 and [draws[name][0] for name in of_classes] == [named[n] for n in of_classes]


def test_one_class_counts_as_the_other_and_several_must_agree(coco, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        evaluate, "load", lambda folder: Trained(OF_ONE_IMAGE, None, SimpleNamespace(classes=("lesion",), **UNCHOSEN))
    )
    with refused("['lesion']", "['mass', 'calcification']"):
        evaluated(coco, tmp_path, model=tmp_path / "model")

    def detect_with(trained, source, *arguments):
        assert source.classes == ("lesion",)
        return detections.join(source.infos, {})

    monkeypatch.setattr(predict, "detect_with", detect_with)
    content = json.loads(coco.read_text())
    content["categories"], content["annotations"] = [{"id": 0, "name": "mass"}], content["annotations"][:1]
    coco.write_text(json.dumps(content))
    evaluation = evaluated(coco, tmp_path, model=tmp_path / "model")
    note = "the class 'lesion' of the model counts as 'mass' of the data"
    assert note in evaluation["notes"] and f"note: {note}" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "comparisons.json").read_text()) == {}
