"""The evaluation of detectors over volumes: the metric, the challenge's file and the page."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.augment import Resize
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.data.sources.coco import write_coco
from elk_jax.data.sources.open import open_source
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.sources.volumes import volumes_of
from elk_jax.detection import detectors
from elk_jax.errors import UserError
from elk_jax.evaluation import submission
from elk_jax.evaluation.operating import Choice, ChosenOn, OperatingPoint
from elk_jax.experiments.needs import check_needs
from elk_jax.images.schema import ImageInfo
from elk_jax.sweeps import results as sweeps
from elk_jax.tasks.detection import evaluate, predict, report, volumes
from elk_jax.tasks.detection.model import describe
from elk_jax.tasks.detection.recipe import DetectionRecipe, EvaluateDetectorsStage
from elk_jax.tasks.run import Experiment, MeshSettings, Run
from elk_jax.weights import model_folder
from tests.data.sources import dbt_files
from tests.detection import toy_detector
from tests.refusals import refused


def run(folder, output, model=None, split="train", data=None, on_error="stop", **settings):
    return evaluate.evaluate_source(
        model=model,
        data=data or SourceSpec(f"bcs_dbt:{folder}"),
        split=split,
        on_error=on_error,
        output=output,
        settings=evaluate.EvaluateSettings(metric="dbtex", bootstrap=50, **settings),
    )


def test_all_lesions_of_the_volumes_are_found_and_the_file_gives_the_same_figures(folder, model, tmp_path, capsys):
    found = run(folder, tmp_path / "out", model)
    assert found["metrics"]["mean_sensitivity_positive"]["value"] == 1.0
    assert (found["volumes"], found["volumes_with_lesions"], found["lesions"], found["detections"]) == (4, 4, 5, 5)
    printed = capsys.readouterr().out
    assert "a note" in printed and "64 px" in printed  # the metric is of images of full size
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure>") == 2 * 5 and "DBTex metric" in page and ", hit" in page
    again = run(folder, tmp_path / "again", predictions=str(tmp_path / "out" / "submission.csv"))
    assert again["metrics"] == found["metrics"]
    rows = (tmp_path / "out" / "submission.csv").read_text().splitlines()[1:]
    assert "DBT-P3,DBT-S3,rmlo,30,10,8,12,6,0," in "\n".join(rows)


@pytest.mark.parametrize("left, wanted", [(-1, 0.5), (0, 1.0)], ids=["leaves the slice", "inside"])
def test_a_box_counts_as_it_is_marked_for_a_model_and_for_a_file(tmp_path, model, left, wanted):
    """Two lesions of 10 px: one at the left edge, 100.5 or 99.5 px from what is bright, one bright itself. Clipped,
    the centre of a box that leaves the slice by a pixel lies 100 px from it."""
    frames = np.zeros((2, 16, 640), np.uint16)
    frames[:, :, 0], frames[0, 2:10, 100:109], frames[0, 2:10, 500:510] = 300, 900, 900
    folder = dbt_files.write_one(tmp_path / "dbt", frames, [(0, left, 2, 10, 8), (0, 500, 2, 10, 8)])
    found = run(folder, tmp_path / "out", model, split="test")
    again = run(folder, tmp_path / "again", predictions=str(tmp_path / "out" / "submission.csv"), split="test")
    assert again["metrics"] == found["metrics"]
    assert found["metrics"]["mean_sensitivity_positive"]["value"] == wanted
    source = open_source(SourceSpec(f"bcs_dbt:{folder}"), "test")
    assert source.infos[0].boxes.min() == 0  # what a detector learns from lies in the slice


LEAVES, OUTSIDE = (0, -3, 2, 10, 8), (1, 700, 2, 10, 8)
"""Slice, x, y, width, height of boxes that begin 3 px left of slices 640 px wide, and 60 px to the right of them."""


def test_boxes_outside_their_slices_count_for_a_model_and_for_a_file(tmp_path, model, caplog):
    """As in the challenge, which looks at no slice: what is bright lies 1.5 px, 0 and 90 px from the centres of the
    boxes, within 100 px. Each way says that the table may be wrong, as far as it can see."""
    frames = np.zeros((2, 16, 640), np.uint16)
    frames[:, :, 0], frames[0, 2:10, :7], frames[0, 2:10, 300:310], frames[1, 2:10, 610:620] = 300, 900, 900, 900
    folder = dbt_files.write_one(tmp_path / "dbt", frames, [LEAVES, (0, 300, 2, 10, 8), OUTSIDE])
    found = run(folder, tmp_path / "out", model, split="test")
    assert caplog.text.count("2 of 3 boxes") == 1 and "(-3, 2, 7, 10)" in caplog.text
    again = run(folder, tmp_path / "again", predictions=str(tmp_path / "out" / "submission.csv"), split="test")
    assert again["metrics"] == found["metrics"] and again["lesions"] == found["lesions"] == 3
    assert found["metrics"]["mean_sensitivity_positive"]["value"] == 1.0
    assert any("2 of 3 boxes" in note for note in found["notes"])
    assert any("1 of 3 boxes" in note for note in again["notes"])
    assert any("not read" in note for note in again["notes"]) and not any("not read" in n for n in found["notes"])


def test_a_detector_learns_nothing_where_a_lesion_is_marked_outside(tmp_path):
    frames = np.zeros((8, 16, 640), np.uint16)
    frames[:, :, 0] = 300
    folder = dbt_files.write_one(tmp_path / "dbt", frames, [LEAVES, OUTSIDE])
    source = open_source(SourceSpec(f"bcs_dbt:{folder}", slices="all"), "test")
    whole, part = [0, 0, 640, 16], [0, 2, 7, 10]
    assert [info.boxes.tolist() for info in source.infos] == [[part, whole]] * 3 + [[whole]] + [[]] * 4
    assert [info.ignore.tolist() for info in source.infos[:4]] == [[False, True], [True, True], [True, True], [True]]
    boxes, at = volumes_of(source)[0].lesions()
    assert boxes.tolist() == [[-3, 2, 7, 10], [700, 2, 710, 10]] and at.tolist() == [0, 1]


@pytest.mark.parametrize("box", [(0, 5, 2, 0, 8), (0, 5, 2, 10, -1), (0, 0.25, 0.25, 0.5, 0.5), (0, 1e9, 2, 1e-3, 8)])
def test_a_box_without_an_area_or_in_shares_is_refused_for_a_model_and_for_a_file(tmp_path, model, box):
    frames = np.zeros((2, 16, 64), np.uint16)
    folder = dbt_files.write_one(tmp_path / "dbt", frames, [(0, 20, 2, 10, 8), box])
    row = f"{folder / 'BCS-DBT-boxes-test-v2.csv'}, line 3"
    for way in ({"model": model}, {"predictions": "a.csv"}):
        with refused(f"{box[3]:g} x {box[4]:g} px", where=row):
            run(folder, tmp_path / "out", split="test", **way)
    assert not (tmp_path / "out").exists()


def bright_box(params, pyramid, batch, map_images):
    """Detections [B, 1]: the box around all bright pixels of what the network sees."""
    bright = pyramid[0][..., 0] > 0.85

    def ends(axis):
        there = bright.any(axis)
        return there.argmax(1), there.shape[1] - there[:, ::-1].argmax(1)

    (x0, x1), (y0, y1) = ends(1), ends(2)
    boxes, found = jnp.stack([x0, y0, x1, y1], -1)[:, None].astype(jnp.float32), bright.any((1, 2))[:, None]
    return {"boxes": boxes, "scores": 0.9 * found, "labels": jnp.zeros_like(found, jnp.int32), "valid": found}


@pytest.mark.parametrize(
    "canvas, resize",
    [((240, 200), Resize(jitter=(1.0, 1.0))), ((240, 500), Resize(jitter=(1.0, 1.0), stretch=(240, 500)))],
    ids=["a fifth", "a fifth of the height, half of the width"],
)
def test_the_metric_is_in_pixels_of_the_slice_whatever_the_network_sees(tmp_path, monkeypatch, capsys, canvas, resize):
    """A slice of 1000 x 1200 px with a bright box around (330, 420). The radius is 100 px, or half of a diagonal of
    500 px, of the slice: of the network's pixels all would be hits."""
    config, loader = toy_detector.ToyConfig(width=4), LoaderConfig(buckets=(canvas,), resize=resize)
    one = replace(toy_detector.detector(config), features=lambda params, batch, rng=None: (batch["image"],))
    one = replace(one, predict_from_features=bright_box)
    monkeypatch.setitem(detectors.DETECTORS, "toy", detectors.Kind(toy_detector.ToyConfig, lambda config: one))
    choice = Choice((OperatingPoint(1.0, 0.5),), ChosenOn())
    model_folder.save_params(
        tmp_path / "m", one.init(jax.random.key(0)), describe(one, ("lesion",), loader, False, (), choice)
    )
    frames = np.zeros((2, 1200, 1000), np.uint16)
    frames[:, :, 0], frames[0, 400:440, 300:360] = 300, 900
    lesions = {(420, 410, 20, 20): 1, (421, 410, 20, 20): 0, (430, 220, 300, 400): 1, (431, 220, 300, 400): 0}
    for number, (lesion, wanted) in enumerate(lesions.items()):
        folder = dbt_files.write_one(tmp_path / str(number), frames, [(0, *lesion)])
        found = run(folder, folder / "out", tmp_path / "m", split="test")
        rows = (folder / "out" / "submission.csv").read_text().splitlines()
        assert len(rows) == 2 and rows[1].startswith("DBT-P1,DBT-S1,lcc,300,60,400,40,0,0,")
        again = run(folder, folder / "again", predictions=str(folder / "out" / "submission.csv"), split="test")
        assert again["metrics"] == found["metrics"] and found["notes"] == ["fewer than two patients: no intervals"]
        assert found["metrics"]["mean_sensitivity_positive"]["value"] == wanted


