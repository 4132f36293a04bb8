"""The data sources and the folders that the stages of a run share."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest

from elk_jax import files
from elk_jax.data.sources.coco import SYNTHETIC
from elk_jax.data.sources.duplicates import pixel_hash, pixel_hashes
from elk_jax.data.sources.patients import patient_hash
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.privacy.mechanism import Mechanism
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks import run as tasks_run
from elk_jax.tasks.inpainting.recipe import PaintStage, TrainInpainterStage
from elk_jax.tasks.run import MOST_LINES, Experiment, Fold, MeshSettings, Run, patients_seen, skipped_lines
from tests.refusals import refused


@pytest.fixture
def coco(tmp_path) -> str:
    """Six training and two test patients of one image each; every other one for training is marked."""
    images = []
    for i in range(8):
        split = "train" if i < 6 else "test"
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8), 100, np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": 8, "height": 8, "split": split})
        images[-1] |= {"patient_id": f"P{i}", "view": "CC" if i < 4 else "MLO"}
        images[-1] |= {"fewshot": i % 2 == 0 and split == "train"}
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4]} for i in range(8)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "lesion"}]}
    (tmp_path / "data.json").write_text(json.dumps(content))
    return f"coco:{tmp_path / 'data.json'}"


def run_on(folder, on_error="stop", stages=(), **data: SourceSpec) -> Run:
    by_name = {stage.name: stage for stage in stages}
    return Run(Experiment("e", 0, MeshSettings(), on_error, data, {}, by_name), folder, mesh=None)


def opened(run: Run, split: str, sources="real") -> list[str]:
    return [info.image_id for info in run.open(sources, split).infos]


def test_few_shots_limit_the_training_split_alone(coco, tmp_path):
    chosen = lambda split, **settings: opened(run_on(tmp_path, real=SourceSpec(coco, **settings)), split)
    assert chosen("train", train_where="fewshot=true") == ["0", "2", "4"]
    assert chosen("test", train_where="fewshot=true") == ["6", "7"]
    assert chosen("train", where="view=CC", train_where="fewshot=true") == ["0", "2"]
    assert len(chosen("train", patients=2)) == 2 and chosen("test", patients=2) == ["6", "7"]
    assert set(chosen("train", train_where="fewshot=true", patients=2)) < {"0", "2", "4"}


def test_several_sources_are_one_and_each_is_opened_once(coco, tmp_path):
    run = run_on(tmp_path, real=SourceSpec(coco), more=SourceSpec(coco, where="view=MLO"))
    both = run.open(("real", "more"), "train")
    assert [info.image_id for info in both.infos] == [*"012345", *"45"]
    assert run.open("real", "train") is run.open(("real",), "train") and run.open("real", "train").name == "real"
    assert run.list("real", "test") is run.list("real", "test") is not run.list("real", "train")


def test_annotations_are_read_once_for_all_splits(coco, tmp_path):
    run = run_on(tmp_path, real=SourceSpec(coco, where="view=CC", clean_boxes=True))
    assert [info.image_id for info in run.list("real", "train").infos] == [*"0123"]
    (tmp_path / "data.json").unlink()
    with refused("no image matches", "view"):
        run.list("real", "test")  # both are MLO
    assert [info.image_id for info in run.list("real", "").infos] == [*"0123"]


def test_sources_of_one_file_share_its_reading(coco, tmp_path):
    """Healthy canvases, say, beside the lesions; a setting of the reading itself needs another one."""
    one, other = (
        SourceSpec(coco, where="view=CC", clean_boxes=True),
        SourceSpec(coco, train_where="view=MLO", patients=1),
    )
    run = run_on(tmp_path, real=one, canvases=other, deep=SourceSpec(coco, bit_depth=12))
    assert len(run.list("real", "train").infos) == 4
    (tmp_path / "data.json").unlink()
    found = run.list("canvases", "train")
    assert found.name == "canvases" and [info.image_id for info in found.infos] in (["4"], ["5"])
    with refused("no such file"):
        run.list("deep", "train")


def test_an_unreadable_image_stops_or_is_skipped_when_opened_and_not_when_listed(coco, tmp_path):
    (tmp_path / "6.png").unlink()
    run = run_on(tmp_path, real=SourceSpec(coco))
    assert len(run.list("real", "test")) == 2
    with refused("6.png", "missing", where="real"):
        run.open("real", "test")
    lenient = run_on(tmp_path, "skip", real=SourceSpec(coco))
    assert opened(lenient, "test") == ["7"] and [image for image, _ in lenient.open("real", "test").skipped] == ["6"]


def test_an_image_is_hashed_once_in_a_run(coco, tmp_path, monkeypatch):
    """Of any fold, and by any stage; another size is another hash."""
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8), 25 * (i % 7), np.uint8))
    run, calls = run_on(tmp_path, real=SourceSpec(coco)), []
    monkeypatch.setattr(tasks_run, "pixel_hash", lambda image: calls.append(1) or pixel_hash(image))
    train, test = run.pixel_hashes("real", "train", 8), run.pixel_hashes("real", "test", 8)
    assert train == pixel_hashes(run.open("real", "train")) and test[1] == train[0] != test[0]
    assert run.pixel_hashes("real", "train", 8) == train and len(calls) == 8
    fold = replace(run, fold=Fold("other", 1, 2, frozenset(f"P{i}" for i in range(3, 8))))
    assert fold.pixel_hashes("real", "train", 8) == train[:3] and len(calls) == 8
    assert run.pixel_hashes("real", "test", 4) != test and len(calls) == 10


def test_a_source_that_is_not_set_is_named(tmp_path):
    with refused("coco:", where="config.data.real.spec"):
        run_on(tmp_path, real=SourceSpec()).list("real", "train")


def test_what_a_stage_writes_is_a_source_and_its_model_a_folder(coco, tmp_path):
    stages = (
        TrainInpainterStage(name="inpainter", train_on=("real",), validate_on="real"),
        PaintStage(name="lesions", model="inpainter", canvases="real"),
    )
    run = run_on(tmp_path, stages=stages, real=SourceSpec(coco), painted=SourceSpec("stage:lesions", patients=3))
    assert run.spec("real") == SourceSpec(coco)
    assert run.spec("painted") == SourceSpec(f"coco:{tmp_path / 'lesions' / SYNTHETIC}", patients=3)
    assert run.model_folder("inpainter") == tmp_path / "inpainter" / "model"
    assert str(run.model_folder("weights/sd")) == "weights/sd"
    assert run.experiment.recipe_of(stages[1]) is None


# ---- Whom a model has seen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patients, private, words",
    [([], False, []), (["P7", "X"], False, ["1 of these 2", "P7"]), (["P7"], True, ["privately", "1 of these 2"])],
)
def test_an_evaluation_notes_whom_the_model_has_seen(coco, tmp_path, patients, private, words):
    statement = Mechanism(Privacy(noise_multiplier=20.0), 9, 9, 20.0, 10).statement(10, private=True)
    trained = {"patients": list(map(patient_hash, patients)), "privacy": asdict(statement) if private else None}
    files.write_json(files.make_folder(tmp_path / "model") / "model.json", {"trained": trained})
    notes = patients_seen("RUN", tmp_path / "model", run_on(tmp_path, real=SourceSpec(coco)).list("real", "test").infos)
    assert len(notes) == private + bool(patients)
    for word in words:
        assert word in " ".join(notes)


def test_of_many_skipped_images_the_first_are_printed_and_the_others_counted():
    many = [(f"{number}.png", "damaged") for number in range(MOST_LINES + 1)]
    assert skipped_lines(many[:-1], "a.csv") == [f"skipped {name}: damaged" for name, _ in many[:-1]]
    *lines, last = skipped_lines(many, "a.csv", "image ")
    assert lines[0] == "skipped image 0.png: damaged" and len(lines) == MOST_LINES
    assert "1 other" in last and "a.csv" in last