def test_volumes_whose_tables_name_no_split_are_refused_for_a_model_and_for_a_file(tmp_path, model):
    """They were in every split of a file's evaluation: `training` is not `train`."""
    folder = dbt_files.write(tmp_path / "dbt")
    for path in folder.glob("*-train-*.csv"):
        path.rename(path.with_name(path.name.replace("train", "training")))
    rows = tmp_path / "none.csv"
    rows.write_text(",".join((*submission.KEY, *submission.NUMBERS)) + "\n")
    for way in ({"model": model}, {"predictions": str(rows)}):
        with refused("split", where=f"bcs_dbt:{folder}" if "predictions" in way else ""):
            run(folder, tmp_path / "out", split="test", **way)
    assert run(folder, tmp_path / "out", split="", predictions=str(rows))["volumes"] == 6


@pytest.mark.parametrize("marked, noted", [((3, 4, 5), "3 of 3"), ((3, 5), ""), ((4,), "")])
def test_a_lesion_that_is_marked_in_several_slices_is_noted(tmp_path, marked, noted):
    """It counts in each: of three boxes one finding hits one."""
    infos, meta = [], {"study_uid": "s", "view": "lcc", "volume_slices": 9}
    for k in range(9):
        count = int(k in marked)
        lesions = np.array([[10, 10, 40, 40]] * count, np.float32).reshape(-1, 4), np.zeros(count, np.int32)
        place = {"split": "test", "file_name": f"{k}.png", "meta": meta, "volume": "v", "slice": k}
        infos.append(ImageInfo(str(k + 1), "p", 64, 64, *lesions, np.zeros(count, bool), **place))
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((64, 64), k, np.uint8))
    write_coco(tmp_path / "a.json", infos, ("lesion",))
    rows = tmp_path / "a.csv"
    rows.write_text(",".join((*submission.KEY, *submission.NUMBERS)) + "\np,s,lcc,10,30,10,30,4,0,0.5\n")
    data = SourceSpec(f"coco:{tmp_path / 'a.json'}")
    found = run(None, tmp_path / "out", data=data, predictions=str(rows), split="test")
    assert found["metrics"]["mean_sensitivity_positive"]["value"] == pytest.approx(1 / len(marked))
    notes = [note for note in found["notes"] if "next slice" in note]
    assert len(notes) == bool(noted) and all(noted in note for note in notes)


def test_findings_that_occur_twice_are_noted(tmp_path):
    folder = dbt_files.write_one(tmp_path / "dbt", np.zeros((2, 16, 64), np.uint16), [(0, 20, 2, 10, 8)])
    rows = [f"DBT-P1,DBT-S1,lcc,{x},10,2,8,0,0,0.5" for x in (20, 20, 20, 30)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join([",".join((*submission.KEY, *submission.NUMBERS)), *rows]))
    assert any("2 of 4" in note for note in run(folder, tmp_path / "out", predictions=str(path), split="test")["notes"])


def test_findings_of_any_class_hit_and_several_classes_are_noted(folder, model, tmp_path, monkeypatch):
    of_one, detect_with = run(folder, tmp_path / "one", model), predict.detect_with
    label = lambda result: np.full(len(result.labels), int(result.patient_id.endswith("3")))
    of_two = lambda *given, **more: [replace(one, labels=label(one)) for one in detect_with(*given, **more)]
    monkeypatch.setattr(predict, "detect_with", of_two)
    found = run(folder, tmp_path / "two", model)
    assert found["metrics"] == of_one["metrics"]
    (note,) = set(found["notes"]) - set(of_one["notes"])
    assert "2 classes" in note


def test_small_slices_are_said_to_be_small_for_a_file_too_where_they_are_at_hand(tmp_path, folder, model):
    """The tables of BCS-DBT do not say how large slices are."""
    data = SourceSpec("phantom_volumes:size=64,count=12,slices=3")
    path = tmp_path / "none.csv"
    path.write_text(",".join((*submission.KEY, *submission.NUMBERS)) + "\n")
    found = run(folder, tmp_path / "out", predictions=str(path), data=data, split="test")
    assert any("64 px" in note for note in found["notes"])
    assert any("not read" in note for note in run(folder, tmp_path / "tables", predictions=str(path))["notes"])


def test_detections_of_slices_are_written_on_demand_and_can_be_evaluated_as_images(folder, model, tmp_path):
    run(folder, tmp_path / "out", model)
    assert not (tmp_path / "out" / "predictions.json").exists()
    run(folder, tmp_path / "out", model, by_slice=True)
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    source = open_source(SourceSpec(f"bcs_dbt:{folder}", slices="all"), "train")
    assert {one["image_id"] for one in found} <= {info.image_id for info in source.infos}
    again = evaluate.evaluate_source(
        model=None,
        data=SourceSpec(f"bcs_dbt:{folder}", slices="all"),
        split="train",
        on_error="stop",
        output=tmp_path / "slices",
        settings=evaluate.EvaluateSettings(predictions=str(tmp_path / "out" / "predictions.json"), bootstrap=0),
    )
    assert again["mean_sensitivity"]["value"] == 1.0, "the lesions in their own slices"
    run(folder, tmp_path / "ends", model, by_slice=True, volume_rule="comoto")
    inner = {one["image_id"] for one in json.loads((tmp_path / "ends" / "predictions.json").read_text())}
    assert inner == {one["image_id"] for one in found if 4 <= int(one["image_id"].rpartition(" ")[2]) < 8}
    for settings in ({"model": model, "metric": "froc"}, {"model": None, "predictions": "a.csv", "metric": "dbtex"}):
        with refused("--metric=dbtex", where="--by_slice"):
            chosen = {"by_slice": True, **settings}
            evaluate.evaluate_source(
                model=chosen.pop("model"), data=SourceSpec(f"bcs_dbt:{folder}"), split="train", on_error="stop",
                output=tmp_path / "none", settings=evaluate.EvaluateSettings(**chosen),
            )  # fmt: skip


def test_prediction_and_evaluation_of_volumes_read_the_greys_of_the_model_folder(folder, trained, tmp_path):
    """Slices that are nearly black, in which nothing but their own range shows anything."""
    stack = tmp_path / "stack"
    stack.mkdir()
    for k in range(3):
        image = np.random.default_rng(k).integers(10, 30, (40, 60), dtype=np.uint8)
        cv2.imwrite(str(stack / f"{k}.png"), image)
        bright = ((image - image.min()).astype(np.float32) / np.ptp(image) * 255).astype(np.uint8)
        cv2.imwrite(str(files.make_folder(tmp_path / "bright") / f"{k}.png"), bright)
    written = {}
    for greys, place in (("own", "stack"), ("window", "bright"), ("window", "stack")):
        model_folder.save_params(tmp_path / greys, trained(greys).params, trained(greys).description)
        volumes.predict_inputs(
            model=tmp_path / greys, inputs=[str(tmp_path / place)], decoding=SourceSpec(), on_error="stop",
            output=tmp_path / "out", settings=predict.PredictSettings(volumes=True, pictures=False),
        )  # fmt: skip
        entries = json.loads((tmp_path / "out" / "findings.json").read_text())
        written[greys, place] = [(one["slice"], one["box_xyxy"], one["score"]) for one in entries]
    assert written["own", "stack"] == written["window", "bright"] != written["window", "stack"]
    results = []
    for greys in ("own", "window"):
        run(folder, tmp_path / f"of_{greys}", tmp_path / greys, by_slice=True)
        results.append(json.loads((tmp_path / f"of_{greys}" / "predictions.json").read_text()))
    assert results[0] != results[1]


def bright_boxes(model, mesh):
    """In place of a network: boxes around what is bright, in pixels of its input."""

    def predictor(params, batch):
        found = {"boxes": np.zeros((len(batch["image"]), 4, 4)), "labels": np.zeros((len(batch["image"]), 4), int)}
        found["valid"] = np.zeros((len(batch["image"]), 4), bool)
        for row, image in enumerate(np.asarray(batch["image"])):
            blobs = cv2.connectedComponentsWithStats((image[..., 0] > 0.7).astype(np.uint8))[2][1:5, :4]
            found["boxes"][row, : len(blobs)] = np.hstack([blobs[:, :2], blobs[:, :2] + blobs[:, 2:]])
            found["valid"][row, : len(blobs)] = True
        own = {name: np.asarray(batch[name]) for name in ("index", "scale", "valid")}
        return {"predictions": {**found, "scores": np.full((len(batch["image"]), 4), 0.9)}, "batch": own}

    return predictor


def test_boxes_of_turned_cropped_mirrored_volumes_in_several_sizes_are_in_pixels_of_the_slices(
    folder, trained, monkeypatch, tmp_path
):
    """A wrong corner, side or factor at any step would move a box by more than the rounding of its smallest size."""
    one = trained("window")
    sees = replace(one.description.input, crop_to_breast=True, flips=("horizontal", "both"), scales=(1.0, 2.0, 0.75))
    monkeypatch.setattr(volumes, "load", lambda folder: one._replace(description=replace(one.description, input=sees)))
    monkeypatch.setattr(volumes, "patients_seen", lambda *arguments: [])
    monkeypatch.setattr(predict, "compile_predictor", bright_boxes)
    run(folder, tmp_path / "out", tmp_path / "model")
    found = {}
    for line in (tmp_path / "out" / "submission.csv").read_text().splitlines()[1:]:
        patient, study, view, x, width, y, height, z, depth, _ = line.split(",")
        found[patient, study, view, int(z)] = [int(x), int(y), int(width), int(height)]
        assert int(depth) == 0
    wanted = {box[:4]: list(box[4:]) for box in dbt_files.BOXES if box[2] != "lcc2"}
    assert found.keys() == wanted.keys()
    for place, box in wanted.items():
        np.testing.assert_allclose(found[place], box, atol=2, err_msg=str(place))


def test_slices_at_the_ends_are_not_looked_at_by_the_published_rule(folder, model, tmp_path):
    found = run(folder, tmp_path / "out", model, volume_rule="comoto")
    assert found["detections"] == 3  # of slices 3, 8, 5, 6, 6 those from 4 to 7
    assert found["metrics"]["mean_sensitivity_positive"]["value"] == pytest.approx(3 / 5)
    assert any("2 of 5 lesions" in note and "4 slices" in note for note in found["notes"])
    everywhere = run(folder, tmp_path / "all", model)
    assert not any("at either end" in note for note in everywhere["notes"])


def test_what_the_metric_has_no_use_for_is_refused(folder, model, tmp_path):
    with refused("criterion", where="--criterion"):
        run(folder, tmp_path / "out", model, criterion="centre_in_box")
    with refused("volumes", where="--volume_rule"):
        run(folder, tmp_path / "out", predictions="a.csv", volume_rule="comoto")
    with refused("no model", where="--flips"):
        run(folder, tmp_path / "out", predictions="a.csv", flips=("horizontal",))
    with refused("all rows", where="--score_floor"):
        run(folder, tmp_path / "out", predictions="a.csv", score_floor=0.5)
    with refused("all volumes", where=f"bcs_dbt:{folder}"):
        data = SourceSpec(f"bcs_dbt:{folder}", where="class=normal")
        run(folder, tmp_path / "out", predictions="a.csv", data=data)
    for given in ({"model": model}, {"predictions": "a.csv"}):
        with refused("skipped", where="--on_error"):
            run(folder, tmp_path / "out", on_error="skip", **given)
    central = volumes_of(open_source(SourceSpec(f"bcs_dbt:{folder}"), "train"))
    with refused(2, 12, "slices"):
        volumes.detect_volumes(volumes.load(model), central, None, volumes.RULES["group"])
    assert not (tmp_path / "out").exists()


def of_stage(tmp_path, spec, **settings):
    stage = EvaluateDetectorsStage(name="volumes", on="dbt", metric="dbtex", split="train", **settings)
    data = {"dbt": spec}
    experiment = Experiment("e", 1, MeshSettings(), "stop", data, {}, {"volumes": stage})
    return Run(experiment, tmp_path / "run", None), stage


def test_a_stage_measures_as_the_launch_script_does_and_compares_with_the_first_model(folder, model, tmp_path, capsys):
    run_, stage = of_stage(tmp_path, SourceSpec(f"bcs_dbt:{folder}"), models=("a", "b"), volume_rule="comoto")
    recipe = DetectionRecipe(bootstrap=50)
    evaluate.check_start(run_, stage, recipe, ("volumes",))
    summary = evaluate.evaluate(run_, stage, recipe)
    place = tmp_path / "run" / "volumes"
    found = files.read_json(place / "b" / "evaluation.json")
    alone = run(folder, tmp_path / "out", model, volume_rule="comoto")
    assert found["metrics"] == alone["metrics"] and summary["data"]["lesions"] == 5
    assert (place / "b" / "submission.csv").read_text() == (tmp_path / "out" / "submission.csv").read_text()
    (compared,) = files.read_json(place / "comparisons.json").values()
    assert {entry["difference"] for entry in compared.values()} == {0.0} and "64 px" in capsys.readouterr().out
    statistic = evaluate.statistics(place, stage, recipe)["b"]
    values = statistic(np.ones((1, len(statistic.patients))))
    assert {name: float(value[0]) for name, value in values.items()} == pytest.approx(sweeps.values(found))
    section = report.part(run_, {"volumes": summary}).sections[0]
    assert section.html.count("0.600") == 2 * len(values) and "train split of dbt" in section.title


def test_a_stage_draws_the_patients_of_its_run(tmp_path, monkeypatch):
    seeds = []

    def opened(spec, split, *, seed=0, **how):
        seeds.append(seed)
        raise UserError("enough")

    monkeypatch.setattr(volumes, "open_source", opened)
    run_, stage = of_stage(tmp_path, SourceSpec(VOLUMES, train_share=0.5), models=("a",))
    with refused("enough"):
        evaluate.evaluate(run_, stage, DetectionRecipe())
    assert seeds == [run_.seed] == [1]


def test_a_stage_refuses_what_are_no_whole_volumes_before_it_starts(tmp_path):
    coco = tmp_path / "slices.json"
    image = {"id": 1, "file_name": "a.png", "width": 9, "height": 9, "patient_id": "P", "split": "train"}
    image |= {"study_uid": "S", "view": "lcc", "slice": 3, "volume_slices": 9}
    coco.write_text(json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "lesion"}]}))
    spec = SourceSpec(f"coco:{coco}")
    with refused("1 of 9", "s lcc", where="config.stages.volumes.on"):
        evaluate.check_start(*of_stage(tmp_path, spec, models=("a",)), DetectionRecipe(), ())
    with refused("pairs", where="late"):
        of_stage(tmp_path, spec, models=("a",), late=(("a", "b"),))


def test_volumes_of_one_study_and_view_are_refused_before_a_detector_sees_them(model, monkeypatch, tmp_path):
    image = {"file_name": "a.png", "width": 9, "height": 9, "patient_id": "P", "split": "train", "slice": 0}
    image |= {"study_uid": "S", "view": "lcc", "volume_slices": 1}
    images = [image | {"id": k, "volume": f"v{k}", "file_name": f"{k}.png"} for k in (1, 2)]
    for one in images:
        cv2.imwrite(str(tmp_path / one["file_name"]), np.arange(81, dtype=np.uint8).reshape(9, 9))
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "lesion"}]}
    (tmp_path / "twice.json").write_text(json.dumps(content))
    spec = SourceSpec(f"coco:{tmp_path / 'twice.json'}")
    monkeypatch.setattr(predict, "detect_with", lambda *_, **__: pytest.fail("detected"))
    with refused("'lcc'", "v1 and v2", where=spec.spec):
        run(None, tmp_path / "out", model, data=spec)
    with refused("'lcc'", "v1 and v2", where="config.stages.volumes.on"):
        evaluate.check_start(*of_stage(tmp_path, spec, models=("a",)), DetectionRecipe(), ())


VOLUMES = "phantom_volumes:size=64,count=12,slices=9"


@pytest.mark.parametrize(
    "spec, on_error, words, where",
    [
        (SourceSpec("phantom:size=64,count=12"), "stop", ("dbt", "not volumes"), "config.data.dbt.spec"),
        (SourceSpec(f"{VOLUMES},modality=mammogram"), "stop", ("dbt", "not volumes"), "config.data.dbt.spec"),
        (SourceSpec("folders:somewhere"), "stop", ("dbt", "not volumes"), "config.data.dbt.spec"),
        (SourceSpec("stage:painted"), "stop", ("dbt", "not volumes"), "config.data.dbt.spec"),
        (SourceSpec("coco:none.json", partner="other"), "stop", ("dbt", "partner"), "config.data.dbt.partner"),
        (SourceSpec(VOLUMES), "skip", ("skipped",), "config.data.on_error"),
    ],
)
def test_data_that_can_never_be_volumes_are_refused_by_the_configuration_alone(tmp_path, spec, on_error, words, where):
    run_, stage = of_stage(tmp_path, spec, models=("a",))
    recipes = {"detector": DetectionRecipe()}
    experiment = replace(run_.experiment, on_error=on_error, recipes=recipes)
    with refused(*words, where=where):
        check_needs(experiment, [stage])
    good = replace(experiment, on_error="stop", data={"dbt": SourceSpec(VOLUMES)})
    check_needs(good, [stage])
    check_needs(replace(good, data={"dbt": SourceSpec("coco:none.json")}), [stage])  # its file may list slices
